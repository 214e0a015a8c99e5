//! A file that arrives in order from a trusted side, such as an upload into the server's cache:
//! written and hashed in one pass, so that it can be served at once without being read again.

use super::hash::HashedFile;
use super::leaf_file::LeafFileWriter;
use crate::core::geometry::FILE_BYTES_MAX;
use crate::core::manifest::{MODE_TRAVELS, Manifest};
use crate::core::merkle::TreeBuilder;
use crate::core::name::check_file_name;
use crate::engine::FileStamp;
use crate::engine::error::{Context, FileError};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file that is being stored. Dropping it before [`StoreFile::finish`] removes what was written.
pub struct StoreFile {
    file: File,
    path: PathBuf,
    builder: TreeBuilder,
    leaves: LeafFileWriter,
    size_bytes: u64,
    cleanup: Cleanup,
}

impl StoreFile {
    /// Makes the file at `path`, replacing what is there, and its sidecar at `leaves_path`.
    pub fn create(path: &Path, leaves_path: &Path, piece_bytes: u32) -> Result<Self, FileError> {
        let geometry = |source| FileError::Geometry { path: path.to_path_buf(), source };
        let builder = TreeBuilder::new(piece_bytes).map_err(geometry)?;
        let leaves = LeafFileWriter::create(leaves_path)?;
        let file = File::create(path).on("create", path)?;
        let path = path.to_path_buf();
        let cleanup = Cleanup(Some(path.clone()));
        Ok(Self { file, path, builder, leaves, size_bytes: 0, cleanup })
    }

    /// Writes and hashes the next `bytes`.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.size_bytes += bytes.len() as u64;
        if self.size_bytes > FILE_BYTES_MAX {
            let source = std::io::Error::from_raw_os_error(libc::EFBIG);
            return Err(source).on("write", &self.path);
        }
        self.file.write_all(bytes).on("write", &self.path)?;
        let (leaves, mut failed) = (&mut self.leaves, None);
        self.builder.update(bytes, |leaf| failed = failed.take().or(leaves.push(leaf).err()));
        failed.map_or(Ok(()), Err)
    }

    /// Completes the file, which is called `name` and has `mode` and `mtime_ms` where it comes
    /// from. It is not flushed: what a power loss takes is uploaded again.
    pub fn finish(self, name: &str, mode: u32, mtime_ms: i64) -> Result<HashedFile, FileError> {
        let Self { file, path, builder, mut leaves, mut cleanup, .. } = self;
        check_file_name(name.as_bytes())?;
        let stamp = FileStamp::of(&file.metadata().on("look at", &path)?);
        let mut failed = None;
        let tree = builder.finish(|leaf| failed = leaves.push(leaf).err());
        let tree = tree.map_err(|source| FileError::Geometry { path, source })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let (geometry, root, mode) = (tree.geometry, tree.root, mode & MODE_TRAVELS);
        let manifest = Manifest { geometry, root, name: name.to_owned(), mode, mtime_ms };
        let leaves = leaves.finish(&manifest, tree.layer, &stamp)?;
        cleanup.0 = None;
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
