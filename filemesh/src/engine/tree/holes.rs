//! Which ranges of a file are data and which are holes.

use super::sys;
use std::fs::File;
use std::io;
use std::ops::Range;

/// Shorter holes travel as zeros: an extent costs 16 bytes in every listing and a write of its own
/// at every target.
pub(super) const HOLE_BYTES_MIN: u64 = 64 * 1024;

/// The ranges of the first `size_bytes` of `file` that hold data; `None` if nothing worth it is
/// left out, or the file system does not tell.
pub(super) fn extents(file: &File, size_bytes: u64) -> io::Result<Option<Vec<Range<u64>>>> {
    let mut extents: Vec<Range<u64>> = vec![];
    let mut at = 0;
    while at < size_bytes {
        let start = match sys::next_data(file, at) {
            Ok(Some(start)) => start,
            Ok(None) => break,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        let end = sys::next_hole(file, start)?.unwrap_or(size_bytes).min(size_bytes);
        // A file that shrinks meanwhile; its stamp tells.
        if start >= end {
            break;
        }
        match extents.last_mut() {
            Some(last) if start - last.end < HOLE_BYTES_MIN => last.end = end,
            None if start < HOLE_BYTES_MIN => extents.push(0..end),
            _ => extents.push(start..end),
        }
        at = end;
    }
    match extents.last_mut() {
        Some(last) if size_bytes - last.end < HOLE_BYTES_MIN => last.end = size_bytes,
        _ => {}
    }
    let is_whole = extents.first() == Some(&(0..size_bytes));
    let is_short = extents.is_empty() && size_bytes < HOLE_BYTES_MIN;
    Ok((!is_whole && !is_short).then_some(extents))
}
