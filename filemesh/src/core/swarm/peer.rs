//! State of one connection of a swarm.

use super::super::link::PeerLink;
use super::super::pace::Window;
use super::super::peer_wire::{BlockRange, HashRange, Message};
use super::super::upload::UploadQueue;
use super::extension::{HANDSHAKE, Take};
use crate::core::plan::Member;

/// First pause after a peer rejected what it was asked for; doubles up to [`PAUSE_MS_MAX`].
pub const PAUSE_MS: u64 = 50;

/// Longest such pause.
pub const PAUSE_MS_MAX: u64 = 5_000;

/// What may be usual between two answers at most: links that lose packets pause for their
/// retransmission, and a full queue before the link is some 200 ms long.
pub const USUAL_MS_MAX: u64 = 1_000;

/// What is taken for usual before it is known; after a hundred answers little is left of it.
const USUAL_MS_START: u64 = 500;

#[derive(Debug)]
pub(super) struct Peer {
    pub member: Member,
    /// Whether this side opened the connection.
    pub opened: bool,
    pub link: PeerLink,
    pub window: Window,
    pub uploads: UploadQueue,
    /// The number under which it wants `skein` messages, once it said so.
    pub skein: Option<u8>,
    /// What it takes from here.
    pub takes: Take,
    /// What it was told to send from its stripes.
    pub told: Take,
    /// Hashes that it owes; at most as many as its queue holds.
    pub hash_asked: Vec<HashRange>,
    /// The hash request for which the caller reads leaves.
    pub awaiting: Option<HashRange>,
    /// When it last answered, or began to owe.
    pub progress_ms: u64,
    /// The longest recent pause between two answers, slow to fall: what is usual on this link.
    pub pause_ms: u64,
    pub heard_ms: u64,
    pub late_since_ms: Option<u64>,
    pub paused_until_ms: u64,
    /// Rejects since the last answer.
    pub rejects: u32,
    /// It rejected hashes before, so data without them is no breach of order.
    pub hash_rejects: bool,
    /// How many of the pieces gained here it was told of.
    pub announced: usize,
    /// The piece that was last picked for it from the mesh.
    pub mesh_piece: Option<u32>,
    /// Whether a true block came from it.
    pub was_useful: bool,
}

impl Peer {
    pub fn new(
        member: Member,
        opened: bool,
        mut link: PeerLink,
        announced: usize,
        wants: bool,
        now_ms: u64,
    ) -> Self {
        link.send(Message::Extended(super::extension::EXTENDED_HANDSHAKE, HANDSHAKE));
        link.send(Message::Unchoke);
        if wants {
            link.send(Message::Interested);
        }
        Self {
            member,
            opened,
            link,
            window: Window::shared(now_ms),
            uploads: UploadQueue::default(),
            skein: None,
            takes: Take::default(),
            told: Take::default(),
            hash_asked: Vec::new(),
            awaiting: None,
            progress_ms: now_ms,
            pause_ms: USUAL_MS_START,
            heard_ms: now_ms,
            late_since_ms: None,
            paused_until_ms: 0,
            rejects: 0,
            hash_rejects: false,
            announced,
            mesh_piece: None,
            was_useful: false,
        }
    }

    /// Whether it may be asked for anything now.
    pub fn can_ask(&self, now_ms: u64) -> bool {
        self.link.can_request() && self.late_since_ms.is_none() && now_ms >= self.paused_until_ms
    }

    /// It answered.
    pub fn progressed(&mut self, now_ms: u64) {
        let pause_ms = now_ms.saturating_sub(self.progress_ms);
        let faded_ms = self.pause_ms - self.pause_ms.div_ceil(64);
        self.pause_ms = pause_ms.min(USUAL_MS_MAX).max(faded_ms);
        self.progress_ms = now_ms;
        self.rejects = 0;
    }

    /// Whether it holds any piece that it owes blocks of. One that does not waits itself.
    pub fn holds_what_it_owes(&self) -> bool {
        !self.hash_asked.is_empty()
            || self.link.owned().any(|range| self.link.have().has(range.piece))
    }

    pub fn owes(&self) -> bool {
        self.link.in_flight() > 0 || !self.hash_asked.is_empty()
    }

    /// Whether it has `piece`, or promised to send it as soon as it has.
    pub fn has_or_promises(&self, piece: u32) -> bool {
        self.link.have().has(piece) || (self.skein.is_some() && self.told.takes(piece))
    }

    /// Tells it what is taken from it, if that changed and it understands.
    pub fn tell(&mut self, take: Take) {
        let Some(id) = self.skein else { return };
        if take != self.told && (take.mask | self.told.mask) != 0 {
            self.link.send(Message::Extended(id, &take.encode()));
            self.told = take;
        }
    }

    /// Takes what it takes from here; requests that no longer may wait are rejected.
    pub fn set_takes(&mut self, takes: Take) {
        if takes.plan < self.takes.plan {
            return;
        }
        self.takes = takes;
        for range in self.uploads.drop_waiting(|piece| takes.takes(piece)) {
            self.link.send(Message::Reject(range));
        }
    }

    /// It rejected something that it should have: it is left alone for a while.
    pub fn pause(&mut self, now_ms: u64) {
        self.paused_until_ms = now_ms + (PAUSE_MS << self.rejects.min(8)).min(PAUSE_MS_MAX);
        self.rejects = self.rejects.saturating_add(1);
    }

    /// How long it will take for what it was asked for, as it was going so far.
    pub fn remaining_ms(&self, now_ms: u64) -> u64 {
        self.remaining_of(now_ms, |_| true)
    }

    /// The same of what it holds already.
    pub fn remaining_held_ms(&self, now_ms: u64) -> u64 {
        self.remaining_of(now_ms, |range| self.link.have().has(range.piece))
    }

    fn remaining_of(&self, now_ms: u64, which: impl Fn(&BlockRange) -> bool) -> u64 {
        let asked = self.link.cancellable().filter(which);
        let bytes: u64 = asked.map(|range| u64::from(range.len)).sum();
        let waited_ms = now_ms.saturating_sub(self.progress_ms);
        match self.window.bytes_per_s() {
            _ if bytes == 0 => 0,
            0 => waited_ms,
            rate => waited_ms.max(bytes * 1000 / rate),
        }
    }

    /// The ranges that can be taken back from it and that `which` names; of a late one also the
    /// range that is arriving, of which the rest may never come.
    pub fn cancellable(&self, which: impl Fn(&BlockRange) -> bool) -> Vec<BlockRange> {
        match self.late_since_ms {
            Some(_) => self.link.owned().filter(which).collect(),
            None => self.link.cancellable().filter(which).collect(),
        }
    }

    pub fn has_output(&self, gained: usize) -> bool {
        let idle = self.awaiting.is_none();
        self.link.out_len() > 0 || self.announced < gained || (idle && !self.uploads.is_empty())
    }
}
