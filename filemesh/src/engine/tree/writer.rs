//! Writes the bytes of a tree's stream into its files, in whatever order they come.
//!
//! A file whose bytes are all in one write is made, written, given its attributes and closed at
//! once, in larger trees by a thread beside: five system calls, and nothing is remembered of it but
//! a bit. Other files stay open while they are being written, a few at a time.

use super::beside::{self, Beside, Failure};
use super::dirs::Dirs;
use super::small::{Settled, SmallFile, open_staged, unlock};
use super::stage::TreeOptions;
use super::sys as tree_sys;
use crate::core::bitfield::Bitfield;
use crate::core::geometry::BLOCK_BYTES;
use crate::core::tree::layout::{LARGE_BYTES, Layout, Part};
use crate::core::tree::listing::{Kind, Listing, ListingError};
use crate::engine::error::{Context, FileError};
use crate::engine::portable::partial::is_unsupported;
use crate::engine::portable::staged::StagedFile;
use crate::engine::portable::write_behind::KEPT_BYTES_MAX;
use crate::engine::{Owner, sys};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Files that stay open. Each may hold up to 1 MiB that waits to be written.
const OPEN_MAX: usize = 8;

/// A staged tree whose listing is known.
#[derive(Debug)]
pub(super) struct TreeWriter {
    pub listing: Listing,
    pub layout: Arc<Layout>,
    pub dirs: Dirs,
    /// The root's path, for messages.
    path: PathBuf,
    /// By number in the listing's table.
    owners: Vec<Owner>,
    /// Most recently used first.
    open: VecDeque<Open>,
    /// Writes small files, where there are many.
    beside: Option<Beside>,
    /// Entries that are complete and have their attributes.
    settled: Bitfield,
    /// Of all files.
    mode: Option<u32>,
    own_times: bool,
}

#[derive(Debug)]
struct Open {
    entry: u32,
    file: StagedFile,
    /// No block of the file before this one is missing.
    missing_from: u32,
}

impl TreeWriter {
    pub fn new(
        listing: Listing,
        layout: Layout,
        root: Arc<OwnedFd>,
        path: PathBuf,
        owners: Vec<Owner>,
        options: &TreeOptions,
    ) -> Self {
        let settled = Bitfield::new(listing.len());
        let (dirs, layout) = (Dirs::new(root), Arc::new(layout));
        let (open, mode, own_times) = (VecDeque::new(), options.mode, options.own_times);
        // Without a thread everything is written by whoever receives it.
        let is_large = listing.len() >= beside::ENTRIES_MIN;
        let beside = is_large.then(|| Beside::start(listing.len()).ok()).flatten();
        Self { listing, layout, dirs, path, owners, open, beside, settled, mode, own_times }
    }

    /// The path of `entry`, for messages.
    pub fn path_of(&self, entry: u32) -> PathBuf {
        self.path.join(OsStr::from_bytes(&self.listing.path(entry)))
    }

    /// Makes all directories and symbolic links; what an earlier run made of them stays.
    pub fn make_skeleton(&mut self) -> Result<(), FileError> {
        for entry in 1..self.listing.len() {
            match self.listing.kind(entry) {
                Kind::Directory => self.make_directory(entry)?,
                Kind::Symlink(_) => self.make_link(entry)?,
                Kind::File { .. } | Kind::Sparse { .. } | Kind::HardLink(_) => {}
            }
        }
        Ok(())
    }

