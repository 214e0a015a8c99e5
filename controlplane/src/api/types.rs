//! Requests and answers of the HTTP JSON API, shared with the command line.
//!
//! Base path [`BASE_PATH`]; every request but `/metrics`, `/healthz` and `/readyz` carries
//! `Authorization: Bearer <admin token>`. Times are milliseconds since 1970 (`*_ms` of an instant)
//! or plain durations (`timeout_ms`). Ids of tasks, transfers and uploads are 32 hex digits.
//! Fields that are absent from a request take the default that their comment names; unknown fields
//! of answers are to be ignored, unknown fields of requests are refused, so that a misspelt option
//! is not silently dropped. An answer with a status of 400 or more carries [`ErrorReply`].
//!
//! | method, path below the base | request | answer |
//! |---|---|---|
//! | GET `/status` | – | [`Status`] |
//! | GET `/agents?selector&after&limit` | [`AgentsQuery`] | [`AgentList`] |
//! | POST `/agents/labels` | [`LabelsRequest`] | [`LabelsReply`] |
//! | POST `/agents/revoke` | [`RevokeRequest`] | [`RevokeReply`] |
//! | POST `/agents/ping` | [`PingRequest`] | [`PingReply`] |
//! | DELETE `/agents/{agent_id}` | – | [`Empty`] (forgets a host and revokes its certificate) |
//! | POST, GET `/join-tokens`; DELETE `/join-tokens/{id}` | [`JoinTokenRequest`] | [`JoinTokenCreated`], [`JoinTokenList`], [`Empty`] |
//! | POST, GET `/admin-tokens`; DELETE `/admin-tokens/{id}` | [`AdminTokenRequest`] | [`AdminTokenCreated`], [`AdminTokenList`], [`Empty`] |
//! | POST, GET `/streams`; PUT, DELETE `/streams/{name}` | [`StreamRequest`] | [`Stream`], [`StreamList`], [`Empty`] |
//! | POST, GET `/routes`; DELETE `/routes/{name}` | [`RouteRequest`] | [`Route`], [`RouteList`], [`Empty`] |
//! | PUT `/uploads?name&mode&mtime_ms` with the file as body | [`UploadQuery`] | [`Upload`] |
//! | GET `/uploads`; DELETE `/uploads/{id}` | – | [`UploadList`], [`Empty`] |
//! | POST, GET `/transfers` | [`TransferRequest`] | [`Transfer`], [`TransferList`] |
//! | GET `/transfers/{id}?state&after&limit` | [`HostsQuery`] | [`TransferDetail`] |
//! | POST `/transfers/{id}/cancel` | – | [`Transfer`] |
//! | POST, GET `/tasks` | [`TaskRequest`] | [`Task`], [`TaskList`] |
//! | GET `/tasks/{id}?state&after&limit` | [`HostsQuery`] | [`TaskDetail`] |
//! | GET `/tasks/{id}/output?agent_id&offset&limit` | [`OutputQuery`] | raw bytes, see [`OutputQuery`] |
//! | POST `/tasks/{id}/cancel` | – | [`Task`] |
//! | GET `/lanes?selector&data_id&held` | [`LanesQuery`] | [`LaneList`] |
//! | GET `/tap?data_id&contains&records_per_second` | [`TapQuery`] | one [`TapLine`] in JSON per line, until the client leaves |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Every path of this API begins so.
pub const BASE_PATH: &str = "/api/skein/v1";

/// Header of a task-output answer: offset of the first byte in the body.
pub const HEADER_OUTPUT_OFFSET: &str = "skein-output-offset";
/// Header of a task-output answer: bytes that the server has stored of this host's output.
pub const HEADER_OUTPUT_STORED: &str = "skein-output-stored";
/// Header of a task-output answer: `true` when the host's state is final and all of the output
/// that it announced is stored, so that nothing will follow.
pub const HEADER_OUTPUT_COMPLETE: &str = "skein-output-complete";

/// Body of every answer with a status of 400 or more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What went wrong.
    pub error: ErrorBody,
}

/// The error itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Stable word for programs: `unauthorised`, `invalid`, `not_found`, `conflict`, `too_large`,
    /// `no_space`, `busy`, `unavailable`, `internal`.
    pub code: String,
    /// For people: names the thing and the remedy.
    pub message: String,
}

/// Success without content.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Empty {}

// ------------------------------------------------------------------------------------ status

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

