//! Trees on disk: a directory read as one stream, and a stream written as a directory.
//!
//! Sending: [`scan()`] walks a source under [`ScanRules`] into a [`TreeSource`], [`hash_tree`] hashes
//! its stream, a [`TreeReader`] reads it at any offset; nothing is ever packed into a file.
//! Receiving: a [`TreeStage`] takes proved blocks in any order, writes each file's bytes where they
//! will stay, and puts the whole in place at the end.
//!
//! Both sides work below one open directory, component by component without following links.

mod ahead;
mod beside;
mod dirs;
mod filter;
mod hash;
mod holes;
mod owners;
mod pick;
mod place;
mod remove;
mod scan;
mod small;
mod source;
mod stage;
mod sys;
mod writer;

pub use filter::{Filter, Pattern};
pub use hash::hash_tree;
pub use owners::Ownership;
pub use pick::{PATHS_MAX, Picked, expand, is_dense_file};
pub use scan::{Links, ScanRules, Skipped, Specials, scan, scan_picked};
pub use source::{TreeReader, TreeSource};
pub use stage::{CONTENT, Existing, Flush, TreeOptions, TreeStage};
