//! Seeder and leecher against each other over byte pipes in memory: any cutting of the streams,
//! faults on the way, and resumption. Every run is decided by its seed, which failures print.

use super::bitfield::Bitfield;
use super::download::Download;
use super::geometry::Geometry;
use super::leecher::{Action, Failure, Leecher, LeecherOptions};
use super::link::{Have, LinkError};
use super::merkle::{Hash, TreeBuilder};
use super::peer_wire::{HANDSHAKE_BYTES, Handshake, info_hash, peer_id};
use super::piece_tree::PieceTree;
use super::seeder::{Pull, Seeder};
use proptest::prelude::*;
use std::sync::Arc;

/// A small generator, so that a seed is all that a failure needs to say.
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Part of `len`, every third time all of it.
    fn part(&mut self, len: usize) -> usize {
        if self.below(3) == 0 { len } else { self.below(len + 1) }
    }
}

pub(super) struct Source {
    pub data: Vec<u8>,
    pub leaves: Vec<Hash>,
    pub tree: Arc<PieceTree>,
}

pub(super) fn source(len: usize, piece_bytes: u32, seed: u64) -> Source {
    let mut random = Random(seed | 1);
    let data: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
    let mut leaves = vec![];
    let mut builder = TreeBuilder::new(piece_bytes).unwrap();
    builder.update(&data, |leaf| leaves.push(leaf));
    let built = builder.finish(|leaf| leaves.push(leaf)).unwrap();
    let tree = PieceTree::new(built.geometry, built.layer, &built.root).unwrap();
    Source { data, leaves, tree: Arc::new(tree) }
}

impl Source {
    pub fn geometry(&self) -> Geometry {
        self.tree.geometry()
    }

    pub fn download(&self, claimed: Option<Bitfield>) -> Download {
        Download::new(self.geometry(), self.tree.root(), claimed)
    }

    pub fn handshake(&self, who: &str) -> Handshake {
        Handshake::new(info_hash(&[9; 16], &self.tree.root()), peer_id(who))
    }
}

/// What happens to the bytes from seeder to leecher.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// The byte at this offset of the file is sent inverted, once.
    FlipData(u64),
    /// The leaves are sent with a wrong first byte.
    FlipLeaves,
    /// This byte of the stream is inverted.
    FlipDown(usize),
    /// This byte of the stream from leecher to seeder is inverted.
    FlipUp(usize),
    /// Nothing after this many bytes of the stream.
    Cut(usize),
}

struct Outcome {
    disk: Vec<u8>,
    leaves: Vec<Hash>,
    failure: Option<Failure>,
    done: bool,
    download: Download,
}

/// Inverts byte `at` of a stream of which `passed` bytes went before `part`.
fn flip(part: &mut [u8], passed: &mut usize, at: usize) {
    let byte = at.checked_sub(*passed).and_then(|at| part.get_mut(at));
    byte.into_iter().for_each(|byte| *byte ^= 0xff);
    *passed += part.len();
}

