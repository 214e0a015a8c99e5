//! The hash tree of BEP 52: SHA-256 leaves of 16 KiB blocks under a binary tree.
//!
//! Leaves past the end of the file are zero hashes, not hashes of zeros; the last leaf covers only
//! the bytes that exist. The hashes of one level, the *piece layer*, each cover one piece, and
//! those that would cover padding alone are left out. A file of one piece has no piece layer: its
//! leaves are padded to a power of two and stand under the root directly. An empty file's root is
//! the zero hash.

use super::geometry::{BLOCK_BYTES, Geometry, GeometryError, ceil_log2};
use ring::digest;
use std::sync::OnceLock;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;

/// The leaf that stands for a block past the end of the file.
pub const PADDING_LEAF: Hash = [0; HASH_BYTES];

/// Highest tree that any file within bounds has (2^26 blocks), with room to spare.
const HEIGHT_MAX: usize = 33;

fn array(digest: digest::Digest) -> Hash {
    digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes")
}

/// Leaf of a block's bytes.
pub fn leaf(block: &[u8]) -> Hash {
    array(digest::digest(&digest::SHA256, block))
}

/// Hash of two neighbours' concatenation.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    let mut pair = [0; 2 * HASH_BYTES];
    pair[..HASH_BYTES].copy_from_slice(left);
    pair[HASH_BYTES..].copy_from_slice(right);
    array(digest::digest(&digest::SHA256, &pair))
}

/// Hash of a subtree of `height` levels that covers padding alone.
pub fn padding(height: u32) -> Hash {
    static TABLE: OnceLock<[Hash; HEIGHT_MAX]> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut table = [PADDING_LEAF; HEIGHT_MAX];
        for height in 1..HEIGHT_MAX {
            table[height] = node(&table[height - 1], &table[height - 1]);
        }
        table
    });
    table[height as usize]
}

/// Root of `hashes`, which stand `base` levels above the leaves, padded to `1 << height` entries.
/// There must be at most that many.
pub fn subtree_root(hashes: impl IntoIterator<Item = Hash>, base: u32, height: u32) -> Hash {
    let mut stack = Stack::new(base);
    hashes.into_iter().for_each(|hash| stack.push(hash));
    stack.root(height)
}

/// The node that `hashes` at `index` of a level lead to when it is combined with `uncles` one by
/// one. `hashes` is a whole aligned range, so its length is a power of two and divides `index`.
pub fn climb(hashes: &[Hash], base: u32, index: u32, uncles: &[Hash]) -> Hash {
    let height = ceil_log2(hashes.len() as u32);
    let top = subtree_root(hashes.iter().copied(), base, height);
    let mut position = index >> height;
    uncles.iter().fold(top, |hash, uncle| {
        let above = if position & 1 == 0 { node(&hash, uncle) } else { node(uncle, &hash) };
        position >>= 1;
        above
    })
}

/// A tree under construction from the left: at most one finished subtree per height.
#[derive(Clone, Debug)]
struct Stack {
    base: u32,
    /// (height above `base`, hash), heights strictly falling.
    subtrees: Vec<(u32, Hash)>,
}

impl Stack {
    fn new(base: u32) -> Self {
        Self { base, subtrees: Vec::new() }
    }

    fn push(&mut self, hash: Hash) {
        let mut fresh = (0, hash);
        while let Some((_, left)) = self.subtrees.pop_if(|(height, _)| *height == fresh.0) {
            fresh = (fresh.0 + 1, node(&left, &fresh.1));
        }
        self.subtrees.push(fresh);
    }

    /// Root of what was pushed, padded on the right to `1 << height` entries; empties the stack.
    fn root(&mut self, height: u32) -> Hash {
        let raise = |(from, hash): (u32, Hash), to: u32| {
            (from..to).fold(hash, |hash, level| node(&hash, &padding(self.base + level)))
        };
        let Some(mut right) = self.subtrees.pop() else { return padding(self.base + height) };
        while let Some((level, left)) = self.subtrees.pop() {
            right = (level + 1, node(&left, &raise(right, level)));
        }
        raise(right, height)
    }
}

/// Hashes a stream of bytes of unknown length into leaves, piece layer and root.
///
/// Leaves are handed out as they are made and not kept; what is kept is one hash per piece.
pub struct TreeBuilder {
    piece_bytes: u32,
    size_bytes: u64,
    block: digest::Context,
    block_len: usize,
    piece: Stack,
    piece_leaves: u32,
    layer: Vec<Hash>,
}

/// What a [`TreeBuilder`] leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltTree {
    /// Division of the bytes that were seen.
    pub geometry: Geometry,
    /// The root.
    pub root: Hash,
    /// One hash per piece; of a single-piece file its root, of an empty file nothing.
    pub layer: Vec<Hash>,
}

impl TreeBuilder {
    /// A builder for pieces of `piece_bytes`, which must be a legal piece size.
    pub fn new(piece_bytes: u32) -> Result<Self, GeometryError> {
        Geometry::new(0, piece_bytes)?;
        Ok(Self {
            piece_bytes,
            size_bytes: 0,
            block: digest::Context::new(&digest::SHA256),
            block_len: 0,
            piece: Stack::new(0),
            piece_leaves: 0,
            layer: Vec::new(),
        })
    }

