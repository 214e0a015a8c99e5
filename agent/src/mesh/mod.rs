//! Connections between agents: authenticated, authorised byte streams for swarms.
//!
//! Control signs for each member of a transfer whom it may meet ([`PeerList`]). [`Mesh`] keeps
//! these lists, listens, dials, and hands a swarm only streams on which the other side has shown a
//! certificate of the fleet, with exactly the name and key that the list has for that member, and
//! on which both BitTorrent handshakes are done. Whoever is not named gets no byte of BitTorrent.
//! What happens on a stream afterwards is the swarm's affair, except its end: when a member is
//! removed, or the list expires, the mesh ends its streams at once.
//!
//! ```text
//!   signed commands ─► Mesh ── Table: lists, streams ──┬─► Endpoint: incoming streams,
//!   listener ─► [accept]: TLS, HELLO, handshake ───────┤              dial(member)
//!               [dial]:   TLS, HELLO, handshake ───────┘
//! ```
//! By default every agent listens (`[mesh] listen`): control must know the port before it can plan,
//! an idle listener costs one descriptor, and before a client has shown a certificate of the fleet
//! nothing but rustls reads its bytes. An agent that is told not to listen still dials.

mod accept;
mod dial;
#[cfg(test)]
mod document;
mod listen;
mod stream;
mod table;
mod tls;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skein_filemesh::core::membership::{MembershipError, PeerList, Removal};
use skein_filemesh::core::merkle::Hash;
use skein_filemesh::core::plan::{HostPlan, Member};
use skein_observe::names;
use skein_wire::ids::{Instance, TransferId};
use skein_wire::signal::v1::{RemovePeers, TransferPeers, TransferPlan};
use tokio::sync::{mpsc, watch};

pub use dial::DialError;
pub use listen::{Listen, addresses, bind};
pub use stream::PeerStream;
pub use table::{Direction, RegisterError};
pub use tls::ALPN;

use self::table::{Ended, Table};
use self::tls::TlsCache;
use crate::clock;
use crate::config::MeshConfig;
use crate::link::Dialer;

/// Streams that wait for a swarm to take them; a further one is refused.
const INCOMING_MAX: usize = 32;
/// Looks at expiry at least this often: the server's clock, as this host knows it, may jump.
const LOOK: Duration = Duration::from_secs(30);

/// The agent's end of every connection with another agent; cheap to clone.
#[derive(Clone)]
pub struct Mesh {
    shared: Arc<Shared>,
}

struct Shared {
    dialer: Dialer,
    instance: Instance,
    tls: TlsCache,
    table: Mutex<Table>,
    /// Counts changes of lists and registrations.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> i64 {
        self.dialer.clock().now_ms()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Mesh {
    /// A mesh that identifies itself as `dialer` does and dials the server through it. Must be
    /// called within a tokio runtime, whose threads do all the work; without a listener it only
    /// dials.
    pub fn start(
        config: &MeshConfig,
        dialer: Dialer,
        listener: Option<TcpListener>,
    ) -> io::Result<Mesh> {
        let mut instance = Instance([0; 16]);
        clock::random(&mut instance.0);
        let table = Mutex::new(Table::new(config));
        let shared = Shared {
            dialer,
            instance,
            tls: TlsCache::default(),
            table,
            changes: watch::channel(0).0,
        };
        let mesh = Mesh { shared: Arc::new(shared) };
        show_zeros();
        if let Some(listener) = listener {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::spawn(accept::run(mesh.clone(), listener));
        }
        tokio::spawn(expire(mesh.clone()));
        Ok(mesh)
    }

    /// Takes a list from a verified command.
    pub fn take_list(&self, message: &TransferPeers) {
        let list = PeerList::from_message(message);
        let now_ms = self.shared.now_ms();
        self.taken("list", list, |table, list| table.take_list(list, now_ms));
    }

    /// Takes a removal from a verified command.
    pub fn remove(&self, message: &RemovePeers) {
        let removal = Removal::from_message(message);
        let now_ms = self.shared.now_ms();
        self.taken("removal", removal, |table, removal| table.remove(&removal, now_ms));
    }

    /// Takes a plan, which only chooses among the members of the list.
    pub fn hint(&self, message: &TransferPlan) {
        self.taken("plan", HostPlan::from_message(message), |table, (transfer, plan)| {
            table.hint(&transfer, plan)
        });
    }

    fn taken<T>(
        &self,
        kind: &'static str,
        order: Result<T, MembershipError>,
        take: impl FnOnce(&mut Table, T) -> Result<Vec<Ended>, table::NotTaken>,
    ) {
        let result = match order.map(|order| take(&mut self.shared.table(), order)) {
            Ok(Ok(ended)) => {
                ended.into_iter().for_each(Ended::close);
                self.shared.changed();
                "ok"
            }
            Ok(Err(why)) => {
                tracing::debug!(kind, %why, "an order of the mesh changes nothing");
                why.as_str()
            }
            Err(error) => {
                tracing::warn!(kind, %error, "an order of the mesh is not usable");
                "malformed"
            }
        };
        let labels = [("kind", kind), ("result", result)];
        metrics::counter!(names::AGENT_MESH_ORDERS, &labels).increment(1);
    }

    /// Opens a transfer's end of the mesh: from now on members that its lists name come in. Its
    /// lists may come before or after. Dropping the endpoint ends all of its streams.
    pub fn register(&self, transfer: TransferId, root: Hash) -> Result<Endpoint, RegisterError> {
        let (streams, incoming) = mpsc::channel(INCOMING_MAX);
        let (peers, plans) = self.shared.table().register(transfer, root, streams)?;
        self.shared.changed();
        let dialer = PeerDialer { mesh: self.clone(), transfer };
        Ok(Endpoint { dialer, incoming, peers, plans })
    }
}

/// One transfer's end of the mesh.
pub struct Endpoint {
    dialer: PeerDialer,
    incoming: mpsc::Receiver<PeerStream>,
    peers: watch::Receiver<Option<Arc<PeerList>>>,
    plans: watch::Receiver<HostPlan>,
}

impl Endpoint {
    /// The next stream that a member opened. Never resolves while none comes; may be dropped and
    /// called again.
    pub async fn accept(&mut self) -> PeerStream {
        match self.incoming.recv().await {
            Some(stream) => stream,
            // The sender lives in the table until this endpoint is dropped.
            None => std::future::pending().await,
        }
    }

