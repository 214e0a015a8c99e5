//! From hostile bytes to [`Metainfo`]: every field is bounded before it is kept, every hash is
//! checked against the one that covers it.

use super::bencode::{Value, each_item, each_pair};
use super::{
    Attributes, METAINFO_BYTES_MAX, Metainfo, MetainfoError, SHA1_BYTES, Sha1Hash, TRACKERS_MAX,
    Tree, check_trackers,
};
use crate::core::geometry::Geometry;
use crate::core::manifest::{MODE_MASK, MODE_TRAVELS, ManifestError};
use crate::core::merkle::{HASH_BYTES, Hash, PADDING_LEAF, hashes_in};
use crate::core::name::check_file_name;

/// The info dictionary's fields that are understood.
#[derive(Default)]
struct Info<'a> {
    raw: &'a [u8],
    name: Option<&'a [u8]>,
    piece_bytes: Option<u32>,
    length: Option<u64>,
    pieces: Option<&'a [u8]>,
    meta_version: Option<u64>,
    file_tree: Option<&'a [u8]>,
    attributes: Option<Attributes>,
    has_files: bool,
}

/// One file of a `file tree`.
struct TreeFile<'a> {
    name: &'a [u8],
    length: u64,
    root: Option<Hash>,
}

pub(super) fn decode(bytes: &[u8]) -> Result<Metainfo, MetainfoError> {
    if bytes.len() > METAINFO_BYTES_MAX {
        return Err(MetainfoError::Large(bytes.len()));
    }
    let (mut announce, mut tiers) = (None, None);
    let (mut info, mut layers, mut leaves) = (None, None, None);
    each_pair(bytes, |key, value| {
        match key {
            b"announce" => announce = Some(value.bytes("announce")?),
            b"announce-list" => tiers = Some(value.list("announce-list")?),
            b"info" => info = Some(read_info(value.dict("info")?)?),
            b"piece layers" => layers = Some(value.dict("piece layers")?),
            b"skein leaves" => leaves = Some(value.bytes("skein leaves")?),
            _ => {}
        }
        Ok(())
    })?;
    let info = info.ok_or(MetainfoError::Field("info"))?;
    if info.has_files {
        return Err(MetainfoError::Directory);
    }
    let name = info.name.and_then(|name| str::from_utf8(name).ok());
    let name = name.ok_or(MetainfoError::Field("name"))?;
    check_file_name(name.as_bytes())?;
    let file = match info.file_tree {
        Some(raw) if info.meta_version == Some(2) => Some(only_file(raw)?),
        _ => None,
    };
    let size_bytes = match (&file, info.pieces.is_some()) {
        (None, false) => return Err(MetainfoError::Version),
        (Some(file), false) => file.length,
        (None, true) => info.length.ok_or(MetainfoError::Field("length"))?,
        (Some(file), true) => {
            let length = info.length.ok_or(MetainfoError::Field("length"))?;
            if length != file.length || file.name != name.as_bytes() {
                return Err(MetainfoError::Disagreement);
            }
            length
        }
    };
    let piece_bytes = info.piece_bytes.ok_or(MetainfoError::Field("piece length"))?;
    let geometry = Geometry::new(size_bytes, piece_bytes)?;
    let tree = file.map(|file| tree_of(&geometry, &file, layers, leaves)).transpose()?;
    Ok(Metainfo {
        name: name.to_owned(),
        geometry,
        pieces: info.pieces.map(|hashes| pieces_of(&geometry, hashes)).transpose()?,
        tree,
        attributes: info.attributes,
        trackers: trackers_of(announce, tiers)?,
        info: info.raw.to_vec(),
    })
}

