//! What goes out to one peer, pulled by the caller: announcements, hashes, then data.

use super::super::download::PeerKey;
use super::super::geometry::BLOCK_BYTES;
use super::super::peer_wire::{BlockRange, HashRange, Message, PIECE_HEADER_BYTES};
use super::content::Answer;
use super::peer::Peer;
use super::{Pull, Swarm};

/// Announcements that are queued at a time.
const ANNOUNCED_AT_ONCE: usize = 256;

/// Longest wait of an announcement.
pub(super) const ANNOUNCE_MS_MAX: u64 = 250;

impl Swarm {
    /// The peers for which [`Swarm::next`] may have something, in the order of their keys. Pull
    /// from each until it answers `None` and appends nothing; one whose output is full is to be
    /// pulled from again when it has room.
    pub fn take_ready(&mut self) -> Vec<PeerKey> {
        std::mem::take(&mut self.ready).into_iter().collect()
    }

    /// Whether [`Swarm::next`] may have something for this peer.
    pub fn has_output(&self, key: PeerKey) -> bool {
        self.peers.get(&key).is_some_and(|peer| peer.has_output(self.gained.len()))
    }

    /// Appends what can be sent now to `out`, which takes at most about `room` further bytes, and
    /// says what file bytes or leaves follow, as [`Seeder::next`](super::super::seeder::Seeder::next)
    /// does. Data may be of blocks whose [`Action::Write`](super::Action::Write) is not confirmed.
    pub fn next(
        &mut self,
        key: PeerKey,
        room: usize,
        out: &mut Vec<u8>,
        now_ms: u64,
    ) -> Option<Pull> {
        let peer = self.peers.get_mut(&key)?;
        if peer.awaiting.is_some() {
            return None;
        }
        let start = out.len();
        while !peer.uploads.is_mid_request() {
            announce(peer, &self.gained);
            peer.link.take_output(out, now_ms);
            if out.len() - start >= room {
                return None;
            }
            if peer.announced < self.gained.len() {
                continue;
            }
            let Some(range) = peer.uploads.next_hashes() else { break };
            match self.content.answer(&range) {
                Answer::Known(bytes) => peer.link.send(Message::Hashes(range, &bytes)),
                Answer::Read { first, count } => {
                    peer.awaiting = Some(range);
                    return Some(Pull::Leaves { first, count });
                }
                Answer::Later | Answer::Never => peer.link.send(Message::HashReject(range)),
            }
        }
        if peer.uploads.is_empty() {
            return None;
        }
        let left = room.saturating_sub(out.len() - start + PIECE_HEADER_BYTES);
        let mut len_max = u32::try_from(left).unwrap_or(u32::MAX);
        if let Some(limit) = &mut self.up {
            let available = limit.available(now_ms);
            if available < u64::from(BLOCK_BYTES) {
                self.is_throttled = true;
                return None;
            }
            len_max = len_max.min(u32::try_from(available).unwrap_or(u32::MAX));
        }
        let chunk = peer.uploads.next_chunk(len_max)?;
        if let Some(range) = chunk.starts {
            peer.link.send(Message::Piece(range));
            peer.link.take_output(out, now_ms);
        }
        self.up.iter_mut().for_each(|limit| limit.take(u64::from(chunk.len)));
        self.up_bytes += u64::from(chunk.len);
        self.report.up_bytes += u64::from(chunk.len);
        let offset = self.content.geometry.piece_offset(chunk.piece) + u64::from(chunk.begin);
        Some(Pull::Data { offset, len: chunk.len })
    }

    /// The leaves that the last [`Pull::Leaves`] for this peer asked for, 32 bytes each, or `None`
    /// if they could not be read. The answer goes to `out`.
    pub fn leaves(&mut self, key: PeerKey, leaves: Option<&[u8]>, out: &mut Vec<u8>, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(range) = peer.awaiting.take() else { return };
        match leaves.and_then(|leaves| self.content.with_uncles(&range, leaves)) {
            Some(bytes) => peer.link.send(Message::Hashes(range, &bytes)),
            None => peer.link.send(Message::HashReject(range)),
        }
        peer.link.take_output(out, now_ms);
        self.ready.insert(key);
    }

