//! What time asks for: late parents and what they owe, rate limits, silence, the end of a transfer.

use super::super::download::PeerKey;
use super::super::geometry::BLOCK_BYTES;
use super::super::geometry::Geometry;
use super::super::leecher::{SILENCE_MS, STALL_MS};
use super::super::link::{Have, KEEP_ALIVE_MS};
use super::super::peer_wire::BlockRange;
use super::peer::Peer;
use super::pick::Doubled;
use super::{Action, CloseReason, Swarm};

/// A peer that owes an answer is late when none came for its usual pause and then for this time, or
/// [`PATIENCE_PIECES`] piece times, whichever is longer.
pub const PATIENCE_MS_MIN: u64 = 200;

/// Piece times without progress that make a peer late: a piece time is what one piece takes at
/// the rate at which this member receives.
pub const PATIENCE_PIECES: u64 = 4;

/// A peer that is heard and does not hold what it owes waits itself, and whoever it waits for is to
/// be found late first: its own children give it so many times the patience.
const PATIENCES_OF_WAITING: u64 = 3;

/// A member that has nothing to send to one that waits says so by a keep-alive, this often: it is
/// heard.
pub const WAITING_MS: u64 = 100;

/// How far a stripe may be behind the most advanced one before its pieces are overdue. Connections
/// that share a link take turns at being slow for about this long; whoever asks others meanwhile
/// receives the same bytes twice and fills the links of those that are asked.
pub const BEHIND_MS: u64 = 1_500;

/// Patience before a rate was measured.
const PATIENCE_MS_START: u64 = 1_000;

/// A late peer that has all that it owes taken from it is tried again after this many patiences.
const PROBE_PATIENCES: u64 = 8;

/// Time between looks at what is late, open or near the end.
const LOOK_MS: u64 = 50;

/// A parent that is late for so many patiences will not bring what it owes.
const LOST_PATIENCES: u64 = 4;

/// Of the neighbours one in so many must have a piece that a parent may still bring, before it is
/// asked of them. What only the first few have is on its way down the trees, and these few would
/// send it to everybody instead of to their children.
const SPREAD: usize = 4;

/// What this member receives in this time may be on its way to it before it asks neighbours for
/// more: beyond, its own link is the limit, and what it would take back comes all the same.
const PIPE_MS: u64 = 300;

/// The same at least.
const PIPE_BYTES_MIN: u64 = 4 * BLOCK_BYTES as u64;

/// Ranges that are asked for twice at a time.
const DOUBLED_MAX: usize = 64;

/// The rate at which a member receives when it receives: averaged over slices, slow to fall.
#[derive(Debug)]
pub(super) struct Meter {
    start_ms: u64,
    bytes: u64,
    bytes_per_s: u64,
}

const SLICE_MS: u64 = 100;

impl Meter {
    pub fn new(now_ms: u64) -> Self {
        Self { start_ms: now_ms, bytes: 0, bytes_per_s: 0 }
    }

    pub fn arrived(&mut self, len: u64, now_ms: u64) {
        self.bytes += len;
        let elapsed_ms = now_ms.saturating_sub(self.start_ms);
        if elapsed_ms < SLICE_MS {
            return;
        }
        if elapsed_ms < 10 * SLICE_MS {
            let rate = self.bytes.saturating_mul(1000) / elapsed_ms;
            // Falls slowly: when little comes because parents are late, patience must not grow.
            let before = self.bytes_per_s;
            self.bytes_per_s = match rate >= before {
                true if before > 0 => (3 * before + rate) / 4,
                true => rate,
                false => before - before.min(before / 128 + 1).min(before - rate),
            };
        }
        (self.start_ms, self.bytes) = (now_ms, 0);
    }

    /// Time that a piece takes; `None` before the first measurement.
    fn piece_us(&self, geometry: &Geometry) -> Option<u64> {
        let piece_us = u64::from(geometry.piece_bytes()) * 1_000_000;
        (self.bytes_per_s > 0).then(|| (piece_us / self.bytes_per_s).max(1))
    }

    pub fn patience_ms(&self, geometry: &Geometry) -> u64 {
        let pieces_ms = self.piece_us(geometry).map(|us| PATIENCE_PIECES * us / 1000);
        pieces_ms.unwrap_or(PATIENCE_MS_START).clamp(PATIENCE_MS_MIN, STALL_MS)
    }

    /// What may be on its way before this member's own link counts as the limit.
    fn pipe_bytes(&self) -> u64 {
        match self.bytes_per_s {
            0 => u64::MAX,
            rate => (rate * PIPE_MS / 1000).max(PIPE_BYTES_MIN),
        }
    }

