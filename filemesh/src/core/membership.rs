//! Who may exchange pieces of one file with one member: what control signed for it.
//!
//! A [`PeerList`] is the validated form of `signal.v1.TransferPeers`, a [`Removal`] that of
//! `RemovePeers`; whoever holds one got it from a command whose signature was verified. A
//! [`Roster`] is what such orders add up to on one host: it never goes back to an older list, and
//! it says whose connections must end.

use std::collections::HashSet;
use std::net::SocketAddr;

use skein_wire::ids::{AgentId, IdError, TransferId};
use skein_wire::limits::{
    MESH_ADDRESS_BYTES_MAX, MESH_MEMBER_MAX, MESH_PEER_ADDRESSES_MAX, MESH_PEERS_MAX,
    MESH_REMOVED_MAX,
};
use skein_wire::signal::v1::{self as signal, RemovePeers, TransferPeers};

use super::merkle::Hash;
use super::plan::Member;

/// Who stands behind a member's number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The server, which seeds on its file port.
    Server,
    /// An agent.
    Agent {
        /// As its certificate names it.
        id: AgentId,
        /// SHA-256 of its certificate's SubjectPublicKeyInfo.
        key_hash: Hash,
        /// Where it listens for peers, best first; none when it does not.
        addresses: Vec<SocketAddr>,
    },
}

impl Who {
    /// Whether both are the same holder of the same key, wherever it listens.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Server, Self::Server) => true,
            (
                Self::Agent { id, key_hash, .. },
                Self::Agent { id: other_id, key_hash: other_hash, .. },
            ) => id == other_id && key_hash == other_hash,
            _ => false,
        }
    }
}

/// One member that another may connect to or let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub member: Member,
    /// Who it is.
    pub who: Who,
}

/// Why a message is no list, removal or hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Not 16 bytes.
    #[error(transparent)]
    Transfer(IdError),
    /// An agent id that is none.
    #[error(transparent)]
    Agent(IdError),
    /// A root or key hash that is no SHA-256 hash.
    #[error("a hash has {0} bytes instead of 32")]
    Hash(usize),
    /// Numbers begin at 1.
    #[error("lists and removals are numbered from 1")]
    Number,
    /// Above [`MESH_MEMBER_MAX`].
    #[error("member {0} is above {MESH_MEMBER_MAX}")]
    Member(u32),
    /// A member or agent that comes twice, or the receiver itself.
    #[error("member {0} is named twice, or is the receiver")]
    Twice(u32),
    /// More of something than is allowed.
    #[error("{count} {what}; at most {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// Not `ip:port`.
    #[error("{0:?} is no address of a peer")]
    Address(String),
    /// The server is known by its own certificate and address.
    #[error("the server has no key hash and no addresses in a list")]
    Server,
    /// A range of pieces that is empty, leaves the file or is not behind the one before.
    #[error("ranges of pieces are not in order")]
    Range,
}

pub(super) fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), MembershipError> {
    match count <= max {
        true => Ok(()),
        false => Err(MembershipError::TooMany { what, count, max }),
    }
}

pub(super) fn member(number: u32) -> Result<Member, MembershipError> {
    match number <= MESH_MEMBER_MAX {
        true => Ok(number),
        false => Err(MembershipError::Member(number)),
    }
}

pub(super) fn transfer_id(bytes: &[u8]) -> Result<TransferId, MembershipError> {
    TransferId::from_slice(bytes).map_err(MembershipError::Transfer)
}

fn hash(bytes: &[u8]) -> Result<Hash, MembershipError> {
    Hash::try_from(bytes).map_err(|_| MembershipError::Hash(bytes.len()))
}

/// Whether something can be dialled there.
pub fn is_usable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}

fn address(text: &str) -> Result<SocketAddr, MembershipError> {
    let parsed = text.parse().ok().filter(is_usable);
    let short = text.len() <= MESH_ADDRESS_BYTES_MAX;
    parsed.filter(|_| short).ok_or_else(|| {
        MembershipError::Address(text.chars().take(MESH_ADDRESS_BYTES_MAX).collect())
    })
}

