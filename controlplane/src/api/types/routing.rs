//! Streams (where records are written) and routes (which data id goes where).

use serde::{Deserialize, Serialize};

/// Makes (POST) or replaces (PUT) a stream: where records are written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamRequest {
    /// 1 to 64 of `A-Za-z0-9._-`, not beginning with a dot.
    pub name: String,
    /// Folder, absolute, inside one of the server's allowed roots (default: a folder of the
    /// stream's name below `DIR/data/sinks`).
    #[serde(default)]
    pub directory: Option<String>,
    /// File below the folder, from `{data_id} {date} {hour} {writer} {stream}`
    /// (default `{data_id}/{date}.{writer}.log`).
    #[serde(default)]
    pub path_template: Option<String>,
    /// `lines` (the records alone), `tagged` (with agent, lane and sequence) or `json`
    /// (default `lines`).
    #[serde(default)]
    pub format: Option<String>,
    /// Begin a new file at this size; 0: no limit (default 1 GiB).
    #[serde(default)]
    pub rotate_bytes: Option<u64>,
    /// Begin a new file after this time; 0: no limit (default 0).
    #[serde(default)]
    pub rotate_seconds: Option<u32>,
    /// Longest wait between flushes, 1 to 10,000 (default 100).
    #[serde(default)]
    pub flush_interval_ms: Option<u32>,
    /// `power`: acknowledged when it survives power loss; `process`: when it survives the death
    /// of the process (default `power`).
    #[serde(default)]
    pub durability: Option<String>,
}

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Allocated by the server.
    pub stream_id: u32,
    /// Unique name.
    pub name: String,
    /// `file`.
    pub kind: String,
    /// Folder.
    pub directory: String,
    /// File below the folder.
    pub path_template: String,
    /// `lines`, `tagged` or `json`.
    pub format: String,
    /// 0: no limit.
    pub rotate_bytes: u64,
    /// 0: no limit.
    pub rotate_seconds: u32,
    /// Longest wait between flushes.
    pub flush_interval_ms: u32,
    /// `power` or `process`.
    pub durability: String,
    /// When it was made.
    pub created_ms: i64,
}

/// All streams.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StreamList {
    /// In order of name.
    pub streams: Vec<Stream>,
}

/// Makes a route: which data id goes to which stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRequest {
    /// Name of the stream.
    pub stream: String,
    /// The data id (default: the server allocates the next from 1,500,000).
    #[serde(default)]
    pub data_id: Option<u32>,
    /// Unique name (default: `<data id>-<stream>`).
    #[serde(default)]
    pub name: Option<String>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Unique name.
    pub name: String,
    /// Which records.
    pub data_id: u32,
    /// To which stream.
    pub stream: String,
    /// See `stream`.
    pub stream_id: u32,
    /// When it was made.
    pub created_ms: i64,
}

/// All routes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RouteList {
    /// In order of data id, then name.
    pub routes: Vec<Route>,
}
