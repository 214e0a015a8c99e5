//! A whole agent in a mesh, real binary and real processes: it listens, says where, and takes the
//! signed lists of a server that this test plays.

#![allow(clippy::unwrap_used)] // A test may.

mod host_support;
mod mesh_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use host_support::{Agent, Server, wait_until};
use mesh_support::{Knock, list, only_status};
use skein_agent::identity::Identity;
use skein_wire::hello::HelloStatus;
use skein_wire::signal::v1::agent_message::Kind;
use skein_wire::signal::v1::{RemovePeers, command_body};

fn configure(home: &Path, mesh: &str) {
    let text = std::fs::read_to_string(home.join("agent.toml")).unwrap();
    let text = text.replace("[mesh]\n", &format!("[mesh]\nlisten = {mesh:?}\n"));
    std::fs::write(home.join("agent.toml"), text).unwrap();
}

fn mesh_addresses(server: &Server) -> Vec<String> {
    server.find("facts", |kind| match kind {
        Kind::Facts(facts) => Some(facts.mesh_addresses.clone()),
        _ => None,
    })
}

fn counted(home: &Path, series: &str) -> bool {
    let Ok(ports) = std::fs::read_to_string(home.join("run/ports.json")) else { return false };
    let ports: serde_json::Value = serde_json::from_str(&ports).unwrap_or_default();
    let Ok(mut stream) = TcpStream::connect(ports["metrics"].as_str().unwrap()) else {
        return false;
    };
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().any(|line| line == series)
}

#[test]
fn an_agent_listens_takes_signed_lists_and_lets_no_stranger_in() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    let id = server.enrol(temp.path());
    configure(temp.path(), "127.0.0.1:0");
    let _agent = Agent::start(temp.path());
    let addresses = mesh_addresses(&server);
    let [address] = &addresses[..] else { panic!("{addresses:?}") };
    let address: SocketAddr = address.parse().unwrap();

    let peers = list(0, 1, &[]).to_message();
    server.command(&id, command_body::Kind::TransferPeers(peers.clone()));
    let ok = "skein_agent_mesh_orders_total{kind=\"list\",result=\"ok\"} 1";
    wait_until("the list is taken", || counted(temp.path(), ok));
    // The same number in another dispatch is old.
    server.command(&id, command_body::Kind::TransferPeers(peers.clone()));
    let older = "skein_agent_mesh_orders_total{kind=\"list\",result=\"older\"} 1";
    wait_until("the repeat is refused", || counted(temp.path(), older));
    let removal = RemovePeers {
        transfer_id: peers.transfer_id,
        number: 2,
        not_after_ms: peers.not_after_ms,
        members: vec![5],
    };
    server.command(&id, command_body::Kind::RemovePeers(removal));
    let removed = "skein_agent_mesh_orders_total{kind=\"removal\",result=\"ok\"} 1";
    wait_until("the removal is taken", || counted(temp.path(), removed));

    // An enrolled agent that no list names: this one itself.
    let identity = Identity::load(&temp.path().join("identity")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(Knock::of(&identity).at(address, &identity, &identity));
    assert_eq!(only_status(&answer), HelloStatus::Unauthorised);
    let refused = "skein_agent_mesh_refused_total{reason=\"unknown_transfer\"} 1";
    wait_until("the refusal is counted", || counted(temp.path(), refused));
}

#[test]
fn an_agent_that_is_told_not_to_listen_says_no_address() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    server.enrol(temp.path());
    configure(temp.path(), "off");
    let _agent = Agent::start(temp.path());
    assert_eq!(mesh_addresses(&server), Vec::<String>::new());
}
