//! Memory for blocks on their way: taken from a bounded pool, filled once, then only read.
//!
//! A [`Slab`] is 256 KiB on a page border, the largest request of the peer wire and a good direct
//! write. Whoever receives has a [`Room`], the unfilled rest of a slab: bytes are read into it
//! where they stay, and what is proved is cut off its front as a [`View`]. Views are never written
//! again, so that the same bytes can be hashed, written to the disk and sent to peers at the same
//! time without a copy; the slab goes back to the pool with the last of them.
//!
//! ```text
//!   slab  │ view │ view │ view │      room       │        views: shared, read only
//!         └─ to disk ─┴─ to peers ──┘└ one reader ┘        room: one owner, filled from the front
//! ```
//!
//! The pool is a promise about memory: [`BlockMemory::take`] refuses beyond it. A caller that
//! could not go on without one takes it all the same ([`BlockMemory::take_anyway`]), which is
//! counted and must be bounded by the number of such callers. Who receives or writes holds a
//! [`Lease`]: without one left, slabs are given back to the system, so that an idle process holds
//! none; until then they are used again, because fresh pages cost more than the bytes in them
//! (measured: 0.6 CPU s/GiB).
#![allow(unsafe_code)] // one writer beside many readers of the same allocation, as in `BytesMut`

use aligned_vec::{AVec, ConstAlign};
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of a slab.
pub const SLAB_BYTES: usize = 256 * 1024;

/// Alignment of slabs, and of direct writes in memory, offset and length: a page, which every
/// device accepts.
pub const ALIGN: usize = 4096;

/// A pool's promise unless something else is set: what an agent may use for transfers.
pub const MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// A bounded pool of slabs; cheap to clone.
#[derive(Debug, Clone)]
pub struct BlockMemory {
    pool: Arc<Pool>,
}

/// What a pool has done, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryCounters {
    /// Slabs that the pool promises at most.
    pub slabs_max: usize,
    /// Slabs that somebody uses, those beyond the promise included.
    pub in_use: usize,
    /// The most that were in use at a time.
    pub in_use_high: usize,
    /// Slabs that wait to be used again.
    pub idle: usize,
    /// How often [`BlockMemory::take`] refused.
    pub refused: u64,
    /// How often [`BlockMemory::take_anyway`] went beyond the promise.
    pub overdrawn: u64,
}

#[derive(Debug)]
struct Pool {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Last in, first out: what was used last is still in the processor's cache.
    idle: Vec<Memory>,
    /// Numbers that no slab has.
    unmade: Vec<u16>,
    /// Slabs keep their addresses until the pool's end.
    pinned: bool,
    leases: usize,
    counters: MemoryCounters,
}

/// The memory of one slab.
#[derive(Debug)]
struct Memory {
    bytes: AVec<u8, ConstAlign<ALIGN>>,
    /// Its number in the pool; `None`: beyond the promise.
    number: Option<u16>,
}

impl Memory {
    fn new(number: Option<u16>) -> Self {
        let mut bytes = AVec::with_capacity(ALIGN, SLAB_BYTES);
        bytes.resize(SLAB_BYTES, 0);
        Self { bytes, number }
    }
}

impl BlockMemory {
    /// A pool of at most `bytes_max`, rounded down to slabs; at least one, at most 65,535.
    pub fn new(bytes_max: usize) -> Self {
        let slabs_max = (bytes_max / SLAB_BYTES).clamp(1, usize::from(u16::MAX));
        let counters = MemoryCounters { slabs_max, ..MemoryCounters::default() };
        let unmade = (0..slabs_max as u16).rev().collect();
        let state = State { unmade, counters, ..State::default() };
        Self { pool: Arc::new(Pool { state: Mutex::new(state) }) }
    }

    /// An empty slab; `None`: the pool's promise is used up.
    pub fn take(&self) -> Option<Room> {
        let mut state = self.pool.lock();
        let memory = state.idle.pop().or_else(|| state.unmade.pop().map(|n| Memory::new(Some(n))));
        let Some(memory) = memory else {
            state.counters.refused += 1;
            return None;
        };
        state.counters.used();
        drop(state);
        Some(self.room(memory))
    }