    /// Opens streams; to be cloned into tasks.
    pub fn dialer(&self) -> &PeerDialer {
        &self.dialer
    }

    /// The list in force and its changes; none before the first and after expiry.
    pub fn peers(&self) -> watch::Receiver<Option<Arc<PeerList>>> {
        self.peers.clone()
    }

    /// The newest plan and its changes; number 0 before the first. Its members need not be on the
    /// list: those who are not cannot be dialled.
    pub fn plans(&self) -> watch::Receiver<HostPlan> {
        self.plans.clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let ended = self.dialer.mesh.shared.table().unregister(&self.dialer.transfer);
        ended.into_iter().for_each(Ended::close);
    }
}

/// Opens streams to members of one transfer; cheap to clone.
#[derive(Clone)]
pub struct PeerDialer {
    mesh: Mesh,
    transfer: TransferId,
}

impl PeerDialer {
    /// A stream to `member`, tried at each of its addresses. An earlier one that this side opened
    /// to it ends.
    pub async fn dial(&self, member: Member) -> Result<PeerStream, DialError> {
        let dialled = dial::dial(&self.mesh.shared, self.transfer, member).await;
        if let Err(error) = &dialled {
            let labels = [("reason", error.as_str())];
            metrics::counter!(names::AGENT_MESH_DIALS_FAILED, &labels).increment(1);
        }
        dialled
    }
}

/// Ends the streams of lists whose time is over.
async fn expire(mesh: Mesh) {
    let mut changes = mesh.shared.changes.subscribe();
    loop {
        let now_ms = mesh.shared.now_ms();
        let (ended, next_ms) = mesh.shared.table().expire(now_ms);
        ended.into_iter().for_each(Ended::close);
        let changed = changes.changed();
        // An agent without lists sleeps until one comes.
        let ended = match next_ms {
            None => changed.await,
            Some(next_ms) => {
                let until = next_ms.saturating_sub(now_ms).saturating_add(1).max(1);
                let until = Duration::from_millis(until.unsigned_abs()).min(LOOK);
                tokio::time::timeout(until, changed).await.unwrap_or(Ok(()))
            }
        };
        if ended.is_err() {
            return;
        }
    }
}

/// What has not happened is shown as 0, so that its first time shows as a change.
fn show_zeros() {
    for direction in [Direction::Incoming, Direction::Outgoing].map(Direction::as_str) {
        metrics::gauge!(names::AGENT_MESH_STREAMS, "direction" => direction).set(0.0);
        metrics::counter!(names::AGENT_MESH_OPENED, "direction" => direction).increment(0);
    }
    for reason in ["unknown_transfer", "not_a_member", "expired"] {
        metrics::counter!(names::AGENT_MESH_REFUSED, "reason" => reason).increment(0);
    }
    for reason in ["stranger", "refused"] {
        metrics::counter!(names::AGENT_MESH_DIALS_FAILED, "reason" => reason).increment(0);
    }
    for reason in ["removed", "expired"] {
        metrics::counter!(names::AGENT_MESH_ENDED, "reason" => reason).increment(0);
    }
    let labels = [("kind", "list"), ("result", "ok")];
    metrics::counter!(names::AGENT_MESH_ORDERS, &labels).increment(0);
}
