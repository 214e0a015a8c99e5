//! Pushes: a file or a tree to many hosts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Rollout, RolloutRequest, TransferProgress};

/// Starts a push of a file or a tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// Where the file comes from.
    pub source: TransferSource,
    /// Which agents receive it (selector).
    pub targets: String,
    /// Folder on the targets, absolute.
    pub directory: String,
    /// Name there (default: the source's). The names of an uploaded tree are in it.
    #[serde(default)]
    pub file_name: Option<String>,
    /// Permission bits there, of a tree's files (default: the source's).
    #[serde(default)]
    pub mode: Option<u32>,
    /// `user` or `user:group` (default: the agent's own).
    #[serde(default)]
    pub owner: Option<String>,
    /// Make the folder where it is missing.
    #[serde(default)]
    pub create_directory: bool,
    /// Per host; absent or 0: no limit.
    #[serde(default)]
    pub rate_limit_bytes_per_s: Option<u64>,
    /// Of what the server sends to all hosts together, at least 65,536; absent or 0: no limit.
    #[serde(default)]
    pub rate_limit_total_bytes_per_s: Option<u64>,
    /// How the file travels: `auto` (the default), `inline`, `direct`, `planned` or `mesh`.
    #[serde(default)]
    pub gear: Option<String>,
    /// A host that cannot be reached within this time ends as `undeliverable` (default 30,000).
    #[serde(default)]
    pub deliver_within_ms: Option<u64>,
    /// A host without final report after this time ends as `expired` (default 6 hours). Counts
    /// anew from each start: out of the queue, of a batch, after a pause.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Batches and priority.
    #[serde(default)]
    pub rollout: RolloutRequest,
    /// What is taken of a source agent's path, and how a tree is put in place.
    #[serde(default)]
    pub tree: TreeRequest,
}

impl TransferRequest {
    /// A push of `source` into `directory` of `targets`, everything else by default.
    pub fn new(source: TransferSource, targets: &str, directory: &str) -> Self {
        Self {
            source,
            targets: targets.to_owned(),
            directory: directory.to_owned(),
            file_name: None,
            mode: None,
            owner: None,
            create_directory: false,
            rate_limit_bytes_per_s: None,
            rate_limit_total_bytes_per_s: None,
            gear: None,
            deliver_within_ms: None,
            timeout_ms: None,
            rollout: RolloutRequest::default(),
            tree: TreeRequest::default(),
        }
    }
}

/// What is taken of a source agent's path, which may be a directory (with `/` at its end: what is in
/// it) or have wildcards; and how a tree is put into the folder. An uploaded tree was chosen by its
/// uploader. A file takes part as it is where everything here has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TreeRequest {
    /// Regular expressions found anywhere in a path below the folder; none: everything.
    pub matching: Vec<String>,
    /// Globs of what is left out; without a slash they are about names at any depth.
    pub exclude: Vec<String>,
    /// Symbolic links.
    pub links: TreeLinks,
    /// Modes 0644 and 0755 instead of the files' own.
    pub plain_modes: bool,
    /// Owners are the source's, by name.
    pub owners_by_name: bool,
    /// Names of one file arrive as files of their own.
    pub copy_hard_links: bool,
    /// Modification times are those of the arrival.
    pub times_of_arrival: bool,
    /// Nothing that is there is replaced; else files are, one by one.
    pub refuse_existing: bool,
}

/// What becomes of symbolic links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TreeLinks {
    /// They travel as links; one that leads out of the tree is refused.
    #[default]
    Keep,
    /// What they lead to travels in their place, if it is in the tree.
    Follow,
    /// They are left out.
    Skip,
}

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TransferSource {
    /// A file that was uploaded into the server's cache.
    Upload {
        /// Its id.
        upload_id: String,
    },
    /// A file on an agent's host. With several agents each must have the same content, which they
    /// prove by its hash, and one takes over where another is lost.
    Agent {
        /// The agent: id, host name, address or another selector; all that it matches are sources.
        agent: String,
        /// Absolute path there; see [`TreeRequest`].
        path: String,
        /// Further ones; at most 16 agents in all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<AgentPath>,
    },
    /// A small file inside the request, so that nothing has to be uploaded before.
    Content {
        /// Its name.
        name: String,
        /// Its permission bits.
        mode: u32,
        /// When it was changed; absent: now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mtime_ms: Option<i64>,
        /// Its bytes in hexadecimal digits, at most 32 KiB; empty in answers.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        content_hex: String,
    },
}

