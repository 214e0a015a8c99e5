//! Several links over one download: what a swarm is made of works with the parts as they are.

use super::bitfield::Bitfield;
use super::download::{Download, Verdict, Want};
use super::link::{Event, Have, PeerLink};
use super::peer_wire::{HANDSHAKE_BYTES, Message};
use super::seeder::{Pull, Seeder};
use super::transfer_tests::{Random, Source, source};

/// One remote peer: our link to it, and what plays its part.
struct Peer {
    link: PeerLink,
    seeder: Seeder,
    up: Vec<u8>,
    down: Vec<u8>,
    /// Inverts a byte of everything that it sends of this piece.
    lies_about: Option<u32>,
    gone: bool,
    delivered: u32,
}

impl Peer {
    fn new(source: &Source, have: Have, lies_about: Option<u32>) -> Self {
        let (ours, theirs) = (source.handshake("us"), source.handshake("them"));
        let nothing = Have::Some(Bitfield::new(source.geometry().piece_count()));
        let mut link = PeerLink::connect(source.geometry(), ours, &nothing, 0);
        link.send(Message::Interested);
        let seeder = Seeder::accept(source.tree.clone(), have, theirs, &ours, 0).unwrap();
        let mut up = vec![];
        link.take_output(&mut up, 0);
        up.drain(..HANDSHAKE_BYTES);
        Self { link, seeder, up, down: vec![], lies_about, gone: false, delivered: 0 }
    }

    /// Lets the remote side read all and send one thing.
    fn remote_turn(&mut self, source: &Source) {
        self.link.take_output(&mut self.up, 0);
        let used = self.seeder.receive(&self.up, 0).unwrap();
        self.up.drain(..used);
        match self.seeder.next(20_000, &mut self.down, 0) {
            Some(Pull::Data { offset, len }) => {
                let start = self.down.len();
                let range = offset as usize..offset as usize + len as usize;
                self.down.extend_from_slice(&source.data[range]);
                if self.lies_about == Some((offset / 65_536) as u32) {
                    self.down[start] ^= 1;
                }
            }
            Some(Pull::Leaves { first, count }) => {
                let leaves = &source.leaves[first as usize..(first + count) as usize];
                self.seeder.leaves(Some(leaves.as_flattened()), &mut self.down, 0);
            }
            None => {}
        }
    }

    /// Asks for more and takes what came; writes proved blocks to `disk`.
    fn our_turn(&mut self, key: u32, download: &mut Download, disk: &mut [u8]) {
        while self.link.can_request() && self.link.in_flight_bytes() < 65_536 {
            match download.next_want(key, self.link.have(), 32_768) {
                Some(Want::Hashes(range)) => self.link.send(Message::HashRequest(range)),
                Some(Want::Blocks(range)) => self.link.request(range, 0),
                None => break,
            }
        }
        loop {
            let step = self.link.next(&self.down, 0).unwrap();
            match step.event {
                Some(Event::Block { block, data, .. }) => {
                    match download.block(block, &self.down[data.clone()]) {
                        Verdict::Write(offset) => {
                            let len = data.len();
                            disk[offset as usize..offset as usize + len]
                                .copy_from_slice(&self.down[data]);
                            download.written(len as u64);
                            self.delivered += 1;
                        }
                        Verdict::Lie => {
                            self.gone = true;
                            download.release_peer(key, self.link.unanswered());
                            return;
                        }
                        verdict => panic!("{verdict:?}"),
                    }
                }
                Some(Event::Hashes(range, data)) => {
                    download.learn(key, &range, &self.down[data]).unwrap().unwrap();
                }
                Some(_) => {}
                None if step.consumed == 0 => return,
                None => {}
            }
            self.down.drain(..step.consumed);
        }
    }
}

fn pieces(count: u32, which: impl Fn(u32) -> bool) -> Have {
    let mut field = Bitfield::new(count);
    (0..count).filter(|piece| which(*piece)).for_each(|piece| {
        field.set(piece);
    });
    Have::Some(field)
}

#[test]
fn several_peers_fill_one_download_and_a_liar_is_replaced() {
    for seed in 1..40 {
        let source = source(2_000_000, 65_536, seed);
        let count = source.geometry().piece_count();
        let mut download = source.download(None);
        let mut disk = vec![0; source.data.len()];
        // Two that complement each other, one that has everything, one of whom lies.
        let mut peers = [
            Peer::new(&source, pieces(count, |piece| piece % 2 == 0), None),
            Peer::new(&source, pieces(count, |piece| piece % 2 == 1), None),
            Peer::new(&source, Have::All, Some(seed as u32 % count)),
            Peer::new(&source, Have::All, None),
        ];
        let mut random = Random(seed);
        let mut turns = 0;
        while !download.is_done() {
            turns += 1;
            assert!(turns < 20_000, "seed {seed}: nothing moves");
            let key = random.below(peers.len());
            let peer = &mut peers[key];
            if !peer.gone {
                peer.remote_turn(&source);
                peer.our_turn(key as u32, &mut download, &mut disk);
            }
        }
        assert!(disk == source.data, "seed {seed}");
        let progress = download.progress();
        assert_eq!(progress.wasted_blocks, 0, "seed {seed}: nothing is fetched twice");
        assert_eq!(progress.refused_blocks, u64::from(peers[2].gone), "seed {seed}");
        let delivered: u32 = peers.iter().map(|peer| peer.delivered).sum();
        assert_eq!(delivered, source.geometry().block_count());
        assert!(peers[..2].iter().all(|peer| peer.delivered > 0), "seed {seed}: all take part");
    }
}
