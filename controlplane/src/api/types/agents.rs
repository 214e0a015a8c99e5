//! Agents: lists, labels, revocation, pings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Query of GET `/agents`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentsQuery {
    /// Which agents; empty or absent: all.
    pub selector: Option<String>,
    /// Continue after this agent id (the `next` of the page before).
    pub after: Option<String>,
    /// At most this many (default and limit 10,000).
    pub limit: Option<usize>,
}

/// A page of agents, in order of agent id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AgentList {
    /// The page.
    pub agents: Vec<Agent>,
    /// How many agents the selector matches in all.
    pub total: u64,
    /// Give as `after` for the next page; absent on the last.
    pub next: Option<String>,
}

/// Whether an agent can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// It has a session.
    Online,
    /// It left in good order, or has not been seen since the server started.
    Offline,
    /// Its session ended without a word: heartbeats stopped or the connection broke.
    Lost,
    /// Its certificate is revoked.
    Revoked,
}

/// One agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Agent {
    /// Its id, stable over restarts.
    pub agent_id: String,
    /// Whether it can be reached.
    pub state: AgentState,
    /// Since when it is in this state.
    pub state_since_ms: i64,
    /// Why, when not online.
    pub state_reason: String,
    /// Host name.
    pub hostname: String,
    /// Addresses of the host.
    pub ips: Vec<String>,
    /// Labels: the agent's own, overridden by those that operators set.
    pub labels: BTreeMap<String, String>,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Cloud area.
    pub cloud_id: i32,
    /// Slowly changing facts.
    pub facts: AgentFacts,
    /// Load of the agent itself, newest report; absent before the first.
    pub load: Option<AgentLoad>,
    /// Address that the session comes from; empty when not online.
    pub remote_addr: String,
    /// When it enrolled first.
    pub enrolled_ms: i64,
    /// Serial of its newest certificate, hex.
    pub certificate_serial: String,
    /// When that certificate ends.
    pub certificate_not_after_ms: i64,
}

/// What an agent knows of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentFacts {
    /// `linux`.
    pub os: String,
    /// For example `Debian GNU/Linux 12`.
    pub os_version: String,
    /// Kernel release.
    pub kernel: String,
    /// For example `x86_64`.
    pub arch: String,
    /// Logical CPUs.
    pub cpu_count: u32,
    /// Main memory.
    pub memory_bytes: u64,
    /// Version of the agent.
    pub agent_version: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// 12 hex digits of the first physical interface.
    pub mac: String,
    /// When the agent's worker started.
    pub agent_start_ms: i64,
    /// Where its `/metrics` listens; empty when off.
    pub metrics_addr: String,
    /// Where other agents reach it for files; empty when it does not listen.
    pub mesh_addresses: Vec<String>,
}

/// Load of an agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AgentLoad {
    /// When this was reported.
    pub reported_ms: i64,
    /// Bytes in its spool.
    pub spool_bytes: u64,
    /// Records in its spool.
    pub spool_records: u64,
    /// Records that it dropped since it started.
    pub dropped_records: u64,
    /// Thousandths of one core.
    pub cpu_permille: u32,
    /// Resident memory.
    pub rss_bytes: u64,
}

/// Sets and removes labels on agents.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelsRequest {
    /// Which agents.
    pub selector: String,
    /// Labels to set.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Operator-set labels to remove.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// Outcome of [`LabelsRequest`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LabelsReply {
    /// Agents that the selector matched.
    pub matched: u64,
    /// Agents whose labels changed.
    pub changed: u64,
}

/// Withdraws certificates; sessions end at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// Agents, by id. They stay in the list as `revoked`.
    #[serde(default)]
    pub agent_ids: Vec<String>,
    /// Single certificates, by serial (hex); their agents may renew with another.
    #[serde(default)]
    pub certificate_serials: Vec<String>,
    /// For the log.
    #[serde(default)]
    pub reason: String,
}

/// Outcome of [`RevokeRequest`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RevokeReply {
    /// Agents revoked now (those that were before are not repeated).
    pub agent_ids: Vec<String>,
    /// Serials revoked now.
    pub certificate_serials: Vec<String>,
}

/// Sends a small message to agents and waits for its echo.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PingRequest {
    /// Which agents.
    pub selector: String,
    /// Bytes of payload (default 64, at most 4,096).
    #[serde(default)]
    pub payload_bytes: Option<u32>,
    /// How long to wait (default 5,000, at most 60,000).
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// Outcome of [`PingRequest`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PingReply {
    /// Agents that the selector matched.
    pub matched: u64,
    /// Agents that answered in time.
    pub answered: u64,
    /// Round trip over all processes, of those that answered, microseconds.
    pub median_us: u64,
    /// See `median_us`.
    pub p99_us: u64,
    /// See `median_us`.
    pub max_us: u64,
    /// Ids of at most 100 agents that did not answer.
    pub silent: Vec<String>,
}
