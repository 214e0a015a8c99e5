//! A file that is written at offsets, where small neighbouring writes leave as one.
//!
//! Blocks come off a TLS connection 16 KiB at a time, and a system call for each costs twice what
//! the bytes cost (measured: 0.53 against 0.28 CPU s/GiB with 256 KiB). So some bytes wait in memory,
//! where kill -9 loses them; the state file makes sure that they are then fetched again. Errors come
//! out of the write or flush that meets them, or, with a queue, of a later one. What waits are views of slabs: bytes that lie in one
//! already are taken over, others are copied into one.
//!
//! A large file goes around the page cache ([`StagedFile::around_cache`]): whole pages leave in
//! direct writes of up to 1 MiB, which cost a third of the CPU (measured: 0.11 against 0.30 CPU
//! s/GiB) and leave the host's own pages where they are. What is short or not aligned goes through
//! the cache; the kernel keeps the two coherent. A file system without direct writes gets the same
//! protection from [`WriteBehind`].

use super::write_behind::WriteBehind;
use crate::engine::error::{Context, FileError};
use crate::engine::memory::{ALIGN, BlockMemory, Lease, Room, SLAB_BYTES, View};
use crate::engine::queue::{QueueFile, WriteQueue};
use crate::engine::sys;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that may wait when they go through the page cache.
const STAGE_BYTES: usize = 128 * 1024;

/// Bytes that may wait when they go around it: one write of 1 MiB nearly saturates a disk.
const DIRECT_STAGE_BYTES: usize = 1024 * 1024;

/// Shorter writes go through the page cache: a direct one has to wait for the device.
const DIRECT_BYTES_MIN: usize = 64 * 1024;

/// How whole pages reach the disk.
#[derive(Debug)]
enum Way {
    /// When the kernel likes.
    Cached,
    /// By a second descriptor that goes around the page cache.
    Direct(File),
    /// The same, beside this thread.
    Queued(WriteQueue, Arc<QueueFile>),
    /// Through the cache, but soon.
    Behind(WriteBehind),
}

/// A file with a little memory in front of it. Dropping it flushes as well as it can.
#[derive(Debug)]
pub(in crate::engine) struct StagedFile {
    file: File,
    path: PathBuf,
    way: Way,
    memory: Lease,
    /// Where bytes are copied to that lie in no slab.
    room: Option<Room>,
    /// What waits, one behind the other from `offset` on.
    waiting: Vec<View>,
    waiting_bytes: usize,
    offset: u64,
}

