//! A tree that is being received: hidden beside its final place, then renamed into it.
//!
//! ```text
//!   target directory
//!   ├── .skein-<transfer id>.tree      mode 0700, locked
//!   │   ├── stream                     the listing; before it is complete, also what came early
//!   │   └── tree                       what will be the tree, each file's bytes in their place
//!   └── NAME                           appears by rename
//! ```
//!
//! Blocks come proved and in any order. Until the listing is complete they wait in `stream`, a file
//! with holes at the offsets of the stream; then they move into their files, and later ones go
//! there directly. Which blocks an earlier run wrote is in the state file of all partial files, and
//! is a claim here as there: who resumes proves them by [`TreeStage::append_at`] first.

use super::ahead::FlushAhead;
use super::remove::remove_tree;
use super::scan::Skipped;
use super::source::{TreeReader, TreeSource, append_parts, zeros};
use super::sys as tree_sys;
use super::writer::{Padding, TreeWriter};
use super::{Ownership, place};
use crate::core::bitfield::Bitfield;
use crate::core::geometry::{BLOCK_BYTES, Geometry};
use crate::core::manifest::Manifest;
use crate::core::name::check_file_name;
use crate::core::tree::codec::{HEADER_BYTES, Header, decode};
use crate::core::tree::layout::{Layout, Part};
use crate::core::tree::listing::{Listing, ListingError};
use crate::engine::error::{Context, FileError};
use crate::engine::portable::partial::{absent, lock};
use crate::engine::portable::staged::StagedFile;
use crate::engine::portable::state_file::{StateFile, StateOf};
use crate::engine::{FileStamp, TargetDir, sys};
use skein_wire::ids::TransferId;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that move at once from `stream` into files.
const MOVE_BYTES: u64 = 256 * 1024;

const STREAM: &[u8] = b"stream";
const TREE: &[u8] = b"tree";

/// The name of a tree whose entries are put beside what the target directory holds already.
pub const CONTENT: &[u8] = b".";

/// What to do if something has the tree's name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Nothing is replaced. Of [`CONTENT`], whatever has the name of one of its entries is in the
    /// way, a directory too.
    #[default]
    Refuse,
    /// A directory is merged into: its files are replaced one by one, what the tree does not have
    /// stays, directories keep their attributes, and no link is followed.
    Merge,
}

/// When the disk has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flush {
    /// Before anything gets its final name.
    #[default]
    First,
    /// When the kernel likes: after a power loss files may be empty under their final names.
    Later,
}

/// How a tree is received.
#[derive(Debug, Clone, Copy, Default)]
pub struct TreeOptions {
    /// Whom it shall belong to.
    pub ownership: Ownership,
    /// What may be in its place.
    pub existing: Existing,
    /// Whether it must survive a power loss.
    pub flush: Flush,
    /// Mode of all files, set-id bits too; `None`: each its own.
    pub mode: Option<u32>,
    /// Modification times are those of the arrival, not the source's.
    pub own_times: bool,
}

/// A tree that is being received. Dropping it keeps it for a later run.
#[derive(Debug)]
pub struct TreeStage {
    /// Since the listing is known. The first field: what it has under way ends before the lock.
    pub(super) writer: Option<TreeWriter>,
    pub(super) dir: TargetDir,
    pub(super) name: Vec<u8>,
    /// Name of the staged directory.
    staged_name: Vec<u8>,
    /// The staged directory, locked.
    pub(super) staged: File,
    stream: StagedFile,
    geometry: Geometry,
    state: StateFile,
    is_new: bool,
    /// Blocks written by this run, and those that an earlier one claims.
    written: Bitfield,
    pub(super) options: TreeOptions,
    ahead: FlushAhead,
}

