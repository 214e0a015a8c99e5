//! The embedded engine: redb with group commit.
//!
//! One thread owns all writes. It takes what waits, gathers for at most [`GATHER`] when writers
//! are concurrent, applies every batch to one redb transaction (a batch whose condition fails
//! leaves no trace in it), commits once with a flush, and only then answers and tells watchers.
//! The flush is what costs, so ten thousand concurrent writers pay for a handful of flushes.
//! Reads go to redb's snapshots directly and see every batch that was answered before they began.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use skein_observe::names;
use tokio::sync::oneshot;

use super::failure::{Failure, PanicIsFailure};
use super::watch::{self, Event, EventKind, Watch, Watcher};
use super::{
    Batch, Condition, Entry, HISTORY_EVENTS_MAX, LeaseId, Op, Page, Store, StoreError, StoreFuture,
    check_key,
};

/// How long the commit thread waits for more writers once it has seen concurrent ones.
const GATHER: Duration = Duration::from_millis(2);
/// Batches of one commit; bounds the time until the first is answered.
const GROUP_BATCHES_MAX: usize = 2_048;
/// Bytes of one commit, beyond which no further batch is taken into it.
const GROUP_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Requests that wait for the commit thread; further callers wait for room.
const QUEUE_REQUESTS: usize = 4_096;
/// Page cache of redb.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// key → (revision, lease or 0, value)
const ENTRIES: TableDefinition<&str, (u64, u64, &[u8])> = TableDefinition::new("entries");
/// (revision, place in its batch) → (1 = put, 0 = delete, key)
const HISTORY: TableDefinition<(u64, u32), (u8, &str)> = TableDefinition::new("history");
/// lease → its time in ms
const LEASES: TableDefinition<u64, u64> = TableDefinition::new("leases");
/// (lease, key)
const LEASE_KEYS: TableDefinition<(u64, &str), ()> = TableDefinition::new("lease_keys");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const META_REVISION: &str = "revision";
const META_COMPACTED: &str = "compacted";
const META_NEXT_LEASE: &str = "next_lease";
const META_HISTORY_EVENTS: &str = "history_events";

/// Where and how to open the embedded engine.
#[derive(Clone, Debug)]
pub struct RedbConfig {
    /// The database file; made when absent.
    pub path: PathBuf,
    /// See [`HISTORY_EVENTS_MAX`]; smaller in tests.
    pub history_events_max: u64,
}

impl RedbConfig {
    /// Defaults for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), history_events_max: HISTORY_EVENTS_MAX }
    }
}

/// The embedded store.
#[derive(Debug)]
pub struct RedbStore {
    db: Arc<Database>,
    requests: Option<flume::Sender<Request>>,
    revision: Arc<AtomicU64>,
    failure: Failure,
    thread: Option<JoinHandle<()>>,
}

enum Request {
    Commit { batch: Batch, answer: Answer<u64> },
    Watch { prefix: String, after: u64, answer: Answer<Watch> },
    GrantLease { ttl_ms: u64, answer: Answer<LeaseId> },
    RenewLease { lease: LeaseId, answer: Answer<()> },
    EndLease { lease: LeaseId, answer: Answer<()> },
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

fn engine_error(error: impl std::fmt::Display) -> StoreError {
    StoreError::Engine(error.to_string())
}

impl RedbStore {
    /// Opens or makes the database and starts its commit thread.
    pub fn open(config: RedbConfig) -> Result<Self, StoreError> {
        let failed = |error: &dyn std::fmt::Display| {
            StoreError::Engine(format!("{}: {error}", config.path.display()))
        };
        // Scripts and facts are nobody else's business.
        let file = open_private(&config.path).map_err(|error| failed(&error))?;
        let db = Database::builder().set_cache_size(CACHE_BYTES).create_file(file);
        let db = Arc::new(db.map_err(|error| failed(&error))?);
        let failure = Failure::new();
        let mut committer =
            Committer::load(db.clone(), config.history_events_max, failure.clone())?;
        let revision = committer.published.clone();
        let guard = PanicIsFailure(failure.clone());
        let (requests, queue) = flume::bounded(QUEUE_REQUESTS);
        let thread = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || {
                let _guard = guard;
                committer.run(&queue);
            })
            .map_err(engine_error)?;
        Ok(Self { db, requests: Some(requests), revision, failure, thread: Some(thread) })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(Answer<T>) -> Request + Send,
    ) -> Result<T, StoreError> {
        let (answer, result) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send_async(request(answer)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    fn read_one(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let txn = self.db.begin_read().map_err(engine_error)?;
        let entries = txn.open_table(ENTRIES).map_err(engine_error)?;
        let found = entries.get(key).map_err(engine_error)?;
        Ok(found.map(|guard| entry_of(key, guard.value())))
    }

    fn read_range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let txn = self.db.begin_read().map_err(engine_error)?;
        let entries = txn.open_table(ENTRIES).map_err(engine_error)?;
        let meta = txn.open_table(META).map_err(engine_error)?;
        let revision = read_meta(&meta, META_REVISION)?;
        let from = after.filter(|after| *after > prefix).unwrap_or(prefix);
        let mut page = Page { revision, ..Page::default() };
        for item in entries.range(from..).map_err(engine_error)? {
            let (key, value) = item.map_err(engine_error)?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            if after.is_some_and(|after| key <= after) {
                continue;
            }
            if page.entries.len() == limit {
                page.more = true;
                break;
            }
            page.entries.push(entry_of(key, value.value()));
        }
        Ok(page)
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the commit thread was already answered to callers as `Closed`.
            let _ = thread.join();
        }
    }
}