    /// Pieces that a stripe may be behind before they are overdue.
    pub fn behind_pieces(&self, geometry: &Geometry) -> u32 {
        let piece_us = self.piece_us(geometry).unwrap_or(u64::MAX);
        let pieces = (BEHIND_MS * 1000 / piece_us).max(PATIENCE_PIECES);
        u32::try_from(pieces).unwrap_or(u32::MAX)
    }
}

impl Swarm {
    /// Does what time asks for.
    pub fn tick(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        self.dial(now_ms, actions);
        self.listen(now_ms, actions);
        self.announce_due(now_ms);
        if std::mem::take(&mut self.is_throttled) {
            let waiting = self.peers.iter().filter(|(_, peer)| !peer.uploads.is_empty());
            self.ready.extend(waiting.map(|(key, _)| *key));
        }
        if !self.content.is_complete() {
            self.checked_ms = now_ms;
            self.find_late(now_ms, actions);
            self.steal(now_ms);
            self.advance_all(now_ms);
        }
        self.notice_end(actions);
    }

    /// When [`Swarm::tick`] is next needed; `None`: only after something happened.
    pub fn deadline_ms(&self) -> Option<u64> {
        let ready = |limit: &super::RateLimit| limit.ready_at(u64::from(BLOCK_BYTES));
        let fetching = !self.content.is_complete();
        let down = self.down.as_ref().filter(|_| self.is_limited && fetching).map(ready);
        let up = self.up.as_ref().filter(|_| self.is_throttled).map(ready);
        let look = (fetching && !self.peers.is_empty()).then_some(self.checked_ms + LOOK_MS);
        // Each look also listens, which is soon enough for the half minutes of a silent link: so
        // while there are looks, which is after each message of a transfer, no peer is asked.
        let quiet = if look.is_none() { self.quiet_ms() } else { None };
        let timers = [down, up, look, quiet, self.contacts.deadline_ms(), self.announce_at_ms];
        timers.into_iter().flatten().min()
    }

    /// When the first link needs a keep-alive or has been silent for too long.
    fn quiet_ms(&self) -> Option<u64> {
        let peers = self.peers.values().map(|peer| {
            let quiet = peer.heard_ms + SILENCE_MS;
            // Between the parts of a piece nothing else may be sent, so no keep-alive is due.
            let quiet_link = peer.link.out_len() == 0 && !peer.uploads.is_mid_request();
            if quiet_link { quiet.min(peer.link.keep_alive_at()) } else { quiet }
        });
        peers.min()
    }

    /// Sends keep-alives and gives up on peers that are not heard.
    fn listen(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let mut silent = vec![];
        for (key, peer) in &mut self.peers {
            if !peer.uploads.is_mid_request() {
                let waits = peer.uploads.is_empty() && peer.uploads.held() > 0;
                peer.link.keep_alive(if waits { WAITING_MS } else { KEEP_ALIVE_MS }, now_ms);
            }
            if peer.link.out_len() > 0 {
                self.ready.insert(*key);
            }
            let late_ms = peer.late_since_ms.map_or(0, |since| now_ms.saturating_sub(since));
            // What was taken back must be answered at once, even by one that itself waits.
            let mute = peer.link.in_flight() > peer.link.owned().count();
            let heard_ms = now_ms.saturating_sub(peer.heard_ms);
            let stalled = (mute && late_ms >= STALL_MS) || !peer.link.is_open();
            if heard_ms >= if stalled { STALL_MS } else { SILENCE_MS } {
                silent.push((*key, heard_ms));
            }
        }
        for (key, waited_ms) in silent {
            self.close(key, CloseReason::Silent { waited_ms }, now_ms, actions);
        }
    }

