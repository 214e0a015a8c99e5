//! Creates and opens sink files, never outside their stream's directory.
//!
//! Each component below the directory is opened from its parent without following symbolic links,
//! so that nobody who can write there leads a stream elsewhere. A name that is taken is left alone
//! and the next rotation number is tried: a stream appends only to files that it made itself. A
//! path's newest file always has its highest number, also when older ones were taken away: whoever
//! collects files may take all but the highest.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::block::ALIGN;
use super::disk::{OpenFile, Opened, Resume};
use super::template::{number_of, numbered};

/// Rotation numbers tried for one path before it counts as full.
const NUMBERS_MAX: u32 = 100_000;

/// Rotations of one path.
const NUMBER_MAX: u32 = 1 << 30;

const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// Opens or creates what `open` names; with `durable` new names survive power loss.
pub fn open(open: &OpenFile, durable: bool) -> io::Result<(File, Opened)> {
    if let Some(resume) = &open.resume {
        match reopen(&open.root, resume) {
            Ok(opened) => return Ok(opened),
            Err(error) => tracing::warn!(
                root = %open.root.display(), path = resume.path, %error,
                "sink file changed while the server was away; its stream starts a new one"
            ),
        }
    }
    let folder = open.base.rfind('/').map_or("", |slash| &open.base[..slash]);
    let directory = make_directories(&open.root, folder, durable)?;
    // Who asks may not know the number of the file before: it may be on its way here, too.
    let first = next_number(&directory, &open.base)?.max(open.number);
    for number in first..first.saturating_add(NUMBERS_MAX) {
        let path = numbered(&open.base, number);
        let name = path.rfind('/').map_or(&path[..], |slash| &path[slash + 1..]);
        let Some(file) = create_new(&directory, name)? else { continue };
        if durable {
            rustix::fs::fsync(&directory)?;
        }
        let metadata = file.metadata()?;
        let (device, inode) = (metadata.dev(), metadata.ino());
        let opened = Opened { path, number, length: 0, device, inode };
        return Ok((file, opened));
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "every rotation number of the path is taken"))
}

/// The number after the highest that a path has in its directory.
fn next_number(directory: &OwnedFd, base: &str) -> io::Result<u32> {
    let base = base.rfind('/').map_or(base, |slash| &base[slash + 1..]);
    let mut next = 0;
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let number = entry.file_name().to_str().ok().and_then(|name| number_of(base, name));
        // A number that no stream reaches is a stranger's, and must not use up all others.
        if let Some(number) = number.filter(|number| *number < NUMBER_MAX) {
            next = next.max(number + 1);
        }
    }
    Ok(next)
}

/// The file that was left, if it is the same and has its length.
fn reopen(root: &Path, resume: &Resume) -> io::Result<(File, Opened)> {
    let file = open_left(root, &resume.path, resume.device, resume.inode)?;
    let length = file.metadata()?.len();
    if length != resume.length {
        return Err(io::Error::other(format!("has {length} bytes, not {}", resume.length)));
    }
    let opened = Opened {
        path: resume.path.clone(),
        number: resume.number,
        length,
        device: resume.device,
        inode: resume.inode,
    };
    Ok((file, opened))
}

/// Opens a file that a checkpoint knows and checks that it is that one.
pub fn open_left(root: &Path, path: &str, device: u64, inode: u64) -> io::Result<File> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut directory = open_root(root)?;
    for part in folder.split('/').filter(|part| !part.is_empty()) {
        directory = rustix::fs::openat(&directory, part, directory_flags(), Mode::empty())?;
    }
    let file = File::from(rustix::fs::openat(&directory, name, file_flags(), Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || (metadata.dev(), metadata.ino()) != (device, inode) {
        return Err(io::Error::other("is another file than the one that was written"));
    }
    Ok(file)
}

/// Content from the last page boundary before `length` on.
pub fn tail(file: &File, length: u64) -> io::Result<Vec<u8>> {
    let mut tail = vec![0; (length % ALIGN as u64) as usize];
    file.read_exact_at(&mut tail, length - length % ALIGN as u64)?;
    Ok(tail)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Non-blocking, so that a FIFO of that name cannot stall the worker.
fn file_flags() -> OFlags {
    OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK
}

/// The stream's directory itself may be a link: its owner is the operator.
fn open_root(root: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::empty())?)
}

