//! The state of a partial file: which of its blocks an earlier run says to have written.
//!
//! Layout, big-endian:
//!
//! ```text
//!   0  magic "SKNPART\0"   8  version u32     12  piece_bytes u32   16  size_bytes u64
//!  24  root 32 bytes      56  transfer id 16  72  device u64        80  inode u64
//!  88  zero ... 124  header crc32c u32
//! 128  one bit per 16 KiB block, bit 0 is the highest of the first byte
//! ```
//!
//! A bit is a claim, never a fact: a block counts only after its bytes were read back and proved
//! against its leaf. That is why the order in which blocks and bits reach the disk does not matter
//! and nothing is flushed: a bit without its block fails its proof, a block without its bit is
//! fetched again. It is also why bits are set for whole groups of [`GROUP_BLOCKS`] before the first
//! block of a group is written: one small write per 256 KiB, and after kill -9, where the page
//! cache keeps everything, no block is lost but the one under way.

use super::partial::absent;
use crate::core::bitfield::{Bitfield, byte_len};
use crate::core::geometry::{BLOCK_BYTES, Geometry};
use crate::core::merkle::Hash;
use crate::core::peer_wire::REQUEST_BYTES_MAX;
use crate::engine::FileStamp;
use crate::engine::error::{Context, FileError};
use skein_wire::ids::TransferId;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"SKNPART\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;
const HEADER_CRC_AT: usize = 124;

/// Blocks that are claimed together: one request of the largest size.
const GROUP_BLOCKS: u32 = REQUEST_BYTES_MAX / BLOCK_BYTES;

/// An open state file.
#[derive(Debug)]
pub(in crate::engine) struct StateFile {
    file: File,
    path: PathBuf,
    blocks: Bitfield,
}

/// What a state file must be of.
pub(in crate::engine) struct StateOf<'a> {
    pub transfer: &'a TransferId,
    pub geometry: &'a Geometry,
    pub root: &'a Hash,
    /// The partial file.
    pub stamp: &'a FileStamp,
}

impl StateFile {
    pub fn path_in(state_dir: &Path, transfer: &TransferId) -> PathBuf {
        state_dir.join(format!("{transfer}.state"))
    }

    /// Opens the state of a partial file, or starts it anew if there is none that fits.
    pub fn open(state_dir: &Path, of: &StateOf<'_>) -> Result<Self, FileError> {
        let path = Self::path_in(state_dir, of.transfer);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).on("open", &path)?;
        let header = encode(of);
        let count = of.geometry.block_count();
        let mut bytes = vec![0; HEADER_BYTES + byte_len(count)];
        let whole = file.read_exact_at(&mut bytes, 0).is_ok();
        let claims = (whole && bytes[..HEADER_BYTES] == header)
            .then(|| Bitfield::from_bytes(&bytes[HEADER_BYTES..], count).ok())
            .flatten();
        if let Some(blocks) = claims {
            return Ok(Self { file, path, blocks });
        }
        bytes[HEADER_BYTES..].fill(0);
        // The header goes last: without it the file is not taken for a state.
        file.set_len(0).on("truncate", &path)?;
        file.write_all_at(&bytes[HEADER_BYTES..], HEADER_BYTES as u64).on("write", &path)?;
        file.write_all_at(&header, 0).on("write", &path)?;
        Ok(Self { file, path, blocks: Bitfield::new(count) })
    }

    /// The blocks that are claimed.
    pub fn blocks(&self) -> &Bitfield {
        &self.blocks
    }

    /// The blocks that an earlier run claims, if this is not the first.
    pub fn claimed(&self, is_new: bool) -> Option<Bitfield> {
        let claims = !is_new && self.blocks.next_one(0).is_some();
        claims.then(|| self.blocks.clone())
    }

    /// Claims the blocks that `len` bytes at `offset` of `path` are, which must be whole ones.
    pub fn claim_bytes(
        &mut self,
        geometry: &Geometry,
        offset: u64,
        len: usize,
        path: &Path,
    ) -> Result<Range<u32>, FileError> {
        let end = offset + len as u64;
        let whole = end.is_multiple_of(u64::from(BLOCK_BYTES)) || end == geometry.size_bytes();
        let start = geometry.block_at(offset).filter(|_| whole && end <= geometry.size_bytes());
        let start = start.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput));
        let start = start.on("write other than whole blocks to", path)?;
        let blocks = start..end.div_ceil(u64::from(BLOCK_BYTES)) as u32;
        self.claim(blocks.clone())?;
        Ok(blocks)
    }

    /// Claims the groups of `blocks`, which are about to be written.
    fn claim(&mut self, blocks: Range<u32>) -> Result<(), FileError> {
        let start = blocks.start / GROUP_BLOCKS * GROUP_BLOCKS;
        let end = blocks.end.next_multiple_of(GROUP_BLOCKS).min(self.blocks.len());
        let blocks = start..end;
        if self.blocks.next_zero(start).is_none_or(|zero| zero >= end) {
            return Ok(());
        }
        self.blocks.set_range(blocks.clone());
        let bytes = blocks.start as usize / 8..byte_len(blocks.end);
        let at = (HEADER_BYTES + bytes.start) as u64;
        self.file.write_all_at(&self.blocks.to_bytes(bytes), at).on("write", &self.path)
    }

    /// Removes the file, if it is still there.
    pub fn remove(&self) -> Result<(), FileError> {
        absent(fs::remove_file(&self.path)).on("remove", &self.path)
    }
}

fn encode(of: &StateOf<'_>) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, MAGIC);
    put(8, &VERSION.to_be_bytes());
    put(12, &of.geometry.piece_bytes().to_be_bytes());
    put(16, &of.geometry.size_bytes().to_be_bytes());
    put(24, of.root);
    put(56, &of.transfer.0);
    put(72, &of.stamp.device.to_be_bytes());
    put(80, &of.stamp.inode.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[..HEADER_CRC_AT]);
    bytes[HEADER_CRC_AT..].copy_from_slice(&crc.to_be_bytes());
    bytes
}
