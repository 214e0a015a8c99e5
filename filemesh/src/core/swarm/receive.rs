//! What comes from one peer, and what it is asked for next.

use super::super::download::{PeerKey, Verdict, Want};
use super::super::geometry::BLOCK_BYTES;
use super::super::hashes::Learned;
use super::super::link::{Event, Have, LinkError, OUT_BYTES_MAX};
use super::super::pace::WINDOW_BYTES_MAX;
use super::super::peer_wire::{HASHES_MAX, HashRange, Message};
use super::extension::{EXTENDED_HANDSHAKE, SKEIN_ID, Take, skein_id};
use super::peer::Peer;
use super::pick::Picker;
use super::{Action, CloseReason, Swarm};
use std::ops::Range;

impl Swarm {
    /// Takes bytes received from a peer; the answer is how many of them are used up. `actions`
    /// refer to `buf`. The rest must come again, with more behind it. A buffer of
    /// [`MESSAGE_BYTES_MAX`](super::super::peer_wire::MESSAGE_BYTES_MAX) is enough. Bytes of a
    /// connection that the swarm does not know, or closed, are used up and mean nothing.
    pub fn receive(
        &mut self,
        key: PeerKey,
        buf: &[u8],
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) -> usize {
        let mut consumed = 0;
        if let Some(peer) = self.peers.get_mut(&key).filter(|_| !buf.is_empty()) {
            peer.heard_ms = now_ms;
        }
        loop {
            let Some(peer) = self.peers.get_mut(&key) else {
                consumed = buf.len();
                break;
            };
            let step = match peer.link.next(&buf[consumed..], now_ms) {
                Ok(step) => step,
                Err(error) => {
                    self.close(key, error.into(), now_ms, actions);
                    continue;
                }
            };
            if step.event.is_none() && step.consumed == 0 {
                break;
            }
            if let Some(event) = step.event {
                let result = self.apply(key, event, buf, consumed, now_ms, actions);
                if let Err(why) = result.and_then(|()| self.check_flood(key)) {
                    self.close(key, why, now_ms, actions);
                    continue;
                }
            }
            consumed += step.consumed;
        }
        self.advance(key, now_ms);
        if std::mem::take(&mut self.kick) {
            self.advance_all(now_ms);
        }
        self.notice_end(actions);
        consumed
    }

    fn check_flood(&self, key: PeerKey) -> Result<(), CloseReason> {
        let waiting = self.peers.get(&key).map_or(0, |peer| peer.link.out_len());
        if waiting > OUT_BYTES_MAX { Err(LinkError::Flood.into()) } else { Ok(()) }
    }

    fn apply(
        &mut self,
        key: PeerKey,
        event: Event,
        buf: &[u8],
        base: usize,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) -> Result<(), CloseReason> {
        let Some(peer) = self.peers.get_mut(&key) else { return Ok(()) };
        match event {
            Event::Block { block, data, latency_ms } => {
                let len = data.len() as u64;
                latency_ms.into_iter().for_each(|latency_ms| peer.window.latency(latency_ms));
                peer.window.arrived(len, now_ms);
                self.meter.arrived(len, now_ms);
                self.down_bytes += len;
                self.report.down_bytes += len;
                self.progressed(key, now_ms);
                let data = base + data.start..base + data.end;
                return self.block(key, block, buf, data, now_ms, actions);
            }
            Event::Hashes(range, data) => {
                let bytes = &buf[base + data.start..base + data.end];
                return self.hashes(key, &range, bytes, now_ms, actions);
            }
            Event::HashRejected(range) => {
                settle(peer, &range)?;
                peer.hash_rejects = true;
                peer.pause(now_ms);
                self.unask(key, &range);
            }
            Event::Rejected(range) => {
                peer.pause(now_ms);
                self.release(range);
            }
            Event::Request(range) => self.requested(key, range),
            Event::Cancel(range) => {
                if peer.uploads.cancel(&range) {
                    peer.link.send(Message::Reject(range));
                    self.ready.insert(key);
                }
            }
            Event::HashRequest(range) => self.hashes_requested(key, range),
            Event::Have => self.opened(key, now_ms),
            Event::HavePiece(piece) => {
                let copies = &mut self.copies[piece as usize];
                *copies = copies.saturating_add(1);
            }
            Event::Extended(EXTENDED_HANDSHAKE, data) => {
                let handshake = &buf[base + data.start..base + data.end];
                peer.skein = skein_id(handshake);
                if !self.content.is_complete() {
                    peer.tell(Take::of(self.schedule.plan(), peer.member));
                }
                self.ready.insert(key);
            }
            Event::Extended(SKEIN_ID, data) => {
                let payload = &buf[base + data.start..base + data.end];
                let take = Take::decode(payload).map_err(|_| LinkError::Extension)?;
                take.into_iter().for_each(|take| peer.set_takes(take));
                self.ready.insert(key);
            }
            Event::Dropped(_)
            | Event::Extended(..)
            | Event::Handshake
            | Event::Choked(_)
            | Event::Interested(_) => {}
        }
        Ok(())
    }

