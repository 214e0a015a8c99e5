//! The system calls that the standard library does not offer, each as a safe function.
//!
//! All take open descriptors and plain values, so that the only obligations are valid pointers for
//! the time of the call. Nothing newer than Linux 3.10 and glibc 2.17 is used.
#![allow(unsafe_code)] // The standard library has no openat, fallocate, futimens or getpwnam.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;

pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn retry(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

pub(super) fn c_string(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Opens `name` under `dir`, close-on-exec.
pub fn open_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    flags: libc::c_int,
    mode: u32,
) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let fd = retry(|| unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, mode) })?;
    // SAFETY: openat returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes directory `name` under `dir`.
pub fn mkdir_at(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// Removes file `name` under `dir`.
pub fn unlink_at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Renames `from` to `to`, both under `dir`, replacing what is there.
pub fn rename_at(dir: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> io::Result<()> {
    let (from, to, dir) = (c_string(from)?, c_string(to)?, dir.as_raw_fd());
    // SAFETY: both names are NUL-terminated strings that outlive the call.
    check(unsafe { libc::renameat(dir, from.as_ptr(), dir, to.as_ptr()) }).map(drop)
}

/// Where the symbolic link that `link` was opened on (`O_PATH | O_NOFOLLOW`) points to.
pub fn read_link(link: BorrowedFd<'_>) -> io::Result<OsString> {
    let mut buf = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: `buf` is valid for writes of its length, and the empty path is NUL-terminated.
    let len = unsafe {
        libc::readlinkat(link.as_raw_fd(), c"".as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    };
    buf.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(OsString::from_vec(buf))
}

/// What `fstat` says of any descriptor, also of `O_PATH` ones.
pub fn stat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `stat` is valid for writes of its type.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: fstat filled it, and it was zeroed before.
    Ok(unsafe { stat.assume_init() })
}

/// What stands under `name` in `dir`, links not followed; `None` if nothing does.
pub fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<libc::stat>> {
    let name = c_string(name)?;
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    let (dir, flags) = (dir.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: `name` is NUL-terminated and `stat` valid for writes of its type during the call.
    match check(unsafe { libc::fstatat(dir, name.as_ptr(), stat.as_mut_ptr(), flags) }) {
        // SAFETY: fstatat filled it, and it was zeroed before.
        Ok(_) => Ok(Some(unsafe { stat.assume_init() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes that the caller's user may still allocate on the file system of `fd`.
pub fn free_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `stat` is valid for writes of its type.
    retry(|| unsafe { libc::fstatvfs(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: fstatvfs filled it, and it was zeroed before.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// `file` once more, for direct writes. An error if its file system has none.
pub fn open_direct(file: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Slices that one call takes; Linux has 1,024.
const SLICES_MAX: usize = 64;

/// Writes all of `parts`, one behind the other, from `offset` on.
pub fn write_all_at(file: &File, parts: &[&[u8]], offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let (mut rest, mut at) = (slices.as_mut_slice(), offset);
    IoSlice::advance_slices(&mut rest, 0); // passes empty ones by
    while !rest.is_empty() {
        let count = rest.len().min(SLICES_MAX) as libc::c_int;
        // SAFETY: an `IoSlice` is an `iovec`, and all of them are valid for reads of their lengths.
        let wrote =
            unsafe { libc::pwritev(file.as_raw_fd(), rest.as_ptr().cast(), count, signed(at)?) };
        match usize::try_from(wrote) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(wrote) => {
                IoSlice::advance_slices(&mut rest, wrote);
                at += wrote as u64;
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// A new eventfd that never blocks.
pub fn event() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: eventfd returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an eventfd readable. It fails only when it is readable already, to the brim.
pub fn ring_event(mut event: &File) {
    let _ = io::Write::write(&mut event, &1u64.to_ne_bytes());
}

/// Makes an eventfd unreadable.
pub fn clear_event(event: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // SAFETY: `count` is valid for writes of its length. An error is that it was not readable.
    unsafe { libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// Allocates the first `len` bytes of `file`; `len` must not be 0.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    let len = signed(len)?;
    // SAFETY: the call takes no pointers.
    retry(|| unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) }).map(drop)
}

/// Locks `file` for this open description; `WouldBlock` if another one holds the lock.
pub fn try_lock(file: &File) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    retry(|| unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Gives `file` to `uid` and `gid`; `None` leaves either as it is.
pub fn change_owner(file: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::fchown(file.as_fd().as_raw_fd(), uid, gid) }).map(drop)
}

/// Sets the modification time of `file`, milliseconds since 1970; the access time stays.
pub fn set_mtime(file: &File, mtime_ms: i64) -> io::Result<()> {
    let keep = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    let tv_nsec = mtime_ms.rem_euclid(1000) * 1_000_000;
    let mtime = libc::timespec { tv_sec: mtime_ms.div_euclid(1000), tv_nsec };
    // SAFETY: the array holds the two values that futimens reads.
    check(unsafe { libc::futimens(file.as_raw_fd(), [keep, mtime].as_ptr()) }).map(drop)
}

/// Appends exactly `len` bytes of `file` at `offset` to `out` without clearing the room first;
/// on failure `out` is as before.
pub fn append_at(file: &File, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
    out.reserve(len);
    let start = out.len();
    let room = &mut out.spare_capacity_mut()[..len];
    let mut done = 0;
    while done < len {
        let at = libc::off_t::try_from(offset + done as u64)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let rest = &mut room[done..];
        // SAFETY: `rest` is valid for writes of its length.
        let got =
            unsafe { libc::pread(file.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at) };
        match usize::try_from(got) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => done += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    // SAFETY: the `len` bytes behind `start` lie within the capacity and were all written above.
    unsafe { out.set_len(start + len) };
    Ok(())
}

/// Tells the kernel that `file` will be read from front to back.
pub fn will_read_forward(file: &File) {
    // SAFETY: the call takes no pointers. Its answer does not matter: it is advice.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_SEQUENTIAL) };
}

/// Starts writing the dirty pages of a range of `file` to the disk; does not wait for them.
pub fn start_flush(file: &File, offset: u64, len: u64) -> io::Result<()> {
    sync_range(file, offset, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes the dirty pages of a range of `file` to the disk and waits until they are there.
pub fn finish_flush(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, offset, len, wait | libc::SYNC_FILE_RANGE_WRITE)
}

fn sync_range(file: &File, offset: u64, len: u64, flags: libc::c_uint) -> io::Result<()> {
    let (offset, len) = (signed(offset)?, signed(len)?);
    // SAFETY: the call takes no pointers.
    retry(|| unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) }).map(drop)
}

/// Takes the clean pages of a range of `file` out of the page cache.
pub fn drop_cached(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (signed(offset), signed(len)) else { return };
    // SAFETY: the call takes no pointers. Its answer does not matter: it is advice.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) };
}

pub(super) fn signed(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// The user that this process acts as.
pub fn effective_uid() -> u32 {
    // SAFETY: the call takes no pointers and cannot fail.
    unsafe { libc::geteuid() }
}

/// Largest entry of the user or group database that is looked at: a group of some 10,000 members.
const NAME_ENTRY_BYTES_MAX: usize = 1 << 20;

/// (uid, primary gid) of user `name`; `None` if there is no such user.
pub fn user_by_name(name: &CStr) -> io::Result<Option<(u32, u32)>> {
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::zeroed();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, the buffer for writes of the length passed.
    let found = with_name_buffer(|buf| unsafe {
        let (at, len) = (buf.as_mut_ptr().cast(), buf.len());
        let code = libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), at, len, &raw mut found);
        (code, !found.is_null())
    })?;
    // SAFETY: when an entry was found, getpwnam_r filled `entry`; it was zeroed before.
    Ok(found.then(|| unsafe { entry.assume_init() }).map(|entry| (entry.pw_uid, entry.pw_gid)))
}

/// gid of group `name`; `None` if there is no such group.
pub fn group_by_name(name: &CStr) -> io::Result<Option<u32>> {
    let mut entry = std::mem::MaybeUninit::<libc::group>::zeroed();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, the buffer for writes of the length passed.
    let found = with_name_buffer(|buf| unsafe {
        let (at, len) = (buf.as_mut_ptr().cast(), buf.len());
        let code = libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), at, len, &raw mut found);
        (code, !found.is_null())
    })?;
    // SAFETY: when an entry was found, getgrnam_r filled `entry`; it was zeroed before.
    Ok(found.then(|| unsafe { entry.assume_init() }).map(|entry| entry.gr_gid))
}

/// Name of user `uid`; `None` if it has none.
pub fn user_name(uid: u32) -> io::Result<Option<Vec<u8>>> {
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::zeroed();
    let (mut found, mut name) = (std::ptr::null_mut(), vec![]);
    // SAFETY: all pointers are valid for the call, the buffer for writes of the length passed; when
    // an entry was found, its name is a NUL-terminated string in that buffer.
    let is_found = with_name_buffer(|buf| unsafe {
        let (at, len) = (buf.as_mut_ptr().cast(), buf.len());
        let code = libc::getpwuid_r(uid, entry.as_mut_ptr(), at, len, &raw mut found);
        if !found.is_null() {
            name = CStr::from_ptr((*found).pw_name).to_bytes().to_vec();
        }
        (code, !found.is_null())
    })?;
    Ok(is_found.then_some(name))
}

/// Name of group `gid`; `None` if it has none.
pub fn group_name(gid: u32) -> io::Result<Option<Vec<u8>>> {
    let mut entry = std::mem::MaybeUninit::<libc::group>::zeroed();
    let (mut found, mut name) = (std::ptr::null_mut(), vec![]);
    // SAFETY: as in `user_name`.
    let is_found = with_name_buffer(|buf| unsafe {
        let (at, len) = (buf.as_mut_ptr().cast(), buf.len());
        let code = libc::getgrgid_r(gid, entry.as_mut_ptr(), at, len, &raw mut found);
        if !found.is_null() {
            name = CStr::from_ptr((*found).gr_name).to_bytes().to_vec();
        }
        (code, !found.is_null())
    })?;
    Ok(is_found.then_some(name))
}

/// Calls `look_up` with growing buffers while it says that there is too little room.
fn with_name_buffer(mut look_up: impl FnMut(&mut [u8]) -> (libc::c_int, bool)) -> io::Result<bool> {
    let mut size = 4096;
    loop {
        match look_up(&mut vec![0; size]) {
            (0, found) => return Ok(found),
            (libc::EINTR, _) => {}
            (libc::ERANGE, _) if size < NAME_ENTRY_BYTES_MAX => size *= 4,
            // Some databases say "not found" this way instead of with 0.
            (libc::ENOENT | libc::ESRCH, _) => return Ok(false),
            (code, _) => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// Flushes the directory that `dir` is, which may be an `O_PATH` descriptor.
pub fn sync_dir(dir: impl AsFd) -> io::Result<()> {
    let open = open_at(dir.as_fd(), b".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    File::from(open).sync_all()
}
