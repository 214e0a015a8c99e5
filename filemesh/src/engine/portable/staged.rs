//! A file that is written at offsets, where small neighbouring writes leave as one.
//!
//! Blocks come off a TLS connection 16 KiB at a time, and a system call for each costs twice what
//! the bytes cost (measured: 0.53 against 0.28 CPU s/GiB with 256 KiB). So some bytes wait in memory,
//! where kill -9 loses them; the state file makes sure that they are then fetched again. Errors come
//! out of the write or flush that meets them.
//!
//! A large file goes around the page cache ([`StagedFile::around_cache`]): whole pages leave in
//! direct writes of up to 1 MiB, which cost a third of the CPU (measured: 0.11 against 0.30 CPU
//! s/GiB) and leave the host's own pages where they are. What is short or not aligned goes through
//! the cache; the kernel keeps the two coherent. A file system without direct writes gets the same
//! protection from [`WriteBehind`].

use super::write_behind::WriteBehind;
use crate::engine::error::{Context, FileError};
use crate::engine::sys;
use aligned_vec::{AVec, ConstAlign};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Alignment of direct writes in memory, offset and length: a page, which every device accepts.
const ALIGN: usize = 4096;

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
    /// Through the cache, but soon.
    Behind(WriteBehind),
}

/// A file with a little memory in front of it. Dropping it flushes as well as it can.
#[derive(Debug)]
pub(in crate::engine) struct StagedFile {
    file: File,
    path: PathBuf,
    /// Where the waiting bytes belong.
    offset: u64,
    waiting: AVec<u8, ConstAlign<ALIGN>>,
    way: Way,
}

impl StagedFile {
    pub fn new(file: File, path: PathBuf) -> Self {
        Self { file, path, offset: 0, waiting: AVec::new(ALIGN), way: Way::Cached }
    }

    /// From now on what is written goes to the disk at once and does not stay in the page cache.
    pub fn around_cache(&mut self) {
        self.way = match sys::open_direct(&self.file) {
            Ok(direct) => Way::Direct(direct),
            Err(_) => Way::Behind(WriteBehind::default()),
        };
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
        if offset != self.offset + self.waiting.len() as u64 {
            self.flush()?;
        }
        while !data.is_empty() {
            let stage_bytes = match self.way {
                Way::Direct(_) => DIRECT_STAGE_BYTES,
                Way::Cached | Way::Behind(_) => STAGE_BYTES,
            };
            let is_direct = matches!(self.way, Way::Direct(_));
            if self.waiting.is_empty() {
                self.offset = offset;
                // Only direct writes need the bytes in other memory.
                if !is_direct && data.len() >= stage_bytes {
                    return self.write_out(data, offset);
                }
                self.waiting.reserve_exact(stage_bytes);
            }
            let room = stage_bytes.saturating_sub(self.waiting.len());
            let (now, later) = data.split_at(room.min(data.len()));
            self.waiting.extend_from_slice(now);
            (offset, data) = (offset + now.len() as u64, later);
            if self.waiting.len() >= stage_bytes {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what waits. After an error it is gone: the caller gives the file up.
    pub fn flush(&mut self) -> Result<(), FileError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut waiting = std::mem::replace(&mut self.waiting, AVec::new(ALIGN));
        let result = self.write_waiting(&waiting, self.offset);
        waiting.clear();
        self.waiting = waiting;
        result
    }

    /// Writes bytes that lie on an aligned address.
    fn write_waiting(&mut self, data: &[u8], offset: u64) -> Result<(), FileError> {
        let whole = data.len() - data.len() % ALIGN;
        let is_aligned = offset.is_multiple_of(ALIGN as u64);
        let Way::Direct(direct) = &self.way else { return self.write_out(data, offset) };
        if whole < DIRECT_BYTES_MIN || !is_aligned {
            return self.write_out(data, offset);
        }
        match direct.write_all_at(&data[..whole], offset) {
            // Some file systems open for direct writes and refuse them.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.way = Way::Behind(WriteBehind::default());
                self.write_out(data, offset)
            }
            result => {
                result.on("write", &self.path)?;
                self.write_out(&data[whole..], offset + whole as u64)
            }
        }
    }

    fn write_out(&mut self, data: &[u8], offset: u64) -> Result<(), FileError> {
        self.file.write_all_at(data, offset).on("write", &self.path)?;
        match &mut self.way {
            Way::Behind(behind) => behind
                .wrote(&self.file, offset..offset + data.len() as u64)
                .on("write to the disk", &self.path),
            Way::Cached | Way::Direct(_) => Ok(()),
        }
    }

    /// Appends exactly `len` bytes at `offset` to `out`; on failure `out` is as before. The file
    /// must be that long already, whatever waits.
    pub fn append_at(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<(), FileError> {
        let start = out.len();
        sys::append_at(&self.file, offset, len, out).on("read", &self.path)?;
        let from = self.offset.max(offset);
        let to = (self.offset + self.waiting.len() as u64).min(offset + len as u64);
        if from < to {
            let waiting = (from - self.offset) as usize..(to - self.offset) as usize;
            let at = start + (from - offset) as usize;
            out[at..at + waiting.len()].copy_from_slice(&self.waiting[waiting]);
        }
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        let _ = self.flush(); // what is lost here is fetched again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn staging_changes_nothing(
            writes in proptest::collection::vec((0u64..40, 0usize..300_000, any::<u8>()), 0..12),
            read_at in 0usize..12,
            way in 0..3,
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
