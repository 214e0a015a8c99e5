//! Aligned memory for file content, and the unwritten end of a file.
//!
//! A [`Tape`] collects what is appended to one file into aligned blocks. Full blocks leave it as
//! soon as a batch is complete; what is left leaves at a group flush. A block always begins at a
//! file offset that direct I/O accepts: the bytes of the file's last partial page are carried over
//! to the front of the next block, so that writing it again is an aligned write.
//!
//! ```text
//!  file   |....written....|carried|new bytes.......|
//!  block            base ─┘       └ from           └ length
//! ```
//! Invariant: `tape.length()` is the length that the file will have when all its writes are done,
//! and no byte past it is ever written.

use std::collections::VecDeque;

use aligned_vec::{AVec, ConstAlign};

use super::format::Out;

/// Alignment of direct I/O in memory, offset and length: a page, which every device accepts.
pub const ALIGN: usize = 4096;

/// Bytes of a block of a busy file. One write of 1 MiB nearly saturates a disk.
pub const BLOCK_BYTES: usize = 1 << 20;

/// Bytes of the first block after a flush, so that a thousand quiet files cost 64 MiB, not 1 GiB.
pub const FIRST_BLOCK_BYTES: usize = 64 << 10;

/// Blocks of each size that the pool keeps when they are free: 16 MiB, as much as a flush of a busy
/// worker has, and 2 MiB.
const KEPT_BLOCKS: usize = 16;
const KEPT_FIRST_BLOCKS: usize = 32;

const _: () = assert!(FIRST_BLOCK_BYTES.is_multiple_of(ALIGN) && BLOCK_BYTES > FIRST_BLOCK_BYTES);

/// Aligned memory and how much of it is content.
#[derive(Debug)]
pub struct Block {
    buffer: AVec<u8, ConstAlign<ALIGN>>,
    filled: usize,
}

