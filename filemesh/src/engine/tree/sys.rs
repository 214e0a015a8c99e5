//! System calls that only trees need, each as a safe function.
#![allow(unsafe_code)] // The standard library has no symlinkat, linkat, renameat2, SEEK_DATA or syncfs.

use crate::engine::sys::{c_string, check, open_at, retry, signed};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Opens directory `name` under `dir` to look up names in, never through a link.
pub fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    open_at(dir, name, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)
}

/// Opens directory `name` under `dir` to read or change it, never through a link.
pub fn open_dir_to_read(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    open_at(dir, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)
}

/// A path that leads to what `fd` is open on, whatever it is called now.
pub fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Makes a symbolic link `name` under `dir` that says `target`.
pub fn symlink_at(dir: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> io::Result<()> {
    let (name, target) = (c_string(name)?, c_string(target)?);
    // SAFETY: both are NUL-terminated strings that outlive the call.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Makes `to` under `to_dir` another name of file `from` under `from_dir`.
pub fn link_at(
    from_dir: BorrowedFd<'_>,
    from: &[u8],
    to_dir: BorrowedFd<'_>,
    to: &[u8],
) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let (from_dir, to_dir) = (from_dir.as_raw_fd(), to_dir.as_raw_fd());
    // SAFETY: both names are NUL-terminated strings that outlive the call.
    check(unsafe { libc::linkat(from_dir, from.as_ptr(), to_dir, to.as_ptr(), 0) }).map(drop)
}

/// Renames `from` under `from_dir` to `to` under `to_dir`, replacing a file that is there.
pub fn rename_at(
    from_dir: BorrowedFd<'_>,
    from: &[u8],
    to_dir: BorrowedFd<'_>,
    to: &[u8],
) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let (from_dir, to_dir) = (from_dir.as_raw_fd(), to_dir.as_raw_fd());
    // SAFETY: both names are NUL-terminated strings that outlive the call.
    check(unsafe { libc::renameat(from_dir, from.as_ptr(), to_dir, to.as_ptr()) }).map(drop)
}

/// As [`rename_at`], but an error if `to` exists. Old kernels and some file systems cannot do this:
/// there it is looked for first, and only an empty directory can slip in between.
pub fn rename_new_at(
    from_dir: BorrowedFd<'_>,
    from: &[u8],
    to_dir: BorrowedFd<'_>,
    to: &[u8],
) -> io::Result<()> {
    let (c_from, c_to) = (c_string(from)?, c_string(to)?);
    // SAFETY: both names are NUL-terminated strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            from_dir.as_raw_fd(),
            c_from.as_ptr(),
            to_dir.as_raw_fd(),
            c_to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    match check(result as libc::c_int) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
            if crate::engine::sys::stat_at(to_dir, to)?.is_some() {
                return Err(io::Error::from_raw_os_error(libc::EEXIST));
            }
            rename_at(from_dir, from, to_dir, to)
        }
        result => result.map(drop),
    }
}

/// Removes the empty directory `name` under `dir`.
pub fn rmdir_at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

fn times(mtime_ns: i64) -> [libc::timespec; 2] {
    let tv_nsec = mtime_ns.rem_euclid(1_000_000_000);
    let mtime = libc::timespec { tv_sec: mtime_ns.div_euclid(1_000_000_000), tv_nsec };
    [libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT }, mtime]
}

/// Sets the modification time of `fd`, nanoseconds since 1970.
pub fn set_mtime(fd: BorrowedFd<'_>, mtime_ns: i64) -> io::Result<()> {
    // SAFETY: the array holds the two values that futimens reads.
    check(unsafe { libc::futimens(fd.as_raw_fd(), times(mtime_ns).as_ptr()) }).map(drop)
}

/// Sets the modification time of `name` under `dir`, a link itself if it is one.
pub fn set_link_mtime(dir: BorrowedFd<'_>, name: &[u8], mtime_ns: i64) -> io::Result<()> {
    let (name, times) = (c_string(name)?, times(mtime_ns));
    let (dir, flags) = (dir.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: `name` is NUL-terminated and `times` holds the two values that are read.
    check(unsafe { libc::utimensat(dir, name.as_ptr(), times.as_ptr(), flags) }).map(drop)
}

/// Gives `name` under `dir`, a link itself if it is one, to an owner; `None` leaves either.
pub fn change_link_owner(
    dir: BorrowedFd<'_>,
    name: &[u8],
    uid: Option<u32>,
    gid: Option<u32>,
) -> io::Result<()> {
    let name = c_string(name)?;
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    let (dir, flags) = (dir.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    check(unsafe { libc::fchownat(dir, name.as_ptr(), uid, gid, flags) }).map(drop)
}

/// Sets the permissions of `fd`.
pub fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }).map(drop)
}

/// The first byte of data of `file` at or behind `offset`; `None`: only a hole follows.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_DATA)
}

/// The first byte of a hole of `file` at or behind `offset`; the end counts as one. `None` behind
/// the end.
pub fn next_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_HOLE)
}

fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let offset = signed(offset)?;
    // SAFETY: the call takes no pointers.
    match u64::try_from(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) }) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Writes everything of the file system of `fd` to the disk.
pub fn sync_file_system(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    retry(|| unsafe { libc::syncfs(fd.as_raw_fd()) }).map(drop)
}
