//! kill -9 of the control process: what was accepted goes on, and ends once.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use skein_controlplane::api::types::*;
use skein_controlplane::run_control;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::{TaskOutput, TaskState, TaskUpdate, command_body};

use crate::harness::{Api, FakeData, config, online, until};
use crate::running_tasks::update;

/// Not a test of its own: the control process that the others kill.
#[test]
fn child_that_is_the_control_process() {
    let Ok(dir) = std::env::var("SKEIN_TEST_CONTROL") else { return };
    run_control(config(Path::new(&dir))).expect("runs until it is killed");
}

struct Killable(Child);

impl Killable {
    async fn start(dir: &Path) -> (Self, Api) {
        let ports = dir.join("run/control.ports.json");
        let _ = std::fs::remove_file(&ports);
        // A file that is too large shall be an error, as with a full disk, and no signal.
        let child = Command::new("sh")
            .args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#])
            .arg(std::env::current_exe().expect("this test"))
            .args(["--exact", "restart::child_that_is_the_control_process", "--nocapture"])
            .env("SKEIN_TEST_CONTROL", dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child");
        let address = until("the control process is up", || {
            let text = std::fs::read_to_string(&ports).ok()?;
            let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
            Some(ports["api"].as_str()?.to_owned())
        })
        .await;
        (Self(child), Api::new(&address, dir))
    }

    fn kill(mut self) {
        self.0.kill().expect("SIGKILL");
        self.0.wait().expect("is reaped");
    }
}

/// The disk refuses every further byte (a limit on file sizes does it as ENOSPC or EIO would): a
/// request is answered with an error, and the process ends and says why. What was answered before
/// is there at the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_ends_the_process_and_nothing_more_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (mut control, api) = Killable::start(dir).await;
    let kept = api.join_token(3).await;
    let pid = control.0.id().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, "--fsize=0"]).status().unwrap();
    assert!(limited.success());
    let request = JoinTokenRequest { note: "lost".into(), ..Default::default() };
    let error = api.post::<JoinTokenCreated>("/join-tokens", &request).await.unwrap_err();
    assert!(error.0 >= 500, "{error:?}");
    let status = until("it ends", || control.0.try_wait().unwrap()).await;
    assert!(!status.success(), "{status}");
    let mut said = String::new();
    control.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("see to the disk"), "{said}");

    let (control, api) = Killable::start(dir).await;
    let tokens: JoinTokenList = api.get("/join-tokens").await.unwrap();
    assert!(tokens.tokens.iter().any(|token| token.id == kept.id_text()));
    assert!(tokens.tokens.iter().all(|token| token.note != "lost"));
    control.kill();
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_output_and_identities_survive_kill_minus_nine() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (control, api) = Killable::start(dir).await;
    let data = FakeData::connect(dir).await;
    let token = api.join_token(0).await;
    let mut agents = Vec::new();
    for name in ["done", "running", "untold"] {
        agents.push(data.enrol(&token, name).await);
    }
    let [done, running, untold] = &agents[..] else { panic!() };
    data.up(done, |_| Vec::new());
    data.up(running, |_| Vec::new());
    data.snapshot_end();
    online(&api, 2).await;
    let request = TaskRequest {
        targets: "all".into(),
        script: "work".into(),
        deliver_within_ms: Some(60_000),
        ..Default::default()
    };
    let task: Task = api.post("/tasks", &request).await.unwrap();
    let order = until("both orders come", || {
        let seen = data.seen();
        (seen.commands.len() == 2).then(|| seen.commands[0].1.clone())
    })
    .await;
    let Some(command_body::Kind::RunTask(run)) = order.kind else { panic!() };
    let piece = |text: &str, offset| TaskOutput {
        task_id: run.task_id.clone(),
        offset,
        data: text.to_owned().into(),
    };
    let end = TaskUpdate { output_bytes: 6, ..update(&run.task_id, TaskState::Succeeded) };
    data.say(done.id.as_str(), Agent::TaskOutput(piece("before", 0)));
    data.say(done.id.as_str(), Agent::TaskUpdate(end.clone()));
    data.say(running.id.as_str(), Agent::TaskUpdate(update(&run.task_id, TaskState::Running)));
    data.say(running.id.as_str(), Agent::TaskOutput(piece("bef", 0)));
    until("the first end and both outputs are acknowledged", || {
        let seen = data.seen();
        let ends = seen.acks.iter().filter(|(_, ack)| ack.final_state).count();
        let outputs = seen.acks.iter().filter(|(_, ack)| ack.output_offset > 0).count();
        (ends >= 1 && outputs >= 2).then_some(())
    })
    .await;
    control.kill();

    let (control, api) = Killable::start(dir).await;
    let data = FakeData::connect(dir).await;
    // The same command key signs: the agents' pinned one verifies.
    data.up(done, |_| Vec::new());
    let (order, output) = (run.clone(), piece("ore", 3));
    data.up(running, move |body| {
        let Some(command_body::Kind::RunTask(again)) = body.kind else { return Vec::new() };
        assert_eq!(again, order, "the same order, by which the agent knows it");
        let end = TaskUpdate { output_bytes: 6, ..update(&again.task_id, TaskState::Failed) };
        vec![Agent::TaskOutput(output.clone()), Agent::TaskUpdate(end)]
    });
    data.up(untold, crate::running_tasks::runs("late", 0));
    data.snapshot_end();
    // An agent that did not hear the acknowledgement repeats itself: absorbed.
    data.say(done.id.as_str(), Agent::TaskUpdate(end));
    let detail = api.ended_task(&task.task_id).await;
    let state = |id: &str| detail.hosts.iter().find(|host| host.agent_id == id).unwrap().state;
    assert_eq!(state(done.id.as_str()), TaskHostState::Succeeded);
    assert_eq!(state(running.id.as_str()), TaskHostState::Failed);
    assert_eq!(state(untold.id.as_str()), TaskHostState::Succeeded);
    assert!(data.seen().commands.iter().all(|(id, _)| id != done.id.as_str()), "is not told again");
    for (agent, text) in [(done, "before"), (running, "before"), (untold, "late")] {
        let path = format!("{BASE_PATH}/tasks/{}/output?agent_id={}", task.task_id, agent.id);
        let (_, body, _) = api.raw("GET", &path, Vec::new()).await;
        assert_eq!(String::from_utf8(body).unwrap(), text);
    }
    control.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let (mut control, _api) = Killable::start(folder.path()).await;
    let pid = control.0.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(sent.success());
    let status = until("it ends", || control.0.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
    tokio::time::sleep(Duration::from_millis(1)).await;
}
