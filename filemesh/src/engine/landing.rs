//! Where the data of one link arrives: a place in a slab, read into and cut off block by block.
//!
//! ```text
//!   loop:  read at most `n` bytes of the stream into landing.space(n);  landing.arrived(read)
//!          used = prove(landing.bytes());  let blocks = landing.cut(used)
//! ```
//!
//! What has arrived of a block and is not whole stays where it is; nothing is ever moved.

use super::memory::{BlockMemory, Lease, Room, View};
use crate::core::geometry::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Takes up the data of one link.
#[derive(Debug)]
pub struct Landing {
    memory: Lease,
    room: Option<Room>,
    /// Bytes at the room's start that have arrived.
    filled: usize,
}

impl Landing {
    /// A place that takes its slabs of `memory`, one at a time and, so that the link never stands
    /// still for want of one, beyond its promise.
    pub fn new(memory: &BlockMemory) -> Self {
        Self { memory: memory.lease(), room: None, filled: 0 }
    }

    /// Room for the next bytes, `limit` at most: those that are left of whole blocks and of a last,
    /// short one. It ends with a block, so that it is empty only when whole blocks wait to be cut.
    pub fn space(&mut self, limit: usize) -> &mut [u8] {
        let too_small = self.filled == 0 && self.room.as_ref().is_some_and(|r| r.len() < BLOCK);
        if too_small {
            self.room = None;
        }
        let room = self.room.get_or_insert_with(|| self.memory.take_anyway());
        let whole = room.len() - room.len() % BLOCK;
        let end = whole.min(self.filled + limit);
        &mut room[self.filled..end]
    }

    /// `len` bytes were read into [`Landing::space`].
    pub fn arrived(&mut self, len: usize) {
        let room = self.room.as_ref().map_or(0, |room| room.len());
        self.filled = (self.filled + len).min(room);
    }

    /// What has arrived and was not cut off.
    pub fn bytes(&self) -> &[u8] {
        self.room.as_ref().map_or(&[], |room| &room[..self.filled])
    }

    /// Cuts off the first `len` bytes of what has arrived: whole blocks, or a short last one with
    /// nothing behind it. `None` when there are fewer.
    pub fn cut(&mut self, len: usize) -> Option<View> {
        let room = self.room.as_mut().filter(|_| len <= self.filled)?;
        let view = room.cut(len);
        self.filled -= len;
        if self.filled == 0 {
            room.align();
        }
        Some(view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::memory::SLAB_BYTES;

    /// Reads of all sizes over several slabs, with a short block in between.
    #[test]
    fn blocks_land_whole_and_aligned_however_they_are_read() {
        let memory = BlockMemory::new(1 << 20);
        let mut landing = Landing::new(&memory);
        let sizes = [BLOCK * 20, 5_000, BLOCK * 3, 1, BLOCK * 40];
        let (mut step, mut kept) = (1, vec![]);
        for (number, size) in sizes.into_iter().enumerate() {
            let mut left = size;
            while left > 0 {
                step = (step * 7 + 13) % 40_000;
                let space = landing.space(left.min(step + 1));
                assert!(!space.is_empty());
                space.fill(number as u8 + 1);
                let len = space.len();
                landing.arrived(len);
                left -= len;
                let whole = landing.bytes().len();
                let whole = if left == 0 { whole } else { whole - whole % BLOCK };
                let view = landing.cut(whole).unwrap();
                let address = view.as_ptr() as usize;
                assert!(address.is_multiple_of(4096) && view.len() <= SLAB_BYTES);
                kept.push((number as u8 + 1, view));
            }
            assert!(landing.bytes().is_empty());
        }
        assert!(landing.cut(1).is_none());
        assert!(kept.iter().all(|(fill, view)| view.iter().all(|byte| byte == fill)));
        assert_eq!(kept.iter().map(|(_, view)| view.len()).sum::<usize>(), sizes.iter().sum());
        drop((kept, landing));
        assert_eq!(memory.counters().in_use, 0);
    }
}
