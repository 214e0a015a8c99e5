//! The whole agent, real binary and real processes, against a server that this test plays.

#![allow(clippy::unwrap_used)] // A test may.

mod host_support;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host_support::{Agent, Server, wait_until};
use skein_wire::hello::HelloStatus;
use skein_wire::signal::v1::agent_message::Kind;
use skein_wire::signal::v1::{
    GoAway, Ping, RunTask, TaskState, TaskUpdate, command_body, server_message,
};

fn run_task(text: &str) -> RunTask {
    let mut task_id = [0; 16];
    skein_agent::clock::random(&mut task_id);
    RunTask {
        task_id: task_id.to_vec().into(),
        script: text.as_bytes().to_vec().into(),
        interpreter: vec!["/bin/bash".into()],
        timeout_ms: 20_000,
        ..RunTask::default()
    }
}

fn final_update(server: &Server, task: &RunTask) -> TaskUpdate {
    server.find("the task's end", |kind| match kind {
        Kind::TaskUpdate(update)
            if update.task_id == task.task_id && update.state >= TaskState::Succeeded as i32 =>
        {
            Some(update.clone())
        }
        _ => None,
    })
}

fn refused(server: &Server, reason: &str) {
    server.find(reason, |kind| match kind {
        Kind::CommandRefused(refused) => (refused.reason == reason).then_some(()),
        _ => None,
    });
}

fn status(home: &Path) -> Option<i32> {
    let status = Command::new(env!("CARGO_BIN_EXE_skein-agent"))
        .args(["status", "--home"])
        .arg(home)
        .stdout(std::process::Stdio::null())
        .status();
    status.unwrap().code()
}

#[test]
fn an_agent_enrols_connects_runs_a_command_and_ends() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    let id = server.enrol(temp.path());
    assert_eq!(status(temp.path()), Some(2));
    let agent = Agent::start(temp.path());
    let facts = server.find("facts", |kind| match kind {
        Kind::Facts(facts) => Some(facts.clone()),
        _ => None,
    });
    assert_eq!(facts.labels["role"], "web");
    assert_eq!(facts.region, "r1");
    assert!(!facts.metrics_addr.is_empty());
    server.find("a heartbeat", |kind| matches!(kind, Kind::Heartbeat(_)).then_some(()));
    wait_until("status says connected", || status(temp.path()) == Some(0));

    server.send(server_message::Kind::Ping(Ping { nonce: 7, payload: vec![1; 64].into() }));
    server.find("the echo", |kind| match kind {
        Kind::Echo(echo) => (echo.nonce == 7 && echo.payload.len() == 64).then_some(()),
        _ => None,
    });

    let task = run_task("uname -s");
    let frame = server.command(&id, command_body::Kind::RunTask(task.clone()));
    assert_eq!(final_update(&server, &task).state(), TaskState::Succeeded);
    assert_eq!(server.shared.outputs.lock().unwrap()[&task.task_id.to_vec()], b"Linux\n");
    server.send_bytes(frame);
    refused(&server, "replayed");

    let second = Command::new(env!("CARGO_BIN_EXE_skein-agent"))
        .args(["run", "--home"])
        .arg(temp.path())
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent runs"));
    let began = std::time::Instant::now();
    assert!(agent.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(10), "the worker had to be killed");
    assert_eq!(status(temp.path()), Some(2));
}

#[test]
fn commands_that_are_not_for_us_are_refused_with_a_reason() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let run = || command_body::Kind::RunTask(run_task("touch /tmp/never"));
    server.command("another", run());
    refused(&server, "signature");
    let old = server.dispatch(&id, run(), skein_agent::clock::wall_ms() - 10_000);
    let mut bytes = Vec::new();
    let parts = [&old.common[..], &old.extras[0]];
    skein_wire::frame::encode_bytes(&parts, 1 << 18, &mut bytes).unwrap();
    server.send_bytes(bytes);
    refused(&server, "expired");
    let other = Server::start();
    let foreign = other.dispatch(&id, run(), skein_agent::clock::wall_ms() + 10_000);
    let mut bytes = Vec::new();
    let parts = [&foreign.common[..], &foreign.extras[0]];
    skein_wire::frame::encode_bytes(&parts, 1 << 18, &mut bytes).unwrap();
    server.shared.received.lock().unwrap().clear();
    server.send_bytes(bytes);
    refused(&server, "signature");
}