impl Peer {
    fn from_message(peer: &signal::Peer) -> Result<Self, MembershipError> {
        let member = member(peer.member)?;
        if peer.agent_id.is_empty() {
            return match peer.key_hash.is_empty() && peer.addresses.is_empty() {
                true => Ok(Self { member, who: Who::Server }),
                false => Err(MembershipError::Server),
            };
        }
        at_most("addresses of a peer", peer.addresses.len(), MESH_PEER_ADDRESSES_MAX)?;
        let id = AgentId::parse(&peer.agent_id).map_err(MembershipError::Agent)?;
        let key_hash = hash(&peer.key_hash)?;
        let addresses = peer.addresses.iter().map(|text| address(text));
        let addresses = addresses.collect::<Result<_, _>>()?;
        Ok(Self { member, who: Who::Agent { id, key_hash, addresses } })
    }

    fn to_message(&self) -> signal::Peer {
        match &self.who {
            Who::Server => signal::Peer { member: self.member, ..Default::default() },
            Who::Agent { id, key_hash, addresses } => signal::Peer {
                member: self.member,
                agent_id: id.to_string(),
                key_hash: key_hash.to_vec().into(),
                addresses: addresses.iter().map(SocketAddr::to_string).collect(),
            },
        }
    }
}

/// Whom one member may connect to or let in, until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerList {
    /// The transfer.
    pub transfer: TransferId,
    /// Root of the file's hash tree.
    pub root: Hash,
    /// The receiver's own number.
    pub me: Member,
    /// Lists and removals of a transfer share one sequence.
    pub number: u32,
    /// Server time, milliseconds since 1970.
    pub not_after_ms: i64,
    /// In order of member.
    peers: Vec<Peer>,
}

impl PeerList {
    /// A list of `peers`; fails when there are too many or some come twice.
    pub fn new(
        transfer: TransferId,
        root: Hash,
        me: Member,
        number: u32,
        not_after_ms: i64,
        mut peers: Vec<Peer>,
    ) -> Result<Self, MembershipError> {
        at_most("peers", peers.len(), MESH_PEERS_MAX)?;
        if number == 0 {
            return Err(MembershipError::Number);
        }
        member(me)?;
        peers.sort_by_key(|peer| peer.member);
        let (mut members, mut agents) = (HashSet::from([me]), HashSet::new());
        for peer in &peers {
            member(peer.member)?;
            let agent = match &peer.who {
                Who::Server => None,
                Who::Agent { id, addresses, .. } => {
                    at_most("addresses of a peer", addresses.len(), MESH_PEER_ADDRESSES_MAX)?;
                    Some(id.as_str())
                }
            };
            if !members.insert(peer.member) || !agents.insert(agent) {
                return Err(MembershipError::Twice(peer.member));
            }
        }
        Ok(Self { transfer, root, me, number, not_after_ms, peers })
    }

    /// The list that a message carries, if every field is within bounds.
    pub fn from_message(message: &TransferPeers) -> Result<Self, MembershipError> {
        at_most("peers", message.peers.len(), MESH_PEERS_MAX)?;
        let peers = message.peers.iter().map(Peer::from_message).collect::<Result<_, _>>()?;
        let (transfer, root) = (transfer_id(&message.transfer_id)?, hash(&message.root)?);
        Self::new(transfer, root, message.me, message.number, message.not_after_ms, peers)
    }

    /// The message that carries this list.
    pub fn to_message(&self) -> TransferPeers {
        TransferPeers {
            transfer_id: self.transfer.to_bytes(),
            root: self.root.to_vec().into(),
            me: self.me,
            number: self.number,
            not_after_ms: self.not_after_ms,
            peers: self.peers.iter().map(Peer::to_message).collect(),
        }
    }

    /// All peers, in order of member.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The peer of that number.
    pub fn peer(&self, member: Member) -> Option<&Peer> {
        let place = self.peers.binary_search_by_key(&member, |peer| peer.member).ok()?;
        self.peers.get(place)
    }

