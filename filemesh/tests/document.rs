//! `docs/filemesh.md` describes what the code does: this fails when a limit or a format changes and
//! the page does not.

use skein_filemesh::core::geometry::{BLOCK_BYTES, PIECE_BYTES_MAX, PIECE_BYTES_MIN, PIECES_MAX};
use skein_filemesh::core::hashes::LEAF_HASHES_MAX;
use skein_filemesh::core::leecher::{SILENCE_MS, STALL_MS};
use skein_filemesh::core::link::{KEEP_ALIVE_MS, OUT_BYTES_MAX, REQUESTS_MAX};
use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::metainfo::{
    LEAVES_MAX, METAINFO_BYTES_MAX, NESTING_MAX, TRACKER_BYTES_MAX, TRACKERS_MAX,
};
use skein_filemesh::core::pace::WINDOW_BYTES_MAX;
use skein_filemesh::core::peer_wire::{
    BlockRange, EXTENDED_BYTES_MAX, HASHES_MAX, Handshake, HashRange, MESSAGE_BYTES_MAX, Message,
    REQUEST_BYTES_MAX,
};
use skein_filemesh::core::plan::{NEIGHBOURS_MAX, STRIPES_MAX};
use skein_filemesh::core::planner::{INLINE_BYTES_MAX, PlannerSettings};
use skein_filemesh::core::swarm::extension::{HANDSHAKE, SKEIN_ID, Take};
use skein_filemesh::core::swarm::{
    BEHIND_MS, PATIENCE_MS_MIN, PATIENCE_PIECES, RETRY_MS_MAX, WAITING_MS,
};
use skein_filemesh::core::tree::codec::encode;
use skein_filemesh::core::tree::layout::LARGE_BYTES;
use skein_filemesh::core::tree::listing::{
    DEPTH_MAX, ENTRIES_MAX, EXTENTS_MAX, Kind, LISTING_BYTES_MAX, ListingBuilder, Meta, OWNERS_MAX,
    OwnerNames, PATH_BYTES_MAX,
};
use skein_filemesh::core::upload::HASH_QUEUE_MAX;
use skein_filemesh::engine::memory::{MEMORY_BYTES, SLAB_BYTES};
use skein_filemesh::engine::queue::DEPTH;
use skein_filemesh::engine::recent::RECENT_BYTES;

const DOCUMENT: &str = include_str!("../../docs/filemesh.md");

#[test]
fn the_document_states_the_limits() {
    let limits = [
        ("BLOCK_BYTES", u64::from(BLOCK_BYTES)),
        ("PIECE_BYTES_MIN", PIECE_BYTES_MIN.into()),
        ("PIECE_BYTES_MAX", PIECE_BYTES_MAX.into()),
        ("PIECES_MAX", PIECES_MAX.into()),
        ("REQUEST_BYTES_MAX", REQUEST_BYTES_MAX.into()),
        ("HASHES_MAX", HASHES_MAX.into()),
        ("EXTENDED_BYTES_MAX", EXTENDED_BYTES_MAX as u64),
        ("MESSAGE_BYTES_MAX", MESSAGE_BYTES_MAX as u64),
        ("REQUESTS_MAX", REQUESTS_MAX as u64),
        ("HASH_QUEUE_MAX", HASH_QUEUE_MAX as u64),
        ("OUT_BYTES_MAX", OUT_BYTES_MAX as u64),
        ("LEAF_HASHES_MAX", LEAF_HASHES_MAX as u64),
        ("WINDOW_BYTES_MAX", WINDOW_BYTES_MAX),
        ("KEEP_ALIVE_MS", KEEP_ALIVE_MS),
        ("STALL_MS", STALL_MS),
        ("SILENCE_MS", SILENCE_MS),
        ("STRIPES_MAX", STRIPES_MAX.into()),
        ("NEIGHBOURS_MAX", NEIGHBOURS_MAX as u64),
        ("INLINE_BYTES_MAX", INLINE_BYTES_MAX),
        ("ENTRIES_MAX", ENTRIES_MAX.into()),
        ("EXTENTS_MAX", EXTENTS_MAX.into()),
        ("DEPTH_MAX", DEPTH_MAX.into()),
        ("PATH_BYTES_MAX", PATH_BYTES_MAX as u64),
        ("OWNERS_MAX", OWNERS_MAX.into()),
        ("LISTING_BYTES_MAX", LISTING_BYTES_MAX.into()),
        ("LARGE_BYTES", LARGE_BYTES),
        ("METAINFO_BYTES_MAX", METAINFO_BYTES_MAX as u64),
        ("NESTING_MAX", NESTING_MAX as u64),
        ("LEAVES_MAX", LEAVES_MAX.into()),
        ("TRACKERS_MAX", TRACKERS_MAX as u64),
        ("TRACKER_BYTES_MAX", TRACKER_BYTES_MAX as u64),
        ("SLAB_BYTES", SLAB_BYTES as u64),
        ("MEMORY_BYTES", MEMORY_BYTES as u64),
        ("RECENT_BYTES", RECENT_BYTES as u64),
        ("DEPTH", DEPTH as u64),
        ("PATIENCE_MS_MIN", PATIENCE_MS_MIN),
        ("PATIENCE_PIECES", PATIENCE_PIECES),
        ("WAITING_MS", WAITING_MS),
        ("BEHIND_MS", BEHIND_MS),
        ("RETRY_MS_MAX", RETRY_MS_MAX),
    ];
    for (name, value) in limits {
        assert!(DOCUMENT.contains(&format!("| `{name}` | {value} |")), "{name} is {value}");
    }
}

