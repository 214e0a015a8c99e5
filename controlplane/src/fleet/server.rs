//! The Unix socket to which data processes connect, and one task pair per link.
//!
//! The socket is private (mode 0600) and the peer's user must be this process's own. A link begins
//! with Register, within the time and bytes of every unproved connection; anything that cannot be
//! read ends it, is counted, and the data process comes again.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use prost::Message;
use skein_observe::names;
use skein_wire::fleet::v1::from_data::Kind as From;
use skein_wire::fleet::v1::to_data::Kind as To;
use skein_wire::fleet::v1::{
    EnrolAnswer, EnrolForward, FromAgent, FromData, Register, SessionUp, Welcome,
};
use skein_wire::frame::FrameDecoder;
use skein_wire::ids::{AgentId, CommandId, Instance};
use skein_wire::limits::{FLEET_MESSAGE_BYTES_MAX, PRE_AUTH_BYTES_MAX, PRE_AUTH_TIME_MS};
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::{AgentMessage, RenewRequest, server_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::events::{Inboxes, Purpose, TaskEvent, TransferEvent};
use super::{Fleet, LINK_QUEUE_BYTES, LINK_QUEUE_FRAMES, Link, Outgoing, to_data};
use crate::api::types::AgentLoad;
use crate::clock;
use crate::identity::Enroller;
use crate::registry::{Facts, Session};

/// Links at one time.
const LINKS_MAX: usize = 64;
/// Enrolments and renewals that are worked on at one time, all links together. Further ones wait
/// and hold up their link, whose data process bounds what it accepts.
const ENROLMENTS_MAX: usize = 256;
/// Bytes read from a link at a time.
const READ_BYTES: usize = 256 * 1024;

/// What agents and data processes are told about liveness.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeats {
    /// Between two heartbeats.
    pub interval_ms: u32,
    /// Missed before an agent counts as lost.
    pub misses: u32,
}

/// Serves data processes.
pub struct Server {
    fleet: Arc<Fleet>,
    enroller: Arc<Enroller>,
    inboxes: Inboxes,
    heartbeats: Heartbeats,
    enrolments: Arc<Semaphore>,
    own_uid: u32,
    next_link: AtomicU64,
}