/// Runs one link until it is over or nothing moves. `disk` is what the leecher's file holds.
fn run(
    source: &Source,
    download: Download,
    mut disk: Vec<u8>,
    fault: Fault,
    random: &mut Random,
    room: usize,
) -> Outcome {
    let options = LeecherOptions { peer_name: "seed-1".into(), ..LeecherOptions::default() };
    let (ours, theirs) = (source.handshake("leecher"), source.handshake("seed"));
    // Either side may be the one that opened the connection.
    let seed_connects = random.below(2) == 0;
    let mut seeder =
        seed_connects.then(|| Seeder::connect(source.tree.clone(), Have::All, theirs, 0));
    // What its owner reads off the stream to decide on membership.
    let mut skip = if seed_connects { HANDSHAKE_BYTES } else { 0 };
    let mut leecher = if seed_connects {
        Leecher::accept(download, ours, &theirs, options, 0).unwrap()
    } else {
        Leecher::connect(download, ours, options, 0)
    };
    let (mut up, mut out, mut down) = (Vec::new(), Vec::new(), Vec::new());
    let mut actions = vec![];
    let (mut asked, mut passed) = (0, 0);
    let (mut sent, mut flipped, mut done, mut failure) = (0, false, false, None);
    let geometry = source.geometry();
    let mut leaves = vec![[0; 32]; geometry.block_count() as usize];
    let (mut now_ms, mut idle) = (0, 0);
    leecher.tick(0, &mut actions);
    while idle < 200 {
        now_ms += 1;
        idle += 1;
        let before = up.len();
        leecher.take_output(&mut up, now_ms);
        if let Fault::FlipUp(at) = fault {
            flip(&mut up[before..], &mut asked, at);
        }
        // Leecher to seeder, in arbitrary parts.
        let part = random.part(up.len());
        let buf = &up[..part];
        let used = match &mut seeder {
            None => match Handshake::decode(buf) {
                Err(_) => break,
                Ok(None) => 0,
                Ok(Some(theirs)) => {
                    let (tree, ours) = (source.tree.clone(), source.handshake("seed"));
                    let accepted = Seeder::accept(tree, Have::All, ours, &theirs, now_ms);
                    let Ok(accepted) = accepted else { break };
                    seeder = Some(accepted);
                    HANDSHAKE_BYTES
                }
            },
            Some(seeder) => match seeder.receive(buf, now_ms) {
                Ok(used) => used,
                Err(error) => {
                    assert!(matches!(fault, Fault::FlipUp(_)), "{error}");
                    break;
                }
            },
        };
        up.drain(..used);
        // Seeder to its out-buffer, as far as there is room.
        if let Some(seeder) = &mut seeder {
            while out.len() < room {
                let before = out.len();
                match seeder.next(room - before, &mut out, now_ms) {
                    Some(Pull::Data { offset, len }) => {
                        let start = out.len();
                        let range = offset as usize..offset as usize + len as usize;
                        out.extend_from_slice(&source.data[range.clone()]);
                        if let Fault::FlipData(at) = fault
                            && range.contains(&(at as usize))
                            && !flipped
                        {
                            flipped = true;
                            out[start + at as usize - offset as usize] ^= 0xff;
                        }
                    }
                    Some(Pull::Leaves { first, count }) => {
                        let range = first as usize..(first + count) as usize;
                        let mut bytes = source.leaves[range].as_flattened().to_vec();
                        if matches!(fault, Fault::FlipLeaves) {
                            bytes[0] ^= 1;
                        }
                        seeder.leaves(Some(&bytes), &mut out, now_ms);
                    }
                    None if out.len() == before => break,
                    None => {}
                }
                idle = 0;
            }
        }
        let part = random.part(out.len());
        if let Fault::FlipDown(at) = fault {
            flip(&mut out[..part], &mut passed, at);
        }
        down.extend(out.drain(..part));
        let handshake = skip.min(down.len());
        down.drain(..handshake);
        skip -= handshake;
        if let Fault::Cut(at) = fault {
            down.truncate(at.saturating_sub(sent));
        }
        // Seeder to leecher, in arbitrary parts.
        let part = random.part(down.len());
        let used = leecher.receive(&down[..part], now_ms, &mut actions);
        for action in std::mem::take(&mut actions) {
            match action {
                Action::Write { offset, data } => {
                    assert!(data.end <= used, "a write refers to what is consumed");
                    let len = data.len();
                    disk[offset as usize..offset as usize + len].copy_from_slice(&down[data]);
                    leecher.written(len as u64, now_ms, &mut actions);
                }
                Action::Leaves { piece, leaves: proved } => {
                    let blocks = geometry.blocks_of(piece);
                    for (at, leaf) in blocks.zip(proved.iter()) {
                        leaves[at as usize] = *leaf;
                    }
                }
                Action::Done => done = true,
                Action::Failed(reason) => failure = Some(reason),
            }
        }
        for action in actions.drain(..) {
            assert_eq!(action, Action::Done);
            done = true;
        }
        while let Some(range) = leecher.next_check() {
            let bytes = &disk[range.start as usize..range.end as usize];
            leecher.checked(Some(bytes), now_ms, &mut actions);
        }
        down.drain(..used);
        sent += used;
        if used > 0 || !actions.is_empty() {
            idle = 0;
        }
        if done || failure.is_some() {
            break;
        }
    }
    Outcome { disk, leaves, failure, done, download: leecher.into_download() }
}

