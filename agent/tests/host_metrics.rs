//! The catalogue of metrics against a living agent: each of its metrics is emitted, with the labels
//! that it promises, and no other.

#![allow(clippy::unwrap_used)] // A test may.

mod host_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use host_support::files::{join, push, transfer_end};
use host_support::{Agent, Server, wait_until};
use skein_observe::names::{self, Process};
use skein_wire::signal::v1::agent_message::Kind;
use skein_wire::signal::v1::{RunTask, TaskState, command_body};

const LANE: u32 = 1001;

fn scrape(home: &Path) -> String {
    let ports = std::fs::read(home.join("run/ports.json")).unwrap_or_default();
    let ports: serde_json::Value = serde_json::from_slice(&ports).unwrap_or_default();
    let Some(address) = ports["metrics"].as_str() else { return String::new() };
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    // A worker that was just killed may reset what it had not answered.
    stream.read_to_string(&mut text).map(|_| text).unwrap_or_default()
}

/// The value of a sample, by its name with labels.
fn sample(home: &Path, name: &str) -> Option<f64> {
    let text = scrape(home);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// Names of the agent's metrics in a scrape, with the labels seen of each.
fn families(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("skein_agent_")) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let name = histogram.filter(|name| names::all().iter().any(|metric| metric.name == *name));
        let name = name.unwrap_or_else(|| series.split('{').next().unwrap());
        let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
        let labels = labels.map(|label| label.split('=').next().unwrap().to_owned());
        found.entry(name.to_owned()).or_default().extend(labels.filter(|label| label != "le"));
    }
    found
}

fn collector(home: &Path, data_id: u32, payload: &[u8]) {
    let fields = [0xC01, data_id, 0, payload.len() as u32, 0, 0];
    let mut frame: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
    frame.extend_from_slice(payload);
    UnixStream::connect(home.join("run/ipc.state.report")).unwrap().write_all(&frame).unwrap();
}

fn emit(home: &Path) {
    let mut emitter = Command::new(env!("CARGO_BIN_EXE_skein-agent"))
        .args(["emit", "--data-id", &LANE.to_string(), "--generate", "100", "--home"])
        .arg(home)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(emitter.wait().unwrap().success());
}

fn run_a_script(server: &Server, id: &str) {
    let task = RunTask {
        task_id: vec![5; 16].into(),
        script: b"echo done".to_vec().into(),
        interpreter: vec!["/bin/bash".into()],
        timeout_ms: 20_000,
        ..RunTask::default()
    };
    let frame = server.command(id, command_body::Kind::RunTask(task));
    server.find("the task's end", |kind| match kind {
        Kind::TaskUpdate(update) => (update.state() >= TaskState::Succeeded).then_some(()),
        _ => None,
    });
    // Once more, which is a replay.
    server.send_bytes(frame);
    server.find("a refusal", |kind| matches!(kind, Kind::CommandRefused(_)).then_some(()));
}

#[test]
fn every_metric_of_the_catalogue_is_emitted_and_no_other() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let home = temp.path();
    let id = server.enrol(home);
    let log = target.path().join("app.log");
    std::fs::write(&log, "one\ntwo\n").unwrap();
    // With this durability the spool flushes, and so times its flushes.
    let mut config = std::fs::read_to_string(home.join("agent.toml")).unwrap();
    let spool = "[spool]\ndurability = \"power\"\n";
    config = if config.contains("[spool]\n") {
        config.replacen("[spool]\n", spool, 1)
    } else {
        config + spool
    };
    let tail = format!("[[tail]]\npath = {log:?}\ndata_id = {LANE}\nfrom = \"start\"\n");
    std::fs::write(home.join("agent.toml"), config + &tail).unwrap();

    let _agent = Agent::start(home);
    wait_until("the sockets", || {
        ["emit.sock", "ipc.state.report"].iter().all(|name| home.join("run").join(name).exists())
    });
    emit(home);
    collector(home, LANE, b"from a collector");
    // No server takes records yet.
    wait_until("the lane is offline", || {
        sample(home, "skein_agent_lanes{state=\"offline\"}") == Some(1.0)
    });
    server.shared.data.held.lock().unwrap().insert(7);
    server.shared.data.set_open(true);
    // The first refusal gave the agent a late slot: another worker asks at once.
    _agent.kill_worker();
    wait_until("another worker", || {
        sample(home, "skein_agent_lanes{state=\"flowing\"}") == Some(1.0)
    });
    emit(home);
    collector(home, LANE, b"from a collector");
    collector(home, 7, b"into a lane that is held");
    wait_until("a lane is held", || sample(home, "skein_agent_lanes{state=\"held\"}") == Some(1.0));
    let mut noise = vec![0; 2_000_000];
    skein_agent::clock::random(&mut noise);
    collector(home, LANE, &noise);
    collector(home, LANE, b"after what cannot travel");
    UnixStream::connect(home.join("run/ipc.state.report")).unwrap().write_all(&[1; 64]).unwrap();
    run_a_script(&server, &id);
    let file = push(&server, target.path(), 100_000);
    let order = join(&file, target.path(), "file.bin");
    server.command(&id, command_body::Kind::JoinTransfer(order));
    transfer_end(&server, &file.id);
    server.shared.data.set_open(false);
    wait_until("all lanes are offline", || {
        sample(home, "skein_agent_lanes{state=\"offline\"}") == Some(2.0)
    });
    // A disk that refuses a lane's writes.
    std::fs::write(home.join("spool/99"), "in the way").unwrap();
    collector(home, 99, b"into a lane without a folder");

    let agents = || names::all().iter().filter(|metric| metric.process == Process::Agent);
    let mut missing = Vec::new();
    wait_until("everything was counted", || {
        let seen = families(&scrape(home));
        let unseen = agents().filter(|metric| !seen.contains_key(metric.name));
        missing = unseen.map(|metric| metric.name).collect();
        println!("not yet: {missing:?}");
        missing.is_empty()
    });
    for (name, labels) in families(&scrape(home)) {
        let metric = agents().find(|metric| metric.name == name);
        let metric = metric.unwrap_or_else(|| panic!("{name} is not in the catalogue"));
        let promised: BTreeSet<String> = metric.labels.iter().map(|l| (*l).to_owned()).collect();
        assert_eq!(labels, promised, "labels of {name}");
    }
}