    /// Marks peers and parents late that owe something and made no progress.
    fn find_late(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let patience_ms = self.meter.patience_ms(&self.content.geometry);
        let (mut late, mut probed, mut lost) = (vec![], vec![], vec![]);
        for (key, peer) in &mut self.peers {
            let waited_ms = now_ms.saturating_sub(peer.progress_ms);
            let late_ms = peer.late_since_ms.map_or(0, |since| now_ms.saturating_sub(since));
            if late_ms >= LOST_PATIENCES * patience_ms {
                lost.push(peer.member);
            }
            let usual_ms = peer.pause_ms + patience_ms;
            let is_late = |peer: &Peer| {
                let is_heard = now_ms.saturating_sub(peer.heard_ms) < PATIENCE_MS_MIN;
                let waits = is_heard && !peer.holds_what_it_owes();
                waited_ms >= if waits { PATIENCES_OF_WAITING * usual_ms } else { usual_ms }
            };
            match peer.late_since_ms {
                None if waited_ms >= usual_ms && peer.owes() && is_late(peer) => {
                    peer.late_since_ms = Some(now_ms);
                    late.push((*key, peer.member));
                }
                Some(since)
                    if now_ms.saturating_sub(since) >= PROBE_PATIENCES * patience_ms
                        && peer.link.owned().next().is_none() =>
                {
                    (peer.late_since_ms, peer.progress_ms) = (None, now_ms);
                    probed.push(peer.member);
                }
                _ => {}
            }
        }
        lost.into_iter().for_each(|member| self.schedule.set_lost(member));
        for member in probed {
            self.schedule.set_late(member, false);
        }
        for (key, member) in late {
            self.forget_hashes(key);
            self.mark_late(member, now_ms, actions);
        }
        let absent = self.contacts.absent_parents();
        let absent = absent.filter(|(_, since)| now_ms.saturating_sub(*since) >= patience_ms);
        let absent: Vec<_> = absent.map(|(member, _)| member).collect();
        for member in absent {
            self.mark_late(member, now_ms, actions);
            self.schedule.set_lost(member);
        }
    }

    pub(super) fn mark_late(
        &mut self,
        member: crate::core::plan::Member,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        if self.schedule.set_late(member, true) {
            self.contacts.hurry(now_ms);
            actions.push(Action::ParentLate(member));
        }
    }

    /// `key` made progress, or can be asked again.
    pub(super) fn progressed(&mut self, key: PeerKey, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.progressed(now_ms);
        if peer.late_since_ms.take().is_some() {
            self.schedule.set_late(peer.member, false);
        }
    }

    /// Takes back what late peers owe and somebody else has. What nobody else has stays asked for,
    /// so that it comes as soon as the parent goes on.
    fn steal(&mut self, now_ms: u64) {
        let late = self.peers.iter().filter(|(_, peer)| peer.late_since_ms.is_some());
        let late: Vec<PeerKey> = late.map(|(key, _)| *key).collect();
        for key in late {
            let Some(peer) = self.peers.get(&key) else { continue };
            let ranges = peer.cancellable(|range| self.has_other_source(range, key, now_ms));
            ranges.into_iter().for_each(|range| self.take_back(key, range));
        }
        if self.schedule.any_overdue() && self.has_room() {
            self.relieve(now_ms);
        }
    }

    /// Whether this member's link has room for more than what is on its way. What parents were
    /// asked for and do not have yet is not.
    pub(super) fn has_room(&self) -> bool {
        let mut left = self.meter.pipe_bytes();
        for peer in self.peers.values().filter(|peer| peer.late_since_ms.is_none()) {
            let have = peer.link.have();
            let coming = peer.link.unanswered().filter(|range| have.has(range.piece));
            for range in coming {
                match left.checked_sub(range.len.into()) {
                    Some(rest) => left = rest,
                    None => return false,
                }
            }
        }
        true
    }

    /// Takes overdue pieces back from parents that are too slow for them, but for what they will
    /// send soon: much of that is on its way and would come nevertheless.
    fn relieve(&mut self, now_ms: u64) {
        let patience_ms = self.meter.patience_ms(&self.content.geometry);
        let soon_ms = if self.schedule.is_at_end() { patience_ms } else { BEHIND_MS };
        let mut overdue = vec![];
        for (key, peer) in &self.peers {
            if peer.late_since_ms.is_some() || peer.remaining_ms(now_ms) <= soon_ms {
                continue;
            }
            let mut keeps = peer.window.bytes_per_s() * soon_ms / 1000;
            let ranges = peer.cancellable(|range| self.schedule.is_overdue(range.piece));
            for range in ranges {
                if keeps >= u64::from(range.len) {
                    keeps -= u64::from(range.len);
                } else if self.has_other_source(&range, *key, now_ms) {
                    overdue.push((*key, range));
                }
            }
        }
        overdue.into_iter().for_each(|(key, range)| self.take_back(key, range));
    }

    fn has_other_source(&self, range: &BlockRange, key: PeerKey, now_ms: u64) -> bool {
        let is_for_all = self.is_for_all(range.piece);
        let is_expected = self.schedule.is_expected(range.piece);
        is_for_all
            && self.peers.iter().any(|(other, peer)| {
                *other != key
                    && peer.can_ask(now_ms)
                    && peer.link.have().has(range.piece)
                    && self.is_mesh(peer)
                    && !(is_expected && self.is_far(peer))
            })
    }

