//! What of the file is here, as peers may ask for it.

use super::super::bitfield::Bitfield;
use super::super::download::Download;
use super::super::geometry::{BLOCK_BYTES, Geometry};
use super::super::link::Have;
use super::super::merkle::Hash;
use super::super::peer_wire::{BlockRange, HashRange};
use super::super::piece_tree::PieceTree;
use std::sync::Arc;

/// A download with the tree over its piece layer once that is known, or the tree of a whole file.
#[derive(Debug)]
pub(super) struct Content {
    pub geometry: Geometry,
    pub root: Hash,
    pub tree: Option<Arc<PieceTree>>,
    pub download: Option<Download>,
    /// Pieces whose leaves were handed to the caller to keep.
    leaves_known: Bitfield,
    /// Pieces that were noticed to be complete.
    noticed: Bitfield,
}

/// How a hash request is answered.
pub(super) enum Answer {
    /// With these bytes.
    Known(Vec<u8>),
    /// With `count` leaves from `first` on, which the caller keeps.
    Read { first: u32, count: u32 },
    /// When more is known here.
    Later,
    /// Not at all.
    Never,
}

impl Content {
    pub fn downloading(download: Download) -> Self {
        let geometry = download.geometry();
        let mut content = Self {
            geometry,
            root: *download.root(),
            tree: None,
            leaves_known: Bitfield::new(geometry.piece_count()),
            noticed: Bitfield::new(geometry.piece_count()),
            download: Some(download),
        };
        content.complete_layer();
        content
    }

    pub fn complete(tree: Arc<PieceTree>) -> Self {
        let geometry = tree.geometry();
        Self {
            geometry,
            root: tree.root(),
            tree: Some(tree),
            download: None,
            leaves_known: Bitfield::new(0),
            noticed: Bitfield::new(0),
        }
    }

    pub fn have(&self) -> Have {
        match &self.download {
            Some(download) if !self.is_complete() => {
                Have::Some(download.verified().pieces().clone())
            }
            _ => Have::All,
        }
    }

    /// Whether every block is proved.
    pub fn is_complete(&self) -> bool {
        self.download.as_ref().is_none_or(|download| download.verified().is_complete())
    }

    /// Whether `block` is proved.
    pub fn has_block(&self, block: u32) -> bool {
        self.download.as_ref().is_none_or(|download| download.verified().has_block(block))
    }

    /// Whether `piece` is complete and was not noticed before.
    pub fn complete_piece(&mut self, piece: u32) -> bool {
        let Some(download) = &self.download else { return false };
        download.verified().has_piece(piece) && self.noticed.set(piece)
    }

    /// Whether all blocks of `range`, which lies in the file, are proved.
    pub fn has_range(&self, range: &BlockRange) -> bool {
        let Some(download) = &self.download else { return true };
        let verified = download.verified();
        let first = self.geometry.blocks_of(range.piece).start + range.begin / BLOCK_BYTES;
        let count = range.len.div_ceil(BLOCK_BYTES);
        verified.has_piece(range.piece)
            || (first..first + count).all(|block| verified.has_block(block))
    }

    /// Builds the tree once the whole piece layer is known; true if it came now.
    pub fn complete_layer(&mut self) -> bool {
        if self.tree.is_some() {
            return false;
        }
        let layer = self.download.as_ref().and_then(|download| download.hashes().whole_layer());
        let tree = layer.and_then(|layer| PieceTree::new(self.geometry, layer, &self.root).ok());
        self.tree = tree.map(Arc::new);
        self.tree.is_some()
    }

    /// Remembers that the caller keeps the leaves of `piece`; true the first time.
    pub fn keep_leaves(&mut self, piece: u32) -> bool {
        piece < self.leaves_known.len() && self.leaves_known.set(piece)
    }

    /// Whether `range` can be answered when more is known here, but not now.
    pub fn is_later(&self, range: &HashRange) -> bool {
        let Some(download) = &self.download else { return false };
        let height = self.geometry.piece_height();
        if range.base_layer > 0 || height == 0 {
            return self.tree.is_none();
        }
        let end = u64::from(range.index) + u64::from(range.length);
        let mut pieces =
            range.index >> height..self.geometry.piece_count().min((end >> height) as u32);
        let proved = range.uncle_count() == 0 || self.tree.is_some();
        let whole = download.verified().is_complete();
        !proved || !(whole || pieces.all(|piece| self.leaves_known.get(piece)))
    }

    /// How to answer `range` now.
    pub fn answer(&self, range: &HashRange) -> Answer {
        if range.root != self.root {
            return Answer::Never;
        }
        if range.base_layer == 0 && self.geometry.piece_height() > 0 {
            return self.answer_leaves(range);
        }
        let Some(tree) = &self.tree else { return Answer::Later };
        let hashes = tree.hashes(range);
        hashes.map_or(Answer::Never, |hashes| Answer::Known(hashes.as_flattened().to_vec()))
    }

    fn answer_leaves(&self, range: &HashRange) -> Answer {
        let (geometry, height) = (self.geometry, self.geometry.piece_height());
        let HashRange { index, length, .. } = *range;
        let end = u64::from(index) + u64::from(length);
        let within = index < geometry.block_count() && end <= 1 << geometry.tree_height();
        if length < 1 << height || !within {
            return Answer::Never;
        }
        if self.is_later(range) {
            return Answer::Later;
        }
        let proof = range.uncle_count() > 0;
        if proof && self.tree.as_ref().is_none_or(|tree| tree.uncles(range).is_none()) {
            return Answer::Never;
        }
        if let Some(download) = &self.download
            && length == 1 << height
            && !proof
            && let Some(leaves) = download.leaves(index >> height)
        {
            return Answer::Known(leaves.as_flattened().to_vec());
        }
        Answer::Read { first: index, count: length.min(geometry.block_count() - index) }
    }

    /// The body of the answer to `range` from the `leaves` that the caller read.
    pub fn with_uncles(&self, range: &HashRange, leaves: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = leaves.to_vec();
        bytes.resize(range.length as usize * size_of::<Hash>(), 0);
        if range.uncle_count() > 0 {
            bytes.extend_from_slice(self.tree.as_ref()?.uncles(range)?.as_flattened());
        }
        Some(bytes)
    }
}
