//! Extractors whose refusals are this API's errors, and the check of the bearer token.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use skein_observe::names;

use super::App;
use super::admission::{Admission, ends_connection};
use super::error::ApiError;

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(refusal) if refusal.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::too_large(refusal.body_text()))
            }
            Err(refusal) => Err(ApiError::invalid(refusal.body_text())),
        }
    }
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
