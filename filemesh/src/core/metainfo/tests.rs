//! Metainfo against the BEPs, against damage, and against itself.

use super::*;
use crate::core::manifest::MODE_TRAVELS;
use crate::core::merkle::tests::bytes;
use crate::core::merkle::{BuiltTree, TreeBuilder};
use proptest::prelude::*;
use std::ops::Range;

/// Both versions' hashes of a file.
struct Hashed {
    tree: BuiltTree,
    leaves: Vec<Hash>,
    pieces: Vec<Sha1Hash>,
}

fn hashed(data: &[u8], piece_bytes: u32) -> Hashed {
    let mut leaves = vec![];
    let mut builder = TreeBuilder::new(piece_bytes).unwrap();
    builder.update(data, |leaf| leaves.push(leaf));
    let tree = builder.finish(|leaf| leaves.push(leaf)).unwrap();
    let mut hasher = PieceHasher::new(piece_bytes);
    data.chunks(5_000).for_each(|part| hasher.update(part));
    Hashed { tree, leaves, pieces: hasher.finish() }
}

fn manifest(tree: &BuiltTree) -> Manifest {
    Manifest {
        geometry: tree.geometry,
        root: tree.root,
        name: "a file".into(),
        mode: 0o640,
        mtime_ms: -7,
    }
}

fn v2(data: &[u8], piece_bytes: u32, with_leaves: bool) -> Metainfo {
    let Hashed { tree, leaves, .. } = hashed(data, piece_bytes);
    let leaves = with_leaves.then_some(leaves);
    Metainfo::of_manifest(&manifest(&tree), tree.layer, leaves).unwrap()
}

fn v1(data: &[u8], piece_bytes: u32) -> Metainfo {
    let Hashed { tree, pieces, .. } = hashed(data, piece_bytes);
    let trackers = vec!["http://t/a".to_owned(), "udp://t".to_owned()];
    Metainfo::of_pieces("a file", tree.geometry, pieces, trackers).unwrap()
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| if byte.is_ascii_graphic() { *byte as char } else { '.' }).collect()
}

/// `d4:infod6:lengthi3e...` with this in the place of the info dictionary.
fn with_info(info: &[u8]) -> Vec<u8> {
    [b"d4:info", info, b"e"].concat()
}

#[test]
fn version_1_is_written_as_bep_3_says() {
    let metainfo = v1(b"abc", 16_384);
    // sha1sum of "abc": a9993e364706816aba3e25717850c26c9cd0d89d.
    let expected = "d8:announce10:http://t/a13:announce-listll10:http://t/ael7:udp://tee4:infod\
                    6:lengthi3e4:name6:a.file12:piece.lengthi16384e6:pieces20:";
    let encoded = metainfo.encode();
    assert!(text(&encoded).starts_with(expected), "{}", text(&encoded));
    let hash = [0xa9, 0x99, 0x3e, 0x36, 0x47, 0x06, 0x81, 0x6a, 0xba, 0x3e];
    assert_eq!(metainfo.pieces().unwrap()[0][..10], hash);
    let info = encoded.windows(7).position(|at| at == b"4:infod").unwrap() + 6;
    assert_eq!(metainfo.info_hash_v1(), Some(sha1(&encoded[info..encoded.len() - 1])));
    assert_eq!((metainfo.info_hash_v2(), metainfo.manifest()), (None, None));
}

#[test]
fn version_2_is_written_as_bep_52_says() {
    let metainfo = v2(b"abc", 16_384, false);
    let encoded = metainfo.encode();
    let text = text(&encoded);
    let start = "d4:infod9:file.treed6:a.filed0:d6:lengthi3e11:pieces.root32:";
    let end = "eee12:meta.versioni2e4:name6:a.file12:piece.lengthi16384e\
               5:skeind4:modei416e8:mtime.msi-7eee12:piece.layersdee";
    assert!(text.starts_with(start) && text.ends_with(end), "{text}");
    assert_eq!(metainfo.info_hash_v1(), None);
    let info = &encoded[7..encoded.len() - b"12:piece layersdee".len()];
    assert_eq!(metainfo.info_hash_v2(), Some(leaf(info)));
    // Files of several pieces have their layer beside the info dictionary.
    let large = v2(&bytes(40_000, 1), 16_384, true);
    let layer = large.tree().unwrap().layer.as_flattened();
    let expected = [b"32:", &large.tree().unwrap().root[..], b"96:", layer].concat();
    assert!(large.encode().windows(expected.len()).any(|part| part == expected));
    // An empty file has no root.
    assert!(!v2(b"", 16_384, false).encode().windows(11).any(|part| part == b"pieces root"));
}

