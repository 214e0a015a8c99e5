//! How a file of a size divides into pieces and 16 KiB blocks, and the shape of its hash tree.
//!
//! A block is what one leaf proves and the unit of verification; a piece is what peers announce.
//! Only the last piece and the last block may be short. Indices fit `u32` because
//! [`PIECES_MAX`] pieces of [`PIECE_BYTES_MAX`] hold 2^26 blocks.

use std::ops::Range;

/// Bytes of a block: one leaf of the hash tree (BEP 52).
pub const BLOCK_BYTES: u32 = 16 * 1024;

/// Smallest piece that a manifest may have.
pub const PIECE_BYTES_MIN: u32 = BLOCK_BYTES;

/// Largest piece: its 1,024 leaves fill one hashes message of 32 KiB.
pub const PIECE_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Most pieces of a file: a piece layer of 2 MiB. With the largest pieces this is 1 TiB.
pub const PIECES_MAX: u32 = 65_536;

/// Largest file.
pub const FILE_BYTES_MAX: u64 = PIECES_MAX as u64 * PIECE_BYTES_MAX as u64;

const _: () = assert!(FILE_BYTES_MAX / (BLOCK_BYTES as u64) < u32::MAX as u64);

/// Sizes of a file, its pieces and its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size_bytes: u64,
    piece_bytes: u32,
}

/// Why a size and a piece size do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The piece size is no power of two or out of bounds.
    #[error("piece size {0} is not a power of two from {PIECE_BYTES_MIN} to {PIECE_BYTES_MAX}")]
    PieceBytes(u32),
    /// The file has too many pieces of this size.
    #[error(
        "a file of {size_bytes} bytes has more than {PIECES_MAX} pieces of {piece_bytes} bytes"
    )]
    Pieces {
        /// Size of the file.
        size_bytes: u64,
        /// Size of a piece.
        piece_bytes: u32,
    },
}

impl Geometry {
    /// The division of `size_bytes` into pieces of `piece_bytes`, if both are within bounds.
    pub fn new(size_bytes: u64, piece_bytes: u32) -> Result<Self, GeometryError> {
        if !piece_bytes.is_power_of_two()
            || !(PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece_bytes)
        {
            return Err(GeometryError::PieceBytes(piece_bytes));
        }
        if size_bytes.div_ceil(u64::from(piece_bytes)) > u64::from(PIECES_MAX) {
            return Err(GeometryError::Pieces { size_bytes, piece_bytes });
        }
        Ok(Self { size_bytes, piece_bytes })
    }

    /// Size of the file.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size of every piece but the last.
    pub fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    /// Number of pieces; 0 for an empty file.
    pub fn piece_count(&self) -> u32 {
        self.size_bytes.div_ceil(u64::from(self.piece_bytes)) as u32
    }

    /// Number of blocks, which is the number of leaves; 0 for an empty file.
    pub fn block_count(&self) -> u32 {
        self.size_bytes.div_ceil(u64::from(BLOCK_BYTES)) as u32
    }

    /// Blocks of a full piece.
    pub fn blocks_per_piece(&self) -> u32 {
        self.piece_bytes / BLOCK_BYTES
    }

    /// Where `piece` starts in the file.
    pub fn piece_offset(&self, piece: u32) -> u64 {
        u64::from(piece) * u64::from(self.piece_bytes)
    }

    /// Length of `piece`; 0 past the end.
    pub fn piece_len(&self, piece: u32) -> u32 {
        let left = self.size_bytes.saturating_sub(self.piece_offset(piece));
        left.min(u64::from(self.piece_bytes)) as u32
    }

    /// The piece that `block` belongs to.
    pub fn piece_of(&self, block: u32) -> u32 {
        block / self.blocks_per_piece()
    }

    /// The blocks of `piece` within the file.
    pub fn blocks_of(&self, piece: u32) -> Range<u32> {
        let start = piece * self.blocks_per_piece();
        start..(start + self.blocks_per_piece()).min(self.block_count())
    }

    /// Where `block` starts in the file.
    pub fn block_offset(&self, block: u32) -> u64 {
        u64::from(block) * u64::from(BLOCK_BYTES)
    }

    /// Length of `block`; 0 past the end.
    pub fn block_len(&self, block: u32) -> u32 {
        let left = self.size_bytes.saturating_sub(self.block_offset(block));
        left.min(u64::from(BLOCK_BYTES)) as u32
    }

    /// Offset and length in the file of consecutive `blocks`.
    pub fn bytes_of(&self, blocks: Range<u32>) -> Range<u64> {
        let clip = |block| self.block_offset(block).min(self.size_bytes);
        clip(blocks.start)..clip(blocks.end)
    }

    /// The block that starts at `offset`, if one does.
    pub fn block_at(&self, offset: u64) -> Option<u32> {
        let aligned = offset.is_multiple_of(u64::from(BLOCK_BYTES)) && offset < self.size_bytes;
        aligned.then(|| (offset / u64::from(BLOCK_BYTES)) as u32)
    }

    /// Whether one piece holds everything, so that there is no piece layer: the root proves the
    /// leaves directly.
    pub fn is_single_piece(&self) -> bool {
        self.size_bytes <= u64::from(self.piece_bytes)
    }

    /// Levels from the leaves up to the hash that proves a piece: the piece layer, or the root of
    /// a single-piece file.
    pub fn piece_height(&self) -> u32 {
        if self.is_single_piece() {
            ceil_log2(self.block_count())
        } else {
            self.blocks_per_piece().ilog2()
        }
    }

    /// Levels from the leaves up to the root.
    pub fn tree_height(&self) -> u32 {
        self.piece_height() + ceil_log2(self.piece_count())
    }
}

/// Exponent of the smallest power of two that is at least `n`; 0 for 0 and 1.
pub fn ceil_log2(n: u32) -> u32 {
    u32::BITS - (n.max(1) - 1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_piece_and_block_are_short() {
        let geometry = Geometry::new(3 * 65_536 + 16_385, 65_536).unwrap();
        assert_eq!((geometry.piece_count(), geometry.block_count()), (4, 14));
        assert_eq!((geometry.piece_len(2), geometry.piece_len(3)), (65_536, 16_385));
        assert_eq!(geometry.blocks_of(3), 12..14);
        assert_eq!((geometry.block_len(12), geometry.block_len(13)), (16_384, 1));
        assert_eq!(geometry.bytes_of(12..14), 196_608..212_993);
        assert_eq!((geometry.piece_height(), geometry.tree_height()), (2, 4));
    }

    #[test]
    fn an_empty_file_has_no_pieces() {
        let geometry = Geometry::new(0, 65_536).unwrap();
        assert_eq!((geometry.piece_count(), geometry.block_count()), (0, 0));
        assert_eq!(geometry.tree_height(), 0);
        assert!(geometry.is_single_piece());
    }

    #[test]
    fn bounds_are_checked() {
        assert!(Geometry::new(1, 8_192).is_err());
        assert!(Geometry::new(1, 49_152).is_err());
        assert!(Geometry::new(1, 1 << 25).is_err());
        assert!(Geometry::new(FILE_BYTES_MAX, PIECE_BYTES_MAX).is_ok());
        assert!(Geometry::new(FILE_BYTES_MAX + 1, PIECE_BYTES_MAX).is_err());
        assert!(Geometry::new(u64::MAX, PIECE_BYTES_MIN).is_err());
    }
}