/// A path on the hosts that a selector matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentPath {
    /// Selector.
    pub agent: String,
    /// Absolute path there.
    pub path: String,
}

/// One source agent of a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceState {
    /// Its id.
    pub agent_id: String,
    /// The path there.
    pub path: String,
    /// It said that it has the file.
    pub ready: bool,
    /// Why it is no source any more; empty while it is one.
    pub error: String,
}

/// Asks how a file would travel; nothing is begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForecastRequest {
    /// Which agents would receive it (selector).
    pub targets: String,
    /// Size of the file, if it is not on agents.
    #[serde(default)]
    pub size_bytes: u64,
    /// The agents that have it, who are asked how large it is.
    #[serde(default)]
    pub source: Option<TransferSource>,
    /// What is taken of their path.
    #[serde(default)]
    pub tree: TreeRequest,
    /// Per host; absent or 0: no limit.
    #[serde(default)]
    pub rate_limit_bytes_per_s: Option<u64>,
    /// Of what the server sends to all hosts together, at least 65,536; absent or 0: no limit.
    #[serde(default)]
    pub rate_limit_total_bytes_per_s: Option<u64>,
    /// As in [`TransferRequest::gear`].
    #[serde(default)]
    pub gear: Option<String>,
}

/// How a file would travel, from what is known now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferForecast {
    /// The gear that would be taken.
    pub gear: String,
    /// Why, in one sentence.
    pub why: String,
    /// When the last host should be done, ms after the file is in the cache.
    pub predicted_ms: f64,
    /// What no way of travelling can beat, ms.
    pub bound_ms: f64,
    /// Size of the file.
    pub size_bytes: u64,
    /// Number of hosts.
    pub hosts_total: u64,
    /// Every gear.
    pub gears: Vec<GearForecast>,
}

/// What one gear would take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GearForecast {
    /// Which.
    pub gear: String,
    /// When its last host should be done, ms.
    pub predicted_ms: f64,
    /// Of that, what is not moving bytes.
    pub start_ms: f64,
    /// At which most hosts would receive.
    pub bytes_per_s: u64,
    /// What most of the time is due to, in words.
    pub limit: String,
    /// False where no host could take pieces from another.
    pub possible: bool,
}

/// Where a transfer stands as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferPhase {
    /// Others come first; `rollout.reason` says how many.
    Queued,
    /// The source agent hashes the file.
    Offering,
    /// The server takes the file from the source agent.
    Fetching,
    /// The file flows to the targets.
    Running,
    /// An operator has paused it; `resume` goes on with every verified block.
    Paused,
    /// Too many hosts failed; no further batch starts before `resume`.
    Halted,
    /// Every target has a final state.
    Ended,
}

/// Where one host stands in a transfer. Every host ends in exactly one of the final states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferHostState {
    /// Its batch was not started.
    NotStarted,
    /// Not yet told.
    Pending,
    /// Told, not yet answered.
    Sent,
    /// Queued on the agent.
    Waiting,
    /// Blocks flow.
    Running,
    /// Stopped by an operator's pause; verified blocks are kept.
    Paused,
    /// Final: verified, flushed and renamed into place.
    Done,
    /// Final: `error` says why.
    Failed,
    /// Final: cancelled by the operator.
    Cancelled,
    /// Final: the agent refused the order; `error` says why.
    Refused,
    /// Final: the agent could not be reached in time; nothing was started there.
    Undeliverable,
    /// Final: the agent took the order and gave no final report in time.
    Expired,
}

