//! Lists, swarms and open streams of every transfer: who may have a stream, and whose ends.
//!
//! No I/O here but to end a stream. A stream is entered under the same lock as its member is looked
//! up, so a removal either finds it or prevents it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use skein_filemesh::core::membership::{PeerList, Removal, Roster, Stale, Who};
use skein_filemesh::core::merkle::Hash;
use skein_filemesh::core::peer_wire::info_hash;
use skein_filemesh::core::plan::{HostPlan, Member};
use skein_observe::names;
use skein_wire::ids::TransferId;
use tokio::sync::{mpsc, watch};

use super::PeerStream;
use super::stream::Closer;
use super::tls::Holder;
use crate::config::MeshConfig;

/// Transfers with a list or a swarm. A list of 256 peers takes some 60 KB.
pub(super) const TRANSFERS_MAX: usize = 256;

/// Who opened a stream.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    /// The other side.
    Incoming,
    /// This side.
    Outgoing,
}

impl Direction {
    /// The name used in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Outgoing => "outgoing",
        }
    }
}

/// Why a transfer cannot be registered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RegisterError {
    /// It is.
    #[error("the transfer has a swarm already")]
    Taken,
    /// The bound on transfers is reached.
    #[error("the mesh knows {TRANSFERS_MAX} transfers already")]
    Full,
}

/// Why an order changes nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum NotTaken {
    #[error(transparent)]
    Stale(#[from] Stale),
    #[error("it has expired")]
    Expired,
    #[error("the transfer is not known")]
    Unknown,
    #[error("the mesh knows too many transfers")]
    Full,
}

impl NotTaken {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale(_) => "older",
            Self::Expired => "expired",
            Self::Unknown => "unknown_transfer",
            Self::Full => "full",
        }
    }
}

/// Why a member gets no stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum NotAdmitted {
    #[error("no swarm of that transfer runs here")]
    UnknownTransfer,
    #[error("the list does not name it")]
    NotAMember,
    #[error("the list has expired")]
    Expired,
    #[error("the bound on connections is reached")]
    Full,
}

impl NotAdmitted {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownTransfer => "unknown_transfer",
            Self::NotAMember => "not_a_member",
            Self::Expired => "expired",
            Self::Full => "connections",
        }
    }
}

/// A stream that is to end; the caller closes it when it holds no lock.
pub(super) struct Ended {
    closer: Closer,
    reason: &'static str,
}

impl Ended {
    pub fn close(self) {
        self.closer.close();
        metrics::counter!(names::AGENT_MESH_ENDED, "reason" => self.reason).increment(1);
    }
}

/// Where a stream stands in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub transfer: TransferId,
    pub member: Member,
    pub direction: Direction,
    /// Tells it from a later stream of the same member.
    number: u64,
}

/// A stream that is entered.
pub(super) struct Admitted {
    pub place: Place,
    /// Where the swarm takes it.
    pub streams: mpsc::Sender<PeerStream>,
    /// An earlier stream of the same member, which it replaces.
    pub replaced: Option<Ended>,
}

/// A member that is to be dialled.
pub(super) struct Wanted {
    pub who: Who,
    pub info_hash: [u8; 20],
}

struct Swarm {
    root: Hash,
    info_hash: [u8; 20],
    streams: mpsc::Sender<PeerStream>,
    peers: watch::Sender<Option<Arc<PeerList>>>,
    plans: watch::Sender<HostPlan>,
}

#[derive(Default)]
struct Entry {
    roster: Roster,
    plan: HostPlan,
    swarm: Option<Swarm>,
    open: BTreeMap<(Member, Direction), (u64, Closer)>,
}

/// Both ends of what a swarm hears.
pub(super) type Heard = (watch::Receiver<Option<Arc<PeerList>>>, watch::Receiver<HostPlan>);

pub(super) struct Table {
    transfers: HashMap<TransferId, Entry>,
    connections_max: usize,
    transfer_connections_max: usize,
    numbers: u64,
}

