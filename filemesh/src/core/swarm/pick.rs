//! What to ask one peer for next: what the plan gives it, then what is open, rarest first.

use super::super::bitfield::Bitfield;
use super::super::download::{Download, PeerKey, Want};
use super::super::hashes::LEAF_HASHES_MAX;
use super::super::link::Have;
use super::super::peer_wire::{BlockRange, HashRange};
use super::super::upload::HASH_QUEUE_MAX;
use super::content::Content;
use super::peer::Peer;
use super::schedule::Schedule;
use std::collections::BTreeMap;

/// Pieces of which the rarest is taken.
const SAMPLES: usize = 16;

/// Pieces that are looked at for these samples; the next try starts elsewhere.
const LOOKS: usize = 1_024;

/// Claimed pieces whose leaves are asked for ahead of their check.
const CLAIMS_AHEAD: usize = 16;

/// A small generator (xorshift64*), seeded by the caller.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        ((u64::from(high) * u64::from(bound)) >> 32) as u32
    }
}

/// What choosing needs to know beside the peer.
pub(super) struct Picker<'a> {
    pub content: &'a mut Content,
    pub schedule: &'a mut Schedule,
    pub random: &'a mut Random,
    /// Which peer was asked for each range of the piece layer.
    pub layer_asked: &'a mut [Option<PeerKey>],
    /// Which peer was last asked for a piece's leaves.
    pub leaves_asked: &'a mut BTreeMap<u32, PeerKey>,
    /// How many peers have a piece, without those that have all.
    pub copies: &'a [u16],
    /// Peers that must have a piece that a parent may still bring.
    pub copies_min: usize,
    pub key: PeerKey,
    /// Whether the peer is asked for what is open.
    pub is_mesh: bool,
    /// Whether it is asked only for what no parent will bring.
    pub is_far: bool,
    /// Bytes that may be asked for now, at least a block.
    pub bytes_max: u32,
}

