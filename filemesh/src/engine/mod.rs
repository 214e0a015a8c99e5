//! The part that touches files: hashing and reading a source, writing a target safely.
//!
//! [`portable`] serves every kernel since 3.10 with plain system calls; [`tree`] does so for whole
//! directories. What is common to any
//! engine stands here: errors, target directories, owners, and what a file looked like when it was
//! hashed. All calls block; callers on an event loop use a thread.

mod dir;
mod error;
pub mod inbound;
mod landing;
pub mod memory;
mod owner;
pub mod portable;
pub mod queue;
pub mod recent;
pub mod reserve;
mod stamp;
mod sys;
pub mod tree;

pub use crate::core::name::check_file_name;
pub use dir::TargetDir;
pub use error::FileError;
pub use inbound::{Inbound, Taken};
pub use landing::Landing;
pub use memory::{BlockMemory, MemoryCounters, View};
pub use owner::Owner;
pub use portable::{
    Attributes, DescribedFile, HashedFile, Hashes, LeafFile, LeafFileWriter, PartialFile, SeedFile,
    StoreFile, Until, Verification, describe_file, hash_file, place_whole, verify_file,
};
pub use queue::{EngineKind, QueueFile, WriteQueue};
pub use recent::RecentBlocks;
pub use stamp::FileStamp;
pub use sys::append_at;
