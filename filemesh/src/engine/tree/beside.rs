//! A thread that makes a tree's small files, so that whoever receives them goes on with the next.
//!
//! Making a file costs the kernel several times what receiving, decrypting and proving its bytes
//! costs, and both are about what a link of 1 Gbit/s takes for 4 KiB. So the one does not wait for
//! the other. It is one thread: files of one directory cannot be made at the same time.
//!
//! ```text
//!   write ─► batch, 64 KiB ─► 4 batches at most ─► thread: make, write, attributes
//!   read, finish ─► wait: all that was handed over is done, or the first error
//! ```
//!
//! What waits is lost to kill -9, as other staged bytes are; the state file's claims are proved
//! before they count. An error comes out of a later write, or of the wait.

use super::small::{Failed, SmallFile};
use crate::core::bitfield::Bitfield;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Bytes that are handed over at once: waking a thread for each file would cost half of what it saves.
const BATCH_BYTES: usize = 64 * 1024;
/// Files of one batch, for empty and tiny ones.
const BATCH_FILES: usize = 64;
/// Batches that wait.
const BATCHES_MAX: usize = 4;
/// Larger files are written by whoever has them: they would only be copied.
const FILE_BYTES_MAX: usize = BATCH_BYTES;
/// A tree with fewer entries is not worth a thread.
pub(super) const ENTRIES_MIN: u32 = 256;

/// The thread, as the writer of a tree sees it. Dropping it waits until all is done.
#[derive(Debug)]
pub(super) struct Beside {
    /// `None` once the thread shall end.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    failed: Arc<Mutex<State>>,
    batch: Batch,
    /// Entries handed over since the last wait.
    sent: Bitfield,
}

/// What went wrong, with which entry.
pub(super) type Failure = (u32, Failed);

/// What the thread leaves behind after an error.
#[derive(Debug, Default)]
struct State {
    /// Until somebody was told.
    first: Option<Failure>,
    /// Nothing is written any more: the whole tree is given up.
    is_over: bool,
}

#[derive(Debug)]
enum Job {
    Batch(Batch),
    /// Answered when all before it is done.
    Wait(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Batch {
    files: Vec<(SmallFile, Range<usize>)>,
    data: Vec<u8>,
}

impl Beside {
    /// Starts a thread for a tree of `entries`.
    pub fn start(entries: u32) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(BATCHES_MAX);
        let failed = Arc::default();
        let state = Arc::clone(&failed);
        let thread = Builder::new()
            .name("tree-files".into())
            .stack_size(128 * 1024)
            .spawn(move || work(&queue, &state))?;
        let (batch, sent) = (Batch::default(), Bitfield::new(entries));
        Ok(Self { jobs: Some(jobs), thread: Some(thread), failed, batch, sent })
    }

    /// Whether a file of `bytes` is for this thread.
    pub fn takes(&self, bytes: usize) -> bool {
        bytes <= FILE_BYTES_MAX
    }

    /// Whether `entry` may still be under way.
    pub fn has(&self, entry: u32) -> bool {
        self.sent.get(entry)
    }

    /// Hands a file over. It may wait for room, and fail with what an earlier one met.
    pub fn write(&mut self, file: SmallFile, data: &[u8]) -> Result<(), Failure> {
        self.sent.set(file.entry);
        let start = self.batch.data.len();
        self.batch.data.extend_from_slice(data);
        self.batch.files.push((file, start..start + data.len()));
        if self.batch.data.len() >= BATCH_BYTES || self.batch.files.len() >= BATCH_FILES {
            self.send()?;
        }
        self.outcome()
    }

    fn outcome(&self) -> Result<(), Failure> {
        let mut state = lock(&self.failed);
        match state.first.take() {
            Some(failure) => Err(failure),
            None if state.is_over => Err((0, Failed::Io("write", other("an earlier file failed")))),
            None => Ok(()),
        }
    }

    fn send(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.batch);
        let first = batch.files.first().map_or(0, |(file, _)| file.entry);
        self.give(Job::Batch(batch)).map_err(|failed| (first, failed))
    }

    fn give(&self, job: Job) -> Result<(), Failed> {
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(gone)
    }

    /// Returns when everything that was handed over is done.
    pub fn wait(&mut self) -> Result<(), Failure> {
        if !self.batch.files.is_empty() {
            self.send()?;
        }
        let (done, answer) = sync_channel(1);
        self.give(Job::Wait(done)).map_err(|failed| (0, failed))?;
        answer.recv().map_err(|_| (0, gone()))?;
        self.sent = Bitfield::new(self.sent.len());
        self.outcome()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // What is missing then was not confirmed by `wait`.
        let _ = self.wait();
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn work(queue: &Receiver<Job>, failed: &Mutex<State>) {
    while let Ok(job) = queue.recv() {
        match job {
            Job::Wait(done) => drop(done.send(())),
            Job::Batch(batch) => {
                for (file, range) in batch.files {
                    if lock(failed).is_over {
                        break;
                    }
                    if let Err(error) = file.write(&batch.data[range]) {
                        *lock(failed) = State { first: Some((file.entry, error)), is_over: true };
                    }
                }
            }
        }
    }
}

fn lock(failed: &Mutex<State>) -> MutexGuard<'_, State> {
    failed.lock().unwrap_or_else(PoisonError::into_inner)
}

fn other(why: &'static str) -> io::Error {
    io::Error::other(why)
}

fn gone() -> Failed {
    Failed::Io("write", other("the thread that writes has ended"))
}