    /// A peer asked for `range`, which lies in the file.
    pub(super) fn requested(&mut self, key: PeerKey, range: BlockRange) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let taken = if self.content.has_range(&range) {
            peer.uploads.push(range)
        } else {
            peer.takes.takes(range.piece) && peer.uploads.wait(range)
        };
        if !taken {
            peer.link.send(Message::Reject(range));
        }
        self.ready.insert(key);
    }

    /// A peer asked for hashes.
    pub(super) fn hashes_requested(&mut self, key: PeerKey, range: HashRange) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let taken = match self.content.is_later(&range) {
            _ if range.root != self.content.root => false,
            false => peer.uploads.push_hashes(range),
            true => peer.takes.mask != 0 && peer.uploads.wait_hashes(range),
        };
        if !taken {
            peer.link.send(Message::HashReject(range));
        }
        self.ready.insert(key);
    }

    /// Requests for hashes that became known are ready.
    pub(super) fn serve_hashes(&mut self) {
        for (key, peer) in &mut self.peers {
            if peer.uploads.hashes_here(|range| !self.content.is_later(range)) {
                self.ready.insert(*key);
            }
        }
    }

    /// Requests that a proved block completes are ready, and so is the news of its piece, at once
    /// or soon.
    pub(super) fn serve_block(&mut self, block: u32, is_piece: bool, now_ms: u64) {
        let geometry = self.content.geometry;
        let piece = geometry.piece_of(block);
        let begin = (block - geometry.blocks_of(piece).start) * BLOCK_BYTES;
        // Without a plan announcements are what makes pieces move, and the last one of all ends it.
        let is_urgent = self.schedule.plan().parents.is_empty() || self.content.is_complete();
        let announces = is_piece && is_urgent;
        for (key, peer) in &mut self.peers {
            // Only requests for what it takes from here wait.
            let completes = peer.takes.takes(piece)
                && peer.uploads.block_here(piece, begin, |range| self.content.has_range(range));
            if completes || announces {
                self.ready.insert(*key);
            }
        }
        self.announce_at_ms = match is_piece {
            true if announces => None,
            true => self.announce_at_ms.or(Some(now_ms + self.announce_ms())),
            false => self.announce_at_ms,
        };
    }

    /// How long an announcement may wait for others to the same peer. Alone it costs a packet of
    /// 100 bytes, a record and a wake-up per neighbour; in a chain with twenty neighbours that is
    /// 3 % of the link, and all behind pay for it. Neighbours act on announcements when a parent is
    /// late, which takes longer to notice; whoever takes a piece as a child is sent it without.
    fn announce_ms(&self) -> u64 {
        (self.meter.patience_ms(&self.content.geometry) / 2).min(ANNOUNCE_MS_MAX)
    }

    /// Lets all peers know of the pieces that became complete here.
    pub(super) fn announce_due(&mut self, now_ms: u64) {
        if self.announce_at_ms.is_none_or(|at| at > now_ms) {
            return;
        }
        self.announce_at_ms = None;
        let gained = self.gained.len();
        let behind = self.peers.iter().filter(|(_, peer)| peer.announced < gained);
        self.ready.extend(behind.map(|(key, _)| *key));
    }
}

/// Queues announcements of pieces that the peer does not have.
fn announce(peer: &mut Peer, gained: &[u32]) {
    let news = &gained[peer.announced..gained.len().min(peer.announced + ANNOUNCED_AT_ONCE)];
    peer.announced += news.len();
    for piece in news {
        if !peer.link.have().has(*piece) {
            peer.link.send(Message::Have(*piece));
        }
    }
}
