//! A file that an agent offered and that goes into the server's cache: its partial file, and the
//! leaves sidecar that lets it be seeded right after.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use skein_filemesh::core::bitfield::Bitfield;
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::merkle::Hash;
use skein_filemesh::core::peer_wire::info_hash;
use skein_filemesh::engine::{
    Attributes, FileError, LeafFileWriter, Owner, PartialFile, TargetDir,
};
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::{AgentId, TransferId};

use super::seed::leaves_path;

/// What control ordered.
#[derive(Debug)]
pub struct FetchOrder {
    /// Its transfer.
    pub transfer: TransferId,
    /// The agent that has the file.
    pub agent: AgentId,
    /// Its name in handshakes.
    pub info_hash: [u8; 20],
    /// What identifies the content.
    pub manifest: Manifest,
    /// Server time until which it is waited for.
    pub not_after_ms: i64,
    path: PathBuf,
}

impl FetchOrder {
    /// Checks the order.
    pub fn new(fetch: fleet::FetchFile) -> Result<Self, String> {
        let transfer = TransferId::from_slice(&fetch.transfer_id).map_err(|e| e.to_string())?;
        let info = fetch.file.as_ref().ok_or("the order names no file")?;
        let manifest = Manifest::from_info(info).map_err(|e| e.to_string())?;
        Ok(Self {
            transfer,
            agent: AgentId::parse(&fetch.agent_id).map_err(|e| e.to_string())?,
            info_hash: info_hash(&transfer.0, &manifest.root),
            manifest,
            not_after_ms: fetch.not_after_ms,
            path: PathBuf::from(fetch.path),
        })
    }

    /// Opens the partial file, allocating its space. Blocks: file threads only.
    pub fn open(&self) -> Result<FetchDisk, OpenError> {
        let (dir, state_dir, name) = self.place().map_err(OpenError::Failed)?;
        let mut file = PartialFile::open(dir, name, &self.transfer, &self.manifest, &state_dir)
            .map_err(|error| match error {
                FileError::Busy { .. } => OpenError::Busy,
                other => OpenError::Failed(other.to_string()),
            })?;
        file.keep_cached(); // it is served to its targets right after
        let leaves = LeafFileWriter::create(&leaves_path(&self.path))
            .map_err(|error| OpenError::Failed(error.to_string()))?;
        let has_leaves = Bitfield::new(self.manifest.geometry.piece_count());
        Ok(FetchDisk { file, leaves, has_leaves, manifest: self.manifest.clone() })
    }

    fn place(&self) -> Result<(TargetDir, PathBuf, &[u8]), String> {
        let directory = self.path.parent().ok_or("the cache path has no folder")?;
        let name = self.path.file_name().ok_or("the cache path has no name")?;
        let state_dir = directory.join(".fetch");
        fs::create_dir_all(&state_dir).map_err(|e| format!("{}: {e}", state_dir.display()))?;
        let dir = TargetDir::open(directory, false).map_err(|e| e.to_string())?;
        Ok((dir, state_dir, name.as_encoded_bytes()))
    }
}

/// Why a partial file is not open.
#[derive(Debug)]
pub enum OpenError {
    /// An earlier connection of the agent has it still; it may come again in a moment.
    Busy,
    /// The fetch has failed.
    Failed(String),
}

/// The disk side of one fetch. Owned by whoever works with it now: the session or a file thread.
#[derive(Debug)]
pub struct FetchDisk {
    file: PartialFile,
    leaves: LeafFileWriter,
    /// Pieces whose leaves are in the sidecar.
    has_leaves: Bitfield,
    manifest: Manifest,
}

/// What is proved and goes to the disk.
#[derive(Debug, Default)]
pub struct WriteJob {
    /// Bytes of a buffer, each range with its place in the file.
    pub blocks: Vec<(u64, Range<usize>)>,
    /// Leaves of pieces.
    pub leaves: Vec<(u32, Arc<[Hash]>)>,
}

impl FetchDisk {
    /// Blocks that an earlier run claims to have written.
    pub fn claimed(&self) -> Option<Bitfield> {
        self.file.claimed()
    }

    /// Writes; the answer is how many bytes of the file. Blocks: file threads only.
    pub fn write(&mut self, buffer: &[u8], job: &WriteJob) -> Result<u64, String> {
        for (piece, leaves) in &job.leaves {
            let put = self.leaves.put(&self.manifest.geometry, *piece, leaves);
            put.map_err(|e| e.to_string())?;
            self.has_leaves.set(*piece);
        }
        let mut bytes = 0;
        for (offset, data) in &job.blocks {
            self.file.write_at(*offset, &buffer[data.clone()]).map_err(|e| e.to_string())?;
            bytes += data.len() as u64;
        }
        Ok(bytes)
    }

    /// Reads back. Blocks: file threads only.
    pub fn read(&mut self, range: &Range<u64>) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        let bytes = (range.end - range.start) as usize;
        self.file.append_at(range.start, bytes, &mut data).ok().map(|()| data)
    }

    /// Completes the file: flushed, renamed, and its leaves with it if all came. Blocks: file
    /// threads only.
    pub fn finish(self, layer: Option<Vec<Hash>>) -> Result<(), String> {
        let owner = Owner { uid: None, gid: None };
        let attributes = Attributes { mode: 0o600, owner, mtime_ms: None };
        let stamp = self.file.finish(&attributes).map_err(|e| e.to_string())?;
        let one_block = self.manifest.geometry.block_count() == 1; // its root is its leaf
        if let Some(layer) = layer.filter(|_| one_block || self.has_leaves.is_full())
            && let Err(error) = self.leaves.finish(&self.manifest, layer, &stamp)
        {
            tracing::warn!(%error, "no leaves are kept; the file is hashed when it is served");
        }
        Ok(())
    }
}