fn clean(source: &Source, outcome: &Outcome) {
    assert_eq!(outcome.failure, None);
    assert!(outcome.done);
    assert!(outcome.disk == source.data, "the file differs");
    let progress = outcome.download.progress();
    assert_eq!(progress.written_bytes, source.data.len() as u64);
    assert_eq!((progress.refused_blocks, progress.wasted_blocks), (0, 0));
}

#[test]
fn every_shape_of_file_arrives() {
    for piece in [16_384, 32_768, 131_072] {
        for len in [0, 1, 16_383, 16_384, 16_385, 32_768, 49_153, 131_072, 131_073, 700_001] {
            let source = source(len, piece, 5);
            let (download, disk) = (source.download(None), vec![0; len]);
            let outcome = run(&source, download, disk, Fault::None, &mut Random(7), 100_000);
            clean(&source, &outcome);
            // A file of one block has no leaves but its root.
            if outcome.leaves.len() > 1 {
                assert_eq!(outcome.leaves, source.leaves, "{len} in {piece}");
            }
        }
    }
}

#[test]
fn long_piece_layers_come_in_proved_parts() {
    // 1,500 pieces of one block: two requests with a proof of one uncle each.
    let source = source(1_500 * 16_384 - 7, 16_384, 3);
    let disk = vec![0; source.data.len()];
    let outcome = run(&source, source.download(None), disk, Fault::None, &mut Random(3), 1 << 20);
    clean(&source, &outcome);
    assert_eq!(outcome.leaves, source.leaves);
}

