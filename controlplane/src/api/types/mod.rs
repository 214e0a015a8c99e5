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
//! | PUT `/uploads?name&mode&mtime_ms&tree` with the file, or a tree's stream, as body | [`UploadQuery`] | [`Upload`] |
//! | GET `/uploads`; DELETE `/uploads/{id}` | – | [`UploadList`], [`Empty`] |
//! | POST, GET `/transfers` | [`TransferRequest`] | [`Transfer`], [`TransferList`] |
//! | POST `/transfers/forecast` | [`ForecastRequest`] | [`TransferForecast`] |
//! | GET `/transfers/{id}?state&after&limit&wait_ms` | [`HostsQuery`] | [`TransferDetail`] |
//! | POST `/transfers/{id}/cancel` | – | [`Transfer`] |
//! | POST, GET `/tasks` | [`TaskRequest`] | [`Task`], [`TaskList`] |
//! | GET `/tasks/{id}?state&after&limit` | [`HostsQuery`] | [`TaskDetail`] |
//! | GET `/tasks/{id}/output?agent_id&offset&limit` | [`OutputQuery`] | raw bytes, see [`OutputQuery`] |
//! | POST `/tasks/{id}/cancel` | – | [`Task`] |
//! | GET `/lanes?selector&data_id&held` | [`LanesQuery`] | [`LaneList`] |
//! | GET `/tap?data_id&contains&records_per_second` | [`TapQuery`] | one [`TapLine`] in JSON per line, until the client leaves |

mod agents;
mod lanes;
mod progress;
mod routing;
mod status;
mod tasks;
mod tokens;
mod transfers;
mod uploads;

use serde::{Deserialize, Serialize};

pub use agents::*;
pub use lanes::*;
pub use progress::*;
pub use routing::*;
pub use status::*;
pub use tasks::*;
pub use tokens::*;
pub use transfers::*;
pub use uploads::*;

/// Every path of this API begins so.
pub const BASE_PATH: &str = "/api/skein/v1";

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
    /// Of a transfer: answer when it has ended, or after this time (limit 10,000).
    pub wait_ms: Option<u64>,
}
