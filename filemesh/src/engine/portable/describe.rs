//! Metainfo of a file on disk, in one reading, and a file on disk against its metainfo.

use super::source::Source;
use crate::core::geometry::{BLOCK_BYTES, Geometry};
use crate::core::manifest::Manifest;
use crate::core::merkle::{Hash, TreeBuilder};
use crate::core::metainfo::{LEAVES_MAX, Metainfo, PieceHasher, Prover, Sha1Hash};
use crate::engine::error::FileError;
use std::ops::{ControlFlow, Range};
use std::path::Path;

/// Which hashes [`describe_file`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashes {
    /// Our own tree of SHA-256.
    Tree,
    /// The tree, and SHA-1 of each piece for BitTorrent version 1.
    TreeAndPieces,
}

/// What a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedFile {
    /// What identifies it.
    pub manifest: Manifest,
    /// One SHA-256 hash per piece.
    pub layer: Vec<Hash>,
    /// One SHA-256 hash per block, of a file of at most [`LEAVES_MAX`] blocks.
    pub leaves: Option<Vec<Hash>>,
    /// One SHA-1 hash per piece, if they were asked for.
    pub pieces: Option<Vec<Sha1Hash>>,
}

/// Reads the file at `path` once and computes `hashes` of it in pieces that `piece_bytes` chooses
/// by its size. `progress` gets the bytes done and their total and may break off. A file that
/// changes while it is read is refused.
pub fn describe_file(
    path: &Path,
    piece_bytes: impl FnOnce(u64) -> u32,
    hashes: Hashes,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<DescribedFile, FileError> {
    let geometry_error = |source| FileError::Geometry { path: path.to_path_buf(), source };
    let mut source = Source::open(path)?;
    let size_bytes = source.stamp.size_bytes;
    let piece_bytes = piece_bytes(size_bytes);
    // Judged before the first byte is hashed, not after the last.
    let geometry = Geometry::new(size_bytes, piece_bytes).map_err(geometry_error)?;
    let mut builder = TreeBuilder::new(piece_bytes).map_err(geometry_error)?;
    let mut hasher = (hashes == Hashes::TreeAndPieces).then(|| PieceHasher::new(piece_bytes));
    let mut leaves = (geometry.block_count() <= LEAVES_MAX).then(Vec::new);
    let mut keep = |leaf| leaves.iter_mut().for_each(|leaves| leaves.push(leaf));
    source.read_to_end(0, |done, bytes| {
        builder.update(bytes, &mut keep);
        hasher.iter_mut().for_each(|hasher| hasher.update(bytes));
        Ok(progress(done, size_bytes))
    })?;
    let tree = builder.finish(&mut keep).map_err(geometry_error)?;
    source.check_unchanged()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (mode, mtime_ms) = (source.mode, source.mtime_ms);
    Ok(DescribedFile {
        manifest: Manifest { geometry: tree.geometry, root: tree.root, name, mode, mtime_ms },
        layer: tree.layer,
        leaves,
        pieces: hasher.map(PieceHasher::finish),
    })
}

/// What a check of a file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Size of the file on disk; another than the metainfo's is false.
    pub size_bytes: u64,
    /// Where the check began: at the start of the unit that the caller's offset lies in.
    pub from: u64,
    /// Where it ended: all before are proved, but for those that were found false.
    pub to: u64,
    /// Bytes that are proved together: a block where the metainfo has leaves, else a piece.
    pub unit_bytes: u32,
    /// Units that were found false.
    pub bad_units: u64,
    /// The first of them.
    pub first_bad: Option<Range<u64>>,
}

impl Verification {
    /// Whether everything that was looked at is as `metainfo` says.
    pub fn is_good(&self, metainfo: &Metainfo) -> bool {
        self.first_bad.is_none() && self.size_bytes == metainfo.geometry().size_bytes()
    }
}

/// How far [`verify_file`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// To the first false unit.
    FirstBad,
    /// To the end, counting all false units.
    End,
}

/// Proves the file at `path` against `metainfo`, from the unit that `from` lies in. A file of
/// another size is false, and what both have of it is proved all the same. `progress` gets the
/// place in the file and the size, and may break off: then what was found so far is the answer, and
/// a later check may go on at its `to`. A file that changes while it is read is refused.
pub fn verify_file(
    path: &Path,
    metainfo: &Metainfo,
    from: u64,
    until: Until,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Verification, FileError> {
    let mut source = Source::open(path)?;
    let size_bytes = source.stamp.size_bytes;
    let (mut bad_units, mut first_bad) = (0, None);
    let Some(mut prover) = Prover::new(metainfo, from) else {
        let unit_bytes = BLOCK_BYTES;
        return Ok(Verification { size_bytes, from, to: from, unit_bytes, bad_units, first_bad });
    };
    let (from, unit_bytes) = (prover.offset(), prover.unit_bytes());
    let mut found_enough = false;
    let read = if from > size_bytes {
        Ok(())
    } else {
        source.read_to_end(from, |done, bytes| {
            prover.update(bytes, |range| {
                bad_units += 1;
                first_bad.get_or_insert(range);
            });
            found_enough = bad_units > 0 && until == Until::FirstBad;
            let flow = progress(done, size_bytes);
            Ok(if found_enough { ControlFlow::Break(()) } else { flow })
        })
    };
    match read {
        Err(FileError::Cancelled { .. }) => {}
        other => other?,
    }
    source.check_unchanged()?;
    // What lies after the last whole unit was not compared with anything.
    let to = prover.proved_bytes();
    Ok(Verification { size_bytes, from, to, unit_bytes, bad_units, first_bad })
}
