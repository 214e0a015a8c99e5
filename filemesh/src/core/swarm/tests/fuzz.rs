//! A peer that sends anything: random bytes, random legal messages, floods. Nothing panics, and what
//! it makes a swarm hold stays within bounds.

use super::super::{Action, Config, Dial, Pull, Start, Swarm, extension};
use crate::core::link::{OUT_BYTES_MAX, REQUESTS_MAX};
use crate::core::peer_wire::{BlockRange, HashRange, Message};
use crate::core::plan::HostPlan;
use crate::core::transfer_tests::{Random, Source, source};
use crate::core::upload::HASH_QUEUE_MAX;
use proptest::prelude::*;

fn member(source: &Source, complete: bool) -> Swarm {
    let start = match complete {
        true => Start::Complete(source.tree.clone()),
        false => Start::Download(Box::new(source.download(None))),
    };
    let mut swarm = Swarm::new(start, 1, Config::new(source.handshake("us"), 1), 0);
    let plan = HostPlan {
        number: 1,
        parents: vec![Some(2), Some(3)],
        neighbours: vec![2, 4],
        far: vec![],
    };
    swarm.set_plan(plan, 0, &mut vec![]);
    swarm
}

/// A message that a peer may send at some time.
fn random_message(source: &Source, random: &mut Random, out: &mut Vec<u8>) {
    let geometry = source.geometry();
    let piece = random.below(geometry.piece_count() as usize + 1) as u32;
    let begin = random.below(5) as u32 * 16_384;
    let range = BlockRange { piece, begin, len: (1 + random.below(3) as u32) * 16_384 };
    let height = geometry.piece_height();
    let hashes = HashRange {
        root: source.tree.root(),
        base_layer: if random.below(2) == 0 { 0 } else { height },
        index: piece << height,
        length: 1 << height,
        proof_layers: random.below(3) as u32,
    };
    let mask = random.below(4) as u64;
    let take = extension::Take { plan: random.below(9) as u32, stripes: 2, mask };
    match random.below(16) {
        0 => Message::KeepAlive,
        1 => Message::Choke,
        2 => Message::Unchoke,
        3 => Message::Have(piece),
        4..=6 => Message::Request(range),
        7 => Message::Cancel(range),
        8 => Message::Reject(range),
        9 => Message::HashRequest(hashes),
        10 => Message::HashReject(hashes),
        11 => {
            let data = vec![7; range.len as usize];
            Message::Piece(range).encode(out);
            return out.extend_from_slice(&data);
        }
        12 => {
            let bytes = vec![3; hashes.answer_bytes()];
            return Message::Hashes(hashes, &bytes).encode(out);
        }
        13 => return Message::Extended(extension::SKEIN_ID, &take.encode()).encode(out),
        14 => return Message::Extended(0, extension::HANDSHAKE).encode(out),
        _ => Message::Interested,
    }
    .encode(out);
}

/// Feeds `bytes` in two parts and answers whether the swarm still keeps the peer.
fn feed(swarm: &mut Swarm, bytes: &[u8], now_ms: u64, actions: &mut Vec<Action>) -> bool {
    let used = swarm.receive(1, &bytes[..bytes.len() / 2], now_ms, actions);
    let used = used + swarm.receive(1, &bytes[used..], now_ms, actions);
    assert!(used <= bytes.len());
    swarm.tick(now_ms, actions);
    swarm.peers().count() > 0
}

fn assert_bounded(swarm: &Swarm) {
    for peer in swarm.peers.values() {
        assert!(peer.uploads.held() <= REQUESTS_MAX + HASH_QUEUE_MAX);
        assert!(peer.hash_asked.len() <= HASH_QUEUE_MAX + 1);
        assert!(peer.link.out_len() <= OUT_BYTES_MAX + 65_536);
        assert!(peer.link.in_flight() <= REQUESTS_MAX);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..3_000),
        complete in any::<bool>(),
    ) {
        let source = source(300_000, 65_536, 1);
        let mut swarm = member(&source, complete);
        let theirs = source.handshake("them");
        swarm.connected(1, 2, Dial::Accepted(theirs), 0, &mut vec![]);
        feed(&mut swarm, &bytes, 1, &mut vec![]);
        assert_bounded(&swarm);
    }

    #[test]
    fn random_messages_never_panic_and_what_they_leave_is_bounded(
        seed in 1u64..u64::MAX,
        complete in any::<bool>(),
    ) {
        let source = source(300_000, 65_536, 1);
        let mut swarm = member(&source, complete);
        let mut random = Random(seed);
        let (mut now_ms, mut actions) = (0, vec![]);
        for key in 0..20 {
            let member = 2 + key % 3;
            let theirs = source.handshake("them");
            swarm.connected(1, member, Dial::Accepted(theirs), now_ms, &mut actions);
            let mut bytes = vec![];
            [Message::HaveAll, Message::HaveNone][random.below(2)].encode(&mut bytes);
            Message::Unchoke.encode(&mut bytes);
            for _ in 0..50 {
                random_message(&source, &mut random, &mut bytes);
                now_ms += random.below(300) as u64;
                if !feed(&mut swarm, &bytes, now_ms, &mut actions) {
                    break;
                }
                bytes.clear();
                assert_bounded(&swarm);
                let mut out = vec![];
                if random.below(2) == 0
                    && let Some(Pull::Leaves { .. }) = swarm.next(1, 20_000, &mut out, now_ms)
                {
                    swarm.leaves(1, None, &mut out, now_ms);
                }
            }
            swarm.disconnected(1, now_ms);
        }
        for action in actions {
            prop_assert!(!matches!(action, Action::Write { .. }), "no byte of it is true");
        }
    }
}

#[test]
fn a_flood_of_requests_is_rejected_beyond_the_bound_and_ends_the_link() {
    let source = source(4 << 20, 65_536, 1);
    let mut swarm = member(&source, false);
    let mut actions = vec![];
    swarm.connected(1, 2, Dial::Accepted(source.handshake("them")), 0, &mut actions);
    let mut bytes = vec![];
    Message::HaveNone.encode(&mut bytes);
    Message::Extended(0, extension::HANDSHAKE).encode(&mut bytes);
    let take = extension::Take { plan: 1, stripes: 1, mask: 1 };
    Message::Extended(extension::SKEIN_ID, &take.encode()).encode(&mut bytes);
    assert!(feed(&mut swarm, &bytes, 0, &mut actions));
    for round in 0..1_000u32 {
        bytes.clear();
        for at in 0..256 {
            let range = BlockRange { piece: at % 64, begin: at / 64 * 16_384, len: 16_384 };
            Message::Request(range).encode(&mut bytes);
        }
        let kept = feed(&mut swarm, &bytes, 0, &mut actions);
        assert_bounded(&swarm);
        if !kept {
            // It read no reject: the first round waits, then 17 bytes of each other request do.
            assert!(round > 200, "{round}");
            assert!(matches!(actions.last(), Some(Action::Close { key: 1, member: 2, .. })));
            return;
        }
    }
    panic!("the flood went on");
}
