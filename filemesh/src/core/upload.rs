//! What one peer asked for and did not get yet: requests in order, bounded, with a chunked head.
//!
//! The caller pulls, so a slow reader costs [`super::link::REQUESTS_MAX`] ranges of 12 bytes and
//! nothing else. Hash requests go before data: the peer needs them to prove what follows.
//!
//! A member that is still downloading lets requests *wait* for what it does not have yet; they
//! become ready in the order in which their blocks are proved, not in which they were made.

use super::link::REQUESTS_MAX;
use super::peer_wire::{BlockRange, HashRange, REQUEST_BYTES_MAX};
use std::collections::{BTreeMap, VecDeque};

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
    /// Length of what is not here yet, by piece and offset in it.
    waiting: BTreeMap<(u32, u32), u32>,
    waiting_hashes: Vec<HashRange>,
    /// Bytes of the first request that are sent.
    sent: u32,
}

impl UploadQueue {
    /// Adds a request; false if the queue is full.
    #[must_use]
    pub fn push(&mut self, range: BlockRange) -> bool {
        let room = self.has_room();
        if room {
            self.requests.push_back(range);
        }
        room
    }

    fn has_room(&self) -> bool {
        self.requests.len() + self.waiting.len() < REQUESTS_MAX
    }

    /// Adds a request for what is not here yet; false if the queue is full or one waits there.
    #[must_use]
    pub fn wait(&mut self, range: BlockRange) -> bool {
        let at = (range.piece, range.begin);
        let room = self.has_room() && !self.waiting.contains_key(&at);
        if room {
            self.waiting.insert(at, range.len);
        }
        room
    }

    /// The block at offset `begin` of `piece` came: makes the requests that it completes ready, as
    /// `is_here` says. True if there are any.
    pub fn block_here(
        &mut self,
        piece: u32,
        begin: u32,
        is_here: impl Fn(&BlockRange) -> bool,
    ) -> bool {
        let ready = self.requests.len();
        let mut from = (piece, begin.saturating_sub(REQUEST_BYTES_MAX));
        while let Some((at, len)) = self.waiting.range(from..).next() {
            if *at > (piece, begin) {
                break;
            }
            let range = BlockRange { piece, begin: at.1, len: *len };
            from = (piece, at.1 + 1);
            if range.begin + range.len > begin && is_here(&range) {
                self.waiting.remove(&(range.piece, range.begin));
                self.requests.push_back(range);
            }
        }
        self.requests.len() > ready
    }

    /// Takes the waiting requests for pieces that `keep` does not name.
    pub fn drop_waiting(&mut self, keep: impl Fn(u32) -> bool) -> Vec<BlockRange> {
        let gone = self.waiting.iter().filter(|((piece, _), _)| !keep(*piece));
        let range =
            |(at, len): (&(u32, u32), &u32)| BlockRange { piece: at.0, begin: at.1, len: *len };
        let gone: Vec<BlockRange> = gone.map(range).collect();
        gone.iter().for_each(|range| {
            self.waiting.remove(&(range.piece, range.begin));
        });
        gone
    }

    /// Adds a hash request; false if the queue is full.
    #[must_use]
    pub fn push_hashes(&mut self, range: HashRange) -> bool {
        let room = self.has_hash_room();
        if room {
            self.hashes.push_back(range);
        }
        room
    }

    fn has_hash_room(&self) -> bool {
        self.hashes.len() + self.waiting_hashes.len() < HASH_QUEUE_MAX
    }

    /// Adds a request for hashes that are not known yet; false if the queue is full.
    #[must_use]
    pub fn wait_hashes(&mut self, range: HashRange) -> bool {
        let room = self.has_hash_room();
        if room {
            self.waiting_hashes.push(range);
        }
        room
    }

    /// Makes the waiting hash requests ready that `is_known` names. True if there are any.
    pub fn hashes_here(&mut self, is_known: impl Fn(&HashRange) -> bool) -> bool {
        let ready = self.hashes.len();
        self.hashes.extend(self.waiting_hashes.extract_if(.., |range| is_known(range)));
        self.hashes.len() > ready
    }

    /// Requests and hash requests that are held.
    pub fn held(&self) -> usize {
        self.requests.len() + self.waiting.len() + self.hashes.len() + self.waiting_hashes.len()
    }

    /// Removes a request that is not being answered yet; false if there is none.
    pub fn cancel(&mut self, range: &BlockRange) -> bool {
        let at = (range.piece, range.begin);
        if self.waiting.get(&at) == Some(&range.len) {
            return self.waiting.remove(&at).is_some();
        }
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

    /// Whether there is nothing to send now.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.hashes.is_empty()
    }

    /// Takes all requests that are not being answered.
    pub fn drain(&mut self) -> impl Iterator<Item = BlockRange> + '_ {
        let started = usize::from(self.sent > 0);
        self.requests.drain(started..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(piece: u32, begin: u32, len: u32) -> BlockRange {
        BlockRange { piece, begin, len }
    }

    #[test]
    fn requests_become_ready_in_the_order_of_their_blocks() {
        let mut queue = UploadQueue::default();
        let wide = range(1, 0, 32_768);
        assert!(queue.wait(wide) && queue.wait(range(1, 32_768, 16_384)));
        assert!(queue.wait(range(2, 0, 16_384)) && !queue.wait(range(2, 0, 16_384)));
        assert_eq!(queue.next_chunk(u32::MAX), None);
        assert!(!queue.block_here(1, 0, |_| false));
        assert!(queue.block_here(1, 32_768, |range| range.begin == 32_768));
        assert!(queue.block_here(1, 16_384, |_| true));
        let starts: Vec<_> = std::iter::from_fn(|| queue.next_chunk(u32::MAX))
            .filter_map(|chunk| chunk.starts)
            .collect();
        assert_eq!(starts, [range(1, 32_768, 16_384), wide]);
        assert_eq!(queue.drop_waiting(|piece| piece != 2), [range(2, 0, 16_384)]);
        assert_eq!(queue.held(), 0);
    }

    #[test]
    fn what_waits_is_bounded_and_can_be_cancelled() {
        let mut queue = UploadQueue::default();
        let count = (0..1_000).filter(|piece| queue.wait(range(*piece, 0, 1))).count();
        assert_eq!((count, queue.push(range(0, 0, 1))), (REQUESTS_MAX, false));
        assert!(queue.cancel(&range(3, 0, 1)) && !queue.cancel(&range(3, 0, 1)));
        let hashes =
            |index| HashRange { root: [0; 32], base_layer: 0, index, length: 2, proof_layers: 0 };
        let count = (0..1_000).filter(|index| queue.wait_hashes(hashes(2 * index))).count();
        assert_eq!((count, queue.push_hashes(hashes(0))), (HASH_QUEUE_MAX, false));
        assert!(
            queue.hashes_here(|range| range.index == 6) && queue.next_hashes() == Some(hashes(6))
        );
    }
}
