//! Round trips, garbage and limits of the peer wire.

use super::*;
use proptest::prelude::*;

fn block_range() -> impl Strategy<Value = BlockRange> {
    (any::<u32>(), any::<u32>(), 1..=REQUEST_BYTES_MAX).prop_map(|(piece, begin, len)| BlockRange {
        piece,
        begin,
        len,
    })
}

fn hash_range() -> impl Strategy<Value = HashRange> {
    (any::<[u8; 32]>(), 0..UNCLES_MAX, 0u32..1 << 20, 1u32..=10, 0..=UNCLES_MAX).prop_map(
        |(root, base_layer, at, log, proof_layers)| HashRange {
            root,
            base_layer,
            index: at << log,
            length: 1 << log,
            proof_layers,
        },
    )
}

/// Messages without borrowed parts, and a body for those that borrow.
fn message() -> impl Strategy<Value = (u8, BlockRange, HashRange, Vec<u8>)> {
    (0u8..21, block_range(), hash_range(), proptest::collection::vec(any::<u8>(), 1..200))
}

fn build<'a>(
    which: u8,
    block: BlockRange,
    range: HashRange,
    bytes: &'a [u8],
    hashes: &'a [u8],
) -> Message<'a> {
    match which {
        0 => Message::KeepAlive,
        1 => Message::Choke,
        2 => Message::Unchoke,
        3 => Message::Interested,
        4 => Message::NotInterested,
        5 => Message::Have(block.piece),
        6 => Message::Bitfield(bytes),
        7 => Message::Request(block),
        8 => Message::Piece(block),
        9 => Message::Cancel(block),
        10 => Message::Port(block.begin as u16),
        11 => Message::Suggest(block.piece),
        12 => Message::HaveAll,
        13 => Message::HaveNone,
        14 => Message::Reject(block),
        15 => Message::AllowedFast(block.piece),
        16 => Message::Extended(bytes[0], &bytes[1..]),
        17 => Message::HashRequest(range),
        18 => Message::Hashes(range, hashes),
        19 => Message::HashReject(range),
        _ => Message::Unknown(200),
    }
}

proptest! {
    #[test]
    fn messages_survive_the_wire((which, block, range, bytes) in message()) {
        let hashes = vec![9; range.answer_bytes()];
        let message = build(which, block, range, &bytes, &hashes);
        let mut wire = vec![];
        message.encode(&mut wire);
        for short in 0..wire.len() {
            prop_assert_eq!(decode(&wire[..short]).unwrap(), None);
        }
        prop_assert_eq!(decode(&wire).unwrap(), Some((message, wire.len())));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = Handshake::decode(&bytes);
        let mut rest = &bytes[..];
        while let Ok(Some((_, used))) = decode(rest) {
            prop_assert!(used > 0);
            rest = &rest[used..];
        }
    }

    #[test]
    fn small_lengths_and_known_types_never_panic(
        len in 0u32..300, kind in 0u8..26, body in proptest::collection::vec(any::<u8>(), 300),
    ) {
        let mut wire = len.to_be_bytes().to_vec();
        wire.push(kind);
        wire.extend(body);
        if let Ok(Some((_, used))) = decode(&wire) {
            prop_assert!(used <= wire.len());
        }
    }
}

#[test]
fn lengths_are_judged_from_five_bytes() {
    for (len, kind) in [
        (u32::MAX, kind::PIECE),
        (9, kind::PIECE),
        (10 + REQUEST_BYTES_MAX, kind::PIECE),
        (2, kind::CHOKE),
        (14, kind::REQUEST),
        (2 + PIECES_MAX / 8, kind::BITFIELD),
        (1 << 20, kind::HASHES),
        (1 << 20, kind::EXTENDED),
        (1 << 20, 250),
    ] {
        let mut wire = len.to_be_bytes().to_vec();
        wire.push(kind);
        assert_eq!(decode(&wire), Err(WireError::Length { kind, len }));
    }
}

#[test]
fn illegal_ranges_are_refused() {
    let range = HashRange { root: [0; 32], base_layer: 0, index: 0, length: 2, proof_layers: 0 };
    for bad in [
        HashRange { length: 0, ..range },
        HashRange { length: 1, ..range },
        HashRange { length: 3, ..range },
        HashRange { length: 2_048, ..range },
        HashRange { index: 1, ..range },
        HashRange { index: u32::MAX - 1, ..range },
        HashRange { base_layer: 32, ..range },
        HashRange { proof_layers: 33, ..range },
    ] {
        let mut wire = vec![];
        put_hashes_message(&mut wire, &bad);
        assert!(matches!(decode(&wire), Err(WireError::HashRange { .. })), "{bad:?}");
    }
    for len in [0, REQUEST_BYTES_MAX + 1] {
        let mut wire = vec![];
        Message::Request(BlockRange { piece: 0, begin: 0, len }).encode(&mut wire);
        assert_eq!(decode(&wire), Err(WireError::BlockRange(len)));
    }
}

fn put_hashes_message(wire: &mut Vec<u8>, range: &HashRange) {
    wire.extend_from_slice(&49u32.to_be_bytes());
    put_hashes(wire, kind::HASH_REQUEST, range);
}

#[test]
fn the_handshake_is_bep_3() {
    let handshake = Handshake::new(info_hash(&[1; 16], &[2; 32]), peer_id("agent-1"));
    let bytes = handshake.encode();
    assert_eq!(&bytes[..20], b"\x13BitTorrent protocol");
    assert_eq!(bytes[20..28], [0, 0, 0, 0, 0, 0x10, 0, 0x14]);
    assert_eq!(Handshake::decode(&bytes).unwrap(), Some(handshake));
    assert!(handshake.suffices_for(&handshake));
    for short in 0..HANDSHAKE_BYTES {
        assert_eq!(Handshake::decode(&bytes[..short]).unwrap(), None);
    }
    assert_eq!(Handshake::decode(b"GET / HTTP/1.1"), Err(WireError::Handshake));
}