/// Binds the socket; one that a dead process left behind is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if path.exists() {
        // A living control process would answer; two must not share a folder.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{}: another control process serves this folder", path.display()),
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Server {
    /// From its parts; `socket` tells whose processes may connect: those of its owner.
    pub fn new(
        fleet: Arc<Fleet>,
        enroller: Arc<Enroller>,
        inboxes: Inboxes,
        heartbeats: Heartbeats,
        socket: &Path,
    ) -> io::Result<Self> {
        Ok(Self {
            fleet,
            enroller,
            inboxes,
            heartbeats,
            enrolments: Arc::new(Semaphore::new(ENROLMENTS_MAX)),
            own_uid: std::fs::metadata(socket)?.uid(),
            next_link: AtomicU64::new(1),
        })
    }

    /// Accepts until the process ends.
    pub async fn run(self: Arc<Self>, listener: UnixListener) {
        let links = Arc::new(Semaphore::new(LINKS_MAX));
        // Links end with this task.
        let mut serving = JoinSet::new();
        loop {
            while serving.try_join_next().is_some() {}
            let Ok(permit) = links.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a data process");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == self.own_uid => {
                    let this = self.clone();
                    serving.spawn(async move {
                        this.serve(stream).await;
                        drop(permit);
                    });
                }
                peer => {
                    refused("user");
                    tracing::warn!(?peer, "a process of another user is not served");
                }
            }
        }
    }

    async fn serve(&self, stream: UnixStream) {
        let id = self.next_link.fetch_add(1, Ordering::Relaxed);
        let (reader, writer) = stream.into_split();
        let mut messages = Messages::new(reader);
        let time = Duration::from_millis(PRE_AUTH_TIME_MS);
        let register = match tokio::time::timeout(time, messages.next()).await {
            Ok(Ok(Some(From::Register(register)))) => register,
            Ok(Ok(_)) => {
                refused("malformed");
                return tracing::warn!("a data process did not register; link closed");
            }
            Ok(Err(error)) => {
                refused("malformed");
                return tracing::warn!(%error, "link closed before registration");
            }
            Err(_) => {
                refused("time");
                return tracing::warn!("no data process registered in time; link closed");
            }
        };
        messages.registered();
        let node = register.node_id.clone();
        tracing::info!(node, pid = register.pid, disk = register.disk_driver, "data process up");
        let (link, frames) = self.admit(id, register);
        let close = link.close.clone();
        let mut writing = tokio::spawn(write_frames(writer, frames));
        self.greet(&link).await;
        let end = tokio::select! {
            end = self.read(&link, &mut messages) => end,
            _ = &mut writing => Err(io::Error::other("writing failed")),
            () = close.notified() => Err(io::Error::other("replaced by a newer link of its node")),
        };
        writing.abort();
        self.dismiss(&link);
        if end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
            refused("malformed");
        }
        let reason = end.err().map_or_else(|| "closed".to_owned(), |error| error.to_string());
        tracing::warn!(node, reason, "data process away");
    }

    fn admit(&self, id: u64, register: Register) -> (Arc<Link>, mpsc::Receiver<Outgoing>) {
        let (frames, queue) = mpsc::channel(LINK_QUEUE_FRAMES);
        let link = Arc::new(Link {
            id,
            register,
            connected_ms: clock::now_ms(),
            table_applied: AtomicU64::new(0),
            frames,
            room: Arc::new(Semaphore::new(LINK_QUEUE_BYTES)),
            close: Arc::new(Notify::new()),
        });
        let mut state = self.fleet.lock();
        for older in state.links.values() {
            if older.register.node_id == link.register.node_id {
                older.close.notify_one();
            }
        }
        state.links.insert(id, link.clone());
        metrics::gauge!(names::CONTROL_FLEET_LINKS).set(state.links.len() as f64);
        (link, queue)
    }

    fn dismiss(&self, link: &Link) {
        link.room.close();
        let links = {
            let mut state = self.fleet.lock();
            state.links.remove(&link.id);
            state.links.len()
        };
        metrics::gauge!(names::CONTROL_FLEET_LINKS).set(links as f64);
        self.fleet.registry.link_down(link.id);
        self.fleet.registry.counts();
    }

    /// All that a data process must know from the first moment.
    async fn greet(&self, link: &Link) {
        let welcome = Welcome {
            heartbeat_interval_ms: self.heartbeats.interval_ms,
            heartbeat_misses: self.heartbeats.misses,
        };
        link.send(&to_data(To::Welcome(welcome))).await;
        link.send(&to_data(To::Revoked(self.fleet.revoked()))).await;
        let (table, taps): (_, Vec<_>) = {
            let state = self.fleet.lock();
            (state.table.clone(), state.taps.values().map(|tap| tap.start.clone()).collect())
        };
        link.send(&to_data(To::Table(table))).await;
        for tap in taps {
            link.send(&to_data(To::TapStart(tap))).await;
        }
    }

    async fn read(&self, link: &Arc<Link>, messages: &mut Messages) -> io::Result<()> {
        while let Some(message) = messages.next().await? {
            self.handle(link, message).await;
        }
        Ok(())
    }

    async fn handle(&self, link: &Arc<Link>, message: From) {
        match message {
            // A second registration on one link means nothing.
            From::Register(_) => {}
            From::SessionUp(up) => self.session_up(link, up).await,
            From::SessionDown(down) => {
                if let Ok(agent) = AgentId::parse(&down.agent_id) {
                    let registry = &self.fleet.registry;
                    registry.session_down(link.id, &agent, down.session_id, &down.reason);
                }
            }
            From::SnapshotEnd(_) => {
                let _ = self.inboxes.transfers.send(TransferEvent::LinkUp(link.id)).await;
            }
            From::FromAgent(from) => self.agent_message(link, from).await,
            From::Enrol(forward) => self.enrol(link, forward).await,
            From::Undeliverable(what) => {
                let purpose = self.fleet.lock().purposes.get(&what.dispatch_id).copied();
                let ids = what.agent_ids.iter().filter_map(|id| AgentId::parse(id).ok()).collect();
                // A queue that is closed belongs to a process that is stopping.
                let _ = match purpose {
                    Some(Purpose::Task(id)) => {
                        let event = TaskEvent::Undeliverable(id, ids);
                        self.inboxes.tasks.send(event).await.ok()
                    }
                    Some(Purpose::Transfer(id)) => {
                        let event = TransferEvent::Undeliverable(id, ids);
                        self.inboxes.transfers.send(event).await.ok()
                    }
                    Some(Purpose::Other) | None => None,
                };
            }
            From::TableApplied(applied) => {
                link.table_applied.store(applied.revision, Ordering::Relaxed);
            }
            From::Lanes(report) => self.fleet.lane_report(report.lanes),
            From::Tap(records) => self.fleet.tap_records(records),
            From::Conflict(conflict) => {
                metrics::counter!(names::CONTROL_EVENTS, "kind" => "identity_conflict")
                    .increment(1);
                tracing::warn!(
                    agent = conflict.agent_id,
                    living = conflict.living_addr,
                    refused = conflict.refused_addr,
                    "a second agent with the identity of a living one was refused; was its host \
                     cloned? remove the identity folder of one and enrol it again"
                );
            }
            From::Fetch(result) => {
                let _ = self.inboxes.transfers.send(TransferEvent::Fetched(result)).await;
            }
            From::SeedSent(sent) => {
                let _ = self.inboxes.transfers.send(TransferEvent::Sent(sent)).await;
            }
        }
    }

    async fn session_up(&self, link: &Link, up: SessionUp) {
        let Ok(agent) = AgentId::parse(&up.agent_id) else { return };
        let session = Session {
            link: link.id,
            session_id: up.session_id,
            instance: Instance::from_slice(&up.instance).ok(),
            remote_addr: up.remote_addr,
            connected_ms: up.connected_ms,
        };
        if !self.fleet.registry.session_up(&agent, session) {
            tracing::warn!(%agent, "an agent with a certificate is not registered; closed");
            let close = skein_wire::fleet::v1::CloseSession {
                agent_id: agent.to_string(),
                reason: "not registered with this server; enrol again".into(),
            };
            link.send(&to_data(To::Close(close))).await;
            return;
        }
        let _ = self.inboxes.tasks.send(TaskEvent::AgentUp(agent.clone())).await;
        let _ = self.inboxes.transfers.send(TransferEvent::AgentUp(agent)).await;
    }

    async fn agent_message(&self, link: &Arc<Link>, from: FromAgent) {
        let Ok(agent) = AgentId::parse(&from.agent_id) else { return };
        let Ok(AgentMessage { kind: Some(kind) }) = AgentMessage::decode(from.message) else {
            // Of a newer agent, or damaged: what is unknown is ignored.
            return;
        };
        let Inboxes { tasks, transfers, facts } = &self.inboxes;
        match kind {
            Agent::Heartbeat(_) => {}
            Agent::Facts(report) => {
                let _ = facts.send((agent, Facts::from_report(report))).await;
            }
            Agent::TaskUpdate(update) => {
                let _ = tasks.send(TaskEvent::Update(agent, update)).await;
            }
            Agent::TaskOutput(output) => {
                let _ = tasks.send(TaskEvent::Output(agent, output)).await;
            }
            Agent::TransferUpdate(update) => {
                let _ = transfers.send(TransferEvent::Update(agent, update)).await;
            }
            Agent::FileOffer(offer) => {
                let _ = transfers.send(TransferEvent::Offer(agent, offer)).await;
            }
            Agent::CommandRefused(refused) => {
                tracing::warn!(%agent, reason = refused.reason, "an agent refused a command");
                metrics::counter!(names::CONTROL_EVENTS, "kind" => "command_refused").increment(1);
                if let Ok(id) = CommandId::from_slice(&refused.command_id) {
                    let reason = refused.reason;
                    let event = TaskEvent::Refused(agent.clone(), id, reason.clone());
                    let _ = tasks.send(event).await;
                    let _ = transfers.send(TransferEvent::Refused(agent, id, reason)).await;
                }
            }
            Agent::Echo(echo) => self.fleet.pings.echo(echo.nonce, agent),
            Agent::Status(status) => {
                let load = AgentLoad {
                    reported_ms: clock::now_ms(),
                    spool_bytes: status.spool_bytes,
                    spool_records: status.spool_records,
                    dropped_records: status.dropped_records,
                    cpu_permille: status.cpu_permille,
                    rss_bytes: status.rss_bytes,
                };
                self.fleet.registry.report_load(&agent, load);
            }
            Agent::Renew(request) => self.renew(link, agent, request).await,
            Agent::MeshReport(report) => {
                let _ = transfers.send(TransferEvent::Mesh(agent, report)).await;
            }
        }
    }

    async fn enrol(&self, link: &Arc<Link>, forward: EnrolForward) {
        let Ok(permit) = self.enrolments.clone().acquire_owned().await else { return };
        let (enroller, link) = (self.enroller.clone(), link.clone());
        tokio::spawn(async move {
            let reply = enroller.enrol(&forward.request, &forward.remote_addr).await;
            let reply = reply.encode_to_vec().into();
            let answer = EnrolAnswer { request_id: forward.request_id, reply };
            link.send(&to_data(To::Enrol(answer))).await;
            drop(permit);
        });
    }

    async fn renew(&self, _link: &Arc<Link>, agent: AgentId, request: RenewRequest) {
        let Ok(permit) = self.enrolments.clone().acquire_owned().await else { return };
        let (enroller, fleet) = (self.enroller.clone(), self.fleet.clone());
        tokio::spawn(async move {
            let reply = enroller.renew(&agent, &request).await;
            fleet.tell(vec![(agent, server_message::Kind::Renew(reply))]).await;
            drop(permit);
        });
    }
}

