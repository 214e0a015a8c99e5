//! What a link receives: messages in a small buffer, data where it stays.
//!
//! The peer wire says before each run of data how long it is. So a reader that asks for no more
//! than the rest of that run can have it put straight into a slab, from which it is proved, written
//! and relayed; only the few bytes that came with the message before it are moved.
//!
//! ```text
//!   loop:  read at most inbound.space(link.arriving_bytes()) of the stream;  inbound.arrived(read)
//!          used = leecher.receive(inbound.bytes());  let taken = inbound.take(used)
//!          for Write { offset, data }: taken.write_to(file, offset, data)
//! ```

use super::landing::Landing;
use super::memory::{BlockMemory, View};
use super::{FileError, PartialFile};
use crate::core::peer_wire::MESSAGE_BYTES_MAX;
use std::ops::Range;

/// Bytes that are read at first where a message is expected: all of a small one, and little of the
/// data behind it.
const HEAD_BYTES: usize = 64;

/// The receiving side of one link.
#[derive(Debug)]
pub struct Inbound {
    head: Vec<u8>,
    /// Bytes of `head` that have arrived and are not used up.
    have: usize,
    landing: Landing,
    /// Whether what comes next is data.
    lands: bool,
}

/// Bytes that are used up, for the actions that refer to them.
#[derive(Debug)]
pub enum Taken {
    /// Of messages, or a block so short that it came with one.
    Bytes(Vec<u8>),
    /// Data.
    View(View),
}

impl Inbound {
    /// A link's receiving side that takes the slabs for data of `memory`.
    pub fn new(memory: &BlockMemory) -> Self {
        Self { head: Vec::new(), have: 0, landing: Landing::new(memory), lands: false }
    }

    /// Where the stream's next bytes are to be read to. The link says how many of those that are
    /// not used up are data ([`PeerLink::arriving_bytes`](crate::core::link::PeerLink::arriving_bytes)).
    pub fn space(&mut self, arriving: u32) -> &mut [u8] {
        let arriving = arriving as usize;
        self.lands = arriving > 0;
        if !self.lands {
            let room = if self.have < HEAD_BYTES { HEAD_BYTES } else { MESSAGE_BYTES_MAX };
            if self.head.len() < room {
                self.head.resize(room, 0);
            }
            return &mut self.head[self.have..];
        }
        if self.have > 0 {
            // Less than a block: whole ones were used up where they lay.
            let came_along = &self.head[..self.have];
            let space = self.landing.space(self.have);
            let len = came_along.len().min(space.len());
            space[..len].copy_from_slice(&came_along[..len]);
            self.landing.arrived(len);
            self.have = 0;
        }
        self.landing.space(arriving.saturating_sub(self.landing.bytes().len()))
    }

    /// `len` bytes were read into [`Inbound::space`].
    pub fn arrived(&mut self, len: usize) {
        if self.lands {
            self.landing.arrived(len);
        } else {
            self.have = (self.have + len).min(self.head.len());
        }
    }

    /// What has arrived and is not used up.
    pub fn bytes(&self) -> &[u8] {
        if self.lands { self.landing.bytes() } else { &self.head[..self.have] }
    }

    /// Takes out the first `used` of [`Inbound::bytes`], which must be that many.
    pub fn take(&mut self, used: usize) -> Taken {
        let used = used.min(self.bytes().len());
        if self.lands
            && let Some(view) = self.landing.cut(used)
        {
            return Taken::View(view);
        }
        let taken = self.head[..used].to_vec();
        self.head.copy_within(used..self.have, 0);
        self.have -= used;
        Taken::Bytes(taken)
    }
}

impl Taken {
    /// The bytes `data`.
    pub fn bytes(&self, data: Range<usize>) -> &[u8] {
        match self {
            Taken::Bytes(bytes) => &bytes[data],
            Taken::View(view) => &view[data],
        }
    }

    /// Writes the bytes `data`, which are proved, at `offset` of `file`.
    pub fn write_to(
        &self,
        file: &mut PartialFile,
        offset: u64,
        data: Range<usize>,
    ) -> Result<(), FileError> {
        match self {
            Taken::Bytes(bytes) => file.write_at(offset, &bytes[data]),
            Taken::View(view) => file.write_view(offset, view.slice(data)),
        }
    }
}

impl Default for Taken {
    fn default() -> Self {
        Taken::Bytes(Vec::new())
    }
}
