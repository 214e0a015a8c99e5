//! What every engine must do, as code. An engine's tests call [`run`] with a way to open the same
//! store again and again; each part names the statement that it checks and panics where it fails.
//!
//! The parts share one store and keep to their own prefixes, so that an engine which cannot be
//! emptied (a shared etcd) can run them too.

use std::sync::Arc;
use std::time::Duration;

use super::{Batch, Condition, EventKind, Op, Store, StoreError, StoreExt, VALUE_BYTES_MAX};

/// Longest wait for an event that must come.
const EVENT_WAIT: Duration = Duration::from_secs(5);

/// Runs the whole suite. `open` opens the store; the handle before has been dropped by then.
pub async fn run<F>(mut open: F)
where
    F: FnMut() -> Arc<dyn Store>,
{
    let store = open();
    batches_happen_whole_or_not_at_all(&*store).await;
    compare_and_set_lets_one_of_many_win(&store).await;
    ranges_are_ordered_and_paged(&*store).await;
    watches_miss_nothing(&*store).await;
    leases_take_their_keys_along(&*store).await;
    limits_are_refused_with_their_name(&*store).await;
    updates_by_many_lose_nothing(&store).await;
    let revision = store.revision();
    drop(store);
    let store = open();
    state_outlives_the_handle(&*store, revision).await;
}

async fn batches_happen_whole_or_not_at_all(store: &dyn Store) {
    let first = store.commit(Batch::new().put("batch/a", "1").put("batch/b", "2")).await;
    let first = first.expect("a plain batch commits");
    let a = store.get("batch/a").await.expect("reads").expect("was put");
    let b = store.get("batch/b").await.expect("reads").expect("was put");
    assert_eq!((a.revision, b.revision), (first, first), "one batch is one revision");

    let refused = Batch::new()
        .when(Condition::Absent("batch/b".into()))
        .put("batch/a", "x")
        .delete("batch/b")
        .put("batch/c", "x");
    assert_eq!(
        store.commit(refused).await,
        Err(StoreError::Conflict { key: "batch/b".into(), found: Some(first) }),
    );
    assert_eq!(store.get("batch/a").await.expect("reads"), Some(a), "nothing was changed");
    assert_eq!(store.get("batch/c").await.expect("reads"), None);

    let mixed = Batch::new()
        .when(Condition::At("batch/a".into(), first))
        .when(Condition::Present("batch/b".into()))
        .when(Condition::Absent("batch/c".into()))
        .put("batch/a", "3")
        .delete("batch/b");
    let second = store.commit(mixed).await.expect("all conditions hold");
    assert!(second > first, "revisions rise");
    assert!(store.revision() >= second);
    assert_eq!(store.get("batch/b").await.expect("reads"), None);
    let absent_delete = store.commit(Batch::new().delete("batch/none")).await;
    assert!(absent_delete.is_ok(), "removing what is absent is no error");
}

