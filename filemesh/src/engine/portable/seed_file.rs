//! A source that is being served: opened once, read at offsets.

use super::source::open_regular;
use crate::engine::error::{Context, FileError};
use crate::engine::{FileStamp, sys};
use std::fs::File;
use std::path::{Path, PathBuf};

/// An open source file.
#[derive(Debug)]
pub struct SeedFile {
    file: File,
    path: PathBuf,
    stamp: FileStamp,
}

impl SeedFile {
    /// Opens `path`, which must still be what `stamp` was taken of.
    pub fn open(path: &Path, stamp: &FileStamp) -> Result<Self, FileError> {
        let file = open_regular(path)?;
        let seed = Self { file, path: path.to_path_buf(), stamp: *stamp };
        if !seed.is_unchanged()? {
            return Err(FileError::Changed { path: seed.path });
        }
        Ok(seed)
    }

    /// Appends exactly `len` bytes at `offset` to `out`; on failure `out` is as before.
    pub fn append_at(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<(), FileError> {
        sys::append_at(&self.file, offset, len, out).on("read", &self.path)
    }

    /// Whether the file still shows the stamp it was opened with. Peers refuse bytes that changed;
    /// this says why they did.
    pub fn is_unchanged(&self) -> Result<bool, FileError> {
        let metadata = self.file.metadata().on("look at", &self.path)?;
        Ok(self.stamp.same_content(&FileStamp::of(&metadata)))
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
