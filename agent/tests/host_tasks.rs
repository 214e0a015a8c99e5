//! Scripts as the worker runs them: real runner processes of the real binary, a real journal, and a
//! link whose other end is this test.

#![allow(clippy::unwrap_used)] // A test may.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skein_agent::clock::{ServerClock, wall_ms};
use skein_agent::config::TasksConfig;
use skein_agent::link::Outbox;
use skein_agent::sys::{process, procfs};
use skein_agent::tasks::{self, Order, Settings, TaskHandle, TaskThread, TransferOrder, records};
use skein_wire::ids::{TaskId, hex_encode};
use skein_wire::signal::v1::agent_message::Kind;
use skein_wire::signal::v1::{
    CancelTask, CancelTransfer, CommandBody, ReportAck, RunTask, TaskState, TaskUpdate,
    command_body,
};

const PATIENCE: Duration = Duration::from_secs(30);

struct Host {
    dir: PathBuf,
    outbox: Outbox,
    handle: TaskHandle,
    thread: TaskThread,
    transfers: Arc<Mutex<Vec<TransferOrder>>>,
    commands: u64,
}

#[derive(Debug)]
struct Ended {
    update: TaskUpdate,
    output: String,
}

impl Host {
    fn start(dir: &Path) -> Host {
        Host::start_with(dir, TasksConfig::default())
    }

    fn start_with(dir: &Path, limits: TasksConfig) -> Host {
        let outbox = Outbox::default();
        let transfers = Arc::new(Mutex::new(Vec::new()));
        let taken = transfers.clone();
        let (handle, thread) = tasks::start(Settings {
            dir: dir.to_owned(),
            limits,
            runner: env!("CARGO_BIN_EXE_skein-agent").into(),
            outbox: outbox.clone(),
            clock: Arc::new(ServerClock::default()),
            transfers: Box::new(move |order| taken.lock().unwrap().push(order)),
        })
        .unwrap();
        outbox.open();
        Host { dir: dir.to_owned(), outbox, handle, thread, transfers, commands: 0 }
    }

    /// As kill -9 does: the thread is gone, runners go on.
    fn stop(self) {
        self.handle.stop();
        self.thread.join();
    }

    fn order_until(&mut self, kind: command_body::Kind, not_after_ms: i64) -> Order {
        self.commands += 1;
        let mut command_id = [0; 16];
        skein_agent::clock::random(&mut command_id);
        let body = CommandBody { command_id: command_id.to_vec().into(), kind: Some(kind) };
        let order = Order { body, not_after_ms };
        self.handle.order(order.clone()).unwrap();
        order
    }

    fn run(&mut self, task: &RunTask) -> Order {
        self.order_until(command_body::Kind::RunTask(task.clone()), wall_ms() + 60_000)
    }

    fn cancel(&mut self, task: &RunTask) {
        let cancel = CancelTask { task_id: task.task_id.clone() };
        self.order_until(command_body::Kind::CancelTask(cancel), wall_ms() + 60_000);
    }