impl TreeStage {
    /// Opens the staged tree of `transfer` that will be `name` in `dir` (or [`CONTENT`]), or makes it. Its state is
    /// kept in `state_dir`, which must exist. `manifest` is that of the stream.
    pub fn open(
        dir: TargetDir,
        name: &[u8],
        transfer: &TransferId,
        manifest: &Manifest,
        state_dir: &Path,
        options: TreeOptions,
    ) -> Result<Self, FileError> {
        if name != CONTENT {
            check_file_name(name)?;
            place::check_free(&dir, name, options.existing)?;
        }
        let staged_name = staged_name(transfer);
        let (staged, is_new) = open_staged(&dir, &staged_name)?;
        let opened = Self::prepare(&dir, &staged, &staged_name, transfer, manifest, state_dir);
        let (stream, state, is_new) = match opened {
            Ok((stream, state, has_stream)) => (stream, state, is_new || !has_stream),
            Err(error) => {
                if is_new {
                    let _ = remove_tree(dir.as_fd(), &staged_name); // the first error tells more
                }
                return Err(error);
            }
        };
        let geometry = manifest.geometry;
        let empty = Bitfield::new(geometry.block_count());
        let written = if is_new { empty } else { state.blocks().clone() };
        let name = name.to_vec();
        let mut stage = Self {
            dir,
            name,
            staged_name,
            staged,
            stream,
            geometry,
            state,
            is_new,
            written,
            options,
            writer: None,
            ahead: FlushAhead::default(),
        };
        match stage.learn_listing() {
            Err(error) if stage.is_new => {
                let _ = stage.abandon(); // the first error tells more
                Err(error)
            }
            result => result.map(|()| stage),
        }
    }

