//! Who may meet whom in a transfer: the list that each agent gets, built and signed.
//!
//! A plan links members; both ends of a link are told of the other, so that whoever dials is let
//! in. A list names a peer by the key that its certificate has now and by the addresses that it
//! reported, first the one from which its session comes: that one is known to lead to the host.
//! Revoked agents, and those that are not known, are nobody's peers and get no list.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher};
use std::net::{IpAddr, SocketAddr};

use skein_filemesh::core::membership::{MembershipError, Peer, PeerList, Removal, Who, is_usable};
use skein_filemesh::core::merkle::Hash;
use skein_filemesh::core::plan::{HostPlan, Member};
use skein_wire::ids::{AgentId, TransferId, hex_decode};
use skein_wire::limits::MESH_PEER_ADDRESSES_MAX;
use skein_wire::signal::v1::command_body;

use crate::fleet::{Fleet, FleetError, Purpose};
use crate::registry::{MeshAgent, Registry};

/// Why lists cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum MembershipSendError {
    /// A member has more peers than a list holds, or a number is out of bounds.
    #[error("member {0}: {1}")]
    List(Member, MembershipError),
    /// A link names a member that was never added.
    #[error("there is no member {0}")]
    Unknown(Member),
    /// Signing failed.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

/// The members of one transfer and the newest number of its lists.
#[derive(Clone, Debug)]
pub struct Membership {
    transfer: TransferId,
    root: Hash,
    /// None: the server.
    members: BTreeMap<Member, Option<AgentId>>,
    removed: BTreeSet<Member>,
    /// By member: whom its last list names, as what, and until when it is good.
    listed: BTreeMap<Member, Listed>,
    number: u32,
}

#[derive(Clone, Debug, Default)]
struct Listed {
    not_after_ms: i64,
    /// A digest of key and addresses, by member.
    peers: BTreeMap<Member, u64>,
}

impl Listed {
    /// What `list` says.
    fn new(list: &PeerList) -> Self {
        let peers = list.peers().iter().map(|peer| (peer.member, digest(&peer.who))).collect();
        Self { not_after_ms: list.not_after_ms, peers }
    }

    /// Whether whoever has this list needs no `newer` one, where `known` is who members are now:
    /// it names them all, for as long, and nobody who is revoked or somebody else by now.
    fn covers(&self, newer: &Self, known: &BTreeMap<Member, Who>) -> bool {
        let is_true = |(member, was): (&Member, &u64)| {
            known.get(member).is_some_and(|who| digest(who) == *was)
        };
        self.not_after_ms >= newer.not_after_ms
            && newer.peers.keys().all(|member| self.peers.contains_key(member))
            && self.peers.iter().all(is_true)
    }
}

fn digest(who: &Who) -> u64 {
    let mut hasher = DefaultHasher::new();
    who.hash(&mut hasher);
    hasher.finish()
}

/// A link between two members, in either order.
pub type Link = (Member, Member);

/// The links that plans need: parents with their children, and neighbours.
pub fn links_of<'a>(
    plans: impl IntoIterator<Item = (Member, &'a HostPlan)>,
) -> impl Iterator<Item = Link> {
    plans.into_iter().flat_map(|(member, plan)| {
        let others = plan.parents.iter().flatten().chain(&plan.neighbours);
        others.map(move |other| (member, *other))
    })
}

impl Membership {
    /// Of the transfer of the file with this root. `number` is the highest that was ever signed for
    /// it, 0 for none: agents refuse lists that are not above.
    pub fn new(transfer: TransferId, root: Hash, number: u32) -> Self {
        let (members, removed, listed) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { transfer, root, members, removed, listed, number }
    }

    /// Adds an agent under a number that was never used.
    pub fn add(&mut self, member: Member, agent: AgentId) {
        self.members.insert(member, Some(agent));
    }

    /// Adds the server, which seeds.
    pub fn add_server(&mut self, member: Member) {
        self.members.insert(member, None);
    }

    /// Highest number that was signed.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Nobody knows whether `member` has its list still: it gets the next one in any case.
    pub fn unlist(&mut self, member: Member) {
        self.listed.remove(&member);
    }