#[test]
fn what_others_add_is_kept_in_the_info_hash() {
    let info = b"d6:lengthi3e4:name1:a12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaa\
                 7:privatei1ee";
    let metainfo = Metainfo::decode(&with_info(info)).unwrap();
    assert_eq!(metainfo.info_hash_v1(), Some(sha1(info)));
    assert_eq!(metainfo.encode(), with_info(info));
}

#[test]
fn both_versions_at_once_must_be_of_one_file() {
    let Hashed { tree, pieces, .. } = hashed(b"abc", 16_384);
    let hybrid = |length: &str| {
        let parts = [
            &b"d9:file treed1:ad0:d6:lengthi3e11:pieces root32:"[..],
            &tree.root,
            b"eee6:lengthi",
            length.as_bytes(),
            b"e12:meta versioni2e4:name1:a12:piece lengthi16384e6:pieces20:",
            &pieces[0],
            b"e",
        ];
        Metainfo::decode(&with_info(&parts.concat()))
    };
    let metainfo = hybrid("3").unwrap();
    assert!(metainfo.info_hash_v1().is_some() && metainfo.info_hash_v2().is_some());
    assert_eq!(metainfo.manifest().unwrap().mode, 0o644);
    assert_eq!(hybrid("4"), Err(MetainfoError::Disagreement));
}

#[test]
fn hostile_metainfo_is_refused() {
    let hash = "20:aaaaaaaaaaaaaaaaaaaa";
    let v1 = |length: &str, name: &str, piece: &str, pieces: &str| {
        format!(
            "d6:lengthi{length}e4:name{}:{name}12:piece lengthi{piece}e6:pieces{pieces}e",
            name.len()
        )
    };
    assert!(Metainfo::decode(&with_info(v1("3", "a", "16384", hash).as_bytes())).is_ok());
    for bad in [
        v1("-3", "a", "16384", hash),
        v1("0", "a", "16384", "0:"),
        v1("16385", "a", "16384", hash),
        v1("99999999999999999999", "a", "16384", hash),
        v1("3", "../a", "16384", hash),
        v1("3", "..", "16384", hash),
        v1("3", "", "16384", hash),
        v1("3", "a\0", "16384", hash),
        v1("3", "a", "0", hash),
        v1("3", "a", "-16384", hash),
        v1("3", "a", "4294967296", hash),
        v1("3", "a", "20000", hash),
        v1("3", "a", "16384", "19:aaaaaaaaaaaaaaaaaaa"),
        v1("3", "a", "16384", "i1e"),
        "d5:filesle4:name1:a12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae".into(),
        "d9:file treed1:ad0:d6:lengthi3eee1:bd0:d6:lengthi3eeee12:meta versioni2e4:name1:a\
         12:piece lengthi16384ee"
            .into(),
        "d9:file treed1:ad1:bd0:d6:lengthi3eeeee12:meta versioni2e4:name1:a\
         12:piece lengthi16384ee"
            .into(),
        "d9:file treed1:ad0:d6:lengthi3eeee12:meta versioni2e4:name1:a12:piece lengthi16384ee"
            .into(),
        "d4:name1:a12:piece lengthi16384ee".into(),
        "de".into(),
    ] {
        assert!(Metainfo::decode(&with_info(bad.as_bytes())).is_err(), "{bad}");
    }
    let large = [&b"d1:a"[..], &vec![b'i'; METAINFO_BYTES_MAX]].concat();
    assert!(matches!(Metainfo::decode(&large), Err(MetainfoError::Large(_))));
    let mut trailing = v2(b"abc", 16_384, false).encode();
    trailing.push(b'e');
    assert!(Metainfo::decode(&trailing).is_err());
    let trackers = vec!["x".to_owned(); TRACKERS_MAX + 1];
    let geometry = Geometry::new(3, 16_384).unwrap();
    assert!(Metainfo::of_pieces("a", geometry, vec![[0; 20]], trackers).is_err());
    let set_id = v2(b"abc", 16_384, false).encode();
    let set_id = String::from_utf8_lossy(&set_id).replace("modei416e", "modei99999e").into_bytes();
    assert!(Metainfo::decode(&set_id).is_err());
}

