//! Open directories of a tree, so that a file is opened by its own name alone.
//!
//! A directory is reached from the root one component at a time, never through a link, and stays
//! open while it is in use: the stream's order goes directory by directory, so nearly every file
//! costs no walk at all.

use super::sys;
use crate::core::tree::listing::Listing;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Directories that stay open; more than any path is deep costs descriptors and gains little.
const OPEN_MAX: usize = 32;

/// The directories of a tree.
#[derive(Debug)]
pub(super) struct Dirs {
    root: Arc<OwnedFd>,
    /// Most recently used first.
    open: VecDeque<(u32, Arc<OwnedFd>)>,
    /// Directories that are found elsewhere than where the listing has them: paths below the root,
    /// by entry.
    elsewhere: Arc<HashMap<u32, Vec<u8>>>,
}

impl Dirs {
    pub fn new(root: Arc<OwnedFd>) -> Self {
        Self::with(root, Arc::default())
    }

    pub fn with(root: Arc<OwnedFd>, elsewhere: Arc<HashMap<u32, Vec<u8>>>) -> Self {
        Self { root, open: VecDeque::new(), elsewhere }
    }

    /// The root.
    pub fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// Directory `entry` of `listing`, open.
    pub fn get(&mut self, listing: &Listing, entry: u32) -> io::Result<Arc<OwnedFd>> {
        // The names from the nearest open directory down to this one.
        let mut below = vec![];
        let mut at = entry;
        let mut dir = loop {
            if at == 0 {
                break self.root.clone();
            }
            if let Some(found) = self.open.iter().position(|(open, _)| *open == at) {
                // What is used stays at the front.
                let found = self.open.remove(found).map(|found| found.1);
                let Some(found) = found else { continue };
                self.open.push_front((at, found.clone()));
                break found;
            }
            if let Some(path) = self.elsewhere.get(&at) {
                break self.keep(at, walk(&self.root, path)?);
            }
            below.push(at);
            at = listing.parent(at);
        };
        for entry in below.into_iter().rev() {
            let open = sys::open_dir(dir.as_fd(), listing.name(entry))?;
            dir = self.keep(entry, Arc::new(open));
        }
        Ok(dir)
    }

    fn keep(&mut self, entry: u32, dir: Arc<OwnedFd>) -> Arc<OwnedFd> {
        self.open.truncate(OPEN_MAX - 1);
        self.open.push_front((entry, dir.clone()));
        dir
    }
}

/// The directory at `path` below `root`.
pub(super) fn walk(root: &Arc<OwnedFd>, path: &[u8]) -> io::Result<Arc<OwnedFd>> {
    let mut dir = root.clone();
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        dir = Arc::new(sys::open_dir(dir.as_fd(), name)?);
    }
    Ok(dir)
}
