//! The part that touches files: hashing and reading a source, writing a target safely.
//!
//! [`portable`] serves every kernel since 3.10 with plain system calls; [`tree`] does so for whole
//! directories. What is common to any
//! engine stands here: errors, target directories, owners, and what a file looked like when it was
//! hashed. All calls block; callers on an event loop use a thread.

mod dir;
mod error;
mod owner;
pub mod portable;
mod stamp;
mod sys;
pub mod tree;

pub use crate::core::name::check_file_name;
pub use dir::TargetDir;
pub use error::FileError;
pub use owner::Owner;
pub use portable::{
    Attributes, DescribedFile, HashedFile, Hashes, LeafFile, LeafFileWriter, PartialFile, SeedFile,
    StoreFile, Until, Verification, describe_file, hash_file, verify_file,
};
pub use stamp::FileStamp;
