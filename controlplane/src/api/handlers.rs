//! One short function per request: check, call the service, shape the answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use skein_wire::ids::{AgentId, TaskId, TransferId, hex_encode};
use skein_wire::token::JoinToken;

use super::App;
use super::error::ApiError;
use super::extract::{Body, Query};
use super::types::*;
use crate::clock;
use crate::identity::{JOIN_TTL_MS, JOIN_TTL_MS_MAX, Withdrawn};
use crate::registry::{
    LABEL_VALUE_BYTES_MAX, LIST_AGENTS_MAX, SERIAL_DIGITS_MAX, Selector, is_label_name,
};
use crate::transfers::Wish;

type Answer<T> = Result<Json<T>, ApiError>;
type Shared = State<Arc<App>>;

const PING_PAYLOAD_BYTES: u32 = 64;
const PING_PAYLOAD_BYTES_MAX: u32 = 4_096;
const PING_TIMEOUT_MS: u64 = 5_000;
const PING_TIMEOUT_MS_MAX: u64 = 60_000;
const PING_SILENT_MAX: usize = 100;
const OUTPUT_BYTES: u64 = 1024 * 1024;
const OUTPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;
const NOTE_BYTES_MAX: usize = 1_024;
/// Ports that the agent assumes when the command does not name them.
const DEFAULT_SIGNAL_PORT: &str = "28668";
/// See [`DEFAULT_SIGNAL_PORT`].
const DEFAULT_PORTS: [(&str, &str); 2] = [("--data-port", "28625"), ("--file-port", "28925")];

pub async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is no {}; the API is below {BASE_PATH}", uri.path()))
}

pub async fn no_such_method(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    let error = ErrorBody { code: "invalid".into(), message };
    (StatusCode::METHOD_NOT_ALLOWED, Json(ErrorReply { error })).into_response()
}

fn selector(text: Option<&str>) -> Result<Selector, ApiError> {
    match text.map(str::trim) {
        None | Some("") => Ok(Selector::all()),
        Some(text) => Ok(text.parse()?),
    }
}

fn task_id(text: &str) -> Result<TaskId, ApiError> {
    text.parse().map_err(ApiError::invalid)
}

fn transfer_id(text: &str) -> Result<TransferId, ApiError> {
    text.parse().map_err(ApiError::invalid)
}

// ------------------------------------------------------------------------------------ status

pub async fn status(State(app): Shared) -> Json<Status> {
    let now_ms = clock::now_ms();
    let first_join = app.first_join.as_ref().filter(|(_, info)| info.expires_ms > now_ms);
    Json(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        started_ms: app.started_ms,
        pid: std::process::id(),
        now_ms,
        ca_sha256: hex_encode(&app.authority.sha256()),
        store_revision: app.store.revision(),
        table_revision: app.fleet.table_revision(),
        data_processes: app.fleet.data_processes(),
        agents: app.registry.counts(),
        tasks_running: app.tasks.running(),
        transfers_running: app.transfers.running(),
        first_join: first_join.map(|(token, info)| join_token_created(&app, token, info.clone())),
    })
}

// ------------------------------------------------------------------------------------ agents

pub async fn agents(State(app): Shared, Query(query): Query<AgentsQuery>) -> Answer<AgentList> {
    let selector = selector(query.selector.as_deref())?;
    let limit = query.limit.unwrap_or(LIST_AGENTS_MAX);
    Ok(Json(app.registry.list(&selector, query.after.as_deref(), limit)))
}

pub async fn set_labels(
    State(app): Shared,
    Body(request): Body<LabelsRequest>,
) -> Answer<LabelsReply> {
    let selector: Selector = request.selector.parse()?;
    for (name, value) in &request.set {
        if !is_label_name(name) || value.len() > LABEL_VALUE_BYTES_MAX {
            return Err(ApiError::invalid(format!(
                "label {name:?} must have a name of 1 to 64 of A-Za-z0-9._-/ and a value of at \
                 most {LABEL_VALUE_BYTES_MAX} bytes"
            )));
        }
    }
    let (matched, changed) =
        app.registry.set_labels(&selector, &request.set, &request.remove).await?;
    Ok(Json(LabelsReply { matched, changed }))
}

