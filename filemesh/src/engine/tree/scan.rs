//! Walks a source directory into a listing, by rules.
//!
//! Everything is looked at below one open directory, component by component without following
//! links. A link is followed only where the rules say so and only to what is in the tree, and then
//! by the path that it leads to, walked the same way.

use super::dirs::walk;
use super::filter::Filter;
use super::holes;
use super::owners::OwnerTable;
use super::pick::Picked;
use super::source::{TreeSource, split};
use super::sys as tree_sys;
use crate::core::manifest::MODE_TRAVELS;
use crate::core::name::check_file_name;
use crate::core::tree::codec::encode;
use crate::core::tree::layout::Layout;
use crate::core::tree::listing::{
    DEPTH_MAX, ENTRIES_MAX, Kind, ListingBuilder, ListingError, Meta, stays_within,
};
use crate::engine::error::{Context, FileError};
use crate::engine::{FileStamp, sys};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What becomes of a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Links {
    /// It travels as a link. One that leads out of the tree is refused ([`stays_within`]).
    #[default]
    Keep,
    /// What it leads to travels in its place. One that leads out of the tree, to nothing, or to a
    /// directory above itself is refused.
    Follow,
    /// It is left out, and counted.
    Skip,
    /// The scan ends with an error that names it.
    Refuse,
}

/// What becomes of pipes, sockets and devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Specials {
    /// They are left out, and counted.
    #[default]
    Skip,
    /// The scan ends with an error that names the first.
    Refuse,
}

/// What is taken of a directory, and how.
#[derive(Debug, Clone, Default)]
pub struct ScanRules {
    /// Paths.
    pub filter: Filter,
    /// Symbolic links.
    pub links: Links,
    /// Pipes, sockets and devices.
    pub specials: Specials,
    /// The names of owners travel.
    pub owner_names: bool,
    /// Names of one file arrive as names of one file, not as copies.
    pub hard_links: bool,
    /// Modes are 0644, or 0755 of directories and of what anybody may execute, instead of their own.
    pub plain_modes: bool,
}

/// Paths that [`Skipped`] names at most.
const SKIPPED_NAMED_MAX: usize = 100;

/// What the rules for links and special files left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Skipped {
    /// How many.
    pub count: u64,
    /// The first hundred, below the root, and what they are.
    pub named: Vec<(PathBuf, &'static str)>,
}

/// Looks at everything in the directory at `path` that `rules` take. Nothing but files with holes
/// is opened. A directory that changes meanwhile may be seen half in its old and half in its new
/// state; each file is then read as it was seen here or refused.
pub fn scan(path: &Path, rules: &ScanRules) -> Result<TreeSource, FileError> {
    let path = std::fs::canonicalize(path).on("find", path)?;
    scan_picked(&[Picked { path, name: None }], rules)
}

/// The same for several paths, which become one tree. Two that would have one name are refused.
pub fn scan_picked(picked: &[Picked], rules: &ScanRules) -> Result<TreeSource, FileError> {
    let path = common_directory(picked);
    let slash = Arc::new(OwnedFd::from(File::open("/").on("open", Path::new("/"))?));
    let open = |path: &Path| walk(&slash, path.as_os_str().as_bytes()).on("open directory", path);
    let root = open(&path)?;
    let stat = sys::stat(root.as_fd()).on("look at", &path)?;
    let mut walker = Walker {
        rules,
        path: &path,
        within: PathBuf::new(),
        root,
        builder: ListingBuilder::default(),
        stamps: vec![],
        elsewhere: HashMap::new(),
        names: HashMap::new(),
        owners: OwnerTable::default(),
        skipped: Skipped::default(),
        pending: vec![],
        above: vec![],
        relative: vec![],
    };
    let is_one = matches!(picked, [Picked { name: None, .. }]);
    let meta = if is_one { walker.meta(&stat)? } else { Meta { mode: 0o755, ..Meta::default() } };
    walker.push(0, b"", meta, Kind::Directory, &stat)?;
    let mut tops = vec![];
    for picked in picked {
        let dir = if picked.name.is_some() { picked.path.parent() } else { Some(&*picked.path) };
        let dir = dir.unwrap_or(&picked.path);
        let open = open(dir)?;
        let below = dir.strip_prefix(&path).unwrap_or(dir).as_os_str().as_bytes().to_vec();
        let names = match &picked.name {
            Some(name) => {
                let real = picked.path.file_name().unwrap_or_default().as_bytes().to_vec();
                vec![(name.clone(), real)]
            }
            None => {
                let open = tree_sys::open_dir_to_read(open.as_fd(), b".");
                let names = walker.names_in(&open.on("open directory", dir)?)?;
                names.into_iter().map(|name| (name.clone(), name)).collect()
            }
        };
        for (name, real) in names {
            tops.push(Top { name, real, below: below.clone(), dir: open.clone(), of: picked });
        }
    }
    tops.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = tops.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let path = pair[1].of.path.join(OsStr::from_bytes(&pair[1].name));
        return Err(FileError::Refused { path, what: "the second of its name" });
    }
    for top in &tops {
        walker.top(top)?;
    }
    walker.finish(picked)
}