impl Entry {
    /// The list, if it is for this swarm's file and in force.
    fn list(&self, now_ms: i64) -> Result<(&PeerList, &Swarm), NotAdmitted> {
        let swarm = self.swarm.as_ref().ok_or(NotAdmitted::UnknownTransfer)?;
        let list = self.roster.list().filter(|list| list.root == swarm.root);
        let list = list.ok_or(NotAdmitted::NotAMember)?;
        match list.is_valid_at(now_ms) {
            true => Ok((list, swarm)),
            false => Err(NotAdmitted::Expired),
        }
    }

    fn publish_list(&self) {
        let Some(swarm) = &self.swarm else { return };
        let list = self.roster.list().filter(|list| list.root == swarm.root);
        swarm.peers.send_replace(list.cloned().map(Arc::new));
    }

    /// Takes out the streams that `ends` picks.
    fn end(&mut self, reason: &'static str, ends: impl Fn(Member) -> bool) -> Vec<Ended> {
        let ended = self.open.extract_if(.., |(member, _), _| ends(*member));
        ended.map(|(_, (_, closer))| Ended { closer, reason }).collect()
    }
}

impl Table {
    pub fn new(config: &MeshConfig) -> Self {
        Self {
            transfers: HashMap::new(),
            connections_max: config.connections_max as usize,
            transfer_connections_max: config.transfer_connections_max as usize,
            numbers: 0,
        }
    }

    fn entry(&mut self, transfer: TransferId) -> Option<&mut Entry> {
        if self.transfers.len() >= TRANSFERS_MAX && !self.transfers.contains_key(&transfer) {
            return None;
        }
        Some(self.transfers.entry(transfer).or_default())
    }

    // ------------------------------------------------------------------------- orders

    pub fn take_list(&mut self, list: PeerList, now_ms: i64) -> Result<Vec<Ended>, NotTaken> {
        if !list.is_valid_at(now_ms) {
            return Err(NotTaken::Expired);
        }
        let entry = self.entry(list.transfer).ok_or(NotTaken::Full)?;
        let gone = entry.roster.take(list)?;
        entry.publish_list();
        Ok(entry.end("removed", |member| gone.contains(&member)))
    }

    pub fn remove(&mut self, removal: &Removal, now_ms: i64) -> Result<Vec<Ended>, NotTaken> {
        if now_ms > removal.not_after_ms && !self.transfers.contains_key(&removal.transfer) {
            return Err(NotTaken::Expired);
        }
        let entry = self.entry(removal.transfer).ok_or(NotTaken::Full)?;
        entry.roster.remove(removal)?;
        entry.publish_list();
        Ok(entry.end("removed", |member| removal.members.contains(&member)))
    }

    pub fn hint(&mut self, transfer: &TransferId, plan: HostPlan) -> Result<Vec<Ended>, NotTaken> {
        let entry = self.transfers.get_mut(transfer).ok_or(NotTaken::Unknown)?;
        let (number, known) = (plan.number, entry.plan.number);
        if number <= known {
            return Err(Stale { number, known }.into());
        }
        if let Some(swarm) = &entry.swarm {
            swarm.plans.send_replace(plan.clone());
        }
        entry.plan = plan;
        Ok(Vec::new())
    }

    /// Ends the streams of lists that have expired; answers when the next list does.
    pub fn expire(&mut self, now_ms: i64) -> (Vec<Ended>, Option<i64>) {
        let mut ended = Vec::new();
        for entry in self.transfers.values_mut() {
            if entry.roster.expire(now_ms) {
                entry.publish_list();
                ended.extend(entry.end("expired", |_| true));
            }
        }
        self.transfers
            .retain(|_, entry| entry.swarm.is_some() || now_ms <= entry.roster.not_after_ms());
        let next = self.transfers.values().filter_map(|entry| match entry.roster.list() {
            Some(list) => Some(list.not_after_ms),
            None => entry.swarm.is_none().then(|| entry.roster.not_after_ms()),
        });
        (ended, next.min())
    }

    // ------------------------------------------------------------------------- swarms

