//! Agents' ends of a mesh over loopback: members exchange bytes, streams end when they must, and
//! bounds hold.

#![allow(clippy::unwrap_used)] // A test may.

mod mesh_support;

use std::io::ErrorKind;
use std::time::Duration;

use mesh_support::{Authority, Node, ROOT, TRANSFER, list, now_ms, peer, soon};
use skein_agent::config::MeshConfig;
use skein_agent::mesh::{DialError, Direction, Endpoint, PeerStream, RegisterError};
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::link::{Event, Have, PeerLink};
use skein_filemesh::core::membership::{PeerList, Removal};
use skein_filemesh::core::plan::HostPlan;
use skein_wire::hello::HelloStatus;
use skein_wire::ids::TransferId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Nodes 0 to `count` - 1 that all name each other.
fn mesh(count: u32) -> (Authority, Vec<Node>, Vec<Endpoint>) {
    let authority = Authority::new();
    let nodes: Vec<Node> = (0..count).map(|member| Node::start(&authority, member)).collect();
    let register = |node: &Node| node.mesh.register(TRANSFER, ROOT).unwrap();
    let endpoints = nodes.iter().map(register).collect();
    nodes.iter().for_each(|node| name_others(node, 1, &nodes));
    (authority, nodes, endpoints)
}

fn name_others(node: &Node, number: u32, nodes: &[Node]) {
    let others = nodes.iter().filter(|other| other.member != node.member);
    node.take(number, &others.map(Node::peer).collect::<Vec<_>>());
}

/// A stream from `from` to `to`, both ends.
async fn join(endpoints: &mut [Endpoint], from: usize, to: usize) -> (PeerStream, PeerStream) {
    let dialer = endpoints[from].dialer().clone();
    let (dialled, taken) = tokio::join!(soon(dialer.dial(to as u32)), soon(endpoints[to].accept()));
    (dialled.unwrap(), taken)
}

/// Sends `bytes` each way at once.
async fn exchange(one: &mut PeerStream, other: &mut PeerStream, bytes: usize) {
    let pattern = |seed: usize| (0..bytes).map(|at| (at * 31 + seed) as u8).collect::<Vec<_>>();
    let (there, back) = (pattern(1), pattern(2));
    let (mut got_there, mut got_back) = (vec![0; bytes], vec![0; bytes]);
    let (mut one_reads, mut one_writes) = tokio::io::split(one);
    let (mut other_reads, mut other_writes) = tokio::io::split(other);
    let all = async {
        tokio::try_join!(
            async {
                one_writes.write_all(&there).await?;
                one_writes.flush().await
            },
            async {
                other_writes.write_all(&back).await?;
                other_writes.flush().await
            },
            async { other_reads.read_exact(&mut got_there).await.map(drop) },
            async { one_reads.read_exact(&mut got_back).await.map(drop) },
        )
    };
    soon(all).await.unwrap();
    assert!(got_there == there && got_back == back);
}

async fn ends(stream: &mut PeerStream) -> ErrorKind {
    let mut byte = [0];
    let read = soon(stream.read(&mut byte)).await;
    let error = read.expect_err("the stream has ended");
    assert_eq!(stream.write(&byte).await.unwrap_err().kind(), error.kind());
    error.kind()
}

#[tokio::test]
async fn three_members_exchange_bytes_behind_both_handshakes() {
    let (_authority, _nodes, mut endpoints) = mesh(3);
    let geometry = Geometry::new(1_000_000, 65_536).unwrap();
    for (from, to) in [(1, 0), (2, 0), (2, 1), (0, 2)] {
        let (mut dialled, mut taken) = join(&mut endpoints, from, to).await;
        assert_eq!((dialled.member(), taken.member()), (to as u32, from as u32));
        let directions = (dialled.direction(), taken.direction());
        assert_eq!(directions, (Direction::Outgoing, Direction::Incoming));
        assert_eq!((dialled.ours(), dialled.theirs()), (taken.theirs(), taken.ours()));
        // A link that is told of the handshakes says and hears what comes behind them.
        let link = |stream: &PeerStream, have: Have| {
            PeerLink::shaken(geometry, *stream.ours(), stream.theirs(), &have, 0).unwrap()
        };
        let mut says = link(&dialled, Have::All);
        let mut hears = link(&taken, Have::All);
        let (mut out, mut input) = (Vec::new(), [0; 5]);
        says.take_output(&mut out, 0);
        assert_eq!(out.len(), input.len(), "have all, and no handshake");
        dialled.write_all(&out).await.unwrap();
        dialled.flush().await.unwrap();
        soon(taken.read_exact(&mut input)).await.unwrap();
        let step = hears.next(&input, 0).unwrap();
        assert!(matches!(step.event, Some(Event::Have)) && hears.is_open());
        exchange(&mut dialled, &mut taken, 1_000_000).await;
    }
}