async fn compare_and_set_lets_one_of_many_win(store: &Arc<dyn Store>) {
    const WRITERS: usize = 64;
    let base = store.commit(Batch::new().put("cas/k", "base")).await.expect("commits");
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            let batch = Batch::new()
                .when(Condition::At("cas/k".into(), base))
                .put("cas/k", writer.to_string());
            store.commit(batch).await
        }));
    }
    let mut won = 0;
    for writer in writers {
        match writer.await.expect("no panic") {
            Ok(_) => won += 1,
            Err(StoreError::Conflict { found, .. }) => assert!(found > Some(base)),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(won, 1, "exactly one of {WRITERS} concurrent compare-and-sets wins");
}

async fn ranges_are_ordered_and_paged(store: &dyn Store) {
    let mut batch = Batch::new().put("range", "outside").put("range0", "outside");
    for n in [3, 1, 2, 5, 4] {
        batch = batch.put(format!("range/{n}"), n.to_string());
    }
    let revision = store.commit(batch).await.expect("commits");
    let page = store.range("range/", None, 2).await.expect("reads");
    let keys: Vec<_> = page.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!((keys, page.more), (vec!["range/1", "range/2"], true));
    assert!(page.revision >= revision);
    let page = store.range("range/", Some("range/4"), 2).await.expect("reads");
    assert_eq!(page.entries.len(), 1);
    assert_eq!((page.entries[0].key.as_str(), page.more), ("range/5", false));
    assert!(store.range("range/5x", None, 9).await.expect("reads").entries.is_empty());
    assert_eq!(store.range_all("range/").await.expect("reads").len(), 5);
}

async fn watches_miss_nothing(store: &dyn Store) {
    let r1 = store.commit(Batch::new().put("watch/a", "1")).await.expect("commits");
    let r2 = store.commit(Batch::new().put("watch/b", "2").put("other", "x")).await;
    let r2 = r2.expect("commits");
    let mut watch = store.watch("watch/", r1 - 1).await.expect("watches");
    let r3 = store.commit(Batch::new().delete("watch/a").put("watch/c", "3")).await;
    let r3 = r3.expect("commits");
    let mut seen = Vec::new();
    // The put of watch/a may be left out, because it has been replaced by its removal since.
    while seen.last() != Some(&("watch/c".to_owned(), Some("3".to_owned()), r3)) {
        let event = tokio::time::timeout(EVENT_WAIT, watch.next()).await;
        let event = event.expect("events come").expect("the watch lives");
        let value = match event.kind {
            EventKind::Put(value) => Some(String::from_utf8_lossy(&value).into_owned()),
            EventKind::Delete => None,
        };
        seen.push((event.key, value, event.revision));
    }
    let wanted = [
        ("watch/b".to_owned(), Some("2".to_owned()), r2),
        ("watch/a".to_owned(), None, r3),
        ("watch/c".to_owned(), Some("3".to_owned()), r3),
    ];
    let seen: Vec<_> = seen.into_iter().filter(|event| event.2 > r1).collect();
    assert_eq!(seen, wanted);
}

async fn leases_take_their_keys_along(store: &dyn Store) {
    // Longer than two flushes of a busy disk.
    let short = store.grant_lease(1_500).await.expect("grants");
    let long = store.grant_lease(60_000).await.expect("grants");
    let batch = Batch::new()
        .put_leased("lease/short", "s", short)
        .put_leased("lease/moved", "m", short)
        .put_leased("lease/long", "l", long);
    let revision = store.commit(batch).await.expect("commits");
    let moved = Batch::new().put_leased("lease/moved", "m2", long);
    store.commit(moved).await.expect("commits");
    store.renew_lease(short).await.expect("renews");
    let mut watch = store.watch("lease/short", revision).await.expect("watches");
    let event = tokio::time::timeout(EVENT_WAIT, watch.next()).await.expect("expires in time");
    assert_eq!(event.expect("the watch lives").kind, EventKind::Delete);
    assert!(store.get("lease/moved").await.expect("reads").is_some(), "it had changed its lease");
    assert!(matches!(store.renew_lease(short).await, Err(StoreError::NoLease(_))));
    let late = store.commit(Batch::new().put_leased("lease/late", "x", short)).await;
    assert!(matches!(late, Err(StoreError::NoLease(_))));
    store.end_lease(long).await.expect("ends");
    assert!(store.range_all("lease/").await.expect("reads").is_empty());
    assert!(matches!(store.end_lease(long).await, Err(StoreError::NoLease(_))));
}

async fn limits_are_refused_with_their_name(store: &dyn Store) {
    let largest = vec![7u8; VALUE_BYTES_MAX];
    store.commit(Batch::new().put("limit/v", largest.clone())).await.expect("the limit is inside");
    let mut too_large = largest;
    too_large.push(7);
    let refused = store.commit(Batch::new().put("limit/v", too_large)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    let refused = store.commit(Batch::new().put("k".repeat(513), "v")).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    let refused = store.commit(Batch::new().put("", "v")).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    let many = Batch {
        conditions: Vec::new(),
        ops: (0..5_000).map(|n| Op::Delete { key: format!("limit/{n}") }).collect(),
    };
    assert!(matches!(store.commit(many).await, Err(StoreError::TooLarge { .. })));
}

async fn updates_by_many_lose_nothing(store: &Arc<dyn Store>) {
    use super::ext::Update;
    const WRITERS: u32 = 8;
    const ROUNDS: u32 = 5;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let count = |found: Option<u32>| Update::Write(found.unwrap_or(0) + 1, ());
                store.update_json("update/counter", count).await.expect("updates");
            }
        }));
    }
    for writer in writers {
        writer.await.expect("no panic");
    }
    let counted = store.get_json::<u32>("update/counter").await.expect("reads");
    assert_eq!(counted.map(|(count, _)| count), Some(WRITERS * ROUNDS));
}

async fn state_outlives_the_handle(store: &dyn Store, revision: u64) {
    assert!(store.revision() >= revision, "revisions do not fall over a restart");
    assert_eq!(store.range_all("range/").await.expect("reads").len(), 5);
    let next = store.commit(Batch::new().put("reopen", "1")).await.expect("commits");
    assert!(next > revision, "revisions rise over a restart");
}
