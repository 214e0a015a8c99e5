//! What a swarm has, while it arrives and afterwards.

use super::super::arriving::{Arriving, Whole};
use super::super::fetch::FetchEnd;
use std::io;

/// Where the bytes are.
pub(super) enum Content {
    /// Still arriving.
    Partial(Box<Arriving>),
    /// All here, on its way to its place or there.
    Whole(Whole),
}

impl Content {
    /// Writes proved bytes. What comes after the end comes twice and is dropped.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), FetchEnd> {
        match self {
            Self::Partial(arriving) => arriving.write_at(offset, data),
            Self::Whole(_) => Ok(()),
        }
    }

    /// Hands to the kernel what waits in memory.
    pub fn write_waiting(&mut self) -> Result<(), FetchEnd> {
        match self {
            Self::Partial(arriving) => arriving.write_waiting(),
            Self::Whole(_) => Ok(()),
        }
    }

    /// Appends `len` bytes at `offset` to `out`.
    pub fn append_at(&mut self, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Partial(arriving) => {
                arriving.append_at(offset, len, out).map_err(io::Error::other)
            }
            Self::Whole(whole) => whole.append_at(offset, len, out),
        }
    }
}
