//! The leaves sidecar: all leaves and the piece layer of one file, so that it is hashed once.
//!
//! Layout, big-endian; `docs/filemesh.md` has the table:
//!
//! ```text
//!   0  magic "SKNLEAF\0"   8  version u32     12  piece_bytes u32   16  size_bytes u64
//!  24  root 32 bytes      56  leaves u32      60  layer u32         64  device u64
//!  72  inode u64          80  mtime_ns i64    88  body crc32c u32   92  zero ... 124  header crc32c u32
//! 128  leaves, 32 bytes each, then the piece layer
//! ```
//!
//! It is written under a temporary name and renamed when complete, without a flush: after a power
//! loss the CRCs and the root tell, and the file is hashed again.

use crate::core::geometry::Geometry;
use crate::core::manifest::Manifest;
use crate::core::merkle::{HASH_BYTES, Hash, hashes_in};
use crate::core::piece_tree::PieceTree;
use crate::engine::error::{Context, FileError};
use crate::engine::{FileStamp, sys};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"SKNLEAF\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;
const HEADER_CRC_AT: usize = 124;

/// Leaves that are written at once.
const BATCH: usize = 1_024;

/// Bytes that are read at once while the body's CRC is computed.
const CRC_READ_BYTES: usize = 256 * 1024;

/// A complete sidecar.
#[derive(Debug)]
pub struct LeafFile {
    file: File,
    path: PathBuf,
    stamp: FileStamp,
    tree: Arc<PieceTree>,
}

impl LeafFile {
    /// Opens a sidecar and checks all of it: CRCs, and that its piece layer leads to its root.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let refuse = |why| FileError::Sidecar { path: path.to_path_buf(), why };
        let file = File::open(path).on("open", path)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).on("read", path)?;
        let header = Header::decode(&header).map_err(refuse)?;
        let geometry = Geometry::new(header.stamp.size_bytes, header.piece_bytes)
            .map_err(|_| refuse("its sizes are out of bounds"))?;
        let body_len = body_len(&geometry);
        if file.metadata().on("look at", path)?.len() != HEADER_BYTES as u64 + body_len {
            return Err(refuse("its length is wrong"));
        }
        if body_crc(&file, body_len).on("read", path)? != header.body_crc {
            return Err(refuse("its content is damaged"));
        }
        let mut layer = Vec::new();
        let layer_len = geometry.piece_count() as usize * HASH_BYTES;
        let layer_at = HEADER_BYTES as u64 + body_len - layer_len as u64;
        sys::append_at(&file, layer_at, layer_len, &mut layer).on("read", path)?;
        let tree = PieceTree::new(geometry, hashes_in(&layer).collect(), &header.root)
            .map_err(|_| refuse("its piece layer does not lead to its root"))?;
        let path = path.to_path_buf();
        Ok(Self { file, path, stamp: header.stamp, tree: Arc::new(tree) })
    }

    /// Root, piece layer and sizes.
    pub fn tree(&self) -> &Arc<PieceTree> {
        &self.tree
    }

    /// What the file looked like when it was hashed (without its change time).
    pub fn stamp(&self) -> &FileStamp {
        &self.stamp
    }

    /// Appends the 32 bytes of each of `count` leaves from `first` on to `out`; on failure `out`
    /// is as before.
    pub fn append_leaves(
        &self,
        first: u32,
        count: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        let end = u64::from(first) + u64::from(count);
        if end > u64::from(self.tree.geometry().block_count()) {
            let why = "leaves past its end were asked for";
            return Err(FileError::Sidecar { path: self.path.clone(), why });
        }
        let at = leaf_at(first);
        sys::append_at(&self.file, at, count as usize * HASH_BYTES, out).on("read", &self.path)
    }
}

/// A sidecar that is being written, from front to back or piece by piece.
#[derive(Debug)]
pub struct LeafFileWriter {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    batch: Vec<u8>,
    /// Leaves before the batch.
    flushed: u32,
    finished: bool,
}

