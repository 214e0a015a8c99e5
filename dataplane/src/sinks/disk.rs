//! The seam between the router's core and the disk.
//!
//! The core says what to do in [`DiskOp`]s and learns what came of it from [`DiskDone`]s. Two
//! drivers execute them: [`super::dma`] on a glommio executor and [`super::plain`] with ordinary
//! calls; tests execute them in memory, with faults. Contract: operations on one file, and those
//! on the checkpoint log, are executed and answered in the order in which they were given; each is
//! answered exactly once, whatever happens.

use std::io;
use std::path::PathBuf;

use super::block::{Block, Write};

/// Names a file between core and driver; never used twice by a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// What to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFile {
    /// The stream's directory.
    pub root: PathBuf,
    /// Rendered path below it.
    pub base: String,
    /// First rotation number to try when `base` is taken.
    pub number: u32,
    /// Go on with this file, if it is still there as it was left.
    pub resume: Option<Resume>,
}

/// A file that an earlier life of the process left behind, cut to its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// Path below the root.
    pub path: String,
    /// Its rotation number.
    pub number: u32,
    /// Its length.
    pub length: u64,
    /// Its identity, lest another file of that name be written.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// Content from the last page boundary to the end.
    pub tail: Vec<u8>,
}

/// What was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Path below the root.
    pub path: String,
    /// Rotation number in it.
    pub number: u32,
    /// Length; 0 unless resumed.
    pub length: u64,
    /// Identity.
    pub device: u64,
    /// Identity.
    pub inode: u64,
}

/// One operation.
#[derive(Debug)]
pub enum DiskOp {
    /// Open or create; directories are made, and flushed when `durable`.
    Open {
        /// Its name from now on.
        file: FileId,
        /// What.
        open: OpenFile,
        /// Whether a new name must survive power loss.
        durable: bool,
    },
    /// Write a block.
    Write {
        /// Where.
        file: FileId,
        /// What.
        write: Write,
    },
    /// All writes before are done; with `durable` they survive power loss.
    Sync {
        /// Which.
        file: FileId,
        /// fdatasync, too.
        durable: bool,
    },
    /// Cut to `length` after a failure and read the tail anew.
    Truncate {
        /// Which.
        file: FileId,
        /// The last good length.
        length: u64,
    },
    /// Find out whether there is room again.
    Probe {
        /// Which.
        file: FileId,
        /// Its length.
        length: u64,
    },
    /// Cut to `length`, giving back what was allocated past it, as far as that can be done; close.
    Close {
        /// Which.
        file: FileId,
        /// Its length.
        length: u64,
    },
    /// Append to the checkpoint log, or replace it.
    Log {
        /// Whole frames.
        bytes: Vec<u8>,
        /// Replace the log by these frames, atomically.
        replace: bool,
        /// Flush before answering.
        durable: bool,
    },
}

/// What came of an operation.
#[derive(Debug)]
pub enum DiskDone {
    /// Of [`DiskOp::Open`].
    Opened(FileId, io::Result<Opened>),
    /// Of [`DiskOp::Write`]; the block comes back.
    Written(FileId, Block, io::Result<()>),
    /// Of [`DiskOp::Sync`].
    Synced(FileId, io::Result<()>),
    /// Of [`DiskOp::Truncate`]: the tail.
    Truncated(FileId, io::Result<Vec<u8>>),
    /// Of [`DiskOp::Probe`].
    Probed(FileId, io::Result<()>),
    /// Of [`DiskOp::Close`].
    Closed(FileId),
    /// Of [`DiskOp::Log`].
    Logged(io::Result<()>),
}

/// The error for an operation on a file that did not open.
pub fn not_open() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "file is not open")
}

/// A short name of an error for metric labels.
pub fn error_label(error: &io::Error) -> &'static str {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull => "no_space",
        ErrorKind::QuotaExceeded => "quota",
        ErrorKind::FileTooLarge => "too_large",
        ErrorKind::PermissionDenied => "permission",
        ErrorKind::ReadOnlyFilesystem => "read_only",
        ErrorKind::NotFound => "not_found",
        ErrorKind::AlreadyExists => "exists",
        _ if error.raw_os_error() == Some(libc::EIO) => "io",
        _ if error.raw_os_error() == Some(libc::EMFILE) => "open_files",
        _ => "other",
    }
}
