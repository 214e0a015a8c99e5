//! A file that is being received: hidden beside its final place, then renamed into it.
//!
//! The temporary name is `.skein-<transfer id>.part` in the target directory, so that the rename
//! stays on one file system. It is opened relative to the directory's descriptor, never through a
//! link, and refused if it is not a plain file of this user. Space is allocated up front. Nobody
//! ever sees the final name with half a file: it appears by rename after everything was flushed.
//! What is claimed of an earlier run is in a state file ([`super::state_file`]).

use super::staged::StagedFile;
use super::state_file::{StateFile, StateOf};
use super::write_behind::KEPT_BYTES_MAX;
use crate::core::bitfield::Bitfield;
use crate::core::geometry::Geometry;
use crate::core::manifest::Manifest;
use crate::core::name::check_file_name;
use crate::engine::error::{Context, FileError};
use crate::engine::reserve::Room;
use crate::engine::{
    BlockMemory, FileStamp, Owner, RecentBlocks, TargetDir, View, WriteQueue, sys,
};
use skein_wire::ids::TransferId;
use std::fs::{self, File, Permissions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a file gets when it is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: Owner,
    /// Modification time, milliseconds since 1970; `None`: when it was written.
    pub mtime_ms: Option<i64>,
}

/// A file that is being received. Dropping it keeps it for a later run.
#[derive(Debug)]
pub struct PartialFile {
    dir: TargetDir,
    temporary: Vec<u8>,
    name: Vec<u8>,
    file: StagedFile,
    geometry: Geometry,
    state: StateFile,
    is_new: bool,
    /// Blocks written by this run, and those that an earlier one claims.
    written: Bitfield,
    recent: RecentBlocks,
}

impl PartialFile {
    /// Opens the partial file of `transfer` for `name` in `dir`, or makes it and allocates its
    /// space. Its state is kept in `state_dir`, which must exist.
    pub fn open(
        dir: TargetDir,
        name: &[u8],
        transfer: &TransferId,
        manifest: &Manifest,
        state_dir: &Path,
    ) -> Result<Self, FileError> {
        check_file_name(name)?;
        dir.check_replaceable(name)?;
        let temporary = temporary_name(transfer);
        let path = dir.entry(&temporary);
        let (file, is_new) = open_temporary(&dir, &temporary, &path)?;
        match prepare(&dir, &file, &path, transfer, manifest, state_dir) {
            Ok(state) => {
                let (name, geometry) = (name.to_vec(), manifest.geometry);
                let empty = Bitfield::new(geometry.block_count());
                let written = if is_new { empty } else { state.blocks().clone() };
                let mut file = StagedFile::new(file, path);
                if geometry.size_bytes() > KEPT_BYTES_MAX {
                    file.around_cache();
                }
                let recent = RecentBlocks::default();
                Ok(Self { dir, temporary, name, file, geometry, state, is_new, written, recent })
            }
            Err(error) => {
                if is_new {
                    let _ = sys::unlink_at(dir.as_fd(), &temporary); // the first error tells more
                }
                Err(error)
            }
        }
    }

    /// What [`PartialFile::open`] of `transfer`, or its writes where a file system cannot allocate,
    /// will still take of the file system of `dir`.
    pub fn room(
        dir: &TargetDir,
        transfer: &TransferId,
        size_bytes: u64,
    ) -> Result<Room, FileError> {
        dir.room_for(&temporary_name(transfer), size_bytes)
    }

    /// The same of a file that is open.
    pub fn room_left(&self) -> Result<Room, FileError> {
        self.dir.room_for(&self.temporary, self.geometry.size_bytes())
    }

    /// Lets a large file stay in the page cache, for a caller that reads it again at once. Others
    /// go around it ([`StagedFile::around_cache`]).
    pub fn keep_cached(&mut self) {
        self.file.write_back();
    }

    /// Sends a file around the page cache whatever its size.
    pub fn around_cache(&mut self) {
        self.file.around_cache();
    }

    /// Lets `queue` write what goes around the page cache. An error of a write then comes out of a
    /// later call.
    pub fn use_queue(&mut self, queue: WriteQueue) -> Result<(), FileError> {
        self.file.use_queue(queue)
    }

