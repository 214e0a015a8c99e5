//! What one peer asked for and did not get yet: requests in order, bounded, with a chunked head.
//!
//! The caller pulls, so a slow reader costs [`super::link::REQUESTS_MAX`] ranges of 12 bytes and
//! nothing else. Hash requests go before data: the peer needs them to prove what follows.

use super::link::REQUESTS_MAX;
use super::peer_wire::{BlockRange, HashRange};
use std::collections::VecDeque;

/// Hash requests that one peer may have waiting.
pub const HASH_QUEUE_MAX: usize = 64;

/// Bytes to send for a request: all of it, or the next part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Set at the start of a request: its piece message's header goes first.
    pub starts: Option<BlockRange>,
    /// The piece that the bytes are from.
    pub piece: u32,
    /// Their offset in the piece.
    pub begin: u32,
    /// Their number.
    pub len: u32,
}

/// Queue of one peer's requests.
#[derive(Debug, Default)]
pub struct UploadQueue {
    requests: VecDeque<BlockRange>,
    hashes: VecDeque<HashRange>,
    /// Bytes of the first request that are sent.
    sent: u32,
}

impl UploadQueue {
    /// Adds a request; false if the queue is full.
    #[must_use]
    pub fn push(&mut self, range: BlockRange) -> bool {
        let room = self.requests.len() < REQUESTS_MAX;
        if room {
            self.requests.push_back(range);
        }
        room
    }

    /// Adds a hash request; false if the queue is full.
    #[must_use]
    pub fn push_hashes(&mut self, range: HashRange) -> bool {
        let room = self.hashes.len() < HASH_QUEUE_MAX;
        if room {
            self.hashes.push_back(range);
        }
        room
    }

    /// Removes a request that is not being answered yet; false if there is none.
    pub fn cancel(&mut self, range: &BlockRange) -> bool {
        let started = usize::from(self.sent > 0);
        let mut waiting = self.requests.iter().enumerate().skip(started);
        let at = waiting.find(|(_, request)| *request == range).map(|(at, _)| at);
        at.and_then(|at| self.requests.remove(at)).is_some()
    }

    /// The next hash request, if no request's data is half sent.
    pub fn next_hashes(&mut self) -> Option<HashRange> {
        if self.sent > 0 { None } else { self.hashes.pop_front() }
    }

    /// The next bytes to send, at most `len_max`, which count as sent.
    pub fn next_chunk(&mut self, len_max: u32) -> Option<Chunk> {
        let range = *self.requests.front()?;
        let len = (range.len - self.sent).min(len_max);
        if len == 0 {
            return None;
        }
        let starts = (self.sent == 0).then_some(range);
        let chunk = Chunk { starts, piece: range.piece, begin: range.begin + self.sent, len };
        self.sent += len;
        if self.sent == range.len {
            self.requests.pop_front();
            self.sent = 0;
        }
        Some(chunk)
    }

    /// Whether data of a request is half sent, so that nothing else may be sent now.
    pub fn is_mid_request(&self) -> bool {
        self.sent > 0
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.hashes.is_empty()
    }

    /// Takes all requests that are not being answered.
    pub fn drain(&mut self) -> impl Iterator<Item = BlockRange> + '_ {
        let started = usize::from(self.sent > 0);
        self.requests.drain(started..)
    }
}
