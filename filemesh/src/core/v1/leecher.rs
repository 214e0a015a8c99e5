//! Fetches a file from one ordinary client: requests of one block, proof of one piece.

use crate::core::bitfield::Bitfield;
use crate::core::geometry::{BLOCK_BYTES, Geometry};
use crate::core::link::{Event, Have, LinkError, OUT_BYTES_MAX, PeerLink};
use crate::core::metainfo::{Sha1Hash, sha1};
use crate::core::peer_wire::{BlockRange, Handshake, Message};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of pieces that may be half here: two of the largest.
pub const ARRIVING_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Requests in flight, 16 KiB each: what clients queue without rejecting.
const PIPELINE: usize = 64;

/// How long a peer may be without a block while nothing but it can help: longer than the choke
/// rounds of the clients in use (10 to 30 s).
const STALL_MS: u64 = 120_000;

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum V1Action {
    /// Write this proved piece at `offset`.
    Write {
        /// Where in the file.
        offset: u64,
        /// The whole piece.
        data: Vec<u8>,
    },
    /// Every piece was proved and handed out. Comes once.
    Done,
    /// The link is over. Comes once; nothing follows.
    Failed(V1Failure),
}

/// Why a link ended before its file was complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum V1Failure {
    /// A piece was false.
    #[error("the peer sent a false piece {piece}; nothing of it was kept")]
    FalsePiece {
        /// Which.
        piece: u32,
    },
    /// The peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] LinkError),
    /// No block came for too long.
    #[error("the peer sent no data for {waited_ms} ms")]
    Stalled {
        /// How long.
        waited_ms: u64,
    },
}

/// A piece on its way.
#[derive(Debug)]
struct Arriving {
    data: Vec<u8>,
    /// Blocks of the piece that are requested or here.
    asked: Bitfield,
    /// Blocks of the piece that are here.
    here: Bitfield,
}

/// State of fetching a file of version 1 from one peer.
#[derive(Debug)]
pub struct V1Leecher {
    link: PeerLink,
    hashes: Arc<[Sha1Hash]>,
    proved: Bitfield,
    arriving: BTreeMap<u32, Arriving>,
    arriving_bytes: u64,
    progress_ms: u64,
    is_over: bool,
}

impl V1Leecher {
    /// A leecher that opened the connection. `hashes` has one per piece of `geometry`. Call
    /// [`V1Leecher::tick`] once to start it.
    pub fn connect(
        geometry: Geometry,
        hashes: Arc<[Sha1Hash]>,
        ours: Handshake,
        now_ms: u64,
    ) -> Self {
        assert_eq!(hashes.len(), geometry.piece_count() as usize, "one hash per piece");
        let proved = Bitfield::new(geometry.piece_count());
        let mut link = PeerLink::connect(geometry, ours, &Have::Some(proved.clone()), now_ms);
        link.send(Message::Interested);
        Self {
            link,
            hashes,
            proved,
            arriving: BTreeMap::new(),
            arriving_bytes: 0,
            progress_ms: now_ms,
            is_over: false,
        }
    }

    /// Pieces that were proved.
    pub fn proved(&self) -> &Bitfield {
        &self.proved
    }