impl Block {
    fn new(capacity: usize) -> Self {
        let mut buffer = AVec::with_capacity(ALIGN, capacity);
        buffer.resize(capacity, 0);
        Self { buffer, filled: 0 }
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Whether nothing more fits.
    pub fn is_full(&self) -> bool {
        self.filled == self.buffer.len()
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    fn append(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}

/// Lends blocks and counts what is lent; the router stops taking batches at its bound.
#[derive(Debug, Default)]
pub struct Pool {
    blocks: Vec<Block>,
    first_blocks: Vec<Block>,
    lent_bytes: usize,
}

impl Pool {
    /// Bytes of blocks that tapes and writes hold.
    pub fn lent_bytes(&self) -> usize {
        self.lent_bytes
    }

    fn take(&mut self, first: bool) -> Block {
        let (free, bytes) = if first {
            (&mut self.first_blocks, FIRST_BLOCK_BYTES)
        } else {
            (&mut self.blocks, BLOCK_BYTES)
        };
        self.lent_bytes += bytes;
        let mut block = free.pop().unwrap_or_else(|| Block::new(bytes));
        block.filled = 0;
        block
    }

    /// Takes a block back.
    pub fn give(&mut self, block: Block) {
        let bytes = block.buffer.len();
        self.lent_bytes = self.lent_bytes.saturating_sub(bytes);
        let (free, kept) = if bytes == BLOCK_BYTES {
            (&mut self.blocks, KEPT_BLOCKS)
        } else {
            (&mut self.first_blocks, KEPT_FIRST_BLOCKS)
        };
        if free.len() < kept {
            free.push(block);
        }
    }
}

/// Content to be written at an aligned offset. The first `from` bytes are in the file already.
#[derive(Debug)]
pub struct Write {
    /// Aligned.
    pub offset: u64,
    /// What the file shall have from `offset` on.
    pub block: Block,
    /// Bytes of the block that the file has.
    pub from: usize,
}

/// The unwritten end of one file.
#[derive(Debug, Default)]
pub struct Tape {
    /// Aligned offset where `block` (or, without one, the next block) begins.
    base: u64,
    block: Option<Block>,
    /// Without a block: the file's bytes from `base` to its end, fewer than [`ALIGN`].
    tail: Vec<u8>,
    /// Bytes of `block` that were handed out for writing.
    from: usize,
    /// Full blocks, in order.
    full: VecDeque<Write>,
}

impl Tape {
    /// The end of a file of `length` bytes whose last partial page is `tail`.
    pub fn new(length: u64, tail: Vec<u8>) -> Self {
        debug_assert_eq!(tail.len() as u64, length % ALIGN as u64, "tail is the last page");
        Self { base: length - tail.len() as u64, tail, ..Self::default() }
    }

    /// Length of the file when everything is written.
    pub fn length(&self) -> u64 {
        self.base + self.block.as_ref().map_or(self.tail.len(), |block| block.filled) as u64
    }

    /// Whether something was appended and not handed out.
    pub fn has_unwritten(&self) -> bool {
        !self.full.is_empty() || self.block.as_ref().is_some_and(|block| block.filled > self.from)
    }

    /// Appends through this; the blocks come from `pool`.
    pub fn writer<'a>(&'a mut self, pool: &'a mut Pool) -> TapeWriter<'a> {
        TapeWriter { tape: self, pool }
    }

    /// Takes back everything after `length`, which must not have been handed out.
    pub fn rollback(&mut self, length: u64, pool: &mut Pool) {
        while length < self.base {
            let Some(last) = self.full.pop_back() else {
                debug_assert!(false, "rolled back past what was handed out");
                return;
            };
            if let Some(block) = self.block.take() {
                pool.give(block);
            }
            self.base = last.offset;
            self.from = last.from;
            self.block = Some(last.block);
        }
        if let Some(block) = &mut self.block {
            block.filled = (length - self.base) as usize;
            debug_assert!(block.filled >= self.from, "rolled back past what was handed out");
        }
        // Nothing new is left in the block: it has at most the carried page.
        if let Some(block) = self.block.take_if(|block| block.filled == self.from) {
            self.tail.clear();
            self.tail.extend_from_slice(block.bytes());
            self.from = 0;
            pool.give(block);
        }
    }

    /// The next full block.
    pub fn take_full(&mut self) -> Option<Write> {
        self.full.pop_front()
    }

    /// What is left when [`Tape::take_full`] has no more.
    pub fn take_rest(&mut self) -> Option<Write> {
        if !self.has_unwritten() {
            return None;
        }
        let block = self.block.take()?;
        let write = Write { offset: self.base, from: self.from, block };
        let content = write.block.bytes();
        let whole = content.len() - content.len() % ALIGN;
        self.tail.clear();
        self.tail.extend_from_slice(&content[whole..]);
        self.base += whole as u64;
        self.from = 0;
        Some(write)
    }

    /// Throws away what was not handed out. The tape must be made anew before it is used.
    pub fn discard(&mut self, pool: &mut Pool) {
        for block in self.full.drain(..).map(|write| write.block).chain(self.block.take()) {
            pool.give(block);
        }
        *self = Self::default();
    }

    fn ensure_block(&mut self, pool: &mut Pool) {
        if self.block.as_ref().is_some_and(Block::is_full) {
            let Some(block) = self.block.take() else { return };
            let next = self.base + block.filled as u64;
            self.full.push_back(Write { offset: self.base, block, from: self.from });
            (self.base, self.from) = (next, 0);
            self.tail.clear();
            self.block = Some(pool.take(false));
        } else if self.block.is_none() {
            let mut block = pool.take(true);
            block.append(&self.tail);
            self.from = self.tail.len();
            self.block = Some(block);
        }
    }
}

/// See [`Tape::writer`].
pub struct TapeWriter<'a> {
    tape: &'a mut Tape,
    pool: &'a mut Pool,
}

impl Out for TapeWriter<'_> {
    #[inline]
    fn reserve(&mut self, bytes: usize) -> Option<&mut [u8]> {
        self.tape.block.as_mut().map(Block::room).filter(|room| room.len() >= bytes)
    }

    #[inline]
    fn commit(&mut self, bytes: usize) {
        if let Some(block) = &mut self.tape.block {
            block.filled += bytes;
            debug_assert!(block.filled <= block.buffer.len());
        }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.tape.ensure_block(self.pool);
            let Some(block) = &mut self.tape.block else { return };
            let (now, later) = bytes.split_at(bytes.len().min(block.room().len()));
            block.append(now);
            bytes = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Append(usize),
        AppendAndTakeBack(usize),
        TakeFull,
        TakeRest,
    }

    fn step() -> impl Strategy<Value = Step> {
        let size = prop_oneof![0usize..9000, 0usize..3_000_000];
        prop_oneof![
            4 => size.clone().prop_map(Step::Append),
            1 => size.prop_map(Step::AppendAndTakeBack),
            1 => Just(Step::TakeFull),
            2 => Just(Step::TakeRest),
        ]
    }

    fn apply(file: &mut Vec<u8>, write: Write, pool: &mut Pool) {
        let offset = write.offset as usize;
        assert_eq!(offset % ALIGN, 0);
        assert!(offset + write.from <= file.len(), "a hole");
        assert_eq!(write.block.bytes()[..write.from], file[offset..offset + write.from]);
        file.truncate(offset);
        file.extend_from_slice(write.block.bytes());
        pool.give(write.block);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_tape_writes_what_was_appended(
            steps in prop::collection::vec(step(), 1..20), start in 0usize..9000
        ) {
            let mut expected: Vec<u8> = (0..start).map(|at| at as u8).collect();
            let mut file = expected.clone();
            let mut pool = Pool::default();
            let mut tape = Tape::new(start as u64, expected[start - start % ALIGN..].to_vec());
            let mut next = 0u8;
            for step in steps.into_iter().chain([Step::TakeFull, Step::TakeRest]) {
                match step {
                    Step::Append(bytes) | Step::AppendAndTakeBack(bytes) => {
                        next = next.wrapping_add(1);
                        let content: Vec<u8> =
                            (0..bytes).map(|at| (at / 7) as u8 ^ next).collect();
                        let before = tape.length();
                        let mut writer = tape.writer(&mut pool);
                        for line in content.chunks(100) {
                            match writer.reserve(line.len()) {
                                Some(room) => {
                                    room[..line.len()].copy_from_slice(line);
                                    writer.commit(line.len());
                                }
                                None => writer.put(line),
                            }
                        }
                        prop_assert_eq!(tape.length(), before + bytes as u64);
                        if matches!(step, Step::AppendAndTakeBack(_)) {
                            tape.rollback(before, &mut pool);
                        } else {
                            expected.extend_from_slice(&content);
                        }
                    }
                    Step::TakeFull => {
                        while let Some(write) = tape.take_full() {
                            apply(&mut file, write, &mut pool);
                        }
                    }
                    Step::TakeRest => {
                        while let Some(write) = tape.take_full() {
                            apply(&mut file, write, &mut pool);
                        }
                        if let Some(write) = tape.take_rest() {
                            apply(&mut file, write, &mut pool);
                        }
                        prop_assert!(!tape.has_unwritten());
                        prop_assert_eq!(file.len(), expected.len());
                    }
                }
                prop_assert_eq!(tape.length(), expected.len() as u64);
            }
            prop_assert!(file == expected);
            prop_assert_eq!(pool.lent_bytes(), 0);
        }
    }
}
