//! The embedded store keeps what it answered: conformance, bounded history, kill -9.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use skein_controlplane::store::{
    Batch, EventKind, RedbConfig, RedbStore, Store, StoreError, StoreExt, conformance,
};

fn open(path: &std::path::Path) -> Arc<dyn Store> {
    Arc::new(RedbStore::open(RedbConfig::new(path)).expect("opens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redb_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.redb");
    conformance::run(|| open(&path)).await;
}

#[tokio::test]
async fn a_watch_from_before_the_history_is_told_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = RedbConfig { path: folder.path().join("store.redb"), history_events_max: 10 };
    let store = RedbStore::open(config).expect("opens");
    let first = store.commit(Batch::new().put("k/0", "v").put("k/x", "v")).await.expect("commits");
    for n in 1..=10 {
        store.commit(Batch::new().put(format!("k/{n}"), "v")).await.expect("commits");
    }
    let refused = store.watch("k/", first - 1).await.expect_err("is too old");
    assert_eq!(refused, StoreError::Compacted { compacted: first });
    let mut watch = store.watch("k/", first).await.expect("the rest is held");
    for n in 1..=10 {
        let event = watch.next().await.expect("an event");
        assert_eq!((event.key, event.kind), (format!("k/{n}"), EventKind::Put("v".into())));
    }
}

#[tokio::test]
async fn a_slow_watcher_is_told_that_it_lags_and_harms_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder.path().join("store.redb"));
    let mut watch = store.watch("", 0).await.expect("watches");
    for round in 0..3 {
        let mut batch = Batch::new();
        for n in 0..4_000 {
            batch = batch.put(format!("{round}/{n}"), "v");
        }
        store.commit(batch).await.expect("writers are not held up");
    }
    let mut seen = 0;
    let end = loop {
        match watch.next().await {
            Ok(_) => seen += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(end, StoreError::Lagged);
    assert!(seen >= 8_000, "what was queued is still delivered: {seen}");
}

/// Not a test of its own: the child of the next one. Writes for ever and says what was answered.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(path) = std::env::var("SKEIN_TEST_STORE") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    runtime.expect("a runtime").block_on(async {
        let store = open(std::path::Path::new(&path));
        let base = store.revision();
        let mut writers = Vec::new();
        for writer in 0..8 {
            let store = store.clone();
            writers.push(tokio::spawn(async move {
                for n in 0u64.. {
                    let key = format!("kill/{base}/{writer}/{n}");
                    let pair =
                        Batch::new().put(format!("{key}/a"), "v").put(format!("{key}/b"), "v");
                    let revision = store.commit(pair).await.expect("commits");
                    println!("answered {key} {revision}");
                }
            }));
        }
        for writer in writers {
            writer.await.expect("runs until killed");
        }
    });
}

#[tokio::test]
async fn kill_minus_nine_loses_no_answered_batch_and_tears_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.redb");
    let mut answered: Vec<String> = Vec::new();
    let mut newest = 0;
    for kill in 0..3 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env("SKEIN_TEST_STORE", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
        let enough = answered.len() + 100 + 37 * kill;
        let mut note = |line: String, answered: &mut Vec<String>| {
            if let Some((_, rest)) = line.split_once("answered ")
                && let Some((key, revision)) = rest.split_once(' ')
                && let Ok(revision) = revision.trim().parse::<u64>()
            {
                newest = revision.max(newest);
                answered.push(key.to_owned());
            }
        };
        while answered.len() < enough {
            let line = lines.next().expect("the child writes").expect("reads");
            note(line, &mut answered);
        }
        child.kill().expect("SIGKILL");
        // The last line may be torn by the kill; whole ones count.
        lines.map_while(Result::ok).for_each(|line| note(line, &mut answered));
        child.wait().expect("is reaped");
        let store = open(&path);
        assert!(store.revision() >= newest, "revisions do not fall");
        for key in &answered {
            let found = store.get(&format!("{key}/b")).await.expect("reads");
            assert!(found.is_some(), "{key} was answered and is gone");
        }
        let all = store.range_all("kill/").await.expect("reads");
        let halves = |end: &str| all.iter().filter(|entry| entry.key.ends_with(end)).count();
        assert_eq!(halves("/a"), halves("/b"), "no batch is torn");
    }
}
