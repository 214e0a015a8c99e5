//! A file that arrives in order from a trusted side, such as an upload into the server's cache:
//! written and hashed in one pass, so that it can be served at once without being read again.

use super::hash::HashedFile;
use super::leaf_file::LeafFileWriter;
use crate::core::geometry::FILE_BYTES_MAX;
use crate::core::manifest::{MODE_TRAVELS, Manifest};
use crate::core::merkle::TreeBuilder;
use crate::core::name::check_file_name;
use crate::engine::error::{Context, FileError};
use crate::engine::{FileStamp, sys};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// After so many bytes the disk is sent what came, so that the last flush has little left to wait for:
/// what it would wait is time in which nothing is pushed.
const FLUSH_BYTES: u64 = 8 * 1024 * 1024;

/// A file that is being stored under `PATH.part`. Dropping it before [`StoreFile::finish`] removes
/// what was written.
///
/// It goes through the page cache: it is about to be read, and by several at a time.
pub struct StoreFile {
    file: File,
    part: PathBuf,
    path: PathBuf,
    builder: TreeBuilder,
    leaves: LeafFileWriter,
    size_bytes: u64,
    /// Bytes that are on their way to the disk.
    flushed_bytes: u64,
    cleanup: Cleanup,
}

impl StoreFile {
    /// Makes a file for `path`, readable by this user alone, and its sidecar at `leaves_path`.
    pub fn create(path: &Path, leaves_path: &Path, piece_bytes: u32) -> Result<Self, FileError> {
        let geometry = |source| FileError::Geometry { path: path.to_path_buf(), source };
        let builder = TreeBuilder::new(piece_bytes).map_err(geometry)?;
        let leaves = LeafFileWriter::create(leaves_path)?;
        let part = path.with_extension("part");
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&part);
        let file = file.on("create", &part)?;
        let cleanup = Cleanup(Some(part.clone()));
        let (path, size_bytes, flushed_bytes) = (path.to_path_buf(), 0, 0);
        Ok(Self { file, part, path, builder, leaves, size_bytes, flushed_bytes, cleanup })
    }

    /// Writes and hashes the next `bytes`.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.size_bytes += bytes.len() as u64;
        if self.size_bytes > FILE_BYTES_MAX {
            let source = std::io::Error::from_raw_os_error(libc::EFBIG);
            return Err(source).on("write", &self.part);
        }
        self.file.write_all(bytes).on("write", &self.part)?;
        let waiting = self.size_bytes - self.flushed_bytes;
        if waiting >= FLUSH_BYTES {
            // Only sooner: what goes wrong is said by the last flush, which waits for all of it.
            let _ = sys::start_flush(&self.file, self.flushed_bytes, waiting);
            self.flushed_bytes = self.size_bytes;
        }
        let (leaves, mut failed) = (&mut self.leaves, None);
        self.builder.update(bytes, |leaf| failed = failed.take().or(leaves.push(leaf).err()));
        failed.map_or(Ok(()), Err)
    }

    /// Bytes that were written.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Completes the file, which is called `name` and has `mode` and `mtime_ms` where it comes
    /// from: flushed, and renamed to its path.
    pub fn finish(self, name: &str, mode: u32, mtime_ms: i64) -> Result<HashedFile, FileError> {
        let Self { file, part, path, builder, mut leaves, mut cleanup, .. } = self;
        check_file_name(name.as_bytes())?;
        file.sync_all().on("flush", &part)?;
        let stamp = FileStamp::of(&file.metadata().on("look at", &part)?);
        let mut failed = None;
        let tree = builder.finish(|leaf| failed = leaves.push(leaf).err());
        let geometry = |source| FileError::Geometry { path: path.clone(), source };
        let tree = tree.map_err(geometry)?;
        if let Some(error) = failed {
            return Err(error);
        }
        let (geometry, root, mode) = (tree.geometry, tree.root, mode & MODE_TRAVELS);
        let manifest = Manifest { geometry, root, name: name.to_owned(), mode, mtime_ms };
        let leaves = leaves.finish(&manifest, tree.layer, &stamp)?;
        fs::rename(&part, &path).on("rename into place", &part)?;
        cleanup.0 = None;
        let dir = path.parent().unwrap_or(&path);
        File::open(dir).and_then(|dir| dir.sync_all()).on("flush", dir)?;
        Ok(HashedFile { manifest, leaves, stamp })
    }
}

/// Removes a file unless it was completed.
struct Cleanup(Option<PathBuf>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path); // nobody refers to it, and the next upload replaces it
        }
    }
}