#[test]
fn a_false_leaf_ends_the_link_before_any_data() {
    let source = source(500_000, 65_536, 2);
    let (download, disk) = (source.download(None), vec![0; 500_000]);
    let outcome = run(&source, download, disk, Fault::FlipLeaves, &mut Random(2), 1 << 20);
    assert!(matches!(outcome.failure, Some(Failure::FalseHashes { .. })));
    assert_eq!(outcome.download.progress().verified_bytes, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn transfers_are_lossless(
        len in 0usize..1_500_000, piece in 14u32..20, seed in 1u64.., room in 64usize..400_000,
    ) {
        let source = source(len, 1 << piece, seed);
        let (download, disk) = (source.download(None), vec![0; len]);
        let outcome = run(&source, download, disk, Fault::None, &mut Random(seed), room);
        clean(&source, &outcome);
    }

    #[test]
    fn a_false_block_is_never_written_and_names_its_peer(
        len in 1usize..1_000_000, piece in 14u32..19, seed in 1u64.., at in any::<u64>(),
    ) {
        let at = at % len as u64;
        let source = source(len, 1 << piece, seed);
        let (download, disk) = (source.download(None), vec![0; len]);
        let mut random = Random(seed);
        let liar = run(&source, download, disk, Fault::FlipData(at), &mut random, 300_000);
        let offset = at / 16_384 * 16_384;
        let expected = Failure::FalseBlock { peer: "seed-1".into(), offset };
        prop_assert_eq!(liar.failure, Some(expected));
        let verified = liar.download.verified().clone();
        for block in 0..source.geometry().block_count() {
            let range = source.geometry().bytes_of(block..block + 1);
            let range = range.start as usize..range.end as usize;
            let expected = if verified.has_block(block) { &source.data[range.clone()] } else {
                &[0; 16_384][..range.len()]
            };
            prop_assert!(liar.disk[range] == *expected);
        }
        prop_assert_eq!(liar.download.progress().refused_blocks, 1);
        // An honest peer completes what is left, and fetches nothing twice.
        let rest = run(&source, liar.download, liar.disk, Fault::None, &mut random, 300_000);
        prop_assert!(rest.done && rest.disk == source.data);
        prop_assert_eq!(rest.download.progress().wasted_blocks, 0);
    }

    #[test]
    fn a_spoilt_stream_never_spoils_the_file(
        len in 1usize..300_000, piece in 14u32..18, seed in 1u64.., at in any::<usize>(),
        early in any::<bool>(), upwards in any::<bool>(),
    ) {
        let source = source(len, 1 << piece, seed);
        // Headers are early in the stream, data is everywhere.
        let at = at % if early { 400 } else { len + 400 };
        let fault = if upwards { Fault::FlipUp(at) } else { Fault::FlipDown(at) };
        let (download, disk) = (source.download(None), vec![0; len]);
        let mut random = Random(seed);
        let outcome = run(&source, download, disk, fault, &mut random, 100_000);
        for block in outcome.download.verified().blocks().ranges().flatten() {
            let range = source.geometry().bytes_of(block..block + 1);
            let range = range.start as usize..range.end as usize;
            prop_assert!(outcome.disk[range.clone()] == source.data[range]);
        }
        let rest = run(&source, outcome.download, outcome.disk, Fault::None, &mut random, 100_000);
        prop_assert!(rest.disk == source.data);
    }

    #[test]
    fn a_cut_transfer_resumes_with_its_claims(
        len in 1usize..1_000_000, piece in 14u32..19, seed in 1u64.., cut in 0usize..1_000_000,
        torn in any::<u32>(),
    ) {
        let source = source(len, 1 << piece, seed);
        let mut random = Random(seed);
        let (download, disk) = (source.download(None), vec![0; len]);
        let first = run(&source, download, disk, Fault::Cut(cut), &mut random, 100_000);
        let mut claimed = first.download.verified().blocks().clone();
        let before = first.download.progress().written_bytes;
        // One more block is claimed than was written, as after a power loss.
        let torn = torn % claimed.len();
        let was_torn = claimed.set(torn);
        let download = source.download(Some(claimed));
        let second = run(&source, download, first.disk, Fault::None, &mut random, 100_000);
        prop_assert!(second.done && second.disk == source.data);
        let progress = second.download.progress();
        prop_assert_eq!(progress.resumed_bytes, before, "torn: {}", was_torn);
        prop_assert_eq!(progress.wasted_blocks, 0);
    }

    #[test]
    fn garbage_never_panics_either_side(
        garbage in proptest::collection::vec(any::<u8>(), 0..400),
        prefix in proptest::collection::vec(
            prop_oneof![Just(vec![0, 0, 0, 1, 14]), Just(vec![0, 0, 0, 1, 1]), Just(vec![0; 4])],
            0..3,
        ),
        seed in 1u64..,
    ) {
        let source = source(100_000, 32_768, seed);
        let bytes: Vec<u8> = prefix.concat().into_iter().chain(garbage).collect();
        let theirs = source.handshake("x");
        let ours = source.handshake("y");
        let download = source.download(None);
        let mut leecher =
            Leecher::accept(download, ours, &theirs, LeecherOptions::default(), 0).unwrap();
        let mut actions = vec![];
        leecher.receive(&bytes, 0, &mut actions);
        let wrote = actions.iter().any(|action| matches!(action, Action::Write { .. }));
        prop_assert!(!wrote);
        let mut seeder =
            Seeder::accept(source.tree.clone(), Have::All, ours, &theirs, 0).unwrap();
        let _ = seeder.receive(&bytes, 0);
    }
}

#[test]
fn a_stranger_to_the_transfer_is_refused() {
    let source = source(10, 16_384, 1);
    let ours = source.handshake("seed");
    let theirs = Handshake::new([1; 20], peer_id("x"));
    let seeder = Seeder::accept(source.tree.clone(), Have::All, ours, &theirs, 0);
    assert_eq!(seeder.err(), Some(LinkError::OtherTransfer));
    let plain = Handshake { reserved: [0; 8], ..ours };
    let seeder = Seeder::accept(source.tree.clone(), Have::All, ours, &plain, 0);
    assert_eq!(seeder.err(), Some(LinkError::Capabilities));
}

#[test]
fn a_silent_peer_is_given_up() {
    let source = source(100_000, 32_768, 1);
    let ours = source.handshake("leecher");
    let mut leecher =
        Leecher::connect(source.download(None), ours, LeecherOptions::default(), 1_000);
    let mut actions = vec![];
    leecher.tick(1_000, &mut actions);
    let deadline = leecher.deadline_ms().unwrap();
    leecher.tick(deadline - 1, &mut actions);
    assert_eq!(actions, []);
    leecher.tick(deadline, &mut actions);
    assert!(matches!(actions[..], [Action::Failed(Failure::Stalled { waited_ms: 30_000, .. })]));
    assert_eq!(leecher.deadline_ms(), None);
}

#[test]
fn a_seeder_announces_pieces_as_it_gets_them() {
    let source = source(100_000, 32_768, 1);
    let (ours, theirs) = (source.handshake("seed"), source.handshake("leecher"));
    let have = Have::Some(Bitfield::new(source.geometry().piece_count()));
    let mut seeder = Seeder::accept(source.tree.clone(), have, ours, &theirs, 0).unwrap();
    let mut down = vec![];
    assert_eq!(seeder.next(1 << 20, &mut down, 0), None);
    let options = LeecherOptions::default();
    let mut leecher = Leecher::connect(source.download(None), theirs, options, 0);
    let mut actions = vec![];
    let used = leecher.receive(&down, 0, &mut actions);
    assert_eq!((used, leecher.link().in_flight()), (down.len(), 0));
    seeder.add_piece(2);
    seeder.add_piece(2);
    down.clear();
    assert_eq!(seeder.next(1 << 20, &mut down, 0), None);
    assert_eq!(down, [0, 0, 0, 5, 4, 0, 0, 0, 2]);
    leecher.receive(&down, 0, &mut actions);
    let asked: Vec<u32> = leecher.link().unanswered().map(|range| range.piece).collect();
    assert_eq!(asked, [2]);
    seeder.withdraw();
}

#[test]
fn a_rate_limit_paces_requests() {
    let source = source(1_000_000, 131_072, 1);
    let (ours, theirs) = (source.handshake("leecher"), source.handshake("seed"));
    let options = LeecherOptions { rate_limit_bytes_per_s: 200_000, ..Default::default() };
    let mut leecher = Leecher::accept(source.download(None), ours, &theirs, options, 0).unwrap();
    let mut seeder = Seeder::accept(source.tree.clone(), Have::All, theirs, &ours, 0).unwrap();
    let (mut actions, mut up, mut down, mut got) = (vec![], vec![], vec![], 0);
    let mut now_ms = 0;
    let mut steps = 0;
    let handshake = HANDSHAKE_BYTES;
    while !matches!(actions.last(), Some(Action::Done)) {
        steps += 1;
        assert!(steps < 2_000, "the deadline does not advance");
        leecher.take_output(&mut up, now_ms);
        let skip = if steps == 1 { handshake } else { 0 };
        let used = skip + seeder.receive(&up[skip..], now_ms).unwrap();
        up.drain(..used);
        while let Some(pull) = seeder.next(1 << 20, &mut down, now_ms) {
            match pull {
                Pull::Data { offset, len } => {
                    let range = offset as usize..(offset + u64::from(len)) as usize;
                    down.extend_from_slice(&source.data[range]);
                }
                Pull::Leaves { first, count } => {
                    let leaves = &source.leaves[first as usize..(first + count) as usize];
                    seeder.leaves(Some(leaves.as_flattened()), &mut down, now_ms);
                }
            }
        }
        let skip = if steps == 1 { handshake } else { 0 };
        let used = skip + leecher.receive(&down[skip..], now_ms, &mut actions);
        down.drain(..used);
        for action in std::mem::take(&mut actions) {
            if let Action::Write { data, .. } = action {
                got += data.len();
                leecher.written(data.len() as u64, now_ms, &mut actions);
            }
        }
        if up.is_empty() && down.is_empty() && leecher.link().out_len() == 0 {
            let Some(next_ms) = leecher.deadline_ms() else { break };
            assert!(next_ms > now_ms, "the deadline passed without an effect");
            now_ms = next_ms;
            leecher.tick(now_ms, &mut actions);
        }
    }
    assert_eq!(got, 1_000_000);
    assert!((4_800..=5_100).contains(&now_ms), "{now_ms} ms for 1 MB at 200 kB/s");
}
