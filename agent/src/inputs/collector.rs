//! BlueKing collectors on Unix stream sockets (agent.md 1.1, 1.5, 1.6).
//!
//! A successful write is the only receipt that a collector has, and a write that blocks for 5 s
//! makes it send the frame again. So this reader never waits for the spool: a record is taken or
//! counted as dropped. An idle connection costs no buffer and no timer; a frame whose rest does
//! not come is bounded in time, and all unfinished frames together in memory.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use metrics::gauge;
use skein_observe::names;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::gse::{Decoder, Frame, FrameError};
use super::info::InfoCell;
use super::socket::{bind_patiently, failed};
use crate::spool::{Input, Refusal, Spool};

/// Collectors connected at once; a host has a dozen.
const CONNECTIONS_MAX: usize = 1_024;
/// Unfinished frames of all connections together: six of the largest.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a frame may take from its first byte: twelve times a client's write deadline.
const FRAME_TIME: Duration = Duration::from_secs(60);
/// How long the answer to a question may take to be written.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// Questions answered per read; more in one read are no collector's.
const ANSWERS_MAX: usize = 16;
/// Read by one connection before others get their turn.
const TURN_BYTES: usize = 512 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// The collectors' side of the agent, shared by all listening paths.
#[derive(Clone)]
pub struct Collectors {
    shared: Rc<Shared>,
}

struct Shared {
    spool: Rc<Spool>,
    info: InfoCell,
    frame_time: Duration,
    connections: Cell<usize>,
    held_bytes: Cell<usize>,
    /// One for all: what a read returned is decoded before anything is awaited.
    scratch: RefCell<Box<[u8]>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a frame did not end in time")]
    Slow,
    #[error("unfinished frames of all connections take more than {HELD_BYTES_MAX} bytes")]
    Memory,
    #[error("the answer to an agent-info request is not read")]
    Answer,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl End {
    fn kind(&self) -> &'static str {
        match self {
            End::Frame(error) => error.kind(),
            End::Slow => "slow_frame",
            End::Memory => "memory",
            End::Answer => "answer",
            End::Io(_) => "io",
        }
    }
}

impl Collectors {
    /// Records go to `spool`, questions are answered from `info`.
    pub fn new(spool: Rc<Spool>, info: InfoCell) -> Collectors {
        Collectors::with_frame_time(spool, info, FRAME_TIME)
    }

    /// With another time that a frame may take from its first byte to its last.
    pub fn with_frame_time(spool: Rc<Spool>, info: InfoCell, frame_time: Duration) -> Collectors {
        Collectors {
            shared: Rc::new(Shared {
                spool,
                info,
                frame_time,
                connections: Cell::new(0),
                held_bytes: Cell::new(0),
                scratch: RefCell::new(vec![0; READ_BYTES].into()),
            }),
        }
    }

    /// Accepts collectors at `path` for ever.
    pub async fn listen(&self, path: &Path, mode: u32) {
        let listener = bind_patiently(Input::Collector, path, mode).await;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.accept(stream),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot accept a collector");
                    failed(Input::Collector, "accept");
                    // Out of descriptors: the backlog keeps the others waiting.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn accept(&self, stream: UnixStream) {
        let shared = self.shared.clone();
        if shared.connections.get() >= CONNECTIONS_MAX {
            failed(Input::Collector, "connections");
            return;
        }
        shared.count_connections(1);
        tokio::task::spawn_local(async move {
            let mut connection =
                Connection { shared, stream, decoder: Decoder::default(), held: 0 };
            if let Err(end) = connection.run().await {
                failed(Input::Collector, end.kind());
                tracing::debug!(error = %end, "collector's connection closed");
            }
        });
    }
}

impl Shared {
    fn count_connections(&self, change: isize) {
        let now = self.connections.get().saturating_add_signed(change);
        self.connections.set(now);
        gauge!(names::AGENT_INPUT_CONNECTIONS, "input" => "collector").set(now as f64);
    }

    fn take(&self, frame: Frame<'_>, asked: &mut usize) {
        match frame {
            Frame::AskInfo => *asked += 1,
            // The frame's own time is a hint only: some clients write milliseconds into it
            // (agent.md 1.2). What collectors tell of the time is in the payload.
            Frame::Data { data_id, payload, .. } => {
                let now_ms = crate::clock::wall_ms();
                let pushed = self.spool.push(Input::Collector, data_id, now_ms, payload);
                // Other refusals are counted by the spool, as dropped.
                if pushed == Err(Refusal::Lanes) {
                    failed(Input::Collector, "lanes");
                }
            }
        }
    }
}

struct Connection {
    shared: Rc<Shared>,
    stream: UnixStream,
    decoder: Decoder,
    /// This connection's part of [`Shared::held_bytes`].
    held: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.count_connections(-1);
        self.shared.held_bytes.set(self.shared.held_bytes.get() - self.held);
    }
}

impl Connection {
    /// Until the collector closes: everything before its end of stream is taken.
    async fn run(&mut self) -> Result<(), End> {
        let mut frame_started: Option<Instant> = None;
        let mut turn_bytes = 0;
        loop {
            match frame_started {
                None => self.stream.readable().await?,
                Some(started) => {
                    let ready = tokio::time::timeout_at(
                        started + self.shared.frame_time,
                        self.stream.readable(),
                    );
                    ready.await.map_err(|_| End::Slow)??;
                }
            }
            let frames_before = self.decoder.frames();
            let mut asked = 0;
            match self.read(&mut asked) {
                Ok(0) => return Ok(()),
                Ok(bytes) => turn_bytes += bytes,
                Err(End::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(end) => return Err(end),
            }
            for _ in 0..asked.min(ANSWERS_MAX) {
                self.answer().await?;
            }
            frame_started = match self.decoder.held_bytes() {
                0 => None,
                _ if self.decoder.frames() > frames_before => Some(Instant::now()),
                _ => frame_started.or_else(|| Some(Instant::now())),
            };
            if turn_bytes >= TURN_BYTES {
                turn_bytes = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn read(&mut self, asked: &mut usize) -> Result<usize, End> {
        let mut scratch = self.shared.scratch.borrow_mut();
        let bytes = self.stream.try_read(&mut scratch)?;
        let shared = &self.shared;
        let fed = self.decoder.feed(&scratch[..bytes], |frame| shared.take(frame, asked));
        let held = self.decoder.held_bytes();
        let all = shared.held_bytes.get() - self.held + held;
        shared.held_bytes.set(all);
        self.held = held;
        fed?;
        if all > HELD_BYTES_MAX { Err(End::Memory) } else { Ok(bytes) }
    }

    /// One write: a client reads header and body by one read each (agent.md 1.6, quirk 1), and
    /// nothing else is ever written here (quirk 2).
    async fn answer(&self) -> Result<(), End> {
        let answer = self.shared.info.answer();
        let write = async {
            loop {
                self.stream.writable().await?;
                match self.stream.try_write(&answer) {
                    Ok(bytes) if bytes == answer.len() => return Ok(()),
                    Ok(_) => return Err(End::Answer),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::time::timeout(ANSWER_TIME, write).await.map_err(|_| End::Answer)?
    }
}
