//! Serves a file to one peer: a [`PeerLink`] with an [`UploadQueue`], pulled by its caller.
//!
//! The caller decides on membership before a seeder exists: it decodes the peer's handshake
//! ([`Handshake::decode`]), looks up the transfer and the authenticated agent, and only then calls
//! [`Seeder::accept`]. Everybody who is let in is served; there are no choke rounds.
//!
//! Output is pulled: [`Seeder::next`] appends control bytes to the caller's buffer and says which
//! bytes of the file, or which leaves, to append after them. So the bound of that buffer paces
//! everything, file bytes are read straight into it, and a peer that does not read costs nothing.

use super::link::{Event, Have, LinkError, OUT_BYTES_MAX, PeerLink};
use super::merkle::HASH_BYTES;
use super::peer_wire::{Handshake, HashRange, Message, PIECE_HEADER_BYTES};
use super::piece_tree::PieceTree;
use super::upload::UploadQueue;
use std::sync::Arc;

/// Bytes that [`Seeder::next`] may append on its own when nothing but control messages wait.
pub const ROOM_MIN: usize = 4 * 1024;

/// What to append to the output next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// Exactly these bytes of the file. If they cannot be read, close the connection: the peer was
    /// promised them.
    Data {
        /// Where in the file.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Read these leaves and hand them to [`Seeder::leaves`], or `None` if they cannot be read.
    Leaves {
        /// First leaf; those past the file's last block are padding and not in any sidecar.
        first: u32,
        /// How many are to be read; may be fewer than the peer asked for.
        count: u32,
    },
}

/// A peer to which a file is served.
#[derive(Debug)]
pub struct Seeder {
    link: PeerLink,
    queue: UploadQueue,
    tree: Arc<PieceTree>,
    have: Have,
    awaiting: Option<HashRange>,
    served_bytes: u64,
    interested: bool,
    heard_ms: u64,
}

impl Seeder {
    /// A seeder for a connection that the peer opened with `theirs`.
    pub fn accept(
        tree: Arc<PieceTree>,
        have: Have,
        ours: Handshake,
        theirs: &Handshake,
        now_ms: u64,
    ) -> Result<Self, LinkError> {
        let link = PeerLink::accept(tree.geometry(), ours, theirs, &have, now_ms)?;
        Ok(Self::new(link, tree, have, now_ms))
    }

    /// A seeder that opened the connection itself, as a source agent does towards the server.
    pub fn connect(tree: Arc<PieceTree>, have: Have, ours: Handshake, now_ms: u64) -> Self {
        let link = PeerLink::connect(tree.geometry(), ours, &have, now_ms);
        Self::new(link, tree, have, now_ms)
    }

    fn new(mut link: PeerLink, tree: Arc<PieceTree>, have: Have, now_ms: u64) -> Self {
        link.send(Message::Unchoke);
        Self {
            link,
            queue: UploadQueue::default(),
            tree,
            have,
            awaiting: None,
            served_bytes: 0,
            interested: false,
            heard_ms: now_ms,
        }
    }

    /// The link to the peer.
    pub fn link(&self) -> &PeerLink {
        &self.link
    }

    /// Bytes of the file that were handed out to be sent.
    pub fn served_bytes(&self) -> u64 {
        self.served_bytes
    }

    /// Whether the peer wants more; false before it said so and after it has everything.
    pub fn is_interested(&self) -> bool {
        self.interested
    }

    /// When the peer was last heard. Its keep-alives come every 30 s.
    pub fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    /// Whether [`Seeder::next`] has something to send.
    pub fn has_output(&self) -> bool {
        self.link.out_len() > 0 || !self.queue.is_empty()
    }

    /// Announces a piece that became available here.
    pub fn add_piece(&mut self, piece: u32) {
        if let Have::Some(pieces) = &mut self.have
            && piece < pieces.len()
            && pieces.set(piece)
        {
            self.link.send(Message::Have(piece));
        }
    }

    /// Takes received bytes; the answer is how many of them are used up. After an error the
    /// connection is to be closed.
    pub fn receive(&mut self, buf: &[u8], now_ms: u64) -> Result<usize, LinkError> {
        let mut consumed = 0;
        if !buf.is_empty() {
            self.heard_ms = now_ms;
        }
        loop {
            let step = self.link.next(&buf[consumed..], now_ms)?;
            if step.event.is_none() && step.consumed == 0 {
                return Ok(consumed);
            }
            consumed += step.consumed;
            if let Some(event) = step.event {
                self.apply(event)?;
            }
        }
    }

