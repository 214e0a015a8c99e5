//! Users and groups of the host, as its name service knows them.
#![allow(unsafe_code)] // getpwnam_r and getgrouplist have no safe form in std.

use std::ffi::{CStr, CString};
use std::io;

/// Groups of one user that are honoured; Linux allows 65,536.
const GROUPS_MAX: usize = 65_536;
/// Largest entry of the user database that is read.
const ENTRY_BYTES_MAX: usize = 1024 * 1024;

/// A user whom scripts can run as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Our effective user id.
pub fn effective_uid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The user called `name`.
pub fn by_name(name: &str) -> io::Result<Option<User>> {
    let name = CString::new(name)?;
    lookup(|entry, buffer, length, found| {
        // SAFETY: all pointers live through the call; `length` is the buffer's.
        unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer, length, found) }
    })
}

/// The user with the number `uid`.
pub fn by_uid(uid: u32) -> io::Result<Option<User>> {
    lookup(|entry, buffer, length, found| {
        // SAFETY: all pointers live through the call; `length` is the buffer's.
        unsafe { libc::getpwuid_r(uid, entry, buffer, length, found) }
    })
}

fn lookup(
    ask: impl Fn(*mut libc::passwd, *mut libc::c_char, usize, *mut *mut libc::passwd) -> libc::c_int,
) -> io::Result<Option<User>> {
    let mut buffer = vec![0; 1024];
    loop {
        let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        match ask(entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) {
            libc::ERANGE if buffer.len() < ENTRY_BYTES_MAX => buffer.resize(buffer.len() * 4, 0),
            libc::EINTR => {}
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: the call filled `entry`, whose strings point into `buffer`.
                let entry = unsafe { entry.assume_init() };
                // SAFETY: as above; a null string (musl) counts as empty.
                let text = |text: *const libc::c_char| unsafe {
                    if text.is_null() {
                        String::new()
                    } else {
                        CStr::from_ptr(text).to_string_lossy().into_owned()
                    }
                };
                return Ok(Some(User {
                    name: text(entry.pw_name),
                    uid: entry.pw_uid,
                    gid: entry.pw_gid,
                    home: text(entry.pw_dir),
                    shell: text(entry.pw_shell),
                }));
            }
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// All groups of a user, the primary one included.
pub fn groups_of(user: &User) -> io::Result<Vec<u32>> {
    let name = CString::new(user.name.as_str())?;
    let mut groups = vec![0; 64];
    loop {
        let mut count = groups.len() as libc::c_int;
        // SAFETY: `groups` has room for `count` entries.
        let result =
            unsafe { libc::getgrouplist(name.as_ptr(), user.gid, groups.as_mut_ptr(), &mut count) };
        if result >= 0 {
            groups.truncate(count.max(0) as usize);
            return Ok(groups);
        }
        if groups.len() >= GROUPS_MAX {
            return Err(io::Error::other(format!("{} is in too many groups", user.name)));
        }
        groups.resize((count.max(0) as usize).clamp(groups.len() * 2, GROUPS_MAX), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nobody_invented() {
        let root = by_name("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(by_uid(0).unwrap().unwrap(), root);
        assert_eq!(by_name("no-such-user-here").unwrap(), None);
        assert!(groups_of(&root).unwrap().contains(&0));
    }
}
