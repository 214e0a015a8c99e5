//! Who a file shall belong to, as an operator writes it: `user`, `user:group`, `:group`, or numbers.

use super::error::{Context, FileError};
use super::sys;
use std::ffi::CString;
use std::path::Path;

/// Owner of a file; what is `None` stays as the file system made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

impl Owner {
    /// Looks up `text` on this host. `user` alone leaves the group as it is; `user:` takes the
    /// user's own, as chown(1) does. The empty text changes nothing.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let found = if user.is_empty() { None } else { Some(user_id(user)?) };
        let gid = match (group, found) {
            (Some(""), Some((_, primary))) => primary,
            (None | Some(""), _) => None,
            (Some(group), _) => Some(group_id(group)?),
        };
        Ok(Self { uid: found.map(|(uid, _)| uid), gid })
    }
}

fn missing(kind: &'static str, name: &str) -> FileError {
    FileError::NoSuchOwner { kind, name: name.to_owned() }
}

fn user_id(name: &str) -> Result<(u32, Option<u32>), FileError> {
    let c_name = CString::new(name).map_err(|_| missing("user", name))?;
    match sys::user_by_name(&c_name).on("look up user", Path::new(name))? {
        Some((uid, gid)) => Ok((uid, Some(gid))),
        None => name.parse().map(|uid| (uid, None)).map_err(|_| missing("user", name)),
    }
}

fn group_id(name: &str) -> Result<u32, FileError> {
    let c_name = CString::new(name).map_err(|_| missing("group", name))?;
    match sys::group_by_name(&c_name).on("look up group", Path::new(name))? {
        Some(gid) => Ok(gid),
        None => name.parse().map_err(|_| missing("group", name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_as_chown_reads_them() {
        let owner = |uid, gid| Owner { uid, gid };
        for (text, expected) in [
            ("", owner(None, None)),
            ("root", owner(Some(0), None)),
            ("root:", owner(Some(0), Some(0))),
            ("root:root", owner(Some(0), Some(0))),
            (":root", owner(None, Some(0))),
            ("4242:4343", owner(Some(4242), Some(4343))),
        ] {
            assert_eq!(Owner::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["no-such-user-here", "root:no-such-group-here", "a\0b", "-1"] {
            assert!(Owner::parse(text).is_err(), "{text}");
        }
    }
}
