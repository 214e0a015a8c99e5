//! What identifies a file's content, and its attributes at the source.
//!
//! A [`Manifest`] is the validated form of `signal.v1.FileInfo`: whoever holds one may compute
//! with its geometry without checking again. The piece size is chosen once, by the planner's rule
//! in [`choose_piece_bytes`].

use super::geometry::{Geometry, GeometryError, PIECE_BYTES_MAX, ceil_log2};
use super::merkle::{Hash, PADDING_LEAF};
use super::name::{NameError, check_file_name};
use skein_wire::signal::v1::FileInfo;

/// Bits that a file's mode may have: permissions, set-id and sticky.
pub const MODE_MASK: u32 = 0o7777;

/// Bits of a mode that travel with a file. Set-id and sticky bits do not: whoever can place a file
/// at the source would own the targets. An operator who wants them says so in the order.
pub const MODE_TRAVELS: u32 = 0o777;

/// Pieces that [`choose_piece_bytes`] aims to stay under, so that a piece layer stays under 640 KB.
pub const PIECES_CHOSEN_MAX: u64 = 20_000;

const PIECE_BYTES_CHOSEN_MIN: u64 = 64 * 1024;

/// A file as a transfer knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its division into pieces.
    pub geometry: Geometry,
    /// Root of its hash tree; 32 zero bytes for an empty file.
    pub root: Hash,
    /// Its name at the source, a single path component.
    pub name: String,
    /// Its mode at the source, within [`MODE_TRAVELS`].
    pub mode: u32,
    /// Its modification time at the source, milliseconds since 1970.
    pub mtime_ms: i64,
}

/// Why a `FileInfo` is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Its sizes are out of bounds.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Its root is no SHA-256 hash.
    #[error("the hash tree's root has {0} bytes instead of 32")]
    Root(usize),
    /// An empty file's root is not what an empty file has.
    #[error("an empty file's hash tree has a root of zeros")]
    EmptyRoot,
    /// Its name is hostile.
    #[error("the file's name is refused: {0}")]
    Name(#[from] NameError),
    /// Its mode has bits that are no permissions.
    #[error("mode {0:o} has bits outside {MODE_MASK:o}")]
    Mode(u32),
}

impl Manifest {
    /// The manifest that `info` describes, if every field is within bounds.
    pub fn from_info(info: &FileInfo) -> Result<Self, ManifestError> {
        let geometry = Geometry::new(info.size_bytes, info.piece_bytes)?;
        let root =
            Hash::try_from(&info.root[..]).map_err(|_| ManifestError::Root(info.root.len()))?;
        if geometry.size_bytes() == 0 && root != PADDING_LEAF {
            return Err(ManifestError::EmptyRoot);
        }
        check_file_name(info.name.as_bytes())?;
        if info.mode & !MODE_MASK != 0 {
            return Err(ManifestError::Mode(info.mode));
        }
        let (mode, mtime_ms) = (info.mode & MODE_TRAVELS, info.mtime_ms);
        Ok(Self { geometry, root, name: info.name.clone(), mode, mtime_ms })
    }

    /// The message that carries this manifest, as that of a file.
    pub fn to_info(&self) -> FileInfo {
        FileInfo {
            size_bytes: self.geometry.size_bytes(),
            piece_bytes: self.geometry.piece_bytes(),
            root: self.root.to_vec().into(),
            name: self.name.clone(),
            mode: self.mode,
            mtime_ms: self.mtime_ms,
            tree: false,
        }
    }
}

/// Piece size for a file of `size_bytes` that goes to `hosts`.
///
/// A pipeline over N hosts loses about log2(N) piece times while it fills and drains; pieces of at
/// most 2 % × size ÷ log2(N) keep that loss at 2 %. Not under 64 KiB, where announcements cost
/// more than they win, and not so small that a file has more than 20,000 pieces. Beyond 312 GiB
/// the largest piece rules and the count grows to its hard limit.
pub fn choose_piece_bytes(size_bytes: u64, hosts: u32) -> u32 {
    let max = u64::from(PIECE_BYTES_MAX);
    let aim = size_bytes / (50 * u64::from(ceil_log2(hosts).max(1)));
    let mut piece = (1 << aim.max(1).ilog2()).clamp(PIECE_BYTES_CHOSEN_MIN, max);
    while size_bytes.div_ceil(piece) > PIECES_CHOSEN_MAX && piece < max {
        piece *= 2;
    }
    piece as u32
}

#[cfg(test)]
mod tests {
    use super::super::geometry::FILE_BYTES_MAX;
    use super::*;
    use proptest::prelude::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn piece_sizes_follow_size_and_hosts() {
        for (size, hosts, expected) in [
            (0, 1, 64 * KIB),
            (1, 100_000, 64 * KIB),
            (64 * MIB, 1_000, 128 * KIB),
            (GIB, 10_000, MIB),
            (50 * GIB, 1_000, 16 * MIB),
            (64 * MIB, 100_000, 64 * KIB),
            (GIB, 1, 16 * MIB),
            (100 * GIB, 1 << 31, 16 * MIB),
        ] {
            assert_eq!(u64::from(choose_piece_bytes(size, hosts)), expected, "{size} to {hosts}");
        }
    }

    fn info() -> FileInfo {
        FileInfo {
            size_bytes: 100,
            piece_bytes: 65_536,
            root: vec![7; 32].into(),
            name: "a".into(),
            mode: 0o644,
            mtime_ms: -5,
            tree: false,
        }
    }

    #[test]
    fn a_manifest_is_its_message() {
        let manifest = Manifest::from_info(&info()).unwrap();
        assert_eq!(manifest.to_info(), info());
    }

    #[test]
    fn set_id_bits_do_not_travel() {
        let manifest = Manifest::from_info(&FileInfo { mode: 0o6755, ..info() }).unwrap();
        assert_eq!(manifest.mode, 0o755);
    }

    #[test]
    fn bad_fields_are_refused() {
        let bad: [fn(&mut FileInfo); 6] = [
            |info| info.size_bytes = 0,
            |info| info.root = vec![7; 31].into(),
            |info| info.name = "../a".into(),
            |info| info.mode = 0o100_644,
            |info| info.piece_bytes = 0,
            |info| info.size_bytes = u64::MAX,
        ];
        for spoil in bad {
            let mut info = info();
            spoil(&mut info);
            assert!(Manifest::from_info(&info).is_err());
        }
    }

    proptest! {
        #[test]
        fn every_choice_is_a_legal_geometry(size in 0..=FILE_BYTES_MAX, hosts in any::<u32>()) {
            let piece = choose_piece_bytes(size, hosts);
            prop_assert!(Geometry::new(size, piece).is_ok());
            let few = size.div_ceil(u64::from(piece)) <= PIECES_CHOSEN_MAX;
            prop_assert!(few || piece == PIECE_BYTES_MAX);
        }
    }
}
