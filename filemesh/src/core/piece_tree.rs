//! The upper part of a file's hash tree, from the piece layer to the root, as a seed keeps it.
//!
//! It is what proofs are cut from. Leaves are not in it: they stay in a sidecar file and are read
//! when a peer asks. At most 2^17 hashes, 4 MiB, shared by all links that serve the file.

use super::geometry::Geometry;
use super::merkle::{Hash, layer_root, node, padding};
use super::peer_wire::HashRange;

/// Piece layer and everything above it. Its root is consistent by construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceTree {
    geometry: Geometry,
    /// The piece layer first, the root last; padding is left out of every level.
    levels: Vec<Vec<Hash>>,
}

/// A piece layer does not belong to a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the piece layer does not lead to the file's root; hash the file again")]
pub struct LayerMismatch;

impl PieceTree {
    /// The tree over `layer`, one hash per piece, which must lead to `root`.
    pub fn new(geometry: Geometry, layer: Vec<Hash>, root: &Hash) -> Result<Self, LayerMismatch> {
        let whole = layer.len() == geometry.piece_count() as usize;
        if !whole || layer_root(&geometry, &layer) != *root {
            return Err(LayerMismatch);
        }
        let mut levels = vec![layer];
        for height in geometry.piece_height()..geometry.tree_height() {
            let below = &levels[levels.len() - 1];
            let pad = padding(height);
            let above = below.chunks(2).map(|pair| node(&pair[0], pair.get(1).unwrap_or(&pad)));
            levels.push(above.collect());
        }
        Ok(Self { geometry, levels })
    }

    /// The file's division.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The piece layer.
    pub fn layer(&self) -> &[Hash] {
        &self.levels[0]
    }

    /// The root.
    pub fn root(&self) -> Hash {
        let top = self.levels.last().and_then(|level| level.first());
        top.copied().unwrap_or_else(|| padding(0))
    }

    /// The node at `index` of the level `height` above the leaves; `None` outside of this tree.
    fn get(&self, height: u32, index: u32) -> Option<Hash> {
        let level = height.checked_sub(self.geometry.piece_height())?;
        let level = self.levels.get(level as usize)?;
        Some(level.get(index as usize).copied().unwrap_or_else(|| padding(height)))
    }

    /// The uncles that `range` asks for, bottom up; `None` if it climbs outside of this tree.
    pub fn uncles(&self, range: &HashRange) -> Option<Vec<Hash>> {
        let start = range.length.ilog2();
        if range.uncle_count() > self.geometry.tree_height() {
            return None;
        }
        (start..start + range.uncle_count())
            .map(|level| {
                let height = range.base_layer.checked_add(level)?;
                // At the root's own height there is no sibling.
                let below_root = height < self.geometry.tree_height();
                below_root.then(|| self.get(height, (range.index >> level) ^ 1))?
            })
            .collect()
    }

    /// The hashes of `range` in or above the piece layer with their uncles; `None` if this tree
    /// does not have them.
    pub fn hashes(&self, range: &HashRange) -> Option<Vec<Hash>> {
        let end = range.index.checked_add(range.length)?;
        let height = range.base_layer;
        let width = 1u32.checked_shl(self.geometry.tree_height().checked_sub(height)?)?;
        if end > width {
            return None;
        }
        let base = (range.index..end).map(|index| self.get(height, index));
        let mut hashes: Vec<Hash> = base.collect::<Option<_>>()?;
        hashes.extend(self.uncles(range)?);
        Some(hashes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::merkle::tests::{bytes, naive};
    use super::super::merkle::{climb, subtree_root};
    use super::*;

    fn range(base_layer: u32, index: u32, length: u32, proof_layers: u32) -> HashRange {
        HashRange { root: [0; 32], base_layer, index, length, proof_layers }
    }

    #[test]
    fn every_range_of_every_level_climbs_to_the_root() {
        for blocks in 5..=40usize {
            let data = bytes(blocks * 16_384 - 3, blocks as u64);
            let geometry = Geometry::new(data.len() as u64, 32_768).unwrap();
            let (leaves, layer, root) = naive(&data, 32_768);
            let tree = PieceTree::new(geometry, layer, &root).unwrap();
            assert_eq!(tree.root(), root);
            let height = geometry.tree_height();
            for base in 1..height {
                for log in 1..=height - base {
                    let proof = height - base - 1;
                    for at in 0..1 << (height - base - log) {
                        let range = range(base, at << log, 1 << log, proof);
                        let hashes = tree.hashes(&range).unwrap();
                        let (base_hashes, uncles) = hashes.split_at(1 << log);
                        assert_eq!(uncles.len() as u32, height - base - log);
                        assert_eq!(climb(base_hashes, base, range.index, uncles), root);
                    }
                }
            }
            // Leaves of a piece, proved by the tree's uncles.
            let mut padded = leaves.clone();
            padded.resize(1 << height, [0; 32]);
            let range = range(0, 2, 2, height - 1);
            let uncles = tree.uncles(&range).unwrap();
            assert_eq!(climb(&padded[2..4], 0, 2, &uncles), root);
            assert_eq!(subtree_root(padded, 0, height), root);
        }
    }

    #[test]
    fn ranges_outside_are_refused() {
        let data = bytes(16_384 * 9, 1);
        let geometry = Geometry::new(data.len() as u64, 32_768).unwrap();
        let (_, layer, root) = naive(&data, 32_768);
        let tree = PieceTree::new(geometry, layer.clone(), &root).unwrap();
        for bad in [
            range(1, 0, 16, 0),
            range(1, 8, 2, 0),
            range(1, u32::MAX - 1, 2, 0),
            range(0, 0, 2, 0),
            range(40, 0, 2, 0),
            range(1, 0, 2, 9),
            range(1, 0, 2, u32::MAX),
        ] {
            assert_eq!(tree.hashes(&bad), None, "{bad:?}");
        }
        assert!(PieceTree::new(geometry, layer, &[1; 32]).is_err());
    }
}