    fn next(&self) -> Kind {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = self.outbox.take() {
                return message.kind.unwrap();
            }
            assert!(Instant::now() < until, "nothing was reported");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn until_state(&self, state: TaskState) -> TaskUpdate {
        loop {
            if let Kind::TaskUpdate(update) = self.next()
                && update.state() == state
            {
                return update;
            }
        }
    }

    fn until_refused(&self) -> String {
        loop {
            if let Kind::CommandRefused(refused) = self.next() {
                return refused.reason;
            }
        }
    }

    /// Plays the server until the task has its final state, acknowledging everything.
    fn finish(&self, task: &RunTask) -> Ended {
        let mut output = Vec::new();
        loop {
            match self.next() {
                Kind::TaskOutput(chunk) if chunk.task_id == task.task_id => {
                    assert!(chunk.data.len() <= 64 * 1024);
                    if chunk.offset == output.len() as u64 {
                        output.extend_from_slice(&chunk.data);
                    }
                    let output_offset = output.len() as u64;
                    let task_id = task.task_id.clone();
                    self.handle.acknowledged(ReportAck { task_id, output_offset, ..ack() });
                }
                Kind::TaskUpdate(update)
                    if update.task_id == task.task_id
                        && update.state() as i32 >= TaskState::Succeeded as i32 =>
                {
                    assert_eq!(update.output_bytes, output.len() as u64);
                    let (task_id, final_state) = (task.task_id.clone(), true);
                    self.handle.acknowledged(ReportAck { task_id, final_state, ..ack() });
                    return Ended { update, output: String::from_utf8(output).unwrap() };
                }
                _ => {}
            }
        }
    }
}

fn ack() -> ReportAck {
    ReportAck::default()
}

fn script(text: &str) -> RunTask {
    let mut task_id = [0; 16];
    skein_agent::clock::random(&mut task_id);
    RunTask {
        task_id: task_id.to_vec().into(),
        script: text.as_bytes().to_vec().into(),
        interpreter: vec!["/bin/bash".into()],
        timeout_ms: 20_000,
        kill_grace_ms: 200,
        output_bytes_max: 1_000_000,
        ..RunTask::default()
    }
}

fn processes_of(task: &RunTask) -> usize {
    procfs::with_environment(&format!("SKEIN_TASK_ID={}", hex_encode(&task.task_id))).len()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn without_cgroup() -> TasksConfig {
    TasksConfig { cgroup: false, ..TasksConfig::default() }
}

#[test]
fn exit_code_output_arguments_and_environment_are_as_promised() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let mut task = script("echo \"$1 $HOME $USER $SHELL\"; umask; echo err >&2; exit 3");
    task.args = vec!["an arg".into()];
    host.run(&task);
    let ended = host.finish(&task);
    assert_eq!((ended.update.state(), ended.update.exit_code), (TaskState::Failed, 3));
    let root = std::env::var("HOME").unwrap_or_default();
    assert!(ended.output.starts_with("an arg /"), "{root}: {}", ended.output);
    assert!(ended.output.ends_with("0022\nerr\n"), "{}", ended.output);
    wait_until("the folder is removed", || !temp.path().join(hex_encode(&task.task_id)).exists());
    let killed = script("kill -9 $$");
    host.run(&killed);
    let ended = host.finish(&killed);
    assert_eq!((ended.update.state(), ended.update.signal), (TaskState::Failed, 9));
    host.stop();
}

#[test]
fn no_descriptor_of_the_agent_reaches_a_script() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    // By way of a file: of a pipeline bash itself holds an end for a moment.
    let list = temp.path().join("list");
    let task = script(&format!(
        "ls /proc/$$/fd > {list}; tr '\\n' ' ' < {list}; cat /proc/self/oom_score_adj",
        list = list.display()
    ));
    host.run(&task);
    // bash holds its script as 255.
    assert_eq!(host.finish(&task).output, "0 1 2 255 0\n");
    host.stop();
}

#[test]
fn a_missing_interpreter_or_user_is_a_refusal_that_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let mut task = script("");
    task.interpreter = vec!["/no/such/shell".into()];
    host.run(&task);
    let ended = host.finish(&task).update;
    assert_eq!(ended.state(), TaskState::Refused);
    assert!(ended.error.contains("/no/such/shell"), "{}", ended.error);
    let mut task = script("");
    task.user = "no-such-user".into();
    host.run(&task);
    let ended = host.finish(&task).update;
    assert_eq!(ended.state(), TaskState::Refused);
    assert!(ended.error.contains("no-such-user"), "{}", ended.error);
    host.stop();
}

/// Children in sessions of their own, orphans of double forks, and a parent deaf to TERM.
const STUBBORN: &str = "trap '' TERM
    setsid sleep 300 &
    (setsid bash -c 'sleep 301 & sleep 302 &' &)
    echo ready
    sleep 303 & wait; sleep 304";

