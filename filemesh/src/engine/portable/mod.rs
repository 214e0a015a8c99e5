//! The engine for every kernel: plain reads and writes at offsets.

mod describe;
mod hash;
mod leaf_file;
pub(super) mod partial;
mod seed_file;
mod source;
pub(super) mod staged;
pub(super) mod state_file;
mod store_file;
mod whole;
pub(super) mod write_behind;

pub use describe::{DescribedFile, Hashes, Until, Verification, describe_file, verify_file};
pub use hash::{HashedFile, hash_file};
pub use leaf_file::{LeafFile, LeafFileWriter};
pub use partial::{Attributes, PartialFile};
pub use seed_file::SeedFile;
pub use store_file::StoreFile;
pub use whole::place_whole;