/// What is directly below the root.
struct Top<'a> {
    /// Its name in the tree.
    name: Vec<u8>,
    /// Its name in `dir`.
    real: Vec<u8>,
    /// The path of `dir` below the root.
    below: Vec<u8>,
    dir: Arc<OwnedFd>,
    of: &'a Picked,
}

/// The nearest directory that everything is in.
fn common_directory(picked: &[Picked]) -> PathBuf {
    let directory = |picked: &Picked| match picked.name {
        Some(_) => picked.path.parent().unwrap_or(&picked.path).to_path_buf(),
        None => picked.path.clone(),
    };
    let common = picked.iter().map(directory).reduce(|one, other| {
        let same = one.components().zip(other.components()).take_while(|(a, b)| a == b);
        same.map(|(component, _)| component).collect()
    });
    common.unwrap_or_else(|| "/".into())
}

struct Walker<'a> {
    rules: &'a ScanRules,
    path: &'a Path,
    /// Links that are followed lead to something in it.
    within: PathBuf,
    root: Arc<OwnedFd>,
    builder: ListingBuilder,
    stamps: Vec<FileStamp>,
    elsewhere: HashMap<u32, Vec<u8>>,
    /// Files with several names, by device and inode.
    names: HashMap<(u64, u64), u32>,
    owners: OwnerTable,
    skipped: Skipped,
    /// Directories that are only listed if something in them is taken.
    pending: Vec<Pending>,
    /// Device and inode of the directories that are being walked.
    above: Vec<(u64, u64)>,
    /// The path of what is being looked at, below the root.
    relative: Vec<u8>,
}

struct Pending {
    depth: u8,
    name: Vec<u8>,
    stat: libc::stat,
    elsewhere: Option<Vec<u8>>,
}

/// Where entries of a directory are.
struct Place {
    depth: u8,
    /// The directory's path below the root, links resolved.
    real: Vec<u8>,
    /// The directory is on the include list.
    included: bool,
}

