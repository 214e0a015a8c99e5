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

/// The same on a link from which no data is expected, only messages: many small ones at a time.
const HEAD_BYTES_OF_MESSAGES: usize = 4096;

/// The receiving side of one link.
#[derive(Debug)]
pub struct Inbound {
    head: Vec<u8>,
    /// Bytes of `head` that have arrived and are not used up.
    have: usize,
    landing: Landing,
    /// Bytes of `head` that are read into at first.
    head_bytes: usize,
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
        let landing = Landing::new(memory);
        Self { head: Vec::new(), have: 0, landing, head_bytes: HEAD_BYTES, lands: false }
    }

    /// Whether data may come behind the next message, of which little shall be read along with it,
    /// because that is copied. It may until something else is said.
    pub fn expect_data(&mut self, may_come: bool) {
        self.head_bytes = if may_come { HEAD_BYTES } else { HEAD_BYTES_OF_MESSAGES };
    }

    /// Where the stream's next bytes are to be read to. The link says how many of those that are
    /// not used up are data ([`PeerLink::arriving_bytes`](crate::core::link::PeerLink::arriving_bytes)).
    pub fn space(&mut self, arriving: u32) -> &mut [u8] {
        let arriving = arriving as usize;
        self.lands = arriving > 0;
        if !self.lands {
            let room =
                if self.have < self.head_bytes { self.head_bytes } else { MESSAGE_BYTES_MAX };
            if self.head.len() < room {
                self.head.resize(room, 0);
            }
            // Not all that a long message once needed: what comes behind the next one may be data.
            return &mut self.head[self.have.min(room)..room];
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

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(input: &mut Inbound, arriving: u32, bytes: &[u8]) {
        input.space(arriving)[..bytes.len()].copy_from_slice(bytes);
        input.arrived(bytes.len());
    }

    /// A long message does not make the next ones swallow the data behind them.
    #[test]
    fn little_is_read_along_with_a_message() {
        let memory = BlockMemory::new(1 << 20);
        let mut input = Inbound::new(&memory);
        arrive(&mut input, 0, &[1; HEAD_BYTES]);
        assert_eq!(input.space(0).len(), MESSAGE_BYTES_MAX - HEAD_BYTES, "the rest of a long one");
        arrive(&mut input, 0, &[1; 30_000]);
        assert_eq!(input.bytes().len(), 30_064);
        assert!(matches!(input.take(30_000), Taken::Bytes(bytes) if bytes.len() == 30_000));
        assert!(matches!(input.take(64), Taken::Bytes(_)));
        assert_eq!(input.space(0).len(), HEAD_BYTES);
        input.expect_data(false);
        assert_eq!(input.space(0).len(), HEAD_BYTES_OF_MESSAGES);
        input.expect_data(true);
        assert_eq!(input.space(0).len(), HEAD_BYTES);
    }

    #[test]
    fn data_lands_behind_what_came_with_its_message() {
        let memory = BlockMemory::new(1 << 20);
        let mut input = Inbound::new(&memory);
        arrive(&mut input, 0, &[[9; 13].as_slice(), &[7; 20]].concat());
        input.take(13);
        assert_eq!(input.bytes(), [7; 20]);
        assert_eq!(input.space(16_384).len(), 16_364);
        arrive(&mut input, 16_384, &[7; 16_364]);
        let Taken::View(view) = input.take(16_384) else { panic!("data lies in a slab") };
        assert!(*view == [7; 16_384]);
        assert!(input.bytes().is_empty());
        drop((view, input));
        assert_eq!(memory.counters().in_use, 0);
    }
}