    fn apply(&mut self, event: Event) -> Result<(), LinkError> {
        match event {
            Event::Request(range) => {
                if !self.have.has(range.piece) || !self.queue.push(range) {
                    self.link.send(Message::Reject(range));
                }
            }
            Event::Cancel(range) => {
                if self.queue.cancel(&range) {
                    self.link.send(Message::Reject(range));
                }
            }
            Event::HashRequest(range) => {
                if range.root != self.tree.root() || !self.queue.push_hashes(range) {
                    self.link.send(Message::HashReject(range));
                }
            }
            Event::Interested(interested) => self.interested = interested,
            Event::Block { .. }
            | Event::Hashes(..)
            | Event::Rejected(_)
            | Event::Dropped(_)
            | Event::HashRejected(_) => return Err(LinkError::Unrequested),
            Event::Handshake
            | Event::Have
            | Event::HavePiece(_)
            | Event::Choked(_)
            | Event::Extended(..) => {}
        }
        if self.link.out_len() > OUT_BYTES_MAX {
            return Err(LinkError::Flood);
        }
        Ok(())
    }

    /// Appends what can be sent now to `out`, which takes at most about `room` further bytes, and
    /// says what file bytes or leaves follow. Call again until it answers `None` or room is short
    /// of [`ROOM_MIN`]; everything that is pulled must be appended in order.
    pub fn next(&mut self, room: usize, out: &mut Vec<u8>, now_ms: u64) -> Option<Pull> {
        if self.awaiting.is_some() {
            return None;
        }
        let start = out.len();
        while !self.queue.is_mid_request() {
            self.link.take_output(out, now_ms);
            if out.len() - start >= room {
                return None;
            }
            let Some(range) = self.queue.next_hashes() else { break };
            if range.base_layer == 0 && self.tree.geometry().piece_height() > 0 {
                if let Some(pull) = self.leaves_of(&range) {
                    self.awaiting = Some(range);
                    return Some(pull);
                }
                self.link.send(Message::HashReject(range));
            } else {
                match self.tree.hashes(&range) {
                    Some(hashes) => self.link.send(Message::Hashes(range, hashes.as_flattened())),
                    None => self.link.send(Message::HashReject(range)),
                }
            }
        }
        let left = room.saturating_sub(out.len() - start + PIECE_HEADER_BYTES);
        let chunk = self.queue.next_chunk(u32::try_from(left).unwrap_or(u32::MAX))?;
        if let Some(range) = chunk.starts {
            self.link.send(Message::Piece(range));
            self.link.take_output(out, now_ms);
        }
        self.served_bytes += u64::from(chunk.len);
        let offset = self.tree.geometry().piece_offset(chunk.piece) + u64::from(chunk.begin);
        Some(Pull::Data { offset, len: chunk.len })
    }

    /// Which leaves to read for `range`; `None` if it is not one of whole pieces of this file, or
    /// asks for a proof that the tree does not have.
    fn leaves_of(&self, range: &HashRange) -> Option<Pull> {
        let geometry = self.tree.geometry();
        let whole_pieces = range.length >= 1 << geometry.piece_height();
        let within = range.index < geometry.block_count()
            && u64::from(range.index) + u64::from(range.length) <= 1 << geometry.tree_height();
        let provable = self.tree.uncles(range).is_some();
        let count = range.length.min(geometry.block_count().saturating_sub(range.index));
        let pull = Pull::Leaves { first: range.index, count };
        (whole_pieces && within && provable).then_some(pull)
    }

    /// The leaves that the last [`Pull::Leaves`] asked for, 32 bytes each, or `None` if they could
    /// not be read. The answer goes to `out`.
    pub fn leaves(&mut self, leaves: Option<&[u8]>, out: &mut Vec<u8>, now_ms: u64) {
        let Some(range) = self.awaiting.take() else { return };
        match (leaves, self.tree.uncles(&range)) {
            (Some(leaves), Some(uncles)) => {
                let mut bytes = leaves.to_vec();
                bytes.resize(range.length as usize * HASH_BYTES, 0);
                bytes.extend_from_slice(uncles.as_flattened());
                self.link.send(Message::Hashes(range, &bytes));
            }
            _ => self.link.send(Message::HashReject(range)),
        }
        self.link.take_output(out, now_ms);
    }

    /// Sends a keep-alive when one is due, at [`PeerLink::keep_alive_at`].
    pub fn tick(&mut self, now_ms: u64) {
        if !self.queue.is_mid_request() {
            self.link.tick(now_ms);
        }
    }

    /// Stops serving: what waits is rejected, and the peer is choked.
    pub fn withdraw(&mut self) {
        self.link.send(Message::Choke);
        for range in self.queue.drain() {
            self.link.send(Message::Reject(range));
        }
    }
}
