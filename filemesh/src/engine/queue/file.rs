//! A file that a queue writes to: how its bytes reach the disk, and how its writes ended.

use super::is_aligned;
use crate::engine::memory::{ALIGN, View};
use crate::engine::sys;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Shorter writes go through the page cache: a direct one has to wait for the device.
const DIRECT_BYTES_MIN: usize = 64 * 1024;

/// A file that is written by a queue.
#[derive(Debug)]
pub struct QueueFile {
    cached: File,
    direct: Option<File>,
    /// The file system opened it for direct writes and then refused them.
    refused: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What writes that have begun cover; as many as the queue is deep.
    under_way: Vec<Range<u64>>,
    failed: Option<i32>,
}

/// One write: a view that a file shall have at an offset.
#[derive(Debug)]
pub(super) struct Write {
    pub file: std::sync::Arc<QueueFile>,
    pub offset: u64,
    pub view: View,
}

impl Write {
    /// Tells the file how it ended; the slab is free before anybody hears of it.
    pub fn end(self, result: &io::Result<()>) {
        let Self { file, offset, view } = self;
        let len = view.len();
        drop(view);
        file.ended(offset, len, result);
    }
}

impl QueueFile {
    /// `file` for a queue. With `around_cache`, whole pages go to the disk directly if the file
    /// system can do that.
    pub fn new(file: File, around_cache: bool) -> Self {
        let direct = around_cache.then(|| sys::open_direct(&file).ok()).flatten();
        Self { cached: file, direct, refused: AtomicBool::new(false), state: Mutex::default() }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.cached
    }

    /// Whether whole pages go around the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some() && !self.refused.load(Ordering::Relaxed)
    }

    /// The descriptor for a write, and whether it goes around the page cache.
    pub(super) fn way(&self, offset: u64, view: &View) -> (&File, bool) {
        let wanted = self.is_direct() && is_aligned(offset, view);
        match &self.direct {
            Some(direct) if wanted && view.len() >= DIRECT_BYTES_MIN => (direct, true),
            _ => (&self.cached, false),
        }
    }

    /// Direct writes do not work after all.
    pub(super) fn refuse_direct(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// Parts a write into what may go around the page cache and its tail.
    pub(super) fn cut_for_disk(&self, offset: u64, view: View) -> [Option<(u64, View)>; 2] {
        let whole = view.len() - view.len() % ALIGN;
        if !self.is_direct() || whole < DIRECT_BYTES_MIN || whole == view.len() {
            return [Some((offset, view)), None];
        }
        let tail = view.slice(whole..view.len());
        [Some((offset, view.slice(0..whole))), Some((offset + whole as u64, tail))]
    }

    /// A write has begun.
    pub(super) fn begun(&self, offset: u64, view: &View) {
        self.lock().under_way.push(offset..offset + view.len() as u64);
    }

    /// A write has ended.
    pub(super) fn ended(&self, offset: u64, len: usize, result: &io::Result<()>) {
        let mut state = self.lock();
        let range = offset..offset + len as u64;
        if let Some(at) = state.under_way.iter().position(|begun| *begun == range) {
            state.under_way.swap_remove(at);
        }
        if let Err(error) = result {
            state.failed.get_or_insert(error.raw_os_error().unwrap_or(libc::EIO));
        }
    }

    /// Whether a write is under way to some of these bytes: the later one must not overtake it.
    pub(super) fn is_busy(&self, offset: u64, len: usize) -> bool {
        let end = offset + len as u64;
        self.lock().under_way.iter().any(|begun| begun.start < end && offset < begun.end)
    }

    /// Writes that have begun and of which nobody noted the end.
    pub fn under_way(&self) -> usize {
        self.lock().under_way.len()
    }

    /// The first error that a write met.
    pub fn result(&self) -> io::Result<()> {
        self.lock().failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// Makes the writes of `parts`, neighbours in one file, by a system call of this thread.
pub(super) fn write_now(file: &QueueFile, offset: u64, parts: &[&View]) -> io::Result<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    let slices: Vec<&[u8]> = parts.iter().map(|view| &view[..]).collect();
    let (fd, is_direct) = file.way(offset, first);
    match sys::write_all_at(fd, &slices, offset) {
        Err(error) if is_direct && error.kind() == io::ErrorKind::InvalidInput => {
            file.refuse_direct();
            sys::write_all_at(&file.cached, &slices, offset)
        }
        result => result,
    }
}