fn timeout_leaves_nobody(limits: TasksConfig) {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start_with(temp.path(), limits);
    let mut task = script(STUBBORN);
    task.timeout_ms = 600;
    host.run(&task);
    wait_until("all children run", || processes_of(&task) >= 5);
    let ended = host.finish(&task);
    assert_eq!(ended.update.state(), TaskState::TimedOut);
    assert_eq!(ended.output, "ready\n");
    assert_eq!(processes_of(&task), 0);
    let ran = ended.update.ended_ms - ended.update.started_ms;
    assert!((600..10_000).contains(&ran), "{ran} ms");
    host.stop();
}

#[test]
fn a_timeout_leaves_nobody_with_a_cgroup_if_there_is_one() {
    timeout_leaves_nobody(TasksConfig::default());
}

#[test]
fn a_timeout_leaves_nobody_without_a_cgroup() {
    timeout_leaves_nobody(without_cgroup());
}

fn cancel_leaves_nobody(limits: TasksConfig) {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start_with(temp.path(), limits);
    let task = script(STUBBORN);
    host.run(&task);
    wait_until("all children run", || processes_of(&task) >= 5);
    host.cancel(&task);
    assert_eq!(host.finish(&task).update.state(), TaskState::Cancelled);
    assert_eq!(processes_of(&task), 0);
    host.stop();
}

#[test]
fn a_cancel_leaves_nobody_with_or_without_a_cgroup() {
    cancel_leaves_nobody(TasksConfig::default());
    cancel_leaves_nobody(without_cgroup());
}

#[test]
fn output_beyond_the_bound_is_dropped_and_the_script_never_waits() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let mut task = script("head -c 20000000 /dev/zero | tr '\\0' x; exit 0");
    task.output_bytes_max = 200_000;
    host.run(&task);
    let ended = host.finish(&task);
    assert_eq!(ended.update.state(), TaskState::Succeeded);
    assert!(ended.update.output_truncated);
    assert_eq!(ended.output.len(), 200_000);
    host.stop();
}

#[test]
fn a_cancel_ends_a_script_and_wins_over_a_later_arrival() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let running = script("sleep 300 & sleep 301");
    host.run(&running);
    host.until_state(TaskState::Running);
    host.cancel(&running);
    assert_eq!(host.finish(&running).update.state(), TaskState::Cancelled);
    assert_eq!(processes_of(&running), 0);

    let mark = temp.path().join("mark");
    let late = script(&format!("touch {}", mark.display()));
    host.cancel(&late);
    host.stop();
    let mut host = Host::start(temp.path());
    host.run(&late);
    assert_eq!(host.finish(&late).update.state(), TaskState::Cancelled);
    assert!(!mark.exists());
    host.stop();
}

#[test]
fn a_new_worker_attaches_to_a_running_script() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let runs = temp.path().join("runs");
    let gate = temp.path().join("gate");
    let task = script(&format!(
        "echo run >> {}; echo one; until [ -e {} ]; do sleep 0.05; done; echo two",
        runs.display(),
        gate.display()
    ));
    host.run(&task);
    let pid = host.until_state(TaskState::Running).pid;
    host.stop();

    let host = Host::start(temp.path());
    assert_eq!(host.until_state(TaskState::Running).pid, pid);
    std::fs::write(&gate, "").unwrap();
    let ended = host.finish(&task);
    assert_eq!(ended.update.state(), TaskState::Succeeded);
    assert_eq!(ended.output, "one\ntwo\n");
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "run\n");
    host.stop();
}

#[test]
fn a_script_that_ended_while_nobody_looked_is_reported() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let task = script("echo out; exit 7");
    host.run(&task);
    host.until_state(TaskState::Accepted);
    host.stop();
    let exit = temp.path().join(hex_encode(&task.task_id)).join("exit");
    let host = if exit.exists() {
        Host::start(temp.path())
    } else {
        // Stopped before the start: then the new worker runs it.
        let host = Host::start(temp.path());
        wait_until("the script ended", || exit.exists());
        host
    };
    let ended = host.finish(&task);
    let (code, output) = (ended.update.exit_code, ended.output.as_str());
    assert_eq!((code, output), (7, "out\n"), "{:?}", ended.update);
    host.stop();
}