    /// The member that holds this certificate: both its name and its key must fit.
    pub fn find(&self, agent: &AgentId, certified: &Hash) -> Option<Member> {
        let holder = |peer: &&Peer| match &peer.who {
            Who::Agent { id, key_hash, .. } => id == agent && key_hash == certified,
            Who::Server => false,
        };
        self.peers.iter().find(holder).map(|peer| peer.member)
    }

    /// Whether it is worth anything at `now_ms` of server time.
    pub fn is_valid_at(&self, now_ms: i64) -> bool {
        now_ms <= self.not_after_ms
    }
}

/// Members that are out of a transfer at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The transfer.
    pub transfer: TransferId,
    /// Lists up to this number are old.
    pub number: u32,
    /// Server time, milliseconds since 1970; by then every earlier list has expired.
    pub not_after_ms: i64,
    /// Whom.
    pub members: Vec<Member>,
}

impl Removal {
    /// The removal that a message carries, if every field is within bounds.
    pub fn from_message(message: &RemovePeers) -> Result<Self, MembershipError> {
        at_most("removed members", message.members.len(), MESH_REMOVED_MAX)?;
        if message.number == 0 {
            return Err(MembershipError::Number);
        }
        Ok(Self {
            transfer: transfer_id(&message.transfer_id)?,
            number: message.number,
            not_after_ms: message.not_after_ms,
            members: message
                .members
                .iter()
                .map(|number| member(*number))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The message that carries this removal.
    pub fn to_message(&self) -> RemovePeers {
        RemovePeers {
            transfer_id: self.transfer.to_bytes(),
            number: self.number,
            not_after_ms: self.not_after_ms,
            members: self.members.clone(),
        }
    }
}

/// An order that is not newer than what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("number {number} is not above {known}")]
pub struct Stale {
    /// Of the order.
    pub number: u32,
    /// Of the newest list or removal.
    pub known: u32,
}

/// What the orders of one transfer add up to.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    list: Option<PeerList>,
    number: u32,
    not_after_ms: i64,
}

impl Roster {
    /// The newest list, expired or not.
    pub fn list(&self) -> Option<&PeerList> {
        self.list.as_ref()
    }

    /// Until when something must be remembered, server time.
    pub fn not_after_ms(&self) -> i64 {
        self.not_after_ms
    }

    fn advance(&mut self, number: u32, not_after_ms: i64) -> Result<(), Stale> {
        if number <= self.number {
            return Err(Stale { number, known: self.number });
        }
        self.number = number;
        self.not_after_ms = self.not_after_ms.max(not_after_ms);
        Ok(())
    }

    /// Takes a list; answers whose connections must end: members of the list before that this one
    /// does not name as the same holder of the same key. All of them when the file is another.
    pub fn take(&mut self, list: PeerList) -> Result<Vec<Member>, Stale> {
        self.advance(list.number, list.not_after_ms)?;
        let before = self.list.replace(list);
        let now = self.list.as_ref();
        let stays = |root: &Hash, peer: &Peer| {
            now.filter(|now| now.root == *root)
                .and_then(|now| now.peer(peer.member))
                .is_some_and(|same| same.who.is(&peer.who))
        };
        let gone = before.iter().flat_map(|before| {
            before.peers.iter().filter(|peer| !stays(&before.root, peer)).map(|peer| peer.member)
        });
        Ok(gone.collect())
    }

    /// Takes a removal; its members' connections must end. Before any list it is remembered, so
    /// that an earlier list that comes late does not bring them back.
    pub fn remove(&mut self, removal: &Removal) -> Result<(), Stale> {
        self.advance(removal.number, removal.not_after_ms)?;
        if let Some(list) = &mut self.list {
            let removed: HashSet<Member> = removal.members.iter().copied().collect();
            list.peers.retain(|peer| !removed.contains(&peer.member));
            list.number = removal.number;
        }
        Ok(())
    }

    /// Forgets a list that has expired by `now_ms` of server time; true when there was one.
    pub fn expire(&mut self, now_ms: i64) -> bool {
        let expired = self.list.as_ref().is_some_and(|list| !list.is_valid_at(now_ms));
        if expired {
            self.list = None;
        }
        expired
    }
}

#[cfg(test)]
mod tests;