impl Picker<'_> {
    /// The next thing to ask `peer` for; it counts as asked for.
    pub fn next(&mut self, peer: &mut Peer) -> Option<Want> {
        if let Some(range) = self.layer(peer).or_else(|| self.claims(peer)) {
            peer.hash_asked.push(range);
            return Some(Want::Hashes(range));
        }
        let piece = self.planned(peer).or_else(|| self.rarest(peer))?;
        let download = self.content.download.as_mut()?;
        let block = download.unassigned_in(piece)?;
        let lacks = download.hashes().lacks_leaves(piece);
        if let Some(range) = lacks.then(|| download.hashes().missing_leaves(piece, false)).flatten()
            && !peer.hash_asked.contains(&range)
        {
            self.ask_leaves(piece, &range, peer)?;
            return Some(Want::Hashes(range));
        }
        let has = peer.link.have().has(piece);
        let bytes = if has { peer.window.request_bytes() } else { peer.window.relay_bytes() };
        Some(Want::Blocks(download.assign(block, bytes.min(self.bytes_max))))
    }

    fn download(&self) -> Option<&Download> {
        self.content.download.as_ref()
    }

    /// Notes that `peer` is asked for the leaves of `piece`, if there is room for them.
    fn ask_leaves(&mut self, piece: u32, range: &HashRange, peer: &mut Peer) -> Option<()> {
        let held = self.download()?.hashes().pieces_with_leaves() + self.leaves_asked.len();
        let room = held * (range.length as usize) < LEAF_HASHES_MAX;
        if !room || peer.hash_asked.len() >= HASH_QUEUE_MAX {
            return None;
        }
        self.leaves_asked.insert(piece, self.key);
        peer.hash_asked.push(*range);
        Some(())
    }

    /// A range of the piece layer that nobody was asked for. A peer that has pieces is asked for
    /// any; a parent that waits itself only for those that go with one of its stripes, so that all
    /// who wait for a range wait along one tree and never for each other.
    fn layer(&mut self, peer: &Peer) -> Option<HashRange> {
        if self.content.tree.is_some() || peer.hash_asked.len() >= HASH_QUEUE_MAX {
            return None;
        }
        let hashes = self.content.download.as_ref()?.hashes();
        let has_some = match peer.link.have() {
            Have::All => true,
            Have::Some(pieces) => pieces.next_one(0).is_some(),
        };
        for (at, asked) in self.layer_asked.iter_mut().enumerate() {
            let promised = peer.skein.is_some() && peer.told.takes(at as u32);
            if asked.is_none() && (has_some || promised) {
                let first = at as u32 * super::super::peer_wire::HASHES_MAX;
                let Some(range) = hashes.missing_layer(first) else { continue };
                *asked = Some(self.key);
                return Some(range);
            }
        }
        None
    }

    /// Leaves without which claims of an earlier run cannot be checked.
    fn claims(&mut self, peer: &mut Peer) -> Option<HashRange> {
        let download = self.content.download.as_mut()?;
        if !download.has_claims() || peer.hash_asked.len() >= HASH_QUEUE_MAX {
            return None;
        }
        let pieces = download.claimed_pieces(CLAIMS_AHEAD);
        let piece = pieces.into_iter().find(|piece| {
            download.hashes().lacks_leaves(*piece)
                && download.hashes().proves_piece(*piece)
                && !self.leaves_asked.contains_key(piece)
                && peer.has_or_promises(*piece)
        })?;
        self.leaves_asked.insert(piece, self.key);
        download.hashes().missing_leaves(piece, false)
    }

    /// The next piece of the stripes that the plan gives to `peer`.
    fn planned(&mut self, peer: &Peer) -> Option<u32> {
        let download = self.content.download.as_ref()?;
        let has_work = |piece| download.unassigned_in(piece).is_some();
        let can_ask = |piece| peer.has_or_promises(piece) && download.hashes().proves_piece(piece);
        self.schedule.next_from(peer.member, has_work, can_ask)
    }

    /// The rarest of some open pieces that `peer` has, or the one that it is at.
    fn rarest(&mut self, peer: &mut Peer) -> Option<u32> {
        if !self.is_mesh || !self.schedule.any_open() {
            return None;
        }
        let download = self.content.download.as_ref()?;
        let is_work = |piece: &u32| {
            let copies = usize::from(self.copies[*piece as usize]);
            let may = !self.is_far && copies >= self.copies_min;
            self.schedule.is_open(*piece)
                && (may || !self.schedule.is_expected(*piece))
                && download.unassigned_in(*piece).is_some()
                && download.hashes().proves_piece(*piece)
        };
        if let Some(piece) = peer.mesh_piece.filter(is_work) {
            return Some(piece);
        }
        let pieces = self.content.geometry.piece_count();
        let start = self.random.below(pieces);
        let verified = download.verified().pieces();
        let missing = Missing { verified, have: peer.link.have(), from: start, to: pieces }
            .chain(Missing { verified, have: peer.link.have(), from: 0, to: start });
        let samples = missing.take(LOOKS).filter(is_work).take(SAMPLES);
        peer.mesh_piece = samples.min_by_key(|piece| self.copies[*piece as usize]);
        peer.mesh_piece
    }
}

/// Pieces that are missing here and there at the peer, scanned by words.
struct Missing<'a> {
    verified: &'a Bitfield,
    have: &'a Have,
    from: u32,
    to: u32,
}

impl Iterator for Missing<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let next = match self.have {
            Have::All => self.verified.next_zero(self.from),
            Have::Some(pieces) => self.verified.next_zero_within(self.from, pieces),
        };
        let piece = next.filter(|piece| *piece < self.to)?;
        self.from = piece + 1;
        Some(piece)
    }
}

/// What is asked for a second time near the end: which peer was to send it and which one helps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doubled {
    pub range: BlockRange,
    pub peers: [PeerKey; 2],
}
