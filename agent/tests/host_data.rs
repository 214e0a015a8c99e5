//! Records through a whole agent, real binary and real processes, to a server that this test plays:
//! whatever dies or goes silent in the middle, nothing is lost and nothing repeated.

#![allow(clippy::unwrap_used)] // A test may.

mod host_support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use host_support::{Agent, Server, wait_until};
use skein_observe::loggen::LogGen;

const LANE: u32 = 1001;

fn emit(home: &Path, lines: u64, rate: u64) -> Child {
    Command::new(env!("CARGO_BIN_EXE_skein-agent"))
        .args(["emit", "--data-id", &LANE.to_string(), "--home"])
        .arg(home)
        .args(["--generate", &lines.to_string(), "--rate", &rate.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until an emitter is done; answers what it said.
fn finished(emitter: Child) -> String {
    let output = emitter.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    text
}

fn assert_complete(server: &Server, lines: u64) {
    wait_until("everything is stored", || server.shared.data.count(LANE) as u64 >= lines);
    let lanes = server.shared.data.lanes();
    let lane = &lanes[&LANE];
    assert_eq!((lane.values.len() as u64, lane.missing), (lines, 0));
    let (mut generator, mut line) = (LogGen::new(1), Vec::new());
    for value in &lane.values {
        line.clear();
        generator.line(&mut line);
        assert!(*value == line, "{}", String::from_utf8_lossy(value));
    }
}

/// The agent is killed three times under a running `emit`, whose records are in requests on the
/// way, in batches that are being filled, and in the spool.
#[test]
fn an_emitter_goes_on_with_the_next_agent_without_loss_or_repeat() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    server.enrol(temp.path());
    server.shared.data.set_open(true);
    let agent = Agent::start(temp.path());
    wait_until("the socket", || temp.path().join("run/emit.sock").exists());
    let lines = 60_000;
    let emitter = emit(temp.path(), lines, 20_000);
    for part in 1..=3 {
        let reached = part * lines as usize / 4;
        wait_until("progress", || server.shared.data.count(LANE) >= reached);
        agent.kill_worker();
    }
    let said = finished(emitter);
    assert_complete(&server, lines);
    assert!(said.contains("the agent went away; waiting for it"), "{said}");
    assert!(said.contains("the agent is back"), "{said}");
}

/// No server for a while: the agent keeps what comes and delivers it when the server is back.
#[test]
fn a_server_that_was_away_gets_everything() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    server.enrol(temp.path());
    server.shared.data.set_open(true);
    let _agent = Agent::start(temp.path());
    wait_until("the socket", || temp.path().join("run/emit.sock").exists());
    let emitter = emit(temp.path(), 30_000, 15_000);
    wait_until("progress", || server.shared.data.count(LANE) >= 5_000);
    server.shared.data.set_open(false);
    finished(emitter);
    let reached = server.shared.data.count(LANE);
    assert!(reached < 30_000, "the server took all before it went away");
    server.shared.data.set_open(true);
    assert_complete(&server, 30_000);
}

/// A session whose server went silent holds nothing up for ever: what it did not acknowledge is
/// delivered by the next one. (That silence is noticed within 50 s is shown with a faster clock by
/// `a_silent_server_is_given_up`; here the agent dies first.)
#[test]
fn what_a_silent_server_took_is_sent_again() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    server.enrol(temp.path());
    server.shared.data.set_open(true);
    let agent = Agent::start(temp.path());
    wait_until("the socket", || temp.path().join("run/emit.sock").exists());
    wait_until("a session", || server.shared.data.sessions() == 1);
    server.shared.data.silent.store(true, Ordering::SeqCst);
    finished(emit(temp.path(), 10_000, 0));
    agent.kill_worker();
    server.shared.data.silent.store(false, Ordering::SeqCst);
    assert_complete(&server, 10_000);
}
