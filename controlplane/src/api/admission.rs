//! What a connection may cost before a request on it has shown a valid token: five seconds and
//! 16 KiB, then it is closed and counted. Without this bound, a few hundred connections that send
//! a byte now and then would keep every operator out.
//!
//! [`Admission`] is given to each request of a connection as its connect info; the check of tokens
//! calls [`Admission::admit`], and the bound is gone. Answers that need no token (`/metrics`,
//! refusals) end their connection, so none of them ever runs into it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::response::Response;
use axum::serve::IncomingStream;
use skein_observe::names;
use skein_wire::limits::{PRE_AUTH_BYTES_MAX, PRE_AUTH_TIME_MS};
use tokio::time::{Instant, Sleep, sleep_until};

use super::listener::ApiListener;

/// Whether a request of this connection has shown a valid token.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<AtomicBool>);

impl Admission {
    /// Lifts the bound.
    pub fn admit(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_admitted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Connected<IncomingStream<'_, ApiListener>> for Admission {
    fn connect_info(stream: IncomingStream<'_, ApiListener>) -> Self {
        stream.io().admission()
    }
}

/// The time and the bytes that are left.
pub struct Allowance {
    admission: Admission,
    bytes_left: usize,
    end: Pin<Box<Sleep>>,
}

impl Allowance {
    /// Of a connection that was just accepted.
    pub fn new() -> Self {
        let end = Instant::now() + Duration::from_millis(PRE_AUTH_TIME_MS);
        let end = Box::pin(sleep_until(end));
        Self { admission: Admission::default(), bytes_left: PRE_AUTH_BYTES_MAX, end }
    }

    /// What lifts it.
    pub fn admission(&self) -> Admission {
        self.admission.clone()
    }

    /// When it ends.
    pub fn deadline(&self) -> Instant {
        self.end.deadline()
    }

    /// Bytes that may be read now, `None` when there is no bound any more; the error ends the
    /// connection. Wakes the task at the end of the time.
    pub fn poll(&mut self, context: &mut Context<'_>) -> io::Result<Option<usize>> {
        if self.admission.is_admitted() {
            return Ok(None);
        }
        if let Poll::Ready(()) = self.end.as_mut().poll(context) {
            return Err(refused("time", io::ErrorKind::TimedOut));
        }
        match self.bytes_left {
            0 => Err(refused("bytes", io::ErrorKind::InvalidData)),
            left => Ok(Some(left)),
        }
    }

    /// So many were read.
    pub fn spend(&mut self, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }
}

/// Counts a connection that is closed for its peer's fault.
pub fn refused(reason: &'static str, kind: io::ErrorKind) -> io::Error {
    metrics::counter!(names::CONTROL_CONNECTIONS_REFUSED, "listener" => "api", "reason" => reason)
        .increment(1);
    kind.into()
}

/// For answers that need no token: the connection ends with them.
pub async fn ends_connection(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