async fn write_frames(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Outgoing>) {
    let mut batch = Vec::new();
    while frames.recv_many(&mut batch, 64).await > 0 {
        for outgoing in batch.drain(..) {
            if writer.write_all(&outgoing.frame).await.is_err() {
                return;
            }
        }
    }
}

/// Writes facts as they come, many per batch.
pub async fn store_facts(
    registry: Arc<crate::registry::Registry>,
    mut queue: mpsc::Receiver<(AgentId, Facts)>,
) {
    let mut reports = Vec::new();
    while queue.recv_many(&mut reports, super::events::QUEUE_EVENTS).await > 0 {
        let newest: BTreeMap<AgentId, Facts> = reports.drain(..).collect();
        if let Err(error) = registry.report_facts(newest.into_iter().collect()).await {
            tracing::error!(%error, "facts are not stored; agents repeat them at their next session");
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The messages of one link, decoded.
struct Messages {
    reader: OwnedReadHalf,
    buffer: BytesMut,
    decoder: FrameDecoder,
    read_bytes: usize,
}

/// Counts a link that is closed for its peer's fault.
fn refused(reason: &'static str) {
    metrics::counter!(names::CONTROL_CONNECTIONS_REFUSED, "listener" => "fleet", "reason" => reason)
        .increment(1);
}

impl Messages {
    fn new(reader: OwnedReadHalf) -> Self {
        let decoder = FrameDecoder::new(PRE_AUTH_BYTES_MAX);
        Self { reader, buffer: BytesMut::new(), decoder, read_bytes: PRE_AUTH_BYTES_MAX }
    }

    /// From now on messages may be as long as the link allows.
    fn registered(&mut self) {
        self.decoder = FrameDecoder::new(FLEET_MESSAGE_BYTES_MAX);
        self.read_bytes = READ_BYTES;
    }

    /// The next message; `None` at the end. Unknown kinds are passed over.
    async fn next(&mut self) -> io::Result<Option<From>> {
        loop {
            while let Some((range, consumed)) = self.decoder.next(&self.buffer).map_err(invalid)? {
                let mut frame = self.buffer.split_to(consumed).freeze();
                frame.advance(range.start);
                let message = FromData::decode(frame).map_err(invalid)?;
                if let Some(kind) = message.kind {
                    return Ok(Some(kind));
                }
            }
            self.buffer.reserve(self.read_bytes);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }
}