    /// An empty slab, also beyond the promise.
    pub fn take_anyway(&self) -> Room {
        if let Some(room) = self.take() {
            return room;
        }
        let mut state = self.pool.lock();
        state.counters.overdrawn += 1;
        state.counters.used();
        drop(state);
        self.room(Memory::new(None))
    }

    fn room(&self, mut memory: Memory) -> Room {
        let start = memory.bytes.as_mut_ptr();
        let slab = Slab { start, memory: Some(memory), pool: self.pool.clone() };
        Room { slab: Arc::new(slab), at: 0 }
    }

    /// Keeps slabs that come home for their next use.
    pub fn lease(&self) -> Lease {
        self.pool.lock().leases += 1;
        Lease { memory: self.clone() }
    }

    /// Present counters.
    pub fn counters(&self) -> MemoryCounters {
        let state = self.pool.lock();
        MemoryCounters { idle: state.idle.len(), ..state.counters }
    }

    /// Keeps every slab of the pool at its address from now on: the kernel knows them by it.
    pub(super) fn pin(&self) {
        self.pool.lock().pinned = true;
    }
}

impl Default for BlockMemory {
    fn default() -> Self {
        Self::new(MEMORY_BYTES)
    }
}

impl MemoryCounters {
    fn used(&mut self) {
        self.in_use += 1;
        self.in_use_high = self.in_use_high.max(self.in_use);
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn give_back(&self, memory: Memory) {
        let mut state = self.lock();
        state.counters.in_use -= 1;
        if memory.number.is_some() {
            state.idle.push(memory);
        }
        Self::trim(state);
    }

    /// Frees what nobody will use soon.
    fn trim(mut state: MutexGuard<'_, State>) {
        if state.leases == 0 && !state.pinned {
            let idle = std::mem::take(&mut state.idle);
            state.unmade.extend(idle.iter().filter_map(|memory| memory.number));
            drop(state); // the system takes its time over freeing
        }
    }
}

/// A pool whose slabs will be used again.
#[derive(Debug)]
pub struct Lease {
    memory: BlockMemory,
}

impl Deref for Lease {
    type Target = BlockMemory;

    fn deref(&self) -> &BlockMemory {
        &self.memory
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.memory.pool.lock();
        state.leases -= 1;
        Pool::trim(state);
    }
}

/// A slab in use, shared by its room and its views.
#[derive(Debug)]
struct Slab {
    /// Start of [`SLAB_BYTES`] initialised bytes that `memory` owns. Bytes are reached through this
    /// pointer alone while the slab is in use.
    start: *mut u8,
    memory: Option<Memory>,
    pool: Arc<Pool>,
}

// SAFETY: the pointer is to memory that the slab owns, and every byte of it is either in the one
// room, which is exclusive like `&mut`, or in views, which are only read.
unsafe impl Send for Slab {}
// SAFETY: as above; nothing of a slab is written through a shared reference to it.
unsafe impl Sync for Slab {}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

/// The unfilled rest of a slab. Only one exists of each, and no view reaches into it.
#[derive(Debug)]
pub struct Room {
    slab: Arc<Slab>,
    at: usize,
}

impl Room {
    /// Cuts the first `len` bytes off as a view; they must be filled with what is meant. Panics if
    /// the room is smaller.
    pub fn cut(&mut self, len: usize) -> View {
        assert!(len <= self.len(), "a view lies within its slab");
        let range = self.at..self.at + len;
        self.at = range.end;
        View { slab: self.slab.clone(), range }
    }

    /// Gives up bytes up to the next page border, where the next direct write can begin.
    pub fn align(&mut self) {
        self.at = self.at.next_multiple_of(ALIGN);
    }
}

impl Deref for Room {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `at` is within the slab, its bytes are initialised and live as long as `slab`,
        // and those from `at` on are in no view.
        unsafe { std::slice::from_raw_parts(self.slab.start.add(self.at), SLAB_BYTES - self.at) }
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, at) = (self.slab.start, self.at);
        // SAFETY: as above, and this room, of which there is one, is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.add(at), SLAB_BYTES - at) }
    }
}