    /// The peer said what it has.
    fn opened(&mut self, key: PeerKey, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if let Have::Some(pieces) = peer.link.have() {
            for piece in pieces.ranges().flatten() {
                let copies = &mut self.copies[piece as usize];
                *copies = copies.saturating_add(1);
            }
        }
        peer.progress_ms = now_ms;
        self.schedule.set_late(peer.member, false);
    }

    fn block(
        &mut self,
        key: PeerKey,
        block: u32,
        buf: &[u8],
        data: Range<usize>,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) -> Result<(), CloseReason> {
        let Some(download) = &mut self.content.download else {
            return Err(LinkError::Unrequested.into());
        };
        match download.block(block, &buf[data.clone()]) {
            Verdict::Write(offset) => {
                let bytes = data.len() as u64;
                push_write(actions, offset, data);
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.was_useful = true;
                    *self.received.entry(peer.member).or_default() += bytes;
                }
                self.proved(block, now_ms);
            }
            Verdict::Lie => {
                let offset = self.content.geometry.block_offset(block);
                return Err(CloseReason::FalseBlock { offset });
            }
            Verdict::Unprovable => {
                self.schedule.released(self.content.geometry.piece_of(block));
                if !self.peers.get(&key).is_some_and(|peer| peer.hash_rejects) {
                    return Err(LinkError::Order.into());
                }
            }
            Verdict::Duplicate => {}
        }
        Ok(())
    }

    /// `block` is proved and may be relayed.
    pub(super) fn proved(&mut self, block: u32, now_ms: u64) {
        let piece = self.content.geometry.piece_of(block);
        let is_piece = self.content.complete_piece(piece);
        if is_piece {
            self.gained.push(piece);
            let behind = self.meter.behind_pieces(&self.content.geometry);
            if let Some(download) = &self.content.download {
                self.schedule.gained(piece, download.verified(), behind);
            }
            self.kick |= self.schedule.any_open();
        }
        self.serve_block(block, is_piece, now_ms);
        if !self.doubled.is_empty() {
            self.settle_doubled();
        }
    }

    fn hashes(
        &mut self,
        key: PeerKey,
        range: &HashRange,
        bytes: &[u8],
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) -> Result<(), CloseReason> {
        let (Some(peer), Some(download)) = (self.peers.get_mut(&key), &mut self.content.download)
        else {
            return Err(LinkError::Unrequested.into());
        };
        settle(peer, range)?;
        let learned = download.learn_asked(range, bytes).map_err(CloseReason::FalseHashes)?;
        self.unask(key, range);
        self.progressed(key, now_ms);
        let pieces = match learned {
            Learned::Leaves(pieces) => pieces,
            Learned::TooEarly => return Err(LinkError::Order.into()),
            Learned::Layer(pieces) => {
                // Other ranges may have been asked for again meanwhile; this one is known.
                self.layer_asked[(range.index / HASHES_MAX) as usize] = Some(key);
                self.kick = true;
                self.content.complete_layer();
                // With pieces of one block the layer is the leaves.
                if self.content.geometry.piece_height() == 0 { pieces } else { 0..0 }
            }
        };
        for piece in pieces {
            let leaves = self.content.download.as_ref().and_then(|known| known.leaves(piece));
            if let Some(leaves) = leaves.filter(|_| self.content.keep_leaves(piece)) {
                actions.push(Action::Leaves { piece, leaves });
            }
        }
        self.serve_hashes();
        Ok(())
    }

    /// `key` is no longer asked for `range`.
    fn unask(&mut self, key: PeerKey, range: &HashRange) {
        let height = self.content.geometry.piece_height();
        if range.base_layer == 0 && height > 0 {
            let piece = range.index >> height;
            if self.leaves_asked.get(&piece) == Some(&key) {
                self.leaves_asked.remove(&piece);
            }
        } else if let Some(asked) = self.layer_asked.get_mut((range.index / HASHES_MAX) as usize)
            && *asked == Some(key)
        {
            *asked = None;
        }
    }

    /// Whether `peer` is asked for what is open: the plan's neighbours, whoever came by itself
    /// (for it the plan named us), and all without a plan.
    pub(super) fn is_mesh(&self, peer: &Peer) -> bool {
        let contact = self.contacts.get(peer.member);
        let neighbour = contact.is_some_and(|contact| contact.is_neighbour);
        neighbour || !peer.opened || self.schedule.plan().parents.is_empty()
    }

    /// Whether `peer` is beyond the border of this member's region. What a parent may still bring
    /// is not asked of it: each copy that crosses the border is one too many.
    pub(super) fn is_far(&self, peer: &Peer) -> bool {
        self.contacts.get(peer.member).is_some_and(|contact| contact.is_far)
    }

    /// Asks every peer for what its window has room for.
    pub(super) fn advance_all(&mut self, now_ms: u64) {
        (self.kick, self.is_blocked, self.is_limited) = (false, false, false);
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        keys.into_iter().for_each(|key| self.advance(key, now_ms));
    }

    /// Asks one peer for what its window has room for.
    pub(super) fn advance(&mut self, key: PeerKey, now_ms: u64) {
        if self.content.is_complete() {
            return;
        }
        let Some(peer) = self.peers.get(&key).filter(|peer| peer.can_ask(now_ms)) else { return };
        let any_open = self.schedule.any_open();
        let is_planned = !self.schedule.plan().parents.is_empty();
        let is_mesh = any_open && self.is_mesh(peer) && (!is_planned || self.has_room());
        let (copies_min, is_far) =
            if is_mesh { (self.copies_min(), self.is_far(peer)) } else { (0, false) };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let mut picker = Picker {
            content: &mut self.content,
            schedule: &mut self.schedule,
            random: &mut self.random,
            layer_asked: &mut self.layer_asked,
            leaves_asked: &mut self.leaves_asked,
            copies: &self.copies,
            copies_min,
            key,
            is_mesh,
            is_far,
            bytes_max: u32::MAX,
        };
        while peer.link.can_request() {
            let bytes = u64::from(peer.window.request_bytes());
            if peer.link.in_flight_bytes() + bytes > peer.window.bytes() {
                break;
            }
            let unwritten = picker.content.download.as_ref().map(|known| known.unwritten_bytes());
            if unwritten.unwrap_or(0) > WINDOW_BYTES_MAX {
                self.is_blocked = true;
                break;
            }
            if let Some(limit) = &mut self.down {
                let available = limit.available(now_ms);
                if available < u64::from(BLOCK_BYTES) {
                    self.is_limited = true;
                    break;
                }
                picker.bytes_max = u32::try_from(available).unwrap_or(u32::MAX);
            }
            let Some(want) = picker.next(peer) else { break };
            if !peer.owes() || matches!(want, Want::Hashes(_)) && peer.link.in_flight() == 0 {
                peer.progress_ms = now_ms;
            }
            match want {
                Want::Hashes(range) => peer.link.send(Message::HashRequest(range)),
                Want::Blocks(range) => {
                    self.down.iter_mut().for_each(|limit| limit.take(u64::from(range.len)));
                    peer.link.request(range, now_ms);
                }
            }
        }
        if peer.link.out_len() > 0 {
            self.ready.insert(key);
        }
        self.help_end(key, now_ms);
    }
}

/// Appends a write, joined with the one before it where file and buffer both go on.
fn push_write(actions: &mut Vec<Action>, offset: u64, data: Range<usize>) {
    match actions.last_mut() {
        Some(Action::Write { offset: start, data: before })
            if before.end == data.start && *start + before.len() as u64 == offset =>
        {
            before.end = data.end;
        }
        _ => actions.push(Action::Write { offset, data }),
    }
}

/// `peer` answered a hash request.
fn settle(peer: &mut Peer, range: &HashRange) -> Result<(), LinkError> {
    let at = peer.hash_asked.iter().position(|asked| asked == range);
    at.map(|at| peer.hash_asked.swap_remove(at)).map(|_| ()).ok_or(LinkError::Unrequested)
}
