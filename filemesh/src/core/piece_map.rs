//! What of a file is here: proved blocks, the pieces they complete, and the bytes they add up to.

use super::bitfield::Bitfield;
use super::geometry::Geometry;

/// Proved blocks and complete pieces of one file. Grows only.
#[derive(Clone, Debug)]
pub struct PieceMap {
    geometry: Geometry,
    blocks: Bitfield,
    pieces: Bitfield,
    /// Blocks that a piece still lacks; a piece has at most 1,024.
    missing: Vec<u16>,
    bytes: u64,
}

impl PieceMap {
    /// An empty map.
    pub fn new(geometry: Geometry) -> Self {
        let missing = (0..geometry.piece_count()).map(|piece| geometry.blocks_of(piece).len());
        Self {
            geometry,
            blocks: Bitfield::new(geometry.block_count()),
            pieces: Bitfield::new(geometry.piece_count()),
            missing: missing.map(|count| count as u16).collect(),
            bytes: 0,
        }
    }

    /// The file's division.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Adds `block`. The answer is its piece if this block completed it.
    pub fn add(&mut self, block: u32) -> Option<u32> {
        if !self.blocks.set(block) {
            return None;
        }
        self.bytes += u64::from(self.geometry.block_len(block));
        let piece = self.geometry.piece_of(block);
        let missing = &mut self.missing[piece as usize];
        *missing -= 1;
        (*missing == 0).then(|| {
            self.pieces.set(piece);
            piece
        })
    }

    /// Whether `block` is here.
    pub fn has_block(&self, block: u32) -> bool {
        self.blocks.get(block)
    }

    /// Whether all of `piece` is here.
    pub fn has_piece(&self, piece: u32) -> bool {
        self.pieces.get(piece)
    }

    /// The blocks that are here.
    pub fn blocks(&self) -> &Bitfield {
        &self.blocks
    }

    /// The pieces that are complete.
    pub fn pieces(&self) -> &Bitfield {
        &self.pieces
    }

    /// Bytes of the blocks that are here.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.bytes == self.geometry.size_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_complete_with_their_last_block() {
        let geometry = Geometry::new(32_768 + 5, 32_768).unwrap();
        let mut map = PieceMap::new(geometry);
        assert_eq!(map.add(1), None);
        assert_eq!(map.add(1), None);
        assert_eq!(map.bytes(), 16_384);
        assert_eq!(map.add(0), Some(0));
        assert!(map.has_piece(0) && !map.is_complete());
        assert_eq!(map.add(2), Some(1));
        assert!(map.is_complete());
    }
}