impl Store for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Entry>> {
        Box::pin(async move { self.failure.watched(self.read_one(key)) })
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> StoreFuture<'a, Page> {
        Box::pin(async move { self.failure.watched(self.read_range(prefix, after, limit)) })
    }

    fn commit(&self, batch: Batch) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            batch.check()?;
            self.ask(|answer| Request::Commit { batch, answer }).await
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: u64) -> StoreFuture<'a, Watch> {
        let prefix = prefix.to_owned();
        Box::pin(self.ask(move |answer| Request::Watch { prefix, after, answer }))
    }

    fn grant_lease(&self, ttl_ms: u64) -> StoreFuture<'_, LeaseId> {
        Box::pin(self.ask(move |answer| Request::GrantLease { ttl_ms, answer }))
    }

    fn renew_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(self.ask(move |answer| Request::RenewLease { lease, answer }))
    }

    fn end_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(self.ask(move |answer| Request::EndLease { lease, answer }))
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    fn failed(&self) -> Pin<Box<dyn Future<Output = StoreError> + Send + '_>> {
        Box::pin(self.failure.wait())
    }
}

/// The database's file, readable by its owner alone.
fn open_private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn entry_of(key: &str, (revision, _, value): (u64, u64, &[u8])) -> Entry {
    Entry { key: key.to_owned(), value: Bytes::copy_from_slice(value), revision }
}

fn read_meta(table: &impl ReadableTable<&'static str, u64>, key: &str) -> Result<u64, StoreError> {
    Ok(table.get(key).map_err(engine_error)?.map_or(0, |guard| guard.value()))
}

// -------------------------------------------------------------------------- the commit thread

struct Committer {
    db: Arc<Database>,
    history_events_max: u64,
    /// Newest revision that is durable, for readers.
    published: Arc<AtomicU64>,
    /// Newest revision, also of the transaction in progress.
    revision: u64,
    watchers: Vec<Watcher>,
    /// Soft deadlines of leases.
    leases: BTreeMap<LeaseId, (u64, Instant)>,
    /// When redb failed its state on disk is good, but this handle takes no more writes.
    failure: Failure,
}

/// What a group does, in the order of arrival, once its transaction is durable.
type AfterCommit = Vec<Box<dyn FnOnce(&Result<(), StoreError>)>>;

impl Committer {
    fn load(
        db: Arc<Database>,
        history_events_max: u64,
        failure: Failure,
    ) -> Result<Self, StoreError> {
        let txn = db.begin_write().map_err(engine_error)?;
        let mut leases = BTreeMap::new();
        let revision;
        {
            txn.open_table(ENTRIES).map_err(engine_error)?;
            txn.open_table(HISTORY).map_err(engine_error)?;
            txn.open_table(LEASE_KEYS).map_err(engine_error)?;
            let meta = txn.open_table(META).map_err(engine_error)?;
            revision = read_meta(&meta, META_REVISION)?;
            let table = txn.open_table(LEASES).map_err(engine_error)?;
            for item in table.iter().map_err(engine_error)? {
                let (id, ttl) = item.map_err(engine_error)?;
                let ttl_ms = ttl.value();
                let deadline = Instant::now() + Duration::from_millis(ttl_ms);
                leases.insert(LeaseId(id.value()), (ttl_ms, deadline));
            }
        }
        txn.commit().map_err(engine_error)?;
        Ok(Self {
            db,
            history_events_max,
            published: Arc::new(AtomicU64::new(revision)),
            revision,
            watchers: Vec::new(),
            leases,
            failure,
        })
    }