#[test]
fn a_killed_runner_is_an_explicit_abort_and_leaves_nobody() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start_with(temp.path(), without_cgroup());
    let task = script("setsid sleep 300 & sleep 301");
    host.run(&task);
    host.until_state(TaskState::Running);
    wait_until("children run", || processes_of(&task) == 3);
    let dir = host.dir.join(TaskId::from_slice(&task.task_id).unwrap().to_string());
    let started = records::read::<records::Started>(&dir, "started").unwrap().unwrap();
    process::kill(started.runner_pid, process::SIGKILL).unwrap();
    let ended = host.finish(&task);
    assert_eq!(ended.update.state(), TaskState::Aborted);
    assert_eq!(processes_of(&task), 0);
    host.stop();
}

#[test]
fn another_boot_makes_a_started_script_an_abort() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start_with(temp.path(), without_cgroup());
    let task = script("sleep 300");
    host.run(&task);
    host.until_state(TaskState::Running);
    let dir = host.dir.join(TaskId::from_slice(&task.task_id).unwrap().to_string());
    host.stop();
    let mut started = records::read::<records::Started>(&dir, "started").unwrap().unwrap();
    let runner = started.runner_pid;
    started.boot_id = "another".into();
    records::write(&dir, "started", &started).unwrap();
    let host = Host::start(temp.path());
    assert_eq!(host.finish(&task).update.state(), TaskState::Aborted);
    process::kill(runner, process::SIGTERM).unwrap();
    host.stop();
}

#[test]
fn a_replay_is_refused_also_by_the_next_worker() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let task = script("exit 0");
    let order = host.run(&task);
    host.finish(&task);
    host.handle.order(order.clone()).unwrap();
    assert_eq!(host.until_refused(), "replayed");
    host.stop();
    let host = Host::start(temp.path());
    host.handle.order(order).unwrap();
    assert_eq!(host.until_refused(), "replayed");
    assert!(host.transfers.lock().unwrap().is_empty());
    host.stop();
}

#[test]
fn a_task_id_runs_once_whatever_command_brings_it() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let runs = temp.path().join("runs");
    let task = script(&format!("echo run >> {}", runs.display()));
    host.run(&task);
    host.until_state(TaskState::Succeeded);
    // The same order in another dispatch is answered with its state.
    host.run(&task);
    host.finish(&task);
    let mut other = task.clone();
    other.script = b"echo other".to_vec().into();
    host.run(&other);
    assert_eq!(host.until_refused(), "task_id_reused");
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "run\n");
    host.stop();
}

#[test]
fn malformed_and_unknown_commands_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let mut nameless = script("");
    nameless.task_id = vec![1; 3].into();
    let mut without = script("");
    without.interpreter.clear();
    let mut nul = script("");
    nul.args = vec!["a\0b".into()];
    for task in [nameless, without, nul] {
        host.run(&task);
        assert!(!host.until_refused().is_empty());
    }
    let body = CommandBody { command_id: vec![9; 16].into(), kind: None };
    host.handle.order(Order { body, not_after_ms: wall_ms() + 1000 }).unwrap();
    assert_eq!(host.until_refused(), "unknown_command");
    let far = script("");
    host.order_until(command_body::Kind::RunTask(far), wall_ms() + 30 * 24 * 3_600_000);
    assert_eq!(host.until_refused(), "deadline_too_far");
    host.stop();
}

