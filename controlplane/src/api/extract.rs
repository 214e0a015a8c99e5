//! Extractors whose refusals are this API's errors, and the check of the bearer token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use skein_observe::names;

use super::admission::{Admission, ends_connection};
use super::error::ApiError;
use super::{App, REQUEST_BYTES_MAX};

/// Of a body that is too large, so much more is read and thrown away before the answer, and for
/// [`LINGER_TIME`] at most: a client that still writes into a closed connection sees a broken pipe
/// instead of the reason.
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(5);

/// A JSON body of at most [`REQUEST_BYTES_MAX`].
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let body = bounded(body).await?;
        let request = Request::from_parts(parts, body.into());
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(refusal) => Err(ApiError::invalid(refusal.body_text())),
        }
    }
}

/// The whole body, or its refusal when it is too large.
async fn bounded(body: axum::body::Body) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::invalid(format!("the body: {error}")))?;
        if whole.len() + chunk.len() > REQUEST_BYTES_MAX {
            drop(whole);
            let mut thrown_away = chunk.len();
            let linger = async {
                while let (true, Some(Ok(chunk))) =
                    (thrown_away < LINGER_BYTES_MAX, chunks.next().await)
                {
                    thrown_away += chunk.len();
                }
            };
            let _ = tokio::time::timeout(LINGER_TIME, linger).await;
            let limit = REQUEST_BYTES_MAX / 1024;
            let what = format!("the body of a request has at most {limit} KiB; send less at once");
            return Err(ApiError::too_large(what));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}

/// A query string.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(refusal) => Err(ApiError::invalid(refusal.body_text())),
        }
    }
}

/// Lets only bearers of an admin token pass, and notes who changed what.
pub async fn authorise(
    State(app): State<Arc<App>>,
    ConnectInfo(admission): ConnectInfo<Admission>,
    request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let Some(admin) = token.and_then(|token| app.admin_tokens.verify(token)) else {
        return ends_connection(ApiError::unauthorised().into_response()).await;
    };
    admission.admit();
    if request.method() != Method::GET {
        let path = request.uri().path();
        tracing::info!(admin_token = admin, method = %request.method(), path, "request");
    }
    next.run(request).await
}

/// Counts and times each request by its route, never by its path: a label has few values.
pub async fn measure(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let path = request.extensions().get::<MatchedPath>();
    let route = path.map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let code = response.status().as_str().to_owned();
    metrics::histogram!(names::CONTROL_API_SECONDS, "route" => route.clone())
        .record(began.elapsed().as_secs_f64());
    metrics::counter!(names::CONTROL_API_REQUESTS, "route" => route, "code" => code).increment(1);
    response
}