    pub fn register(
        &mut self,
        transfer: TransferId,
        root: Hash,
        streams: mpsc::Sender<PeerStream>,
    ) -> Result<Heard, RegisterError> {
        let entry = self.entry(transfer).ok_or(RegisterError::Full)?;
        if entry.swarm.is_some() {
            return Err(RegisterError::Taken);
        }
        let info_hash = info_hash(&transfer.0, &root);
        let (peers, heard_peers) = watch::channel(None);
        let (plans, heard_plans) = watch::channel(entry.plan.clone());
        entry.swarm = Some(Swarm { root, info_hash, streams, peers, plans });
        entry.publish_list();
        Ok((heard_peers, heard_plans))
    }

    pub fn unregister(&mut self, transfer: &TransferId) -> Vec<Ended> {
        let Some(entry) = self.transfers.get_mut(transfer) else { return Vec::new() };
        entry.swarm = None;
        let ended = entry.end("over", |_| true);
        if entry.roster.list().is_none() && entry.roster.not_after_ms() == 0 {
            self.transfers.remove(transfer);
        }
        ended
    }

    // ------------------------------------------------------------------------- streams

    /// Whom a swarm means by a member's number.
    pub fn wanted(
        &self,
        transfer: &TransferId,
        member: Member,
        now_ms: i64,
    ) -> Result<Wanted, NotAdmitted> {
        let entry = self.transfers.get(transfer).ok_or(NotAdmitted::UnknownTransfer)?;
        let (list, swarm) = entry.list(now_ms)?;
        let peer = list.peer(member).ok_or(NotAdmitted::NotAMember)?;
        Ok(Wanted { who: peer.who.clone(), info_hash: swarm.info_hash })
    }

    /// Enters a stream that `holder` opened for the transfer with this info hash.
    pub fn admit(
        &mut self,
        info_hash: &[u8; 20],
        holder: &Holder,
        now_ms: i64,
        closer: &Closer,
    ) -> Result<Admitted, NotAdmitted> {
        let named =
            |entry: &Entry| entry.swarm.as_ref().is_some_and(|swarm| swarm.info_hash == *info_hash);
        let found = self.transfers.iter().find(|(_, entry)| named(entry));
        let (transfer, entry) = found.ok_or(NotAdmitted::UnknownTransfer)?;
        let (list, _) = entry.list(now_ms)?;
        let member = list.find(&holder.agent, &holder.key_hash).ok_or(NotAdmitted::NotAMember)?;
        self.enter(*transfer, member, Direction::Incoming, closer)
    }

    /// Enters a stream to a member that was `wanted` a moment ago, if that still holds.
    pub fn admit_dialled(
        &mut self,
        transfer: &TransferId,
        member: Member,
        wanted: &Wanted,
        now_ms: i64,
        closer: &Closer,
    ) -> Result<Admitted, NotAdmitted> {
        let still = self.wanted(transfer, member, now_ms)?;
        if still.who != wanted.who || still.info_hash != wanted.info_hash {
            return Err(NotAdmitted::NotAMember);
        }
        self.enter(*transfer, member, Direction::Outgoing, closer)
    }

    fn enter(
        &mut self,
        transfer: TransferId,
        member: Member,
        direction: Direction,
        closer: &Closer,
    ) -> Result<Admitted, NotAdmitted> {
        let all: usize = self.transfers.values().map(|entry| entry.open.len()).sum();
        let entry = self.transfers.get_mut(&transfer).ok_or(NotAdmitted::UnknownTransfer)?;
        let swarm = entry.swarm.as_ref().ok_or(NotAdmitted::UnknownTransfer)?;
        let streams = swarm.streams.clone();
        let full = all >= self.connections_max || entry.open.len() >= self.transfer_connections_max;
        if full && !entry.open.contains_key(&(member, direction)) {
            return Err(NotAdmitted::Full);
        }
        self.numbers += 1;
        let number = self.numbers;
        let replaced = entry.open.insert((member, direction), (number, closer.clone()));
        let replaced = replaced.map(|(_, closer)| Ended { closer, reason: "replaced" });
        let place = Place { transfer, member, direction, number };
        Ok(Admitted { place, streams, replaced })
    }

    /// A stream has ended.
    pub fn leave(&mut self, place: &Place) {
        let Some(entry) = self.transfers.get_mut(&place.transfer) else { return };
        let key = (place.member, place.direction);
        if entry.open.get(&key).is_some_and(|(number, _)| *number == place.number) {
            entry.open.remove(&key);
        }
    }
}
