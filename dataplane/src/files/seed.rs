//! A file of the server's cache that is offered to the members of a transfer.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::merkle::Hash;
use skein_filemesh::core::peer_wire::info_hash;
use skein_filemesh::engine::{LeafFile, SeedFile, hash_file};
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::{AgentId, TransferId};

use super::pace::Pace;

/// What control announced.
#[derive(Debug)]
pub struct SeedOffer {
    /// Its transfer.
    pub transfer: TransferId,
    /// Its name in handshakes.
    pub info_hash: [u8; 20],
    /// What identifies the content.
    pub manifest: Manifest,
    /// Server time until which members are served.
    pub not_after_ms: i64,
    path: PathBuf,
    members: HashSet<AgentId>,
    /// Of all members together, over all announcements.
    pace: Option<Arc<Pace>>,
    open: OnceLock<Result<OpenSeed, String>>,
    sent: Arc<Sent>,
}

/// Content that was sent of one transfer, over all its announcements.
#[derive(Debug, Default)]
struct Sent {
    bytes: AtomicU64,
    told_bytes: AtomicU64,
}

/// The open file and its hashes.
#[derive(Debug)]
pub struct OpenSeed {
    /// The content.
    pub file: SeedFile,
    /// Leaves and piece layer.
    pub leaves: LeafFile,
}

/// Where the leaves of a cached file are kept, by control as well: beside it.
pub fn leaves_path(path: &Path) -> PathBuf {
    path.with_extension("leaves")
}

impl SeedOffer {
    /// Checks the announcement.
    pub fn new(seed: fleet::SeedFile) -> Result<Self, String> {
        let transfer = TransferId::from_slice(&seed.transfer_id).map_err(|e| e.to_string())?;
        let info = seed.file.as_ref().ok_or("the announcement names no file")?;
        let manifest = Manifest::from_info(info).map_err(|e| e.to_string())?;
        let members = seed.agent_ids.iter().filter_map(|id| AgentId::parse(id).ok()).collect();
        Ok(Self {
            transfer,
            info_hash: info_hash(&transfer.0, &manifest.root),
            manifest,
            not_after_ms: seed.not_after_ms,
            path: PathBuf::from(seed.path),
            members,
            pace: (seed.rate_limit_bytes_per_s > 0)
                .then(|| Arc::new(Pace::new(seed.rate_limit_bytes_per_s))),
            open: OnceLock::new(),
            sent: Arc::default(),
        })
    }

    /// Goes on counting, and keeping the rate, where an earlier announcement of the same transfer is.
    pub fn continues(&mut self, earlier: &Self) {
        self.sent = earlier.sent.clone();
        let rate = |pace: &Arc<Pace>| pace.bytes_per_s();
        if earlier.pace.as_ref().map(rate) == self.pace.as_ref().map(rate) {
            self.pace.clone_from(&earlier.pace);
        }
    }

    /// Content is on its way to a member.
    pub fn count_sent(&self, bytes: u32) {
        self.sent.bytes.fetch_add(bytes.into(), Ordering::Relaxed);
        if let Some(pace) = &self.pace {
            pace.sent(bytes);
        }
    }

    /// Whether the rate that all members share lets one be sent something now.
    pub fn may_send(&self) -> bool {
        self.pace.as_ref().is_none_or(|pace| pace.is_free())
    }

    /// Content that was sent, in bytes.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.bytes.load(Ordering::Relaxed)
    }

    /// What was sent, if control was not told of that; [`Self::told`] says that it was.
    pub fn untold(&self) -> Option<u64> {
        let bytes = self.sent_bytes();
        (bytes != self.sent.told_bytes.load(Ordering::Relaxed)).then_some(bytes)
    }

    /// Control was told of so many bytes.
    pub fn told(&self, bytes: u64) {
        self.sent.told_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether this agent may fetch the file now.
    pub fn admits(&self, agent: &AgentId, unix_ms: i64) -> bool {
        unix_ms <= self.not_after_ms && self.members.contains(agent)
    }

    /// The file once it is open, or why it cannot be; `None`: not yet.
    pub fn opened(&self) -> Option<Result<&OpenSeed, &str>> {
        self.open.get().map(|result| result.as_ref().map_err(String::as_str))
    }

    /// Opens the file and its hashes. Blocks: file threads only. A file without hashes beside it
    /// is hashed now.
    pub fn open(&self) {
        let result = open(&self.path, &self.manifest);
        if let Err(error) = &result {
            tracing::error!(transfer = %self.transfer, %error, "cannot serve a file");
        }
        let _ = self.open.set(result); // a second opener found the same
    }
}

fn open(path: &Path, manifest: &Manifest) -> Result<OpenSeed, String> {
    let fits = |leaves: &LeafFile| {
        leaves.tree().root() == root_of(manifest) && leaves.tree().geometry() == manifest.geometry
    };
    let beside = leaves_path(path);
    let kept = LeafFile::open(&beside).ok().filter(fits);
    let kept = kept.and_then(|leaves| {
        let file = SeedFile::open(path, leaves.stamp()).ok()?;
        Some(OpenSeed { file, leaves })
    });
    if let Some(open) = kept {
        return Ok(open);
    }
    let piece_bytes = Some(manifest.geometry.piece_bytes());
    let hashed = hash_file(path, piece_bytes, &beside, |_| ControlFlow::Continue(()))
        .map_err(|e| e.to_string())?;
    if !fits(&hashed.leaves) {
        return Err(format!("{} is not the file that was announced", path.display()));
    }
    let file = SeedFile::open(path, &hashed.stamp).map_err(|e| e.to_string())?;
    Ok(OpenSeed { file, leaves: hashed.leaves })
}

fn root_of(manifest: &Manifest) -> Hash {
    manifest.root
}
