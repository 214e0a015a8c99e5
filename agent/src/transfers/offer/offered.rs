//! What is offered: a file as it is, or whatever a path stands for as a tree.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skein_filemesh::engine::tree::{
    Filter, Links, Pattern, Picked, ScanRules, TreeReader, TreeSource, expand, hash_tree,
    is_dense_file, scan_picked,
};
use skein_filemesh::engine::{FileError, FileStamp, HashedFile, SeedFile, hash_file};
use skein_wire::signal::v1::{LinkPolicy, OfferFile, TreeRules};

use crate::paths::{Access, PathRules};

/// What is offered.
pub(super) enum Offered {
    /// The open file, and its path.
    File(File, PathBuf),
    /// Files, directories and links.
    Tree(Arc<TreeSource>),
}

/// One reader of it.
pub(super) enum Seed {
    File(SeedFile),
    Tree(Box<TreeReader>),
}

/// Looks up what `order` means, under `rules`.
pub(super) fn find(rules: &PathRules, order: &OfferFile) -> Result<Offered, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let Some(asked) = &order.tree else {
        let (file, real) = rules.open_file(&order.path).map_err(|error| text(&error))?;
        return Ok(Offered::File(file, real));
    };
    let given = expand(Path::new(&order.path)).map_err(|error| text(&error))?;
    let mut picked = vec![];
    for path in &given {
        let name = path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))?;
        // A directory, or else a file; the latter's error names both.
        let real = match rules.open_folder(Access::Read, name, false) {
            Ok(folder) => folder.path,
            Err(_) => {
                let (file, real) = rules.open_file(name).map_err(|error| text(&error))?;
                let as_it_is = given.len() == 1
                    && *asked
                        == TreeRules {
                            hard_links: asked.hard_links,
                            name: asked.name.clone(),
                            ..TreeRules::default()
                        };
                if as_it_is && is_dense_file(&file).map_err(|error| text(&error))? {
                    return Ok(Offered::File(file, real));
                }
                real
            }
        };
        picked.push(Picked::new(path, real));
    }
    if !asked.name.is_empty() {
        match &mut picked[..] {
            [Picked { name: Some(name), .. }] => *name = asked.name.clone().into_bytes(),
            _ => return Err("a new name is for one file or directory".into()),
        }
    }
    let tree = scan_rules(asked).and_then(|scan| scan_picked(&picked, &scan));
    let tree = tree.map_err(|error| text(&error))?;
    if tree.listing().len() == 1 {
        return Err(format!("{}: nothing there is taken", order.path));
    }
    for entry in 1..tree.listing().len() {
        let path = tree.path_of(entry);
        rules.check(Access::Read, &path).map_err(|error| text(&error))?;
    }
    Ok(Offered::Tree(Arc::new(tree)))
}

fn scan_rules(asked: &TreeRules) -> Result<ScanRules, FileError> {
    let matching: Vec<_> = asked.matching.iter().cloned().map(Pattern::Regex).collect();
    let exclude: Vec<_> = asked.exclude.iter().cloned().map(Pattern::Glob).collect();
    Ok(ScanRules {
        filter: Filter::new(&matching, &exclude)?,
        links: match asked.links() {
            LinkPolicy::Keep => Links::Keep,
            LinkPolicy::Follow => Links::Follow,
            LinkPolicy::Skip => Links::Skip,
        },
        owner_names: asked.owner_names,
        hard_links: asked.hard_links,
        plain_modes: asked.plain_modes,
        ..ScanRules::default()
    })
}

impl Offered {
    /// Bytes that would travel.
    pub fn size_bytes(&self) -> Result<u64, String> {
        match self {
            Self::File(file, real) => {
                let metadata = file.metadata();
                metadata.map(|of| of.len()).map_err(|error| format!("{}: {error}", real.display()))
            }
            Self::Tree(tree) => Ok(tree.layout().stream_bytes()),
        }
    }

    /// Hashes it; the leaves go to `leaves`.
    pub fn hash(
        &self,
        piece_bytes: Option<u32>,
        leaves: &Path,
        progress: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<HashedFile, String> {
        let (file, real) = match self {
            Self::Tree(tree) => {
                let hashed = hash_tree(tree, piece_bytes, leaves, progress);
                return hashed.map_err(|error| error.to_string());
            }
            Self::File(file, real) => (file, real),
        };
        let hashed = hash_file(&handle_path(file), piece_bytes, leaves, progress);
        let mut hashed = hashed.map_err(|error| format!("{}: {error}", real.display()))?;
        let name = real.file_name().and_then(|name| name.to_str());
        hashed.manifest.name = name.ok_or("the file's name is not UTF-8")?.to_owned();
        Ok(hashed)
    }

    /// A reader of what has `stamp`.
    pub fn seed(&self, stamp: &FileStamp) -> Result<Seed, FileError> {
        match self {
            Self::File(file, _) => SeedFile::open(&handle_path(file), stamp).map(Seed::File),
            Self::Tree(tree) => Ok(Seed::Tree(Box::new(TreeReader::new(tree.clone())))),
        }
    }
}

impl Seed {
    /// Appends exactly `len` bytes at `offset` to `out`.
    pub fn append_at(
        &mut self,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        match self {
            Self::File(file) => file.append_at(offset, len, out),
            Self::Tree(tree) => tree.append_at(offset, len, out),
        }
    }
}

/// A path that means the open file itself.
fn handle_path(file: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}
