//! Who is not named gets no byte of BitTorrent, whatever certificate it has and whatever it says;
//! and who is not meant is told none.

#![allow(clippy::unwrap_used)] // A test may.

mod mesh_support;

use std::net::SocketAddr;

use mesh_support::{
    Authority, Knock, Node, ROOT, TRANSFER, impostor, list, now_ms, only_status, peer, soon,
};
use skein_agent::identity::Identity;
use skein_agent::mesh::{ALPN, DialError, Endpoint};
use skein_filemesh::core::membership::{PeerList, Removal};
use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, info_hash, peer_id};
use skein_wire::hello::{ChannelKind, HELLO_BYTES, HelloStatus};
use skein_wire::ids::TransferId;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A node with a swarm, whose list names "member" as 1.
fn node(authority: &Authority) -> (Node, Endpoint, Identity) {
    let node = Node::start(authority, 0);
    let endpoint = node.mesh.register(TRANSFER, ROOT).unwrap();
    let member = authority.identity("member");
    node.take(1, &[peer(1, &member, None)]);
    (node, endpoint, member)
}

async fn knock(node: &Node, identity: &Identity) -> Vec<u8> {
    Knock::of(identity).at(node.address, identity, &node.identity).await
}

/// Without this every other test here would pass for want of a listener.
#[tokio::test]
async fn a_member_gets_the_handshake() {
    let authority = Authority::new();
    let (node, mut endpoint, member) = node(&authority);
    let knocked = tokio::spawn(async move { knock(&node, &member).await });
    let stream = soon(endpoint.accept()).await;
    assert_eq!(stream.member(), 1);
    drop(stream);
    let answer = knocked.await.unwrap();
    assert_eq!(answer.len(), HELLO_BYTES + HANDSHAKE_BYTES);
    assert_eq!(answer[HELLO_BYTES..][28..48], info_hash(&TRANSFER.0, &ROOT));
}

#[tokio::test]
async fn an_enrolled_agent_that_is_not_named_gets_no_byte() {
    let authority = Authority::new();
    let (node, _endpoint, member) = node(&authority);
    let stranger = authority.identity("stranger");
    // Enrolled again under the member's name: the id fits, the key does not.
    let namesake = authority.identity("member");
    // The stranger says in its handshake that it is the member, and the other way round.
    let says_member = Knock { peer_id: peer_id("member"), ..Knock::of(&stranger) };
    let says_stranger = Knock { peer_id: peer_id("stranger"), ..Knock::of(&member) };
    let answers = tokio::join!(
        knock(&node, &stranger),
        knock(&node, &namesake),
        says_member.at(node.address, &stranger, &node.identity),
        says_stranger.at(node.address, &member, &node.identity),
    );
    for answer in [answers.0, answers.1, answers.2, answers.3] {
        assert_eq!(only_status(&answer), HelloStatus::Unauthorised);
    }
}

#[tokio::test]
async fn a_member_of_another_transfer_gets_no_byte() {
    let authority = Authority::new();
    let (node, _endpoint, member) = node(&authority);
    let other = TransferId([8; 16]);
    let _other_endpoint = node.mesh.register(other, ROOT).unwrap();
    let elsewhere = authority.identity("elsewhere");
    let peers = vec![peer(5, &elsewhere, None)];
    let theirs = PeerList::new(other, ROOT, 0, 1, now_ms() + 60_000, peers).unwrap();
    node.mesh.take_list(&theirs.to_message());
    let at = |info_hash| Knock { info_hash, ..Knock::of(&member) };
    // Each is known here, but not there; nobody is known for a transfer that is not here, or for
    // another file under a transfer's id.
    let crossed = at(info_hash(&other.0, &ROOT));
    let (unknown, other_root) = (at([7; 20]), at(info_hash(&TRANSFER.0, &[9; 32])));
    let answers = tokio::join!(
        crossed.at(node.address, &member, &node.identity),
        knock(&node, &elsewhere),
        unknown.at(node.address, &member, &node.identity),
        other_root.at(node.address, &member, &node.identity),
    );
    for answer in [answers.0, answers.1, answers.2, answers.3] {
        assert_eq!(only_status(&answer), HelloStatus::Unauthorised);
    }
}

#[tokio::test]
async fn a_list_without_a_swarm_lets_nobody_in() {
    let authority = Authority::new();
    let (node, endpoint, member) = node(&authority);
    drop(endpoint);
    assert_eq!(only_status(&knock(&node, &member).await), HelloStatus::Unauthorised);
}

#[tokio::test]
async fn a_removed_member_gets_no_byte_also_by_a_replayed_list() {
    let authority = Authority::new();
    let (node, _endpoint, member) = node(&authority);
    let first = list(0, 1, &[peer(1, &member, None)]).to_message();
    let second = list(0, 2, &[peer(1, &member, None)]).to_message();
    node.mesh.take_list(&second);
    let (not_after_ms, members) = (now_ms() + 60_000, vec![1]);
    let removal = Removal { transfer: TRANSFER, number: 3, not_after_ms, members };
    node.mesh.remove(&removal.to_message());
    for replayed in [first, second] {
        node.mesh.take_list(&replayed);
        let answer = knock(&node, &member).await;
        assert_eq!(only_status(&answer), HelloStatus::Unauthorised);
    }
}

