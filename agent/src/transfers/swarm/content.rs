//! The file of a swarm, while it arrives and afterwards.

use std::fs::File;
use std::io;

use skein_filemesh::engine::{FileError, PartialFile, append_at};

/// Where the bytes are.
pub(super) enum Content {
    /// Still arriving.
    Partial(Box<PartialFile>),
    /// All here. The descriptor stays good while the file gets its name, and after.
    Whole(File),
}

impl Content {
    /// Writes proved bytes. What comes after the end comes twice and is dropped.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        match self {
            Self::Partial(file) => file.write_at(offset, data),
            Self::Whole(_) => Ok(()),
        }
    }

    /// Appends `len` bytes at `offset` to `out`.
    pub fn append_at(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Partial(file) => file.append_at(offset, len, out).map_err(io::Error::other),
            Self::Whole(file) => append_at(file, offset, len, out),
        }
    }
}