    /// Lets bytes be copied into slabs of `memory`, which files share, instead of a few of their
    /// own, and keeps the newest `recent_bytes` that are written for [`PartialFile::append_at`].
    pub fn use_memory(&mut self, memory: &BlockMemory, recent_bytes: usize) {
        self.file.use_memory(memory);
        self.recent = RecentBlocks::new(recent_bytes);
    }

    /// Blocks that an earlier run may have written; for
    /// [`Download::new`](crate::core::download::Download::new), which proves them first.
    pub fn claimed(&self) -> Option<Bitfield> {
        self.state.claimed(self.is_new)
    }

    /// Writes proved `data` at `offset`: whole blocks from a block border on. Small neighbouring
    /// writes leave together, so that an error may belong to an earlier one.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let blocks = self.claim(offset, data)?;
        self.file.write_at(offset, data)?;
        self.written.set_range(blocks);
        Ok(())
    }

    /// The same for bytes that lie in a slab: they are not copied, and served from there while they
    /// are among the newest.
    pub fn write_view(&mut self, offset: u64, view: View) -> Result<(), FileError> {
        let blocks = self.claim(offset, &view)?;
        self.recent.keep(offset, view.clone());
        self.file.write_view(offset, view)?;
        self.written.set_range(blocks);
        Ok(())
    }

    /// Hands to the kernel what waits in memory to leave as one write: kill -9 would take it.
    pub fn write_waiting(&mut self) -> Result<(), FileError> {
        self.file.flush()
    }

    fn claim(&mut self, offset: u64, data: &[u8]) -> Result<Range<u32>, FileError> {
        self.state.claim_bytes(&self.geometry, offset, data.len(), self.file.path())
    }

    /// Appends exactly `len` bytes at `offset` to `out`; on failure `out` is as before.
    pub fn append_at(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<(), FileError> {
        if self.recent.append_at(offset, len, out) {
            return Ok(());
        }
        self.file.append_at(offset, len, out)
    }

    /// What is kept of the newest blocks.
    pub fn recent(&self) -> &RecentBlocks {
        &self.recent
    }

    /// The file for reading what was written so far, also after it was finished.
    pub fn reader(&mut self) -> Result<File, FileError> {
        self.file.flush()?;
        self.file.file().try_clone().on("open once more", self.file.path())
    }

    /// Where the file will be.
    pub fn final_path(&self) -> PathBuf {
        self.dir.entry(&self.name)
    }

    /// Completes the file: attributes, flush, rename into place, flush of the directory. Call it
    /// when every block is proved and written. After an error nothing is left of it.
    pub fn finish(mut self, attributes: &Attributes) -> Result<FileStamp, FileError> {
        let result = self.complete(attributes);
        if result.is_err() {
            let _ = self.abandon(); // the first error tells more
        }
        result
    }

    fn complete(&mut self, attributes: &Attributes) -> Result<FileStamp, FileError> {
        if let Some(block) = self.written.next_zero(0) {
            return Err(FileError::Incomplete { path: self.file.path().to_path_buf(), block });
        }
        self.file.settle()?;
        let file = self.file.file();
        take_place(&self.dir, file, &self.temporary, &self.name, attributes)?;
        self.state.remove()?;
        Ok(FileStamp::of(&file.metadata().on("look at", self.file.path())?))
    }

    /// Removes what an earlier run left of `transfer` in `dir` and `state_dir`, if anything. A file
    /// that somebody still writes is left alone.
    pub fn discard(
        dir: &TargetDir,
        transfer: &TransferId,
        state_dir: &Path,
    ) -> Result<(), FileError> {
        let temporary = temporary_name(transfer);
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let _lock = match sys::open_at(dir.as_fd(), &temporary, flags, 0) {
            Ok(fd) => Some(lock(File::from(fd), &dir.entry(&temporary))?),
            Err(_) => None, // nothing, or nothing that a writer of ours has open
        };
        remove_temporary(dir, &temporary)?;
        let path = StateFile::path_in(state_dir, transfer);
        absent(fs::remove_file(&path)).on("remove", &path)
    }

    /// Removes the partial file and its state.
    pub fn abandon(self) -> Result<(), FileError> {
        remove_temporary(&self.dir, &self.temporary)?;
        self.state.remove()
    }
}