#[tokio::test]
async fn a_removed_member_loses_its_streams_at_once_and_does_not_come_back() {
    let (_authority, nodes, mut endpoints) = mesh(3);
    let (mut removed, mut removed_far) = join(&mut endpoints, 1, 0).await;
    let (mut stays, mut stays_far) = join(&mut endpoints, 2, 0).await;
    exchange(&mut removed, &mut removed_far, 10_000).await;
    let members = vec![1];
    let removal =
        Removal { transfer: TRANSFER, number: 2, not_after_ms: now_ms() + 60_000, members };
    // Somebody waits for bytes when it happens.
    let waits = tokio::spawn(async move { ends(&mut removed_far).await });
    tokio::task::yield_now().await;
    nodes[0].mesh.remove(&removal.to_message());
    assert_eq!(waits.await.unwrap(), ErrorKind::ConnectionAborted);
    // The removed one hears nothing but the end.
    let mut rest = Vec::new();
    let _ = soon(removed.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    exchange(&mut stays, &mut stays_far, 10_000).await;
    let again = soon(endpoints[1].dialer().dial(0)).await;
    let refused = DialError::Refused { status: HelloStatus::Unauthorised, retry_after_ms: 0 };
    assert_eq!(again.unwrap_err().to_string(), refused.to_string());
    assert!(matches!(endpoints[0].dialer().dial(1).await, Err(DialError::NotAMember)));
    let list = endpoints[0].peers().borrow().clone().unwrap();
    assert_eq!(list.peers().len(), 1);
}

#[tokio::test]
async fn a_newer_list_ends_the_streams_of_whom_it_does_not_name() {
    let (_authority, nodes, mut endpoints) = mesh(3);
    let (_one, mut one_far) = join(&mut endpoints, 1, 0).await;
    let (mut two, mut two_far) = join(&mut endpoints, 2, 0).await;
    nodes[0].take(2, &[nodes[2].peer()]);
    assert_eq!(ends(&mut one_far).await, ErrorKind::ConnectionAborted);
    exchange(&mut two, &mut two_far, 10_000).await;
    // An older list, signed for this agent as it may be, changes nothing.
    nodes[0].take(1, &[nodes[1].peer()]);
    nodes[0].take(2, &[nodes[1].peer()]);
    exchange(&mut two, &mut two_far, 10_000).await;
    assert!(matches!(endpoints[0].dialer().dial(1).await, Err(DialError::NotAMember)));
}

#[tokio::test]
async fn streams_end_when_the_list_expires() {
    let (_authority, nodes, mut endpoints) = mesh(2);
    let peers = vec![nodes[0].peer()];
    let short = PeerList::new(TRANSFER, ROOT, 1, 2, now_ms() + 3_000, peers).unwrap();
    nodes[1].mesh.take_list(&short.to_message());
    let (mut dialled, mut taken) = join(&mut endpoints, 0, 1).await;
    exchange(&mut dialled, &mut taken, 10_000).await;
    assert_eq!(ends(&mut taken).await, ErrorKind::ConnectionAborted);
    assert!(now_ms() > short.not_after_ms);
    assert!(endpoints[1].peers().borrow().is_none());
    assert!(endpoints[1].dialer().dial(0).await.is_err());
    // A list that has expired before it comes is none.
    let late = PeerList::new(TRANSFER, ROOT, 1, 3, now_ms() - 1, vec![nodes[0].peer()]).unwrap();
    nodes[1].mesh.take_list(&late.to_message());
    assert!(endpoints[1].peers().borrow().is_none());
    name_others(&nodes[1], 4, &nodes);
    let (mut dialled, mut taken) = join(&mut endpoints, 0, 1).await;
    exchange(&mut dialled, &mut taken, 10_000).await;
}

#[tokio::test]
async fn a_newer_stream_of_a_member_takes_the_place_of_its_older() {
    let (_authority, _nodes, mut endpoints) = mesh(2);
    let (mut first, mut first_far) = join(&mut endpoints, 1, 0).await;
    let (mut second, mut second_far) = join(&mut endpoints, 1, 0).await;
    assert_eq!(ends(&mut first).await, ErrorKind::ConnectionAborted);
    assert_eq!(ends(&mut first_far).await, ErrorKind::ConnectionAborted);
    // The end of the older one is not taken for the end of the newer.
    drop((first, first_far));
    let (mut back, mut back_far) = join(&mut endpoints, 0, 1).await;
    exchange(&mut second, &mut second_far, 10_000).await;
    exchange(&mut back, &mut back_far, 10_000).await;
}

#[tokio::test]
async fn a_swarm_that_goes_takes_its_streams_along() {
    let (_authority, nodes, mut endpoints) = mesh(2);
    let again = nodes[0].mesh.register(TRANSFER, ROOT);
    assert_eq!(again.err(), Some(RegisterError::Taken));
    let (_dialled, mut taken) = join(&mut endpoints, 1, 0).await;
    drop(endpoints.remove(0));
    assert_eq!(ends(&mut taken).await, ErrorKind::ConnectionAborted);
    let dialled = soon(endpoints[0].dialer().dial(0)).await;
    assert!(matches!(dialled, Err(DialError::Refused { .. })));
    // The list stays for a swarm that begins anew.
    let mut endpoint = nodes[0].mesh.register(TRANSFER, ROOT).unwrap();
    let dialler = endpoints[0].dialer().clone();
    let (dialled, taken) = tokio::join!(soon(dialler.dial(0)), soon(endpoint.accept()));
    exchange(&mut dialled.unwrap(), &mut { taken }, 10_000).await;
}

/// Control's lists reach agents one after the other, and a swarm may begin after its list.
#[tokio::test]
async fn who_is_named_a_moment_too_late_comes_in() {
    let authority = Authority::new();
    let nodes: Vec<Node> = (0..2).map(|member| Node::start(&authority, member)).collect();
    let endpoint = nodes[0].mesh.register(TRANSFER, ROOT).unwrap();
    name_others(&nodes[0], 1, &nodes);
    let dialled = tokio::spawn({
        let dialer = endpoint.dialer().clone();
        async move { soon(dialer.dial(1)).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut late = nodes[1].mesh.register(TRANSFER, ROOT).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    name_others(&nodes[1], 1, &nodes);
    let mut taken = soon(late.accept()).await;
    exchange(&mut dialled.await.unwrap().unwrap(), &mut taken, 10_000).await;
}

#[tokio::test]
async fn who_is_asked_for_a_moment_before_the_list_names_him_is_reached() {
    let authority = Authority::new();
    let nodes: Vec<Node> = (0..2).map(|member| Node::start(&authority, member)).collect();
    let endpoint = nodes[0].mesh.register(TRANSFER, ROOT).unwrap();
    let mut other = nodes[1].mesh.register(TRANSFER, ROOT).unwrap();
    name_others(&nodes[1], 1, &nodes);
    nodes[0].take(1, &[]);
    let dialled = tokio::spawn({
        let dialer = endpoint.dialer().clone();
        async move { soon(dialer.dial(1)).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    name_others(&nodes[0], 2, &nodes);
    let mut taken = soon(other.accept()).await;
    exchange(&mut dialled.await.unwrap().unwrap(), &mut taken, 10_000).await;
}

#[tokio::test]
async fn the_bound_on_streams_holds_on_both_sides() {
    let authority = Authority::new();
    let one = MeshConfig { transfer_connections_max: 1, ..MeshConfig::default() };
    let nodes = [
        Node::limited(&authority, 0, &one),
        Node::start(&authority, 1),
        Node::start(&authority, 2),
    ];
    let mut endpoints: Vec<Endpoint> =
        nodes.iter().map(|node| node.mesh.register(TRANSFER, ROOT).unwrap()).collect();
    nodes.iter().for_each(|node| name_others(node, 1, &nodes));
    let (dialled, taken) = join(&mut endpoints, 1, 0).await;
    let refused = soon(endpoints[2].dialer().dial(0)).await.unwrap_err();
    let DialError::Refused { status, retry_after_ms } = refused else { panic!("{refused}") };
    assert_eq!(status, HelloStatus::RetryLater);
    assert!(retry_after_ms > 0);
    assert!(matches!(soon(endpoints[0].dialer().dial(2)).await, Err(DialError::Full)));
    // The place is free again when the stream goes.
    drop((dialled, taken));
    let (mut dialled, mut taken) = join(&mut endpoints, 2, 0).await;
    exchange(&mut dialled, &mut taken, 10_000).await;
}

#[tokio::test]
async fn plans_are_heard_in_order_and_lists_as_they_are() {
    let (_authority, nodes, endpoints) = mesh(2);
    let plan =
        |number| HostPlan { number, parents: vec![Some(1)], neighbours: vec![], far: vec![] };
    assert_eq!(endpoints[0].plans().borrow().number, 0);
    for (number, heard) in [(3, 3), (2, 3), (3, 3), (4, 4)] {
        nodes[0].mesh.hint(&plan(number).to_message(&TRANSFER));
        assert_eq!(*endpoints[0].plans().borrow(), plan(heard));
    }
    let list = endpoints[0].peers().borrow().clone().unwrap();
    assert_eq!((list.me, list.number, list.peers().len()), (0, 1, 1));
    // What is for no transfer here is dropped.
    nodes[0].mesh.hint(&plan(9).to_message(&TransferId([9; 16])));
    assert!(nodes[0].mesh.register(TransferId([9; 16]), ROOT).is_ok());
}

#[tokio::test]
async fn a_member_is_found_at_the_second_of_its_addresses() {
    let (_authority, nodes, mut endpoints) = mesh(2);
    // Nobody listens where this was.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut named = list(0, 2, &[peer(1, &nodes[1].identity, Some(gone))]).to_message();
    named.peers[0].addresses.push(nodes[1].address.to_string());
    nodes[0].mesh.take_list(&named);
    let (mut dialled, mut taken) = join(&mut endpoints, 0, 1).await;
    exchange(&mut dialled, &mut taken, 10_000).await;
    // One that does not listen dials itself.
    nodes[0].take(3, &[peer(1, &nodes[1].identity, None)]);
    assert!(matches!(endpoints[0].dialer().dial(1).await, Err(DialError::NoAddress)));
    join(&mut endpoints, 1, 0).await;
}
