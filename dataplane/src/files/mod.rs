//! Transfers through this process: files of the server's cache that agents fetch (seeds), and
//! files that an agent offers and the cache takes (fetches).
//!
//! The protocol runs in the file channel's session with [`skein_filemesh::core`]; files are touched
//! only by the threads of [`FilePool`]. [`FileService`] knows the transfers that control has
//! announced and decides who is a member: nobody else gets a byte.

mod fetch;
mod pace;
mod pool;
mod seed;
mod service;

pub use fetch::{FetchDisk, FetchOrder, OpenError, WriteJob};
pub use pace::Pace;
pub use pool::FilePool;
pub use seed::{OpenSeed, SeedOffer, leaves_path};
pub use service::{FileService, Role};

/// The end of a disk job, for the file channel that asked for it.
#[derive(Debug)]
pub enum FileMail {
    /// A seed's file was read behind what was in the buffer.
    Read(Vec<u8>, Result<(), String>),
    /// Leaves of a seed's file, 32 bytes each; `None`: they cannot be read.
    Leaves(Option<Vec<u8>>),
    /// A fetch's file is open, or why not.
    Opened(Result<Box<FetchDisk>, OpenError>),
    /// Proved blocks were written.
    Wrote {
        /// The file, back.
        disk: Box<FetchDisk>,
        /// The buffer they lay in, back.
        buffer: Vec<u8>,
        /// How many bytes, or why not.
        result: Result<u64, String>,
    },
    /// What the disk holds where an earlier run claims to have written.
    Checked(Box<FetchDisk>, Option<Vec<u8>>),
    /// The file is complete, flushed and in its place.
    Finished(Result<(), String>),
}