// ------------------------------------------------------------------------------------ agents

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

// ------------------------------------------------------------------------------------ tokens

/// Makes a join token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JoinTokenRequest {
    /// How long it may be used (default 1 hour, at most 30 days).
    pub ttl_ms: Option<u64>,
    /// How many agents may enrol with it (default 1; 0: unlimited).
    pub uses_max: Option<u32>,
    /// A word for people.
    pub note: String,
}

/// A new join token. This is the one time that it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinTokenCreated {
    /// Names the token without revealing it.
    pub id: String,
    /// What an agent needs: `skein1.<id>.<secret>.<sha256 of the CA>`.
    pub token: String,
    /// When it ends.
    pub expires_ms: i64,
    /// 0: unlimited.
    pub uses_max: u32,
    /// The command to type on the host; `SERVER` stands for this server's address where it is
    /// known only from outside.
    pub command: String,
}

/// All join tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct JoinTokenList {
    /// In order of creation.
    pub tokens: Vec<JoinTokenInfo>,
}

/// A join token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinTokenInfo {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: i64,
    /// 0: unlimited.
    pub uses_max: u32,
    /// How many agents enrolled with it.
    pub used: u32,
    /// A word for people.
    pub note: String,
}

/// Makes an admin token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminTokenRequest {
    /// How long it may be used (absent: until deleted).
    pub ttl_ms: Option<u64>,
    /// A word for people.
    pub note: String,
}

/// A new admin token. This is the one time that it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdminTokenCreated {
    /// Names the token without revealing it.
    pub id: String,
    /// The bearer token.
    pub token: String,
    /// When it ends; absent: never.
    pub expires_ms: Option<i64>,
}

/// All admin tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AdminTokenList {
    /// In order of creation.
    pub tokens: Vec<AdminTokenInfo>,
}

/// An admin token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdminTokenInfo {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created_ms: i64,
    /// When it ends; absent: never.
    pub expires_ms: Option<i64>,
    /// A word for people.
    pub note: String,
}

// -------------------------------------------------------------------------- streams and routes

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

// ------------------------------------------------------------------------------------ uploads

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

// ---------------------------------------------------------------------------------- transfers

/// Starts a push of one file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// Where the file comes from.
    pub source: TransferSource,
    /// Which agents receive it (selector).
    pub targets: String,
    /// Folder on the targets, absolute.
    pub directory: String,
    /// Name there (default: the source's).
    #[serde(default)]
    pub file_name: Option<String>,
    /// Permission bits there (default: the source's).
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
    /// A host that cannot be reached within this time ends as `undeliverable` (default 30,000).
    #[serde(default)]
    pub deliver_within_ms: Option<u64>,
    /// A host without final report after this time ends as `expired` (default 6 hours).
    #[serde(default)]
    pub timeout_ms: Option<u64>,
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
    /// A file on an agent's host.
    Agent {
        /// The agent: id, host name or address; must match exactly one.
        agent: String,
        /// Absolute path there.
        path: String,
    },
}

/// Where a transfer stands as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferPhase {
    /// The source agent hashes the file.
    Offering,
    /// The server takes the file from the source agent.
    Fetching,
    /// The file flows to the targets.
    Running,
    /// Every target has a final state.
    Ended,
}

/// Where one host stands in a transfer. Every host ends in exactly one of the final states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferHostState {
    /// Not yet told.
    Pending,
    /// Told, not yet answered.
    Sent,
    /// Queued on the agent.
    Waiting,
    /// Blocks flow.
    Running,
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
    /// The selector, as it was asked.
    pub targets: String,
    /// Folder on the targets.
    pub directory: String,
    /// Name on the targets.
    pub file_name: String,
    /// How the file travels: `direct`.
    pub gear: String,
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
}

/// Query for the hosts of a transfer or a task.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostsQuery {
    /// Only hosts in this state (the word in JSON).
    pub state: Option<String>,
    /// Continue after this agent id (the `next` of the page before).
    pub after: Option<String>,
    /// At most this many (default 1,000, limit 10,000).
    pub limit: Option<usize>,
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
}

/// Transfers, newest first (at most the server's history).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TransferList {
    /// The transfers.
    pub transfers: Vec<Transfer>,
}

// -------------------------------------------------------------------------------------- tasks

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

// ------------------------------------------------------------------------------ lanes and taps

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