    fn run(&mut self, queue: &flume::Receiver<Request>) {
        let mut concurrent = false;
        loop {
            let first = match self.next_lease_deadline() {
                Some(deadline) => match queue.recv_deadline(deadline) {
                    Ok(request) => Some(request),
                    Err(flume::RecvTimeoutError::Timeout) => None,
                    Err(flume::RecvTimeoutError::Disconnected) => return,
                },
                None => match queue.recv() {
                    Ok(request) => Some(request),
                    Err(flume::RecvError::Disconnected) => return,
                },
            };
            let mut group = Vec::new();
            if let Some(first) = first {
                gather(queue, first, concurrent, &mut group);
                concurrent = group.len() > 1;
            }
            self.expire_leases(&mut group);
            if !group.is_empty() {
                self.commit_group(group);
            }
        }
    }

    fn next_lease_deadline(&self) -> Option<Instant> {
        self.leases.values().map(|(_, deadline)| *deadline).min()
    }

    fn expire_leases(&mut self, group: &mut Vec<Request>) {
        let now = Instant::now();
        for (lease, (_, deadline)) in &self.leases {
            if *deadline <= now {
                let (answer, _nobody_waits) = oneshot::channel();
                group.push(Request::EndLease { lease: *lease, answer });
            }
        }
    }

    fn commit_group(&mut self, group: Vec<Request>) {
        let began = Instant::now();
        let batches = group.len();
        let mut after: AfterCommit = Vec::new();
        let mut watches = Vec::new();
        let mut events = Vec::new();
        let before = self.revision;
        let result = match self.failure.get() {
            Some(error) => Err(error),
            None => self.apply_group(group, &mut after, &mut watches, &mut events),
        };
        if let Err(error) = &result {
            self.revision = before;
            events.clear();
            self.failure.enter(error);
        } else {
            self.published.store(self.revision, Ordering::Release);
            metrics::histogram!(names::CONTROL_STORE_COMMIT_SECONDS)
                .record(began.elapsed().as_secs_f64());
            metrics::counter!(names::CONTROL_STORE_COMMITS).increment(1);
            metrics::counter!(names::CONTROL_STORE_CHANGES).increment(batches as u64);
        }
        self.watchers.retain(|watcher| events.iter().all(|event| watcher.offer(event)));
        for answer in after {
            answer(&result);
        }
        for (prefix, from, answer) in watches {
            let _ = answer.send(self.begin_watch(prefix, from));
        }
    }

    /// Applies a group to one transaction. An error here is the engine's and ends all of it.
    fn apply_group(
        &mut self,
        group: Vec<Request>,
        after: &mut AfterCommit,
        watches: &mut Vec<(String, u64, Answer<Watch>)>,
        events: &mut Vec<Event>,
    ) -> Result<(), StoreError> {
        // Watches and renewals change nothing on disk: no transaction for them alone.
        let durable = |request: &Request| {
            !matches!(request, Request::Watch { .. } | Request::RenewLease { .. })
        };
        let mut txn = None;
        if group.iter().any(durable) {
            let mut begun = self.db.begin_write().map_err(engine_error)?;
            begun.set_durability(Durability::Immediate).map_err(engine_error)?;
            txn = Some(begun);
        }
        for request in group {
            match (request, &txn) {
                (Request::Commit { batch, answer }, Some(txn)) => {
                    let outcome = match self.apply(txn, batch, events) {
                        Err(error @ StoreError::Engine(_)) => {
                            let _ = answer.send(Err(error.clone()));
                            return Err(error);
                        }
                        other => other,
                    };
                    reply_after(after, answer, outcome);
                }
                (Request::GrantLease { ttl_ms, answer }, Some(txn)) => {
                    let lease = grant(txn, ttl_ms)?;
                    let deadline = Instant::now() + Duration::from_millis(ttl_ms);
                    self.leases.insert(lease, (ttl_ms, deadline));
                    reply_after(after, answer, Ok(lease));
                }
                (Request::EndLease { lease, answer }, Some(txn)) => {
                    let known = self.leases.remove(&lease).is_some();
                    let outcome = match known {
                        true => self.end(txn, lease, events),
                        false => Err(StoreError::NoLease(lease.0)),
                    };
                    if let Err(error @ StoreError::Engine(_)) = outcome {
                        return Err(error);
                    }
                    reply_after(after, answer, outcome);
                }
                (Request::RenewLease { lease, answer }, _) => {
                    let outcome = match self.leases.get_mut(&lease) {
                        Some((ttl_ms, deadline)) => {
                            *deadline = Instant::now() + Duration::from_millis(*ttl_ms);
                            Ok(())
                        }
                        None => Err(StoreError::NoLease(lease.0)),
                    };
                    reply_after(after, answer, outcome);
                }
                (Request::Watch { prefix, after, answer }, _) => {
                    watches.push((prefix, after, answer));
                }
                // Unreachable by the check above; the dropped answer reads as `Closed`.
                (_, None) => {}
            }
        }
        if let Some(txn) = txn {
            self.bound_history(&txn)?;
            txn.commit().map_err(engine_error)?;
        }
        Ok(())
    }

