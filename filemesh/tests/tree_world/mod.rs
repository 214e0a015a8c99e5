//! A source and a target directory of one test, and a tree on its way between them.
#![allow(dead_code)] // each test program uses some of it

use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::merkle::leaf;
use skein_filemesh::engine::tree::{
    Existing, ScanRules, TreeOptions, TreeReader, TreeSource, TreeStage, hash_tree, scan,
};
use skein_filemesh::engine::{FileError, LeafFile, TargetDir};
use skein_wire::ids::TransferId;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub const TRANSFER: TransferId = TransferId([0xcd; 16]);
pub const STAGED: &str = ".skein-cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd.tree";
const PIECE: u32 = 65_536;

/// Bytes that differ from file to file and from block to block.
pub fn bytes_of(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 * 31 + at / 16_384 + seed * 41) as u8 | 1).collect()
}

/// Everything that a tree can carry but owners.
pub fn rules() -> ScanRules {
    ScanRules { hard_links: true, ..ScanRules::default() }
}

/// One world per kind of file system that there is.
pub fn worlds() -> Vec<World> {
    std::iter::once(World::on_disk()).chain(World::in_memory()).collect()
}

pub struct World(PathBuf, Option<tempfile::TempDir>);

impl World {
    pub fn at(base: &Path) -> Self {
        for name in ["source", "target", "state", "outside"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        Self(base.to_path_buf(), None)
    }

    fn within(base: tempfile::TempDir) -> Self {
        Self(Self::at(base.path()).0, Some(base))
    }

    pub fn on_disk() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    pub fn in_memory() -> Option<Self> {
        tempfile::tempdir_in("/dev/shm").ok().map(Self::within)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn source(&self) -> PathBuf {
        self.path("source")
    }

    pub fn target(&self, name: &str) -> PathBuf {
        self.path("target").join(name)
    }

    pub fn names_in(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(dir)).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    /// The source, hashed.
    pub fn send(&self) -> Sent {
        self.hash(&self.source(), "leaves")
    }

    fn hash(&self, path: &Path, leaves: &str) -> Sent {
        let source = Arc::new(scan(path, &rules()).unwrap());
        let go_on = |_| ControlFlow::Continue(());
        let hashed = hash_tree(&source, Some(PIECE), &self.path(leaves), go_on).unwrap();
        let reader = Mutex::new(TreeReader::new(source.clone()));
        Sent { source, manifest: hashed.manifest, leaves: hashed.leaves, reader }
    }

    pub fn stage(
        &self,
        name: &str,
        sent: &Sent,
        existing: Existing,
    ) -> Result<TreeStage, FileError> {
        let dir = TargetDir::open(&self.path("target"), false)?;
        let options = TreeOptions { existing, ..TreeOptions::default() };
        let (state, name) = (self.path("state"), name.as_bytes());
        TreeStage::open(dir, name, &TRANSFER, &sent.manifest, &state, options)
    }

    pub fn receive(&self, name: &str, sent: &Sent, existing: Existing) -> Result<(), FileError> {
        let mut stage = self.stage(name, sent, existing)?;
        sent.give(&mut stage, 0..sent.manifest.geometry.block_count())?;
        stage.finish()
    }

    /// What arrived as `name` has the same root as what was sent: names, attributes, holes, bytes.
    pub fn assert_same(&self, name: &str, sent: &Sent) {
        let arrived = self.hash(&self.target(name), "arrived");
        let (there, here) = (arrived.source.listing(), sent.source.listing());
        for entry in 0..here.len().min(there.len()) {
            let of = |listing: &skein_filemesh::core::tree::listing::Listing| {
                let path = listing.path(entry).escape_ascii().to_string();
                (path, listing.meta(entry), format!("{:?}", listing.kind(entry)))
            };
            assert_eq!(of(there), of(here));
        }
        assert_eq!(there.len(), here.len());
        assert_eq!(arrived.manifest.root, sent.manifest.root);
    }
}

/// A tree that is being sent.
pub struct Sent {
    pub source: Arc<TreeSource>,
    pub manifest: Manifest,
    pub leaves: LeafFile,
    reader: Mutex<TreeReader>,
}

impl Sent {
    pub fn bytes(&self, blocks: Range<u32>) -> Vec<u8> {
        let range = self.manifest.geometry.bytes_of(blocks);
        let (mut bytes, len) = (vec![], (range.end - range.start) as usize);
        self.reader.lock().unwrap().append_at(range.start, len, &mut bytes).unwrap();
        bytes
    }

    /// Gives `stage` these blocks, a few at a time.
    pub fn give(&self, stage: &mut TreeStage, blocks: Range<u32>) -> Result<(), FileError> {
        let mut at = blocks.start;
        while at < blocks.end {
            let end = blocks.end.min(at + 8);
            stage.write_at(self.manifest.geometry.block_offset(at), &self.bytes(at..end))?;
            at = end;
        }
        Ok(())
    }

    /// Proves every claim of `stage` as a resumed download does and gives it what is missing or
    /// false; the answer is how many blocks that were.
    pub fn repair(&self, stage: &mut TreeStage) -> u32 {
        let geometry = self.manifest.geometry;
        let claimed = stage.claimed();
        let is_proved = |stage: &mut TreeStage, block: u32| {
            let (mut bytes, mut expected) = (vec![], vec![]);
            let len = geometry.block_len(block) as usize;
            let read = stage.append_at(geometry.block_offset(block), len, &mut bytes);
            self.leaves.append_leaves(block, 1, &mut expected).unwrap();
            read.is_ok() && leaf(&bytes)[..] == expected[..]
        };
        // All proofs first, as a download does it.
        let missing: Vec<u32> = (0..geometry.block_count())
            .filter(|block| {
                !claimed.as_ref().is_some_and(|claimed| claimed.get(*block))
                    || !is_proved(stage, *block)
            })
            .collect();
        for block in &missing {
            self.give(stage, *block..block + 1).unwrap();
        }
        missing.len() as u32
    }
}
