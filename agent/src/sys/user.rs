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

/// The number of the group called `name`.
pub fn group_by_name(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    let mut buffer = vec![0; 1024];
    loop {
        let mut entry = std::mem::MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers live through the call; the length is the buffer's.
        let result = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &mut found,
            )
        };
        match result {
            libc::ERANGE if buffer.len() < ENTRY_BYTES_MAX => buffer.resize(buffer.len() * 4, 0),
            libc::EINTR => {}
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            // SAFETY: the call filled `entry`.
            0 => return Ok(Some(unsafe { entry.assume_init() }.gr_gid)),
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

/// `user`, `user:group` or `:group`, names or numbers, as user and group id; what is not said is
/// none.
pub fn parse_owner(owner: &str) -> io::Result<(Option<u32>, Option<u32>)> {
    let (user, group) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (owner, None),
    };
    let unknown = |what: &str, name: &str| {
        io::Error::new(io::ErrorKind::NotFound, format!("no {what} {name:?} on this host"))
    };
    let mut uid = None;
    let mut gid = None;
    if let Ok(number) = user.parse() {
        uid = Some(number);
    } else if !user.is_empty() {
        let found = by_name(user)?.ok_or_else(|| unknown("user", user))?;
        uid = Some(found.uid);
        gid = Some(found.gid);
    }
    match group {
        None | Some("") => {}
        Some(group) => {
            gid = Some(match group.parse() {
                Ok(number) => number,
                Err(_) => group_by_name(group)?.ok_or_else(|| unknown("group", group))?,
            });
        }
    }
    Ok((uid, gid))
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
        assert_eq!(group_by_name("root").unwrap(), Some(0));
        assert!(groups_of(&root).unwrap().contains(&0));
    }

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(parse_owner("root").unwrap(), (Some(0), Some(0)));
        assert_eq!(parse_owner("12:34").unwrap(), (Some(12), Some(34)));
        assert_eq!(parse_owner(":root").unwrap(), (None, Some(0)));
        assert_eq!(parse_owner("12").unwrap(), (Some(12), None));
        assert!(parse_owner("no-such-user-here").is_err());
        assert!(parse_owner("root:no-such-group").is_err());
        assert!(parse_owner("ro\0ot").is_err());
    }
}
