//! One transfer on one member: many peers, both directions, following a plan.
//!
//! Bytes, events and time in; actions out. Pieces come along planned parents, block by block as
//! the parents prove them; what is late is asked of neighbours, rarest first; near the end the last
//! blocks are asked for twice. Whatever is proved here is served to whoever is connected. There is
//! no tit-for-tat: who is let in is unchoked.
//!
//! ```text
//!   swarm.set_plan(plan, now, &mut actions)                       Connect(member) → dial
//!   swarm.connected(key, member, Dial::Opened, now, &mut actions)
//!   per peer:  socket → buf;  used = swarm.receive(key, buf, now, &mut actions)
//!   per key of swarm.take_ready():  while let Some(pull) = swarm.next(key, room, &mut out, now)
//!        Data → append these bytes of the file;  Leaves → swarm.leaves(key, bytes, &mut out, now)
//!   Write → file;  swarm.written(len, now);   next_check() → read → checked()
//!   at swarm.deadline_ms(): swarm.tick(now, &mut actions);   now and then: swarm.take_report()
//! ```
//!
//! The invariant: a block is written, counted or relayed only when it is proved. The first false
//! block or hash names its sender, ends its connection and bans the member from this swarm.
//!
//! What a peer can make a swarm hold is bounded: [`REQUESTS_MAX`](super::link::REQUESTS_MAX)
//! requests and [`HASH_QUEUE_MAX`](super::upload::HASH_QUEUE_MAX) hash requests that wait,
//! [`OUT_BYTES_MAX`](super::link::OUT_BYTES_MAX) control bytes, one bit per piece; and there are at
//! most [`Config::links_max`] peers.

mod actions;
mod contacts;
mod content;
pub mod extension;
mod late;
mod links;
mod peer;
mod pick;
mod receive;
mod schedule;
mod serve;

#[cfg(test)]
mod tests;

use super::download::{Download, PeerKey, Progress};
use super::link::Have;
use super::pace::RateLimit;
use super::peer_wire::{HASHES_MAX, Handshake};
use super::piece_tree::PieceTree;
use super::plan::{HostPlan, Member};
use contacts::Contacts;
use content::Content;
use peer::Peer;
use pick::{Doubled, Random};
use schedule::Schedule;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

pub use super::seeder::Pull;
pub use actions::{Action, CloseReason, Report};
pub use contacts::{RETRY_MS, RETRY_MS_MAX, YIELD_MS};
pub use late::{BEHIND_MS, PATIENCE_MS_MIN, PATIENCE_PIECES, WAITING_MS};
pub use links::Dial;

/// What a swarm is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The handshake of this member for this transfer.
    pub handshake: Handshake,
    /// Bytes per second sent at most; 0: no limit.
    pub up_bytes_per_s: u64,
    /// Bytes per second asked for at most; 0: no limit.
    pub down_bytes_per_s: u64,
    /// Connections at most.
    pub links_max: usize,
    /// Seed of what is random: where the search for a rare piece starts.
    pub seed: u64,
}

impl Config {
    /// No rate limits, 256 connections.
    pub fn new(handshake: Handshake, seed: u64) -> Self {
        Self { handshake, up_bytes_per_s: 0, down_bytes_per_s: 0, links_max: 256, seed }
    }
}

/// What a member starts with.
#[derive(Debug)]
pub enum Start {
    /// A download, with what it holds or claims already.
    Download(Box<Download>),
    /// The whole file.
    Complete(Arc<PieceTree>),
}

/// State of one transfer on one member.
#[derive(Debug)]
pub struct Swarm {
    me: Member,
    config: Config,
    content: Content,
    schedule: Schedule,
    contacts: Contacts,
    peers: BTreeMap<PeerKey, Peer>,
    random: Random,
    down: Option<RateLimit>,
    up: Option<RateLimit>,
    /// Whether a rate limit holds back a request, and data.
    is_limited: bool,
    is_throttled: bool,
    /// Whether what is not written yet holds back requests.
    is_blocked: bool,
    layer_asked: Vec<Option<PeerKey>>,
    leaves_asked: BTreeMap<u32, PeerKey>,
    copies: Vec<u16>,
    /// Pieces in the order in which they became complete here, for announcements and reports.
    gained: Vec<u32>,
    reported: usize,
    /// When peers are to be told of the pieces that they were not told of.
    announce_at_ms: Option<u64>,
    doubled: Vec<Doubled>,
    ready: BTreeSet<PeerKey>,
    /// Something became open that other peers than the one at hand may be asked for.
    kick: bool,
    meter: late::Meter,
    checked_ms: u64,
    up_bytes: u64,
    down_bytes: u64,
    /// Proved bytes by the member that sent them.
    received: BTreeMap<Member, u64>,
    report: Report,
    is_done: bool,
}

