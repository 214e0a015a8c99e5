//! Sends a large file to the disk while it is written, and keeps it out of the page cache, where
//! the file system has no direct writes.
//!
//! A file of gigabytes that is only written would push the host's own pages out of the cache, pile
//! up dirty memory until everybody's writes are throttled, and end in one long flush. So its bytes
//! leave in windows: while one fills, the one before is on its way to the disk, and the one before
//! that is waited for and dropped. At most three windows are ever in memory.
//!
//! ```text
//!   ... dropped │ window 4: awaited, then dropped │ window 5: being flushed │ window 6: written ...
//! ```
//! Windows are places in the file, so writes that jump cost smaller flushes and nothing else.

use crate::engine::sys;
use std::fs::File;
use std::io;
use std::ops::Range;

/// Bytes of a window: a disk is busy with it for some 10 to 100 ms.
const WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// Smaller files stay in the cache: packages and configuration are read soon after they came.
pub(in crate::engine) const KEPT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Windows of one file.
#[derive(Debug, Default)]
pub(super) struct WriteBehind {
    /// What is being written.
    filling: Option<u64>,
    /// What was sent to the disk last.
    flushing: Option<u64>,
    /// The file system or the kernel does not do this.
    off: bool,
}

impl WriteBehind {
    /// Bytes were written to `range`. An error is that of an earlier write to the disk, which the
    /// kernel tells once: the file must be given up.
    pub fn wrote(&mut self, file: &File, range: Range<u64>) -> io::Result<()> {
        if self.off {
            return Ok(());
        }
        match self.step(file, range) {
            Err(error) if is_unsupported(&error) => {
                self.off = true;
                Ok(())
            }
            result => result,
        }
    }

    fn step(&mut self, file: &File, range: Range<u64>) -> io::Result<()> {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return Ok(());
        };
        let window = last / WINDOW_BYTES;
        let Some(full) = self.filling.replace(window).filter(|full| *full != window) else {
            return Ok(());
        };
        sys::start_flush(file, full * WINDOW_BYTES, WINDOW_BYTES)?;
        let Some(before) = self.flushing.replace(full).filter(|before| *before != full) else {
            return Ok(());
        };
        sys::finish_flush(file, before * WINDOW_BYTES, WINDOW_BYTES)?;
        sys::drop_cached(file, before * WINDOW_BYTES, WINDOW_BYTES);
        Ok(())
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [libc::ENOSYS, libc::EINVAL, libc::EOPNOTSUPP, libc::ESPIPE, libc::EPERM];
    error.raw_os_error().is_some_and(|errno| unsupported.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: u64 = WINDOW_BYTES;

    #[test]
    fn windows_leave_one_after_the_other() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * W).unwrap();
        let mut behind = WriteBehind::default();
        let mut states = vec![];
        for range in [0..1, 5..W, W - 1..W + 1, W..W, 2 * W..3 * W, 0..W, 0..5, 7 * W..8 * W] {
            behind.wrote(&file, range).unwrap();
            states.push((behind.filling, behind.flushing));
        }
        let of = |filling, flushing: Option<u64>| (Some(filling), flushing);
        assert_eq!(
            states,
            [
                of(0, None),
                of(0, None),
                of(1, Some(0)),
                of(1, Some(0)),
                of(2, Some(1)),
                of(0, Some(2)),
                of(0, Some(2)),
                of(7, Some(0)),
            ]
        );
        assert!(!behind.off);
    }

    #[test]
    fn what_cannot_be_flushed_early_is_written_all_the_same() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        let mut behind = WriteBehind::default();
        behind.wrote(&pipe, 0..1).unwrap();
        behind.wrote(&pipe, W..W + 1).unwrap();
        assert!(behind.off);
    }
}
