//! Listings and layouts: what is legal comes back byte for byte, and nothing else is accepted.

use super::codec::{HEADER_BYTES, Header, decode, encode};
use super::layout::{LARGE_BYTES, Layout, Part};
use super::listing::*;
use crate::core::geometry::BLOCK_BYTES;
use crate::core::name::NameError;
use proptest::prelude::*;
use std::ops::Range;
use std::slice::from_ref;

const META: Meta = Meta { mode: 0o644, owner: 0, mtime_ns: -7 };

fn with_root() -> ListingBuilder {
    let mut builder = ListingBuilder::default();
    builder.push(0, b"", META, Kind::Directory).unwrap();
    builder
}

fn file(size_bytes: u64) -> Kind<'static> {
    Kind::File { size_bytes }
}

fn sample() -> Listing {
    let mut builder = with_root();
    let user = OwnerNames { user: b"www".to_vec(), group: vec![] };
    let owner = builder.push_owner(user).unwrap();
    builder.push(1, b"a", META, Kind::Directory).unwrap();
    builder.push(2, b"empty", META, file(0)).unwrap();
    let small = builder.push(2, b"small", Meta { owner, ..META }, file(100)).unwrap();
    builder.push(1, b"a\nb", META, Kind::Symlink(b"./a/small")).unwrap();
    builder.push(1, b"big", META, file(LARGE_BYTES)).unwrap();
    let extents = [4096..8192, 1 << 40..(1 << 40) + 1];
    let sparse = Kind::Sparse { size_bytes: 1 << 41, extents: &extents };
    builder.push(1, b"holes", META, sparse).unwrap();
    builder.push(1, b"same", META, Kind::HardLink(small)).unwrap();
    builder.push(1, b"\xff\xfe", META, file(1)).unwrap();
    builder.finish().unwrap()
}

fn layout_of(listing: &Listing) -> Layout {
    Layout::new(listing, encode(listing).len() as u64).unwrap()
}

#[test]
fn a_listing_is_its_bytes() {
    let listing = sample();
    let bytes = encode(&listing);
    assert_eq!(decode(&bytes).as_ref(), Ok(&listing));
    let header = Header::decode(&bytes).unwrap();
    assert_eq!((header.entries, header.listing_bytes as usize), (9, bytes.len()));
    assert_eq!(listing.path(3), b"a/small");
    assert_eq!((listing.path(0), listing.parent(3), listing.depth(3)), (vec![], 1, 2));
    assert_eq!((listing.subtree_end(0), listing.subtree_end(1), listing.subtree_end(8)), (9, 4, 9));
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "{len} bytes are not a listing");
    }
    for at in 0..bytes.len() {
        let mut torn = bytes.clone();
        torn[at] ^= 0x10;
        assert!(decode(&torn).is_err(), "a flipped bit at {at} is noticed");
    }
}

