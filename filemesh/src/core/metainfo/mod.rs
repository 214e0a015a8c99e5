//! Metainfo of one file: what a `.torrent` file says, in BitTorrent version 1, version 2 or both.
//!
//! Version 2 (BEP 52) is a [`Manifest`] with its piece layer: the root that control signs, and one
//! SHA-256 hash per piece. Mode and time travel in a key of our own inside of the info dictionary,
//! `skein`, so that the info hash covers them; other clients ignore it. Leaves of a file up to
//! [`LEAVES_MAX`] blocks may stand beside it, `skein leaves`, so that whoever checks the file can
//! name a false block and not only its piece. Version 1 (BEP 3) is a list of SHA-1 hashes of
//! pieces, for clients that know nothing else.
//!
//! What is encoded depends on the file and the trackers alone: no date, no name of a program, so
//! the same file gives the same bytes on every host.

mod bencode;
mod decode;
mod error;
mod pieces;
mod prover;

pub use bencode::NESTING_MAX;
pub use error::MetainfoError;
pub use pieces::{PieceHasher, SHA1_BYTES, Sha1Hash, sha1};
pub use prover::Prover;

use super::geometry::{Geometry, PIECES_MAX};
use super::manifest::Manifest;
use super::merkle::{HASH_BYTES, Hash, layer_root, leaf, subtree_root};
use super::name::check_file_name;
use bencode::{put_bytes, put_dict, put_list, put_number};

/// Trackers of one metainfo.
pub const TRACKERS_MAX: usize = 64;

/// Bytes of one tracker's address.
pub const TRACKER_BYTES_MAX: usize = 2_048;

/// Leaves that may stand in metainfo: those of 1 GiB, 2 MiB.
pub const LEAVES_MAX: u32 = 65_536;

/// Bytes of metainfo: every hash of both versions, all trackers, and room for what others add.
pub const METAINFO_BYTES_MAX: usize = 8 * 1024 * 1024;

const _: () = {
    let hashes = PIECES_MAX as usize * (HASH_BYTES + SHA1_BYTES) + LEAVES_MAX as usize * HASH_BYTES;
    assert!(hashes + 2 * TRACKERS_MAX * TRACKER_BYTES_MAX + (64 << 10) <= METAINFO_BYTES_MAX);
};

/// What a file looked like at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Mode, within [`super::manifest::MODE_TRAVELS`].
    pub mode: u32,
    /// Modification time, milliseconds since 1970.
    pub mtime_ms: i64,
}

/// The SHA-256 tree of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Its root.
    pub root: Hash,
    /// One hash per piece; of a file of one piece its root, of an empty one nothing.
    pub layer: Vec<Hash>,
    /// One hash per block, where they are known.
    pub leaves: Option<Vec<Hash>>,
}

impl Tree {
    /// Whether all levels belong together and to a file of this geometry.
    fn check(&self, geometry: &Geometry) -> Result<(), MetainfoError> {
        let whole = self.layer.len() == geometry.piece_count() as usize;
        if !whole || layer_root(geometry, &self.layer) != self.root {
            return Err(MetainfoError::Mismatch("piece hashes"));
        }
        let Some(leaves) = &self.leaves else { return Ok(()) };
        let whole =
            leaves.len() == geometry.block_count() as usize && leaves.len() <= LEAVES_MAX as usize;
        let is_true = |(piece, hash): (u32, &Hash)| {
            let blocks = geometry.blocks_of(piece);
            let leaves = leaves[blocks.start as usize..blocks.end as usize].iter().copied();
            subtree_root(leaves, 0, geometry.piece_height()) == *hash
        };
        if !whole || !(0..).zip(&self.layer).all(is_true) {
            return Err(MetainfoError::Mismatch("leaves"));
        }
        Ok(())
    }
}

/// Metainfo of one file. Whoever holds one knows that its parts belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo {
    name: String,
    geometry: Geometry,
    pieces: Option<Vec<Sha1Hash>>,
    tree: Option<Tree>,
    attributes: Option<Attributes>,
    trackers: Vec<String>,
    /// The info dictionary as it is encoded: what the info hashes are of. It may hold more than
    /// the fields above.
    info: Vec<u8>,
}

impl Metainfo {
    /// Version 2 of the file that `manifest` describes, with its piece layer, and its leaves where
    /// they are to be in it.
    pub fn of_manifest(
        manifest: &Manifest,
        layer: Vec<Hash>,
        leaves: Option<Vec<Hash>>,
    ) -> Result<Self, MetainfoError> {
        check_file_name(manifest.name.as_bytes())?;
        let tree = Tree { root: manifest.root, layer, leaves };
        tree.check(&manifest.geometry)?;
        Ok(Self {
            name: manifest.name.clone(),
            geometry: manifest.geometry,
            pieces: None,
            tree: Some(tree),
            attributes: Some(Attributes { mode: manifest.mode, mtime_ms: manifest.mtime_ms }),
            trackers: Vec::new(),
            info: info_v2(manifest),
        })
    }

