//! Fetches a file from one peer: a [`PeerLink`] that drives a [`Download`].
//!
//! Bytes in, [`Action`]s out. Hashes are asked for just ahead of the blocks they prove, on the same
//! link, so the first block costs no extra round trip. A block is proved in the buffer it arrived
//! in and handed out as a range of it: nothing is copied here. The first false block or hash ends
//! the link and names the peer; the download outlives the link ([`Leecher::into_download`]) and goes
//! on with another.
//!
//! ```text
//!   loop:  leecher.take_output(&mut out, now)            → socket
//!          socket → buf;  leecher.receive(&buf, now, &mut actions) = consumed
//!          for Write: file.write_at(offset, &buf[data]); leecher.written(len, now, &mut actions)
//!          while let Some(range) = leecher.next_check(): leecher.checked(file.read(range), ...)
//!          drop `consumed` bytes of buf;  at leecher.deadline_ms(): leecher.tick(now, &mut actions)
//! ```

use super::download::{Download, PeerKey, Verdict, Want};
use super::geometry::BLOCK_BYTES;
use super::hashes::Learned;
use super::link::{Event, Have, LinkError, PeerLink};
use super::merkle::Hash;
use super::pace::{RateLimit, WINDOW_BYTES_MAX, Window};
use super::peer_wire::{Handshake, Message};
use std::ops::Range;
use std::sync::Arc;

pub use super::failure::Failure;

/// A peer that owes an answer may be silent for this long.
pub const STALL_MS: u64 = 30_000;

/// A peer that owes nothing must send a keep-alive within this time (it does every 30 s).
pub const SILENCE_MS: u64 = 120_000;

/// The key of a leecher's only peer in its download.
const PEER: PeerKey = 0;

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write these proved bytes of the buffer given to [`Leecher::receive`] at `offset`, then call
    /// [`Leecher::written`].
    Write {
        /// Where in the file.
        offset: u64,
        /// Where in the buffer.
        data: Range<usize>,
    },
    /// The proved leaves of a piece, padded to a power of two. For callers that will serve the
    /// file; others ignore it.
    Leaves {
        /// The piece.
        piece: u32,
        /// Its leaves.
        leaves: Arc<[Hash]>,
    },
    /// Everything is proved and written. Comes once.
    Done,
    /// The link is over. Comes once; nothing follows.
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Done,
    Failed,
}

/// What a leecher is told at its start.
#[derive(Debug, Clone, Default)]
pub struct LeecherOptions {
    /// The caller's name for the peer, for errors.
    pub peer_name: String,
    /// Bytes per second that are asked for; 0: no limit.
    pub rate_limit_bytes_per_s: u64,
}

/// State of fetching a file from one peer.
#[derive(Debug)]
pub struct Leecher {
    download: Download,
    link: PeerLink,
    peer_name: String,
    window: Window,
    limit: Option<RateLimit>,
    /// Whether only the rate limit keeps the next request back.
    is_limited: bool,
    /// When an answer last came, or the peer began to owe one.
    progress_ms: u64,
    heard_ms: u64,
    state: State,
}

impl Leecher {
    /// A leecher that opened the connection. Call [`Leecher::tick`] once to start it.
    pub fn connect(
        download: Download,
        ours: Handshake,
        options: LeecherOptions,
        now_ms: u64,
    ) -> Self {
        let link = PeerLink::connect(download.geometry(), ours, &have_of(&download), now_ms);
        Self::new(download, link, options, now_ms)
    }

    /// A leecher for a connection that the peer opened with `theirs`. Call [`Leecher::tick`] once
    /// to start it.
    pub fn accept(
        download: Download,
        ours: Handshake,
        theirs: &Handshake,
        options: LeecherOptions,
        now_ms: u64,
    ) -> Result<Self, LinkError> {
        let have = have_of(&download);
        let link = PeerLink::accept(download.geometry(), ours, theirs, &have, now_ms)?;
        Ok(Self::new(download, link, options, now_ms))
    }

    fn new(download: Download, mut link: PeerLink, options: LeecherOptions, now_ms: u64) -> Self {
        link.send(Message::Interested);
        let limit = options.rate_limit_bytes_per_s;
        Self {
            download,
            link,
            peer_name: options.peer_name,
            window: Window::new(now_ms),
            limit: (limit > 0).then(|| RateLimit::new(limit, now_ms)),
            is_limited: false,
            progress_ms: now_ms,
            heard_ms: now_ms,
            state: State::Running,
        }
    }

