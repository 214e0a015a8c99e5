//! An open directory, and what can be done to the names in it.
//!
//! Paths that come from outside are never joined to strings and opened again: they are walked
//! component by component from one open directory to the next, so that nobody can swap a component
//! for a symlink between check and use.
#![allow(unsafe_code)] // openat and its relatives have no safe form in std.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Longest target of a symlink that is followed.
const LINK_BYTES_MAX: usize = 4096;

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

/// What [`Dir::stat`] tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stat {
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
}

impl Stat {
    /// Whether it is a symbolic link.
    pub fn is_link(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFLNK
    }
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }
}

fn cstring(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Dir {
    /// The root directory.
    pub fn root() -> io::Result<Dir> {
        let flags = libc::O_DIRECTORY | libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: a constant NUL-terminated path; the descriptor is owned at once.
        unsafe {
            let fd = check(libc::open(c"/".as_ptr(), flags))?;
            Ok(Dir { fd: OwnedFd::from_raw_fd(fd) })
        }
    }

    /// The directory `name` in this one; a symlink of that name is an error (`ELOOP` or `ENOTDIR`).
    pub fn open_dir(&self, name: &OsStr) -> io::Result<Dir> {
        let flags = libc::O_DIRECTORY | libc::O_RDONLY | libc::O_NOFOLLOW;
        Ok(Dir { fd: self.open_raw(name, flags, 0)? })
    }

    /// A regular file for reading, not through a symlink, and without waiting should the name be a
    /// FIFO or a device: those are refused.
    pub fn open_file(&self, name: &OsStr) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::from(self.open_raw(name, flags, 0)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    fn open_raw(&self, name: &OsStr, flags: libc::c_int, mode: u32) -> io::Result<OwnedFd> {
        let name = cstring(name)?;
        loop {
            // SAFETY: `name` is NUL-terminated and lives through the call; the descriptor is ours.
            let fd = unsafe {
                libc::openat(self.fd.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, mode)
            };
            match check(fd) {
                // SAFETY: `fd` was just opened and nobody else has it.
                Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the directory `name`.
    pub fn make_dir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        let name = cstring(name)?;
        // SAFETY: `name` is NUL-terminated and lives through the call.
        check(unsafe { libc::mkdirat(self.fd.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
    }

    /// About `name` itself: a symlink is not followed.
    pub fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        let name = cstring(name)?;
        self.stat_raw(&name, libc::AT_SYMLINK_NOFOLLOW)
    }

    /// About this directory.
    pub fn stat_self(&self) -> io::Result<Stat> {
        self.stat_raw(c"", libc::AT_EMPTY_PATH)
    }

    fn stat_raw(&self, name: &CStr, flags: libc::c_int) -> io::Result<Stat> {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
        // SAFETY: `name` is NUL-terminated; the kernel fills `stat` when it answers 0.
        let stat = unsafe {
            check(libc::fstatat(self.fd.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), flags))?;
            stat.assume_init()
        };
        Ok(Stat {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
        })
    }

    /// Where the symlink `name` points.
    pub fn read_link(&self, name: &OsStr) -> io::Result<PathBuf> {
        let name = cstring(name)?;
        let mut target = vec![0u8; LINK_BYTES_MAX];
        // SAFETY: the buffer is as long as we say.
        let length = unsafe {
            libc::readlinkat(
                self.fd.as_raw_fd(),
                name.as_ptr(),
                target.as_mut_ptr().cast(),
                target.len(),
            )
        };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        target.truncate(length as usize);
        Ok(PathBuf::from(OsString::from_vec(target)))
    }
}

impl AsRawFd for Dir {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> Dir {
        path.components().fold(Dir::root().unwrap(), |dir, component| match component {
            std::path::Component::Normal(name) => dir.open_dir(name).unwrap(),
            _ => dir,
        })
    }

    #[test]
    fn symlinks_are_seen_and_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("file")).unwrap();
        let dir = open(&root);
        let link = OsStr::new("link");
        assert!(dir.open_dir(link).is_err());
        assert!(dir.open_file(OsStr::new("file")).is_err());
        assert!(dir.stat(link).unwrap().is_link());
        assert_eq!(dir.read_link(link).unwrap(), PathBuf::from("/etc"));
        dir.make_dir(OsStr::new("sub"), 0o755).unwrap();
        assert!(dir.stat(OsStr::new("sub")).unwrap().is_dir());
        assert!(dir.stat_self().unwrap().is_dir());
        assert!(dir.open_file(OsStr::new("sub")).is_err());
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let status = std::process::Command::new("mkfifo").arg(root.join("fifo")).status().unwrap();
        assert!(status.success());
        assert!(open(&root).open_file(OsStr::new("fifo")).is_err());
    }
}