    /// The lists of `receivers`, or of all: whom `links` join each with. Their number is above all
    /// earlier ones. Whoever has a list that names them all, and for as long, gets none: naming
    /// more does no harm, unless one of these is out of the transfer or another by now.
    pub fn lists(
        &mut self,
        registry: &Registry,
        links: impl IntoIterator<Item = Link>,
        receivers: Option<&[Member]>,
        not_after_ms: i64,
    ) -> Result<Vec<(AgentId, PeerList)>, MembershipSendError> {
        let all: Vec<Member> = self.members.keys().copied().collect();
        let receivers = receivers.unwrap_or(&all);
        let mut joined: BTreeMap<Member, BTreeSet<Member>> =
            receivers.iter().map(|member| (*member, BTreeSet::new())).collect();
        for (one, other) in links {
            for member in [one, other] {
                if !self.members.contains_key(&member) {
                    return Err(MembershipSendError::Unknown(member));
                }
            }
            if one != other && !self.removed.contains(&one) && !self.removed.contains(&other) {
                for (member, peer) in [(one, other), (other, one)] {
                    joined.get_mut(&member).into_iter().for_each(|peers| {
                        peers.insert(peer);
                    });
                }
            }
        }
        let named = joined.iter().flat_map(|(member, peers)| peers.iter().chain([member]));
        let listed = receivers.iter().filter_map(|member| self.listed.get(member));
        let named = named.chain(listed.flat_map(|listed| listed.peers.keys()));
        let known = self.known(registry, &named.copied().collect());
        self.number += 1;
        let mut lists = Vec::new();
        for member in receivers {
            let Some((Some(agent), Who::Agent { .. })) =
                self.members.get(member).zip(known.get(member))
            else {
                continue;
            };
            let others = joined.get(member).into_iter().flatten();
            let peers = others
                .filter_map(|other| Some(Peer { member: *other, who: known.get(other)?.clone() }));
            let list = PeerList::new(
                self.transfer,
                self.root,
                *member,
                self.number,
                not_after_ms,
                peers.collect(),
            );
            let list = list.map_err(|error| MembershipSendError::List(*member, error))?;
            let newer = Listed::new(&list);
            if self.listed.get(member).is_none_or(|listed| !listed.covers(&newer, &known)) {
                self.listed.insert(*member, newer);
                lists.push((agent.clone(), list));
            }
        }
        Ok(lists)
    }

    /// Who these members are now; removed, revoked and unknown ones are nobody.
    fn known(&self, registry: &Registry, which: &BTreeSet<Member>) -> BTreeMap<Member, Who> {
        let members = which.iter().filter(|member| !self.removed.contains(member));
        let members = members.filter_map(|member| self.members.get_key_value(member));
        let who = |agent: &Option<AgentId>| match agent {
            None => Some(Who::Server),
            Some(id) => registry.mesh_agent(id).and_then(|agent| who(id.clone(), agent)),
        };
        members.filter_map(|(member, agent)| Some((*member, who(agent)?))).collect()
    }

    /// Builds, signs and sends the lists of `receivers`, or of all, until `not_after_ms`; those who
    /// are away get none and need one when they come.
    pub async fn send(
        &mut self,
        fleet: &Fleet,
        registry: &Registry,
        links: impl IntoIterator<Item = Link>,
        receivers: Option<&[Member]>,
        not_after_ms: i64,
    ) -> Result<(), MembershipSendError> {
        let lists = self.lists(registry, links, receivers, not_after_ms)?;
        let orders = lists
            .into_iter()
            .map(|(agent, list)| (agent, command_body::Kind::TransferPeers(list.to_message())));
        // Not as the transfer's: an agent without a session has not missed the order to join.
        Ok(fleet.command_each(Purpose::Other, orders.collect(), not_after_ms).await?)
    }

    /// Takes members out for good and says so to all others; `not_after_ms` is the latest of any
    /// list that was signed before.
    pub async fn remove(
        &mut self,
        fleet: &Fleet,
        members: &[Member],
        not_after_ms: i64,
    ) -> Result<(), MembershipSendError> {
        let (removal, agents) = self.removal(members, not_after_ms);
        let order = command_body::Kind::RemovePeers(removal.to_message());
        Ok(fleet.command(Purpose::Other, order, not_after_ms, &agents, |_, _| ()).await?)
    }

