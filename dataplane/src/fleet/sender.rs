//! The queue towards control.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use metrics::{counter, gauge};
use skein_observe::names;
use skein_wire::fleet::v1::from_data::Kind;
use skein_wire::fleet::v1::{EnrolForward, FromAgent, IdentityConflict, Undeliverable};
use skein_wire::ids::AgentId;

use crate::limits::{FLEET_QUEUE_BYTES_MAX, FLEET_QUEUE_LEN};
use crate::router::SessionRef;

/// Enrolments that wait for control at once; each holds a connection.
const ENROLMENTS_MAX: usize = 4_096;

/// Undeliverable agents named in one message: 64-byte ids keep it far below a frame.
const AGENTS_PER_MESSAGE: usize = 8_192;

/// Bytes that a message costs beside its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 160;

/// Sends to control, from any thread, without waiting. What does not fit is dropped and counted:
/// agents repeat reports until control acknowledges them.
#[derive(Clone)]
pub struct FleetSender {
    shared: Arc<Queue>,
}

struct Queue {
    sender: flume::Sender<(Kind, usize)>,
    bytes: AtomicUsize,
    next_request: AtomicU64,
    /// Enrol channels by request.
    enrolling: Mutex<HashMap<u64, SessionRef>>,
    /// Number of the link that is up; 0: none.
    link: AtomicU64,
    links: AtomicU64,
}

/// The link's end of the queue.
pub(super) struct FleetQueue {
    receiver: flume::Receiver<(Kind, usize)>,
    shared: Arc<Queue>,
}

impl FleetSender {
    pub(super) fn new() -> (Self, FleetQueue) {
        let (sender, receiver) = flume::bounded(FLEET_QUEUE_LEN);
        let shared = Arc::new(Queue {
            sender,
            bytes: AtomicUsize::new(0),
            next_request: AtomicU64::new(1),
            enrolling: Mutex::default(),
            link: AtomicU64::new(0),
            links: AtomicU64::new(0),
        });
        (Self { shared: shared.clone() }, FleetQueue { receiver, shared })
    }

    /// Queues a message of about `bytes`; false when the queue is full.
    pub(crate) fn push(&self, kind: Kind, bytes: usize) -> bool {
        let label = label(&kind);
        let bytes = bytes + MESSAGE_OVERHEAD_BYTES;
        let before = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= FLEET_QUEUE_BYTES_MAX;
        if fits && self.shared.sender.try_send((kind, bytes)).is_ok() {
            return true;
        }
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        counter!(names::DATA_FLEET_DROPPED, "message" => label).increment(1);
        false
    }

    /// The link to control that is up; each has another number.
    pub fn link(&self) -> Option<u64> {
        Some(self.shared.link.load(Ordering::Relaxed)).filter(|link| *link > 0)
    }

    /// A message of an agent that is no heartbeat.
    pub fn from_agent(&self, agent: &AgentId, session_id: u64, message: Bytes) {
        let bytes = message.len();
        let agent_id = agent.as_str().to_owned();
        self.push(Kind::FromAgent(FromAgent { agent_id, session_id, message }), bytes);
    }

    /// An enrol request; false when control cannot be asked now.
    pub fn enrol(&self, from: SessionRef, request: Bytes, remote: &str) -> bool {
        if self.link().is_none() {
            return false;
        }
        let request_id = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        {
            let mut enrolling = self.shared.enrolling();
            if enrolling.len() >= ENROLMENTS_MAX {
                return false;
            }
            enrolling.insert(request_id, from);
        }
        let bytes = request.len();
        let forward = EnrolForward { request_id, request, remote_addr: remote.to_owned() };
        let queued = self.push(Kind::Enrol(forward), bytes);
        if !queued {
            self.shared.enrolling().remove(&request_id);
        }
        queued
    }

    /// The channel that waits for the answer to a request, once.
    pub(super) fn enrolled(&self, request_id: u64) -> Option<SessionRef> {
        self.shared.enrolling().remove(&request_id)
    }

