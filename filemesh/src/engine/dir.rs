//! The directory that a file is delivered into, opened once and never named again.
//!
//! The path is walked one component at a time from the root without letting the kernel follow
//! links, so that nothing can be exchanged between a check and its use. A symbolic link on the way
//! is followed only if root or this process's user owns it: operators link `/data` to a disk, other
//! users do not redirect a push. `..` is legal inside such a link and nowhere else. Whoever has
//! rules about paths applies them to [`TargetDir::resolved`].

use super::error::{Context, FileError};
use super::reserve::Room;
use super::sys;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Links that are followed on one path, as the kernel's own bound.
const LINKS_MAX: u32 = 40;

/// Components of a path after links were followed.
const COMPONENTS_MAX: u32 = 512;

/// Mode of directories that are made on the way.
const MADE_MODE: u32 = 0o755;

/// An open directory.
#[derive(Debug)]
pub struct TargetDir {
    fd: OwnedFd,
    path: PathBuf,
    kept_bytes: u64,
}

impl TargetDir {
    /// Opens the directory at absolute `path`; with `create`, makes what is missing of it.
    pub fn open(path: &Path, create: bool) -> Result<Self, FileError> {
        let mut walk = Walk::new(path)?;
        while let Some(name) = walk.rest.pop_front() {
            walk.step(name, create)?;
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let fd = sys::open_at(walk.at.as_fd(), b".", flags, 0).on("open directory", path)?;
        Ok(Self { fd, path: path.to_path_buf(), kept_bytes: 0 })
    }

    /// The same directory for a caller that leaves `bytes` of its file system free.
    pub fn keep_free(self, bytes: u64) -> Self {
        Self { kept_bytes: bytes, ..self }
    }

    /// Refuses if `needed_bytes` more do not fit beside what must stay free.
    pub(super) fn check_room(&self, needed_bytes: u64) -> Result<(), FileError> {
        let (free_bytes, kept_bytes) = (self.free_bytes()?, self.kept_bytes);
        if needed_bytes == 0 || needed_bytes.saturating_add(kept_bytes) <= free_bytes {
            return Ok(());
        }
        let path = self.path.clone();
        Err(FileError::NoSpace { path, needed_bytes, free_bytes, kept_bytes })
    }

    /// Refuses if what is called `name` is anything that a new file must not take the place of. A
    /// link is replaced, not followed.
    pub(super) fn check_replaceable(&self, name: &[u8]) -> Result<(), FileError> {
        let path = self.entry(name);
        let Some(stat) = sys::stat_at(self.fd.as_fd(), name).on("look at", &path)? else {
            return Ok(());
        };
        let what = match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFLNK => return Ok(()),
            libc::S_IFDIR => "a directory",
            libc::S_IFIFO | libc::S_IFSOCK => "a pipe or socket",
            _ => "a device",
        };
        Err(FileError::Occupied { path, what })
    }

    /// The path as it was asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the directory really is, links resolved.
    pub fn resolved(&self) -> Result<PathBuf, FileError> {
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        std::fs::read_link(link).on("resolve", &self.path)
    }

    /// Bytes that may still be allocated here.
    pub fn free_bytes(&self) -> Result<u64, FileError> {
        sys::free_bytes(self.fd.as_fd()).on("ask for free space in", &self.path)
    }

    /// What an entry `name` that is to hold `size_bytes` will still take here.
    pub(super) fn room_for(&self, name: &[u8], size_bytes: u64) -> Result<Room, FileError> {
        let stat = |name| sys::stat_at(self.fd.as_fd(), name).on("look at", &self.path);
        let (here, entry) = (stat(b".")?, stat(name)?);
        let allocated = entry.map_or(0, |entry| u64::try_from(entry.st_blocks).unwrap_or(0) * 512);
        Ok(Room {
            device: here.map_or(0, |here| here.st_dev),
            needed_bytes: size_bytes.saturating_sub(allocated),
            free_bytes: self.free_bytes()?,
            kept_bytes: self.kept_bytes,
        })
    }

    /// Makes the entries of the directory durable.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        sys::sync_dir(&self.fd).on("flush directory", &self.path)
    }

    /// The path of entry `name`, for messages.
    pub(super) fn entry(&self, name: &[u8]) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(name))
    }
}

