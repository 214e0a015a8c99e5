//! SHA-256 and a merkle tree over any number of leaves, as signed commands use it.
//!
//! Leaves and inner nodes are hashed with different first bytes (RFC 6962, section 2.1), so that
//! neither can be taken for the other. A level with an odd count carries its last node up
//! unhashed. The file mesh has trees of another shape (BEP 52) in its own crate.

use ring::digest;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

const LEAF: u8 = 0;
const NODE: u8 = 1;

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> Hash {
    sha256_parts(&[bytes])
}

/// SHA-256 of the concatenation of `parts`.
pub fn sha256_parts(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    crate::hello::array(context.finish().as_ref())
}

/// Hash of a leaf made of `parts`.
pub fn leaf(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[LEAF]);
    parts.iter().for_each(|part| context.update(part));
    crate::hello::array(context.finish().as_ref())
}

fn node(left: &Hash, right: &Hash) -> Hash {
    sha256_parts(&[&[NODE], left, right])
}

/// All levels of a tree, leaves first.
#[derive(Debug, Clone)]
pub struct Tree {
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// A tree over `leaves`, of which there must be at least one.
    pub fn new(leaves: Vec<Hash>) -> Option<Self> {
        if leaves.is_empty() {
            return None;
        }
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.chunks(2).map(|pair| match pair {
                [left, right] => node(left, right),
                single => single[0],
            });
            let above = above.collect();
            levels.push(above);
        }
        Some(Self { levels })
    }

    /// The hash that stands for all leaves.
    pub fn root(&self) -> Hash {
        self.levels[self.levels.len() - 1][0]
    }

    /// The siblings of leaf `index` from bottom to top, for [`root_of`]; `None` past the end.
    pub fn path(&self, index: usize) -> Option<Vec<Hash>> {
        if index >= self.levels[0].len() {
            return None;
        }
        let mut at = index;
        let mut path = Vec::with_capacity(self.levels.len());
        for level in &self.levels[..self.levels.len() - 1] {
            path.extend(level.get(at ^ 1));
            at /= 2;
        }
        Some(path)
    }
}

/// The root that `leaf` at `index` of `count` leaves has with `path`; `None` when the path's
/// length does not fit.
pub fn root_of(leaf: Hash, index: usize, count: usize, path: &[Hash]) -> Option<Hash> {
    if index >= count {
        return None;
    }
    let (mut at, mut width, mut hash) = (index, count, leaf);
    let mut siblings = path.iter();
    while width > 1 {
        let is_right = at % 2 == 1;
        let has_sibling = is_right || at + 1 < width;
        if has_sibling {
            let sibling = siblings.next()?;
            hash = if is_right { node(sibling, &hash) } else { node(&hash, sibling) };
        }
        at /= 2;
        width = width.div_ceil(2);
    }
    siblings.next().is_none().then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_of_every_small_tree_proves_itself_and_nothing_else() {
        for count in 1..=33usize {
            let leaves: Vec<_> = (0..count).map(|i| leaf(&[&i.to_be_bytes()])).collect();
            let tree = Tree::new(leaves.clone()).unwrap();
            for (index, own) in leaves.iter().enumerate() {
                let path = tree.path(index).unwrap();
                assert_eq!(root_of(*own, index, count, &path), Some(tree.root()));
                let other = leaf(&[b"other"]);
                assert_ne!(root_of(other, index, count, &path), Some(tree.root()));
                for wrong in (0..count).filter(|wrong| *wrong != index) {
                    assert_ne!(root_of(*own, wrong, count, &path), Some(tree.root()));
                }
                let mut long = path.clone();
                long.push([0; 32]);
                assert_eq!(root_of(*own, index, count, &long), None);
            }
            assert_eq!(tree.path(count), None);
        }
        assert!(Tree::new(Vec::new()).is_none());
    }
}
