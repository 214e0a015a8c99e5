//! The hashes of one file that are known: proved piece layer, proved leaves of unfinished pieces.
//!
//! Everything is proved on arrival, pieces against the root, leaves against their piece; what
//! fails is a lie of whoever sent it and changes nothing. Leaves of a finished piece are dropped,
//! so that a download of any size holds at most [`LEAF_HASHES_MAX`] of them (2 MiB).

use super::bitfield::Bitfield;
use super::geometry::{BLOCK_BYTES, Geometry, ceil_log2};
use super::merkle::{Hash, climb, hashes_in, subtree_root};
use super::peer_wire::{HASHES_MAX, HashRange};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Leaves held at once: those of 1 GiB of unfinished pieces.
pub const LEAF_HASHES_MAX: usize = 65_536;

/// Proved hashes of one file.
#[derive(Debug)]
pub struct HashStore {
    geometry: Geometry,
    root: Hash,
    layer: Vec<Hash>,
    layer_known: Bitfield,
    leaves: HashMap<u32, Arc<[Hash]>>,
}

/// What a range of proved hashes brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Learned {
    /// The leaves of these pieces may be known now.
    Leaves(Range<u32>),
    /// Hashes of these pieces.
    Layer(Range<u32>),
    /// Leaves whose pieces' hashes are not known yet: nothing could be proved.
    TooEarly,
}

/// Hashes that do not lead to the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{length} hashes at {index} of layer {base_layer} do not lead to the file's root")]
pub struct FalseHashes {
    /// Level of the hashes.
    pub base_layer: u32,
    /// First of them.
    pub index: u32,
    /// Their number.
    pub length: u32,
}

impl HashStore {
    /// A store that knows the root alone.
    pub fn new(geometry: Geometry, root: Hash) -> Self {
        let pieces = geometry.piece_count();
        let layer_len = if geometry.is_single_piece() { 0 } else { pieces };
        Self {
            geometry,
            root,
            layer: vec![[0; 32]; layer_len as usize],
            layer_known: Bitfield::new(layer_len),
            leaves: HashMap::new(),
        }
    }

    /// The file's root.
    pub fn root(&self) -> &Hash {
        &self.root
    }

    /// The hash that proves `piece`, if it is known.
    fn proof(&self, piece: u32) -> Option<Hash> {
        if self.geometry.is_single_piece() {
            return Some(self.root);
        }
        self.layer_known.get(piece).then(|| self.layer[piece as usize])
    }

    /// The piece layer once all of it is known; of a single-piece file its root.
    pub fn whole_layer(&self) -> Option<Vec<Hash>> {
        (0..self.geometry.piece_count()).map(|piece| self.proof(piece)).collect()
    }

    /// The leaves of `piece`, padded to a power of two, if they are known.
    pub fn leaves(&self, piece: u32) -> Option<Arc<[Hash]>> {
        if self.geometry.piece_height() == 0 {
            return self.proof(piece).map(|hash| Arc::from([hash]));
        }
        self.leaves.get(&piece).cloned()
    }

    /// Whether `data` is `block`; `None` while its leaf is not known.
    pub fn proves(&self, block: u32, data: &[u8]) -> Option<bool> {
        let piece = self.geometry.piece_of(block);
        let leaf = if self.geometry.piece_height() == 0 {
            self.proof(piece)?
        } else {
            let first = self.geometry.blocks_of(piece).start;
            *self.leaves.get(&piece)?.get((block - first) as usize)?
        };
        let whole = data.len() as u32 == self.geometry.block_len(block);
        Some(whole && super::merkle::leaf(data) == leaf)
    }

    /// Forgets the leaves of `piece`, which is complete.
    pub fn drop_leaves(&mut self, piece: u32) {
        self.leaves.remove(&piece);
    }

    /// Pieces whose leaves are held.
    pub(super) fn pieces_with_leaves(&self) -> usize {
        self.leaves.len()
    }

    /// Whether leaves are needed and not known before blocks of `piece` can be proved.
    pub(super) fn lacks_leaves(&self, piece: u32) -> bool {
        self.geometry.piece_height() > 0 && !self.leaves.contains_key(&piece)
    }

