//! The disk driver that needs nothing of the kernel but files.
//!
//! It runs each operation to its end, on a thread beside the worker. Bulk is written around the
//! page cache (`O_DIRECT`), which costs a tenth of the CPU of writing through it and needs no
//! io_uring.
//!
//! The rule of both drivers for a write, which keeps a file's visible length exact and never shows
//! padding: whole pages go direct when there are enough of them, the rest goes through the page
//! cache. The kernel keeps the two coherent: a direct write first flushes and then drops the cached
//! pages that it covers, and here it covers them only to repeat what they hold.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::block::{ALIGN, Write};
use super::disk::{DiskDone, DiskOp, FileId, Opened, not_open};
use super::{checkpoint, place};

/// Writes shorter than this go through the page cache whole: a direct write has to wait for the
/// device, and a quiet stream's few kilobytes are flushed by its fdatasync anyway.
pub const DIRECT_BYTES_MIN: usize = 64 << 10;

/// Space is allocated ahead in steps that double from 4 MiB to this, so that a busy file lies in
/// few extents. It is given back when the file is closed.
const ALLOCATE_BYTES_MAX: u64 = 64 << 20;
const ALLOCATE_BYTES_MIN: u64 = 4 << 20;

/// Room that must be free before a stream whose sink failed is tried again.
pub const PROBE_BYTES: u64 = 1 << 20;

/// Where the next allocation step of a file ends.
pub fn allocate_until(allocated: u64, end: u64) -> Option<u64> {
    (end > allocated).then(|| end + end.clamp(ALLOCATE_BYTES_MIN, ALLOCATE_BYTES_MAX))
}

/// A file opened once more for direct I/O, if its file system has that.
pub fn open_direct(file: &File) -> Option<File> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(proc_path(file))
        .ok()
}

/// A path to what `file` is, whatever became of its name.
pub fn proc_path(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Allocates without changing the length; file systems that cannot are left to themselves.
pub fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether there is room behind `length`; what was taken to find out is given back.
pub fn probe(file: &File, length: u64) -> io::Result<()> {
    allocate(file, length, PROBE_BYTES)?;
    file.set_len(length)
}

/// Cuts a file and reads its tail.
pub fn truncate(file: &File, length: u64) -> io::Result<Vec<u8>> {
    let actual = file.metadata()?.len();
    if actual < length {
        return Err(io::Error::other(format!("file has {actual} bytes, expected {length}")));
    }
    file.set_len(length)?;
    place::tail(file, length)
}

/// The error for what follows a failed write.
pub fn torn() -> io::Error {
    io::Error::other("an earlier write of this file failed")
}

/// Cuts a file before it is closed. If that fails, its checkpoint has it cut at the next start.
pub fn cut(file: &File, length: u64, allocated: u64) {
    let longer = file.metadata().is_ok_and(|metadata| metadata.len() > length);
    if longer || allocated > length {
        let _ = file.set_len(length);
    }
}

/// The checkpoint log as an ordinary file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl LogFile {
    /// Opens the log at its end, or creates it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let mut length = file.metadata()?.len();
        if length < checkpoint::MAGIC.len() as u64 {
            file.set_len(0)?;
            file.write_all_at(checkpoint::MAGIC, 0)?;
            length = checkpoint::MAGIC.len() as u64;
        }
        Ok(Self { path: path.to_owned(), file, length })
    }

    /// Appends frames.
    pub fn append(&mut self, frames: &[u8], durable: bool) -> io::Result<()> {
        self.file.write_all_at(frames, self.length)?;
        if durable {
            self.file.sync_data()?;
        }
        self.length += frames.len() as u64;
        Ok(())
    }

    /// Replaces the log, atomically and always durably.
    pub fn replace(&mut self, frames: &[u8]) -> io::Result<()> {
        let aside = self.path.with_extension("new");
        let _ = std::fs::remove_file(&aside);
        let mut new = Self::open(&aside)?;
        new.append(frames, true)?;
        std::fs::rename(&aside, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        *self = Self { path: std::mem::take(&mut self.path), ..new };
        Ok(())
    }
}