#[test]
fn tasks_beyond_the_limit_wait_and_those_that_wait_too_long_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let limits = TasksConfig { concurrent_max: 1, queue_max: 2, ..TasksConfig::default() };
    let mut host = Host::start_with(temp.path(), limits);
    let gate = temp.path().join("gate");
    let first = script(&format!("until [ -e {} ]; do sleep 0.05; done", gate.display()));
    host.run(&first);
    host.until_state(TaskState::Running);
    let (second, third, fourth) = (script("exit 0"), script("exit 0"), script("exit 0"));
    host.run(&second);
    host.order_until(command_body::Kind::RunTask(third.clone()), wall_ms() + 300);
    wait_until("both are queued", || {
        let mut accepted = 0;
        while accepted < 2 {
            accepted += u32::from(matches!(host.next(), Kind::TaskUpdate(_)));
        }
        true
    });
    host.run(&fourth);
    assert_eq!(host.until_refused(), "task_queue_full");
    std::thread::sleep(Duration::from_millis(350));
    std::fs::write(&gate, "").unwrap();
    let mut states = Vec::new();
    while states.len() < 3 {
        if let Kind::TaskUpdate(update) = host.next()
            && update.state() as i32 >= TaskState::Succeeded as i32
        {
            states.push((update.task_id.clone(), update.state()));
            let (task_id, final_state) = (update.task_id, true);
            host.handle.acknowledged(ReportAck { task_id, final_state, ..ack() });
        }
    }
    let state = |task: &RunTask| states.iter().find(|(id, _)| *id == task.task_id).unwrap().1;
    assert_eq!(state(&first), TaskState::Succeeded);
    assert_eq!(state(&second), TaskState::Succeeded);
    assert_eq!(state(&third), TaskState::Refused);
    host.stop();
}

#[test]
fn a_service_started_by_a_script_lives_on_and_never_gets_sigpipe() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let alive = temp.path().join("alive");
    let task = script(&format!(
        "setsid bash -c 'for i in 1 2 3 4 5 6; do sleep 0.1; echo later; done; touch {}' & echo up",
        alive.display()
    ));
    host.run(&task);
    let ended = host.finish(&task);
    assert_eq!((ended.update.state(), ended.output.as_str()), (TaskState::Succeeded, "up\n"));
    wait_until("the service went on", || alive.exists());
    host.stop();
}

#[test]
fn another_user_gets_ids_groups_and_environment() {
    if skein_agent::sys::user::effective_uid() != 0 {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let mut task =
        script("id -u; id -G; echo $USER $LOGNAME $HOME; grep NoNewPrivs /dev/null; cat");
    task.user = "nobody".into();
    host.run(&task);
    let ended = host.finish(&task);
    let nobody = skein_agent::sys::user::by_name("nobody").unwrap().unwrap();
    let expected = format!("{}\n{}\nnobody nobody {}\n", nobody.uid, nobody.gid, nobody.home);
    assert_eq!(ended.output, expected, "{}", ended.update.error);
    host.stop();
}

/// Found with two agents on one host: both put the task into the same cgroup, so that the timeout
/// of one ended the other's script.
#[test]
fn two_agents_of_one_host_run_the_same_task_apart() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut hasty, mut patient) = (Host::start(first.path()), Host::start(second.path()));
    let gate = second.path().join("gate");
    let mut task = script(&format!("until [ -e {} ]; do sleep 0.05; done", gate.display()));
    patient.run(&task);
    patient.until_state(TaskState::Running);
    task.timeout_ms = 200;
    hasty.run(&task);
    assert_eq!(hasty.finish(&task).update.state(), TaskState::TimedOut);
    std::fs::write(&gate, "").unwrap();
    assert_eq!(patient.finish(&task).update.state(), TaskState::Succeeded);
    hasty.stop();
    patient.stop();
}

#[test]
fn transfer_orders_pass_once() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let cancel = CancelTransfer { transfer_id: vec![1; 16].into(), keep: false };
    let kind = command_body::Kind::CancelTransfer(cancel.clone());
    let order = host.order_until(kind, wall_ms() + 10_000);
    host.handle.order(order).unwrap();
    assert_eq!(host.until_refused(), "replayed");
    let transfers = host.transfers.clone();
    host.stop();
    assert_eq!(*transfers.lock().unwrap(), [TransferOrder::Cancel(cancel)]);
}

#[test]
fn nothing_is_lost_while_no_session_is_up() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    let task = script("seq 1 30000");
    host.outbox.close();
    host.run(&task);
    let exit = temp.path().join(hex_encode(&task.task_id)).join("exit");
    wait_until("the script ended", || exit.exists());
    host.outbox.open();
    let ended = host.finish(&task);
    assert_eq!(ended.output.lines().count(), 30_000);
    assert!(ended.output.ends_with("\n30000\n"));
    host.stop();
}