    /// Version 1 of a file of this name and geometry with the SHA-1 hashes of its pieces.
    pub fn of_pieces(
        name: &str,
        geometry: Geometry,
        pieces: Vec<Sha1Hash>,
        trackers: Vec<String>,
    ) -> Result<Self, MetainfoError> {
        check_file_name(name.as_bytes())?;
        check_trackers(&trackers)?;
        if geometry.size_bytes() == 0 {
            return Err(MetainfoError::Empty);
        }
        if pieces.len() != geometry.piece_count() as usize {
            let hashes = pieces.len() * SHA1_BYTES;
            return Err(MetainfoError::Pieces { hashes, pieces: geometry.piece_count() });
        }
        Ok(Self {
            name: name.to_owned(),
            geometry,
            info: info_v1(name, &geometry, &pieces),
            pieces: Some(pieces),
            tree: None,
            attributes: None,
            trackers,
        })
    }

    /// The metainfo that `bytes` are.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetainfoError> {
        decode::decode(bytes)
    }

    /// The bytes of a `.torrent` file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_dict(&mut out, |out| {
            if let Some(first) = self.trackers.first() {
                put_bytes(out, "announce");
                put_bytes(out, first);
            }
            if self.trackers.len() > 1 {
                put_bytes(out, "announce-list");
                put_list(out, |out| {
                    for tracker in &self.trackers {
                        put_list(out, |out| put_bytes(out, tracker));
                    }
                });
            }
            put_bytes(out, "info");
            out.extend_from_slice(&self.info);
            let Some(tree) = &self.tree else { return };
            put_bytes(out, "piece layers");
            put_dict(out, |out| {
                // BEP 52: files of one piece have no layer; their root is in the info dictionary.
                if !self.geometry.is_single_piece() {
                    put_bytes(out, tree.root);
                    put_bytes(out, tree.layer.as_flattened());
                }
            });
            if let Some(leaves) = &tree.leaves {
                put_bytes(out, "skein leaves");
                put_bytes(out, leaves.as_flattened());
            }
        });
        out
    }

    /// The file's name, a single path component.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its division into pieces, the same in both versions.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The SHA-1 hashes of its pieces, of version 1.
    pub fn pieces(&self) -> Option<&[Sha1Hash]> {
        self.pieces.as_deref()
    }

    /// Its tree, of version 2.
    pub fn tree(&self) -> Option<&Tree> {
        self.tree.as_ref()
    }

    /// What it looked like at its source, if Skein wrote this.
    pub fn attributes(&self) -> Option<Attributes> {
        self.attributes
    }

    /// Trackers, in order; their tiers are not kept.
    pub fn trackers(&self) -> &[String] {
        &self.trackers
    }

    /// The manifest of version 2; what nobody recorded is mode 644 and the time 0.
    pub fn manifest(&self) -> Option<Manifest> {
        let root = self.tree.as_ref()?.root;
        let attributes = self.attributes.unwrap_or(Attributes { mode: 0o644, mtime_ms: 0 });
        Some(Manifest {
            geometry: self.geometry,
            root,
            name: self.name.clone(),
            mode: attributes.mode,
            mtime_ms: attributes.mtime_ms,
        })
    }

    /// The info hash of version 1: SHA-1 of the info dictionary.
    pub fn info_hash_v1(&self) -> Option<Sha1Hash> {
        self.pieces.as_ref().map(|_| sha1(&self.info))
    }

    /// The info hash of version 2: SHA-256 of the info dictionary.
    pub fn info_hash_v2(&self) -> Option<Hash> {
        // A leaf is the SHA-256 of bytes.
        self.tree.as_ref().map(|_| leaf(&self.info))
    }
}

fn check_trackers(trackers: &[String]) -> Result<(), MetainfoError> {
    let legal = |tracker: &String| (1..=TRACKER_BYTES_MAX).contains(&tracker.len());
    let legal = trackers.len() <= TRACKERS_MAX && trackers.iter().all(legal);
    legal.then_some(()).ok_or(MetainfoError::Trackers)
}

fn info_v1(name: &str, geometry: &Geometry, pieces: &[Sha1Hash]) -> Vec<u8> {
    let mut out = Vec::new();
    put_dict(&mut out, |out| {
        put_bytes(out, "length");
        put_number(out, geometry.size_bytes());
        put_bytes(out, "name");
        put_bytes(out, name);
        put_bytes(out, "piece length");
        put_number(out, geometry.piece_bytes());
        put_bytes(out, "pieces");
        put_bytes(out, pieces.as_flattened());
    });
    out
}

fn info_v2(manifest: &Manifest) -> Vec<u8> {
    let (name, geometry) = (&manifest.name, &manifest.geometry);
    let mut out = Vec::new();
    put_dict(&mut out, |out| {
        put_bytes(out, "file tree");
        put_dict(out, |out| {
            put_bytes(out, name);
            put_dict(out, |out| {
                put_bytes(out, "");
                put_dict(out, |out| {
                    put_bytes(out, "length");
                    put_number(out, geometry.size_bytes());
                    if geometry.size_bytes() > 0 {
                        put_bytes(out, "pieces root");
                        put_bytes(out, manifest.root);
                    }
                });
            });
        });
        put_bytes(out, "meta version");
        put_number(out, 2);
        put_bytes(out, "name");
        put_bytes(out, name);
        put_bytes(out, "piece length");
        put_number(out, geometry.piece_bytes());
        put_bytes(out, "skein");
        put_dict(out, |out| {
            put_bytes(out, "mode");
            put_number(out, manifest.mode);
            put_bytes(out, "mtime ms");
            put_number(out, manifest.mtime_ms);
        });
    });
    out
}

#[cfg(test)]
mod tests;
