//! Flushing while a tree arrives, so that the flush before its renames finds little to do.
//!
//! A tree's bytes are in many files, so it is their file system that is flushed, every
//! [`AHEAD_BYTES`], by a thread of its own. It does what the last flush would have done anyway: for
//! this tree, and for whatever others have written there. Nothing relies on it.

use super::sys;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::Builder;

/// Bytes between two flushes: a tenth of a second of a link of 1 Gbit/s.
const AHEAD_BYTES: u64 = 16 * 1024 * 1024;

/// Flushes a file system behind whoever writes to it. Trees of less than [`AHEAD_BYTES`] never do.
#[derive(Debug, Default)]
pub(super) struct FlushAhead {
    since_bytes: u64,
    /// Wakes the thread, which ends when this is dropped and waits for nobody.
    wake: Option<SyncSender<()>>,
}

impl FlushAhead {
    /// `bytes` more were written into staged directory `dir`.
    pub fn written(&mut self, dir: BorrowedFd<'_>, bytes: u64) {
        self.since_bytes += bytes;
        if self.since_bytes < AHEAD_BYTES {
            return;
        }
        self.since_bytes = 0;
        if self.wake.is_none() {
            // Without a thread it is all left for the last flush.
            self.wake = start(dir).ok();
        }
        if let Some(wake) = &self.wake {
            let _ = wake.try_send(()); // one that is not over yet takes this along, or the next does
        }
    }
}

fn start(dir: BorrowedFd<'_>) -> io::Result<SyncSender<()>> {
    // Opened anew: a copy of the descriptor would keep the directory locked for a while.
    let fd: OwnedFd = sys::open_dir_to_read(dir, b".")?;
    let (wake, asked) = sync_channel(1);
    Builder::new().name("tree-flush".into()).stack_size(64 * 1024).spawn(move || {
        while asked.recv().is_ok() {
            if sys::sync_file_system(fd.as_fd()).is_err() {
                return; // the last flush meets it too, and says it
            }
        }
    })?;
    Ok(wake)
}
