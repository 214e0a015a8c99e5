//! What the demo moves: a large file and real log lines, both found on this machine.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::CliError;
use crate::quantity;

/// The file must be this large to show anything.
const FILE_BYTES_MIN: u64 = 100_000_000;
/// Larger ones only take longer.
const FILE_BYTES_MAX: u64 = 600_000_000;
/// Folders below the roots that are searched, at most this many.
const FOLDERS_MAX: usize = 20_000;
/// Text taken from one log.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// Longest line that is used.
const LINE_BYTES_MAX: usize = 4096;

/// The file that is pushed.
pub fn large_file(chosen: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(path) = chosen {
        return path.canonicalize().map_err(CliError::io(format!("cannot use {}", path.display())));
    }
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().ok();
    let sysroot = sysroot.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    let roots = sysroot
        .filter(|root| !root.is_empty())
        .map(|root| PathBuf::from(root).join("lib"))
        .into_iter()
        .chain(["/usr/lib", "/usr/local", "/opt", "/usr/bin"].map(PathBuf::from));
    for root in roots {
        if let Some((path, size)) = largest_below(&root) {
            eprintln!("pushing {} ({})", path.display(), quantity::bytes(size));
            return Ok(path);
        }
    }
    Err(CliError::Local(
        "no file of 100 to 600 MB was found on this machine; name one by --file".to_owned(),
    ))
}

fn largest_below(root: &Path) -> Option<(PathBuf, u64)> {
    let mut best: Option<(PathBuf, u64)> = None;
    visit(root, &mut |path, size| {
        let better = best.as_ref().is_none_or(|(_, known)| size > *known);
        if (FILE_BYTES_MIN..=FILE_BYTES_MAX).contains(&size) && better && File::open(path).is_ok() {
            best = Some((path.to_owned(), size));
        }
    });
    best
}

/// Real log lines of this machine: its logs first, then the changelogs and texts of its packages,
/// repeated with a number in front where there are too few.
pub fn log_lines(count: usize) -> Result<Vec<String>, CliError> {
    let mut lines = Vec::new();
    let mut sources = Vec::new();
    for root in ["/var/log", "/usr/share/doc", "/usr/share/common-licenses", "/usr/share/perl"] {
        visit(Path::new(root), &mut |path, size| {
            if lines.len() < count && size > 0 && take_lines(path, count, &mut lines) {
                sources.push(path.to_owned());
            }
        });
    }
    let Some(first) = sources.first() else {
        return Err(CliError::Local("no text was found in /var/log or /usr/share".to_owned()));
    };
    let found = lines.len();
    eprintln!(
        "tailing {} real lines of {} files, {} first",
        quantity::count(found.min(count) as u64),
        sources.len(),
        first.display()
    );
    for number in found..count {
        lines.push(format!("{number} {}", lines[number % found]));
    }
    lines.truncate(count);
    Ok(lines)
}

/// Appends the lines of a text file; false when it is no text or has none.
fn take_lines(path: &Path, count: usize, lines: &mut Vec<String>) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let before = lines.len();
    for line in BufReader::new(file.take(LOG_BYTES_MAX)).split(b'\n') {
        let Ok(line) = line.map(String::from_utf8) else { break };
        let Ok(line) = line else { break };
        let line = line.trim_end_matches('\r');
        if line.chars().any(|c| c.is_control() && c != '\t') {
            break;
        }
        if !line.trim().is_empty() && line.len() <= LINE_BYTES_MAX {
            lines.push(line.to_owned());
        }
        if lines.len() >= count {
            break;
        }
    }
    lines.len() > before
}

/// Calls `each` with the regular files below `root`, without following links.
fn visit(root: &Path, each: &mut dyn FnMut(&Path, u64)) {
    let mut folders = vec![root.to_owned()];
    let mut visited = 0;
    while let Some(folder) = folders.pop() {
        visited += 1;
        if visited > FOLDERS_MAX {
            return;
        }
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && let Ok(metadata) = entry.metadata()
            {
                each(&entry.path(), metadata.len());
            }
        }
    }
}