#[test]
fn the_document_states_what_the_planner_reckons_with() {
    let settings = PlannerSettings::default();
    for (name, value) in [
        ("inline_bytes_max", settings.inline_bytes_max as f64),
        ("default_bytes_s", settings.default_bytes_s as f64),
        ("default_rtt_ms", settings.default_rtt_ms),
        ("hash_bytes_s", settings.hash_bytes_s as f64),
        ("start_ms", settings.start_ms),
        ("session_rtts", settings.session_rtts),
        ("inline_ms", settings.inline_ms),
        ("host_ms", settings.host_ms),
        ("inline_host_ms", settings.inline_host_ms),
        ("commit_ms", settings.commit_ms),
        ("planned_ms", settings.planned_ms),
        ("mesh_ms", settings.mesh_ms),
        ("planned_share", settings.planned_share),
        ("mesh_share", settings.mesh_share),
        ("mesh_border_copies", settings.mesh_border_copies),
        ("slow_share", settings.slow_share),
        ("drift_share", settings.drift_share),
    ] {
        assert!(DOCUMENT.contains(&format!("| `{name}` | {value} |")), "{name} is {value}");
    }
}

#[test]
fn the_document_states_the_piece_sizes() {
    for (file, size, hosts, count, piece) in [
        ("64 MiB", 64 << 20, "1,000", 1_000, "128 KiB"),
        ("1 GiB", 1 << 30, "1", 1, "16 MiB"),
        ("1 GiB", 1 << 30, "10,000", 10_000, "1 MiB"),
        ("50 GiB", 50 << 30, "1,000", 1_000, "16 MiB"),
    ] {
        let kib = choose_piece_bytes(size, count) / 1024;
        let chosen = if kib < 1024 { format!("{kib} KiB") } else { format!("{} MiB", kib / 1024) };
        assert_eq!(chosen, piece);
        let row = format!("| {file}, {hosts} | {piece} |");
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}

/// Each message's bytes, made by hand from the tables.
#[test]
fn messages_are_as_the_tables_say() {
    let bytes = |message: Message<'_>| {
        let mut out = vec![];
        message.encode(&mut out);
        out
    };
    let range = BlockRange { piece: 1, begin: 0x4000, len: 0x8000 };
    let body = [0, 0, 0, 1, 0, 0, 0x40, 0];
    let named = |kind: u8| [&[0, 0, 0, 13, kind][..], &body, &[0, 0, 0x80, 0]].concat();
    assert_eq!(bytes(Message::KeepAlive), [0; 4]);
    for (kind, message) in [
        (0, Message::Choke),
        (1, Message::Unchoke),
        (2, Message::Interested),
        (3, Message::NotInterested),
        (14, Message::HaveAll),
        (15, Message::HaveNone),
    ] {
        assert_eq!(bytes(message), [0, 0, 0, 1, kind]);
    }
    assert_eq!(bytes(Message::Have(7)), [0, 0, 0, 5, 4, 0, 0, 0, 7]);
    assert_eq!(bytes(Message::Bitfield(&[0xa0])), [0, 0, 0, 2, 5, 0xa0]);
    assert_eq!(bytes(Message::Request(range)), named(6));
    assert_eq!(bytes(Message::Cancel(range)), named(8));
    assert_eq!(bytes(Message::Reject(range)), named(16));
    let piece = [&[0, 0, 0x80, 9, 7][..], &body].concat();
    assert_eq!(bytes(Message::Piece(range)), piece);
    assert_eq!(bytes(Message::Extended(3, &[1, 2])), [0, 0, 0, 4, 20, 3, 1, 2]);

    let hashes = HashRange { root: [9; 32], base_layer: 2, index: 4, length: 4, proof_layers: 3 };
    let fields = [&[9; 32][..], &[0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 3]].concat();
    let head = |len: u8, kind: u8| [&[0, 0, 0, len, kind][..], &fields].concat();
    assert_eq!(bytes(Message::HashRequest(hashes)), head(49, 21));
    assert_eq!(bytes(Message::HashReject(hashes)), head(49, 23));
    // Three proof layers above four hashes: the first follows from them, two uncles do not.
    assert_eq!((hashes.uncle_count(), hashes.answer_bytes()), (2, 6 * 32));
    let answer = [head(49 + 192, 22), vec![5; 192]].concat();
    assert_eq!(bytes(Message::Hashes(hashes, &[5; 192])), answer);

    let shake = Handshake::new([1; 20], [2; 20]).encode();
    assert_eq!(shake[..28], *b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\x14");
    assert_eq!(shake[28..], [[1; 20], [2; 20]].concat());
}

/// A listing's bytes, made by hand from the tables.
#[test]
fn a_listing_is_as_the_tables_say() {
    let mut builder = ListingBuilder::default();
    let owner = OwnerNames { user: b"www".to_vec(), group: vec![] };
    let owner = builder.push_owner(owner).unwrap();
    let meta = Meta { mode: 0o755, owner, mtime_ns: -2 };
    let extents = [1..3, 5..6];
    for (depth, name, kind) in [
        (0, &b""[..], Kind::Directory),
        (1, b"d", Kind::Directory),
        (2, b"f", Kind::File { size_bytes: 258 }),
        (2, b"h", Kind::HardLink(2)),
        (1, b"l", Kind::Symlink(b"x")),
        (1, b"s", Kind::Sparse { size_bytes: 9, extents: &extents }),
    ] {
        builder.push(depth, name, meta, kind).unwrap();
    }
    let bytes = encode(&builder.finish().unwrap());
    let entry = |kind: u8, depth: u8, name: &[u8], more: &[u8]| {
        let fixed = [0x01, 0xed, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe];
        [&[kind, depth][..], &fixed, &[name.len() as u8], name, more].concat()
    };
    let long = |number: u8| [0, 0, 0, 0, 0, 0, 0, number];
    let extents = [long(1), long(2), long(5), long(1)].concat();
    let body = [
        &b"\x03www\0"[..],
        &entry(1, 0, b"", &[]),
        &entry(1, 1, b"d", &[]),
        &entry(2, 2, b"f", &[0, 0, 0, 0, 0, 0, 1, 2]),
        &entry(5, 2, b"h", &[0, 0, 0, 2]),
        &entry(4, 1, b"l", &[0, 1, b'x']),
        &entry(3, 1, b"s", &[&long(9)[..], &[0, 0, 0, 2], &extents].concat()),
    ]
    .concat();
    assert_eq!(bytes[..8], *b"SKNTREE\0");
    assert_eq!(bytes[8..16], [0, 0, 0, 1, 0, 0, 0, 6]);
    assert_eq!(bytes[16..20], (28 + body.len() as u32).to_be_bytes());
    assert_eq!(bytes[20..24], [0, 1, 0, 0]);
    assert_eq!(bytes[24..28], crc32c::crc32c(&body).to_be_bytes());
    assert_eq!(bytes[28..], body);
}

#[test]
fn the_extension_is_as_the_page_says() {
    assert_eq!(HANDSHAKE, b"d1:md5:skeini1eee");
    assert!(DOCUMENT.contains("`d1:md5:skeini1eee`"));
    assert_eq!(SKEIN_ID, 1);
    let take = Take { plan: 7, stripes: 4, mask: 0b1010 };
    assert_eq!(take.encode(), [0, 0, 0, 0, 7, 0, 4, 0, 0, 0, 0, 0, 0, 0, 10]);
    for row in ["| 0 | 1 | 0, TAKE |", "| 1 | 4 | plan number;", "| 5 | 2 | stripes"] {
        assert!(DOCUMENT.contains(row), "{row}");
    }
}
