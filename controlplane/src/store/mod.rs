//! The control process's durable state, behind one small trait.
//!
//! A store maps short text keys to small values. Everything that changes goes through [`Batch`]:
//! conditions that must hold and operations that then happen together or not at all; a plain put
//! and a compare-and-set are batches of one. Each batch that changes something takes the next
//! revision; revisions only rise, also over restarts. An answered batch survives the death of the
//! process and of the machine.
//!
//! There are to be two engines with one meaning: [`RedbStore`], embedded and the default, and etcd
//! when one node is not enough. [`conformance`] is that meaning as code, run on each.

pub mod conformance;
mod engine;
pub(crate) mod ext;
mod failure;
mod watch;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

pub use engine::{RedbConfig, RedbStore};
pub use ext::StoreExt;
pub use watch::{Event, EventKind, Watch};

/// Longest key.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest value; larger things are files that a value names.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Most conditions plus operations of one batch.
pub const BATCH_ITEMS_MAX: usize = 4096;
/// Most bytes of keys and values of one batch: eight of the largest values.
pub const BATCH_BYTES_MAX: usize = 8 * VALUE_BYTES_MAX;
/// Events that the history holds for watches that begin in the past. An event is a key and a
/// revision, at most about 600 bytes, so the history stays under 40 MiB.
pub const HISTORY_EVENTS_MAX: u64 = 65_536;
/// Events that wait for one slow watcher before it is told that it lags.
pub const WATCH_QUEUE_EVENTS: usize = 8_192;

/// Future of a store's answer; boxed so that engines can be chosen at start.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A key, its value, and the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// Revision of the batch that wrote it; the token of compare-and-set.
    pub revision: u64,
}

/// A part of a prefix's entries, in order of key.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The store's revision when they were read: watch from here to miss nothing.
    pub revision: u64,
    /// Whether more entries follow the last.
    pub more: bool,
}

/// A lease: keys put under it vanish when it is not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// What must be true for a batch to happen.
#[derive(Clone, Debug)]
pub enum Condition {
    /// The key has no entry.
    Absent(String),
    /// The key's entry was last written by this revision.
    At(String, u64),
    /// The key has an entry.
    Present(String),
}

/// One change.
#[derive(Clone, Debug)]
pub enum Op {
    /// Write a value.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// The entry ends with this lease.
        lease: Option<LeaseId>,
    },
    /// Remove a key; no error when it is absent.
    Delete {
        /// The key.
        key: String,
    },
}

/// Changes that happen together, if all conditions hold.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// All happen, in order.
    pub ops: Vec<Op>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    pub fn when(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Adds a put.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Adds a put whose entry ends with a lease.
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Adds a removal.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Checks the limits that every engine shares.
    pub fn check(&self) -> Result<(), StoreError> {
        let items = self.conditions.len() + self.ops.len();
        if items > BATCH_ITEMS_MAX {
            return Err(StoreError::TooLarge {
                what: format!("a batch of {items} items"),
                max: BATCH_ITEMS_MAX,
            });
        }
        let mut bytes = 0;
        for op in &self.ops {
            let (key, value_bytes) = match op {
                Op::Put { key, value, .. } => (key, value.len()),
                Op::Delete { key } => (key, 0),
            };
            check_key(key)?;
            if value_bytes > VALUE_BYTES_MAX {
                return Err(StoreError::TooLarge {
                    what: format!("the value of {key} with {value_bytes} bytes"),
                    max: VALUE_BYTES_MAX,
                });
            }
            bytes += key.len() + value_bytes;
        }
        if bytes > BATCH_BYTES_MAX {
            return Err(StoreError::TooLarge {
                what: format!("a batch of {bytes} bytes"),
                max: BATCH_BYTES_MAX,
            });
        }
        Ok(())
    }
}

pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(StoreError::TooLarge {
            what: format!("a key of {} bytes", key.len()),
            max: KEY_BYTES_MAX,
        });
    }
    Ok(())
}

/// Why a store could not do what was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// A condition did not hold; nothing was changed. Read again and decide anew.
    #[error("{key} was changed by another (found revision {found:?}); read it again and retry")]
    Conflict {
        /// Key of the first condition that failed.
        key: String,
        /// Revision that was found; none: the key is absent.
        found: Option<u64>,
    },
    /// A limit of this module.
    #[error("{what} exceeds the store's limit of {max}; split it or keep it in a file")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit.
        max: usize,
    },
    /// The lease is unknown or has ended.
    #[error("lease {0} has ended; take a new one")]
    NoLease(u64),
    /// The history no longer reaches back so far.
    #[error("the history begins after revision {compacted}; read the range anew and watch from it")]
    Compacted {
        /// Events up to this revision are gone.
        compacted: u64,
    },
    /// The watcher did not keep up and lost events.
    #[error("this watch fell more than {WATCH_QUEUE_EVENTS} events behind; read the range anew")]
    Lagged,
    /// The store is shutting down, or its commit thread has failed.
    #[error("the store is closed; the control process is stopping or its disk has failed")]
    Closed,
    /// The engine failed; after this it takes no more writes.
    #[error("store: {0}")]
    Engine(String),
}

/// Durable state with compare-and-set, ranges, watches and leases.
pub trait Store: Send + Sync + 'static {
    /// One entry.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Entry>>;

    /// Entries whose key begins with `prefix` and is greater than `after`, at most `limit`.
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> StoreFuture<'a, Page>;

    /// Applies a batch whole or not at all, and answers with its revision when it is durable.
    fn commit(&self, batch: Batch) -> StoreFuture<'_, u64>;

    /// Changes below `prefix` with a revision greater than `after`, then those to come. A value
    /// that has been replaced since may be left out of the past part; the newest never is.
    fn watch<'a>(&'a self, prefix: &'a str, after: u64) -> StoreFuture<'a, Watch>;

    /// A new lease. After a restart of the store every lease has its whole time again.
    fn grant_lease(&self, ttl_ms: u64) -> StoreFuture<'_, LeaseId>;

    /// Gives a lease its whole time again.
    fn renew_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()>;

    /// Ends a lease now and removes its keys.
    fn end_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()>;

    /// Revision of the newest durable batch.
    fn revision(&self) -> u64;

    /// Waits until the engine has failed. It takes no more writes then, so that the process has
    /// to end; what was answered before is durable.
    fn failed(&self) -> Pin<Box<dyn Future<Output = StoreError> + Send + '_>>;
}
