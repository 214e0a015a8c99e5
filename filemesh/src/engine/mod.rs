//! The part that touches files: hashing and reading a source, writing a target safely.
//!
//! [`portable`] serves every kernel since 3.10 with plain system calls. What is common to any
//! engine stands here: errors, target directories, owners, and what a file looked like when it was
//! hashed. All calls block; callers on an event loop use a thread.

mod dir;
mod error;
mod owner;
pub mod portable;
mod stamp;
mod sys;

pub use crate::core::name::check_file_name;
pub use dir::TargetDir;
pub use error::FileError;
pub use owner::Owner;
pub use portable::{
    Attributes, HashedFile, LeafFile, LeafFileWriter, PartialFile, SeedFile, StoreFile, hash_file,
};
pub use stamp::FileStamp;
pub use sys::append_at;