#[test]
fn a_wrong_token_or_a_foreign_server_enrols_nobody() {
    let (server, other) = (Server::start(), Server::start());
    let temp = tempfile::tempdir().unwrap();
    let mut wrong = server.shared.token.clone();
    wrong.secret = [9; 16];
    let output = server.enrol_with(temp.path(), &wrong.to_string());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrong token"));
    let output = server.enrol_with(temp.path(), &other.shared.token.to_string());
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("does not present the authority"), "{text}");
    assert!(!temp.path().join("agent.toml").exists());
}

#[test]
fn a_second_enrolment_keeps_the_id() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    let id = server.enrol(temp.path());
    let key = std::fs::read(temp.path().join("identity/agent.key")).unwrap();
    assert_eq!(server.enrol(temp.path()), id);
    assert_eq!(std::fs::read(temp.path().join("identity/agent.key")).unwrap(), key);
}

#[test]
fn a_script_survives_kill_9_of_its_worker() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    let id = server.enrol(temp.path());
    let agent = Agent::start(temp.path());
    let (runs, gate) = (temp.path().join("runs"), temp.path().join("gate"));
    let task = run_task(&format!(
        "echo x >> {}; echo one; until [ -e {} ]; do sleep 0.05; done; echo two",
        runs.display(),
        gate.display()
    ));
    server.command(&id, command_body::Kind::RunTask(task.clone()));
    wait_until("it runs", || runs.exists());
    agent.kill_worker();
    wait_until("another session", || server.shared.sessions.load(Ordering::SeqCst) >= 2);
    std::fs::write(gate, "").unwrap();
    assert_eq!(final_update(&server, &task).state(), TaskState::Succeeded);
    assert_eq!(server.shared.outputs.lock().unwrap()[&task.task_id.to_vec()], b"one\ntwo\n");
    assert_eq!(std::fs::read_to_string(runs).unwrap(), "x\n");
    let instances = server.shared.instances.lock().unwrap().clone();
    assert_ne!(instances.first(), instances.last());
}

#[test]
fn slots_of_the_server_are_kept() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    server.enrol(temp.path());
    *server.shared.refuse.lock().unwrap() = Some((HelloStatus::RetryLater, 700));
    let began = std::time::Instant::now();
    let _agent = Agent::start(temp.path());
    wait_until("a session", || server.shared.sessions.load(Ordering::SeqCst) == 1);
    assert!(began.elapsed() >= Duration::from_millis(700));
    let began = std::time::Instant::now();
    let (reason, reconnect_after_ms) = ("upgrade".into(), 600);
    server.send(server_message::Kind::GoAway(GoAway { reason, reconnect_after_ms }));
    wait_until("the next session", || server.shared.sessions.load(Ordering::SeqCst) == 2);
    assert!(began.elapsed() >= Duration::from_millis(600));
}

#[test]
fn a_certificate_near_its_end_is_renewed_in_place() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    // One hour is over already, so 100 s are less than a third of what is left.
    *server.shared.certificate_life.lock().unwrap() = Duration::from_secs(100);
    server.enrol(temp.path());
    let before = std::fs::read(temp.path().join("identity/agent.crt")).unwrap();
    let _agent = Agent::start(temp.path());
    wait_until("a new certificate", || {
        std::fs::read(temp.path().join("identity/agent.crt")).unwrap() != before
    });
    assert_eq!(server.shared.sessions.load(Ordering::SeqCst), 1);
}

// ------------------------------------------------------------------------ costs

/// Nanoseconds of CPU time that a process's threads have used.
fn cpu_ns(pid: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let used = threads.flatten().map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
    });
    used.sum()
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

/// The promise is 12 MiB and 0.1 % of a core for both processes together. Private memory would be
/// less: the two share their program's pages.
#[test]
fn a_quiet_agent_costs_next_to_nothing() {
    let server = Server::start();
    let temp = tempfile::tempdir().unwrap();
    server.enrol(temp.path());
    let agent = Agent::start(temp.path());
    wait_until("a session", || server.shared.sessions.load(Ordering::SeqCst) == 1);
    let pids = [agent.child.id(), agent.worker_pid().unwrap()];
    // Threads that helped at the start end after two quiet seconds; the code of the start goes
    // after ten.
    std::thread::sleep(Duration::from_secs(11));
    let used = || pids.iter().map(|pid| cpu_ns(*pid)).sum::<u64>();
    let (before, began) = (used(), std::time::Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let share = (used() - before) as f64 / began.elapsed().as_nanos() as f64;
    let rss = pids.map(rss_kib);
    println!("idle: {:.4} % of a core, {rss:?} KiB resident", share * 100.0);
    assert!(share < 0.001, "{:.3} % of a core", share * 100.0);
    assert!(rss.iter().sum::<u64>() < 12 * 1024, "{rss:?} KiB");
}
