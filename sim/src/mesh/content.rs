//! The simulated file: real bytes with a real hash tree, held once for all hosts.

use crate::random::Random;
use skein_filemesh::core::geometry::{Geometry, GeometryError};
use skein_filemesh::core::merkle::{Hash, TreeBuilder};
use skein_filemesh::core::piece_tree::PieceTree;
use std::sync::Arc;

/// A file that every host writes and reads.
pub struct Content {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The hash of each block, 32 bytes each.
    leaves: Vec<u8>,
    /// The tree over its pieces.
    pub tree: Arc<PieceTree>,
    /// How many bytes of the file that is meant each byte stands for.
    pub scale: u32,
}

impl Content {
    /// A file of `size_bytes` in pieces of `piece_bytes`, of which each byte stands for `scale`.
    pub fn new(
        size_bytes: u64,
        piece_bytes: u32,
        scale: u32,
        seed: u64,
    ) -> Result<Self, GeometryError> {
        let scale = scale.max(1);
        let piece_bytes = piece_bytes / scale;
        let size_bytes = size_bytes.div_ceil(u64::from(scale));
        Geometry::new(size_bytes, piece_bytes)?;
        let mut random = Random::new(seed);
        let mut bytes = Vec::with_capacity(size_bytes as usize + 8);
        while (bytes.len() as u64) < size_bytes {
            bytes.extend_from_slice(&random.next_u64().to_be_bytes());
        }
        bytes.truncate(size_bytes as usize);
        let (mut leaves, mut builder) = (vec![], TreeBuilder::new(piece_bytes)?);
        let mut keep = |leaf: Hash| leaves.extend_from_slice(&leaf);
        builder.update(&bytes, &mut keep);
        let built = builder.finish(&mut keep)?;
        let tree = PieceTree::new(built.geometry, built.layer, &built.root);
        let tree = Arc::new(tree.map_err(|_| GeometryError::PieceBytes(piece_bytes))?);
        Ok(Self { bytes, leaves, tree, scale })
    }

    /// Leaves from `first` on, as [`Swarm::leaves`](skein_filemesh::core::swarm::Swarm::leaves)
    /// takes them.
    pub fn leaves(&self, first: u32, count: u32) -> Option<&[u8]> {
        self.leaves.get(first as usize * 32..(first as usize + count as usize) * 32)
    }

    /// Bytes of the file.
    pub fn range(&self, offset: u64, len: u64) -> &[u8] {
        let end = (offset + len).min(self.bytes.len() as u64);
        &self.bytes[offset.min(end) as usize..end as usize]
    }
}