impl StagedFile {
    pub fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            way: Way::Cached,
            // What waits, and the rest of the slab that is being filled.
            memory: BlockMemory::new(2 * DIRECT_STAGE_BYTES).lease(),
            room: None,
            waiting: Vec::new(),
            waiting_bytes: 0,
            offset: 0,
        }
    }

    /// From now on bytes are copied into slabs of `memory`.
    pub fn use_memory(&mut self, memory: &BlockMemory) {
        self.memory = memory.lease();
    }

    /// From now on what is written goes to the disk at once and does not stay in the page cache.
    pub fn around_cache(&mut self) {
        self.way = match sys::open_direct(&self.file) {
            Ok(direct) => Way::Direct(direct),
            Err(_) => Way::Behind(WriteBehind::default()),
        };
    }

    /// From now on what goes around the page cache is written by `queue`; the rest as before.
    pub fn use_queue(&mut self, queue: WriteQueue) -> Result<(), FileError> {
        if matches!(self.way, Way::Direct(_)) {
            let file = self.file.try_clone().on("open again", &self.path)?;
            self.way = Way::Queued(queue, Arc::new(QueueFile::new(file, true)));
        }
        Ok(())
    }

    /// From now on the kernel decides when what is written goes to the disk.
    pub fn write_back(&mut self) {
        self.way = Way::Cached;
    }

    /// The file without what waits.
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `data` at `offset`, now or together with its neighbours.
    pub fn write_at(&mut self, mut offset: u64, mut data: &[u8]) -> Result<(), FileError> {
        self.go_to(offset)?;
        while !data.is_empty() {
            // Only direct and later writes need the bytes in other memory.
            let is_copied = matches!(self.way, Way::Direct(_) | Way::Queued(..));
            if self.waiting.is_empty() && !is_copied && data.len() >= STAGE_BYTES {
                return self.write_out(&[data], offset);
            }
            let space = self.stage_bytes().saturating_sub(self.waiting_bytes);
            let room = match self.room.take().filter(|room| !room.is_empty()) {
                Some(room) => room,
                None => self.memory.take_anyway(),
            };
            let room = self.room.insert(room);
            let (now, later) = data.split_at(data.len().min(space).min(room.len()));
            room[..now.len()].copy_from_slice(now);
            let view = room.cut(now.len());
            self.wait(offset, view)?;
            (offset, data) = (offset + now.len() as u64, later);
        }
        Ok(())
    }

    /// The same for bytes that lie in a slab: they are not copied.
    pub fn write_view(&mut self, offset: u64, view: View) -> Result<(), FileError> {
        self.go_to(offset)?;
        self.wait(offset, view)
    }

    /// Flushes what is no neighbour of `offset`.
    fn go_to(&mut self, offset: u64) -> Result<(), FileError> {
        let is_next = offset == self.offset + self.waiting_bytes as u64;
        if is_next { Ok(()) } else { self.flush() }
    }

    /// Adds to what waits; it is next to it.
    fn wait(&mut self, offset: u64, view: View) -> Result<(), FileError> {
        if self.waiting.is_empty() {
            self.offset = offset;
        }
        self.waiting_bytes += view.len();
        if !self.waiting.last_mut().is_some_and(|last| last.join(&view)) {
            self.waiting.push(view);
        }
        if self.waiting_bytes >= self.stage_bytes() { self.flush() } else { Ok(()) }
    }

    fn stage_bytes(&self) -> usize {
        match self.way {
            Way::Direct(_) => DIRECT_STAGE_BYTES,
            Way::Queued(..) => SLAB_BYTES,
            Way::Cached | Way::Behind(_) => STAGE_BYTES,
        }
    }

    /// Writes what waits. After an error it is gone: the caller gives the file up.
    pub fn flush(&mut self) -> Result<(), FileError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let total = std::mem::take(&mut self.waiting_bytes);
        let result = self.write_waiting(&waiting, total);
        waiting.clear();
        self.waiting = waiting;
        if let Some(room) = &mut self.room {
            room.align();
        }
        result
    }

    fn write_waiting(&mut self, views: &[View], total: usize) -> Result<(), FileError> {
        if let Way::Queued(queue, file) = &self.way {
            file.result().on("write", &self.path)?;
            let mut at = self.offset;
            for view in views {
                queue.write(file, at, view.clone());
                at += view.len() as u64;
            }
            return Ok(());
        }
        let parts: Vec<&[u8]> = views.iter().map(|view| &view[..]).collect();
        let whole = total - total % ALIGN;
        let Way::Direct(direct) = &self.way else { return self.write_out(&parts, self.offset) };
        let (ends, last) = parts.split_at(parts.len().saturating_sub(1));
        let is_aligned = self.offset.is_multiple_of(ALIGN as u64)
            && views.iter().all(View::is_aligned)
            && ends.iter().all(|part| part.len().is_multiple_of(ALIGN));
        let Some(last) = last.first().filter(|_| whole >= DIRECT_BYTES_MIN && is_aligned) else {
            return self.write_out(&parts, self.offset);
        };
        let (body, tail) = last.split_at(last.len() - (total - whole));
        let body: Vec<&[u8]> = ends.iter().copied().chain([body]).collect();
        match sys::write_all_at(direct, &body, self.offset) {
            // Some file systems open for direct writes and refuse them.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.way = Way::Behind(WriteBehind::default());
                self.write_out(&parts, self.offset)
            }
            result => {
                result.on("write", &self.path)?;
                self.write_out(&[tail], self.offset + whole as u64)
            }
        }
    }

    fn write_out(&mut self, parts: &[&[u8]], offset: u64) -> Result<(), FileError> {
        sys::write_all_at(&self.file, parts, offset).on("write", &self.path)?;
        let total: usize = parts.iter().map(|part| part.len()).sum();
        match &mut self.way {
            Way::Behind(behind) => behind
                .wrote(&self.file, offset..offset + total as u64)
                .on("write to the disk", &self.path),
            Way::Cached | Way::Direct(_) | Way::Queued(..) => Ok(()),
        }
    }

    /// Writes what waits, until all of it is where reads find it.
    pub fn settle(&mut self) -> Result<(), FileError> {
        self.flush()?;
        self.await_queue()
    }

    /// Waits for what a queue has of the file.
    fn await_queue(&self) -> Result<(), FileError> {
        match &self.way {
            Way::Queued(queue, file) => queue.settle(file).on("write", &self.path),
            Way::Cached | Way::Direct(_) | Way::Behind(_) => Ok(()),
        }
    }

    /// Appends exactly `len` bytes at `offset` to `out`; on failure `out` is as before. The file
    /// must be that long already, whatever waits.
    pub fn append_at(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<(), FileError> {
        self.await_queue()?;
        let start = out.len();
        sys::append_at(&self.file, offset, len, out).on("read", &self.path)?;
        let (mut at, end) = (self.offset, offset + len as u64);
        for view in &self.waiting {
            let (from, to) = (at.max(offset), (at + view.len() as u64).min(end));
            if from < to {
                let place = start + (from - offset) as usize;
                let part = &view[(from - at) as usize..(to - at) as usize];
                out[place..place + part.len()].copy_from_slice(part);
            }
            at += view.len() as u64;
        }
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        let _ = self.settle(); // what is lost here is fetched again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::queue::{EngineKind, Settings};
    use proptest::prelude::*;

    /// Direct bytes never stay in the page cache, and the rest of a file follows them.
    #[test]
    fn a_large_file_is_written_directly_up_to_its_last_page() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("file");
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).unwrap();
        let mut staged = StagedFile::new(file, path.clone());
        staged.around_cache();
        if !matches!(staged.way, Way::Direct(_)) {
            eprintln!("skipped: {} has no direct writes", base.path().display());
            return;
        }
        let data: Vec<u8> = (0..3_000_001u32).map(|at| (at % 251) as u8).collect();
        for (at, block) in data.chunks(16_384).enumerate() {
            staged.write_at(at as u64 * 16_384, block).unwrap();
        }
        assert!(matches!(staged.way, Way::Direct(_)));
        drop(staged);
        assert!(std::fs::read(&path).unwrap() == data);
    }

    /// Blocks in slabs of two links, which come by turns, are neighbours in the file only.
    #[test]
    fn views_of_several_slabs_leave_as_one_write() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("file");
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(5_000_000).unwrap();
        let mut staged = StagedFile::new(file, path.clone());
        staged.around_cache();
        let data: Vec<u8> = (0..5_000_000u32).map(|at| (at % 241) as u8).collect();
        let memory = BlockMemory::new(1 << 20);
        let mut rooms = [memory.take_anyway(), memory.take_anyway()];
        for (number, block) in data.chunks(16_384).enumerate() {
            let room = &mut rooms[number % 2];
            if room.len() < block.len() {
                *room = memory.take_anyway();
            }
            room[..block.len()].copy_from_slice(block);
            let view = room.cut(block.len());
            staged.write_view(number as u64 * 16_384, view).unwrap();
            if number == 40 {
                let mut out = vec![];
                staged.append_at(600_000, 50_000, &mut out).unwrap();
                assert!(out == data[600_000..650_000], "what waits is read as well");
            }
        }
        drop((staged, rooms));
        assert!(std::fs::read(&path).unwrap() == data);
        assert_eq!(memory.counters().in_use, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn staging_changes_nothing(
            writes in proptest::collection::vec((0u64..40, 0usize..300_000, any::<u8>()), 0..12),
            read_at in 0usize..12,
            way in 0usize..5,
        ) {
            let base = tempfile::tempdir().unwrap();
            let path = base.path().join("file");
            let mut options = File::options();
            let file = options.read(true).write(true).create(true).truncate(true).open(&path);
            let file = file.unwrap();
            file.set_len(8 << 20).unwrap();
            let mut staged = StagedFile::new(file, path.clone());
            match way {
                0 => {}
                1 => staged.around_cache(),
                2 | 3 => {
                    let kind = [EngineKind::Portable, EngineKind::Uring][way - 2];
                    let settings = Settings { kind, depth: 3, ..Settings::default() };
                    staged.around_cache();
                    let queue = WriteQueue::start(&settings, &staged.memory).unwrap();
                    staged.use_queue(queue).unwrap();
                }
                _ => staged.way = Way::Behind(WriteBehind::default()),
            }
            let (mut expected, mut end) = (vec![0; 8 << 20], 0);
            for (at, (block, len, fill)) in writes.into_iter().enumerate() {
                let data = vec![fill; len];
                // Every other write goes on where the last one ended.
                let start = if at % 2 == 1 { end } else { block as usize * 16_384 };
                end = start + len;
                expected[start..start + len].copy_from_slice(&data);
                staged.write_at(start as u64, &data).unwrap();
                if at == read_at {
                    let mut out = vec![];
                    let from = start.saturating_sub(20_000);
                    staged.append_at(from as u64, len + 40_000, &mut out).unwrap();
                    prop_assert!(out == expected[from..from + len + 40_000]);
                }
            }
            drop(staged);
            prop_assert!(std::fs::read(&path).unwrap() == expected);
        }
    }
}