#[test]
fn hostile_entries_are_refused_and_leave_nothing() {
    let long_target = [b'x'; PATH_BYTES_MAX + 1];
    let overlap = [0..10, 10..20];
    let wraps = [1..u64::MAX, 0..u64::MAX];
    let beyond = [0..5, 90..101];
    let dense = 0..100;
    let empty = 7..7;
    let sparse = |extents| Kind::Sparse { size_bytes: 100, extents };
    let cases: [(u8, &[u8], Meta, Kind<'_>, ListingError); 22] = [
        (0, b"", META, Kind::Directory, ListingError::Root),
        (1, b"", META, file(0), ListingError::Name(2, NameError::Empty)),
        (1, b"..", META, file(0), ListingError::Name(2, NameError::Dots)),
        (1, b"/etc", META, file(0), ListingError::Name(2, NameError::Slash)),
        (1, b"x\0", META, file(0), ListingError::Name(2, NameError::Nul)),
        (1, &[b'x'; 256], META, file(0), ListingError::Name(2, NameError::Long(256))),
        (2, b"x", META, file(0), ListingError::Depth(2)),
        (3, b"x", META, file(0), ListingError::Depth(2)),
        (1, b"m", META, file(0), ListingError::Order(2)),
        (1, b"a", META, Kind::Directory, ListingError::Order(2)),
        (1, b"x", Meta { mode: 0o4755, ..META }, file(0), ListingError::Mode(2)),
        (1, b"x", Meta { owner: 1, ..META }, file(0), ListingError::Owner(2)),
        (1, b"x", META, file(u64::MAX), ListingError::Size(2)),
        (1, b"x", META, sparse(&overlap), ListingError::Extents(2)),
        (1, b"x", META, sparse(&wraps), ListingError::Extents(2)),
        (1, b"x", META, sparse(&beyond), ListingError::Extents(2)),
        (1, b"x", META, sparse(from_ref(&dense)), ListingError::Extents(2)),
        (1, b"x", META, sparse(from_ref(&empty)), ListingError::Extents(2)),
        (1, b"x", META, Kind::Symlink(&long_target), ListingError::Target(2)),
        (1, b"x", META, Kind::Symlink(b"/etc/passwd"), ListingError::Outside(2)),
        (1, b"x", META, Kind::Symlink(b"../x"), ListingError::Outside(2)),
        (1, b"x", META, Kind::HardLink(0), ListingError::HardLink(2)),
    ];
    for (depth, name, meta, kind, error) in cases {
        let mut builder = with_root();
        builder.push(1, b"m", META, file(3)).unwrap();
        assert_eq!(builder.push(depth, name, meta, kind), Err(error), "{name:?}");
        let mut honest = with_root();
        honest.push(1, b"m", META, file(3)).unwrap();
        assert_eq!(builder.finish(), honest.finish());
    }
    assert_eq!(ListingBuilder::default().finish(), Err(ListingError::Root));
    let bad = OwnerNames { user: b"a:b".to_vec(), group: vec![] };
    assert_eq!(with_root().push_owner(bad), Err(ListingError::Owners));
}

#[test]
fn links_stay_within_the_tree() {
    let inside: [(u8, &[u8]); 6] =
        [(1, b"a"), (1, b"./a/b"), (2, b"../a"), (3, b"../../a//b"), (3, b"../.."), (1, b"..a")];
    let outside: [(u8, &[u8]); 6] =
        [(1, b"/a"), (1, b".."), (2, b"../../a"), (2, b"a/../b"), (9, b"../a/.."), (1, b"./../a")];
    for (depth, target) in inside {
        assert!(stays_within(depth, target), "{} at {depth}", target.escape_ascii());
    }
    for (depth, target) in outside {
        assert!(!stays_within(depth, target), "{} at {depth}", target.escape_ascii());
    }
}

#[test]
fn depth_and_paths_are_bounded() {
    let mut builder = with_root();
    for depth in 1..=DEPTH_MAX {
        builder.push(depth, b"d", META, Kind::Directory).unwrap();
    }
    let entry = u32::from(DEPTH_MAX) + 1;
    assert_eq!(builder.push(DEPTH_MAX + 1, b"d", META, file(0)), Err(ListingError::Depth(entry)));
    let mut builder = with_root();
    let name = [b'n'; 255];
    // 16 names of 255 bytes and 15 slashes are 4,095 bytes.
    for depth in 1..=15 {
        builder.push(depth, &name, META, Kind::Directory).unwrap();
    }
    assert_eq!(builder.push(16, &name, META, Kind::Directory), Ok(16));
    assert_eq!(builder.push(17, b"x", META, file(0)), Err(ListingError::Path(17)));
}

#[test]
fn a_header_that_promises_too_much_is_refused_before_the_rest_is_read() {
    let bytes = encode(&sample());
    let spoil = |at: usize, field: u32| {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&field.to_be_bytes());
        Header::decode(&bytes[..HEADER_BYTES])
    };
    assert_eq!(spoil(8, 2), Err(ListingError::Version(2)));
    assert_eq!(spoil(12, ENTRIES_MAX + 1), Err(ListingError::Entries));
    assert_eq!(spoil(12, 100_000), Err(ListingError::Length));
    assert_eq!(spoil(16, LISTING_BYTES_MAX + 1), Err(ListingError::Bytes));
    assert_eq!(spoil(20, 0xffff_0000), Err(ListingError::Owners));
    assert_eq!(spoil(20, 1), Err(ListingError::Kind(0)));
}

#[test]
fn large_extents_begin_on_block_borders_and_small_ones_share_blocks() {
    let listing = sample();
    let layout = layout_of(&listing);
    let block = u64::from(BLOCK_BYTES);
    assert_eq!(layout.stream_range_of(2), 0..0);
    assert_eq!(layout.stream_range_of(3), block..block + 100);
    assert_eq!(layout.stream_range_of(5), 2 * block..2 * block + LARGE_BYTES);
    let behind = 2 * block + LARGE_BYTES;
    assert_eq!(layout.stream_range_of(6), behind..behind + 4097);
    assert_eq!(layout.stream_offset_of(6, 4096), Some(behind));
    assert_eq!(layout.stream_offset_of(6, 8192), None);
    assert_eq!(layout.stream_offset_of(6, 1 << 40), Some(behind + 4096));
    assert_eq!(layout.stream_bytes(), behind + 4098);
    let parts: Vec<_> = layout.parts(block + 90..2 * block + 1).collect();
    let file = |entry, offset, len| Part::File { entry, offset, len };
    assert_eq!(parts, [file(3, 90, 10), Part::Padding(block - 100), file(5, 0, 1)]);
    assert_eq!(layout.parts(layout.stream_bytes()..u64::MAX).next(), None);
}

#[test]
fn an_empty_tree_is_its_listing() {
    let listing = with_root().finish().unwrap();
    let layout = layout_of(&listing);
    assert_eq!(layout.stream_bytes(), layout.listing_bytes());
    let all = 0..layout.listing_bytes();
    assert!(layout.parts(0..u64::MAX).eq([Part::Listing(all)]));
}