impl LeafFileWriter {
    /// Starts a sidecar that will be at `path` when it is finished.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&temporary).on("create", &temporary)?;
        let path = path.to_path_buf();
        let batch = Vec::with_capacity(BATCH * HASH_BYTES);
        Ok(Self { file, path, temporary, batch, flushed: 0, finished: false })
    }

    /// Adds the next leaf.
    pub fn push(&mut self, leaf: Hash) -> Result<(), FileError> {
        self.batch.extend_from_slice(&leaf);
        if self.batch.len() == BATCH * HASH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), FileError> {
        self.file.write_all_at(&self.batch, leaf_at(self.flushed)).on("write", &self.temporary)?;
        self.flushed += (self.batch.len() / HASH_BYTES) as u32;
        self.batch.clear();
        Ok(())
    }

    /// Writes the leaves of `piece`, which may be padded, at their place.
    pub fn put(&self, geometry: &Geometry, piece: u32, leaves: &[Hash]) -> Result<(), FileError> {
        let blocks = geometry.blocks_of(piece);
        let within = &leaves[..leaves.len().min(blocks.len())];
        let at = leaf_at(blocks.start);
        self.file.write_all_at(within.as_flattened(), at).on("write", &self.temporary)
    }

    /// Completes the sidecar of the file that `manifest` and `layer` describe and that looks like
    /// `stamp`.
    pub fn finish(
        mut self,
        manifest: &Manifest,
        layer: Vec<Hash>,
        stamp: &FileStamp,
    ) -> Result<LeafFile, FileError> {
        self.flush()?;
        let geometry = manifest.geometry;
        // A file of one block has a root that is its leaf, which nobody sends.
        if geometry.block_count() == 1 {
            self.put(&geometry, 0, &[manifest.root])?;
        }
        let layer_at = leaf_at(geometry.block_count());
        self.file.write_all_at(layer.as_flattened(), layer_at).on("write", &self.temporary)?;
        let body_crc = body_crc(&self.file, body_len(&geometry)).on("read", &self.temporary)?;
        let header = Header {
            piece_bytes: geometry.piece_bytes(),
            root: manifest.root,
            stamp: FileStamp { size_bytes: geometry.size_bytes(), ctime_ns: 0, ..*stamp },
            body_crc,
        };
        self.file.write_all_at(&header.encode(&geometry), 0).on("write", &self.temporary)?;
        fs::rename(&self.temporary, &self.path).on("rename", &self.temporary)?;
        self.finished = true;
        LeafFile::open(&self.path)
    }
}

impl Drop for LeafFileWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.temporary); // what is left is harmless and overwritten
        }
    }
}

fn leaf_at(leaf: u32) -> u64 {
    (HEADER_BYTES + leaf as usize * HASH_BYTES) as u64
}

fn body_len(geometry: &Geometry) -> u64 {
    (u64::from(geometry.block_count()) + u64::from(geometry.piece_count())) * HASH_BYTES as u64
}

fn body_crc(file: &File, body_len: u64) -> std::io::Result<u32> {
    let (mut crc, mut at, mut buf) = (0, 0, Vec::new());
    while at < body_len {
        let len = (body_len - at).min(CRC_READ_BYTES as u64);
        buf.clear();
        sys::append_at(file, HEADER_BYTES as u64 + at, len as usize, &mut buf)?;
        crc = crc32c::crc32c_append(crc, &buf);
        at += len;
    }
    Ok(crc)
}

struct Header {
    piece_bytes: u32,
    root: Hash,
    stamp: FileStamp,
    body_crc: u32,
}

impl Header {
    fn encode(&self, geometry: &Geometry) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(8, &VERSION.to_be_bytes());
        put(12, &self.piece_bytes.to_be_bytes());
        put(16, &self.stamp.size_bytes.to_be_bytes());
        put(24, &self.root);
        put(56, &geometry.block_count().to_be_bytes());
        put(60, &geometry.piece_count().to_be_bytes());
        put(64, &self.stamp.device.to_be_bytes());
        put(72, &self.stamp.inode.to_be_bytes());
        put(80, &self.stamp.mtime_ns.to_be_bytes());
        put(88, &self.body_crc.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, &'static str> {
        fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            let mut field = [0; N];
            field.copy_from_slice(&bytes[at..at + N]);
            field
        }
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC_AT]);
        if &bytes[..8] != MAGIC {
            return Err("it is no leaves sidecar");
        }
        if u32::from_be_bytes(field(bytes, 8)) != VERSION {
            return Err("its version is unknown");
        }
        if u32::from_be_bytes(field(bytes, HEADER_CRC_AT)) != crc {
            return Err("its header is damaged");
        }
        Ok(Self {
            piece_bytes: u32::from_be_bytes(field(bytes, 12)),
            root: field(bytes, 24),
            stamp: FileStamp {
                size_bytes: u64::from_be_bytes(field(bytes, 16)),
                device: u64::from_be_bytes(field(bytes, 64)),
                inode: u64::from_be_bytes(field(bytes, 72)),
                mtime_ns: i64::from_be_bytes(field(bytes, 80)),
                ctime_ns: 0,
            },
            body_crc: u32::from_be_bytes(field(bytes, 88)),
        })
    }
}