#[tokio::test]
async fn an_older_list_lets_nobody_back_in() {
    let authority = Authority::new();
    let (node, _endpoint, member) = node(&authority);
    let older = list(0, 1, &[peer(1, &member, None)]).to_message();
    node.take(2, &[]);
    node.mesh.take_list(&older);
    assert_eq!(only_status(&knock(&node, &member).await), HelloStatus::Unauthorised);
}

#[tokio::test]
async fn an_expired_list_lets_nobody_in() {
    let authority = Authority::new();
    let (node, _endpoint, member) = node(&authority);
    // An hour passes on the server, which the agent learns.
    node.clock.learn(now_ms() + 3_600_000, skein_agent::clock::now_ms());
    assert_eq!(only_status(&knock(&node, &member).await), HelloStatus::Unauthorised);
}

#[tokio::test]
async fn who_is_not_of_the_fleet_hears_nothing_at_all() {
    let (authority, others) = (Authority::new(), Authority::new());
    let (node, _endpoint, member) = node(&authority);
    // Another authority's certificate with the member's name, none, and another protocol.
    let forged = others.identity("member");
    let nobody = Knock { with_certificate: false, ..Knock::of(&member) };
    let web = Knock { alpn: Some(b"http/1.1"), ..Knock::of(&member) };
    let vague = Knock { alpn: None, ..Knock::of(&member) };
    let signal = Knock { kind: ChannelKind::Signal, ..Knock::of(&member) };
    let answers = tokio::join!(
        knock(&node, &forged),
        nobody.at(node.address, &member, &node.identity),
        web.at(node.address, &member, &node.identity),
        vague.at(node.address, &member, &node.identity),
        signal.at(node.address, &member, &node.identity),
    );
    for answer in [answers.0, answers.1, answers.2, answers.3, answers.4] {
        assert!(answer.is_empty(), "{answer:?} inside TLS");
    }
}

/// A client that says nothing is given up after some seconds, and holds up nobody meanwhile.
#[tokio::test]
async fn silent_connections_end_and_keep_nobody_out() {
    let authority = Authority::new();
    let (node, mut endpoint, member) = node(&authority);
    let mut silent = Vec::new();
    for _ in 0..7 {
        silent.push(TcpStream::connect(node.address).await.unwrap());
    }
    let (knocked, stream) =
        tokio::join!(knock(&node, &member), async { drop(soon(endpoint.accept()).await) });
    assert_eq!((knocked.len(), stream), (HELLO_BYTES + HANDSHAKE_BYTES, ()));
    let mut byte = [0];
    assert_eq!(soon(silent[0].read(&mut byte)).await.unwrap_or(0), 0);
}

// ------------------------------------------------------------------------- the dialling side

async fn dial_at(authority: &Authority, address: SocketAddr) -> DialError {
    let node = Node::start(authority, 0);
    let endpoint = node.mesh.register(TRANSFER, ROOT).unwrap();
    let member = authority.identity("member");
    node.take(1, &[peer(1, &member, Some(address))]);
    soon(endpoint.dialer().dial(1)).await.unwrap_err()
}

#[tokio::test]
async fn who_answers_in_a_members_place_is_told_nothing() {
    let (authority, others) = (Authority::new(), Authority::new());
    // Another agent; one with the member's name and another key; the member's name by another
    // authority; the right fleet, another protocol.
    for (identity, alpn, expected) in [
        (authority.identity("stranger"), ALPN, "stranger"),
        (authority.identity("member"), ALPN, "stranger"),
        (others.identity("member"), ALPN, "tls"),
        (authority.identity("stranger"), &b"h2"[..], "tls"),
    ] {
        let (address, heard) = impostor(identity, alpn).await;
        let error = dial_at(&authority, address).await;
        assert_eq!(error.as_str(), expected, "{error}");
        let heard = heard.await.unwrap();
        assert!(heard.is_empty(), "{heard:?} inside TLS");
    }
}

/// The member itself, at the address of its list, but its own list does not name us.
#[tokio::test]
async fn a_member_that_does_not_know_us_refuses() {
    let authority = Authority::new();
    let (far, _far_endpoint, _) = node(&authority);
    let near = Node::start(&authority, 3);
    let endpoint = near.mesh.register(TRANSFER, ROOT).unwrap();
    near.take(1, &[far.peer()]);
    let refused = soon(endpoint.dialer().dial(0)).await.unwrap_err();
    let DialError::Refused { status, .. } = refused else { panic!("{refused}") };
    assert_eq!(status, HelloStatus::Unauthorised);
}