    /// Agents that a message did not reach.
    pub fn undeliverable(&self, dispatch_id: u64, agents: Vec<AgentId>) {
        for agents in agents.chunks(AGENTS_PER_MESSAGE) {
            let agent_ids: Vec<String> = agents.iter().map(|a| a.as_str().to_owned()).collect();
            let bytes = agent_ids.iter().map(|id| id.len() + 24).sum();
            self.push(Kind::Undeliverable(Undeliverable { dispatch_id, agent_ids }), bytes);
        }
    }

    /// A second instance of a living identity was refused.
    pub fn conflict(&self, agent: &AgentId, living: SocketAddr, refused: SocketAddr) {
        let conflict = IdentityConflict {
            agent_id: agent.as_str().to_owned(),
            living_addr: living.to_string(),
            refused_addr: refused.to_string(),
        };
        self.push(Kind::Conflict(conflict), 0);
    }
}

impl Queue {
    fn enrolling(&self) -> MutexGuard<'_, HashMap<u64, SessionRef>> {
        self.enrolling.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl FleetQueue {
    /// Waits for a message.
    pub(super) async fn next(&self) -> Option<Kind> {
        self.receiver.recv_async().await.ok().map(|item| self.taken(item))
    }

    /// A message if one is there.
    pub(super) fn try_next(&self) -> Option<Kind> {
        self.receiver.try_recv().ok().map(|item| self.taken(item))
    }

    fn taken(&self, (kind, bytes): (Kind, usize)) -> Kind {
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        kind
    }

    /// The link is up or down. Enrolments do not survive it: their channels time out and the
    /// agents try again.
    pub(super) fn set_up(&self, up: bool) {
        let number = self.shared.links.fetch_add(1, Ordering::Relaxed) + 1;
        self.shared.link.store(if up { number } else { 0 }, Ordering::Relaxed);
        self.shared.enrolling().clear();
        gauge!(names::DATA_FLEET_LINK_UP).set(f64::from(u8::from(up)));
    }

    /// Writes the queue's size to its metric.
    pub(super) fn report(&self) {
        gauge!(names::DATA_FLEET_QUEUE_BYTES).set(self.shared.bytes.load(Ordering::Relaxed) as f64);
    }
}

fn label(kind: &Kind) -> &'static str {
    match kind {
        Kind::FromAgent(_) => "from_agent",
        Kind::Enrol(_) => "enrol",
        Kind::Undeliverable(_) => "undeliverable",
        Kind::TableApplied(_) => "table_applied",
        Kind::Lanes(_) => "lanes",
        Kind::Tap(_) => "tap",
        Kind::Conflict(_) => "conflict",
        Kind::Fetch(_) => "fetch",
        Kind::SeedSent(_) => "seed_sent",
        Kind::Register(_) | Kind::SessionUp(_) | Kind::SessionDown(_) | Kind::SnapshotEnd(_) => {
            "session"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: SessionRef = SessionRef { shard: 0, conn: 1 };

    #[test]
    fn the_queue_is_bounded_in_bytes() {
        let (sender, queue) = FleetSender::new();
        let agent = AgentId::parse("a").unwrap();
        let message = Bytes::from(vec![0; 256 * 1024]);
        (0..400).for_each(|_| sender.from_agent(&agent, 1, message.clone()));
        let mut taken = 0;
        while queue.try_next().is_some() {
            taken += 1;
        }
        assert_eq!(taken, FLEET_QUEUE_BYTES_MAX / (256 * 1024 + MESSAGE_OVERHEAD_BYTES));
        sender.from_agent(&agent, 1, message);
        assert!(queue.try_next().is_some(), "room is given back");
    }

    #[test]
    fn enrolments_need_control_and_are_answered_once() {
        let (sender, queue) = FleetSender::new();
        assert!(!sender.enrol(AT, Bytes::new(), "r"));
        queue.set_up(true);
        assert!(sender.enrol(AT, Bytes::new(), "r"));
        assert_eq!((sender.enrolled(1), sender.enrolled(1)), (Some(AT), None));
        assert!(sender.enrol(AT, Bytes::new(), "r"));
        queue.set_up(false);
        assert_eq!(sender.enrolled(2), None);
    }
}