    /// Whether so many neighbours have `piece` that they may be asked for it, or no parent will
    /// bring it.
    fn is_for_all(&self, piece: u32) -> bool {
        let copies = usize::from(self.copies[piece as usize]);
        !self.schedule.is_expected(piece) || copies >= self.copies_min()
    }

    /// Neighbours that must have a piece before it is asked of one of them; those that have all of
    /// the file are not counted in `copies` and count here.
    pub(super) fn copies_min(&self) -> usize {
        let few = self.peers.len() <= SPREAD;
        let spread = (self.peers.len() / SPREAD).max(if few { 1 } else { 2 });
        let complete = |peer: &&Peer| matches!(peer.link.have(), Have::All) && self.is_mesh(peer);
        spread.saturating_sub(self.peers.values().filter(complete).count())
    }

    /// Takes `range` back from a peer; its blocks are asked for elsewhere.
    pub(super) fn take_back(&mut self, key: PeerKey, range: BlockRange) {
        if self.peers.get_mut(&key).is_some_and(|peer| peer.link.cancel(range)) {
            self.ready.insert(key);
            self.release(range);
        }
    }

    pub(super) fn release(&mut self, range: BlockRange) {
        if let Some(download) = &mut self.content.download {
            download.release(range);
            self.schedule.released(range.piece);
            self.kick = true;
        }
    }

    /// Near the end: asks an idle peer for what the slowest one still owes.
    pub(super) fn help_end(&mut self, key: PeerKey, now_ms: u64) {
        let Some(download) = &mut self.content.download else { return };
        if !download.is_all_assigned() || self.doubled.len() >= DOUBLED_MAX {
            return;
        }
        let Some(helper) = self.peers.get(&key) else { return };
        if helper.link.in_flight() > 0 || !helper.can_ask(now_ms) || !self.is_mesh(helper) {
            return;
        }
        if self.is_far(helper) {
            return;
        }
        if !self.has_room() {
            return;
        }
        // What a parent waits for itself is asked for ahead, and comes as it comes to the parent:
        // whoever asks a complete member for it takes the link from that member's own children.
        let patience_ms = self.meter.patience_ms(&self.content.geometry);
        let others = self.peers.iter().filter(|(other, _)| **other != key);
        let slowest = others.map(|(other, peer)| {
            let held_ms = peer.remaining_held_ms(now_ms).saturating_sub(patience_ms / 2);
            let enough_ms = peer.window.hold_ms() + patience_ms;
            (peer.remaining_ms(now_ms).saturating_sub(enough_ms).max(held_ms), *other)
        });
        let Some((excess_ms, slow)) = slowest.max() else { return };
        if excess_ms <= self.first_end_ms(slow, now_ms) {
            return;
        }
        let Some(download) = &self.content.download else { return };
        let mut ranges = self.peers[&slow].cancellable(|range| {
            helper.link.have().has(range.piece)
                && !download.hashes().lacks_leaves(range.piece)
                && download.hashes().proves_piece(range.piece)
                && !self.doubled.iter().any(|doubled| doubled.range == *range)
        });
        // The last ones: the first are the next to come anyway.
        let window = helper.window.bytes() / 2;
        let mut bytes = 0;
        ranges.reverse();
        ranges.truncate(DOUBLED_MAX - self.doubled.len());
        let Some(helper) = self.peers.get_mut(&key) else { return };
        for range in ranges {
            bytes += u64::from(range.len);
            if bytes > window || !helper.link.can_request() {
                break;
            }
            if !helper.owes() {
                helper.progress_ms = now_ms;
            }
            helper.link.request_again(range, now_ms);
            self.doubled.push(Doubled { range, peers: [slow, key] });
        }
        self.ready.insert(key);
    }

    /// How long the first of the parents beside `slow` still needs: where all need as long, none is
    /// slow, and whoever helped one would only keep another from sending.
    fn first_end_ms(&self, slow: PeerKey, now_ms: u64) -> u64 {
        let parents = self.peers.iter().filter(|(key, peer)| {
            **key != slow && self.schedule.plan().parents.contains(&Some(peer.member))
        });
        parents.map(|(_, peer)| peer.remaining_ms(now_ms)).min().unwrap_or(0)
    }

    /// Takes back what was asked for twice and is here.
    pub(super) fn settle_doubled(&mut self) {
        let Self { doubled, content, peers, ready, .. } = self;
        doubled.retain(|doubled| {
            let here = content.has_range(&doubled.range);
            for key in doubled.peers.iter().filter(|_| here) {
                if peers.get_mut(key).is_some_and(|peer| peer.link.cancel(doubled.range)) {
                    ready.insert(*key);
                }
            }
            !here
        });
    }
}