/// Bytes of a slab that do not change any more; cheap to clone.
#[derive(Debug, Clone)]
pub struct View {
    slab: Arc<Slab>,
    range: Range<usize>,
}

impl View {
    /// A part of the view. Panics if it is not within it.
    pub fn slice(&self, part: Range<usize>) -> View {
        assert!(part.start <= part.end && part.end <= self.len(), "a part lies within its view");
        let range = self.range.start + part.start..self.range.start + part.end;
        View { slab: self.slab.clone(), range }
    }

    /// Appends `next` if it goes on in memory where this view ends.
    pub(super) fn join(&mut self, next: &View) -> bool {
        let joins = Arc::ptr_eq(&self.slab, &next.slab) && self.range.end == next.range.start;
        if joins {
            self.range.end = next.range.end;
        }
        joins
    }

    /// Whether the view starts on a page border.
    pub(super) fn is_aligned(&self) -> bool {
        self.range.start.is_multiple_of(ALIGN)
    }

    /// The number of its slab in `memory`, and where the slab starts. `None`: it is not one of that
    /// pool's promise.
    pub(super) fn place(&self, memory: &BlockMemory) -> Option<(u16, *mut u8)> {
        let number = self.slab.memory.as_ref().and_then(|memory| memory.number);
        let number = number.filter(|_| Arc::ptr_eq(&self.slab.pool, &memory.pool));
        number.map(|number| (number, self.slab.start))
    }
}

impl Deref for View {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Range { start, end } = self.range;
        // SAFETY: the range was cut off the slab's room, so that nobody writes there any more; it
        // is within the slab, initialised, and lives as long as `slab`.
        unsafe { std::slice::from_raw_parts(self.slab.start.add(start), end - start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_comes_home_with_its_last_view() {
        let memory = BlockMemory::new(2 * SLAB_BYTES + 5);
        let lease = memory.lease();
        let mut room = memory.take().unwrap();
        assert_eq!((room.len(), room.as_ptr() as usize % ALIGN), (SLAB_BYTES, 0));
        room[..5].copy_from_slice(b"hello");
        let mut hello = room.cut(5);
        room[..1].copy_from_slice(b"!");
        let mark = room.cut(1);
        assert_eq!((&hello[..], &mark[..]), (&b"hello"[..], &b"!"[..]));
        assert_eq!(&hello.slice(1..3)[..], b"el");
        assert!(hello.join(&mark) && !hello.join(&mark));
        assert_eq!(&hello[..], b"hello!");
        room.align();
        assert_eq!(room.len(), SLAB_BYTES - ALIGN);
        drop((room, mark));
        let other = memory.take().unwrap();
        assert!(memory.take().is_none());
        let beyond = memory.take_anyway();
        let counters = memory.counters();
        assert_eq!((counters.in_use, counters.refused, counters.overdrawn), (3, 2, 1));
        drop(hello);
        assert_eq!(memory.counters().idle, 1, "one waits for its next use");
        drop((beyond, other));
        let counters = memory.counters();
        assert_eq!((counters.in_use, counters.idle, counters.in_use_high), (0, 2, 3));
        drop(lease);
        assert_eq!(memory.counters().idle, 0, "nobody will use them soon");
        assert!(memory.take().is_some());
        assert_eq!(memory.counters().idle, 0);
        assert!(memory.take().is_some() && memory.take().is_some());
    }

    #[test]
    fn views_are_read_while_their_slab_is_filled_elsewhere() {
        let memory = BlockMemory::new(SLAB_BYTES);
        let mut room = memory.take().unwrap();
        let mut readers = vec![];
        for fill in 0..16u8 {
            room[..16_384].fill(fill);
            let view = room.cut(16_384);
            readers.push(std::thread::spawn(move || view.iter().all(|byte| *byte == fill)));
        }
        assert!(room.is_empty());
        assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
        drop(room);
        assert_eq!(memory.counters().in_use, 0);
    }

    #[test]
    fn pinned_slabs_keep_their_places() {
        let memory = BlockMemory::new(4 * SLAB_BYTES);
        memory.pin();
        let first = memory.take().unwrap().as_ptr();
        assert_eq!(memory.counters().idle, 1);
        assert_eq!(memory.take().unwrap().as_ptr(), first);
    }
}
