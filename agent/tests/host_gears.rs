//! How a file comes to a whole agent, real binary and real processes: inside its order, and as one
//! of a mesh in the middle of a fetch. This test plays the server.

#![allow(clippy::unwrap_used)] // A test may.

mod host_support;

use host_support::files::{join, push, transfer_end};
use host_support::{Agent, Server};
use skein_wire::signal::v1::agent_message::Kind;
use skein_wire::signal::v1::{
    JoinTransfer, Peer, TransferPeers, TransferPlan, TransferState, command_body, server_message,
};

#[test]
fn a_file_inside_its_order_is_placed_and_reported_once() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    for bytes in [0, 1, 10_240, 32_768] {
        let push = push(&server, temp.path(), bytes);
        let mut order = join(&push, target.path(), "file.bin");
        order.content = Some(push.source.clone().into());
        server.command(&id, command_body::Kind::JoinTransfer(order));
        let ended = transfer_end(&server, &push.id);
        assert_eq!((ended.state(), ended.error.as_str()), (TransferState::Done, ""));
        assert_eq!(ended.verified_bytes, bytes as u64);
        assert_eq!(std::fs::read(target.path().join("file.bin")).unwrap(), push.source);
        assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 1, "nothing is left aside");
    }
    let kept = std::fs::read_dir(temp.path().join("transfers")).unwrap().count();
    assert_eq!(kept, 0, "nothing of the orders is kept");
}

#[test]
fn content_that_is_not_what_was_signed_beside_it_leaves_nothing() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let push = push(&server, temp.path(), 20_000);
    let mut order = join(&push, target.path(), "file.bin");
    let mut content = push.source.clone();
    content[17_000] ^= 1;
    order.content = Some(content.into());
    server.command(&id, command_body::Kind::JoinTransfer(order));
    let ended = transfer_end(&server, &push.id);
    assert_eq!(ended.state(), TransferState::Failed);
    assert!(ended.error.contains("root"), "{}", ended.error);
    assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0);
}

#[test]
fn a_fetch_goes_on_in_a_mesh_and_keeps_its_blocks() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let push = push(&server, temp.path(), 8_000_000);
    let mut order = join(&push, target.path(), "file.bin");
    order.rate_limit_bytes_per_s = 2_000_000;
    server.command(&id, command_body::Kind::JoinTransfer(order.clone()));
    server.find("progress", |kind| match kind {
        Kind::TransferUpdate(update) => (update.verified_bytes > 1_000_000).then_some(()),
        _ => None,
    });
    let meshed = JoinTransfer { meshed: true, ..order };
    server.command(&id, command_body::Kind::JoinTransfer(meshed));
    let transfer_id: bytes::Bytes = push.id.to_vec().into();
    let peers = TransferPeers {
        transfer_id: transfer_id.clone(),
        root: push.hashed.manifest.root.to_vec().into(),
        me: 1,
        number: 1,
        not_after_ms: skein_agent::clock::wall_ms() + 600_000,
        peers: vec![Peer { member: 0, ..Peer::default() }],
    };
    server.command(&id, command_body::Kind::TransferPeers(peers));
    let report = server.find("the swarm's first report", |kind| match kind {
        Kind::MeshReport(report) => Some(report.clone()),
        _ => None,
    });
    assert_eq!(report.transfer_id, transfer_id);
    let plan =
        TransferPlan { transfer_id, number: 1, parents: vec![1], neighbours: vec![], far: vec![] };
    server.send(server_message::Kind::TransferPlan(plan));
    let ended = transfer_end(&server, &push.id);
    assert_eq!((ended.state(), ended.error.as_str()), (TransferState::Done, ""));
    assert!(ended.resumed_bytes > 1_000_000, "{} were kept", ended.resumed_bytes);
    assert_eq!(std::fs::read(target.path().join("file.bin")).unwrap(), push.source);
}
