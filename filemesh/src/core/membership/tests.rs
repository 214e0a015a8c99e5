//! Lists, removals and rosters: what is taken, what is refused, whose connections end.

use super::*;
use proptest::prelude::*;
use skein_wire::prost::Message;
use std::collections::BTreeSet;

fn agent(member: Member) -> Peer {
    let id = AgentId::parse(&format!("agent-{member}")).unwrap();
    let addresses = vec![SocketAddr::from(([10, 0, 0, 1], 60_020))];
    Peer { member, who: Who::Agent { id, key_hash: [member as u8; 32], addresses } }
}

fn list(number: u32, members: &[Member]) -> PeerList {
    let peers = members.iter().map(|member| agent(*member)).collect();
    PeerList::new(TransferId([1; 16]), [2; 32], 0, number, 1_000, peers).unwrap()
}

#[test]
fn a_list_is_its_message() {
    let mut peers = vec![agent(5), agent(3)];
    peers.push(Peer { member: 4, who: Who::Server });
    let list = PeerList::new(TransferId([1; 16]), [2; 32], 0, 7, 1_000, peers).unwrap();
    assert_eq!(PeerList::from_message(&list.to_message()), Ok(list.clone()));
    assert_eq!(list.peers().iter().map(|peer| peer.member).collect::<Vec<_>>(), [3, 4, 5]);
    let removal =
        Removal { transfer: TransferId([1; 16]), number: 8, not_after_ms: 9, members: vec![3, 5] };
    assert_eq!(Removal::from_message(&removal.to_message()), Ok(removal));
}

#[test]
fn a_member_is_known_by_name_and_key() {
    let list = list(1, &[3, 5]);
    let id = |text| AgentId::parse(text).unwrap();
    assert_eq!(list.find(&id("agent-3"), &[3; 32]), Some(3));
    assert_eq!(list.find(&id("agent-3"), &[5; 32]), None, "another's key");
    assert_eq!(list.find(&id("agent-4"), &[3; 32]), None, "another's name");
    assert!(list.is_valid_at(1_000) && !list.is_valid_at(1_001));
}

#[test]
fn the_server_never_comes_as_a_peer() {
    let peers = vec![Peer { member: 4, who: Who::Server }];
    let list = PeerList::new(TransferId([1; 16]), [2; 32], 0, 1, 0, peers).unwrap();
    assert_eq!(list.find(&AgentId::parse("server").unwrap(), &[0; 32]), None);
}

type Spoil = fn(&mut TransferPeers);

#[test]
fn bad_fields_are_refused() {
    let good = list(1, &[3, 5]).to_message();
    let bad: [(&str, Spoil); 14] = [
        ("transfer", |list| list.transfer_id = vec![1; 15].into()),
        ("root", |list| list.root = vec![1; 31].into()),
        ("number", |list| list.number = 0),
        ("me", |list| list.me = MESH_MEMBER_MAX + 1),
        ("the receiver", |list| list.me = 5),
        ("member", |list| list.peers[0].member = MESH_MEMBER_MAX + 1),
        ("member twice", |list| list.peers[0].member = 5),
        ("agent twice", |list| list.peers[0].agent_id = "agent-5".into()),
        ("agent id", |list| list.peers[0].agent_id = "a/b".into()),
        ("key", |list| list.peers[0].key_hash = vec![1; 20].into()),
        ("server with a key", |list| list.peers[0].agent_id = String::new()),
        ("address", |list| list.peers[0].addresses = vec!["host:1".into()]),
        ("any port", |list| list.peers[0].addresses = vec!["0.0.0.0:60020".into()]),
        ("addresses", |list| {
            list.peers[0].addresses = vec!["10.0.0.1:1".into(); MESH_PEER_ADDRESSES_MAX + 1];
        }),
    ];
    for (what, spoil) in bad {
        let mut message = good.clone();
        spoil(&mut message);
        assert!(PeerList::from_message(&message).is_err(), "{what}");
    }
    let mut many = good;
    many.peers = (1..=MESH_PEERS_MAX as u32 + 1).map(|member| agent(member).to_message()).collect();
    assert!(PeerList::from_message(&many).is_err());
    many.peers.pop();
    assert!(PeerList::from_message(&many).is_ok());
}

#[test]
fn the_largest_list_fits_a_signal_message() {
    let peer = |member| signal::Peer {
        member,
        agent_id: format!("{member:x>64}"),
        key_hash: vec![7; 32].into(),
        addresses: vec![
            "[1111:2222:3333:4444:5555:6666:7777:8888]:60030".into();
            MESH_PEER_ADDRESSES_MAX
        ],
    };
    let peers = (0..MESH_PEERS_MAX as u32).map(|n| peer(MESH_MEMBER_MAX - n)).collect();
    let message = TransferPeers { peers, ..list(1, &[]).to_message() };
    PeerList::from_message(&message).unwrap();
    assert!(message.encoded_len() < skein_wire::limits::SIGNAL_MESSAGE_BYTES_MAX / 2);
}