#[test]
fn more_content_than_a_transfer_may_have_is_refused() {
    let mut builder = with_root();
    builder.push(1, b"a", META, file(1 << 39)).unwrap();
    builder.push(1, b"b", META, file(1 << 39)).unwrap();
    let listing = builder.finish().unwrap();
    assert_eq!(Layout::new(&listing, 100), Err(ListingError::Content));
}

/// An entry as proptest makes it: how much deeper or higher, a name's letter, and what it is.
fn any_entry() -> impl Strategy<Value = (u8, u8, u8, u64)> {
    let size = prop_oneof![0..5u64, 0..60_000u64, (1u64 << 20)..(1 << 21)];
    (0..4u8, any::<u8>(), 0..8u8, size)
}

fn any_listing() -> impl Strategy<Value = Listing> {
    proptest::collection::vec(any_entry(), 0..60).prop_map(|entries| {
        let mut builder = with_root();
        let mut depth = 1u8;
        let mut files = vec![];
        for (number, (climb, letter, kind, size)) in entries.into_iter().enumerate() {
            depth = u8::max(1, depth.saturating_sub(climb % 3));
            // Numbers grow, so names are in order wherever they stand.
            let (high, low) = (b'a' + (number / 26) as u8, b'a' + (number % 26) as u8);
            let name = [high, low, if matches!(letter, 0 | b'/') { b'-' } else { letter }];
            let extents = [size / 4..size / 2 + 1, size + 70_000..size * 2 + 70_001];
            let kind = match kind {
                0 | 1 => Kind::Directory,
                2 => Kind::Symlink(b"anything"),
                3 => Kind::Sparse { size_bytes: size * 2 + 70_001, extents: &extents },
                4 => files.first().map_or(file(size), |of| Kind::HardLink(*of)),
                _ => file(size),
            };
            let meta = Meta { mode: u16::from(letter), ..META };
            let entry = builder.push(depth, &name, meta, kind).unwrap();
            match kind {
                Kind::Directory => depth += 1,
                Kind::File { .. } | Kind::Sparse { .. } => files.push(entry),
                _ => {}
            }
        }
        builder.finish().unwrap()
    })
}

/// The ranges of a file that travel.
fn data_of(kind: Kind<'_>) -> Vec<Range<u64>> {
    match kind {
        Kind::File { size_bytes: 0 } => vec![],
        Kind::File { size_bytes } => std::iter::once(0..size_bytes).collect(),
        Kind::Sparse { extents, .. } => extents.to_vec(),
        _ => vec![],
    }
}

proptest! {
    #[test]
    fn every_listing_comes_back(listing in any_listing()) {
        prop_assert_eq!(decode(&encode(&listing)), Ok(listing));
    }

    #[test]
    fn every_byte_of_every_file_is_in_the_stream_once(listing in any_listing()) {
        let layout = layout_of(&listing);
        let mut found = vec![vec![]; listing.len() as usize];
        let mut at = 0;
        for part in layout.parts(0..u64::MAX) {
            match &part {
                Part::Listing(range) => prop_assert_eq!(range.clone(), 0..layout.listing_bytes()),
                Part::Padding(len) => prop_assert!(*len < u64::from(BLOCK_BYTES)),
                Part::File { entry, offset, len } => {
                    if *len >= LARGE_BYTES {
                        prop_assert!(at % u64::from(BLOCK_BYTES) == 0);
                    }
                    found[*entry as usize].push(*offset..offset + len);
                    prop_assert_eq!(layout.stream_offset_of(*entry, *offset), Some(at));
                    prop_assert_eq!(layout.stream_offset_of(*entry, offset + len - 1), Some(at + len - 1));
                }
            }
            at += part.len();
        }
        prop_assert_eq!(at, layout.stream_bytes());
        for entry in 0..listing.len() {
            prop_assert_eq!(&found[entry as usize], &data_of(listing.kind(entry)));
        }
    }

    #[test]
    fn a_range_cut_in_two_is_the_same_bytes(
        listing in any_listing(), start in any::<u64>(), cut in any::<u64>(), end in any::<u64>(),
    ) {
        let layout = layout_of(&listing);
        let mut cuts = [start, cut, end].map(|at| at % (layout.stream_bytes() + 1));
        cuts.sort_unstable();
        let [start, cut, end] = cuts;
        let bytes = |range: Range<u64>| -> u64 { layout.parts(range).map(|part| part.len()).sum() };
        prop_assert_eq!(bytes(start..end), end - start);
        prop_assert_eq!(bytes(start..cut) + bytes(cut..end), end - start);
        let whole: Vec<_> = layout.parts(start..end).collect();
        let mut joined: Vec<Part> = vec![];
        for part in layout.parts(start..cut).chain(layout.parts(cut..end)) {
            match (joined.last_mut(), part) {
                (Some(Part::File { entry, offset, len }), Part::File { entry: next, offset: at, len: more })
                    if *entry == next && *offset + *len == at => *len += more,
                (Some(Part::Padding(len)), Part::Padding(more)) => *len += more,
                (Some(Part::Listing(range)), Part::Listing(more)) => range.end = more.end,
                (_, part) => joined.push(part),
            }
        }
        prop_assert_eq!(joined, whole);
    }
}
