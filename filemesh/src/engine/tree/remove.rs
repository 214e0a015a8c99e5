//! Removes a directory with everything in it, never through a link.

use super::sys as tree_sys;
use crate::core::tree::listing::DEPTH_MAX;
use crate::engine::portable::partial::absent;
use crate::engine::sys;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// Removes directory `name` under `dir`, if it is there. A link of that name is removed itself.
pub(super) fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    // The staged directory and its root stand above the tree's own levels.
    remove(dir, name, u32::from(DEPTH_MAX) + 2)
}

fn remove(dir: BorrowedFd<'_>, name: &[u8], levels: u32) -> io::Result<()> {
    match sys::unlink_at(dir, name) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EISDIR | libc::EPERM)) => {}
        result => return absent(result),
    }
    let levels = levels.checked_sub(1).ok_or(io::Error::from_raw_os_error(libc::ELOOP))?;
    let open = match tree_sys::open_dir_to_read(dir, name) {
        // A mode that was given to it already; this user may still change that.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let found = tree_sys::open_dir(dir, name)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(tree_sys::path_of(found.as_fd()), mode)?;
            tree_sys::open_dir_to_read(dir, name)?
        }
        result => result?,
    };
    tree_sys::set_mode(open.as_fd(), 0o700)?;
    for entry in std::fs::read_dir(tree_sys::path_of(open.as_fd()))? {
        remove(open.as_fd(), entry?.file_name().as_bytes(), levels)?;
    }
    absent(tree_sys::rmdir_at(dir, name))
}
