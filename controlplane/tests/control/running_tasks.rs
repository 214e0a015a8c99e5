//! Scripts on hosts: every target ends in exactly one state, output comes by offset.

use skein_controlplane::api::types::*;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::{
    CommandBody, CommandRefused, TaskOutput, TaskState, TaskUpdate, command_body,
};

use crate::harness::{Api, fleet_of, until};

pub fn update(task_id: &bytes::Bytes, state: TaskState) -> TaskUpdate {
    TaskUpdate { task_id: task_id.clone(), state: state.into(), ..TaskUpdate::default() }
}

/// An agent that writes `text` and ends with `exit_code`.
pub fn runs(text: &'static str, exit_code: i32) -> impl FnMut(CommandBody) -> Vec<Agent> + Send {
    move |body| {
        let Some(command_body::Kind::RunTask(run)) = body.kind else { return Vec::new() };
        let end = if exit_code == 0 { TaskState::Succeeded } else { TaskState::Failed };
        let id = run.task_id;
        let (head, tail) = text.split_at(text.len() / 2);
        let output = |offset: usize, data: &str| TaskOutput {
            task_id: id.clone(),
            offset: offset as u64,
            data: data.to_owned().into(),
        };
        vec![
            Agent::TaskUpdate(update(&id, TaskState::Accepted)),
            Agent::TaskUpdate(update(&id, TaskState::Running)),
            Agent::TaskOutput(output(0, head)),
            Agent::TaskOutput(output(head.len(), tail)),
            Agent::TaskUpdate(TaskUpdate {
                exit_code,
                output_bytes: text.len() as u64,
                ..update(&id, end)
            }),
        ]
    }
}

