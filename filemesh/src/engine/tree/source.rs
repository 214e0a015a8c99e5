//! A tree that is being sent, or that arrived and is sent on: its stream read at any offset,
//! straight from its files.

use super::dirs::{Dirs, walk};
use super::scan::Skipped;
use super::sys as tree_sys;
use crate::core::tree::layout::{Layout, Part};
use crate::core::tree::listing::{Kind, Listing};
use crate::engine::error::{Context, FileError};
use crate::engine::{FileStamp, sys};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory as it was when it was scanned.
#[derive(Debug)]
pub struct TreeSource {
    pub(super) root: Arc<OwnedFd>,
    pub(super) path: PathBuf,
    pub(super) listing: Listing,
    /// The listing's bytes.
    pub(super) encoded: Vec<u8>,
    pub(super) layout: Arc<Layout>,
    /// By entry; only those of files are looked at. Empty of a tree that arrived.
    pub(super) stamps: Vec<FileStamp>,
    /// Entries that stand for what a link leads to: where that is below the root.
    pub(super) elsewhere: Arc<HashMap<u32, Vec<u8>>>,
    pub(super) skipped: Skipped,
    pub(super) name: String,
}

impl TreeSource {
    /// What there is.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Where it is in the stream.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the rules left out, for the operator. Exclude lists are not counted.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where `entry` really is.
    pub fn path_of(&self, entry: u32) -> PathBuf {
        let (mut names, mut at) = (vec![], entry);
        let mut path = loop {
            if at == 0 {
                break self.path.clone();
            }
            if let Some(path) = self.elsewhere.get(&at) {
                break self.path.join(OsStr::from_bytes(path));
            }
            names.push(self.listing.name(at));
            at = self.listing.parent(at);
        };
        path.extend(names.into_iter().rev().map(OsStr::from_bytes));
        path
    }

    /// A name for the whole, legal as that of a file.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// How much a file may have changed since the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strictness {
    /// Nothing at all: its bytes are about to be vouched for.
    Hashing,
    /// Not in what it holds: peers refuse what is not true, the check only says why.
    Serving,
    /// It arrived with this size and, unless times are its own, with this time.
    Arrived { own_times: bool },
}

/// Reads the stream of a tree. Each reader keeps one file open; readers of one source are
/// independent.
#[derive(Debug)]
pub struct TreeReader {
    source: Arc<TreeSource>,
    dirs: Dirs,
    /// Where what is not there any more has moved to.
    moved: Option<Moved>,
    open: Option<(u32, File)>,
    strictness: Strictness,
}

/// The place of a tree that arrived.
#[derive(Debug)]
struct Moved {
    dir: Arc<OwnedFd>,
    /// Of the tree in `dir`; `None`: its entries are there.
    name: Option<Vec<u8>>,
    dirs: Option<Dirs>,
}

impl TreeReader {
    /// A reader that serves.
    pub fn new(source: Arc<TreeSource>) -> Self {
        Self::with(source, Strictness::Serving)
    }

    /// A reader that refuses a file at the least sign of a change.
    pub(super) fn to_hash(source: Arc<TreeSource>) -> Self {
        Self::with(source, Strictness::Hashing)
    }

    fn with(source: Arc<TreeSource>, strictness: Strictness) -> Self {
        let dirs = Dirs::with(source.root.clone(), source.elsewhere.clone());
        Self { source, dirs, moved: None, open: None, strictness }
    }

    /// A reader of a tree that arrived and moves from its staged root into `dir`, under `name` or,
    /// with none, entry by entry.
    pub(super) fn arrived(
        source: TreeSource,
        dir: Arc<OwnedFd>,
        name: Option<Vec<u8>>,
        own_times: bool,
    ) -> Self {
        let moved = Some(Moved { dir, name, dirs: None });
        Self { moved, ..Self::with(Arc::new(source), Strictness::Arrived { own_times }) }
    }

    /// What is read.
    pub fn source(&self) -> &Arc<TreeSource> {
        &self.source
    }

    /// Appends exactly `len` bytes at `offset` of the stream to `out`; on failure `out` is as
    /// before. A file that changed since the scan is an error that names it.
    pub fn append_at(
        &mut self,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        let source = self.source.clone();
        let range = offset..offset.saturating_add(len as u64);
        append_parts(&source.layout, range, &source.path, out, |part, out| match part {
            Part::Listing(range) => {
                out.extend_from_slice(&source.encoded[range.start as usize..range.end as usize]);
                Ok(())
            }
            Part::Padding(len) => zeros(len, out),
            Part::File { entry, offset, len } => self.read_file(entry, offset, len, out),
        })
    }

