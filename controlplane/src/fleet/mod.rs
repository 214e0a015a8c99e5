//! The way to the agents: data processes connect to a Unix socket and carry the sessions.
//!
//! [`Fleet`] is what the rest of the control process sees: sign and send a command, tell agents
//! something, push the routing table and the revoked set, watch lanes and taps. [`server`] accepts
//! the links. What a data process must know at any time (table, revoked set, taps) is sent whole
//! at its registration and again at each change; nothing about a session is ever stored.

pub mod events;
mod ping;
pub mod server;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use ring::rand::SystemRandom;
use skein_observe::names;
use skein_wire::command::{Dispatch, ORDERS_PER_SIGNATURE, SignError};
use skein_wire::fleet::v1::to_data::Kind;
use skein_wire::fleet::v1::{
    CloseSession, LaneState, Register, Revoked, RoutingTable, TapRecords, TapStart, TapStop,
    Target, ToAgents, ToData,
};
use skein_wire::frame;
use skein_wire::ids::{AgentId, CommandId};
use skein_wire::limits::{DISPATCH_AGENTS_MAX, FLEET_MESSAGE_BYTES_MAX};
use skein_wire::signal::v1::{CommandBody, ServerMessage, command_body, server_message};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

pub use events::Purpose;
pub use ping::PingOutcome;

use crate::api::types::{DataProcess, Lane};
use crate::identity::CommandKeys;
use crate::registry::Registry;
use crate::{clock, random};

/// Frames that wait for one data process.
const LINK_QUEUE_FRAMES: usize = 1_024;
/// Bytes that wait for one data process: eight of the largest messages.
const LINK_QUEUE_BYTES: usize = 8 * FLEET_MESSAGE_BYTES_MAX;
/// Targets of one fan-out are cut into messages of about this size, so that the data process can
/// begin while the rest is still encoded.
const FAN_OUT_BYTES: usize = 512 * 1024;
/// Agents of a dispatch that is signed on the spot: about a millisecond.
const SIGN_AT_ONCE_MAX: usize = 512;
/// Dispatches that are remembered for undeliverable reports, which come within milliseconds.
const PURPOSES_MAX: usize = 4_096;
/// Lanes that are remembered: 200,000 agents with five lanes each.
const LANES_MAX: usize = 1_000_000;
/// Taps at one time.
pub const TAPS_MAX: usize = 64;
/// Messages that wait for one tap's reader; what does not fit is counted as skipped.
const TAP_QUEUE: usize = 64;

/// Why a message could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The command cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] std::io::Error),
    /// Too many at one time.
    #[error("there are {TAPS_MAX} taps already; end one first")]
    Taps,
}

/// One frame on its way, with its share of the queue's bytes.
struct Outgoing {
    frame: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// One connected data process.
struct Link {
    id: u64,
    register: Register,
    connected_ms: i64,
    table_applied: AtomicU64,
    frames: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
    /// Told when the link must end.
    close: Arc<Notify>,
}

impl Link {
    /// Queues a message; waits for room. An error means that the link has ended, whose end is
    /// handled where it is noticed.
    async fn send(&self, message: &ToData) -> bool {
        let mut frame = Vec::new();
        if let Err(error) = frame::encode_message(message, FLEET_MESSAGE_BYTES_MAX, &mut frame) {
            tracing::error!(%error, "a message to the data process is too long; dropped");
            return false;
        }
        let bytes = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().acquire_many_owned(bytes).await else { return false };
        let waiting = LINK_QUEUE_BYTES - self.room.available_permits().min(LINK_QUEUE_BYTES);
        metrics::gauge!(names::CONTROL_FLEET_QUEUE_BYTES).set(waiting as f64);
        self.frames.send(Outgoing { frame, _room: room }).await.is_ok()
    }
}

struct Tap {
    start: TapStart,
    reader: mpsc::Sender<TapRecords>,
    /// Skipped on the way from the data process to the reader.
    skipped: u64,
}

#[derive(Default)]
struct State {
    links: BTreeMap<u64, Arc<Link>>,
    purposes: HashMap<u64, Purpose>,
    purposes_in_order: VecDeque<u64>,
    lanes: HashMap<(u32, String), (LaneState, i64)>,
    taps: BTreeMap<u64, Tap>,
    table: RoutingTable,
}

/// The way to the agents.
pub struct Fleet {
    registry: Arc<Registry>,
    keys: Arc<CommandKeys>,
    state: Mutex<State>,
    next_id: AtomicU64,
    pings: ping::Pings,
    random: SystemRandom,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fleet({} links)", self.lock().links.len())
    }
}

