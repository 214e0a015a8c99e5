//! From what went wrong inside to what a client is told: one status, one word, one text.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::types::{ErrorBody, ErrorReply};
use crate::fleet::FleetError;
use crate::registry::SelectorError;
use crate::routes::RoutingError;
use crate::store::StoreError;
use crate::tasks::TaskError;
use crate::transfers::{CacheError, TransferError};

/// An error on its way to a client.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string() }
    }

    /// A request that cannot be understood.
    pub fn invalid(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// Nothing of that name.
    pub fn not_found(message: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// No or wrong token.
    pub fn unauthorised() -> Self {
        let message = "an admin token is needed: `Authorization: Bearer <token>`; the first is in \
                       DIR/control/admin.token";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorised", message)
    }

    /// What exists stands in the way.
    pub fn conflict(message: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// Larger than a limit.
    pub fn too_large(message: impl ToString) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    fn no_space(message: impl ToString) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", message)
    }

    fn busy(message: impl ToString) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message)
    }

    fn unavailable(message: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    /// Not the client's fault.
    pub fn internal(message: impl ToString) -> Self {
        let message = message.to_string();
        tracing::error!(message, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = ErrorBody { code: self.code.to_owned(), message: self.message };
        (self.status, Json(ErrorReply { error })).into_response()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { .. } => Self::conflict(error),
            StoreError::TooLarge { .. } => Self::too_large(error),
            StoreError::Closed => Self::unavailable(error),
            _ => Self::internal(error),
        }
    }
}

impl From<SelectorError> for ApiError {
    fn from(error: SelectorError) -> Self {
        Self::invalid(error)
    }
}

impl From<FleetError> for ApiError {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::Taps => Self::busy(error),
            FleetError::Sign(_) | FleetError::Random(_) => Self::internal(error),
        }
    }
}

impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Selector(_) | TaskError::NoTargets(_) | TaskError::Invalid(_) => {
                Self::invalid(error)
            }
            TaskError::IdReused(_) => Self::conflict(error),
            TaskError::Unknown(_) | TaskError::NotATarget(_) => Self::not_found(error),
            TaskError::Busy => Self::busy(error),
            TaskError::Stopping => Self::unavailable(error),
            TaskError::Store(error) => error.into(),
            TaskError::Disk(_) => Self::internal(error),
        }
    }
}

impl From<CacheError> for ApiError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Invalid(_) | CacheError::Length { .. } => Self::invalid(error),
            CacheError::NoSpace(_) => Self::no_space(error),
            CacheError::Store(error) => error.into(),
            CacheError::Disk(_) | CacheError::File(_) => Self::internal(error),
        }
    }
}

impl From<TransferError> for ApiError {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Selector(_)
            | TransferError::NoTargets(_)
            | TransferError::NoSource(_)
            | TransferError::Invalid(_) => Self::invalid(error),
            TransferError::SourceAway(_) | TransferError::Conflict(_) => Self::conflict(error),
            TransferError::NoUpload(_) | TransferError::Unknown(_) => Self::not_found(error),
            TransferError::Busy => Self::busy(error),
            TransferError::Stopping => Self::unavailable(error),
            TransferError::Store(error) => error.into(),
            TransferError::Cache(error) => error.into(),
            TransferError::Random(_) => Self::internal(error),
        }
    }
}

impl From<RoutingError> for ApiError {
    fn from(error: RoutingError) -> Self {
        match error {
            RoutingError::Invalid(_) => Self::invalid(error),
            RoutingError::Unknown { .. } => Self::not_found(error),
            RoutingError::Exists { .. }
            | RoutingError::InUse { .. }
            | RoutingError::Doubled { .. } => Self::conflict(error),
            RoutingError::Full(_) => Self::busy(error),
            RoutingError::Store(error) => error.into(),
        }
    }
}
