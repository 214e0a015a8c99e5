//! The agent's side of the emit socket.
//!
//! With each record the spool is told, in the same entry on disk, how many of this client's records
//! it has: a mark under [`key`]. It is forgotten when the client is gone, and after [`RESUME`] when
//! a client of an earlier run does not come back.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
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

use super::wire::{self, CLIENT_BYTES, FromClient, MESSAGE_BYTES_MAX, Malformed};
use crate::inputs::socket::{bind_patiently, failed};
use crate::spool::{Input, Marks, Refusal, Spool};

/// Programs connected at once.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take for its first message.
const OPEN_TIME: Duration = Duration::from_secs(5);
/// Requests read and not answered; the window in bytes is the client's to keep.
const UNANSWERED_MAX: usize = 64;
/// How long clients of an earlier run may take to come back: longer than they try
/// ([`super::client::PATIENCE`]).
const RESUME: Duration = Duration::from_secs(900);
/// What keys of emitters begin with, among the marks of a lane.
const KEY_PREFIX: &[u8; 5] = b"emit:";

const _: () = assert!(RESUME.as_secs() > super::client::PATIENCE.as_secs());

type ClientId = [u8; CLIENT_BYTES];

/// Listens for `skein-agent emit`.
#[derive(Clone)]
pub struct Emitters {
    spool: Rc<Spool>,
    connections: Rc<Cell<usize>>,
    /// How far clients of an earlier run had come, until they are back.
    earlier: Rc<RefCell<HashMap<(u32, ClientId), u64>>>,
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
    /// Records go to `spool`; `marks` is what it knew at the start.
    pub fn new(spool: Rc<Spool>, marks: &BTreeMap<u32, Marks>) -> Emitters {
        let of_lane = |(data_id, marks): (&u32, &Marks)| {
            let known = marks.iter().filter_map(|(key, next)| Some((parse_key(key)?, be(next)?)));
            known.map(|(client, next)| ((*data_id, client), next)).collect::<Vec<_>>()
        };
        let earlier = marks.iter().flat_map(of_lane).collect();
        let connections = Rc::default();
        Emitters { spool, connections, earlier: Rc::new(RefCell::new(earlier)) }
    }

    /// Forgets clients of an earlier run that did not come back.
    pub async fn forget_earlier(&self) {
        if self.earlier.borrow().is_empty() {
            return;
        }
        tokio::time::sleep(RESUME).await;
        for ((data_id, client), _) in self.earlier.take() {
            self.forget(data_id, &client);
        }
    }

    fn forget(&self, data_id: u32, client: &ClientId) {
        // Refused when there is no lane, and then there is no mark.
        let _ = self.spool.mark(data_id, &key(client), b"");
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
        if !first.map_err(|_| End::Slow)?? {
            return Ok(());
        }
        let FromClient::Open { version, data_id, client } = wire::decode_from_client(&buffer)?
        else {
            return Err(Malformed.into());
        };
        if version != wire::VERSION {
            let own = wire::VERSION;
            return Err(End::Refused(format!("emit protocol {version} is unknown; use {own}")));
        }
        let next = self.earlier.borrow_mut().remove(&(data_id, client)).unwrap_or(0);
        writer.write_all(&wire::ready(next)).await?;
        let (kept, answers) = mpsc::channel(UNANSWERED_MAX);
        let taking = self.take(data_id, &client, next, reader, buffer, kept);
        let served = tokio::try_join!(taking, answer(answers, writer));
        // It has all its answers, or nobody wants them any more.
        self.forget(data_id, &client);
        served.map(|_| ())
    }

    /// Reads records into the spool; reads nothing while the spool has no room.
    async fn take(
        &self,
        data_id: u32,
        client: &ClientId,
        mut next: u64,
        reader: &mut OwnedReadHalf,
        mut buffer: Vec<u8>,
        kept: mpsc::Sender<(u64, oneshot::Receiver<()>)>,
    ) -> Result<(), End> {
        let key = key(client);
        while read_message(reader, &mut buffer).await? {
            match wire::decode_from_client(&buffer)? {
                FromClient::Open { .. } => return Err(Malformed.into()),
                // A number left out would be a record lost without a trace.
                FromClient::Records { first, .. } if first > next => return Err(Malformed.into()),
                FromClient::Records { first, mut records } => {
                    while !self.spool.has_room(data_id) {
                        self.spool.room().await;
                    }
                    let mut number = first;
                    while let Some(record) = wire::next_record(&mut records) {
                        let record = record?;
                        number += 1;
                        // What the agent before this one had taken is not taken twice.
                        if number > next {
                            self.push(data_id, record, (&key, &number.to_be_bytes())).await?;
                            next = number;
                        }
                    }
                    let receipt = self.spool.receipt(data_id);
                    // An answerer that is gone took the connection with it.
                    let _ = kept.send((next, receipt)).await;
                }
            }
        }
        Ok(())
    }

    async fn push(&self, data_id: u32, record: &[u8], mark: (&[u8], &[u8])) -> Result<(), End> {
        loop {
            let now_ms = crate::clock::wall_ms();
            match self.spool.push_marked(Input::Emit, data_id, now_ms, record, Some(mark)) {
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
    while let Some((next, receipt)) = answers.recv().await {
        receipt.await.map_err(|_| End::Spool)?;
        writer.write_all(&wire::kept(next)).await?;
    }
    Ok(())
}

/// Reads one message; false when the client closed after a whole one.
async fn read_message(reader: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> Result<bool, End> {
    let mut length = [0; 4];
    if reader.read(&mut length[..1]).await? == 0 {
        return Ok(false);
    }
    reader.read_exact(&mut length[1..]).await?;
    let bytes = u32::from_be_bytes(length);
    if bytes as usize > MESSAGE_BYTES_MAX {
        return Err(End::TooLong(bytes));
    }
    buffer.clear();
    // Grows with what arrives, not with what is announced.
    let got = reader.take(bytes.into()).read_to_end(buffer).await?;
    if got < bytes as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(true)
}

/// Where a client's number is kept.
fn key(client: &ClientId) -> Vec<u8> {
    [&KEY_PREFIX[..], client].concat()
}

fn parse_key(key: &[u8]) -> Option<ClientId> {
    key.strip_prefix(KEY_PREFIX)?.try_into().ok()
}

fn be(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}
