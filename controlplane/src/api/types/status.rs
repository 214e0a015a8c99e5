//! What a server is and how it does.

use serde::{Deserialize, Serialize};

use super::JoinTokenCreated;

/// What this server is and how it does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the control process.
    pub version: String,
    /// When the control process started.
    pub started_ms: i64,
    /// Its process id.
    pub pid: u32,
    /// The server's clock now.
    pub now_ms: i64,
    /// SHA-256 of the certificate authority's certificate (DER), hex.
    pub ca_sha256: String,
    /// Revision of the store; rises with every change.
    pub store_revision: u64,
    /// Newest revision of the routing table.
    pub table_revision: u64,
    /// Data processes that are connected.
    pub data_processes: Vec<DataProcess>,
    /// Known agents by state.
    pub agents: AgentCounts,
    /// Tasks and transfers that have not ended.
    pub tasks_running: u64,
    /// See `tasks_running`.
    pub transfers_running: u64,
    /// The join token that was made at first start, while the process that made it lives and it
    /// is valid. It is kept nowhere in the clear.
    pub first_join: Option<JoinTokenCreated>,
}

/// One connected data process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DataProcess {
    /// Name of the node.
    pub node_id: String,
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Shards that carry sessions.
    pub shards: u32,
    /// Address of the signal listener.
    pub signal_addr: String,
    /// Address of the data listener.
    pub data_addr: String,
    /// Address of the file listener.
    pub file_addr: String,
    /// Address of its `/metrics`.
    pub metrics_addr: String,
    /// `glommio` or `plain`, with the reason.
    pub disk_driver: String,
    /// Sessions that it carries.
    pub sessions: u64,
    /// Revision of the routing table that all its workers apply.
    pub table_applied: u64,
    /// Since when it is connected.
    pub connected_ms: i64,
}

/// Agents by state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AgentCounts {
    /// With a session.
    pub online: u64,
    /// Without a session, left in good order or never seen since the server started.
    pub offline: u64,
    /// Without a session, left without a word.
    pub lost: u64,
    /// Revoked (counted here alone).
    pub revoked: u64,
}
