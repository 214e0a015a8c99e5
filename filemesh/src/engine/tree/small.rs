//! A file that is made, written and given its attributes in one go: what nearly all of a tree's
//! files are.
//!
//! A new file has its mode from the start, and what it has already is not set again: each change
//! of an attribute is a transaction of the file system and costs as much as writing 4 KiB.

use super::sys as tree_sys;
use crate::engine::error::FileError;
use crate::engine::{Owner, sys};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a file or directory gets when it is complete.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settled {
    pub owner: Owner,
    /// Permissions and set-id bits.
    pub mode: u32,
    /// Nanoseconds since 1970; `None`: that of the arrival stays.
    pub mtime_ns: Option<i64>,
}

/// A file whose bytes are all there.
#[derive(Debug)]
pub(super) struct SmallFile {
    /// Its number in the listing.
    pub entry: u32,
    pub dir: Arc<OwnedFd>,
    pub name: Vec<u8>,
    pub settled: Settled,
}

impl SmallFile {
    /// Makes the file with `data` in it, or makes one that is there already so.
    pub fn write(&self, data: &[u8]) -> Result<(), Failed> {
        let mode = self.settled.mode & 0o777;
        let (file, is_new) = open_staged(self.dir.as_fd(), &self.name, mode)?;
        file.write_all_at(data, 0).map_err(Failed::on("write"))?;
        if !is_new {
            file.set_len(data.len() as u64).map_err(Failed::on("set the size of"))?;
        }
        self.settled.give(file.as_fd())
    }
}

impl Settled {
    /// Gives a file or directory what it does not have yet. The owner first: changing it clears
    /// bits of a mode.
    pub fn give(&self, fd: BorrowedFd<'_>) -> Result<(), Failed> {
        let stat = sys::stat(fd).map_err(Failed::on("look at"))?;
        let Owner { uid, gid } = self.owner;
        let is_owned =
            uid.is_none_or(|uid| uid == stat.st_uid) && gid.is_none_or(|gid| gid == stat.st_gid);
        if !is_owned {
            let changed = sys::change_owner(fd, uid, gid);
            changed.map_err(Failed::on("change the owner of"))?;
        }
        if !is_owned || stat.st_mode & 0o7777 != self.mode {
            tree_sys::set_mode(fd, self.mode).map_err(Failed::on("change the mode of"))?;
        }
        match self.mtime_ns {
            Some(mtime_ns) => {
                tree_sys::set_mtime(fd, mtime_ns).map_err(Failed::on("change the time of"))
            }
            None => Ok(()),
        }
    }
}

/// What went wrong with a staged file, before anybody spelled its path out.
#[derive(Debug)]
pub(super) enum Failed {
    /// A system call failed.
    Io(&'static str, io::Error),
    /// It is not ours.
    Foreign(&'static str),
}

impl Failed {
    pub fn on(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io(action, error)
    }

    /// The same of the file at `path`.
    pub fn at(self, path: PathBuf) -> FileError {
        match self {
            Self::Io(action, source) => FileError::Io { action, path, source },
            Self::Foreign(why) => FileError::Foreign { path, why },
        }
    }
}

/// Opens file `name` in `dir`, or makes it with `mode`; true if it was made.
pub(super) fn open_staged(
    dir: BorrowedFd<'_>,
    name: &[u8],
    mode: u32,
) -> Result<(File, bool), Failed> {
    let flags = libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let create = flags | libc::O_CREAT | libc::O_EXCL;
    match sys::open_at(dir, name, create, mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return Ok((File::from(made.map_err(Failed::on("make"))?), true)),
    }
    let file = match sys::open_at(dir, name, flags, 0) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            unlock(dir, name).and_then(|()| sys::open_at(dir, name, flags, 0))
        }
        result => result,
    };
    let file = file.map_err(Failed::on("open"))?;
    let stat = sys::stat(file.as_fd()).map_err(Failed::on("look at"))?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_nlink != 1 {
        return Err(Failed::Foreign("it is no regular file, or has a second name"));
    }
    Ok((File::from(file), false))
}

/// Lets this user open `name` under `dir`, a file of its own whose mode says otherwise.
pub(super) fn unlock(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let file = sys::open_at(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    // What a descriptor is open on, which chmod by name would follow if it were a link.
    let stat = sys::stat(file.as_fd())?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(Path::new(&tree_sys::path_of(file.as_fd())), mode)
}
