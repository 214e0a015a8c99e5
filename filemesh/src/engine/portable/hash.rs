//! Hashes a source: its tree's root and piece layer into a manifest, its leaves into a sidecar.

use super::leaf_file::{LeafFile, LeafFileWriter};
use super::source::Source;
use crate::core::manifest::{Manifest, choose_piece_bytes};
use crate::core::merkle::TreeBuilder;
use crate::engine::FileStamp;
use crate::engine::error::FileError;
use std::ops::ControlFlow;
use std::path::Path;

/// A source that was hashed.
#[derive(Debug)]
pub struct HashedFile {
    /// What identifies it.
    pub manifest: Manifest,
    /// Its hashes, ready to be served.
    pub leaves: LeafFile,
    /// What it looked like.
    pub stamp: FileStamp,
}

/// Hashes the file at `path` into pieces of `piece_bytes` (`None`: chosen by size for one host)
/// and writes its leaves to `leaves_path`. `progress` gets the bytes done so far and may break off.
/// A file that changes while it is read is refused: its manifest would be of something that never
/// existed.
pub fn hash_file(
    path: &Path,
    piece_bytes: Option<u32>,
    leaves_path: &Path,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<HashedFile, FileError> {
    let geometry_error = |source| FileError::Geometry { path: path.to_path_buf(), source };
    let mut source = Source::open(path)?;
    let stamp = source.stamp;
    let piece_bytes = piece_bytes.unwrap_or_else(|| choose_piece_bytes(stamp.size_bytes, 1));
    let mut builder = TreeBuilder::new(piece_bytes).map_err(geometry_error)?;
    let mut leaves = LeafFileWriter::create(leaves_path)?;

    let mut failed = None;
    source.read_to_end(0, |done, bytes| {
        builder.update(bytes, |leaf| failed = failed.take().or(leaves.push(leaf).err()));
        match failed.take() {
            Some(error) => Err(error),
            None => Ok(progress(done)),
        }
    })?;
    let tree = builder.finish(|leaf| failed = leaves.push(leaf).err()).map_err(geometry_error)?;
    if let Some(error) = failed {
        return Err(error);
    }
    source.check_unchanged()?;
    let manifest = Manifest {
        geometry: tree.geometry,
        root: tree.root,
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        mode: source.mode,
        mtime_ms: source.mtime_ms,
    };
    let leaves = leaves.finish(&manifest, tree.layer, &stamp)?;
    Ok(HashedFile { manifest, leaves, stamp })
}
