//! Memory that only the start of a process needed.
//!
//! Most resident memory of an idle agent is program code that ran once: argument parsing, relocation,
//! recovery, handshakes, and what lies near them, because the kernel maps 64 KiB around each page
//! that is touched. Nothing takes it back while the host has memory to spare.
#![allow(unsafe_code)] // madvise and malloc_trim have no safe form in std.

use std::fs;

/// Unmaps program code and gives free heap back. Code that runs again comes back page by page from
/// the page cache, which keeps it; what never does stays out.
pub fn forget_start() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, bytes) in maps.lines().filter_map(code) {
        // SAFETY: the range is a mapping of this process that is executable, private, backed by a
        // file and not writable, so its pages are the file's: those that are dropped are read
        // again when they are touched, with the same content. Libraries are never unloaded here.
        unsafe { libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_DONTNEED) };
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Start and length of a line of `maps` that is program code of a file.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights, inode) = (fields.next()?, fields.next()?, fields.nth(2)?);
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    (rights == "r-xp" && inode != "0").then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_meant() {
        let text = "564df204b000-564df2620000 r-xp 002ce000 fe:00 123  /usr/bin/skein-agent";
        assert_eq!(code(text), Some((0x564d_f204_b000, 0x5d_5000)));
        for other in [
            // Written by the loader before it was protected, data, the kernel's page, nothing.
            "564df2620000-564df2693000 r--p 005d5000 fe:00 123  /usr/bin/skein-agent",
            "564df2693000-564df2695000 rw-p 00648000 fe:00 123  /usr/bin/skein-agent",
            "7ffce67f1000-7ffce67f3000 r-xp 00000000 00:00 0    [vdso]",
            "",
        ] {
            assert_eq!(code(other), None);
        }
    }

    #[test]
    fn the_program_goes_on() {
        let before: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        forget_start();
        assert_eq!(before[99], "99");
    }
}
