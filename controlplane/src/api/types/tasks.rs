//! Scripts: one to many hosts, and what they said.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Header of a task-output answer: offset of the first byte in the body.
pub const HEADER_OUTPUT_OFFSET: &str = "skein-output-offset";
/// Header of a task-output answer: bytes that the server has stored of this host's output.
pub const HEADER_OUTPUT_STORED: &str = "skein-output-stored";
/// Header of a task-output answer: `true` when the host's state is final and all of the output
/// that it announced is stored, so that nothing will follow.
pub const HEADER_OUTPUT_COMPLETE: &str = "skein-output-complete";

/// Runs a script on agents.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// Which agents (selector).
    pub targets: String,
    /// The script's text, at most 128 KiB. A command line is a script of one line.
    pub script: String,
    /// Program that runs the script file, with its arguments (default `["/bin/bash"]`).
    #[serde(default)]
    pub interpreter: Vec<String>,
    /// Arguments of the script.
    #[serde(default)]
    pub args: Vec<String>,
    /// User on the host (default: the agent's own).
    #[serde(default)]
    pub user: Option<String>,
    /// From the start of the script (default 10 minutes, at most 24 hours).
    #[serde(default)]
    pub timeout_ms: Option<u32>,
    /// Between TERM and KILL at the timeout or cancel (default 5,000, at most 10 minutes).
    #[serde(default)]
    pub kill_grace_ms: Option<u32>,
    /// Output that is kept per host (default 5 MiB, at most 64 MiB).
    #[serde(default)]
    pub output_bytes_max: Option<u64>,
    /// A host that cannot be reached within this time ends as `undeliverable` (default 30,000;
    /// 0: only hosts that are online now).
    #[serde(default)]
    pub deliver_within_ms: Option<u64>,
    /// Chosen by the client (32 hex digits), so that a repeated request is answered with the task
    /// of the first instead of a second run; the same id with other content is a conflict.
    #[serde(default)]
    pub task_id: Option<String>,
    /// A word for people.
    #[serde(default)]
    pub note: String,
}

/// Where one host stands in a task. Every host ends in exactly one of the final states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskHostState {
    /// Not yet sent.
    Pending,
    /// On its way, not yet answered.
    Sent,
    /// The intent is on the agent's disk.
    Accepted,
    /// The script runs.
    Running,
    /// Final: exit code 0.
    Succeeded,
    /// Final: another exit code, or ended by a signal.
    Failed,
    /// Final: killed at its timeout.
    TimedOut,
    /// Final: cancelled by the operator.
    Cancelled,
    /// Final: the host or the script's runner went away in mid-script.
    Aborted,
    /// Final: the agent refused the order; `error` says why.
    Refused,
    /// Final: the agent could not be reached in time. When `error` says that the order was
    /// sent, it may have started.
    Undeliverable,
    /// Final: the agent took the order and gave no final report in time; the outcome is unknown.
    Expired,
}

impl TaskHostState {
    /// Whether it will never change again.
    pub fn is_final(self) -> bool {
        self >= TaskHostState::Succeeded
    }
}

/// One task as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub task_id: String,
    /// The selector, as it was asked.
    pub targets: String,
    /// First 200 characters of the script.
    pub script_head: String,
    /// The interpreter.
    pub interpreter: Vec<String>,
    /// From the start of the script.
    pub timeout_ms: u32,
    /// A word for people.
    pub note: String,
    /// When it was created.
    pub created_ms: i64,
    /// When the last target ended; absent while it runs.
    pub ended_ms: Option<i64>,
    /// Whether a cancel was asked.
    pub cancel_asked: bool,
    /// Hosts by state; states that no host is in are absent.
    pub hosts_by_state: BTreeMap<String, u64>,
    /// Number of hosts.
    pub hosts_total: u64,
    /// Hosts in a final state.
    pub hosts_ended: u64,
    /// Hosts in state `succeeded`.
    pub hosts_succeeded: u64,
}

/// One task with a page of its hosts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskDetail {
    /// The whole.
    pub task: Task,
    /// The page, in order of agent id.
    pub hosts: Vec<TaskHost>,
    /// Give as `after` for the next page; absent on the last.
    pub next: Option<String>,
}

/// One host of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskHost {
    /// The agent.
    pub agent_id: String,
    /// Its host name when the task began.
    pub hostname: String,
    /// Where it stands.
    pub state: TaskHostState,
    /// Exit code of the script.
    pub exit_code: i32,
    /// Signal that ended it; 0: none.
    pub signal: i32,
    /// By the agent's report, in server time; 0 before.
    pub started_ms: i64,
    /// By the agent's report, in server time; 0 before.
    pub ended_ms: i64,
    /// Bytes of output that the server has stored.
    pub output_stored_bytes: u64,
    /// Bytes of output that the agent has announced.
    pub output_bytes: u64,
    /// Whether the script wrote more than is kept.
    pub output_truncated: bool,
    /// Empty unless something is wrong.
    pub error: String,
}

/// Tasks, newest first (at most the server's history).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TaskList {
    /// The tasks.
    pub tasks: Vec<Task>,
}

/// Query of GET `/tasks/{id}/output`. The answer's body is raw bytes from `offset`
/// (`application/octet-stream`), its length the number of bytes; the headers
/// [`HEADER_OUTPUT_OFFSET`], [`HEADER_OUTPUT_STORED`] and [`HEADER_OUTPUT_COMPLETE`] say where it
/// stands. An offset at or past the end is answered with an empty body.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputQuery {
    /// Which host.
    pub agent_id: String,
    /// From this byte (default 0).
    #[serde(default)]
    pub offset: Option<u64>,
    /// At most this many bytes (default 1 MiB, limit 4 MiB).
    #[serde(default)]
    pub limit: Option<u64>,
}