    /// Whether the hash that proves `piece` is known.
    pub(super) fn proves_piece(&self, piece: u32) -> bool {
        self.geometry.is_single_piece() || self.layer_known.get(piece)
    }

    /// Whether more leaves may be asked for.
    pub fn has_room(&self) -> bool {
        let per_piece = 1usize << self.geometry.piece_height();
        self.leaves.len() * per_piece < LEAF_HASHES_MAX
    }

    /// The range of the piece layer to ask for before `piece` can be proved; `None` if its hash is
    /// known.
    pub fn missing_layer(&self, piece: u32) -> Option<HashRange> {
        if self.proof(piece).is_some() {
            return None;
        }
        let base_layer = self.geometry.piece_height();
        let width = 1 << (self.geometry.tree_height() - base_layer);
        let length = HASHES_MAX.min(width);
        let height = self.geometry.tree_height();
        Some(HashRange {
            root: self.root,
            base_layer,
            index: piece / length * length,
            length,
            proof_layers: HashRange::proof_layers_to(base_layer, length, height),
        })
    }

    /// The range of leaves to ask for before `piece`'s blocks can be proved; `None` if they are
    /// known or follow from the piece's hash. A peer that has the whole file is asked for the
    /// leaves of up to 16 MiB at once, another for this piece's alone.
    pub fn missing_leaves(&self, piece: u32, peer_is_complete: bool) -> Option<HashRange> {
        if self.geometry.piece_height() == 0 || self.leaves.contains_key(&piece) {
            return None;
        }
        let per_piece = 1 << self.geometry.piece_height();
        let (mut index, mut length) = (piece * per_piece, per_piece);
        if peer_is_complete && !self.geometry.is_single_piece() {
            index = index / HASHES_MAX * HASHES_MAX;
            let left = self.geometry.block_count() - index;
            length = (1 << ceil_log2(left)).clamp(per_piece, HASHES_MAX);
        }
        Some(HashRange { root: self.root, base_layer: 0, index, length, proof_layers: 0 })
    }

    /// Proves and keeps the `bytes` of `range`, which was asked for. Leaves are kept only of
    /// pieces that `wanted` names.
    pub fn learn(
        &mut self,
        range: &HashRange,
        bytes: &[u8],
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Learned, FalseHashes> {
        let hashes: Vec<Hash> = hashes_in(bytes).collect();
        let HashRange { base_layer, index, length, .. } = *range;
        let error = FalseHashes { base_layer, index, length };
        let (base, uncles) = hashes.split_at_checked(length as usize).ok_or(error)?;
        // With pieces of one block the leaves are the piece layer.
        if base_layer == self.geometry.piece_height() && !self.geometry.is_single_piece() {
            self.learn_layer(index, base, uncles).ok_or(error)
        } else {
            self.learn_leaves(index, base, wanted).ok_or(error)
        }
    }

    fn learn_layer(&mut self, index: u32, base: &[Hash], uncles: &[Hash]) -> Option<Learned> {
        if climb(base, self.geometry.piece_height(), index, uncles) != self.root {
            return None;
        }
        let pieces = index..self.geometry.piece_count().min(index + base.len() as u32);
        for (piece, hash) in pieces.clone().zip(base) {
            self.layer[piece as usize] = *hash;
            self.layer_known.set(piece);
        }
        Some(Learned::Layer(pieces))
    }

    fn learn_leaves(
        &mut self,
        index: u32,
        base: &[Hash],
        wanted: impl Fn(u32) -> bool,
    ) -> Option<Learned> {
        let height = self.geometry.piece_height();
        let first = index >> height;
        let pieces = first..self.geometry.piece_count().min(first + (base.len() as u32 >> height));
        if pieces.clone().any(|piece| self.proof(piece).is_none()) {
            return Some(Learned::TooEarly);
        }
        for (piece, leaves) in pieces.clone().zip(base.chunks_exact(1 << height)) {
            if self.proof(piece)? != subtree_root(leaves.iter().copied(), 0, height) {
                return None;
            }
            if wanted(piece) {
                self.leaves.insert(piece, Arc::from(leaves));
            }
        }
        Some(Learned::Leaves(pieces))
    }
}

const _: () = assert!(HASHES_MAX * BLOCK_BYTES == super::geometry::PIECE_BYTES_MAX);
