//! The engine for every kernel: one thread that takes writes and makes them.
//!
//! It joins what is next to each other in a file and waits already, up to 1 MiB, so that a disk
//! that is behind gets larger writes.

use super::Engine;
use super::file::{Write, write_now};
use crate::engine::memory::View;
use crate::engine::sys;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// What leaves as one write.
const JOINED_BYTES_MAX: usize = 1024 * 1024;

/// A thread and what it has to do.
pub(super) struct Portable {
    /// `None` once the thread shall end.
    writes: Option<SyncSender<Write>>,
    shared: Arc<Shared>,
    event: OwnedFd,
    depth: usize,
    under_way: usize,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Writes that have ended and were not noted.
    ended: Mutex<usize>,
    changed: Condvar,
}

impl Portable {
    pub fn start(depth: usize) -> io::Result<Self> {
        let (writes, queue) = sync_channel(depth);
        let event = sys::event()?;
        let shared = Arc::<Shared>::default();
        let (bell, state) = (File::from(event.try_clone()?), shared.clone());
        let name = "file-writer".to_owned();
        let thread = thread::Builder::new()
            .name(name)
            .stack_size(128 * 1024)
            .spawn(move || work(&queue, &state, &bell))?;
        let (writes, thread) = (Some(writes), Some(thread));
        Ok(Self { writes, shared, event, depth, under_way: 0, thread })
    }

    fn note(&mut self, ended: usize) {
        self.under_way -= ended;
    }
}

fn work(queue: &Receiver<Write>, shared: &Shared, bell: &File) {
    let mut next = queue.recv().ok();
    while let Some(first) = next.take() {
        let mut batch = vec![first];
        while let Ok(write) = queue.try_recv() {
            if !joins(&batch, &write) {
                next = Some(write);
                break;
            }
            batch.push(write);
        }
        let parts: Vec<&View> = batch.iter().map(|write| &write.view).collect();
        let result = write_now(&batch[0].file, batch[0].offset, &parts);
        let count = batch.len();
        batch.into_iter().for_each(|write| write.end(&result));
        *shared.ended.lock().unwrap_or_else(|poison| poison.into_inner()) += count;
        shared.changed.notify_all();
        sys::ring_event(bell);
        next = next.or_else(|| queue.recv().ok());
    }
}

/// Whether `write` goes on where `batch` ends, in the same way.
fn joins(batch: &[Write], write: &Write) -> bool {
    let bytes: usize = batch.iter().map(|write| write.view.len()).sum();
    let (first, last) = (&batch[0], &batch[batch.len() - 1]);
    Arc::ptr_eq(&first.file, &write.file)
        && last.offset + last.view.len() as u64 == write.offset
        && bytes + write.view.len() <= JOINED_BYTES_MAX
        && first.file.way(first.offset, &first.view).1
            == write.file.way(write.offset, &write.view).1
}

impl Engine for Portable {
    fn push(&mut self, write: Write) {
        self.under_way += 1;
        let sent = match &self.writes {
            Some(writes) => writes.send(write).map_err(|error| error.0),
            None => Err(write),
        };
        // The thread is gone only if it panicked: then this one writes.
        if let Err(write) = sent {
            let result = write_now(&write.file, write.offset, &[&write.view]);
            write.end(&result);
            self.under_way -= 1;
        }
    }

    fn submit(&mut self) {}

    fn reap(&mut self) {
        sys::clear_event(self.event.as_fd());
        let ended = std::mem::take(
            &mut *self.shared.ended.lock().unwrap_or_else(|poison| poison.into_inner()),
        );
        self.note(ended);
    }

    fn wait(&mut self) {
        if self.under_way == 0 {
            return;
        }
        let ended = self.shared.ended.lock().unwrap_or_else(|poison| poison.into_inner());
        let ended = self.shared.changed.wait_while(ended, |ended| *ended == 0);
        drop(ended.unwrap_or_else(|poison| poison.into_inner()));
        self.reap();
    }

    fn under_way(&self) -> usize {
        self.under_way
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn state(&self) -> String {
        format!("one thread, {} writes under way at most", self.depth)
    }
}

impl Drop for Portable {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // what was pushed is written
        }
    }
}