#[test]
fn an_older_list_never_comes_back() {
    let mut roster = Roster::default();
    assert_eq!(roster.take(list(2, &[3, 5])), Ok(vec![]));
    for number in [1, 2] {
        assert_eq!(roster.take(list(number, &[7])), Err(Stale { number, known: 2 }));
    }
    assert_eq!(roster.list().unwrap().peers().len(), 2);
    assert_eq!(roster.take(list(3, &[5, 9])), Ok(vec![3]));
}

#[test]
fn another_key_is_another_member() {
    let mut roster = Roster::default();
    roster.take(list(1, &[3, 5])).unwrap();
    let mut renewed = list(2, &[3, 5]).to_message();
    renewed.peers[0].key_hash = vec![9; 32].into();
    renewed.peers[1].addresses.clear();
    assert_eq!(roster.take(PeerList::from_message(&renewed).unwrap()), Ok(vec![3]));
    let mut other_file = list(3, &[3, 5]).to_message();
    other_file.root = vec![8; 32].into();
    assert_eq!(roster.take(PeerList::from_message(&other_file).unwrap()), Ok(vec![3, 5]));
}

#[test]
fn a_removed_member_stays_out_whatever_comes_late() {
    let removal =
        Removal { transfer: TransferId([1; 16]), number: 5, not_after_ms: 2_000, members: vec![3] };
    let mut roster = Roster::default();
    roster.take(list(4, &[3, 5])).unwrap();
    roster.remove(&removal).unwrap();
    assert_eq!(members_of(&roster), [5]);
    assert!(roster.remove(&removal).is_err(), "the same again is old");
    // A removal that overtakes the list which it is about.
    let mut roster = Roster::default();
    roster.remove(&removal).unwrap();
    assert!(roster.take(list(4, &[3, 5])).is_err());
    assert_eq!(roster.not_after_ms(), 2_000);
    roster.take(list(6, &[5])).unwrap();
    assert_eq!(members_of(&roster), [5]);
}

#[test]
fn an_expired_list_is_forgotten_but_not_its_number() {
    let mut roster = Roster::default();
    roster.take(list(4, &[3])).unwrap();
    assert!(!roster.expire(1_000));
    assert!(roster.expire(1_001));
    assert!(roster.list().is_none());
    assert!(roster.take(list(4, &[3])).is_err());
}

prop_compose! {
    fn any_peer()(
        member in 0..12u32,
        agent in 0..12u8,
        key in prop::sample::select(vec![0usize, 31, 32]),
        addresses in prop::collection::vec(
            prop::sample::select(vec!["10.0.0.1:1", "[::1]:60020", "x", "1.1.1.1:0"]),
            0..6,
        ),
    ) -> signal::Peer {
        let agent_id = if agent == 0 { String::new() } else { format!("a{agent}") };
        let addresses = addresses.into_iter().map(str::to_owned).collect();
        signal::Peer { member, agent_id, key_hash: vec![agent; key].into(), addresses }
    }
}

fn any_order() -> impl Strategy<Value = (u32, bool, BTreeSet<Member>)> {
    (1..9u32, any::<bool>(), prop::collection::btree_set(1..6u32, 0..4))
}

fn members_of(roster: &Roster) -> Vec<Member> {
    roster.list().iter().flat_map(|list| list.peers()).map(|peer| peer.member).collect()
}

proptest! {
    #[test]
    fn what_is_accepted_is_canonical(
        peers in prop::collection::vec(any_peer(), 0..5),
        me in 0..12u32,
        number in 0..3u32,
    ) {
        let message = TransferPeers {
            transfer_id: vec![1; 16].into(),
            root: vec![2; 32].into(),
            me,
            number,
            not_after_ms: -1,
            peers,
        };
        if let Ok(list) = PeerList::from_message(&message) {
            prop_assert_eq!(PeerList::from_message(&list.to_message()), Ok(list.clone()));
            prop_assert!(list.peer(list.me).is_none());
            prop_assert!(list.peers().is_sorted_by(|a, b| a.member < b.member));
        }
    }

    /// Whatever comes in whatever order: the number only grows, and who was removed by the newest
    /// order is not on the list.
    #[test]
    fn a_roster_only_goes_forward(
        orders in prop::collection::vec(any_order(), 0..12),
    ) {
        let (mut roster, mut newest) = (Roster::default(), 0);
        for (number, remove, members) in orders {
            let members: Vec<Member> = members.into_iter().collect();
            let before = members_of(&roster);
            let gone = if remove {
                let transfer = TransferId([1; 16]);
                let removal = Removal { transfer, number, not_after_ms: 0, members };
                roster.remove(&removal).map(|()| removal.members)
            } else {
                roster.take(list(number, &members))
            };
            prop_assert_eq!(gone.is_ok(), number > newest);
            newest = newest.max(number);
            let after = members_of(&roster);
            match gone {
                Ok(gone) => prop_assert!(
                    before.iter().all(|one| after.contains(one) != gone.contains(one))
                ),
                Err(_) => prop_assert_eq!(before, after),
            }
        }
    }
}
