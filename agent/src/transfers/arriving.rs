//! What a transfer brings: one file, or the files of a tree, while it arrives and until it stands
//! in its place.

use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use skein_filemesh::core::bitfield::Bitfield;
use skein_filemesh::core::manifest::{MODE_MASK, Manifest};
use skein_filemesh::engine::reserve::Room;
use skein_filemesh::engine::tree::{
    CONTENT, Existing, Ownership, TreeOptions, TreeReader, TreeStage,
};
use skein_filemesh::engine::{
    Attributes, BlockMemory, FileError, Owner, PartialFile, Taken, TargetDir, place_whole,
};
use skein_wire::ids::TransferId;
use skein_wire::signal::v1::JoinTransfer;

use super::Settings;
use super::fetch::FetchEnd;
use crate::paths::{Access, PathRules, file_name};

/// Something that is being received.
pub(super) enum Arriving {
    /// One file, and what it gets when it is finished.
    File(Box<PartialFile>, Attributes),
    /// Files, directories and links.
    Tree(Box<ArrivingTree>),
}

/// A tree whose entries go into a folder.
pub(super) struct ArrivingTree {
    stage: TreeStage,
    rules: Arc<PathRules>,
    folder: PathBuf,
    /// The rules were asked about every entry.
    is_allowed: bool,
}

/// Everything, for those who still fetch it.
pub(super) enum Whole {
    /// The descriptor stays good while the file gets its name, and after.
    File(std::fs::File),
    /// Reads the tree's files wherever they stand by then.
    Tree(Box<TreeReader>),
}

impl Arriving {
    /// Checks where an order's content shall go and opens what is partial there.
    pub fn open(
        settings: &Settings,
        id: &TransferId,
        join: &JoinTransfer,
        manifest: &Manifest,
    ) -> Result<Self, FetchEnd> {
        let owner = owner(join)?;
        let (dir, folder) = target(settings, join)?;
        if !is_tree(join) {
            let name = file_name(&join.file_name)?;
            let file = PartialFile::open(dir, name.as_bytes(), id, manifest, &settings.dir)?;
            return Ok(Self::File(Box::new(file), attributes(join, manifest, owner)));
        }
        let ownership = match (join.owner.is_empty(), join.owners_by_name) {
            (false, _) => Ownership::All(owner),
            (true, true) => Ownership::Named,
            (true, false) => Ownership::Writer,
        };
        let options = TreeOptions {
            ownership,
            existing: if join.refuse_existing { Existing::Refuse } else { Existing::Merge },
            mode: (join.mode != 0).then_some(join.mode),
            own_times: join.times_of_arrival,
            ..TreeOptions::default()
        };
        let stage = TreeStage::open(dir, CONTENT, id, manifest, &settings.dir, options)?;
        let rules = settings.rules.clone();
        let mut tree = ArrivingTree { stage, rules, folder, is_allowed: false };
        if let Err(refused) = tree.ask_rules() {
            let _ = tree.stage.abandon(); // the refusal tells more
            return Err(refused);
        }
        Ok(Self::Tree(Box::new(tree)))
    }

    /// Puts `content`, which is proved and all there is, in its place at once.
    pub fn place(
        settings: &Settings,
        id: &TransferId,
        join: &JoinTransfer,
        manifest: &Manifest,
        content: &[u8],
    ) -> Result<(), FetchEnd> {
        if is_tree(join) {
            let mut tree = Self::open(settings, id, join, manifest)?;
            if !content.is_empty() {
                tree.write_at(0, content)?;
            }
            return tree.finish();
        }
        let owner = owner(join)?;
        let (dir, _) = target(settings, join)?;
        let name = file_name(&join.file_name)?.as_bytes();
        let attributes = attributes(join, manifest, owner);
        Ok(place_whole(&dir, name, id, &settings.dir, content, &attributes)?)
    }

    /// Removes what an earlier worker left of a transfer that will not be continued.
    pub fn discard(
        settings: &Settings,
        id: &TransferId,
        join: &JoinTransfer,
    ) -> Result<(), FetchEnd> {
        let folder = settings.rules.open_folder(Access::Write, &join.directory, false)?;
        let dir = TargetDir::open(&folder.path, false)?;
        settings.rules.check(Access::Write, &dir.resolved()?)?;
        match is_tree(join) {
            true => Ok(TreeStage::discard(&dir, id, &settings.dir)?),
            false => Ok(PartialFile::discard(&dir, id, &settings.dir)?),
        }
    }

    /// What a file of `size_bytes` needs where an order wants it, and what is there; `None` for a
    /// tree, of which that is not known before its listing is there.
    pub fn room(
        settings: &Settings,
        id: &TransferId,
        join: &JoinTransfer,
        size_bytes: u64,
    ) -> Result<Option<Room>, FetchEnd> {
        if is_tree(join) {
            return Ok(None);
        }
        let (dir, _) = target(settings, join)?;
        Ok(Some(PartialFile::room(&dir, id, size_bytes)?))
    }

    /// Bytes of a file that its file system has still to allocate.
    pub fn needed_bytes(&self) -> Option<u64> {
        match self {
            Self::File(file, _) => file.room_left().ok().map(|left| left.needed_bytes),
            Self::Tree(_) => None,
        }
    }

    /// Has bytes wait for the disk in `memory`, which transfers share.
    pub fn use_memory(&mut self, memory: &BlockMemory) {
        if let Self::File(file, _) = self {
            file.use_memory(memory, 0);
        }
    }