    fn make_directory(&mut self, entry: u32) -> Result<(), FileError> {
        let dir = self.parent_of(entry)?;
        match sys::mkdir_at(dir.as_fd(), self.listing.name(entry), 0o700) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).on("make directory", &self.path_of(entry))
            }
            _ => Ok(()),
        }
    }

    fn make_link(&mut self, entry: u32) -> Result<(), FileError> {
        let dir = self.parent_of(entry)?;
        let (dir, name) = (dir.as_fd(), self.listing.name(entry));
        let Kind::Symlink(target) = self.listing.kind(entry) else { return Ok(()) };
        let made = match tree_sys::symlink_at(dir, name, target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                sys::unlink_at(dir, name).and_then(|()| tree_sys::symlink_at(dir, name, target))
            }
            result => result,
        };
        made.on("make link", &self.path_of(entry))?;
        let (meta, Owner { uid, gid }) = (self.listing.meta(entry), self.owner_of(entry));
        if uid.is_some() || gid.is_some() {
            let changed = tree_sys::change_link_owner(dir, name, uid, gid);
            changed.on("change the owner of", &self.path_of(entry))?;
        }
        if !self.own_times {
            let changed = tree_sys::set_link_mtime(dir, name, meta.mtime_ns);
            changed.on("change the time of", &self.path_of(entry))?;
        }
        self.settled.set(entry);
        Ok(())
    }

    fn parent_of(&mut self, entry: u32) -> Result<Arc<OwnedFd>, FileError> {
        let parent = self.listing.parent(entry);
        let dir = self.dirs.get(&self.listing, parent);
        dir.map_err(|source| FileError::Io {
            action: "open directory",
            path: self.path_of(parent),
            source,
        })
    }

    fn owner_of(&self, entry: u32) -> Owner {
        self.owners.get(usize::from(self.listing.meta(entry).owner)).copied().unwrap_or_default()
    }

    /// Writes the content in `data`, which is at `offset` of the stream. `written` says which
    /// blocks there are, these included.
    pub fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        written: &Bitfield,
        padding: Padding,
    ) -> Result<(), FileError> {
        let (mut rest, layout) = (data, self.layout.clone());
        for part in layout.parts(offset..offset + data.len() as u64) {
            let (now, later) = rest.split_at(part.len() as usize);
            rest = later;
            match part {
                // Whoever has the stream compares it.
                Part::Listing(_) => {}
                Part::Padding(_) => {
                    if padding == Padding::Proved && now.iter().any(|byte| *byte != 0) {
                        let source = ListingError::Padding;
                        return Err(FileError::Listing { path: self.path.clone(), source });
                    }
                }
                Part::File { entry, offset, len } => match self.listing.kind(entry) {
                    Kind::File { size_bytes } if size_bytes == len => {
                        self.write_whole(entry, now)?;
                    }
                    _ => self.write_part(entry, offset, now, written)?,
                },
            }
        }
        Ok(())
    }

    fn write_whole(&mut self, entry: u32, data: &[u8]) -> Result<(), FileError> {
        self.close(entry)?;
        let (dir, settled) = (self.parent_of(entry)?, self.settled_of(entry));
        let name = self.listing.name(entry).to_vec();
        let file = SmallFile { entry, dir, name, settled };
        let written = match self.beside.as_mut().filter(|beside| beside.takes(data.len())) {
            Some(beside) => beside.write(file, data),
            None => file.write(data).map_err(|failed| (entry, failed)),
        };
        self.say(written)?;
        self.settled.set(entry);
        Ok(())
    }

    /// Returns when nothing is under way beside this thread.
    pub fn wait(&mut self) -> Result<(), FileError> {
        let waited = self.beside.as_mut().map_or(Ok(()), Beside::wait);
        self.say(waited)
    }

    /// The same if `entry` may be under way.
    fn wait_for(&mut self, entry: u32) -> Result<(), FileError> {
        match self.beside.as_ref().is_some_and(|beside| beside.has(entry)) {
            true => self.wait(),
            false => Ok(()),
        }
    }

    fn say(&self, result: Result<(), Failure>) -> Result<(), FileError> {
        result.map_err(|(entry, failed)| failed.at(self.path_of(entry)))
    }

    fn write_part(
        &mut self,
        entry: u32,
        offset: u64,
        data: &[u8],
        written: &Bitfield,
    ) -> Result<(), FileError> {
        self.wait_for(entry)?;
        self.settled.clear(entry);
        let mut open = match self.take(entry) {
            Some(open) => open,
            None => self.open_sized(entry)?,
        };
        open.file.write_at(offset, data)?;
        let range = self.layout.stream_range_of(entry);
        let end = range.end.div_ceil(u64::from(BLOCK_BYTES)) as u32;
        let missing = written.next_zero(open.missing_from).filter(|block| *block < end);
        match missing {
            None => {
                open.file.flush()?;
                self.settle(entry, open.file.file().as_fd())
            }
            Some(block) => {
                open.missing_from = block;
                self.open.push_front(open);
                if self.open.len() > OPEN_MAX {
                    self.open.pop_back().map_or(Ok(()), |mut old| old.file.flush())?;
                }
                Ok(())
            }
        }
    }

    fn take(&mut self, entry: u32) -> Option<Open> {
        let at = self.open.iter().position(|open| open.entry == entry)?;
        self.open.remove(at)
    }

    fn close(&mut self, entry: u32) -> Result<(), FileError> {
        self.wait_for(entry)?;
        self.take(entry).map_or(Ok(()), |mut open| open.file.flush())
    }

    /// Opens `entry` with its size, and its space if it is large and has no holes.
    fn open_sized(&mut self, entry: u32) -> Result<Open, FileError> {
        let (file, _) = self.open_staged(entry)?;
        let path = self.path_of(entry);
        let (size_bytes, is_dense) = match self.listing.kind(entry) {
            Kind::File { size_bytes } => (size_bytes, true),
            Kind::Sparse { size_bytes, .. } => (size_bytes, false),
            _ => (0, false),
        };
        if is_dense && size_bytes >= LARGE_BYTES {
            match sys::allocate(&file, size_bytes) {
                Err(error) if is_unsupported(&error) => {}
                result => result.on("allocate", &path)?,
            }
        }
        file.set_len(size_bytes).on("set the size of", &path)?;
        let mut file = StagedFile::new(file, path);
        if is_dense && size_bytes > KEPT_BYTES_MAX {
            file.around_cache();
        }
        let first = self.layout.stream_range_of(entry).start / u64::from(BLOCK_BYTES);
        Ok(Open { entry, file, missing_from: first as u32 })
    }

    /// Opens or makes the file of `entry`; true if it was made.
    fn open_staged(&mut self, entry: u32) -> Result<(File, bool), FileError> {
        let dir = self.parent_of(entry)?;
        let opened = open_staged(dir.as_fd(), self.listing.name(entry), 0o600);
        opened.map_err(|failed| failed.at(self.path_of(entry)))
    }

    fn settled_of(&self, entry: u32) -> Settled {
        let (meta, owner) = (self.listing.meta(entry), self.owner_of(entry));
        let is_directory = self.listing.kind(entry) == Kind::Directory;
        let mode = self.mode.filter(|_| !is_directory).unwrap_or(meta.mode.into());
        Settled { owner, mode, mtime_ns: (!self.own_times).then_some(meta.mtime_ns) }
    }

    /// Gives a file or directory its attributes.
    fn settle(&mut self, entry: u32, fd: BorrowedFd<'_>) -> Result<(), FileError> {
        let given = self.settled_of(entry).give(fd);
        given.map_err(|failed| failed.at(self.path_of(entry)))?;
        self.settled.set(entry);
        Ok(())
    }

    /// Appends `len` bytes at `offset` of file `entry` to `out`, also of what waits.
    pub fn read(
        &mut self,
        entry: u32,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        self.wait_for(entry)?;
        if let Some(open) = self.open.iter().find(|open| open.entry == entry) {
            return open.file.append_at(offset, len, out);
        }
        let dir = self.parent_of(entry)?;
        let (dir, name) = (dir.as_fd(), self.listing.name(entry));
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match sys::open_at(dir, name, flags, 0) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.settled.clear(entry);
                unlock(dir, name).and_then(|()| sys::open_at(dir, name, flags, 0))
            }
            result => result,
        };
        let file = File::from(file.on("open", &self.path_of(entry))?);
        sys::append_at(&file, offset, len, out).on("read", &self.path_of(entry))
    }

    /// Completes what no block completes: files that are waiting or open, empty ones, further
    /// names. Directories come later ([`TreeWriter::settle_directory`]).
    pub fn settle_files(&mut self) -> Result<(), FileError> {
        self.wait()?;
        while let Some(mut open) = self.open.pop_back() {
            open.file.flush()?;
        }
        for entry in 1..self.listing.len() {
            if self.settled.get(entry) {
                continue;
            }
            match self.listing.kind(entry) {
                Kind::File { size_bytes } | Kind::Sparse { size_bytes, .. } => {
                    let (file, _) = self.open_staged(entry)?;
                    file.set_len(size_bytes).on("set the size of", &self.path_of(entry))?;
                    self.settle(entry, file.as_fd())?;
                }
                Kind::HardLink(of) => self.make_hard_link(entry, of)?,
                Kind::Directory | Kind::Symlink(_) => {}
            }
        }
        Ok(())
    }

    fn make_hard_link(&mut self, entry: u32, of: u32) -> Result<(), FileError> {
        let (from, to) = (self.parent_of(of)?, self.parent_of(entry)?);
        let (first, name) = (self.listing.name(of), self.listing.name(entry));
        let made = match tree_sys::link_at(from.as_fd(), first, to.as_fd(), name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                sys::unlink_at(to.as_fd(), name)
                    .and_then(|()| tree_sys::link_at(from.as_fd(), first, to.as_fd(), name))
            }
            result => result,
        };
        made.on("make a second name", &self.path_of(entry))?;
        self.settled.set(entry);
        Ok(())
    }

    /// Gives directory `entry` its attributes; nothing in it may change any more.
    pub fn settle_directory(&mut self, entry: u32) -> Result<(), FileError> {
        let name = if entry == 0 { b"." } else { self.listing.name(entry) };
        let name = name.to_vec();
        let parent = if entry == 0 { self.dirs.root().clone() } else { self.parent_of(entry)? };
        let dir = tree_sys::open_dir_to_read(parent.as_fd(), &name);
        let dir = dir.on("open directory", &self.path_of(entry))?;
        self.settle(entry, dir.as_fd())
    }

    /// Flushes every file and directory one by one, where the file system as a whole cannot be.
    pub fn flush_each(&mut self) -> Result<(), FileError> {
        for entry in 0..self.listing.len() {
            let name = match self.listing.kind(entry) {
                Kind::Directory if entry == 0 => b".".to_vec(),
                Kind::Symlink(_) | Kind::HardLink(_) => continue,
                _ => self.listing.name(entry).to_vec(),
            };
            let parent = if entry == 0 { self.dirs.root().clone() } else { self.parent_of(entry)? };
            let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let file = sys::open_at(parent.as_fd(), &name, flags, 0);
            let file = file.on("open", &self.path_of(entry))?;
            File::from(file).sync_all().on("flush", &self.path_of(entry))?;
        }
        Ok(())
    }
}

/// Whether what lies between files is known to be what the source sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    /// It was proved, so anything but zeros is the source's fault.
    Proved,
    /// It is a claim of an earlier run.
    Claimed,
}
