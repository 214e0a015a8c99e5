//! Proves the bytes of a file, in order, against its metainfo: each block where the leaves are
//! known, else each piece.

use super::{Metainfo, Sha1Hash};
use crate::core::geometry::{BLOCK_BYTES, Geometry};
use crate::core::merkle::{Hash, leaf, subtree_root};
use sha1::{Digest, Sha1};
use std::ops::Range;

/// What a unit is compared with.
enum Expected<'a> {
    /// Blocks with the tree's leaves.
    Leaves(&'a [Hash]),
    /// Pieces with the tree's piece layer; the leaves of the current piece so far.
    Layer(&'a [Hash], Vec<Hash>),
    /// Pieces with version 1's hashes; the current piece so far.
    Pieces(&'a [Sha1Hash], Sha1),
}

/// A file on its way through a check. Bytes past the end of the file that the metainfo describes
/// are false, too.
pub struct Prover<'a> {
    geometry: Geometry,
    expected: Expected<'a>,
    /// Next block.
    block: u32,
    /// The start of that block.
    partial: Vec<u8>,
}

impl<'a> Prover<'a> {
    /// A check by the best that `metainfo` has, of the bytes from `from` on; it begins at the
    /// start of the unit that `from` lies in, see [`Prover::offset`]. `None` if the metainfo has
    /// no hashes, which decoding does not allow.
    pub fn new(metainfo: &'a Metainfo, from: u64) -> Option<Self> {
        let geometry = metainfo.geometry;
        let expected = match (&metainfo.tree, &metainfo.pieces) {
            (Some(tree), _) => match &tree.leaves {
                Some(leaves) => Expected::Leaves(leaves),
                // Pieces of one block: the layer is the leaves.
                None if geometry.piece_height() == 0 => Expected::Leaves(&tree.layer),
                None => Expected::Layer(&tree.layer, Vec::new()),
            },
            (None, Some(pieces)) => Expected::Pieces(pieces, Sha1::new()),
            (None, None) => return None,
        };
        let mut prover = Self { geometry, expected, block: 0, partial: Vec::new() };
        let units = from / u64::from(prover.unit_bytes());
        let block = units.saturating_mul(u64::from(prover.unit_bytes() / BLOCK_BYTES));
        let is_inside = from < geometry.size_bytes();
        prover.block = if is_inside { block as u32 } else { geometry.block_count() };
        Some(prover)
    }

    /// Bytes that are proved together.
    pub fn unit_bytes(&self) -> u32 {
        match self.expected {
            Expected::Leaves(_) => BLOCK_BYTES,
            Expected::Layer(..) | Expected::Pieces(..) => self.geometry.piece_bytes(),
        }
    }

    /// Where in the file the next bytes are from.
    pub fn offset(&self) -> u64 {
        let start = self.geometry.block_offset(self.block).min(self.geometry.size_bytes());
        start + self.partial.len() as u64
    }

    /// Takes the next `bytes`, and hands the range of every unit that they show to be false to
    /// `bad`. Bytes past the end are ignored here: the file's size shows them.
    pub fn update(&mut self, mut bytes: &[u8], mut bad: impl FnMut(Range<u64>)) {
        while !bytes.is_empty() && self.block < self.geometry.block_count() {
            let len = self.geometry.block_len(self.block) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(len - self.partial.len()));
            bytes = rest;
            if now.len() == len {
                self.close(now, &mut bad);
                continue;
            }
            self.partial.extend_from_slice(now);
            if self.partial.len() == len {
                let block = std::mem::take(&mut self.partial);
                self.close(&block, &mut bad);
                self.partial = block;
                self.partial.clear();
            }
        }
    }

    /// The end of the last unit that was compared, where a later check may go on.
    pub fn proved_bytes(&self) -> u64 {
        let blocks_per_unit = self.unit_bytes() / BLOCK_BYTES;
        let units =
            if self.is_done() { self.block } else { self.block - self.block % blocks_per_unit };
        self.geometry.block_offset(units).min(self.geometry.size_bytes())
    }

    /// Whether every byte was taken.
    pub fn is_done(&self) -> bool {
        self.block == self.geometry.block_count()
    }

    fn close(&mut self, bytes: &[u8], bad: &mut impl FnMut(Range<u64>)) {
        let block = self.block;
        self.block += 1;
        let piece = self.geometry.piece_of(block);
        let blocks = self.geometry.blocks_of(piece);
        let ends = self.block == blocks.end;
        let (is_true, unit) = match &mut self.expected {
            Expected::Leaves(leaves) => {
                (leaves.get(block as usize) == Some(&leaf(bytes)), block..block + 1)
            }
            Expected::Layer(layer, leaves) => {
                leaves.push(leaf(bytes));
                if !ends {
                    return;
                }
                let root = subtree_root(leaves.drain(..), 0, self.geometry.piece_height());
                (layer.get(piece as usize) == Some(&root), blocks)
            }
            Expected::Pieces(pieces, context) => {
                context.update(bytes);
                if !ends {
                    return;
                }
                let hash: Sha1Hash = context.finalize_reset().into();
                (pieces.get(piece as usize) == Some(&hash), blocks)
            }
        };
        if !is_true {
            bad(self.geometry.bytes_of(unit));
        }
    }
}