    /// Blocks that an earlier run may have written.
    pub fn claimed(&self) -> Option<Bitfield> {
        match self {
            Self::File(file, _) => file.claimed(),
            Self::Tree(tree) => tree.stage.claimed(),
        }
    }

    /// Writes proved bytes: whole blocks.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), FetchEnd> {
        match self {
            Self::File(file, _) => Ok(file.write_at(offset, data)?),
            Self::Tree(tree) => {
                tree.stage.write_at(offset, data)?;
                tree.ask_rules()
            }
        }
    }

    /// The same for bytes of what a link received.
    pub fn write(
        &mut self,
        taken: &Taken,
        offset: u64,
        data: Range<usize>,
    ) -> Result<(), FetchEnd> {
        match self {
            Self::File(file, _) => Ok(taken.write_to(file, offset, data)?),
            Self::Tree(_) => self.write_at(offset, taken.bytes(data)),
        }
    }

    /// Hands to the kernel what of a file waits in memory for neighbours: kill -9 would take it.
    pub fn write_waiting(&mut self) -> Result<(), FetchEnd> {
        match self {
            Self::File(file, _) => Ok(file.write_waiting()?),
            Self::Tree(_) => Ok(()),
        }
    }

    /// Appends `len` bytes at `offset` to `out`.
    pub fn append_at(
        &mut self,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        match self {
            Self::File(file, _) => file.append_at(offset, len, out),
            Self::Tree(tree) => tree.stage.append_at(offset, len, out),
        }
    }

    /// All of it for reading, now that all of it is here.
    pub fn reader(&mut self) -> Result<Whole, FetchEnd> {
        match self {
            Self::File(file, _) => Ok(Whole::File(file.reader()?)),
            Self::Tree(tree) => match tree.stage.reader()? {
                Some(reader) => Ok(Whole::Tree(Box::new(reader))),
                None => Err(FetchEnd::Failed("the tree's listing is not readable".into())),
            },
        }
    }

    /// Puts everything in its place. Blocks, for as long as flushing takes.
    pub fn finish(self) -> Result<(), FetchEnd> {
        match self {
            Self::File(file, attributes) => Ok(file.finish(&attributes).map(drop)?),
            Self::Tree(mut tree) => {
                let asked = tree.ask_rules();
                if asked.is_ok() && tree.is_allowed {
                    return Ok(tree.stage.finish()?);
                }
                tree.stage.abandon()?;
                asked.and(Err(FetchEnd::Failed("the tree's listing is not readable".into())))
            }
        }
    }

    /// Removes what is there.
    pub fn abandon(self) -> Result<(), FileError> {
        match self {
            Self::File(file, _) => file.abandon(),
            Self::Tree(tree) => tree.stage.abandon(),
        }
    }
}

impl ArrivingTree {
    /// Asks the path rules about every entry, as soon as the entries are known.
    fn ask_rules(&mut self) -> Result<(), FetchEnd> {
        let Some(listing) = self.stage.listing().filter(|_| !self.is_allowed) else {
            return Ok(());
        };
        for entry in 1..listing.len() {
            let path = std::ffi::OsString::from_vec(listing.path(entry));
            self.rules.check(Access::Write, &self.folder.join(path))?;
        }
        self.is_allowed = true;
        Ok(())
    }
}

impl Whole {
    /// Appends `len` bytes at `offset` to `out`.
    pub fn append_at(&mut self, offset: u64, len: usize, out: &mut Vec<u8>) -> std::io::Result<()> {
        match self {
            Self::File(file) => skein_filemesh::engine::append_at(file, offset, len, out),
            Self::Tree(tree) => tree.append_at(offset, len, out).map_err(std::io::Error::other),
        }
    }
}

/// Checks where an order's content shall go and opens its folder; the answer has the folder's path
/// too, as it really is.
fn target(settings: &Settings, join: &JoinTransfer) -> Result<(TargetDir, PathBuf), FetchEnd> {
    let rules = &settings.rules;
    // A tree's entries have their names in its listing.
    let name = if is_tree(join) { None } else { Some(file_name(&join.file_name)?) };
    // The rules are asked before a folder is made, and again about what was really opened.
    let folder = rules.open_folder(Access::Write, &join.directory, join.create_directory)?;
    if let Some(name) = name {
        rules.check(Access::Write, &folder.path.join(name))?;
    }
    let dir = TargetDir::open(&folder.path, false)?.keep_free(settings.limits.keep_free_bytes);
    let folder = dir.resolved()?;
    match name {
        Some(name) => rules.check(Access::Write, &folder.join(name))?,
        None => rules.check(Access::Write, &folder)?,
    }
    Ok((dir, folder))
}

/// Whom an order gives its content to. Refuses modes that are none.
fn owner(join: &JoinTransfer) -> Result<Owner, FetchEnd> {
    if join.mode & !MODE_MASK != 0 {
        let mode = join.mode;
        return Err(FetchEnd::Failed(format!("mode {mode:o} has bits that are no permissions")));
    }
    Ok(Owner::parse(&join.owner)?)
}

/// What a file gets.
fn attributes(join: &JoinTransfer, manifest: &Manifest, owner: Owner) -> Attributes {
    Attributes {
        mode: if join.mode == 0 { manifest.mode } else { join.mode },
        owner,
        mtime_ms: (manifest.mtime_ms != 0).then_some(manifest.mtime_ms),
    }
}

/// Whether an order's content is a tree.
fn is_tree(join: &JoinTransfer) -> bool {
    join.file.as_ref().is_some_and(|file| file.tree)
}