fn make_directories(root: &Path, folder: &str, durable: bool) -> io::Result<OwnedFd> {
    let mut directory = match open_root(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(root)?;
            open_root(root)?
        }
        other => other?,
    };
    for part in folder.split('/').filter(|part| !part.is_empty()) {
        match rustix::fs::mkdirat(&directory, part, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) if durable => rustix::fs::fsync(&directory)?,
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        directory = rustix::fs::openat(&directory, part, directory_flags(), Mode::empty())?;
    }
    Ok(directory)
}

/// A new file, or `None` when the name is taken. An empty file counts, too: another stream may be
/// about to write to it.
fn create_new(directory: &OwnedFd, name: &str) -> io::Result<Option<File>> {
    let flags = file_flags() | OFlags::CREATE | OFlags::EXCL;
    match rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(FILE_MODE)) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(rustix::io::Errno::EXIST) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(root: &Path, base: &str) -> OpenFile {
        OpenFile { root: root.to_owned(), base: base.to_owned(), number: 0, resume: None }
    }

    #[test]
    fn files_are_made_in_their_folders_and_taken_names_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let open_one = || open(&want(root.path(), "d/e/x.log"), true).unwrap();
        let (file, opened) = open_one();
        assert_eq!((opened.path.as_str(), opened.length), ("d/e/x.log", 0));
        assert_eq!(open_one().1.path, "d/e/x.1.log", "even an empty file is taken");
        drop(file);
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("d/e/x.2.log")).unwrap();
        std::fs::create_dir(root.path().join("d/e/x.3.log")).unwrap();
        let (_, opened) = open_one();
        assert_eq!((opened.path.as_str(), opened.number), ("d/e/x.4.log", 4));
    }

    #[test]
    fn the_newest_file_has_the_highest_number_although_others_were_taken_away() {
        let root = tempfile::tempdir().unwrap();
        for name in ["x.7.log", "x.4294967295.log", "x.08.log", "y.9.log", "x.log.bak"] {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        assert_eq!(open(&want(root.path(), "x.log"), false).unwrap().1.path, "x.8.log");
        assert_eq!(open(&want(root.path(), "z.log"), false).unwrap().1.path, "z.log");
        let rotated = OpenFile { number: 1, ..want(root.path(), "x.log") };
        assert_eq!(open(&rotated, false).unwrap().1.path, "x.9.log");
    }

    #[test]
    fn links_do_not_lead_out_of_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("d")).unwrap();
        assert!(open(&want(root.path(), "d/x.log"), false).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_the_same_file_is_resumed() {
        let root = tempfile::tempdir().unwrap();
        let (file, opened) = open(&want(root.path(), "x.log"), false).unwrap();
        let content = [vec![b'a'; 4096], b"tail".to_vec()].concat();
        file.write_all_at(&content, 0).unwrap();
        let resume = Resume {
            path: opened.path,
            number: 0,
            length: 4100,
            device: opened.device,
            inode: opened.inode,
            tail: b"tail".to_vec(),
        };
        let again = OpenFile { resume: Some(resume.clone()), ..want(root.path(), "x.log") };
        let (_, opened) = open(&again, false).unwrap();
        assert_eq!((opened.path.as_str(), opened.length), ("x.log", 4100));

        std::fs::rename(root.path().join("x.log"), root.path().join("moved")).unwrap();
        std::fs::write(root.path().join("x.log"), &content).unwrap();
        let (_, opened) = open(&again, false).unwrap();
        assert_eq!((opened.path.as_str(), opened.length), ("x.1.log", 0));
    }
}
