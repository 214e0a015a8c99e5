//! A plain seed and a plain leecher over a pipe, and what a lying seed gets.

use super::*;
use crate::core::geometry::Geometry;
use crate::core::link::{Have, LinkError};
use crate::core::merkle::TreeBuilder;
use crate::core::merkle::tests::bytes;
use crate::core::metainfo::PieceHasher;
use crate::core::peer_wire::{HANDSHAKE_BYTES, Handshake};
use crate::core::piece_tree::PieceTree;
use crate::core::seeder::{Pull, Seeder};
use std::sync::Arc;

const PIECE: u32 = 65_536;

fn leecher(data: &[u8], who: Handshake) -> V1Leecher {
    let mut hasher = PieceHasher::new(PIECE);
    hasher.update(data);
    let geometry = Geometry::new(data.len() as u64, PIECE).unwrap();
    V1Leecher::connect(geometry, hasher.finish().into(), who, 0)
}

fn seeder(data: &[u8], ours: Handshake, theirs: &Handshake) -> Result<Seeder, LinkError> {
    let mut builder = TreeBuilder::new(PIECE).unwrap();
    builder.update(data, |_| {});
    let tree = builder.finish(|_| {}).unwrap();
    let tree = PieceTree::new(tree.geometry, tree.layer, &tree.root).unwrap();
    Seeder::accept(Arc::new(tree), Have::All, ours, theirs, 0)
}

/// What a leecher of `data` receives from a seed of `served`, and how it ends.
fn transfer(data: &[u8], served: &[u8]) -> (Vec<u8>, V1Action) {
    let (ours, theirs) = (Handshake::plain([1; 20], [2; 20]), Handshake::plain([1; 20], [3; 20]));
    let mut leecher = leecher(data, ours);
    let mut seeder = seeder(served, theirs, &ours).unwrap();
    let (mut up, mut down, mut actions) = (vec![], vec![], vec![]);
    let mut received = vec![0; data.len()];
    leecher.tick(0, &mut actions);
    leecher.take_output(&mut up, 0);
    up.drain(..HANDSHAKE_BYTES);
    loop {
        let used = seeder.receive(&up, 1).unwrap();
        up.drain(..used);
        // Little room, so that requests of many pieces wait.
        let room = 40_000 - down.len().min(40_000);
        while let Some(Pull::Data { offset, len }) = seeder.next(room, &mut down, 1) {
            down.extend_from_slice(&served[offset as usize..][..len as usize]);
        }
        let used = leecher.receive(&down, 1, &mut actions);
        down.drain(..used);
        leecher.take_output(&mut up, 1);
        for action in actions.drain(..) {
            match action {
                V1Action::Write { offset, data } => {
                    received[offset as usize..][..data.len()].copy_from_slice(&data);
                }
                end => return (received, end),
            }
        }
    }
}

#[test]
fn files_of_every_shape_arrive() {
    for len in [1, 16_384, 16_385, 65_536, 65_537, 500_000] {
        let data = bytes(len, 5);
        assert_eq!(transfer(&data, &data), (data, V1Action::Done), "{len}");
    }
}

#[test]
fn a_false_piece_is_never_handed_out() {
    let data = bytes(200_000, 5);
    let mut served = data.clone();
    served[140_000] ^= 1;
    let (received, end) = transfer(&data, &served);
    assert_eq!(end, V1Action::Failed(V1Failure::FalsePiece { piece: 2 }));
    assert_eq!((&received[..131_072], &received[131_072..]), (&data[..131_072], &[0; 68_928][..]));
}

#[test]
fn a_skein_transfer_never_falls_back_to_a_plain_peer() {
    let (plain, own) = (Handshake::plain([1; 20], [2; 20]), Handshake::new([1; 20], [3; 20]));
    assert_eq!(seeder(&[1], own, &plain).unwrap_err(), LinkError::Capabilities);
    assert!(seeder(&[1], plain, &own).is_ok());
}

/// aria2 does so; among our own it ends the link.
#[test]
fn an_ordinary_client_may_send_its_bitfield_again() {
    let stream = [&[0, 0, 0, 2, 5, 0][..], &[0, 0, 0, 2, 5, 0x80]].concat();
    let (plain, own) = (Handshake::plain([1; 20], [2; 20]), Handshake::new([1; 20], [3; 20]));
    let mut lenient = seeder(&[1], plain, &own).unwrap();
    assert_eq!(lenient.receive(&stream, 1), Ok(stream.len()));
    assert!(lenient.link().have().is_complete());
    let mut strict = seeder(&[1], own, &own).unwrap();
    assert_eq!(strict.receive(&stream, 1), Err(LinkError::FirstMessage));
}

#[test]
fn a_silent_peer_is_given_up() {
    let mut leecher = leecher(&[1], Handshake::plain([1; 20], [2; 20]));
    let mut actions = vec![];
    leecher.tick(119_999, &mut actions);
    assert_eq!(actions, []);
    leecher.tick(120_000, &mut actions);
    let stalled = V1Failure::Stalled { waited_ms: 120_000 };
    assert_eq!(actions, [V1Action::Failed(stalled)]);
}