    /// Appends the bytes that are to be sent to `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>, now_ms: u64) {
        self.link.take_output(out, now_ms);
    }

    /// Takes received bytes; the answer is how many of them are used up. The rest must come again,
    /// with more behind it. A buffer of
    /// [`MESSAGE_BYTES_MAX`](crate::core::peer_wire::MESSAGE_BYTES_MAX) is enough.
    pub fn receive(&mut self, buf: &[u8], now_ms: u64, actions: &mut Vec<V1Action>) -> usize {
        let mut consumed = 0;
        while !self.is_over {
            let rest = &buf[consumed..];
            let step = match self.link.next(rest, now_ms) {
                Ok(step) => step,
                Err(error) => {
                    self.fail(error.into(), actions);
                    break;
                }
            };
            match step.event {
                Some(event) => self.apply(event, rest, now_ms, actions),
                None if step.consumed == 0 => break,
                None => {}
            }
            consumed += step.consumed;
        }
        self.advance(now_ms, actions);
        consumed
    }

    /// Does what time asks for: keep-alives, giving up on a peer.
    pub fn tick(&mut self, now_ms: u64, actions: &mut Vec<V1Action>) {
        self.advance(now_ms, actions);
        self.link.tick(now_ms);
        let waited_ms = now_ms.saturating_sub(self.progress_ms);
        if waited_ms >= STALL_MS {
            self.fail(V1Failure::Stalled { waited_ms }, actions);
        }
    }

    fn apply(&mut self, event: Event, buf: &[u8], now_ms: u64, actions: &mut Vec<V1Action>) {
        match event {
            Event::Block { block, data, .. } => {
                self.progress_ms = now_ms;
                self.block(block, &buf[data], actions);
            }
            Event::Rejected(range) | Event::Dropped(range) => {
                // A choke rejects what waits; it is asked for again after the unchoke.
                if let Some(arriving) = self.arriving.get_mut(&range.piece) {
                    arriving.asked.clear(range.begin / BLOCK_BYTES);
                }
            }
            Event::Request(range) => self.link.send(Message::Reject(range)),
            Event::HashRequest(range) => self.link.send(Message::HashReject(range)),
            Event::Hashes(..) | Event::HashRejected(_) => {
                self.fail(LinkError::Unrequested.into(), actions);
            }
            Event::Handshake
            | Event::Have
            | Event::HavePiece(_)
            | Event::Choked(_)
            | Event::Interested(_)
            | Event::Cancel(_)
            | Event::Extended(..) => {}
        }
        if self.link.out_len() > OUT_BYTES_MAX {
            self.fail(LinkError::Flood.into(), actions);
        }
    }

    /// Keeps a block; with the last one of its piece the piece is proved.
    fn block(&mut self, block: u32, bytes: &[u8], actions: &mut Vec<V1Action>) {
        let geometry = self.link.geometry();
        let piece = geometry.piece_of(block);
        let at = block - geometry.blocks_of(piece).start;
        let Some(arriving) = self.arriving.get_mut(&piece) else { return };
        let start = (at * BLOCK_BYTES) as usize;
        arriving.data[start..start + bytes.len()].copy_from_slice(bytes);
        arriving.here.set(at);
        if !arriving.here.is_full() {
            return;
        }
        let Some(Arriving { data, .. }) = self.arriving.remove(&piece) else { return };
        self.arriving_bytes -= data.len() as u64;
        if sha1(&data) != self.hashes[piece as usize] {
            return self.fail(V1Failure::FalsePiece { piece }, actions);
        }
        self.proved.set(piece);
        self.link.send(Message::Have(piece));
        actions.push(V1Action::Write { offset: geometry.piece_offset(piece), data });
    }

    fn fail(&mut self, failure: V1Failure, actions: &mut Vec<V1Action>) {
        if !self.is_over {
            self.is_over = true;
            actions.push(V1Action::Failed(failure));
        }
    }

    /// Asks for what the pipeline has room for, and notices the end.
    fn advance(&mut self, now_ms: u64, actions: &mut Vec<V1Action>) {
        if self.is_over {
            return;
        }
        if self.proved.is_full() {
            self.is_over = true;
            self.link.send(Message::NotInterested);
            actions.push(V1Action::Done);
            return;
        }
        while self.link.can_request() && self.link.in_flight() < PIPELINE {
            let Some(range) = self.next_range() else { break };
            self.link.request(range, now_ms);
        }
    }

    /// The next block: of a piece that is on its way, else of the next piece that the peer has.
    fn next_range(&mut self) -> Option<BlockRange> {
        let geometry = self.link.geometry();
        let waiting = self.arriving.iter_mut().find(|(_, arriving)| !arriving.asked.is_full());
        let (piece, arriving) = match waiting {
            Some((piece, arriving)) => (*piece, arriving),
            None => {
                let wanted = |piece: &u32| {
                    !self.proved.get(*piece)
                        && !self.arriving.contains_key(piece)
                        && self.link.have().has(*piece)
                };
                let piece = (0..geometry.piece_count()).find(wanted)?;
                let len = u64::from(geometry.piece_len(piece));
                if self.arriving_bytes + len > ARRIVING_BYTES_MAX {
                    return None;
                }
                self.arriving_bytes += len;
                let blocks = geometry.blocks_of(piece).len() as u32;
                let fresh = Arriving {
                    data: vec![0; len as usize],
                    asked: Bitfield::new(blocks),
                    here: Bitfield::new(blocks),
                };
                (piece, self.arriving.entry(piece).or_insert(fresh))
            }
        };
        let at = arriving.asked.next_zero(0)?;
        arriving.asked.set(at);
        let begin = at * BLOCK_BYTES;
        Some(BlockRange { piece, begin, len: BLOCK_BYTES.min(geometry.piece_len(piece) - begin) })
    }
}