    /// Applies one batch: all conditions first, so that a refused batch leaves no trace.
    fn apply(
        &mut self,
        txn: &redb::WriteTransaction,
        batch: Batch,
        events: &mut Vec<Event>,
    ) -> Result<u64, StoreError> {
        let mut entries = txn.open_table(ENTRIES).map_err(engine_error)?;
        for condition in &batch.conditions {
            check_condition(&entries, condition)?;
        }
        for op in &batch.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::NoLease(lease.0));
            }
        }
        if batch.ops.is_empty() {
            return Ok(self.revision);
        }
        let revision = self.revision + 1;
        let mut lease_keys = txn.open_table(LEASE_KEYS).map_err(engine_error)?;
        let first_event = events.len();
        for op in batch.ops {
            let (key, kind, lease) = match op {
                Op::Put { key, value, lease } => (key, EventKind::Put(value), lease),
                Op::Delete { key } => (key, EventKind::Delete, None),
            };
            let old_lease = match &kind {
                EventKind::Put(value) => {
                    let row = (revision, lease.map_or(0, |lease| lease.0), value.as_ref());
                    let old = entries.insert(key.as_str(), row).map_err(engine_error)?;
                    old.map_or(0, |old| old.value().1)
                }
                EventKind::Delete => match entries.remove(key.as_str()).map_err(engine_error)? {
                    Some(old) => old.value().1,
                    None => continue,
                },
            };
            if old_lease != 0 {
                lease_keys.remove((old_lease, key.as_str())).map_err(engine_error)?;
            }
            if let Some(lease) = lease {
                lease_keys.insert((lease.0, key.as_str()), ()).map_err(engine_error)?;
            }
            events.push(Event { key, kind, revision });
        }
        record(txn, revision, &events[first_event..])?;
        self.revision = revision;
        Ok(revision)
    }

    fn end(
        &mut self,
        txn: &redb::WriteTransaction,
        lease: LeaseId,
        events: &mut Vec<Event>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        {
            let keys = txn.open_table(LEASE_KEYS).map_err(engine_error)?;
            for item in keys.range((lease.0, "")..(lease.0 + 1, "")).map_err(engine_error)? {
                let (key, ()) =
                    item.map(|(key, _)| (key.value().1.to_owned(), ())).map_err(engine_error)?;
                batch = batch.delete(key);
            }
            txn.open_table(LEASES).map_err(engine_error)?.remove(lease.0).map_err(engine_error)?;
        }
        self.apply(txn, batch, events).map(|_| ())
    }

    fn bound_history(&self, txn: &redb::WriteTransaction) -> Result<(), StoreError> {
        let mut meta = txn.open_table(META).map_err(engine_error)?;
        let mut events = read_meta(&meta, META_HISTORY_EVENTS)?;
        let mut history = txn.open_table(HISTORY).map_err(engine_error)?;
        let mut compacted = None;
        // A revision leaves whole: what is left of it would read as all of it.
        loop {
            let oldest = history.first().map_err(engine_error)?.map(|(key, _)| key.value().0);
            let Some(oldest) = oldest else { break };
            if events <= self.history_events_max && compacted != Some(oldest) {
                break;
            }
            history.pop_first().map_err(engine_error)?;
            compacted = Some(oldest);
            events -= 1;
        }
        if let Some(compacted) = compacted {
            meta.insert(META_COMPACTED, compacted).map_err(engine_error)?;
            meta.insert(META_HISTORY_EVENTS, events).map_err(engine_error)?;
        }
        Ok(())
    }

    fn begin_watch(&mut self, prefix: String, after: u64) -> Result<Watch, StoreError> {
        let txn = self.db.begin_read().map_err(engine_error)?;
        let meta = txn.open_table(META).map_err(engine_error)?;
        let compacted = read_meta(&meta, META_COMPACTED)?;
        if after < compacted {
            return Err(StoreError::Compacted { compacted });
        }
        let history = txn.open_table(HISTORY).map_err(engine_error)?;
        let entries = txn.open_table(ENTRIES).map_err(engine_error)?;
        let mut past = VecDeque::new();
        for item in history.range((after + 1, 0)..).map_err(engine_error)? {
            let (at, what) = item.map_err(engine_error)?;
            let (revision, (put, key)) = (at.value().0, what.value());
            if !key.starts_with(&prefix) {
                continue;
            }
            let kind = if put == 1 {
                // The value of a later revision has an event of its own further on.
                let found = entries.get(key).map_err(engine_error)?;
                match found.as_ref().map(|guard| guard.value()) {
                    Some((at, _, value)) if at == revision => {
                        EventKind::Put(Bytes::copy_from_slice(value))
                    }
                    _ => continue,
                }
            } else {
                EventKind::Delete
            };
            past.push_back(Event { key: key.to_owned(), kind, revision });
        }
        let (watcher, watch) = watch::pair(prefix, past);
        self.watchers.push(watcher);
        Ok(watch)
    }
}