    /// Whether a member was taken out for good.
    pub fn is_removed(&self, member: Member) -> bool {
        self.removed.contains(&member)
    }

    /// The removal of `members` and whom it goes to: the removed ones too.
    fn removal(&mut self, members: &[Member], not_after_ms: i64) -> (Removal, Vec<AgentId>) {
        let agents = self.members.iter().filter(|(member, _)| !self.removed.contains(member));
        let agents = agents.filter_map(|(_, agent)| agent.clone()).collect();
        self.removed.extend(members);
        self.number += 1;
        let (transfer, number, members) = (self.transfer, self.number, members.to_vec());
        (Removal { transfer, number, not_after_ms, members }, agents)
    }
}

/// How others know an agent and where they reach it; none while its key is not known.
fn who(id: AgentId, agent: MeshAgent) -> Option<Who> {
    let key_hash = hex_decode::<32>(&agent.key_sha256)?;
    let session: Option<IpAddr> =
        agent.remote_addr.parse::<SocketAddr>().ok().map(|address| address.ip().to_canonical());
    // What an agent reports is not believed to be an address before it is one.
    let addresses = agent.addresses.iter().filter_map(|text| text.parse().ok()).filter(is_usable);
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.sort_by_key(|address| Some(address.ip()) != session);
    addresses.truncate(MESH_PEER_ADDRESSES_MAX);
    Some(Who::Agent { id, key_hash, addresses })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::registry::{Facts, Identity, Session};
    use crate::store::{Batch, RedbConfig, RedbStore};
    use skein_wire::signal::v1::HostFacts;

    const TRANSFER: TransferId = TransferId([4; 16]);

    fn id(member: Member) -> AgentId {
        AgentId::parse(&format!("agent-{member}")).unwrap()
    }

    /// Agents 1 to 4 with keys and addresses, the second with a session.
    async fn registry(folder: &std::path::Path) -> Registry {
        let store = RedbStore::open(RedbConfig::new(folder.join("store.redb"))).unwrap();
        let registry = Registry::load(Arc::new(store)).await.unwrap();
        for member in 1..=4u8 {
            let key_sha256 = skein_wire::ids::hex_encode(&[member; 32]);
            let identity = Identity { key_sha256, ..Identity::default() };
            let at = |net: u8| format!("10.{net}.0.{member}:60020");
            let mesh_addresses = [at(0), "nonsense".into(), "0.0.0.0:60020".into(), at(1)];
            let report =
                HostFacts { mesh_addresses: mesh_addresses.into(), ..HostFacts::default() };
            let facts = Some(Facts::from_report(report));
            let agent = id(member.into());
            registry.keep_identity(&agent, None, identity, facts, Batch::new()).await.unwrap();
        }
        let session = Session {
            link: 1,
            session_id: 1,
            instance: None,
            remote_addr: "10.1.0.2:51234".into(),
            connected_ms: 0,
        };
        assert!(registry.session_up(&id(2), session));
        registry
    }

    fn membership() -> Membership {
        let mut membership = Membership::new(TRANSFER, [7; 32], 0);
        membership.add_server(0);
        (1..=4).for_each(|member| membership.add(member, id(member)));
        membership
    }

    fn members(list: &PeerList) -> Vec<Member> {
        list.peers().iter().map(|peer| peer.member).collect()
    }

    #[tokio::test]
    async fn both_ends_of_a_link_are_told_of_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path()).await;
        let plan = |parents: &[Member], neighbours: &[Member]| HostPlan {
            number: 1,
            parents: parents.iter().map(|parent| Some(*parent)).collect(),
            neighbours: neighbours.to_vec(),
            far: vec![],
        };
        let plans = [(1, plan(&[0, 2], &[])), (2, plan(&[1, 0], &[3])), (3, plan(&[2, 1], &[]))];
        let links = links_of(plans.iter().map(|(member, plan)| (*member, plan)));
        let lists = membership().lists(&registry, links, None, 9_000).unwrap();
        let seen: Vec<_> =
            lists.iter().map(|(agent, list)| (agent.to_string(), list.me, members(list))).collect();
        let row =
            |member: Member, peers: &[Member]| (id(member).to_string(), member, peers.to_vec());
        assert_eq!(seen, [row(1, &[0, 2, 3]), row(2, &[0, 1, 3]), row(3, &[1, 2]), row(4, &[])]);
        let (_, first) = &lists[0];
        assert_eq!((first.number, first.not_after_ms, first.root), (1, 9_000, [7; 32]));
        assert_eq!(first.peer(0).unwrap().who, Who::Server);
        let Who::Agent { key_hash, addresses, .. } = &first.peer(2).unwrap().who else { panic!() };
        assert_eq!(*key_hash, [2; 32]);
        // The address of the session is tried first; what is no address is left out.
        let texts: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        assert_eq!(texts, ["10.1.0.2:60020", "10.0.0.2:60020"]);
        // What is built here is what agents take.
        assert_eq!(PeerList::from_message(&first.to_message()).as_ref(), Ok(first));
    }

    #[tokio::test]
    async fn revoked_and_removed_agents_are_nobodys_peers() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path()).await;
        let mut membership = membership();
        let links = [(1, 2), (1, 3), (3, 4), (0, 4)];
        registry.revoke(&[id(2)], &[], "stolen").await.unwrap();
        let (removal, told) = membership.removal(&[3], 5_000);
        assert_eq!((removal.number, removal.members), (1, vec![3]));
        assert_eq!(told.len(), 4, "the removed one is told too");
        let lists = membership.lists(&registry, links, None, 0).unwrap();
        let seen: Vec<_> = lists.iter().map(|(_, list)| (list.me, members(list))).collect();
        assert_eq!(seen, [(1, vec![]), (4, vec![0])]);
        assert!(lists.iter().all(|(_, list)| list.number == 2), "above the removal's number");
        membership.unlist(4);
        let one = membership.lists(&registry, links, Some(&[4]), 0).unwrap();
        assert_eq!(one.len(), 1);
        assert_eq!(membership.number(), 3);
    }

    #[tokio::test]
    async fn a_list_is_sent_again_only_if_it_says_more() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path()).await;
        let mut membership = membership();
        let told = |membership: &mut Membership, links: &[Link], not_after_ms| {
            let links = links.iter().copied();
            let lists = membership.lists(&registry, links, None, not_after_ms).unwrap();
            lists.iter().map(|(_, list)| list.me).collect::<Vec<_>>()
        };
        let links = [(1, 2), (1, 3), (3, 4)];
        assert_eq!(told(&mut membership, &links, 9), [1, 2, 3, 4]);
        assert!(told(&mut membership, &links, 9).is_empty());
        // Two leave each other: nobody has to be told. Two meet: both.
        assert!(told(&mut membership, &links[1..], 9).is_empty());
        assert_eq!(told(&mut membership, &[(1, 3), (2, 4)], 9), [2, 4]);
        // One with a new session, and all when the lists are to be good for longer.
        membership.unlist(3);
        assert_eq!(told(&mut membership, &[(1, 3), (2, 4)], 9), [3]);
        assert_eq!(told(&mut membership, &[(1, 3), (2, 4)], 10), [1, 2, 3, 4]);
        // A peer whose session comes from elsewhere: whoever knows it learns where to try first.
        let session = Session {
            link: 2,
            session_id: 2,
            instance: None,
            remote_addr: "10.1.0.4:51234".into(),
            connected_ms: 0,
        };
        assert!(registry.session_up(&id(4), session));
        assert_eq!(told(&mut membership, &[(1, 3), (2, 4)], 10), [2]);
        // One is revoked: whoever's list names it gets another.
        registry.revoke(&[id(3)], &[], "stolen").await.unwrap();
        assert_eq!(told(&mut membership, &[(2, 4)], 10), [1]);
    }

    #[tokio::test]
    async fn impossible_lists_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path()).await;
        let mut membership = membership();
        let unknown = membership.lists(&registry, [(1, 9)], None, 0);
        assert!(matches!(unknown, Err(MembershipSendError::Unknown(9))));
        // The same agent under many numbers.
        membership.add(5, id(2));
        let twice = membership.lists(&registry, [(1, 2), (1, 5)], None, 0);
        assert!(matches!(twice, Err(MembershipSendError::List(1, MembershipError::Twice(5)))));
    }
}
