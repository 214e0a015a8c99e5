//! The HTTP JSON API of operators.
//!
//! [`types`] is the contract; [`handlers`] translates between it and the services, which hold all
//! meaning. Everything below [`types::BASE_PATH`] needs an admin token; `/metrics`, `/healthz` and
//! `/readyz` need none. A connection has 5 s and 16 KiB to show one. A JSON request is at most [`REQUEST_BYTES_MAX`].

mod admission;
mod certificate;
mod error;
mod extract;
mod handlers;
mod listener;
mod live;
pub mod types;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use skein_wire::token::JoinToken;

pub use admission::Admission;
pub use certificate::{
    ApiCertificate, ApiTls, CertificateError, CertificateFiles, Sources, local_address,
};
pub use error::ApiError;
pub use listener::{ApiListener, ListenError, TLS_REQUIRED};

use self::handlers as h;
use crate::fleet::Fleet;
use crate::identity::{AdminTokens, Authority, JoinTokens};
use crate::registry::Registry;
use crate::routes::Routing;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::transfers::Transfers;
use types::{BASE_PATH, JoinTokenInfo};

/// Longest JSON request: a script of 128 KiB, escaped, and a selector of 64 KiB.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// All that the handlers reach.
pub struct App {
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// Agents.
    pub registry: Arc<Registry>,
    /// The way to them.
    pub fleet: Arc<Fleet>,
    /// Tokens of agents.
    pub join_tokens: Arc<JoinTokens>,
    /// Tokens of operators.
    pub admin_tokens: Arc<AdminTokens>,
    /// Certificates.
    pub authority: Arc<Authority>,
    /// Streams and routes.
    pub routing: Arc<Routing>,
    /// Scripts.
    pub tasks: Arc<Tasks>,
    /// Pushes.
    pub transfers: Arc<Transfers>,
    /// Metrics.
    pub metrics: skein_observe::Handle,
    /// When this process started.
    pub started_ms: i64,
    /// The token of the first start, which is nowhere else in the clear.
    pub first_join: Option<(JoinToken, JoinTokenInfo)>,
    /// Name or address by which agents reach this server, where it is configured.
    pub public_host: Option<String>,
}

/// The whole service.
pub fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/status", get(h::status))
        .route("/agents", get(h::agents))
        .route("/agents/labels", post(h::set_labels))
        .route("/agents/revoke", post(h::revoke))
        .route("/agents/ping", post(h::ping))
        .route("/agents/{agent_id}", delete(h::forget_agent))
        .route("/join-tokens", post(h::create_join_token).get(h::join_tokens))
        .route("/join-tokens/{id}", delete(h::delete_join_token))
        .route("/admin-tokens", post(h::create_admin_token).get(h::admin_tokens))
        .route("/admin-tokens/{id}", delete(h::delete_admin_token))
        .route("/streams", post(h::add_stream).get(h::streams))
        .route("/streams/{name}", put(h::change_stream).delete(h::remove_stream))
        .route("/routes", post(h::add_route).get(h::routes))
        .route("/routes/{name}", delete(h::remove_route))
        .route("/uploads", put(live::upload).get(h::uploads))
        .route("/uploads/{id}", delete(h::delete_upload))
        .route("/transfers", post(h::create_transfer).get(h::transfers))
        .route("/transfers/forecast", post(h::forecast_transfer))
        .route("/transfers/{id}", get(h::transfer))
        .route("/transfers/{id}/cancel", post(h::cancel_transfer))
        .route("/transfers/{id}/pause", post(h::pause_transfer))
        .route("/transfers/{id}/resume", post(h::resume_transfer))
        .route("/tasks", post(h::create_task).get(h::tasks))
        .route("/tasks/{id}", get(h::task))
        .route("/tasks/{id}/output", get(h::task_output))
        .route("/tasks/{id}/cancel", post(h::cancel_task))
        .route("/lanes", get(h::lanes))
        .route("/tap", get(live::tap))
        .fallback(h::no_such_path)
        .method_not_allowed_fallback(h::no_such_method)
        .layer(from_fn_with_state(app.clone(), extract::authorise));
    let open = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .fallback(h::no_such_path)
        .layer(map_response(admission::ends_connection));
    Router::new().nest(BASE_PATH, api).merge(open).layer(from_fn(extract::measure)).with_state(app)
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.registry.counts();
    let text = app.metrics.render();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.fleet.data_processes().is_empty() {
        false => "ready\n".into_response(),
        true => {
            let why = "no data process is connected, so no agent can be reached\n";
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}