/// Gives a complete temporary file its attributes, makes it durable and renames it to `name`.
pub(super) fn take_place(
    dir: &TargetDir,
    file: &File,
    temporary: &[u8],
    name: &[u8],
    attributes: &Attributes,
) -> Result<(), FileError> {
    let path = dir.entry(temporary);
    let Owner { uid, gid } = attributes.owner;
    // The owner first: changing it clears the set-id bits of a mode.
    if uid.is_some() || gid.is_some() {
        sys::change_owner(file, uid, gid).on("change the owner of", &path)?;
    }
    let mode = Permissions::from_mode(attributes.mode);
    file.set_permissions(mode).on("change the mode of", &path)?;
    if let Some(mtime_ms) = attributes.mtime_ms {
        sys::set_mtime(file, mtime_ms).on("change the time of", &path)?;
    }
    file.sync_all().on("flush", &path)?;
    // Again, for the time that it took: a rename would replace a pipe or a device.
    dir.check_replaceable(name)?;
    sys::rename_at(dir.as_fd(), temporary, name).on("rename into place", &path)?;
    dir.sync()
}

pub(super) fn remove_temporary(dir: &TargetDir, temporary: &[u8]) -> Result<(), FileError> {
    absent(sys::unlink_at(dir.as_fd(), temporary)).on("remove", &dir.entry(temporary))
}

/// What is gone already need not be removed.
pub(in crate::engine) fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Gives a temporary file its space and opens its state.
fn prepare(
    dir: &TargetDir,
    file: &File,
    path: &Path,
    transfer: &TransferId,
    manifest: &Manifest,
    state_dir: &Path,
) -> Result<StateFile, FileError> {
    let (geometry, root) = (&manifest.geometry, &manifest.root);
    allocate(dir, file, path, geometry.size_bytes())?;
    let stamp = FileStamp::of(&file.metadata().on("look at", path)?);
    StateFile::open(state_dir, &StateOf { transfer, geometry, root, stamp: &stamp })
}

pub(super) fn temporary_name(transfer: &TransferId) -> Vec<u8> {
    format!(".skein-{transfer}.part").into_bytes()
}

/// Opens or makes the temporary file; true if it was made.
pub(super) fn open_temporary(
    dir: &TargetDir,
    name: &[u8],
    path: &Path,
) -> Result<(File, bool), FileError> {
    let foreign = |why| FileError::Foreign { path: path.to_path_buf(), why };
    // Not blocking, should somebody have put a FIFO there.
    let flags = libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let create = flags | libc::O_CREAT | libc::O_EXCL;
    let (opened, is_new) = match sys::open_at(dir.as_fd(), name, create, 0o600) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            (sys::open_at(dir.as_fd(), name, flags, 0), false)
        }
        result => (result, true),
    };
    let fd = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(foreign("it is a symbolic link"));
        }
        opened => opened.on("open", path)?,
    };
    let file = File::from(fd);
    let metadata = file.metadata().on("look at", path)?;
    if !metadata.is_file() {
        return Err(foreign("it is no regular file"));
    }
    if metadata.uid() != sys::effective_uid() || metadata.nlink() != 1 {
        return Err(foreign("it belongs to somebody else or has a second name"));
    }
    Ok((lock(file, path)?, is_new))
}

/// Makes this the only writer of `file`.
pub(in crate::engine) fn lock(file: File, path: &Path) -> Result<File, FileError> {
    match sys::try_lock(&file) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(FileError::Busy { path: path.to_path_buf() })
        }
        // File systems without locks are no reason to fail.
        _ => Ok(file),
    }
}

/// Gives `file` its size, with all its space if the file system can do that.
fn allocate(dir: &TargetDir, file: &File, path: &Path, size: u64) -> Result<(), FileError> {
    let metadata = file.metadata().on("look at", path)?;
    if metadata.len() > size {
        file.set_len(0).on("truncate", path)?;
    }
    let metadata = file.metadata().on("look at", path)?;
    dir.check_room(size.saturating_sub(metadata.blocks() * 512))?;
    if size > 0 {
        match sys::allocate(file, size) {
            Err(error) if is_unsupported(&error) => {}
            result => result.on("allocate", path)?,
        }
    }
    file.set_len(size).on("set the size of", path)
}

pub(in crate::engine) fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL];
    error.raw_os_error().is_some_and(|errno| unsupported.contains(&errno))
}