async fn output(api: &Api, task: &str, agent: &str, offset: u64, limit: u64) -> (String, bool) {
    let path =
        format!("{BASE_PATH}/tasks/{task}/output?agent_id={agent}&offset={offset}&limit={limit}");
    let (status, body, headers) = api.raw("GET", &path, Vec::new()).await;
    assert_eq!(status, 200);
    (String::from_utf8_lossy(&body).into_owned(), headers[HEADER_OUTPUT_COMPLETE] == "true")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_host_ends_in_its_own_state_and_is_acknowledged() {
    let (server, data, agents) = fleet_of(&["good", "bad", "away"]).await;
    data.up(&agents[0], runs("hello, world\n", 0));
    data.up(&agents[1], runs("no\n", 3));
    data.down(&agents[2], "closed");
    let request = TaskRequest {
        targets: "all".into(),
        script: "echo hello, world".into(),
        deliver_within_ms: Some(0),
        ..Default::default()
    };
    let task: Task = server.api.post("/tasks", &request).await.unwrap();
    let detail = server.api.ended_task(&task.task_id).await;
    let state = |n: usize| {
        let id = agents[n].id.as_str();
        detail
            .hosts
            .iter()
            .find(|host| host.agent_id == id)
            .map(|host| (host.state, host.exit_code))
    };
    assert_eq!(state(0), Some((TaskHostState::Succeeded, 0)));
    assert_eq!(state(1), Some((TaskHostState::Failed, 3)));
    assert_eq!(state(2), Some((TaskHostState::Undeliverable, 0)));
    assert_eq!((detail.task.hosts_total, detail.task.hosts_ended), (3, 3));
    let good = agents[0].id.as_str();
    let (text, complete) = output(&server.api, &task.task_id, good, 0, 100).await;
    assert_eq!((text.as_str(), complete), ("hello, world\n", true));
    assert_eq!(output(&server.api, &task.task_id, good, 7, 3).await.0, "wor");
    assert_eq!(output(&server.api, &task.task_id, good, 13, 3).await.0, "");
    until("ends are acknowledged", || {
        let seen = data.seen();
        let finals = seen.acks.iter().filter(|(_, ack)| ack.final_state).count();
        let offsets = seen.acks.iter().any(|(id, ack)| id == good && ack.output_offset == 13);
        (finals >= 2 && offsets).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_acknowledged_only_after_all_of_its_output() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    let id = agents[0].id.to_string();
    let request = TaskRequest { targets: "all".into(), script: "x".into(), ..Default::default() };
    let task: Task = server.api.post("/tasks", &request).await.unwrap();
    let task_id = until("the order comes", || data.seen().commands.pop()).await.1;
    let Some(command_body::Kind::RunTask(run)) = task_id.kind else { panic!() };
    let end = TaskUpdate { output_bytes: 5, ..update(&run.task_id, TaskState::Succeeded) };
    data.say(&id, Agent::TaskUpdate(end.clone()));
    server.api.ended_task(&task.task_id).await;
    assert!(data.seen().acks.iter().all(|(_, ack)| !ack.final_state), "output is missing");
    let piece = TaskOutput { task_id: run.task_id.clone(), offset: 0, data: "12345".into() };
    data.say(&id, Agent::TaskOutput(piece));
    until("the end is acknowledged", || {
        data.seen().acks.iter().any(|(_, ack)| ack.final_state).then_some(())
    })
    .await;
    // A late contradiction changes nothing and is acknowledged, so that the agent forgets.
    data.seen().acks.clear();
    data.say(
        &id,
        Agent::TaskUpdate(TaskUpdate {
            output_bytes: 5,
            ..update(&run.task_id, TaskState::Failed)
        }),
    );
    until("the repeat is acknowledged", || data.seen().acks.pop()).await;
    let detail: TaskDetail = server.api.get(&format!("/tasks/{}", task.task_id)).await.unwrap();
    assert_eq!(detail.hosts[0].state, TaskHostState::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_comes_in_time_gets_its_order() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    data.down(&agents[0], "lost");
    crate::harness::online(&server.api, 0).await;
    let list: AgentList = server.api.get("/agents").await.unwrap();
    assert_eq!(list.agents[0].state, AgentState::Lost);
    let request = TaskRequest { targets: "all".into(), script: "id".into(), ..Default::default() };
    let task: Task = server.api.post("/tasks", &request).await.unwrap();
    data.up(&agents[0], runs("ok", 0));
    let detail = server.api.ended_task(&task.task_id).await;
    assert_eq!(detail.hosts[0].state, TaskHostState::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_submission_is_one_task() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    data.up(&agents[0], runs("once", 0));
    let mut request = TaskRequest {
        targets: "all".into(),
        script: "date".into(),
        task_id: Some("ab".repeat(16)),
        ..Default::default()
    };
    let first: Task = server.api.post("/tasks", &request).await.unwrap();
    let second: Task = server.api.post("/tasks", &request).await.unwrap();
    assert_eq!(first.task_id, second.task_id);
    server.api.ended_task(&first.task_id).await;
    assert_eq!(data.seen().commands.len(), 1, "it ran once");
    request.script = "reboot".into();
    let error = server.api.post::<Task>("/tasks", &request).await.unwrap_err();
    assert_eq!(error.0, 409, "{}", error.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_reaches_the_agent_and_ends_the_rest() {
    let (server, data, agents) = fleet_of(&["runs", "away"]).await;
    data.down(&agents[1], "closed");
    data.up(&agents[0], |body| match body.kind {
        Some(command_body::Kind::RunTask(run)) => {
            vec![Agent::TaskUpdate(update(&run.task_id, TaskState::Running))]
        }
        Some(command_body::Kind::CancelTask(cancel)) => {
            vec![Agent::TaskUpdate(update(&cancel.task_id, TaskState::Cancelled))]
        }
        _ => Vec::new(),
    });
    let request =
        TaskRequest { targets: "all".into(), script: "sleep".into(), ..Default::default() };
    let task: Task = server.api.post("/tasks", &request).await.unwrap();
    let cancelled: Task =
        server.api.post(&format!("/tasks/{}/cancel", task.task_id), &Empty {}).await.unwrap();
    assert!(cancelled.cancel_asked);
    let detail = server.api.ended_task(&task.task_id).await;
    assert!(detail.hosts.iter().all(|host| host.state == TaskHostState::Cancelled), "{detail:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_the_agent_is_the_hosts_state() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    data.up(&agents[0], |body| {
        let (command_id, reason) = (body.command_id, "task_queue_full".to_owned());
        vec![Agent::CommandRefused(skein_wire::signal::v1::CommandRefused { command_id, reason })]
    });
    let request = TaskRequest { targets: "all".into(), script: "id".into(), ..Default::default() };
    let task: Task = server.api.post("/tasks", &request).await.unwrap();
    let detail = server.api.ended_task(&task.task_id).await;
    assert_eq!(detail.hosts[0].state, TaskHostState::Refused);
    assert_eq!(detail.hosts[0].error, "task_queue_full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_was_lost_on_its_way_is_sent_again() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    let (mut orders, mut run) = (0, runs("here\n", 0));
    data.up(&agents[0], move |body| {
        orders += 1;
        if orders == 1 { Vec::new() } else { run(body) }
    });
    let request = TaskRequest { targets: "all".into(), script: "x".into(), ..Default::default() };
    let task: Task = server.api.post("/tasks", &request).await.unwrap();
    let detail = server.api.ended_task(&task.task_id).await;
    assert_eq!(detail.hosts[0].state, TaskHostState::Succeeded);
    let seen = data.seen();
    let [(_, first), (_, second)] = &seen.commands[..] else { panic!("{}", seen.commands.len()) };
    assert_eq!(first.kind, second.kind, "the same order, by which the agent knows it");
    assert_ne!(first.command_id, second.command_id, "a new command: the old one is no replay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_was_lost_on_its_way_is_sent_again() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    let mut cancels = 0;
    data.up(&agents[0], move |body| match body.kind {
        Some(command_body::Kind::RunTask(run)) => {
            vec![Agent::TaskUpdate(update(&run.task_id, TaskState::Running))]
        }
        Some(command_body::Kind::CancelTask(cancel)) => {
            cancels += 1;
            let end = Agent::TaskUpdate(update(&cancel.task_id, TaskState::Cancelled));
            if cancels == 1 { Vec::new() } else { vec![end] }
        }
        _ => Vec::new(),
    });
    let request = TaskRequest { targets: "all".into(), script: "x".into(), ..Default::default() };
    let task: Task = server.api.post("/tasks", &request).await.unwrap();
    until("the order comes", || data.seen().commands.first().map(|_| ())).await;
    server.api.post::<Task>(&format!("/tasks/{}/cancel", task.task_id), &Empty {}).await.unwrap();
    let detail = server.api.ended_task(&task.task_id).await;
    assert_eq!(detail.hosts[0].state, TaskHostState::Cancelled);
}

/// The refusal of an order crossed its repeat, which the agent then took: the script runs, and
/// `refused` would be a lie.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_refusal_of_an_older_dispatch_ends_nothing() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    let mut first = None;
    let mut run = runs("x", 0);
    data.up(&agents[0], move |body| match first.take() {
        None => {
            first = Some(body.command_id);
            Vec::new()
        }
        Some(command_id) => {
            let reason = "task_queue_full".to_owned();
            let refused = Agent::CommandRefused(CommandRefused { command_id, reason });
            std::iter::once(refused).chain(run(body)).collect()
        }
    });
    let request = TaskRequest { targets: "all".into(), script: "x".into(), ..Default::default() };
    let task: Task = server.api.post("/tasks", &request).await.unwrap();
    let detail = server.api.ended_task(&task.task_id).await;
    assert_eq!(detail.hosts[0].state, TaskHostState::Succeeded, "{}", detail.hosts[0].error);
}