    fn read_file(
        &mut self,
        entry: u32,
        offset: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        let file = match self.open.take() {
            Some((open, file)) if open == entry => file,
            _ => self.open_file(entry)?,
        };
        match sys::append_at(&file, offset, len as usize, out) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.changed(entry));
            }
            // What is something else now than a file cannot be read either.
            Err(error) => {
                self.check(entry, &file)?;
                return Err(error).on("read", &self.source.path_of(entry));
            }
            // Not before it was read too: what counts is what it is when its bytes are here.
            Ok(()) => self.check(entry, &file)?,
        }
        let last = self.source.layout.spans_of(entry).last();
        if last.is_some_and(|last| offset + len < last.file_offset + last.len) {
            self.open = Some((entry, file));
        }
        Ok(())
    }

    fn open_file(&mut self, entry: u32) -> Result<File, FileError> {
        let source = self.source.clone();
        // What is not there any more, or is a link now, changed.
        self.open_found(&source, entry).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => self.changed(entry),
            _ => FileError::Io { action: "open", path: source.path_of(entry), source: error },
        })
    }

    fn open_found(&mut self, source: &TreeSource, entry: u32) -> io::Result<File> {
        let (dir, name) = match source.elsewhere.get(&entry) {
            Some(path) => {
                let (dir, name) = split(path);
                (walk(&source.root, dir)?, name)
            }
            None => match open_listed(&mut self.dirs, &source.listing, entry) {
                Err(error) => {
                    let moved = self.moved.as_mut().and_then(Moved::dirs).ok_or(error)?;
                    return open_listed(moved, &source.listing, entry);
                }
                found => return found,
            },
        };
        sys::open_at(dir.as_fd(), name, OPEN_FLAGS, 0).map(File::from)
    }

    fn check(&self, entry: u32, file: &File) -> Result<(), FileError> {
        let stat = sys::stat(file.as_fd()).on("look at", &self.source.path)?;
        let now = FileStamp::of_stat(&stat);
        let then = || self.source.stamps[entry as usize];
        let same = match self.strictness {
            Strictness::Hashing => now == then(),
            Strictness::Serving => now.same_content(&then()),
            Strictness::Arrived { own_times } => {
                let listing = &self.source.listing;
                let same_time = own_times || is_kept_as(now.mtime_ns, listing.meta(entry).mtime_ns);
                match listing.kind(entry) {
                    Kind::File { size_bytes } | Kind::Sparse { size_bytes, .. } => {
                        now.size_bytes == size_bytes && same_time
                    }
                    _ => false,
                }
            }
        };
        if same { Ok(()) } else { Err(self.changed(entry)) }
    }

    fn changed(&self, entry: u32) -> FileError {
        FileError::Changed { path: self.source.path_of(entry) }
    }
}

impl Moved {
    fn dirs(&mut self) -> Option<&mut Dirs> {
        if self.dirs.is_none() {
            let root = match &self.name {
                None => self.dir.clone(),
                Some(name) => Arc::new(tree_sys::open_dir(self.dir.as_fd(), name).ok()?),
            };
            self.dirs = Some(Dirs::new(root));
        }
        self.dirs.as_mut()
    }
}

/// Whether a file system keeps the time `set` as `found`: exactly, or in seconds or pairs of them.
fn is_kept_as(found: i64, set: i64) -> bool {
    const SECOND: i64 = 1_000_000_000;
    found == set || (found % SECOND == 0 && (0..2 * SECOND).contains(&set.saturating_sub(found)))
}

const OPEN_FLAGS: libc::c_int = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;

fn open_listed(dirs: &mut Dirs, listing: &Listing, entry: u32) -> io::Result<File> {
    let dir = dirs.get(listing, listing.parent(entry))?;
    sys::open_at(dir.as_fd(), listing.name(entry), OPEN_FLAGS, 0).map(File::from)
}

/// Appends what `read` makes of the parts of `range`, which must be within the stream; on failure
/// `out` is as before.
pub(super) fn append_parts(
    layout: &Layout,
    range: Range<u64>,
    path: &Path,
    out: &mut Vec<u8>,
    mut read: impl FnMut(Part, &mut Vec<u8>) -> Result<(), FileError>,
) -> Result<(), FileError> {
    if range.end > layout.stream_bytes() {
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(source).on("read past the end of", path);
    }
    let start = out.len();
    for part in layout.parts(range) {
        if let Err(error) = read(part, out) {
            out.truncate(start);
            return Err(error);
        }
    }
    Ok(())
}

/// What lies between files.
pub(super) fn zeros(len: u64, out: &mut Vec<u8>) -> Result<(), FileError> {
    out.resize(out.len() + len as usize, 0);
    Ok(())
}

/// Directory and name of a path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