fn gather(
    queue: &flume::Receiver<Request>,
    first: Request,
    concurrent: bool,
    group: &mut Vec<Request>,
) {
    let until = Instant::now() + GATHER;
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(request) = next.take() {
        if let Request::Commit { batch, .. } = &request {
            bytes += batch_bytes(batch);
        }
        group.push(request);
        if group.len() >= GROUP_BATCHES_MAX || bytes >= GROUP_BYTES_MAX {
            return;
        }
        // A lone writer is not made to wait for company that does not come.
        next = queue.try_recv().ok().or_else(|| match concurrent {
            true => queue.recv_deadline(until).ok(),
            false => None,
        });
    }
}

fn batch_bytes(batch: &Batch) -> usize {
    let bytes_of = |op: &Op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    };
    batch.ops.iter().map(bytes_of).sum()
}

fn reply_after<T: 'static>(
    after: &mut AfterCommit,
    answer: Answer<T>,
    outcome: Result<T, StoreError>,
) {
    after.push(Box::new(move |durable| {
        // A caller that went away does not want the answer.
        let _ = answer.send(match durable {
            Ok(()) => outcome,
            Err(error) => Err(error.clone()),
        });
    }));
}

fn check_condition(
    entries: &impl ReadableTable<&'static str, (u64, u64, &'static [u8])>,
    condition: &Condition,
) -> Result<(), StoreError> {
    let (Condition::Absent(key) | Condition::At(key, _) | Condition::Present(key)) = condition;
    check_key(key)?;
    let found = entries.get(key.as_str()).map_err(engine_error)?.map(|guard| guard.value().0);
    let holds = match condition {
        Condition::Absent(_) => found.is_none(),
        Condition::At(_, revision) => found == Some(*revision),
        Condition::Present(_) => found.is_some(),
    };
    match holds {
        true => Ok(()),
        false => Err(StoreError::Conflict { key: key.clone(), found }),
    }
}

fn grant(txn: &redb::WriteTransaction, ttl_ms: u64) -> Result<LeaseId, StoreError> {
    let mut meta = txn.open_table(META).map_err(engine_error)?;
    let id = read_meta(&meta, META_NEXT_LEASE)?.max(1);
    meta.insert(META_NEXT_LEASE, id + 1).map_err(engine_error)?;
    let mut leases = txn.open_table(LEASES).map_err(engine_error)?;
    leases.insert(id, ttl_ms).map_err(engine_error)?;
    Ok(LeaseId(id))
}

fn record(txn: &redb::WriteTransaction, revision: u64, events: &[Event]) -> Result<(), StoreError> {
    let mut history = txn.open_table(HISTORY).map_err(engine_error)?;
    for (place, event) in events.iter().enumerate() {
        let put = u8::from(matches!(event.kind, EventKind::Put(_)));
        let at = (revision, place as u32);
        history.insert(at, (put, event.key.as_str())).map_err(engine_error)?;
    }
    let mut meta = txn.open_table(META).map_err(engine_error)?;
    meta.insert(META_REVISION, revision).map_err(engine_error)?;
    let total = read_meta(&meta, META_HISTORY_EVENTS)? + events.len() as u64;
    meta.insert(META_HISTORY_EVENTS, total).map_err(engine_error)?;
    Ok(())
}
