//! Puts a complete staged tree in its place.
//!
//! A new tree is one rename. A merge is planned whole before its first rename: what is missing at
//! the target moves with everything below it, files replace files, and a directory, link or device
//! in the way of something else ends it before anything moved.

use super::dirs::Dirs;
use super::stage::{CONTENT, Existing, Flush, TreeStage};
use super::sys as tree_sys;
use super::writer::TreeWriter;
use crate::core::bitfield::Bitfield;
use crate::core::tree::listing::{Kind, Listing};
use crate::engine::error::{Context, FileError};
use crate::engine::{TargetDir, sys};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More directories than this are flushed by flushing their file system.
const FLUSHED_ONE_BY_ONE_MAX: usize = 64;

/// Refuses if what is called `name` in `dir` is in a new tree's way.
pub(super) fn check_free(
    dir: &TargetDir,
    name: &[u8],
    existing: Existing,
) -> Result<(), FileError> {
    let path = dir.entry(name);
    match look(dir.as_fd(), name, &path)? {
        None => Ok(()),
        Some(What::Directory) if existing == Existing::Merge => Ok(()),
        Some(what) => Err(what.occupied(path)),
    }
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Directory,
    File,
    Link,
    Other,
}

impl What {
    fn occupied(self, path: PathBuf) -> FileError {
        let what = match self {
            Self::Directory => "a directory",
            Self::File => "a file",
            Self::Link => "a symbolic link",
            Self::Other => "a pipe, socket or device",
        };
        FileError::Occupied { path, what }
    }
}

fn look(dir: BorrowedFd<'_>, name: &[u8], path: &Path) -> Result<Option<What>, FileError> {
    let stat = sys::stat_at(dir, name).on("look at", path)?;
    Ok(stat.map(|stat| match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => What::Directory,
        libc::S_IFREG => What::File,
        libc::S_IFLNK => What::Link,
        _ => What::Other,
    }))
}

/// What a merge will do.
struct Merge {
    /// The directories that are there already.
    target: Dirs,
    /// Which entries those are.
    merged: Bitfield,
    /// Entries that move, each with everything below it.
    moves: Vec<u32>,
    path: PathBuf,
    existing: Existing,
}

impl Merge {
    fn plan(
        listing: &Listing,
        root: OwnedFd,
        path: PathBuf,
        existing: Existing,
    ) -> Result<Self, FileError> {
        let mut merged = Bitfield::new(listing.len());
        merged.set(0);
        let target = Dirs::new(Arc::new(root));
        let mut merge = Self { target, merged, moves: vec![], path, existing };
        let mut entry = 1;
        while entry < listing.len() {
            entry = merge.plan_entry(listing, entry)?;
        }
        Ok(merge)
    }

    /// Plans `entry`; the answer is the next entry to plan.
    fn plan_entry(&mut self, listing: &Listing, entry: u32) -> Result<u32, FileError> {
        let is_directory = listing.kind(entry) == Kind::Directory;
        match (self.look(listing, entry)?, is_directory) {
            (Some(what), _) if self.existing == Existing::Refuse => {
                return Err(what.occupied(self.path_of(listing, entry)));
            }
            (None, true) => {
                self.moves.push(entry);
                return Ok(listing.subtree_end(entry));
            }
            (Some(What::Directory), true) => {
                self.merged.set(entry);
            }
            (None | Some(What::File | What::Link), false) => self.moves.push(entry),
            (Some(what), _) => return Err(what.occupied(self.path_of(listing, entry))),
        }
        Ok(entry + 1)
    }

    fn look(&mut self, listing: &Listing, entry: u32) -> Result<Option<What>, FileError> {
        let path = self.path_of(listing, entry);
        let dir = self.target.get(listing, listing.parent(entry)).on("open directory", &path)?;
        look(dir.as_fd(), listing.name(entry), &path)
    }

    fn path_of(&self, listing: &Listing, entry: u32) -> PathBuf {
        self.path.join(OsStr::from_bytes(&listing.path(entry)))
    }