#[derive(Debug)]
struct PlainFile {
    file: File,
    direct: Option<File>,
    allocated: u64,
    /// A write failed: what was to follow it would leave a hole, until the file is cut.
    torn: bool,
}

impl PlainFile {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        if self.torn {
            return Err(torn());
        }
        let result = self.try_write(write);
        self.torn = result.is_err();
        result
    }

    fn try_write(&mut self, write: &Write) -> io::Result<()> {
        let content = write.block.bytes();
        let whole = content.len() - content.len() % ALIGN;
        let mut from = write.from;
        if let Some(direct) = self.direct.as_ref().filter(|_| whole >= DIRECT_BYTES_MIN) {
            if let Some(until) = allocate_until(self.allocated, write.offset + whole as u64) {
                // Without room for the step the write itself may still fit, or says what is wrong.
                let start = self.allocated.max(write.offset);
                let _ = allocate(&self.file, start, until - start);
                self.allocated = until;
            }
            direct.write_all_at(&content[..whole], write.offset)?;
            from = whole;
        }
        self.file.write_all_at(&content[from..], write.offset + from as u64)
    }
}

/// Executes operations with ordinary calls.
#[derive(Debug)]
pub struct PlainDisk {
    files: HashMap<FileId, PlainFile>,
    log: LogFile,
}

impl PlainDisk {
    /// A driver whose checkpoint log is at `log`.
    pub fn new(log: &Path) -> io::Result<Self> {
        Ok(Self { files: HashMap::new(), log: LogFile::open(log)? })
    }

    /// Executes one operation.
    pub fn run(&mut self, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Open { file, open, durable } => {
                let opened = place::open(&open, durable);
                DiskDone::Opened(
                    file,
                    opened.map(|(handle, opened)| self.keep(file, handle, opened)),
                )
            }
            DiskOp::Write { file, write } => {
                let result = match self.files.get_mut(&file) {
                    Some(open) => open.write(&write),
                    None => Err(not_open()),
                };
                DiskDone::Written(file, write.block, result)
            }
            DiskOp::Sync { file, durable } => {
                let sync = |open: &mut PlainFile| match durable {
                    _ if open.torn => Err(torn()),
                    true => open.file.sync_data(),
                    false => Ok(()),
                };
                DiskDone::Synced(file, self.with(file, sync))
            }
            DiskOp::Truncate { file, length } => {
                let cut = |open: &mut PlainFile| {
                    open.allocated = 0;
                    truncate(&open.file, length).inspect(|_| open.torn = false)
                };
                DiskDone::Truncated(file, self.with(file, cut))
            }
            DiskOp::Probe { file, length } => {
                let probe = |open: &mut PlainFile| {
                    open.allocated = 0;
                    probe(&open.file, length)
                };
                DiskDone::Probed(file, self.with(file, probe))
            }
            DiskOp::Close { file, length } => {
                if let Some(open) = self.files.remove(&file) {
                    cut(&open.file, length, open.allocated);
                }
                DiskDone::Closed(file)
            }
            DiskOp::Log { bytes, replace: true, .. } => DiskDone::Logged(self.log.replace(&bytes)),
            DiskOp::Log { bytes, durable, .. } => {
                DiskDone::Logged(self.log.append(&bytes, durable))
            }
        }
    }

    fn keep(&mut self, file: FileId, handle: File, opened: Opened) -> Opened {
        let direct = open_direct(&handle);
        self.files.insert(
            file,
            PlainFile { file: handle, direct, allocated: opened.length, torn: false },
        );
        opened
    }

    fn with<T>(
        &mut self,
        file: FileId,
        act: impl FnOnce(&mut PlainFile) -> io::Result<T>,
    ) -> io::Result<T> {
        self.files.get_mut(&file).ok_or_else(not_open).and_then(act)
    }
}
