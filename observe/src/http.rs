//! The admin endpoint: `GET /metrics`, `/healthz` (the process runs) and `/readyz` (it can do its
//! work, else 503 with the reason). Written by hand because it must stay small in the agent and
//! must not be a way in: a request is at most 4 KiB and 5 seconds, an answer 10 seconds, 16
//! connections at a time, one request per connection, and nothing of the request but its first
//! line is looked at.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{interval, sleep, timeout};

use crate::{Handle, names};

/// Longest request head that is read.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 4096;
/// Connections served at a time; further ones wait in the listener's backlog.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;
const REQUEST_TIME_MAX: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5000 });
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Serves the admin endpoint until the future is dropped. `ready` says why the process is not
/// ready, in words for an operator.
pub async fn serve<R>(listener: TcpListener, handle: Handle, ready: R)
where
    R: Fn() -> Result<(), String> + Send + Sync + 'static,
{
    let ready = Arc::new(ready);
    let slots = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    let mut upkeep = interval(UPKEEP_INTERVAL);
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot.expect("the semaphore is never closed"),
            _ = upkeep.tick() => { handle.upkeep(); continue }
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = upkeep.tick() => { handle.upkeep(); continue }
        };
        match accepted {
            Ok((stream, _)) => {
                let (handle, ready) = (handle.clone(), Arc::clone(&ready));
                tokio::spawn(async move {
                    answer(stream, &handle, &*ready).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin endpoint cannot accept");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// One request, one answer, close. Errors of the peer are of no interest to anybody.
async fn answer(mut stream: TcpStream, handle: &Handle, ready: &dyn ReadyCheck) {
    let mut head = [0u8; ADMIN_REQUEST_BYTES_MAX];
    let reply = match timeout(REQUEST_TIME_MAX, read_head(&mut stream, &mut head)).await {
        Ok(Ok(length)) => respond(&head[..length], handle, ready),
        Ok(Err(HeadError::TooLong)) => Reply::text(431, "request head over 4 KiB\n"),
        Ok(Err(HeadError::Closed)) => return,
        Err(_) => Reply::text(408, "no complete request within 5 s\n"),
    };
    metrics::counter!(names::ADMIN_REQUESTS, "code" => reply.code.to_string()).increment(1);
    let _ = timeout(RESPONSE_TIME_MAX, async {
        stream.write_all(&reply.encode()).await?;
        stream.shutdown().await
    })
    .await;
}

/// A `Fn` that can be named as an object, so that `answer` is compiled once.
trait ReadyCheck: Send + Sync {
    fn check(&self) -> Result<(), String>;
}

impl<R: Fn() -> Result<(), String> + Send + Sync> ReadyCheck for R {
    fn check(&self) -> Result<(), String> {
        self()
    }
}

enum HeadError {
    TooLong,
    Closed,
}

async fn read_head(stream: &mut TcpStream, head: &mut [u8]) -> Result<usize, HeadError> {
    let mut length = 0;
    loop {
        let count = stream.read(&mut head[length..]).await.map_err(|_| HeadError::Closed)?;
        if count == 0 {
            return Err(HeadError::Closed);
        }
        length += count;
        if ends_head(&head[..length]) {
            return Ok(length);
        }
        if length == head.len() {
            return Err(HeadError::TooLong);
        }
    }
}

fn ends_head(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|window| window == b"\r\n\r\n")
        || bytes.windows(2).any(|window| window == b"\n\n")
}

fn respond(head: &[u8], handle: &Handle, ready: &dyn ReadyCheck) -> Reply {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Reply::text(400, "not an HTTP/1.1 request\n");
    };
    if !version.starts_with(b"HTTP/1.") {
        return Reply::text(400, "not an HTTP/1.1 request\n");
    }
    if method != b"GET" && method != b"HEAD" {
        return Reply::text(405, "only GET\n");
    }
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let mut reply = match path {
        b"/metrics" => Reply {
            code: 200,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: handle.render(),
            head_only: false,
        },
        b"/healthz" => Reply::text(200, "ok\n"),
        b"/readyz" => match ready.check() {
            Ok(()) => Reply::text(200, "ready\n"),
            Err(reason) => Reply::text(503, &format!("not ready: {reason}\n")),
        },
        _ => Reply::text(404, "here are /metrics, /healthz and /readyz\n"),
    };
    reply.head_only = method == b"HEAD";
    reply
}

struct Reply {
    code: u16,
    content_type: &'static str,
    body: String,
    head_only: bool,
}

impl Reply {
    fn text(code: u16, body: &str) -> Self {
        let body = body.to_owned();
        Self { code, content_type: "text/plain; charset=utf-8", body, head_only: false }
    }

    fn encode(&self) -> Vec<u8> {
        let reason = match self.code {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let mut bytes = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.code,
            self.content_type,
            self.body.len(),
        )
        .into_bytes();
        if !self.head_only {
            bytes.extend_from_slice(self.body.as_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    async fn reply(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn silent_connections_hold_it_for_the_time_of_a_request_at_most() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, crate::install(), || Ok(())));
        let started = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..ADMIN_CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(reply(asking).await.starts_with("HTTP/1.1 200"));
        assert!(started.elapsed() < 10 * REQUEST_TIME_MAX);
        for stream in silent {
            assert!(reply(stream).await.starts_with("HTTP/1.1 408"));
        }
    }
}