impl Swarm {
    /// The swarm of member `me`. Call [`Swarm::tick`] once to start it.
    pub fn new(start: Start, me: Member, config: Config, now_ms: u64) -> Self {
        let content = match start {
            Start::Download(download) => Content::downloading(*download),
            Start::Complete(tree) => Content::complete(tree),
        };
        let pieces = content.geometry.piece_count();
        let limit = |rate| (rate > 0).then(|| RateLimit::new(rate, now_ms));
        Self {
            me,
            schedule: Schedule::new(&content.geometry),
            contacts: Contacts::default(),
            peers: BTreeMap::new(),
            random: Random::new(config.seed),
            down: limit(config.down_bytes_per_s),
            up: limit(config.up_bytes_per_s),
            is_limited: false,
            is_throttled: false,
            is_blocked: false,
            layer_asked: vec![None; pieces.div_ceil(HASHES_MAX) as usize],
            leaves_asked: BTreeMap::new(),
            copies: vec![0; pieces as usize],
            gained: Vec::new(),
            reported: 0,
            announce_at_ms: None,
            doubled: Vec::new(),
            ready: BTreeSet::new(),
            kick: false,
            meter: late::Meter::new(now_ms),
            checked_ms: now_ms,
            up_bytes: 0,
            down_bytes: 0,
            received: BTreeMap::new(),
            report: Report::default(),
            is_done: content.download.is_none(),
            content,
            config,
        }
    }

    /// This member's number.
    pub fn me(&self) -> Member {
        self.me
    }

    /// The plan that is followed.
    pub fn plan(&self) -> &HostPlan {
        self.schedule.plan()
    }

    /// Whether everything is here and written.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Counters of the download; `None` of a member that started with the whole file.
    pub fn progress(&self) -> Option<Progress> {
        self.content.download.as_ref().map(Download::progress)
    }

    /// The download, for its blocks and hashes.
    pub fn download(&self) -> Option<&Download> {
        self.content.download.as_ref()
    }

    /// The tree over the piece layer once it is known, for a sidecar.
    pub fn tree(&self) -> Option<&Arc<PieceTree>> {
        self.content.tree.as_ref()
    }

    /// Bytes of the file that were handed out to be sent, and that arrived, since the start.
    pub fn traffic(&self) -> (u64, u64) {
        (self.up_bytes, self.down_bytes)
    }

    /// Proved bytes by the member that sent them, since the start. What came twice counts for who
    /// was first; what was resumed is not in it.
    pub fn received(&self) -> &BTreeMap<Member, u64> {
        &self.received
    }

    /// The pieces that are complete.
    pub fn have(&self) -> Have {
        self.content.have()
    }

    /// The connections and the members at their other ends.
    pub fn peers(&self) -> impl Iterator<Item = (PeerKey, Member)> + '_ {
        self.peers.iter().map(|(key, peer)| (*key, peer.member))
    }

    /// Bytes of a peer's stream, from the first that [`Swarm::receive`] did not use up, that are data,
    /// so that they can be received where they stay; 0: a message comes next. The second answer is
    /// whether data may come behind it.
    pub fn arriving(&self, key: PeerKey) -> (u32, bool) {
        let link = self.peers.get(&key).map(|peer| &peer.link);
        link.map_or((0, false), |link| (link.arriving_bytes(), link.in_flight() > 0))
    }

    /// Confirms that `len` bytes of [`Action::Write`]s are written.
    pub fn written(&mut self, len: u64, now_ms: u64, actions: &mut Vec<Action>) {
        if let Some(download) = &mut self.content.download {
            download.written(len);
        }
        if self.is_blocked {
            self.advance_all(now_ms);
        }
        self.notice_end(actions);
    }

    /// The next range of the file that an earlier run claims to have written: read it and answer
    /// with [`Swarm::checked`]. `None`: nothing to check now; ask again after
    /// [`Swarm::receive`].
    pub fn next_check(&mut self) -> Option<Range<u64>> {
        self.content.download.as_mut()?.next_check()
    }

    /// What the disk holds in the range of the last [`Swarm::next_check`], or `None` if it could
    /// not be read.
    pub fn checked(&mut self, data: Option<&[u8]>, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(download) = &mut self.content.download else { return };
        for block in download.checked(data) {
            let piece = self.content.geometry.piece_of(block);
            self.schedule.released(piece);
            if self.content.has_block(block) {
                self.proved(block, now_ms);
            }
        }
        self.advance_all(now_ms);
        self.notice_end(actions);
    }

    fn notice_end(&mut self, actions: &mut Vec<Action>) {
        let done = self.content.download.as_ref().is_some_and(Download::is_done);
        if done && !self.is_done {
            self.is_done = true;
            for (key, peer) in &mut self.peers {
                peer.link.send(super::peer_wire::Message::NotInterested);
                self.ready.insert(*key);
            }
            actions.push(Action::Done);
        }
    }

    /// What changed since the last report.
    pub fn take_report(&mut self) -> Report {
        let gained = actions::ranges(self.gained[self.reported..].to_vec());
        self.reported = self.gained.len();
        Report {
            plan: self.schedule.plan().number,
            gained,
            late: self.schedule.late(),
            liars: self.contacts.banned(),
            ..std::mem::take(&mut self.report)
        }
    }
}
