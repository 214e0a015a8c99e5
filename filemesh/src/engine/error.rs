//! What can go wrong with a file, said so that an operator knows which file and what to do.

use crate::core::geometry::GeometryError;
use crate::core::name::NameError;
use crate::core::tree::listing::ListingError;
use std::io;
use std::path::{Path, PathBuf};

/// An operation on a file failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system has no room for the file.
    #[error(
        "no room for {needed_bytes} bytes in {}: {free_bytes} are free and {kept_bytes} must stay \
         free; make room there",
        path.display()
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes that are still to be allocated.
        needed_bytes: u64,
        /// Bytes that are free for this user.
        free_bytes: u64,
        /// Bytes that must stay free.
        kept_bytes: u64,
    },
    /// The target's name is hostile.
    #[error("the target's name is refused: {0}")]
    Name(#[from] NameError),
    /// The target directory's path is hostile.
    #[error("directory {} is refused: {why}", path.display())]
    Directory {
        /// The path as it was asked for.
        path: PathBuf,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// Something that is not ours lies where a temporary file should be.
    #[error("{} is refused as temporary file: {why}; remove it", path.display())]
    Foreign {
        /// The temporary file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something that a push must not replace has the target's name.
    #[error("{} is {what} and is not replaced; choose another name", path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
        /// What stands there.
        what: &'static str,
    },
    /// Another process writes the same transfer.
    #[error("{} is being written by another process", path.display())]
    Busy {
        /// The temporary file.
        path: PathBuf,
    },
    /// A file was to be finished before everything was written.
    #[error("{} was to be finished, but block {block} was never written", path.display())]
    Incomplete {
        /// The temporary file.
        path: PathBuf,
        /// The first block that is missing.
        block: u32,
    },
    /// The source is no regular file.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The source.
        path: PathBuf,
    },
    /// The source changed while it was read.
    #[error("{} changed while it was read; try again when it is complete", path.display())]
    Changed {
        /// The source.
        path: PathBuf,
    },
    /// The source's size is out of bounds.
    #[error("{}: {source}", path.display())]
    Geometry {
        /// The source.
        path: PathBuf,
        /// The bound.
        source: GeometryError,
    },
    /// A sidecar is damaged or belongs to another file.
    #[error("sidecar {} is refused: {why}; it will be made anew", path.display())]
    Sidecar {
        /// The sidecar.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The caller's progress function asked to stop.
    #[error("reading {} was cancelled", path.display())]
    Cancelled {
        /// The source.
        path: PathBuf,
    },
    /// A tree's listing is refused.
    #[error("tree {}: {source}", path.display())]
    Listing {
        /// The tree.
        path: PathBuf,
        /// The rule that it breaks.
        source: ListingError,
    },
    /// Something in a source directory that the rules say to refuse.
    #[error("{} is {what}; leave it out by a rule, or take it away", path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A pattern of an include or exclude list that cannot be read.
    #[error("pattern {pattern:?} is refused: {why}")]
    Pattern {
        /// As it was written.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// No such user or group on this host.
    #[error("there is no {kind} {name:?} on this host")]
    NoSuchOwner {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
    },
}

impl FileError {
    /// Whether the disk, a quota or a file size limit is full: nothing to retry before somebody
    /// made room.
    pub fn is_full(&self) -> bool {
        let full = [libc::ENOSPC, libc::EDQUOT, libc::EFBIG];
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => {
                source.raw_os_error().is_some_and(|errno| full.contains(&errno))
            }
            _ => false,
        }
    }
}

/// Names the action and the file of a failed system call.
pub(super) trait Context<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError::Io { action, path: path.to_path_buf(), source })
    }
}