/// The name of an order in metrics.
fn label_of(kind: &command_body::Kind) -> &'static str {
    match kind {
        command_body::Kind::RunTask(_) => "run_task",
        command_body::Kind::CancelTask(_) => "cancel_task",
        command_body::Kind::JoinTransfer(_) => "join_transfer",
        command_body::Kind::OfferFile(_) => "offer_file",
        command_body::Kind::CancelTransfer(_) => "cancel_transfer",
        command_body::Kind::TransferPeers(_) => "transfer_peers",
        command_body::Kind::RemovePeers(_) => "remove_peers",
    }
}

fn to_data(kind: Kind) -> ToData {
    ToData { kind: Some(kind) }
}

impl Fleet {
    /// Without links yet.
    pub fn new(registry: Arc<Registry>, keys: Arc<CommandKeys>, table: RoutingTable) -> Self {
        // Ids of dispatches and taps begin at a time, so that a data process that outlives this
        // process never mistakes an old one for a new one.
        let first = clock::now_ms().unsigned_abs() << 16;
        Self {
            registry,
            keys,
            state: Mutex::new(State { table, ..State::default() }),
            next_id: AtomicU64::new(first),
            pings: ping::Pings::default(),
            random: SystemRandom::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.lock().links.values().cloned().collect()
    }

    fn link(&self, id: u64) -> Option<Arc<Link>> {
        self.lock().links.get(&id).cloned()
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    // ------------------------------------------------------------------------- to agents

    /// Signs one command for the agents that have a session and sends it. Answers with the
    /// command's id and with whom it was sent to; the others wait until they come.
    pub async fn command(
        &self,
        purpose: Purpose,
        kind: command_body::Kind,
        not_after_ms: i64,
        agents: &[AgentId],
        before_send: impl FnOnce(CommandId, &[AgentId]),
    ) -> Result<(), FleetError> {
        let label = label_of(&kind);
        let online = agents.iter().filter(|agent| self.registry.link_of(agent).is_some());
        let online: Vec<AgentId> = online.cloned().collect();
        let command_id = CommandId(random::bytes()?);
        before_send(command_id, &online);
        if online.is_empty() {
            return Ok(());
        }
        let body = CommandBody { command_id: command_id.to_bytes(), kind: Some(kind) };
        for agents in online.chunks(DISPATCH_AGENTS_MAX) {
            let dispatch = self.sign(&body, not_after_ms, agents).await?;
            self.send_dispatch(purpose, label, agents, dispatch).await;
        }
        Ok(())
    }

    /// Signs an order of its own for each agent that has a session, some with one signature, and
    /// sends them. The others get nothing.
    pub async fn command_each(
        &self,
        purpose: Purpose,
        orders: Vec<(AgentId, command_body::Kind)>,
        not_after_ms: i64,
    ) -> Result<(), FleetError> {
        let Some((_, kind)) = orders.first() else { return Ok(()) };
        let label = label_of(kind);
        let command_id = CommandId(random::bytes()?).to_bytes();
        let online = orders.into_iter().filter(|(agent, _)| self.registry.link_of(agent).is_some());
        let bodies = online.map(|(agent, kind)| {
            (agent, CommandBody { command_id: command_id.clone(), kind: Some(kind) })
        });
        let bodies: Vec<_> = bodies.collect();
        let agents: Vec<AgentId> = bodies.iter().map(|(agent, _)| agent.clone()).collect();
        let dispatches = self.sign_each(bodies, not_after_ms).await?;
        for (agents, dispatch) in agents.chunks(ORDERS_PER_SIGNATURE).zip(dispatches) {
            self.send_dispatch(purpose, label, agents, dispatch).await;
        }
        Ok(())
    }

    async fn send_dispatch(
        &self,
        purpose: Purpose,
        label: &'static str,
        agents: &[AgentId],
        dispatch: Dispatch,
    ) {
        metrics::counter!(names::CONTROL_DISPATCHES, "command" => label).increment(1);
        metrics::counter!(names::CONTROL_DISPATCH_TARGETS, "command" => label)
            .increment(agents.len() as u64);
        let mut by_link: BTreeMap<u64, Vec<(&AgentId, Bytes)>> = BTreeMap::new();
        for (agent, extra) in agents.iter().zip(dispatch.extras) {
            // One that left since is in nobody's batch and waits for its next session.
            if let Some(link) = self.registry.link_of(agent) {
                by_link.entry(link).or_default().push((agent, extra));
            }
        }
        for (link, targets) in by_link {
            self.fan_out(link, purpose, &dispatch.common, targets.into_iter()).await;
        }
    }

    /// Signs a dispatch; a large one on a thread of its own, for the runtime has two.
    async fn sign(
        &self,
        body: &CommandBody,
        not_after_ms: i64,
        agents: &[AgentId],
    ) -> Result<Dispatch, FleetError> {
        if agents.len() <= SIGN_AT_ONCE_MAX {
            return Ok(self.keys.signer().dispatch(body, not_after_ms, agents, &self.random)?);
        }
        let (keys, body, agents) = (self.keys.clone(), body.clone(), agents.to_vec());
        let signed = tokio::task::spawn_blocking(move || {
            keys.signer().dispatch(&body, not_after_ms, &agents, &SystemRandom::new())
        });
        Ok(signed.await.map_err(std::io::Error::other)??)
    }

    /// Likewise for orders of their own, one dispatch for each [`ORDERS_PER_SIGNATURE`] of them.
    async fn sign_each(
        &self,
        orders: Vec<(AgentId, CommandBody)>,
        not_after_ms: i64,
    ) -> Result<Vec<Dispatch>, FleetError> {
        let is_small = orders.len() <= SIGN_AT_ONCE_MAX;
        let keys = self.keys.clone();
        let sign = move || -> Result<Vec<Dispatch>, SignError> {
            let (signer, random) = (keys.signer(), SystemRandom::new());
            let parts = orders.chunks(ORDERS_PER_SIGNATURE);
            parts.map(|part| signer.dispatch_each(part, not_after_ms, &random)).collect()
        };
        if is_small {
            return Ok(sign()?);
        }
        Ok(tokio::task::spawn_blocking(sign).await.map_err(std::io::Error::other)??)
    }

    /// Tells each agent a message of its own, unsigned (acknowledgements, renewals).
    pub async fn tell(&self, messages: Vec<(AgentId, server_message::Kind)>) {
        let mut by_link: BTreeMap<u64, Vec<(AgentId, Bytes)>> = BTreeMap::new();
        for (agent, kind) in messages {
            if let Some(link) = self.registry.link_of(&agent) {
                let message = ServerMessage { kind: Some(kind) }.encode_to_vec();
                by_link.entry(link).or_default().push((agent, message.into()));
            }
        }
        for (link, targets) in by_link {
            let targets = targets.iter().map(|(agent, extra)| (agent, extra.clone()));
            self.fan_out(link, Purpose::Other, &Bytes::new(), targets).await;
        }
    }

    /// Tells many agents the same, unsigned.
    async fn tell_all(&self, kind: server_message::Kind, agents: &[AgentId]) {
        let common = Bytes::from(ServerMessage { kind: Some(kind) }.encode_to_vec());
        let mut by_link: BTreeMap<u64, Vec<&AgentId>> = BTreeMap::new();
        for agent in agents {
            if let Some(link) = self.registry.link_of(agent) {
                by_link.entry(link).or_default().push(agent);
            }
        }
        for (link, agents) in by_link {
            let targets = agents.into_iter().map(|agent| (agent, Bytes::new()));
            self.fan_out(link, Purpose::Other, &common, targets).await;
        }
    }

    async fn fan_out<'a>(
        &self,
        link: u64,
        purpose: Purpose,
        common: &Bytes,
        targets: impl Iterator<Item = (&'a AgentId, Bytes)>,
    ) {
        let Some(link) = self.link(link) else { return };
        let mut message = self.begin_fan_out(purpose, common);
        let mut bytes = 0;
        let mut parts = Vec::new();
        for (agent, extra) in targets {
            bytes += agent.as_str().len() + extra.len() + 16;
            message.targets.push(Target { agent_id: agent.to_string(), extra });
            if bytes >= FAN_OUT_BYTES {
                bytes = 0;
                let next = self.begin_fan_out(purpose, common);
                parts.push(std::mem::replace(&mut message, next));
            }
        }
        parts.push(message);
        for part in parts.into_iter().filter(|part| !part.targets.is_empty()) {
            link.send(&to_data(Kind::ToAgents(part))).await;
        }
    }

    fn begin_fan_out(&self, purpose: Purpose, common: &Bytes) -> ToAgents {
        let dispatch_id = self.new_id();
        if purpose != Purpose::Other {
            let mut state = self.lock();
            state.purposes.insert(dispatch_id, purpose);
            state.purposes_in_order.push_back(dispatch_id);
            if state.purposes_in_order.len() > PURPOSES_MAX
                && let Some(oldest) = state.purposes_in_order.pop_front()
            {
                state.purposes.remove(&oldest);
            }
        }
        ToAgents { dispatch_id, common: common.clone(), targets: Vec::new() }
    }

    /// Ends an agent's session.
    pub async fn close_session(&self, agent: &AgentId, reason: &str) {
        if let Some(link) = self.registry.link_of(agent).and_then(|link| self.link(link)) {
            let close = CloseSession { agent_id: agent.to_string(), reason: reason.to_owned() };
            link.send(&to_data(Kind::Close(close))).await;
        }
    }

    // ------------------------------------------------------------------------- to data processes

    /// Sends a message to every data process.
    pub async fn tell_data(&self, kind: Kind) {
        let message = to_data(kind);
        for link in self.links() {
            link.send(&message).await;
        }
    }

    /// Sends a message to one data process. False: it is gone.
    pub async fn tell_link(&self, link: u64, kind: Kind) -> bool {
        match self.link(link) {
            Some(link) => link.send(&to_data(kind)).await,
            None => false,
        }
    }

    /// The data process that carries an agent's session.
    pub fn link_of(&self, agent: &AgentId) -> Option<u64> {
        self.registry.link_of(agent)
    }

    /// Makes a table the present one and pushes it.
    pub async fn set_table(&self, table: RoutingTable) {
        self.lock().table = table.clone();
        self.tell_data(Kind::Table(table)).await;
    }

    /// Revision of the present table.
    pub fn table_revision(&self) -> u64 {
        self.lock().table.revision
    }

    /// Pushes the revoked set, whole.
    pub async fn push_revoked(&self) {
        self.tell_data(Kind::Revoked(self.revoked())).await;
    }

    fn revoked(&self) -> Revoked {
        let (agent_ids, certificate_serials) = self.registry.revoked();
        Revoked { agent_ids, certificate_serials }
    }

    /// The connected data processes.
    pub fn data_processes(&self) -> Vec<DataProcess> {
        let view = |link: Arc<Link>| DataProcess {
            node_id: link.register.node_id.clone(),
            version: link.register.version.clone(),
            pid: link.register.pid,
            shards: link.register.shards,
            signal_addr: link.register.signal_addr.clone(),
            data_addr: link.register.data_addr.clone(),
            file_addr: link.register.file_addr.clone(),
            metrics_addr: link.register.metrics_addr.clone(),
            disk_driver: link.register.disk_driver.clone(),
            sessions: self.registry.sessions_of(link.id),
            table_applied: link.table_applied.load(Ordering::Relaxed),
            connected_ms: link.connected_ms,
        };
        self.links().into_iter().map(view).collect()
    }

    // ------------------------------------------------------------------------- taps and lanes

    /// Begins a tap on every data process.
    pub async fn tap(
        &self,
        data_id: u32,
        contains: String,
        records_per_second_max: u32,
    ) -> Result<(u64, mpsc::Receiver<TapRecords>), FleetError> {
        let tap_id = self.new_id();
        let start = TapStart { tap_id, data_id, records_per_second_max, contains };
        let (reader, records) = mpsc::channel(TAP_QUEUE);
        {
            let mut state = self.lock();
            if state.taps.len() >= TAPS_MAX {
                return Err(FleetError::Taps);
            }
            state.taps.insert(tap_id, Tap { start: start.clone(), reader, skipped: 0 });
        }
        self.tell_data(Kind::TapStart(start)).await;
        Ok((tap_id, records))
    }

    /// Ends a tap.
    pub async fn untap(&self, tap_id: u64) {
        if self.lock().taps.remove(&tap_id).is_some() {
            self.tell_data(Kind::TapStop(TapStop { tap_id })).await;
        }
    }

    fn tap_records(&self, mut records: TapRecords) {
        let mut state = self.lock();
        let Some(tap) = state.taps.get_mut(&records.tap_id) else { return };
        records.skipped += std::mem::take(&mut tap.skipped);
        if let Err(mpsc::error::TrySendError::Full(records)) = tap.reader.try_send(records) {
            tap.skipped = records.skipped + records.records.len() as u64;
        }
    }

    fn lane_report(&self, lanes: Vec<LaneState>) {
        let now_ms = clock::now_ms();
        let mut state = self.lock();
        for lane in lanes {
            let key = (lane.data_id, lane.agent_id.clone());
            if state.lanes.len() < LANES_MAX || state.lanes.contains_key(&key) {
                state.lanes.insert(key, (lane, now_ms));
            }
        }
        metrics::gauge!(names::CONTROL_KEPT, "kind" => "lane").set(state.lanes.len() as f64);
    }

    /// Lanes that a test accepts, in order of data id and agent, at most `limit`, and how many
    /// there are in all.
    pub fn lanes(&self, limit: usize, test: impl Fn(&LaneState) -> bool) -> (Vec<Lane>, u64) {
        let mut found: Vec<(LaneState, i64)> = {
            let state = self.lock();
            state.lanes.values().filter(|(lane, _)| test(lane)).cloned().collect()
        };
        let total = found.len() as u64;
        found.sort_by(|(a, _), (b, _)| (a.data_id, &a.agent_id).cmp(&(b.data_id, &b.agent_id)));
        found.truncate(limit);
        let view = |(lane, reported_ms): (LaneState, i64)| Lane {
            hostname: self.registry.hostname(&lane.agent_id),
            agent_id: lane.agent_id,
            data_id: lane.data_id,
            epoch: lane.epoch,
            next_sequence: lane.next_sequence,
            held: lane.held,
            spool_records: lane.spool_records,
            spool_bytes: lane.spool_bytes,
            dropped_records: lane.dropped_records,
            duplicate_records: lane.duplicate_records,
            reported_ms,
        };
        (found.into_iter().map(view).collect(), total)
    }

    /// Forgets an agent's lanes.
    pub fn forget_lanes(&self, agent: &AgentId) {
        self.lock().lanes.retain(|(_, id), _| id != agent.as_str());
    }

    /// Sends a ping and waits for the echoes.
    pub async fn ping(
        &self,
        agents: &[AgentId],
        payload_bytes: usize,
        timeout: std::time::Duration,
    ) -> PingOutcome {
        let nonce = self.new_id();
        let run = self.pings.begin(nonce, agents.len());
        let payload = Bytes::from(vec![0x5a; payload_bytes]);
        let ping = skein_wire::signal::v1::Ping { nonce, payload };
        run.mark_start();
        self.tell_all(server_message::Kind::Ping(ping), agents).await;
        run.wait(timeout).await;
        self.pings.end(nonce, agents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_wire::command::Verifier;
    use skein_wire::signal::v1::{Command, RunTask};

    /// The figure behind [`SIGN_AT_ONCE_MAX`]: run with `--nocapture` to see it.
    #[test]
    fn a_dispatch_to_ten_thousand_agents_verifies_on_each() {
        let folder = tempfile::tempdir().unwrap();
        let keys = CommandKeys::open(folder.path()).unwrap();
        let agents: Vec<AgentId> = (0..10_000)
            .map(|n| AgentId::parse(&format!("020000000052540025157e17533636{n:08}")).unwrap())
            .collect();
        let run = RunTask { script: vec![b'x'; 100 * 1024].into(), ..RunTask::default() };
        let kind = Some(command_body::Kind::RunTask(run));
        let body = CommandBody { command_id: CommandId([7; 16]).to_bytes(), kind };
        for count in [SIGN_AT_ONCE_MAX, agents.len()] {
            let began = std::time::Instant::now();
            let random = SystemRandom::new();
            let signed = keys.signer().dispatch(&body, 1_000, &agents[..count], &random).unwrap();
            println!("a dispatch to {count} agents was signed in {:?}", began.elapsed());
            let verifier = Verifier::new(keys.public().to_vec());
            for place in [0, count / 2, count - 1] {
                let bytes = [&signed.common[..], &signed.extras[place]].concat();
                let message = ServerMessage::decode(&bytes[..]).unwrap();
                let Some(server_message::Kind::Command(command)) = message.kind else { panic!() };
                verifier.verify(&agents[place], &command, 999).unwrap();
                let other = &agents[(place + 1) % count];
                assert!(verifier.verify(other, &command, 999).is_err(), "is for one alone");
                assert!(verifier.verify(other, &Command::default(), 999).is_err());
            }
        }
    }
}
