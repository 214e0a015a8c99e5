//! The agent's side of the emit socket.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use metrics::gauge;
use skein_observe::names;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::wire::{self, FromClient, MESSAGE_BYTES_MAX, Malformed};
use crate::inputs::socket::{bind_patiently, failed};
use crate::spool::{Input, Refusal, Spool};

/// Programs connected at once.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take for its first message.
const OPEN_TIME: Duration = Duration::from_secs(5);
/// Requests read and not answered; the window in bytes is the client's to keep.
const UNANSWERED_MAX: usize = 64;

/// Listens for `skein-agent emit`.
#[derive(Clone)]
pub struct Emitters {
    spool: Rc<Spool>,
    connections: Rc<Cell<usize>>,
}

#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("message of {0} bytes; at most {MESSAGE_BYTES_MAX} are taken")]
    TooLong(u32),
    #[error("the first message did not come in time")]
    Slow,
    #[error("{0}")]
    Refused(String),
    #[error("the spool ended")]
    Spool,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl End {
    fn kind(&self) -> &'static str {
        match self {
            End::Malformed(_) => "malformed",
            End::TooLong(_) => "message_too_long",
            End::Slow => "slow_open",
            End::Refused(_) => "refused",
            End::Spool => "spool",
            End::Io(_) => "io",
        }
    }
}

impl Emitters {
    /// Records go to `spool`.
    pub fn new(spool: Rc<Spool>) -> Emitters {
        Emitters { spool, connections: Rc::default() }
    }

    /// Accepts clients at `path` for ever.
    pub async fn listen(&self, path: &Path) {
        let listener = bind_patiently(Input::Emit, path, 0o600).await;
        loop {
            match listener.accept().await {
                Ok((stream, _)) if self.connections.get() < CONNECTIONS_MAX => {
                    let emitters = self.clone();
                    tokio::task::spawn_local(async move { emitters.serve(stream).await });
                }
                Ok(_) => failed(Input::Emit, "connections"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an emitter");
                    failed(Input::Emit, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(&self, stream: UnixStream) {
        self.count(1);
        let (mut reader, mut writer) = stream.into_split();
        if let Err(end) = self.run(&mut reader, &mut writer).await {
            failed(Input::Emit, end.kind());
            tracing::debug!(error = %end, "emitter's connection closed");
            if !matches!(end, End::Io(_)) {
                // It may be gone already.
                let _ = writer.write_all(&wire::refused(&end.to_string())).await;
            }
        }
        self.count(-1);
    }

    fn count(&self, change: isize) {
        self.connections.set(self.connections.get().saturating_add_signed(change));
        let now = self.connections.get() as f64;
        gauge!(names::AGENT_INPUT_CONNECTIONS, "input" => "emit").set(now);
    }

    async fn run(
        &self,
        reader: &mut OwnedReadHalf,
        writer: &mut OwnedWriteHalf,
    ) -> Result<(), End> {
        let mut buffer = Vec::new();
        let first = tokio::time::timeout(OPEN_TIME, read_message(reader, &mut buffer)).await;
        first.map_err(|_| End::Slow)??;
        let FromClient::Open { version, data_id } = wire::decode_from_client(&buffer)? else {
            return Err(Malformed.into());
        };
        if version != wire::VERSION {
            let own = wire::VERSION;
            return Err(End::Refused(format!("emit protocol {version} is unknown; use {own}")));
        }
        writer.write_all(&wire::ready()).await?;
        let (kept, answers) = mpsc::channel(UNANSWERED_MAX);
        let taking = self.take(data_id, reader, buffer, kept);
        tokio::try_join!(taking, answer(answers, writer))?;
        Ok(())
    }

    /// Reads records into the spool; reads nothing while the spool has no room.
    async fn take(
        &self,
        data_id: u32,
        reader: &mut OwnedReadHalf,
        mut buffer: Vec<u8>,
        kept: mpsc::Sender<(u64, oneshot::Receiver<()>)>,
    ) -> Result<(), End> {
        loop {
            read_message(reader, &mut buffer).await?;
            match wire::decode_from_client(&buffer)? {
                FromClient::End => return Ok(()),
                FromClient::Open { .. } => return Err(Malformed.into()),
                FromClient::Records { request, mut records } => {
                    while !self.spool.has_room(data_id) {
                        self.spool.room().await;
                    }
                    while let Some(record) = wire::next_record(&mut records) {
                        self.push(data_id, record?).await?;
                    }
                    let receipt = self.spool.receipt(data_id);
                    // An answerer that is gone took the connection with it.
                    let _ = kept.send((request, receipt)).await;
                }
            }
        }
    }

    async fn push(&self, data_id: u32, record: &[u8]) -> Result<(), End> {
        loop {
            let now_ms = crate::clock::wall_ms();
            match self.spool.push(Input::Emit, data_id, now_ms, record) {
                Ok(()) => return Ok(()),
                Err(Refusal::Disk | Refusal::Full) => self.spool.room().await,
                Err(refusal) => return Err(End::Refused(refusal.to_string())),
            }
        }
    }
}

async fn answer(
    mut answers: mpsc::Receiver<(u64, oneshot::Receiver<()>)>,
    writer: &mut OwnedWriteHalf,
) -> Result<(), End> {
    while let Some((request, receipt)) = answers.recv().await {
        receipt.await.map_err(|_| End::Spool)?;
        writer.write_all(&wire::kept(request)).await?;
    }
    Ok(())
}

async fn read_message(reader: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> Result<(), End> {
    let bytes = reader.read_u32().await?;
    if bytes as usize > MESSAGE_BYTES_MAX {
        return Err(End::TooLong(bytes));
    }
    buffer.clear();
    // Grows with what arrives, not with what is announced.
    let got = reader.take(bytes.into()).read_to_end(buffer).await?;
    if got < bytes as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}