impl Walker<'_> {
    fn top(&mut self, top: &Top<'_>) -> Result<(), FileError> {
        let Top { name, real, below, dir, of } = top;
        self.within.clone_from(&of.path);
        self.relative.clone_from(name);
        if self.rules.filter.excludes(name) {
            return Ok(());
        }
        let stat = sys::stat_at(dir.as_fd(), real).on("look at", &of.path)?;
        let stat = stat.ok_or_else(|| FileError::Changed { path: of.path.clone() })?;
        self.above.clear();
        if of.name.is_none() {
            let stat = sys::stat(dir.as_fd()).on("look at", &of.path)?;
            self.above.push((stat.st_dev, stat.st_ino));
        }
        let filter = &self.rules.filter;
        let included = filter.includes(b"") || filter.includes(name);
        let at = Place { depth: 1, real: join(below, real), included };
        let elsewhere = (at.real != *name).then(|| at.real.clone());
        self.entry(dir, real, &stat, at, elsewhere)
    }

    fn directory(
        &mut self,
        dir: &OwnedFd,
        stat: &libc::stat,
        place: &Place,
    ) -> Result<(), FileError> {
        self.above.push((stat.st_dev, stat.st_ino));
        for name in self.names_in(dir)? {
            let len = self.relative.len();
            if len > 0 {
                self.relative.push(b'/');
            }
            self.relative.extend_from_slice(&name);
            if !self.rules.filter.excludes(&self.relative) {
                let included = place.included || self.rules.filter.includes(&self.relative);
                let at = Place { depth: place.depth, real: join(&place.real, &name), included };
                let stat = sys::stat_at(dir.as_fd(), &name).on("look at", &self.here())?;
                let stat = stat.ok_or_else(|| FileError::Changed { path: self.here() })?;
                self.entry(dir, &name, &stat, at, None)?;
            }
            self.relative.truncate(len);
        }
        self.above.pop();
        Ok(())
    }

    /// The names in `dir`, sorted.
    fn names_in(&self, dir: &OwnedFd) -> Result<Vec<Vec<u8>>, FileError> {
        let here = self.here();
        let mut names = vec![];
        let entries = std::fs::read_dir(tree_sys::path_of(dir.as_fd())).on("read", &here)?;
        for entry in entries {
            names.push(entry.on("read", &here)?.file_name().into_vec());
            if names.len() > ENTRIES_MAX as usize {
                return Err(FileError::Listing { path: here, source: ListingError::Entries });
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Takes `name` in `dir`, which is `stat`; `elsewhere` says where it is if that is not here.
    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        stat: &libc::stat,
        at: Place,
        elsewhere: Option<Vec<u8>>,
    ) -> Result<(), FileError> {
        // The name that it has in the tree, which a followed link has and its target may not.
        let listed = split(&self.relative).1.to_vec();
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                // Also of directories that may never be listed: the walk itself has an end.
                if at.depth > DEPTH_MAX {
                    let source = ListingError::Depth(self.stamps.len() as u32);
                    return Err(FileError::Listing { path: self.here(), source });
                }
                let before = self.pending.len();
                let pending = Pending { depth: at.depth, name: listed, stat: *stat, elsewhere };
                self.pending.push(pending);
                if at.included {
                    self.push_pending()?;
                }
                let open = tree_sys::open_dir_to_read(dir.as_fd(), name);
                let open = open.on("open directory", &self.here())?;
                self.directory(&open, stat, &Place { depth: at.depth + 1, ..at })?;
                self.pending.truncate(before);
                Ok(())
            }
            _ if !at.included => Ok(()),
            libc::S_IFREG => self.file(dir, name, &listed, stat, at.depth, elsewhere),
            libc::S_IFLNK => self.link(dir, name, stat, at),
            _ => match self.rules.specials {
                Specials::Skip => self.skip("a pipe, socket or device"),
                Specials::Refuse => self.refuse("a pipe, socket or device"),
            },
        }
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        listed: &[u8],
        stat: &libc::stat,
        depth: u8,
        elsewhere: Option<Vec<u8>>,
    ) -> Result<(), FileError> {
        self.push_pending()?;
        let meta = self.meta(stat)?;
        let identity = (stat.st_dev, stat.st_ino);
        let is_shared = self.rules.hard_links && stat.st_nlink > 1 && elsewhere.is_none();
        if let Some(first) = self.names.get(&identity).copied().filter(|_| is_shared) {
            return self.push(depth, listed, meta, Kind::HardLink(first), stat).map(drop);
        }
        let extents = self.extents(dir, name, stat)?;
        let size_bytes = stat.st_size.unsigned_abs();
        let kind = match &extents {
            Some(extents) => Kind::Sparse { size_bytes, extents },
            None => Kind::File { size_bytes },
        };
        let entry = self.push(depth, listed, meta, kind, stat)?;
        if is_shared {
            self.names.insert(identity, entry);
        }
        if let Some(path) = elsewhere {
            self.elsewhere.insert(entry, path);
        }
        Ok(())
    }

    /// What of a file is data, if it may have holes.
    fn extents(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        stat: &libc::stat,
    ) -> Result<Option<Vec<Range<u64>>>, FileError> {
        if stat.st_blocks.saturating_mul(512) >= stat.st_size {
            return Ok(None);
        }
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = sys::open_at(dir.as_fd(), name, flags, 0).on("open", &self.here())?;
        let now = sys::stat(file.as_fd()).on("look at", &self.here())?;
        if FileStamp::of_stat(&now) != FileStamp::of_stat(stat) {
            return Err(FileError::Changed { path: self.here() });
        }
        let size_bytes = stat.st_size.unsigned_abs();
        holes::extents(&File::from(file), size_bytes).on("find the holes of", &self.here())
    }

    fn link(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        stat: &libc::stat,
        at: Place,
    ) -> Result<(), FileError> {
        match self.rules.links {
            Links::Skip => self.skip("a symbolic link"),
            Links::Refuse => self.refuse("a symbolic link"),
            Links::Follow => self.follow(at),
            Links::Keep => {
                let flags = libc::O_PATH | libc::O_NOFOLLOW;
                let link = sys::open_at(dir.as_fd(), name, flags, 0);
                let link = link.on("open", &self.here())?;
                let target = sys::read_link(link.as_fd()).on("read", &self.here())?;
                if !stays_within(at.depth, target.as_bytes()) {
                    return self.refuse("a link that leads out of the tree");
                }
                self.push_pending()?;
                let meta = Meta { mode: 0, ..self.meta(stat)? };
                let kind = Kind::Symlink(target.as_bytes());
                self.push(at.depth, name, meta, kind, stat).map(drop)
            }
        }
    }

    /// Takes what the link at `at` leads to.
    fn follow(&mut self, at: Place) -> Result<(), FileError> {
        let target = std::fs::canonicalize(self.path.join(OsStr::from_bytes(&at.real)));
        let target = target.on("follow", &self.here())?;
        let Some(target) = Some(&*target)
            .filter(|target| target.starts_with(&self.within))
            .and_then(|target| target.strip_prefix(self.path).ok())
        else {
            return self.refuse("a link that leads out of the tree");
        };
        let target = target.as_os_str().as_bytes().to_vec();
        let (above, name) = split(&target);
        // Again from the root and through no link, should one have been exchanged meanwhile.
        let dir = walk(&self.root, above).on("follow", &self.here())?;
        let name = if name.is_empty() { b"." } else { name };
        let stat = sys::stat_at(dir.as_fd(), name).on("follow", &self.here())?;
        let stat = stat.ok_or_else(|| FileError::Changed { path: self.here() })?;
        if self.above.contains(&(stat.st_dev, stat.st_ino)) {
            return self.refuse("a link to a directory above it");
        }
        if stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
            return Err(FileError::Changed { path: self.here() });
        }
        let at = Place { real: target.clone(), ..at };
        self.entry(&dir, name, &stat, at, Some(target.clone()))
    }

    fn push_pending(&mut self) -> Result<(), FileError> {
        for pending in std::mem::take(&mut self.pending) {
            let Pending { depth, name, stat, elsewhere } = pending;
            let meta = self.meta(&stat)?;
            let entry = self.push(depth, &name, meta, Kind::Directory, &stat)?;
            if let Some(path) = elsewhere {
                self.elsewhere.insert(entry, path);
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        depth: u8,
        name: &[u8],
        meta: Meta,
        kind: Kind<'_>,
        stat: &libc::stat,
    ) -> Result<u32, FileError> {
        let entry = self.builder.push(depth, name, meta, kind);
        let entry = entry.map_err(|source| FileError::Listing { path: self.here(), source })?;
        self.stamps.push(FileStamp::of_stat(stat));
        Ok(entry)
    }

    fn meta(&mut self, stat: &libc::stat) -> Result<Meta, FileError> {
        let owner = if self.rules.owner_names {
            let here = self.here();
            self.owners.number(stat.st_uid, stat.st_gid, &mut self.builder, &here)?
        } else {
            0
        };
        let mtime_ns = FileStamp::of_stat(stat).mtime_ns;
        let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let mode = match self.rules.plain_modes {
            true if is_directory || stat.st_mode & 0o111 != 0 => 0o755,
            true => 0o644,
            false => stat.st_mode & MODE_TRAVELS,
        };
        Ok(Meta { mode: mode as u16, owner, mtime_ns })
    }

    fn skip(&mut self, what: &'static str) -> Result<(), FileError> {
        self.skipped.count += 1;
        if self.skipped.named.len() < SKIPPED_NAMED_MAX {
            let path = PathBuf::from(OsStr::from_bytes(&self.relative));
            self.skipped.named.push((path, what));
        }
        Ok(())
    }

    fn refuse(&self, what: &'static str) -> Result<(), FileError> {
        Err(FileError::Refused { path: self.here(), what })
    }

    fn here(&self) -> PathBuf {
        self.path.join(OsStr::from_bytes(&self.relative))
    }

    fn finish(self, picked: &[Picked]) -> Result<TreeSource, FileError> {
        let path = self.path.to_path_buf();
        let named = |picked: &Picked| match &picked.name {
            Some(name) => name.clone(),
            None => picked.path.file_name().unwrap_or_default().as_bytes().to_vec(),
        };
        let name = picked.first().map(named).and_then(|name| String::from_utf8(name).ok());
        let name = name.filter(|name| check_file_name(name.as_bytes()).is_ok());
        let refuse = |source| FileError::Listing { path: path.clone(), source };
        let listing = self.builder.finish().map_err(refuse)?;
        let encoded = encode(&listing);
        let layout = Layout::new(&listing, encoded.len() as u64).map_err(refuse)?;
        Ok(TreeSource {
            root: self.root,
            path: self.path.to_path_buf(),
            listing,
            encoded,
            layout: Arc::new(layout),
            name: name.unwrap_or_else(|| "tree".into()),
            stamps: self.stamps,
            elsewhere: Arc::new(self.elsewhere),
            skipped: self.skipped,
        })
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
