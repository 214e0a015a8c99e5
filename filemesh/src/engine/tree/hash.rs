//! Hashes a tree's stream, as `hash_file` hashes a file.

use super::source::{TreeReader, TreeSource};
use crate::core::manifest::{MODE_TRAVELS, Manifest, choose_piece_bytes};
use crate::core::merkle::TreeBuilder;
use crate::engine::error::FileError;
use crate::engine::portable::{HashedFile, LeafFileWriter};
use crate::engine::{FileStamp, sys};
use ring::digest::{Context as Digest, SHA256};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

/// Bytes read at once, as for a file.
const READ_BYTES: u64 = 256 * 1024;

/// Hashes the stream of `source` into pieces of `piece_bytes` (`None`: chosen by size for one
/// host) and writes its leaves to `leaves_path`. `progress` gets the bytes done so far and may break
/// off. A file that changed since the scan or while it is read is refused and named.
///
/// The stamp of the answer has the root directory's inode and, as its time, a digest of the stamps
/// of all files: it is another one as soon as a file is.
pub fn hash_tree(
    source: &Arc<TreeSource>,
    piece_bytes: Option<u32>,
    leaves_path: &Path,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<HashedFile, FileError> {
    let path = source.path();
    let geometry_error = |source| FileError::Geometry { path: path.to_path_buf(), source };
    let size_bytes = source.layout().stream_bytes();
    let piece_bytes = piece_bytes.unwrap_or_else(|| choose_piece_bytes(size_bytes, 1));
    let mut builder = TreeBuilder::new(piece_bytes).map_err(geometry_error)?;
    let mut leaves = LeafFileWriter::create(leaves_path)?;
    let mut reader = TreeReader::to_hash(source.clone());
    let (mut buf, mut done, mut failed) = (vec![], 0, None);
    while done < size_bytes {
        buf.clear();
        let len = READ_BYTES.min(size_bytes - done);
        reader.append_at(done, len as usize, &mut buf)?;
        builder.update(&buf, |leaf| failed = failed.take().or(leaves.push(leaf).err()));
        if let Some(error) = failed.take() {
            return Err(error);
        }
        done += len;
        if progress(done).is_break() {
            return Err(FileError::Cancelled { path: path.to_path_buf() });
        }
    }
    let tree = builder.finish(|leaf| failed = leaves.push(leaf).err()).map_err(geometry_error)?;
    if let Some(error) = failed {
        return Err(error);
    }
    let meta = source.listing().meta(0);
    let manifest = Manifest {
        geometry: tree.geometry,
        root: tree.root,
        name: source.name().to_owned(),
        mode: u32::from(meta.mode) & MODE_TRAVELS,
        mtime_ms: meta.mtime_ns.div_euclid(1_000_000),
    };
    let stamp = source.stamp()?;
    let leaves = leaves.finish(&manifest, tree.layer, &stamp)?;
    Ok(HashedFile { manifest, leaves, stamp })
}

impl TreeSource {
    /// What stands for the whole tree in a leaves sidecar; see [`hash_tree`].
    pub fn stamp(&self) -> Result<FileStamp, FileError> {
        let mut digest = Digest::new(&SHA256);
        digest.update(&self.encoded);
        for stamp in &self.stamps {
            for field in [stamp.device, stamp.inode, stamp.size_bytes, stamp.mtime_ns as u64] {
                digest.update(&field.to_be_bytes());
            }
        }
        let mut first = [0; 8];
        first.copy_from_slice(&digest.finish().as_ref()[..8]);
        let stat = sys::stat(self.root.as_fd()).map_err(|source| FileError::Io {
            action: "look at",
            path: self.path().to_path_buf(),
            source,
        })?;
        let size_bytes = self.layout().stream_bytes();
        let mtime_ns = i64::from_be_bytes(first);
        Ok(FileStamp { size_bytes, mtime_ns, ctime_ns: 0, ..FileStamp::of_stat(&stat) })
    }
}