impl AsFd for TargetDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A path that is being walked.
struct Walk<'a> {
    path: &'a Path,
    at: OwnedFd,
    rest: VecDeque<OsString>,
    links: u32,
    components: u32,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path) -> Result<Self, FileError> {
        let refuse = |why| FileError::Directory { path: path.to_path_buf(), why };
        if !path.is_absolute() {
            return Err(refuse("it is not absolute"));
        }
        if path.components().any(|component| component == Component::ParentDir) {
            return Err(refuse("it contains '..'"));
        }
        let rest = names(path);
        Ok(Self { path, at: root(path)?, rest, links: 0, components: 0 })
    }

    fn step(&mut self, name: OsString, create: bool) -> Result<(), FileError> {
        let refuse = |why| FileError::Directory { path: self.path.to_path_buf(), why };
        self.components += 1;
        if self.components > COMPONENTS_MAX {
            return Err(refuse("it has too many components"));
        }
        let next = match self.open(&name) {
            Err(error) if create && error.kind() == io::ErrorKind::NotFound => self.make(&name),
            result => result,
        };
        let next = next.on("open directory", self.path)?;
        let stat = sys::stat(next.as_fd()).on("look at", self.path)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => self.at = next,
            libc::S_IFLNK => {
                self.links += 1;
                if self.links > LINKS_MAX {
                    return Err(refuse("it has too many symbolic links"));
                }
                if stat.st_uid != 0 && stat.st_uid != sys::effective_uid() {
                    return Err(refuse("a symbolic link on it belongs to another user"));
                }
                let target = PathBuf::from(sys::read_link(next.as_fd()).on("read", self.path)?);
                if target.is_absolute() {
                    self.at = root(self.path)?;
                }
                names(&target).into_iter().rev().for_each(|name| self.rest.push_front(name));
            }
            _ => return Err(refuse("a part of it is no directory")),
        }
        Ok(())
    }

    fn open(&self, name: &OsString) -> io::Result<OwnedFd> {
        sys::open_at(self.at.as_fd(), name.as_bytes(), libc::O_PATH | libc::O_NOFOLLOW, 0)
    }

    fn make(&self, name: &OsString) -> io::Result<OwnedFd> {
        match sys::mkdir_at(self.at.as_fd(), name.as_bytes(), MADE_MODE) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sys::sync_dir(&self.at)?,
        }
        self.open(name)
    }
}

fn root(path: &Path) -> Result<OwnedFd, FileError> {
    std::fs::File::open("/").map(OwnedFd::from).on("open / on the way to", path)
}

/// The components of `path` without its root and without `.`.
fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn missing_directories_are_made_on_request() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b/c");
        assert!(TargetDir::open(&path, false).is_err());
        let dir = TargetDir::open(&path, true).unwrap();
        assert_eq!(dir.resolved().unwrap(), fs::canonicalize(&path).unwrap());
        assert!(dir.free_bytes().unwrap() > 0);
    }

    #[test]
    fn own_links_are_followed_and_resolved() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("disk/data")).unwrap();
        fs::create_dir(base.path().join("links")).unwrap();
        symlink("../disk", base.path().join("links/relative")).unwrap();
        symlink(base.path().join("links/relative"), base.path().join("links/absolute")).unwrap();
        let dir = TargetDir::open(&base.path().join("links/absolute/data"), false).unwrap();
        let real = fs::canonicalize(base.path().join("disk/data")).unwrap();
        assert_eq!(dir.resolved().unwrap(), real);
    }

    #[test]
    fn hostile_paths_are_refused() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("file"), "x").unwrap();
        symlink("loop", base.path().join("loop")).unwrap();
        for path in [
            PathBuf::from("relative/dir"),
            base.path().join("a/../b"),
            base.path().join("file"),
            base.path().join("file/below"),
            base.path().join("loop"),
            PathBuf::from("/tmp/a\0b"),
        ] {
            assert!(TargetDir::open(&path, true).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn links_of_other_users_are_refused() {
        if sys::effective_uid() != 0 {
            return; // only root can make a link that belongs to somebody else
        }
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("real")).unwrap();
        let link = base.path().join("link");
        symlink("real", &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
        assert!(matches!(TargetDir::open(&link, false), Err(FileError::Directory { .. })));
    }
}