    /// Takes the next `bytes` and hands every leaf that they complete to `leaves`.
    pub fn update(&mut self, mut bytes: &[u8], mut leaves: impl FnMut(Hash)) {
        const BLOCK: usize = BLOCK_BYTES as usize;
        self.size_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - self.block_len));
            if now.len() == BLOCK {
                self.push(leaf(now), &mut leaves);
            } else {
                self.block.update(now);
                self.block_len += now.len();
                if self.block_len == BLOCK {
                    self.close_block(&mut leaves);
                }
            }
            bytes = rest;
        }
    }

    /// Ends the stream; the last leaf, if it was open, goes to `leaves`.
    pub fn finish(mut self, mut leaves: impl FnMut(Hash)) -> Result<BuiltTree, GeometryError> {
        if self.block_len > 0 {
            self.close_block(&mut leaves);
        }
        let geometry = Geometry::new(self.size_bytes, self.piece_bytes)?;
        if self.piece_leaves > 0 {
            self.layer.push(self.piece.root(geometry.piece_height()));
        }
        let root = layer_root(&geometry, &self.layer);
        Ok(BuiltTree { geometry, root, layer: self.layer })
    }

    fn close_block(&mut self, leaves: &mut impl FnMut(Hash)) {
        let fresh = digest::Context::new(&digest::SHA256);
        let hash = array(std::mem::replace(&mut self.block, fresh).finish());
        self.block_len = 0;
        self.push(hash, leaves);
    }

    fn push(&mut self, hash: Hash, leaves: &mut impl FnMut(Hash)) {
        leaves(hash);
        self.piece.push(hash);
        self.piece_leaves += 1;
        let per_piece = self.piece_bytes / BLOCK_BYTES;
        if self.piece_leaves == per_piece {
            self.layer.push(self.piece.root(per_piece.ilog2()));
            self.piece_leaves = 0;
        }
    }
}

/// Root over a piece layer as [`BuiltTree::layer`] has it.
pub fn layer_root(geometry: &Geometry, layer: &[Hash]) -> Hash {
    let height = geometry.tree_height() - geometry.piece_height();
    subtree_root(layer.iter().copied(), geometry.piece_height(), height)
}

/// The hashes that `bytes` are, one after the other; a rest of less than 32 bytes is ignored.
pub fn hashes_in(bytes: &[u8]) -> impl ExactSizeIterator<Item = Hash> + '_ {
    bytes.chunks_exact(HASH_BYTES).map(|hash| hash.try_into().expect("chunks have 32 bytes"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The tree written down as BEP 52 defines it, without any of the short cuts above.
    pub(crate) fn naive(data: &[u8], piece_bytes: usize) -> (Vec<Hash>, Vec<Hash>, Hash) {
        fn digest_of(bytes: &[u8]) -> Hash {
            ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().try_into().unwrap()
        }
        let leaves: Vec<Hash> = data.chunks(16_384).map(digest_of).collect();
        if leaves.is_empty() {
            return (leaves, vec![], [0; 32]);
        }
        let mut level = leaves.clone();
        let per_piece = piece_bytes / 16_384;
        let width = if data.len() <= piece_bytes {
            leaves.len().next_power_of_two()
        } else {
            data.len().div_ceil(piece_bytes).next_power_of_two() * per_piece
        };
        level.resize(width, [0; 32]);
        let mut covered = 16_384;
        let mut layer = None;
        while level.len() > 1 {
            if covered == piece_bytes && data.len() > piece_bytes {
                layer = Some(level[..data.len().div_ceil(piece_bytes)].to_vec());
            }
            level = level.chunks(2).map(|pair| digest_of(&[pair[0], pair[1]].concat())).collect();
            covered *= 2;
        }
        (leaves, layer.unwrap_or_else(|| vec![level[0]]), level[0])
    }

    fn built(data: &[u8], piece_bytes: u32, cuts: &[usize]) -> (Vec<Hash>, BuiltTree) {
        let mut builder = TreeBuilder::new(piece_bytes).unwrap();
        let mut leaves = vec![];
        let mut rest = data;
        for cut in cuts {
            let (now, then) = rest.split_at((*cut).min(rest.len()));
            builder.update(now, |leaf| leaves.push(leaf));
            rest = then;
        }
        builder.update(rest, |leaf| leaves.push(leaf));
        let tree = builder.finish(|leaf| leaves.push(leaf)).unwrap();
        (leaves, tree)
    }

    pub(crate) fn bytes(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn hex(hash: &Hash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    // sha256 of one zero byte, and of the concatenation of that leaf structure, taken from
    // coreutils' sha256sum.
    #[test]
    fn vectors_from_sha256sum() {
        let (_, tree) = built(&[0], 65_536, &[]);
        let one = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
        assert_eq!(hex(&tree.root), one);
        assert_eq!(
            hex(&padding(1)),
            "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b"
        );
        assert_eq!(built(&[], 65_536, &[]).1.root, PADDING_LEAF);
    }

    #[test]
    fn every_size_around_the_edges_matches_the_definition() {
        for piece in [16_384usize, 32_768, 65_536] {
            for blocks in 0..=17 {
                for extra in [0, 1, 16_383] {
                    let data = bytes(blocks * 16_384 + extra, 7);
                    let (leaves, layer, root) = naive(&data, piece);
                    let (got, tree) = built(&data, piece as u32, &[5, 16_384]);
                    assert_eq!((got, tree.layer, tree.root), (leaves, layer, root));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_cutting_gives_the_same_tree(
            len in 0usize..400_000,
            piece in 14u32..18,
            seed in any::<u64>(),
            cuts in proptest::collection::vec(0usize..40_000, 0..20),
        ) {
            let data = bytes(len, seed);
            let (leaves, layer, root) = naive(&data, 1 << piece);
            let (got, tree) = built(&data, 1 << piece, &cuts);
            prop_assert_eq!((got, tree.layer, tree.root), (leaves, layer, root));
        }
    }
}
