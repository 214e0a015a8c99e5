//! How a push goes out over time: batches, priority, pause, and what they look like afterwards.

use serde::{Deserialize, Serialize};

/// In which order transfers start and how many of a kind may run beside each other.
///
/// Of `n` turns, control's and each agent's, `high` may take all, `low` and `normal` together all
/// but a quarter, `low` a quarter (at least one): so what is urgent always finds room.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// When there is nothing else to do.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before all others.
    High,
}

/// How a push goes out. All of it is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutRequest {
    /// How many hosts have been started with each batch, in all, as numbers or shares:
    /// `1,10%,100%`. A batch begins when every host of those before has ended. Hosts are taken in
    /// order of agent id. The last is always everybody. Default: one batch.
    pub batches: Option<String>,
    /// Hosts that may end without the file before no further batch is started: a number, or a
    /// share of the hosts started so far (`5%`, rounded down). Default with batches: 0.
    pub max_errors: Option<String>,
    /// When it is its turn.
    pub priority: Priority,
}

/// How far a push has gone out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// When it is its turn.
    pub priority: Priority,
    /// Hosts started with each batch, in all; empty: all at once.
    pub batches: Vec<u64>,
    /// Batches that were started.
    pub batches_started: u64,
    /// As it was asked; empty: failures halt nothing.
    pub max_errors: String,
    /// Why it is queued, paused or halted; empty otherwise.
    pub reason: String,
}

/// Query for the list of transfers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransfersQuery {
    /// Only those in this phase: `queued`, `offering`, `fetching`, `running`, `paused`, `halted`,
    /// `ended`; `open` means all but `ended`.
    pub state: Option<String>,
    /// Only those that were created at most this long ago.
    pub newer_than_ms: Option<i64>,
    /// At most this many, the newest (default: all that are kept).
    pub limit: Option<usize>,
}