    /// Makes what a staged directory has; true if its stream was there already.
    fn prepare(
        dir: &TargetDir,
        staged: &File,
        staged_name: &[u8],
        transfer: &TransferId,
        manifest: &Manifest,
        state_dir: &Path,
    ) -> Result<(StagedFile, StateFile, bool), FileError> {
        let (geometry, root) = (&manifest.geometry, &manifest.root);
        let base = dir.entry(staged_name);
        match sys::mkdir_at(staged.as_fd(), TREE, 0o700) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).on("make a directory in", &base);
            }
            _ => {}
        }
        let path = base.join("stream");
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let stream = sys::open_at(staged.as_fd(), STREAM, flags, 0o600).on("open", &path)?;
        let stream = File::from(stream);
        let metadata = stream.metadata().on("look at", &path)?;
        if !metadata.is_file() {
            return Err(FileError::Foreign { path, why: "it is no regular file" });
        }
        let has_stream = metadata.len() > 0;
        if !has_stream {
            dir.check_room(geometry.size_bytes())?;
            stream.set_len(geometry.size_bytes()).on("set the size of", &path)?;
        }
        let stamp = FileStamp::of(&staged.metadata().on("look at", &base)?);
        let state =
            StateFile::open(state_dir, &StateOf { transfer, geometry, root, stamp: &stamp })?;
        Ok((StagedFile::new(stream, path), state, has_stream))
    }

    /// Blocks that an earlier run may have written; for
    /// [`Download::new`](crate::core::download::Download::new), which proves them first.
    pub fn claimed(&self) -> Option<Bitfield> {
        self.state.claimed(self.is_new)
    }

    /// The listing, once it is known. A resumed one is a claim too until its blocks are proved.
    pub fn listing(&self) -> Option<&Listing> {
        self.writer.as_ref().map(|writer| &writer.listing)
    }

    /// Where the tree will be.
    pub fn final_path(&self) -> PathBuf {
        if self.name == CONTENT { self.dir.path().into() } else { self.dir.entry(&self.name) }
    }

    /// Writes proved `data` at `offset` of the stream: whole blocks from a block border on. Small
    /// neighbouring writes leave together, so that an error may belong to an earlier one. When the
    /// listing becomes complete, all directories are made. After an error the stage is to be
    /// abandoned.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let path = self.stream.path();
        let blocks = self.state.claim_bytes(&self.geometry, offset, data.len(), path)?;
        self.written.set_range(blocks);
        if self.options.flush == Flush::First {
            self.ahead.written(self.staged.as_fd(), data.len() as u64);
        }
        match &mut self.writer {
            Some(writer) => {
                let listing_bytes = writer.layout.listing_bytes();
                writer.write(offset, data, &self.written, Padding::Proved)?;
                if offset < listing_bytes {
                    let len = (listing_bytes - offset).min(data.len() as u64) as usize;
                    self.check_listing(offset, &data[..len])?;
                }
                Ok(())
            }
            None => {
                self.stream.write_at(offset, data)?;
                self.learn_listing()
            }
        }
    }

    /// Refuses if the listing that was found on disk is not the one that was signed.
    fn check_listing(&self, offset: u64, proved: &[u8]) -> Result<(), FileError> {
        let mut found = vec![];
        self.stream.append_at(offset, proved.len(), &mut found)?;
        if found == proved {
            return Ok(());
        }
        let (path, why) = (self.stream.path().to_path_buf(), "it is not what was signed");
        Err(FileError::Sidecar { path, why })
    }

    /// Reads the listing as soon as all its blocks are there, and moves what came early to where
    /// it belongs. What an earlier run claims may be wrong: then its blocks come again.
    fn learn_listing(&mut self) -> Result<(), FileError> {
        let path = self.final_path();
        let refuse = |source| FileError::Listing { path: path.clone(), source };
        let found = match self.read_listing()? {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => found,
            Err(_) if !self.is_new => return Ok(()),
            Err(source) => return Err(refuse(source)),
        };
        let (listing, layout) = found;
        let owners = self.options.ownership.resolve(&listing)?;
        let base = self.dir.entry(&self.staged_name).join("tree");
        let root = tree_sys::open_dir(self.staged.as_fd(), TREE).on("open directory", &base)?;
        let mut writer =
            TreeWriter::new(listing, layout, Arc::new(root), base, owners, &self.options);
        writer.make_skeleton()?;
        self.move_early(&mut writer)?;
        self.writer = Some(writer);
        Ok(())
    }

    /// The listing in `stream`, if all its blocks are there.
    #[allow(clippy::type_complexity)] // an error of the disk, or of what is on it
    fn read_listing(&self) -> Result<Result<Option<(Listing, Layout)>, ListingError>, FileError> {
        let size_bytes = self.geometry.size_bytes();
        let first_missing = self.written.next_zero(0).unwrap_or(self.written.len());
        let there = self.geometry.block_offset(first_missing).min(size_bytes);
        if there < HEADER_BYTES as u64 {
            let too_short = size_bytes < HEADER_BYTES as u64;
            return Ok(if too_short { Err(ListingError::Length) } else { Ok(None) });
        }
        let mut bytes = vec![];
        self.stream.append_at(0, HEADER_BYTES, &mut bytes)?;
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let listing_bytes = u64::from(header.listing_bytes);
        if listing_bytes > size_bytes {
            let (described, ordered) = (listing_bytes, size_bytes);
            return Ok(Err(ListingError::StreamBytes { described, ordered }));
        }
        if there < listing_bytes {
            return Ok(Ok(None));
        }
        bytes.clear();
        self.stream.append_at(0, listing_bytes as usize, &mut bytes)?;
        Ok(decode(&bytes).and_then(|listing| {
            let layout = Layout::new(&listing, listing_bytes)?;
            let (described, ordered) = (layout.stream_bytes(), size_bytes);
            if described != ordered {
                return Err(ListingError::StreamBytes { described, ordered });
            }
            Ok(Some((listing, layout)))
        }))
    }

    /// Moves the content that came before the listing was complete. The stream is cut only when
    /// all of it has moved, so that whoever is killed in between starts again.
    fn move_early(&mut self, writer: &mut TreeWriter) -> Result<(), FileError> {
        self.stream.flush()?;
        let metadata = self.stream.file().metadata().on("look at", self.stream.path())?;
        let listing_bytes = writer.layout.listing_bytes();
        if metadata.len() <= listing_bytes {
            return Ok(());
        }
        let padding = if self.is_new { Padding::Proved } else { Padding::Claimed };
        let first = listing_bytes.div_ceil(u64::from(BLOCK_BYTES)) as u32;
        let mut data = vec![];
        // What the last block of the listing holds behind it.
        let border = self.geometry.block_offset(first).min(self.geometry.size_bytes());
        self.stream.append_at(listing_bytes, (border - listing_bytes) as usize, &mut data)?;
        writer.write(listing_bytes, &data, &self.written, padding)?;
        for blocks in self.written.ranges().filter(|blocks| blocks.end > first) {
            let bytes = self.geometry.bytes_of(blocks.start.max(first)..blocks.end);
            let mut at = bytes.start;
            while at < bytes.end {
                let len = MOVE_BYTES.min(bytes.end - at);
                data.clear();
                self.stream.append_at(at, len as usize, &mut data)?;
                writer.write(at, &data, &self.written, padding)?;
                at += len;
            }
        }
        writer.wait()?;
        self.stream.file().set_len(listing_bytes).on("cut", self.stream.path())
    }

    /// Appends exactly `len` bytes at `offset` of the stream to `out`; on failure `out` is as
    /// before. Bytes that were not written are an error or are not what they should be.
    pub fn append_at(
        &mut self,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        let Some(writer) = &mut self.writer else {
            return self.stream.append_at(offset, len, out);
        };
        let (layout, stream) = (writer.layout.clone(), &self.stream);
        let range = offset..offset.saturating_add(len as u64);
        append_parts(&layout, range, stream.path(), out, |part, out| match part {
            Part::Listing(range) => {
                stream.append_at(range.start, (range.end - range.start) as usize, out)
            }
            Part::Padding(len) => zeros(len, out),
            Part::File { entry, offset, len } => writer.read(entry, offset, len as usize, out),
        })
    }

    /// Reads what is complete, from here and, as soon as it has moved there, from its final place;
    /// for those who still fetch it. `None` before the listing is known.
    pub fn reader(&mut self) -> Result<Option<TreeReader>, FileError> {
        let path = self.final_path();
        let Some(writer) = &mut self.writer else { return Ok(None) };
        writer.settle_files()?;
        let mut encoded = vec![];
        self.stream.append_at(0, writer.layout.listing_bytes() as usize, &mut encoded)?;
        let source = TreeSource {
            root: writer.dirs.root().clone(),
            path,
            listing: writer.listing.clone(),
            encoded,
            layout: writer.layout.clone(),
            stamps: vec![],
            elsewhere: Arc::default(),
            skipped: Skipped::default(),
            name: String::new(),
        };
        let place = self.dir.as_fd().try_clone_to_owned().on("open again", self.dir.path())?;
        let name = (self.name != CONTENT).then(|| self.name.clone());
        Ok(Some(TreeReader::arrived(source, Arc::new(place), name, self.options.own_times)))
    }

    /// Completes the tree: attributes, flush, rename into place. Call it when every block is
    /// proved and written. After an error nothing is left of it, but a merge that fails between two
    /// renames leaves what it had put in place.
    pub fn finish(mut self) -> Result<(), FileError> {
        let result = self.complete();
        let removed = self.abandon();
        result.and(removed)
    }

    fn complete(&mut self) -> Result<(), FileError> {
        if let Some(block) = self.written.next_zero(0) {
            return Err(FileError::Incomplete { path: self.stream.path().to_path_buf(), block });
        }
        if self.writer.is_none() {
            // Everything is proved by now, so what cannot be read was signed like that.
            self.is_new = true;
            self.learn_listing()?;
        }
        self.place()
    }

    /// Removes what an earlier run left of `transfer` in `dir` and `state_dir`, if anything. A
    /// tree that somebody still writes is left alone.
    pub fn discard(
        dir: &TargetDir,
        transfer: &TransferId,
        state_dir: &Path,
    ) -> Result<(), FileError> {
        let name = staged_name(transfer);
        let _lock = match tree_sys::open_dir_to_read(dir.as_fd(), &name) {
            Ok(fd) => Some(lock(File::from(fd), &dir.entry(&name))?),
            Err(_) => None, // nothing, or nothing that a writer of ours has open
        };
        remove_tree(dir.as_fd(), &name).on("remove", &dir.entry(&name))?;
        let path = StateFile::path_in(state_dir, transfer);
        absent(fs::remove_file(&path)).on("remove", &path)
    }

    /// Removes the staged tree and its state.
    pub fn abandon(mut self) -> Result<(), FileError> {
        // Nothing may be made below what is being removed.
        self.writer = None;
        let name = &self.staged_name;
        remove_tree(self.dir.as_fd(), name).on("remove", &self.dir.entry(name))?;
        self.state.remove()
    }

    /// Name of the directory within the staged one that will be the tree.
    pub(super) fn tree_name() -> &'static [u8] {
        TREE
    }
}

fn staged_name(transfer: &TransferId) -> Vec<u8> {
    format!(".skein-{transfer}.tree").into_bytes()
}

/// Opens or makes the staged directory and locks it; true if it was made.
fn open_staged(dir: &TargetDir, name: &[u8]) -> Result<(File, bool), FileError> {
    let path = dir.entry(name);
    let foreign = |why| FileError::Foreign { path: path.clone(), why };
    let is_new = match sys::mkdir_at(dir.as_fd(), name, 0o700) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        result => result.map(|()| true).on("make directory", &path)?,
    };
    let open = match tree_sys::open_dir_to_read(dir.as_fd(), name) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
            return Err(foreign("it is no directory"));
        }
        result => result.on("open directory", &path)?,
    };
    let stat = sys::stat(open.as_fd()).on("look at", &path)?;
    if stat.st_uid != sys::effective_uid() || stat.st_mode & 0o077 != 0 {
        return Err(foreign("it belongs to somebody else or is open to others"));
    }
    Ok((lock(File::from(open), &path)?, is_new))
}