fn read_info(raw: &[u8]) -> Result<Info<'_>, MetainfoError> {
    let mut info = Info { raw, ..Info::default() };
    each_pair(raw, |key, value| {
        match key {
            b"file tree" => info.file_tree = Some(value.dict("file tree")?),
            b"files" => info.has_files = true,
            b"length" => info.length = Some(value.number("length")?),
            b"meta version" => info.meta_version = Some(value.number("meta version")?),
            b"name" => info.name = Some(value.bytes("name")?),
            b"piece length" => info.piece_bytes = Some(value.number("piece length")?),
            b"pieces" => info.pieces = Some(value.bytes("pieces")?),
            b"skein" => info.attributes = Some(attributes_of(value.dict("skein")?)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(info)
}

fn attributes_of(raw: &[u8]) -> Result<Attributes, MetainfoError> {
    let (mut mode, mut mtime_ms) = (None, None);
    each_pair(raw, |key, value| {
        match key {
            b"mode" => mode = Some(value.number::<u32>("mode")?),
            b"mtime ms" => mtime_ms = Some(value.number("mtime ms")?),
            _ => {}
        }
        Ok(())
    })?;
    let mode = mode.ok_or(MetainfoError::Field("mode"))?;
    if mode & !MODE_MASK != 0 {
        return Err(ManifestError::Mode(mode).into());
    }
    let mtime_ms = mtime_ms.ok_or(MetainfoError::Field("mtime ms"))?;
    Ok(Attributes { mode: mode & MODE_TRAVELS, mtime_ms })
}

/// The one file that a `file tree` must be: `{name: {"": {length, pieces root}}}`.
fn only_file(raw: &[u8]) -> Result<TreeFile<'_>, MetainfoError> {
    let mut found = None;
    each_pair(raw, |name, value| {
        if found.is_some() {
            return Err(MetainfoError::Directory);
        }
        each_pair(value.dict("file tree")?, |key, value| {
            if !key.is_empty() {
                return Err(MetainfoError::Directory);
            }
            let (mut length, mut root) = (None, None);
            each_pair(value.dict("file tree")?, |key, value| {
                match key {
                    b"length" => length = Some(value.number("length")?),
                    b"pieces root" => root = Some(root_of(value)?),
                    _ => {}
                }
                Ok(())
            })?;
            let length = length.ok_or(MetainfoError::Field("length"))?;
            found = Some(TreeFile { name, length, root });
            Ok(())
        })
    })?;
    found.ok_or(MetainfoError::Field("file tree"))
}

fn root_of(value: Value<'_>) -> Result<Hash, MetainfoError> {
    let bytes = value.bytes("pieces root")?;
    Hash::try_from(bytes).map_err(|_| MetainfoError::Field("pieces root"))
}

fn tree_of(
    geometry: &Geometry,
    file: &TreeFile<'_>,
    layers: Option<&[u8]>,
    leaves: Option<&[u8]>,
) -> Result<Tree, MetainfoError> {
    let root = match (file.root, geometry.size_bytes()) {
        (None, 0) => PADDING_LEAF,
        (Some(root), 1..) => root,
        _ => return Err(MetainfoError::Field("pieces root")),
    };
    let layer = if geometry.size_bytes() == 0 {
        vec![]
    } else if geometry.is_single_piece() {
        vec![root]
    } else {
        let mut found = None;
        each_pair(layers.ok_or(MetainfoError::Field("piece layers"))?, |key, value| {
            if key == root {
                found = Some(value.bytes("piece layers")?);
            }
            Ok(())
        })?;
        hashes_of(found.ok_or(MetainfoError::Field("piece layers"))?, "piece hashes")?
    };
    let leaves = leaves.map(|leaves| hashes_of(leaves, "leaves")).transpose()?;
    let tree = Tree { root, layer, leaves };
    tree.check(geometry)?;
    Ok(tree)
}

fn hashes_of(bytes: &[u8], what: &'static str) -> Result<Vec<Hash>, MetainfoError> {
    let whole = bytes.len().is_multiple_of(HASH_BYTES);
    whole.then(|| hashes_in(bytes).collect()).ok_or(MetainfoError::Mismatch(what))
}

fn pieces_of(geometry: &Geometry, hashes: &[u8]) -> Result<Vec<Sha1Hash>, MetainfoError> {
    let (whole, rest) = hashes.as_chunks::<SHA1_BYTES>();
    let pieces = geometry.piece_count();
    if pieces == 0 {
        return Err(MetainfoError::Empty);
    }
    if !rest.is_empty() || whole.len() != pieces as usize {
        return Err(MetainfoError::Pieces { hashes: hashes.len(), pieces });
    }
    Ok(whole.to_vec())
}

/// All trackers, each once. BEP 12: where there is a list, `announce` alone is for old clients.
fn trackers_of(
    announce: Option<&[u8]>,
    tiers: Option<&[u8]>,
) -> Result<Vec<String>, MetainfoError> {
    let mut trackers: Vec<String> = Vec::new();
    let mut add = |bytes: &[u8]| {
        let text = str::from_utf8(bytes).map_err(|_| MetainfoError::Trackers)?;
        if !trackers.iter().any(|known| known == text) {
            if trackers.len() == TRACKERS_MAX {
                return Err(MetainfoError::Trackers);
            }
            trackers.push(text.to_owned());
        }
        Ok(())
    };
    announce.into_iter().try_for_each(&mut add)?;
    if let Some(tiers) = tiers {
        each_item(tiers, |tier| {
            each_item(tier.list("announce-list")?, |item| add(item.bytes("announce-list")?))
        })?;
    }
    check_trackers(&trackers)?;
    Ok(trackers)
}
