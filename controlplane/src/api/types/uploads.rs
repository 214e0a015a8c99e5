//! Files in the server's cache.

use serde::{Deserialize, Serialize};

/// Query of PUT `/uploads`. The body is the file; `Content-Length` is required.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadQuery {
    /// The file's name (no folder).
    pub name: String,
    /// Permission bits, decimal (default 420 = 0o644).
    #[serde(default)]
    pub mode: Option<u32>,
    /// Time of last change (default: now).
    #[serde(default)]
    pub mtime_ms: Option<i64>,
    /// The body is the stream of a tree (`docs/filemesh.md`), not a file.
    #[serde(default)]
    pub tree: bool,
}

/// A file in the server's cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Give it as source of a transfer.
    pub upload_id: String,
    /// The file's name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 merkle root over leaves of 16 KiB (BEP 52), hex.
    pub root: String,
    /// Bytes of a piece.
    pub piece_bytes: u32,
    /// Permission bits.
    pub mode: u32,
    /// Time of last change at its source.
    #[serde(default)]
    pub mtime_ms: i64,
    /// It is the stream of a tree, not a file.
    #[serde(default)]
    pub tree: bool,
    /// When it was stored.
    pub created_ms: i64,
    /// When it leaves the cache unless a transfer uses it.
    pub expires_ms: i64,
}

/// All files in the cache.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct UploadList {
    /// In order of creation.
    pub uploads: Vec<Upload>,
    /// Bytes that the cache holds now.
    pub cache_bytes: u64,
    /// Bytes that it may hold.
    pub cache_bytes_max: u64,
}
