//! A source that is read from its start to its end, and noticed if it changes meanwhile.

use crate::core::manifest::MODE_TRAVELS;
use crate::engine::error::{Context, FileError};
use crate::engine::{FileStamp, sys};
use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes read at once: large enough that system calls do not count, small enough for the cache.
const READ_BYTES: usize = 256 * 1024;

/// An open source and what it looked like then.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    path: PathBuf,
    /// Identity, size and times.
    pub(super) stamp: FileStamp,
    /// Mode, within what travels.
    pub(super) mode: u32,
    /// Modification time, milliseconds since 1970.
    pub(super) mtime_ms: i64,
}

impl Source {
    /// Opens the regular file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let file = open_regular(path)?;
        let metadata = file.metadata().on("look at", path)?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            stamp: FileStamp::of(&metadata),
            mode: metadata.mode() & MODE_TRAVELS,
            mtime_ms: mtime_ms(&metadata),
        })
    }

    /// Reads from `from` to the end; `take` gets the bytes, and where in the file they end, and may
    /// break off. A source that became longer or shorter is refused.
    pub(super) fn read_to_end(
        &mut self,
        from: u64,
        mut take: impl FnMut(u64, &[u8]) -> Result<ControlFlow<()>, FileError>,
    ) -> Result<(), FileError> {
        sys::will_read_forward(&self.file);
        self.file.seek(SeekFrom::Start(from)).on("read", &self.path)?;
        let mut buf = vec![0; READ_BYTES];
        let mut done = from;
        loop {
            let got = self.file.read(&mut buf).on("read", &self.path)?;
            if got == 0 {
                break;
            }
            done += got as u64;
            // A file that grows for ever must not be followed for ever.
            if done > self.stamp.size_bytes {
                return Err(self.changed());
            }
            if take(done, &buf[..got])?.is_break() {
                return Err(FileError::Cancelled { path: self.path.clone() });
            }
        }
        if done == self.stamp.size_bytes { Ok(()) } else { Err(self.changed()) }
    }

    /// An error if the source is no longer what was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), FileError> {
        let after = FileStamp::of(&self.file.metadata().on("look at", &self.path)?);
        if after == self.stamp { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> FileError {
        FileError::Changed { path: self.path.clone() }
    }
}

fn mtime_ms(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000)
}

/// Opens `path` if it is a regular file. An ordinary open of a FIFO would block for ever.
pub(super) fn open_regular(path: &Path) -> Result<File, FileError> {
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).on("open", path)?;
    let regular = file.metadata().on("look at", path)?.is_file();
    regular.then_some(file).ok_or_else(|| FileError::NotAFile { path: path.to_path_buf() })
}