#[test]
fn hashes_that_do_not_lead_to_the_root_are_refused() {
    let metainfo = v2(&bytes(100_000, 3), 32_768, true);
    let good = metainfo.encode();
    for (key, error) in [
        (&b"12:piece layers"[..], MetainfoError::Mismatch("piece hashes")),
        (b"12:skein leaves", MetainfoError::Mismatch("leaves")),
    ] {
        let at = good.windows(key.len()).position(|part| part == key).unwrap();
        let mut spoilt = good.clone();
        spoilt[at + key.len() + 60] ^= 1;
        assert_eq!(Metainfo::decode(&spoilt), Err(error));
    }
    let Hashed { tree, mut leaves, .. } = hashed(&bytes(100_000, 3), 32_768);
    leaves.pop();
    let parts = Metainfo::of_manifest(&manifest(&tree), tree.layer, Some(leaves));
    assert_eq!(parts, Err(MetainfoError::Mismatch("leaves")));
}

/// The ranges that a check of `data` finds false, from `from` on.
fn false_ranges(metainfo: &Metainfo, data: &[u8], from: u64) -> Vec<Range<u64>> {
    let mut prover = Prover::new(metainfo, from).unwrap();
    let mut found = vec![];
    let start = prover.offset() as usize;
    for part in data[start..].chunks(10_007) {
        prover.update(part, |range| found.push(range));
    }
    assert!(prover.is_done());
    assert_eq!(prover.offset(), data.len() as u64);
    found
}

#[test]
fn a_check_names_the_block_where_leaves_are_known_and_else_the_piece() {
    let mut data = bytes(200_000, 9);
    let all = [v2(&data, 65_536, true), v2(&data, 65_536, false), v1(&data, 65_536)];
    for metainfo in &all {
        assert_eq!(false_ranges(metainfo, &data, 0), []);
    }
    data[70_000] ^= 1;
    data[199_999] ^= 1;
    let (piece, last) = (65_536..131_072, 196_608..200_000);
    let found = all.each_ref().map(|metainfo| false_ranges(metainfo, &data, 0));
    assert_eq!(
        found,
        [[65_536..81_920, last.clone()], [piece.clone(), last.clone()], [piece, last.clone()]]
    );
    // Going on later begins at the unit that holds the place.
    for metainfo in &all {
        assert_eq!(false_ranges(metainfo, &data, 190_000), std::slice::from_ref(&last));
        assert_eq!(false_ranges(metainfo, &data, u64::MAX), []);
    }
    assert_eq!(false_ranges(&v2(b"", 65_536, false), b"", 0), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_encoded_decodes_to_the_same(
        len in 0usize..300_000,
        piece in 14u32..18,
        leaves in any::<bool>(),
        name in "[^/\0]{1,60}",
        mode in 0..=MODE_TRAVELS,
        mtime_ms in any::<i64>(),
        trackers in proptest::collection::btree_set("[ -~]{1,40}", 0..5),
    ) {
        prop_assume!(check_file_name(name.as_bytes()).is_ok());
        let data = bytes(len, len as u64);
        let hashes = hashed(&data, 1 << piece);
        let Hashed { tree, .. } = hashes;
        let manifest = Manifest { name: name.clone(), mode, mtime_ms, ..manifest(&tree) };
        let leaves = leaves.then_some(hashes.leaves);
        let v2 = Metainfo::of_manifest(&manifest, tree.layer, leaves).unwrap();
        prop_assert_eq!(v2.manifest(), Some(manifest));
        prop_assert_eq!(Metainfo::decode(&v2.encode()), Ok(v2));
        if len > 0 {
            let trackers = trackers.into_iter().collect();
            let v1 = Metainfo::of_pieces(&name, tree.geometry, hashes.pieces, trackers).unwrap();
            prop_assert_eq!(Metainfo::decode(&v1.encode()), Ok(v1));
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused(
        mut data in proptest::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        good in any::<bool>(),
    ) {
        if good {
            let mut encoded = v1(b"abc", 16_384).encode();
            let at = at.index(encoded.len());
            encoded.splice(at..at, data);
            data = encoded;
        }
        if let Ok(metainfo) = Metainfo::decode(&data) {
            prop_assert_eq!(Metainfo::decode(&metainfo.encode()), Ok(metainfo));
        }
    }
}