    /// The download with its counters.
    pub fn download(&self) -> &Download {
        &self.download
    }

    /// The link to the peer.
    pub fn link(&self) -> &PeerLink {
        &self.link
    }

    /// Bytes that are kept in flight at present.
    pub fn window_bytes(&self) -> u64 {
        self.window.bytes()
    }

    /// Ends the link and keeps what was fetched. Writes that are still under way are confirmed to
    /// [`Download::written`].
    pub fn into_download(mut self) -> Download {
        self.download.release_peer(PEER, self.link.unanswered());
        self.download
    }

    /// Appends the bytes that are to be sent to `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>, now_ms: u64) {
        self.link.take_output(out, now_ms);
    }

    /// Takes received bytes; the answer is how many of them are used up. `actions` refer to `buf`.
    /// The rest must come again, with more behind it. A buffer of
    /// [`MESSAGE_BYTES_MAX`](super::peer_wire::MESSAGE_BYTES_MAX) is enough; with a larger one
    /// neighbouring blocks leave as one write.
    pub fn receive(&mut self, buf: &[u8], now_ms: u64, actions: &mut Vec<Action>) -> usize {
        let mut consumed = 0;
        if !buf.is_empty() {
            self.heard_ms = now_ms;
        }
        while self.state == State::Running {
            let step = match self.link.next(&buf[consumed..], now_ms) {
                Ok(step) => step,
                Err(error) => {
                    self.protocol(error, actions);
                    break;
                }
            };
            if let Some(event) = step.event {
                self.apply(event, buf, consumed, now_ms, actions);
            } else if step.consumed == 0 {
                break;
            }
            consumed += step.consumed;
        }
        self.advance(now_ms, actions);
        consumed
    }

    fn apply(
        &mut self,
        event: Event,
        buf: &[u8],
        base: usize,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        match event {
            Event::Block { block, data, latency_ms } => {
                self.progress_ms = now_ms;
                latency_ms.into_iter().for_each(|latency_ms| self.window.latency(latency_ms));
                self.window.arrived(data.len() as u64, now_ms);
                let data = base + data.start..base + data.end;
                self.block(block, buf, data, actions);
            }
            Event::Hashes(range, data) => {
                self.progress_ms = now_ms;
                let bytes = &buf[base + data.start..base + data.end];
                match self.download.learn(PEER, &range, bytes) {
                    Some(Ok(learned)) => self.learned(&learned, actions),
                    Some(Err(false_hashes)) => {
                        self.fail(|peer| Failure::FalseHashes { peer, false_hashes }, actions);
                    }
                    None => self.protocol(LinkError::Unrequested, actions),
                }
            }
            Event::HashRejected(range) => {
                if self.download.hashes_rejected(PEER, &range).is_some() {
                    self.fail(|peer| Failure::Refused { peer }, actions);
                } else {
                    self.protocol(LinkError::Unrequested, actions);
                }
            }
            Event::Rejected(range) | Event::Dropped(range) => {
                self.download.release(range);
                self.fail(|peer| Failure::Refused { peer }, actions);
            }
            Event::Request(range) => self.link.send(Message::Reject(range)),
            Event::HashRequest(range) => self.link.send(Message::HashReject(range)),
            Event::Handshake | Event::Have | Event::HavePiece(_) | Event::Choked(_) => {
                // News is no answer to a request.
                if self.link.in_flight() == 0 {
                    self.progress_ms = now_ms;
                }
            }
            Event::Interested(_) | Event::Cancel(_) | Event::Extended(..) => {}
        }
        if self.link.out_len() > super::link::OUT_BYTES_MAX {
            self.protocol(LinkError::Flood, actions);
        }
    }

    fn block(&mut self, block: u32, buf: &[u8], data: Range<usize>, actions: &mut Vec<Action>) {
        match self.download.block(block, &buf[data.clone()]) {
            Verdict::Write(offset) => push_write(actions, offset, data),
            Verdict::Lie => {
                let offset = self.download.geometry().block_offset(block);
                self.fail(|peer| Failure::FalseBlock { peer, offset }, actions);
            }
            Verdict::Unprovable => self.protocol(LinkError::Order, actions),
            Verdict::Duplicate => {}
        }
    }

    /// Hands out leaves that became known.
    fn learned(&mut self, learned: &Learned, actions: &mut Vec<Action>) {
        let pieces = match learned {
            Learned::Leaves(pieces) => pieces.clone(),
            // With pieces of one block the layer is the leaves.
            Learned::Layer(pieces) if self.download.geometry().piece_height() == 0 => {
                pieces.clone()
            }
            Learned::Layer(_) => return,
            Learned::TooEarly => return self.protocol(LinkError::Order, actions),
        };
        for piece in pieces {
            if let Some(leaves) = self.download.leaves(piece) {
                actions.push(Action::Leaves { piece, leaves });
            }
        }
    }

    fn protocol(&mut self, error: LinkError, actions: &mut Vec<Action>) {
        self.fail(|peer| Failure::Protocol { peer, error }, actions);
    }

    fn fail(&mut self, failure: impl FnOnce(String) -> Failure, actions: &mut Vec<Action>) {
        if self.state == State::Running {
            self.state = State::Failed;
            actions.push(Action::Failed(failure(std::mem::take(&mut self.peer_name))));
        }
    }

    /// Confirms that `len` bytes of [`Action::Write`]s are written.
    pub fn written(&mut self, len: u64, now_ms: u64, actions: &mut Vec<Action>) {
        self.download.written(len);
        self.advance(now_ms, actions);
    }

    /// The next range of the file that an earlier run claims to have written: read it and answer
    /// with [`Leecher::checked`]. `None`: nothing to check now.
    pub fn next_check(&mut self) -> Option<Range<u64>> {
        (self.state == State::Running).then(|| self.download.next_check())?
    }

    /// What the disk holds in the range of the last [`Leecher::next_check`], or `None` if it could
    /// not be read.
    pub fn checked(&mut self, data: Option<&[u8]>, now_ms: u64, actions: &mut Vec<Action>) {
        self.download.checked(data);
        self.advance(now_ms, actions);
    }

    /// Does what time asks for: requests under a rate limit, keep-alives, giving up on a peer.
    pub fn tick(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        self.advance(now_ms, actions);
        if self.state != State::Running {
            return;
        }
        self.link.tick(now_ms);
        let (since, bound) = self.patience();
        let waited_ms = now_ms.saturating_sub(since);
        if waited_ms >= bound {
            self.fail(|peer| Failure::Stalled { peer, waited_ms }, actions);
        }
    }

    /// When [`Leecher::tick`] is next needed; `None` when the leecher is over.
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.state != State::Running {
            return None;
        }
        let (since, bound) = self.patience();
        let limit = self.limit.as_ref().filter(|_| self.is_limited);
        let ready = limit.map_or(u64::MAX, |limit| limit.ready_at(u64::from(BLOCK_BYTES)));
        Some((since + bound).min(self.link.keep_alive_at()).min(ready))
    }

    /// Since when the peer is waited for, and how long it may take.
    fn patience(&self) -> (u64, u64) {
        let owes = self.link.in_flight() > 0
            || self.download.owes_hashes(PEER)
            || !self.link.is_open()
            || self.link.is_choked();
        if owes { (self.progress_ms, STALL_MS) } else { (self.heard_ms, SILENCE_MS) }
    }

    fn has_room(&self, len: u64) -> bool {
        let (in_flight, unwritten) = (self.link.in_flight_bytes(), self.download.unwritten_bytes());
        in_flight + len <= self.window.bytes()
            && in_flight + unwritten + len <= 2 * WINDOW_BYTES_MAX
    }

    /// Asks for what the window has room for, and notices the end.
    fn advance(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if self.state != State::Running {
            return;
        }
        if self.download.is_done() {
            self.state = State::Done;
            self.link.send(Message::NotInterested);
            actions.push(Action::Done);
            return;
        }
        self.is_limited = false;
        while self.link.can_request() {
            let mut bytes = self.window.request_bytes();
            if !self.has_room(u64::from(bytes)) {
                break;
            }
            if let Some(limit) = &mut self.limit {
                bytes = limit.available(now_ms).min(u64::from(bytes)) as u32;
                self.is_limited = bytes < BLOCK_BYTES;
                if self.is_limited {
                    break;
                }
            }
            let idle = self.link.in_flight() == 0 && !self.download.owes_hashes(PEER);
            match self.download.next_want(PEER, self.link.have(), bytes) {
                Some(Want::Hashes(range)) => self.link.send(Message::HashRequest(range)),
                Some(Want::Blocks(range)) => {
                    self.limit.iter_mut().for_each(|limit| limit.take(u64::from(range.len)));
                    self.link.request(range, now_ms);
                }
                None => break,
            }
            if idle {
                self.progress_ms = now_ms;
            }
        }
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

fn have_of(download: &Download) -> Have {
    Have::Some(download.verified().pieces().clone())
}
