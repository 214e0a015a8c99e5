//! Lanes (the records of one data id from one agent) and taps that show them.

use serde::{Deserialize, Serialize};

/// Query of GET `/lanes`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LanesQuery {
    /// Which agents; absent: all.
    pub selector: Option<String>,
    /// Only this data id.
    pub data_id: Option<u32>,
    /// Only lanes that are held.
    pub held: Option<bool>,
    /// At most this many (default and limit 10,000).
    pub limit: Option<usize>,
}

/// Lanes in order of data id, then agent id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LaneList {
    /// The lanes.
    pub lanes: Vec<Lane>,
    /// How many match in all.
    pub total: u64,
}

/// One lane: the records of one data id from one agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lane {
    /// The agent.
    pub agent_id: String,
    /// Its host name.
    pub hostname: String,
    /// The data id.
    pub data_id: u32,
    /// Numbering of the agent's spool.
    pub epoch: u64,
    /// Records stored.
    pub next_sequence: u64,
    /// Why the lane is held; empty: it flows.
    pub held: String,
    /// Records waiting on the agent.
    pub spool_records: u64,
    /// Bytes waiting on the agent.
    pub spool_bytes: u64,
    /// Records that the agent dropped in this epoch.
    pub dropped_records: u64,
    /// Repeats that the server recognised.
    pub duplicate_records: u64,
    /// When this was reported.
    pub reported_ms: i64,
}

/// Query of GET `/tap`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapQuery {
    /// Which records.
    pub data_id: u32,
    /// Only records that contain this text.
    #[serde(default)]
    pub contains: Option<String>,
    /// Sample (default 100, at most 10,000).
    #[serde(default)]
    pub records_per_second: Option<u32>,
}

/// One line of a tap.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TapLine {
    /// The agent; empty on a line that only reports `skipped`.
    pub agent_id: String,
    /// Its host name.
    pub hostname: String,
    /// The data id.
    pub data_id: u32,
    /// Numbering of the agent's spool.
    pub epoch: u64,
    /// Place in the lane.
    pub sequence: u64,
    /// Of the record.
    pub timestamp_ms: i64,
    /// The record as text (other than UTF-8 is replaced), cut to 4 KiB.
    pub value: String,
    /// Records that passed unseen since the line before.
    pub skipped: u64,
}
