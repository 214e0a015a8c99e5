//! A watch: the past part first, then live events through a bounded queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{StoreError, WATCH_QUEUE_EVENTS};

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put(Bytes),
    /// It was removed, by a batch or by the end of its lease.
    Delete,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: String,
    /// What happened.
    pub kind: EventKind,
    /// Revision of the batch; events of one batch share it and come together.
    pub revision: u64,
}

/// Events below a prefix, in order of revision.
#[derive(Debug)]
pub struct Watch {
    past: VecDeque<Event>,
    live: mpsc::Receiver<Event>,
    lagged: Arc<AtomicBool>,
}

/// The store's end of a watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    prefix: String,
    live: mpsc::Sender<Event>,
    lagged: Arc<AtomicBool>,
}

pub(crate) fn pair(prefix: String, past: VecDeque<Event>) -> (Watcher, Watch) {
    let (sender, receiver) = mpsc::channel(WATCH_QUEUE_EVENTS);
    let lagged = Arc::new(AtomicBool::new(false));
    (
        Watcher { prefix, live: sender, lagged: lagged.clone() },
        Watch { past, live: receiver, lagged },
    )
}

impl Watcher {
    /// Hands an event over; false when this watcher is gone or must be dropped.
    pub(crate) fn offer(&self, event: &Event) -> bool {
        if !event.key.starts_with(&self.prefix) {
            return !self.live.is_closed();
        }
        match self.live.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lagged.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

impl Watch {
    /// The next event. [`StoreError::Lagged`] when this reader fell behind and
    /// [`StoreError::Closed`] when the store ends; both are the last.
    pub async fn next(&mut self) -> Result<Event, StoreError> {
        if let Some(event) = self.past.pop_front() {
            return Ok(event);
        }
        match self.live.recv().await {
            Some(event) => Ok(event),
            None if self.lagged.load(Ordering::Acquire) => Err(StoreError::Lagged),
            None => Err(StoreError::Closed),
        }
    }
}