impl TransferHostState {
    /// Whether it will never change again.
    pub fn is_final(self) -> bool {
        self >= TransferHostState::Done
    }
}

/// One transfer as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transfer {
    /// Its id.
    pub transfer_id: String,
    /// Where it stands.
    pub phase: TransferPhase,
    /// Where the file comes from.
    pub source: TransferSource,
    /// The agents that this means, where it means agents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceState>,
    /// The selector, as it was asked.
    pub targets: String,
    /// Folder on the targets.
    pub directory: String,
    /// Name on the targets.
    pub file_name: String,
    /// Whether it is a tree; `file_name` then only calls it something.
    #[serde(default)]
    pub tree: bool,
    /// How the file travels: `inline`, `direct`, `planned` or `mesh`.
    pub gear: String,
    /// Why, in one sentence; empty before it is decided.
    #[serde(default)]
    pub why: String,
    /// When the last host should be done, ms after the file is in the cache; 0: not known.
    #[serde(default)]
    pub predicted_ms: u64,
    /// What no way of travelling can beat, ms; 0: not known.
    #[serde(default)]
    pub bound_ms: u64,
    /// How often it was planned again while it ran, because it had left the prediction.
    #[serde(default)]
    pub replans: u64,
    /// When it was last planned again; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replanned_ms: Option<i64>,
    /// The bound over the time that it took, 0 to 1; absent while it runs and where no host got the
    /// file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub achieved_share: Option<f64>,
    /// That share and what cost the rest, in one sentence; empty while it runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub judgement: String,
    /// Size of the file; 0 before it is known.
    pub size_bytes: u64,
    /// SHA-256 merkle root, hex; empty before it is known.
    pub root: String,
    /// Why the transfer as a whole failed (the source, for example); else empty.
    pub error: String,
    /// When it was created.
    pub created_ms: i64,
    /// When the last target ended; absent while it runs.
    pub ended_ms: Option<i64>,
    /// Hosts by state; states that no host is in are absent.
    pub hosts_by_state: BTreeMap<String, u64>,
    /// Number of hosts.
    pub hosts_total: u64,
    /// Hosts in state `done`.
    pub hosts_done: u64,
    /// Verified bytes over all hosts.
    pub verified_bytes: u64,
    /// Of those, what earlier runs had left on the hosts.
    pub resumed_bytes: u64,
    /// Bytes per second over all hosts: since the last report while it runs, overall at the end.
    pub bytes_per_s: u64,
    /// Batches, priority, and why it waits.
    #[serde(default)]
    pub rollout: Rollout,
    /// How far it is, when it will end, and where the bytes came from.
    #[serde(default)]
    pub progress: TransferProgress,
}

/// One transfer with a page of its hosts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferDetail {
    /// The whole.
    pub transfer: Transfer,
    /// The page, in order of agent id.
    pub hosts: Vec<TransferHost>,
    /// Give as `after` for the next page; absent on the last.
    pub next: Option<String>,
}

/// One host of a transfer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferHost {
    /// The agent.
    pub agent_id: String,
    /// Its host name when the transfer began.
    pub hostname: String,
    /// Where it stands.
    pub state: TransferHostState,
    /// Bytes that are verified on its disk.
    pub verified_bytes: u64,
    /// Of those, what an earlier run had left.
    pub resumed_bytes: u64,
    /// Of what came over the network, what other hosts sent.
    #[serde(default)]
    pub from_peers_bytes: u64,
    /// Blocks that were refused because their hash was wrong.
    pub refused_blocks: u64,
    /// Bytes per second of this run.
    pub bytes_per_s: u64,
    /// Empty unless something is wrong.
    pub error: String,
    /// By the agent's report; 0 before.
    pub started_ms: i64,
    /// By the agent's report; 0 before.
    pub ended_ms: i64,
    /// Its batch, from 1; 0: there are none.
    #[serde(default)]
    pub batch: u64,
}

/// Transfers, newest first (at most the server's history).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TransferList {
    /// The transfers.
    pub transfers: Vec<Transfer>,
}
