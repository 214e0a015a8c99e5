//! What a file looked like at a moment, to notice that it is another one or has changed since.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Identity, size and times of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileStamp {
    /// Device of its file system.
    pub device: u64,
    /// Inode on it.
    pub inode: u64,
    /// Size.
    pub size_bytes: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Change time, nanoseconds since 1970. It also moves when content does not (rename, chmod),
    /// so it is compared only while a file is being read.
    pub ctime_ns: i64,
}

impl FileStamp {
    /// The stamp in `metadata`.
    pub fn of(metadata: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp in what `stat` says.
    pub(super) fn of_stat(stat: &libc::stat) -> Self {
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size_bytes: stat.st_size.unsigned_abs(),
            mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether the content that `self` was taken of is still what `other` shows.
    pub fn same_content(&self, other: &Self) -> bool {
        Self { ctime_ns: 0, ..*self } == Self { ctime_ns: 0, ..*other }
    }
}