pub async fn revoke(State(app): Shared, Body(request): Body<RevokeRequest>) -> Answer<RevokeReply> {
    check_note(&request.reason)?;
    let mut ids = Vec::new();
    for text in &request.agent_ids {
        let id = AgentId::parse(text).ok().filter(|id| app.registry.identity(id).is_some());
        ids.push(id.ok_or_else(|| ApiError::not_found(format!("there is no agent {text:?}")))?);
    }
    for serial in &request.certificate_serials {
        if serial.len() > SERIAL_DIGITS_MAX || !serial.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return Err(ApiError::invalid(format!("serial {serial:?} is not hexadecimal")));
        }
    }
    let serials: Vec<String> =
        request.certificate_serials.iter().map(|serial| serial.to_lowercase()).collect();
    let (revoked, serials) = app.registry.revoke(&ids, &serials, &request.reason).await?;
    // At once: the data processes close the sessions and refuse new ones.
    app.fleet.push_revoked().await;
    tracing::warn!(agents = revoked.len(), serials = serials.len(), "revoked");
    let agent_ids = revoked.iter().map(AgentId::to_string).collect();
    Ok(Json(RevokeReply { agent_ids, certificate_serials: serials }))
}

pub async fn forget_agent(State(app): Shared, Path(text): Path<String>) -> Answer<Empty> {
    let id = AgentId::parse(&text).map_err(ApiError::invalid)?;
    let close = "forgotten by the operator";
    app.fleet.close_session(&id, close).await;
    if !app.registry.forget(&id).await? {
        return Err(ApiError::not_found(format!("there is no agent {text:?}")));
    }
    app.fleet.push_revoked().await;
    app.fleet.forget_lanes(&id);
    Ok(Json(Empty {}))
}

