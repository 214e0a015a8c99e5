//! Writes on their way to the disk, several at a time, beside the thread that receives.
//!
//! Two engines do the same: [`EngineKind::Portable`], a thread that calls `pwritev`, for every
//! kernel; and [`EngineKind::Uring`], io_uring with the pool's slabs as registered buffers, where
//! the kernel permits it. Both write views of slabs, so that nothing is copied; whole pages at page
//! borders go around the page cache where the file system can do that, everything else through it.
//! At most [`Settings::depth`] writes are under way; the next one waits for one of them.
//!
//! ```text
//!   write(file, offset, view) ─► engine ─► disk          event(): readable when something ended
//!   settle(file): until nothing of the file is under way; its first error
//! ```
//!
//! Writes end in any order, but for those of the same bytes. Nothing depends on it: what is claimed of a partial file is proved when
//! it is read again, and a file is finished after it is settled.

mod file;
mod portable;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod uring;

pub use file::QueueFile;

use self::file::Write;
use super::memory::{ALIGN, BlockMemory, View};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};

/// Writes that are under way at a time unless something else is set: 4 MiB in slabs.
pub const DEPTH: usize = 16;

/// The most that may be set.
pub const DEPTH_MAX: usize = 256;

/// Which engine writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// A thread with plain system calls.
    #[default]
    Portable,
    /// io_uring; portable where the kernel refuses it.
    Uring,
}

impl EngineKind {
    /// As settings, metrics and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineKind::Portable => "portable",
            EngineKind::Uring => "uring",
        }
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "portable" => Ok(EngineKind::Portable),
            "uring" => Ok(EngineKind::Uring),
            _ => Err(format!("{text:?} is no file engine: choose portable or uring")),
        }
    }
}

/// How a queue works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The engine that is wanted.
    pub kind: EngineKind,
    /// Writes that may be under way, 1 to [`DEPTH_MAX`].
    pub depth: usize,
    /// Whether io_uring is told of the pool's slabs, so that it need not look up their pages for
    /// every write. They are then locked in memory (RLIMIT_MEMLOCK) and never given back.
    pub register: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kind: EngineKind::default(), depth: DEPTH, register: true }
    }
}

/// What writes: a thread, or the kernel's ring. All calls but `wait` return at once.
trait Engine: Send {
    /// Takes a write; the kernel may hear of it only with [`Engine::submit`]. The caller makes sure
    /// that fewer than the depth are under way.
    fn push(&mut self, write: Write);
    /// Starts what was pushed.
    fn submit(&mut self);
    /// Notes what has ended.
    fn reap(&mut self);
    /// The same, after waiting until something ends. Returns at once when nothing is under way.
    fn wait(&mut self);
    /// Writes that were pushed and have not ended, as far as it was noted.
    fn under_way(&self) -> usize;
    /// Readable when something has ended since the last [`Engine::reap`].
    fn event(&self) -> BorrowedFd<'_>;
    /// What an operator should know of it.
    fn state(&self) -> String;
}

/// A queue of writes that the transfers of a process share; cheap to clone.
#[derive(Clone)]
pub struct WriteQueue {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Mutex<Box<dyn Engine>>,
    event: OwnedFd,
    kind: EngineKind,
    /// Why it is not the one that was wanted.
    instead: Option<String>,
    depth: usize,
}

impl WriteQueue {
    /// Starts a queue for views of `memory`. An io_uring that cannot be had is replaced by the
    /// portable engine; [`WriteQueue::sentence`] says why. An error: no thread or no eventfd.
    pub fn start(settings: &Settings, memory: &BlockMemory) -> io::Result<Self> {
        let depth = settings.depth.clamp(1, DEPTH_MAX);
        let mut instead = None;
        let ring = match settings.kind {
            EngineKind::Portable => None,
            EngineKind::Uring => {
                start_ring(depth, settings.register, memory).map_err(|why| instead = Some(why)).ok()
            }
        };
        let (kind, engine) = match ring {
            Some(ring) => (EngineKind::Uring, ring),
            None => (EngineKind::Portable, Box::new(portable::Portable::start(depth)?) as _),
        };
        let engine: Box<dyn Engine> = engine;
        let event = engine.event().try_clone_to_owned()?;
        let shared = Shared { engine: Mutex::new(engine), event, kind, instead, depth };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The engine that works.
    pub fn kind(&self) -> EngineKind {
        self.shared.kind
    }

    /// The engine that works, and why it is not the one that was wanted, for people.
    pub fn sentence(&self) -> String {
        let (kind, state) = (self.kind().as_str(), self.lock().state());
        let works = format!("files are written by the {kind} engine: {state}");
        match &self.shared.instead {
            Some(why) => format!("{works}; io_uring was wanted, but {why}"),
            None => works,
        }
    }

    /// Writes `view` at `offset` of `file`, soon; waits while too many are under way. How it ended
    /// is with the file ([`WriteQueue::settle`]).
    pub fn write(&self, file: &Arc<QueueFile>, offset: u64, view: View) {
        if view.is_empty() {
            return;
        }
        let mut engine = self.lock();
        for (offset, view) in file.cut_for_disk(offset, view).into_iter().flatten() {
            while engine.under_way() >= self.shared.depth || file.is_busy(offset, view.len()) {
                engine.submit();
                engine.wait();
            }
            file.begun(offset, &view);
            engine.push(Write { file: file.clone(), offset, view });
        }
        engine.submit();
        engine.reap();
    }

    /// Notes what has ended, without waiting, and quiets [`WriteQueue::event`].
    pub fn reap(&self) {
        self.lock().reap();
    }

    /// Waits until nothing of `file` is under way. The error is the first that a write of it met;
    /// it stays, because the file is to be given up.
    pub fn settle(&self, file: &QueueFile) -> io::Result<()> {
        while file.under_way() > 0 {
            self.lock().wait();
        }
        file.result()
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Engine>> {
        self.shared.engine.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// The descriptor of the queue's eventfd: readable when a write has ended, until
/// [`WriteQueue::reap`]. For event loops; `settle` does without.
impl AsFd for WriteQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl fmt::Debug for WriteQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteQueue({}, {})", self.kind().as_str(), self.shared.depth)
    }
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn start_ring(
    depth: usize,
    register: bool,
    memory: &BlockMemory,
) -> Result<Box<dyn Engine>, String> {
    Ok(Box::new(uring::Uring::start(depth, register, memory)?))
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn start_ring(_: usize, _: bool, _: &BlockMemory) -> Result<Box<dyn Engine>, String> {
    Err("this build has none".to_owned())
}

/// Whether a write of `len` bytes at `offset` may go around the page cache.
fn is_aligned(offset: u64, view: &View) -> bool {
    offset.is_multiple_of(ALIGN as u64) && view.is_aligned() && view.len().is_multiple_of(ALIGN)
}
