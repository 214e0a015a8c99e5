//! Hashes a source: its tree's root and piece layer into a manifest, its leaves into a sidecar.

use super::leaf_file::{LeafFile, LeafFileWriter};
use crate::core::manifest::{MODE_TRAVELS, Manifest, choose_piece_bytes};
use crate::core::merkle::TreeBuilder;
use crate::engine::error::{Context, FileError};
use crate::engine::{FileStamp, sys};
use std::fs::{File, Metadata};
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bytes read at once: large enough that system calls do not count, small enough for the cache.
const READ_BYTES: usize = 256 * 1024;

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
    let changed = || FileError::Changed { path: path.to_path_buf() };
    let mut file = open_regular(path)?;
    let before = file.metadata().on("look at", path)?;
    let stamp = FileStamp::of(&before);
    let piece_bytes = piece_bytes.unwrap_or_else(|| choose_piece_bytes(stamp.size_bytes, 1));
    let mut builder = TreeBuilder::new(piece_bytes).map_err(geometry_error)?;
    let mut leaves = LeafFileWriter::create(leaves_path)?;

    sys::will_read_forward(&file);
    let mut buf = vec![0; READ_BYTES];
    let (mut done, mut failed) = (0, None);
    loop {
        let got = file.read(&mut buf).on("read", path)?;
        if got == 0 {
            break;
        }
        done += got as u64;
        builder.update(&buf[..got], |leaf| failed = failed.take().or(leaves.push(leaf).err()));
        if let Some(error) = failed.take() {
            return Err(error);
        }
        // A file that grows for ever must not be followed for ever.
        if done > stamp.size_bytes {
            return Err(changed());
        }
        if progress(done).is_break() {
            return Err(FileError::Cancelled { path: path.to_path_buf() });
        }
    }
    let tree = builder.finish(|leaf| failed = leaves.push(leaf).err()).map_err(geometry_error)?;
    if let Some(error) = failed {
        return Err(error);
    }
    let after = FileStamp::of(&file.metadata().on("look at", path)?);
    if after != stamp || done != stamp.size_bytes {
        return Err(changed());
    }
    let manifest = Manifest {
        geometry: tree.geometry,
        root: tree.root,
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        mode: before.mode() & MODE_TRAVELS,
        mtime_ms: mtime_ms(&before),
    };
    let leaves = leaves.finish(&manifest, tree.layer, &stamp)?;
    Ok(HashedFile { manifest, leaves, stamp })
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