pub async fn ping(State(app): Shared, Body(request): Body<PingRequest>) -> Answer<PingReply> {
    let selector: Selector = request.selector.parse()?;
    let agents: Vec<AgentId> = app.registry.select(&selector).into_iter().map(|a| a.id).collect();
    let payload = request.payload_bytes.unwrap_or(PING_PAYLOAD_BYTES).min(PING_PAYLOAD_BYTES_MAX);
    let timeout_ms = request.timeout_ms.unwrap_or(PING_TIMEOUT_MS).min(PING_TIMEOUT_MS_MAX);
    let timeout = Duration::from_millis(timeout_ms);
    let outcome = app.fleet.ping(&agents, payload as usize, timeout).await;
    let times = &outcome.round_trips_us;
    let at = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        times.get(place.min(times.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    Ok(Json(PingReply {
        matched: agents.len() as u64,
        answered: times.len() as u64,
        median_us: at(0.5),
        p99_us: at(0.99),
        max_us: at(1.0),
        silent: outcome.silent.iter().take(PING_SILENT_MAX).map(AgentId::to_string).collect(),
    }))
}

// ------------------------------------------------------------------------------------ tokens

/// The command that lets a host join, as it is typed there.
fn join_command(app: &App, token: &JoinToken) -> String {
    let data = app.fleet.data_processes();
    let Some(data) = data.first() else {
        return format!("skein-agent enrol --server SERVER --token {token}");
    };
    let part = |address: &str| {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        (host.to_owned(), port.to_owned())
    };
    let (bound, _) = part(&data.signal_addr);
    let host = match &app.public_host {
        Some(host) => host.clone(),
        None if ["0.0.0.0", "[::]"].contains(&bound.as_str()) => {
            crate::host::own_address().to_string()
        }
        None => bound,
    };
    let server = match part(&data.signal_addr).1 {
        port if port == DEFAULT_SIGNAL_PORT => host,
        port => format!("{host}:{port}"),
    };
    let mut command = format!("skein-agent enrol --server {server} --token {token}");
    for ((flag, usual), address) in DEFAULT_PORTS.iter().zip([&data.data_addr, &data.file_addr]) {
        let (_, port) = part(address);
        if port != *usual {
            command.push_str(&format!(" {flag} {port}"));
        }
    }
    command
}

fn join_token_created(app: &App, token: &JoinToken, info: JoinTokenInfo) -> JoinTokenCreated {
    JoinTokenCreated {
        id: info.id,
        token: token.to_string(),
        expires_ms: info.expires_ms,
        uses_max: info.uses_max,
        command: join_command(app, token),
    }
}

fn check_note(note: &str) -> Result<(), ApiError> {
    match note.len() <= NOTE_BYTES_MAX {
        true => Ok(()),
        false => Err(ApiError::invalid(format!("the note is longer than {NOTE_BYTES_MAX} bytes"))),
    }
}

pub async fn create_join_token(
    State(app): Shared,
    Body(request): Body<JoinTokenRequest>,
) -> Answer<JoinTokenCreated> {
    check_note(&request.note)?;
    let ttl_ms = request.ttl_ms.unwrap_or(JOIN_TTL_MS);
    if ttl_ms > JOIN_TTL_MS_MAX {
        return Err(ApiError::invalid(format!("ttl_ms must be at most {JOIN_TTL_MS_MAX}")));
    }
    let uses_max = request.uses_max.unwrap_or(1);
    let (token, info) = app.join_tokens.create(ttl_ms, uses_max, request.note).await?;
    Ok(Json(join_token_created(&app, &token, info)))
}

pub async fn join_tokens(State(app): Shared) -> Json<JoinTokenList> {
    Json(JoinTokenList { tokens: app.join_tokens.list() })
}

pub async fn delete_join_token(State(app): Shared, Path(id): Path<String>) -> Answer<Empty> {
    match app.join_tokens.delete(&id).await? {
        true => Ok(Json(Empty {})),
        false => Err(ApiError::not_found(format!("there is no join token {id:?}"))),
    }
}

pub async fn create_admin_token(
    State(app): Shared,
    Body(request): Body<AdminTokenRequest>,
) -> Answer<AdminTokenCreated> {
    check_note(&request.note)?;
    Ok(Json(app.admin_tokens.create(request.ttl_ms, request.note).await?))
}

pub async fn admin_tokens(State(app): Shared) -> Json<AdminTokenList> {
    Json(AdminTokenList { tokens: app.admin_tokens.list() })
}

pub async fn delete_admin_token(State(app): Shared, Path(id): Path<String>) -> Answer<Empty> {
    match app.admin_tokens.withdraw(&id).await? {
        Withdrawn::Done => Ok(Json(Empty {})),
        Withdrawn::Unknown => Err(ApiError::not_found(format!("there is no admin token {id:?}"))),
        Withdrawn::Last => Err(ApiError::conflict(
            "this is the last admin token; make another first, or nobody could come in",
        )),
    }
}

// -------------------------------------------------------------------------- streams and routes

pub async fn add_stream(State(app): Shared, Body(request): Body<StreamRequest>) -> Answer<Stream> {
    Ok(Json(app.routing.add_stream(request, &app.fleet).await?))
}

pub async fn change_stream(
    State(app): Shared,
    Path(name): Path<String>,
    Body(request): Body<StreamRequest>,
) -> Answer<Stream> {
    Ok(Json(app.routing.change_stream(&name, request, &app.fleet).await?))
}

pub async fn streams(State(app): Shared) -> Json<StreamList> {
    Json(StreamList { streams: app.routing.streams() })
}

pub async fn remove_stream(State(app): Shared, Path(name): Path<String>) -> Answer<Empty> {
    app.routing.remove_stream(&name, &app.fleet).await?;
    Ok(Json(Empty {}))
}

pub async fn add_route(State(app): Shared, Body(request): Body<RouteRequest>) -> Answer<Route> {
    Ok(Json(app.routing.add_route(request, &app.fleet).await?))
}

pub async fn routes(State(app): Shared) -> Json<RouteList> {
    Json(RouteList { routes: app.routing.routes() })
}

pub async fn remove_route(State(app): Shared, Path(name): Path<String>) -> Answer<Empty> {
    app.routing.remove_route(&name, &app.fleet).await?;
    Ok(Json(Empty {}))
}

// ---------------------------------------------------------------------- uploads and transfers

pub async fn uploads(State(app): Shared) -> Json<UploadList> {
    let cache = app.transfers.cache();
    let (cache_bytes, cache_bytes_max) = cache.bytes();
    Json(UploadList { uploads: cache.list(), cache_bytes, cache_bytes_max })
}

pub async fn delete_upload(State(app): Shared, Path(id): Path<String>) -> Answer<Empty> {
    match app.transfers.cache().delete(&transfer_id(&id)?).await? {
        Some(true) => Ok(Json(Empty {})),
        Some(false) => Err(ApiError::conflict(format!(
            "upload {id} is used by a running transfer; cancel that first"
        ))),
        None => Err(ApiError::not_found(format!("there is no upload {id}"))),
    }
}

pub async fn create_transfer(
    State(app): Shared,
    Body(request): Body<TransferRequest>,
) -> Answer<Transfer> {
    Ok(Json(app.transfers.create(request).await?))
}

pub async fn forecast_transfer(
    State(app): Shared,
    Body(request): Body<ForecastRequest>,
) -> Answer<TransferForecast> {
    Ok(Json(app.transfers.forecast(&request).await?))
}

pub async fn transfers(
    State(app): Shared,
    Query(query): Query<TransfersQuery>,
) -> Json<TransferList> {
    Json(TransferList { transfers: app.transfers.list(&query) })
}

pub async fn transfer(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<HostsQuery>,
) -> Answer<TransferDetail> {
    let transfer_id = transfer_id(&id)?;
    if let Some(wait_ms) = query.wait_ms {
        app.transfers.ended(&transfer_id, wait_ms).await;
    }
    let detail = app.transfers.detail(&transfer_id, &query);
    detail.map(Json).ok_or_else(|| ApiError::not_found(format!("there is no transfer {id}")))
}

pub async fn cancel_transfer(State(app): Shared, Path(id): Path<String>) -> Answer<Transfer> {
    Ok(Json(app.transfers.wish(&transfer_id(&id)?, Wish::Cancel).await?))
}

pub async fn pause_transfer(State(app): Shared, Path(id): Path<String>) -> Answer<Transfer> {
    Ok(Json(app.transfers.wish(&transfer_id(&id)?, Wish::Pause).await?))
}

pub async fn resume_transfer(State(app): Shared, Path(id): Path<String>) -> Answer<Transfer> {
    Ok(Json(app.transfers.wish(&transfer_id(&id)?, Wish::Resume).await?))
}

// -------------------------------------------------------------------------------------- tasks

pub async fn create_task(State(app): Shared, Body(request): Body<TaskRequest>) -> Answer<Task> {
    Ok(Json(app.tasks.create(request, clock::now_ms()).await?))
}

pub async fn tasks(State(app): Shared) -> Json<TaskList> {
    Json(TaskList { tasks: app.tasks.list() })
}

pub async fn task(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<HostsQuery>,
) -> Answer<TaskDetail> {
    let detail = app.tasks.detail(&task_id(&id)?, &query);
    detail.map(Json).ok_or_else(|| ApiError::not_found(format!("there is no task {id}")))
}

pub async fn task_output(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<OutputQuery>,
) -> Result<Response, ApiError> {
    let agent = AgentId::parse(&query.agent_id).map_err(ApiError::invalid)?;
    let offset = query.offset.unwrap_or(0);
    let limit = query.limit.unwrap_or(OUTPUT_BYTES).min(OUTPUT_BYTES_MAX) as usize;
    let (bytes, stored, complete) = app.tasks.output(&task_id(&id)?, &agent, offset, limit).await?;
    let headers = [
        (CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (HEADER_OUTPUT_OFFSET, offset.to_string()),
        (HEADER_OUTPUT_STORED, stored.to_string()),
        (HEADER_OUTPUT_COMPLETE, complete.to_string()),
    ];
    Ok((headers, bytes).into_response())
}

pub async fn cancel_task(State(app): Shared, Path(id): Path<String>) -> Answer<Task> {
    Ok(Json(app.tasks.cancel(&task_id(&id)?).await?))
}

// -------------------------------------------------------------------------------------- lanes

pub async fn lanes(State(app): Shared, Query(query): Query<LanesQuery>) -> Answer<LaneList> {
    let limit = query.limit.unwrap_or(LIST_AGENTS_MAX).min(LIST_AGENTS_MAX);
    let agents = match query.selector.as_deref().map(str::trim) {
        None | Some("") => None,
        Some(text) => {
            let meant = app.registry.select(&text.parse()?);
            let ids = meant.into_iter().map(|agent| agent.id.to_string());
            Some(ids.collect::<std::collections::HashSet<_>>())
        }
    };
    let (lanes, total) = app.fleet.lanes(limit, |lane| {
        agents.as_ref().is_none_or(|agents| agents.contains(&lane.agent_id))
            && query.data_id.is_none_or(|data_id| data_id == lane.data_id)
            && query.held.is_none_or(|held| held != lane.held.is_empty())
    });
    Ok(Json(LaneList { lanes, total }))
}