    fn carry_out(&mut self, writer: &mut TreeWriter) -> Result<(), FileError> {
        for entry in std::mem::take(&mut self.moves) {
            let listing = &writer.listing;
            let (parent, name) = (listing.parent(entry), listing.name(entry));
            let path = self.path_of(listing, entry);
            let to = self.target.get(listing, parent).on("open directory", &path)?;
            let from = writer.dirs.get(listing, parent).on("open directory", &path)?;
            let is_directory = listing.kind(entry) == Kind::Directory;
            if is_directory || self.existing == Existing::Refuse {
                move_new(from.as_fd(), name, to.as_fd(), name, &path)?;
                continue;
            }
            // Again, for the time that it took: a rename would replace a pipe or a device.
            match look(to.as_fd(), name, &path)? {
                None | Some(What::File | What::Link) => {}
                Some(what) => return Err(what.occupied(path)),
            }
            let moved = tree_sys::rename_at(from.as_fd(), name, to.as_fd(), name);
            moved.on("rename into place", &path)?;
        }
        Ok(())
    }

    /// Makes the renames durable.
    fn flush(&mut self, listing: &Listing) -> Result<(), FileError> {
        let merged: Vec<u32> = self.merged.ranges().flatten().collect();
        if merged.len() > FLUSHED_ONE_BY_ONE_MAX {
            let flushed = tree_sys::sync_file_system(self.target.root().as_fd());
            return flushed.on("flush the file system of", &self.path);
        }
        for entry in merged {
            let path = self.path_of(listing, entry);
            let dir = self.target.get(listing, entry).on("open directory", &path)?;
            sys::sync_dir(&*dir).on("flush directory", &path)?;
        }
        Ok(())
    }
}

impl TreeStage {
    /// Gives everything its attributes, makes it durable and moves it to its final names.
    pub(super) fn place(&mut self) -> Result<(), FileError> {
        let path = self.final_path();
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.settle_files()?;
        if self.name != CONTENT {
            check_free(&self.dir, &self.name, self.options.existing)?;
        }
        let mut merge = match tree_sys::open_dir(self.dir.as_fd(), &self.name) {
            Ok(root) => {
                Some(Merge::plan(&writer.listing, root, path.clone(), self.options.existing)?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).on("open directory", &path),
        };
        // From the leaves up: a directory's time changes with what is in it.
        for entry in (0..writer.listing.len()).rev() {
            let stays = merge.as_ref().is_some_and(|merge| merge.merged.get(entry));
            if writer.listing.kind(entry) == Kind::Directory && !stays {
                writer.settle_directory(entry)?;
            }
        }
        if self.options.flush == Flush::First {
            match tree_sys::sync_file_system(self.staged.as_fd()) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => writer.flush_each()?,
                result => result.on("flush the file system of", &path)?,
            }
        }
        match &mut merge {
            Some(merge) => merge.carry_out(writer)?,
            None => {
                let (from, to) = (self.staged.as_fd(), self.dir.as_fd());
                move_new(from, Self::tree_name(), to, &self.name, &path)?;
            }
        }
        match (&mut merge, self.options.flush) {
            (_, Flush::Later) => Ok(()),
            (Some(merge), Flush::First) => merge.flush(&writer.listing),
            (None, Flush::First) => self.dir.sync(),
        }
    }
}

/// Renames something to a name that nothing has.
fn move_new(
    from_dir: BorrowedFd<'_>,
    from: &[u8],
    to_dir: BorrowedFd<'_>,
    to: &[u8],
    path: &Path,
) -> Result<(), FileError> {
    let moved = match tree_sys::rename_new_at(from_dir, from, to_dir, to) {
        // Moving a directory writes into it (its `..`), which its own mode may forbid.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            move_locked_directory(from_dir, from, to_dir, to)
        }
        result => result,
    };
    match moved {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            let what = look(to_dir, to, path)?.unwrap_or(What::Other);
            Err(what.occupied(path.to_path_buf()))
        }
        result => result.on("rename into place", path),
    }
}

fn move_locked_directory(
    from_dir: BorrowedFd<'_>,
    from: &[u8],
    to_dir: BorrowedFd<'_>,
    to: &[u8],
) -> io::Result<()> {
    let dir = tree_sys::open_dir(from_dir, from)?;
    let stat = sys::stat(dir.as_fd())?;
    let through = tree_sys::path_of(dir.as_fd());
    let set = |mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&through, mode)
    };
    set(stat.st_mode & 0o7777 | 0o700)?;
    let moved = tree_sys::rename_new_at(from_dir, from, to_dir, to);
    set(stat.st_mode & 0o7777)?;
    moved
}
