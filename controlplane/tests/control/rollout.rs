//! Pushes that go out in batches, wait for their turn, are paused, and are found where they were by
//! the next control process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skein_controlplane::api::types::*;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::{
    CommandBody, TransferPriority, TransferState, TransferUpdate, command_body,
};

use crate::harness::{
    Api, FakeData, TestAgent, TestServer, WAIT, config, fleet_of, fleet_on, online, until,
};
use crate::transfers::from_agent;

fn update(transfer_id: &bytes::Bytes, state: TransferState, verified_bytes: u64) -> Agent {
    let transfer_id = transfer_id.clone();
    let state = state.into();
    Agent::TransferUpdate(TransferUpdate {
        transfer_id,
        state,
        verified_bytes,
        ..Default::default()
    })
}

/// Ends at once, well or badly.
fn ends(state: TransferState) -> impl FnMut(CommandBody) -> Vec<Agent> + Send + 'static {
    move |body| match body.kind {
        Some(command_body::Kind::JoinTransfer(join)) => vec![update(&join.transfer_id, state, 0)],
        _ => Vec::new(),
    }
}

/// Runs for as long as it may, stops when it is told to, ends when `finish` says so.
fn runs(finish: Arc<AtomicBool>) -> impl FnMut(CommandBody) -> Vec<Agent> + Send + 'static {
    move |body| match body.kind {
        Some(command_body::Kind::JoinTransfer(join)) => {
            let done = finish.load(Ordering::SeqCst);
            let state = if done { TransferState::Done } else { TransferState::Running };
            vec![update(&join.transfer_id, state, 500)]
        }
        Some(command_body::Kind::CancelTransfer(cancel)) => {
            let state = if cancel.keep { TransferState::Paused } else { TransferState::Cancelled };
            vec![update(&cancel.transfer_id, state, 500)]
        }
        _ => Vec::new(),
    }
}

async fn push(api: &Api, rollout: RolloutRequest) -> Transfer {
    let upload: Upload = api.put("/uploads?name=f", vec![7; 1_000]).await.expect("an upload");
    let request = TransferRequest {
        gear: Some("direct".into()),
        rollout,
        ..crate::harness::push(TransferSource::Upload { upload_id: upload.upload_id })
    };
    api.post("/transfers", &request).await.expect("a transfer")
}

fn batches(text: &str) -> RolloutRequest {
    RolloutRequest { batches: Some(text.into()), ..RolloutRequest::default() }
}

fn priority(priority: Priority) -> RolloutRequest {
    RolloutRequest { priority, ..RolloutRequest::default() }
}

async fn wish(api: &Api, id: &str, wish: &str) -> Result<Transfer, (u16, String)> {
    api.post(&format!("/transfers/{id}/{wish}"), &Empty {}).await
}

async fn detail(api: &Api, id: &str) -> TransferDetail {
    api.get(&format!("/transfers/{id}")).await.expect("the transfer")
}

/// Waits for a transfer to be so.
async fn reaches(api: &Api, id: &str, is: impl Fn(&TransferDetail) -> bool) -> TransferDetail {
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        let detail = detail(api, id).await;
        if is(&detail) {
            return detail;
        }
        assert!(tokio::time::Instant::now() < deadline, "it does not come to that: {detail:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn in_state(detail: &TransferDetail, state: TransferHostState) -> usize {
    detail.hosts.iter().filter(|host| host.state == state).count()
}

/// The agents in the order in which batches take them.
fn in_order(agents: &mut [TestAgent]) {
    agents.sort_by_key(|agent| agent.id.to_string());
}

fn joins(data: &FakeData, agent: &TestAgent) -> usize {
    let is_join = |(id, body): &&(String, CommandBody)| {
        *id == agent.id.to_string()
            && matches!(body.kind, Some(command_body::Kind::JoinTransfer(_)))
    };
    data.seen().commands.iter().filter(is_join).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_begin_when_the_ones_before_have_ended() {
    let (server, data, mut agents) = fleet_of(&["a", "b", "c", "d"]).await;
    in_order(&mut agents);
    let go = Arc::new(AtomicBool::new(false));
    data.up(&agents[0], runs(go.clone()));
    for agent in &agents[1..] {
        data.up(agent, ends(TransferState::Done));
    }
    let transfer = push(&server.api, batches("1,50%,100%")).await;
    let id = &transfer.transfer_id;
    assert_eq!(transfer.rollout.batches, [1, 2, 4]);
    let first =
        reaches(&server.api, id, |at| at.hosts[0].state == TransferHostState::Running).await;
    assert_eq!(in_state(&first, TransferHostState::NotStarted), 3, "{first:?}");
    let batch: Vec<u64> = first.hosts.iter().map(|host| host.batch).collect();
    assert_eq!(batch, [1, 2, 3, 3]);
    assert_eq!(agents[1..].iter().map(|agent| joins(&data, agent)).sum::<usize>(), 0);
    let members = data.seen().seeds.last().unwrap().agent_ids.clone();
    assert_eq!(members, [agents[0].id.to_string()], "nobody else gets a byte yet");
    let transfer_id = skein_wire::ids::hex_decode::<16>(id).unwrap().to_vec().into();
    data.say(agents[0].id.as_str(), update(&transfer_id, TransferState::Done, 1_000));
    let end = server.api.ended_transfer(id).await;
    assert_eq!((end.transfer.hosts_done, end.transfer.rollout.batches_started), (4, 3));
    assert_eq!(end.transfer.rollout.reason, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_canary_halts_until_an_operator_accepts_or_ends_it() {
    let (server, data, mut agents) = fleet_of(&["a", "b", "c"]).await;
    in_order(&mut agents);
    data.up(&agents[0], ends(TransferState::Failed));
    for agent in &agents[1..] {
        data.up(agent, ends(TransferState::Done));
    }
    let one = push(&server.api, batches("1,100%")).await.transfer_id;
    let halted = |at: &TransferDetail| at.transfer.phase == TransferPhase::Halted;
    let halt = reaches(&server.api, &one, halted).await;
    assert!(halt.transfer.rollout.reason.contains("2 hosts were never started"), "{halt:?}");
    let untouched: Vec<_> =
        halt.hosts.iter().filter(|host| host.state == TransferHostState::NotStarted).collect();
    assert_eq!(untouched.len(), 2);
    assert!(untouched.iter().all(|host| host.error.contains("never started")), "{untouched:?}");
    let resumed = wish(&server.api, &one, "resume").await.unwrap();
    assert_ne!(resumed.phase, TransferPhase::Halted);
    let end = server.api.ended_transfer(&one).await;
    assert_eq!((end.transfer.hosts_done, in_state(&end, TransferHostState::Failed)), (2, 1));

    let two = push(&server.api, batches("1,100%")).await.transfer_id;
    reaches(&server.api, &two, halted).await;
    wish(&server.api, &two, "cancel").await.unwrap();
    let end = server.api.ended_transfer(&two).await;
    assert_eq!(in_state(&end, TransferHostState::Cancelled), 2);
    let never = end.hosts.iter().filter(|host| host.error.contains("never started")).count();
    assert_eq!(never, 2, "{end:?}");
    assert_eq!(agents[1..].iter().map(|agent| joins(&data, agent)).sum::<usize>(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_and_its_batches_outlive_the_control_process() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path()).await;
    let (data, mut agents) = fleet_on(&server, &["a", "b", "c"]).await;
    in_order(&mut agents);
    data.up(&agents[0], ends(TransferState::Failed));
    let id = push(&server.api, batches("1,2,100%")).await.transfer_id;
    reaches(&server.api, &id, |at| at.transfer.phase == TransferPhase::Halted).await;
    server.control.stop().await;

    let server = TestServer::start_in(folder.path()).await;
    let data = server.data().await;
    agents[1..].iter().for_each(|agent| data.up(agent, ends(TransferState::Done)));
    data.snapshot_end();
    online(&server.api, 2).await;
    let halt = detail(&server.api, &id).await;
    assert_eq!(
        (halt.transfer.phase, halt.transfer.rollout.batches_started),
        (TransferPhase::Halted, 1)
    );
    assert_eq!(joins(&data, &agents[1]), 0);
    wish(&server.api, &id, "resume").await.unwrap();
    let end = server.api.ended_transfer(&id).await;
    assert_eq!((end.transfer.hosts_done, end.transfer.rollout.batches_started), (2, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_stops_every_host_and_outlives_the_control_process() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path()).await;
    let (data, agents) = fleet_on(&server, &["a"]).await;
    let finish = Arc::new(AtomicBool::new(false));
    data.up(&agents[0], runs(finish.clone()));
    let id = push(&server.api, RolloutRequest::default()).await.transfer_id;
    reaches(&server.api, &id, |at| at.hosts[0].state == TransferHostState::Running).await;
    let paused = wish(&server.api, &id, "pause").await.unwrap();
    assert_eq!(
        (paused.phase, paused.rollout.reason.as_str()),
        (TransferPhase::Paused, "paused by an operator")
    );
    reaches(&server.api, &id, |at| at.hosts[0].state == TransferHostState::Paused).await;
    until("the server serves it no longer", || data.seen().unseeds.pop()).await;
    server.control.stop().await;

    let server = TestServer::start_in(folder.path()).await;
    let data = server.data().await;
    data.up(&agents[0], runs(finish.clone()));
    data.snapshot_end();
    // The agent is asked, because nobody knows whether it has heard of the pause.
    let still =
        reaches(&server.api, &id, |at| at.hosts[0].state == TransferHostState::Paused).await;
    assert_eq!((still.transfer.phase, still.hosts[0].verified_bytes), (TransferPhase::Paused, 500));
    assert_eq!((joins(&data, &agents[0]), data.seen().seeds.len()), (0, 0));
    finish.store(true, Ordering::SeqCst);
    wish(&server.api, &id, "resume").await.unwrap();
    let end = server.api.ended_transfer(&id).await;
    assert_eq!(end.transfer.hosts_done, 1);
    assert_eq!(data.seen().seeds.len(), 1);
    let error = wish(&server.api, &id, "pause").await.unwrap_err();
    assert_eq!(error.0, 409, "{}", error.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_source_is_told_to_stop_and_asked_again() {
    let (server, data, agents) = fleet_of(&["source", "target"]).await;
    let source = from_agent("source", "/srv/f");
    let request = serde_json::json!({
        "source": source, "targets": "host=target", "directory": "/opt/app",
    });
    let transfer: Transfer = server.api.post("/transfers", &request).await.unwrap();
    let kinds = |wanted: fn(&command_body::Kind) -> bool| {
        let seen = data.seen();
        let of_source = seen.commands.iter().filter(|(id, _)| *id == agents[0].id.to_string());
        of_source.filter(|(_, body)| body.kind.as_ref().is_some_and(wanted)).count()
    };
    let offers = || kinds(|kind| matches!(kind, command_body::Kind::OfferFile(_)));
    until("the source is asked", || (offers() == 1).then_some(())).await;
    wish(&server.api, &transfer.transfer_id, "pause").await.unwrap();
    let stops =
        || kinds(|kind| matches!(kind, command_body::Kind::CancelTransfer(one) if one.keep));
    until("the source is told", || (stops() == 1).then_some(())).await;
    wish(&server.api, &transfer.transfer_id, "resume").await.unwrap();
    until("the source is asked again", || (offers() == 2).then_some(())).await;
    wish(&server.api, &transfer.transfer_id, "pause").await.unwrap();
    wish(&server.api, &transfer.transfer_id, "cancel").await.unwrap();
    let end = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!(in_state(&end, TransferHostState::Cancelled), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_turn_is_queued_and_starts_by_priority() {
    let folder = tempfile::tempdir().unwrap();
    let one_at_a_time = |dir| {
        let mut config = config(dir);
        config.transfers_running_max = 1;
        config
    };
    let server = TestServer::start_with(one_at_a_time(folder.path())).await;
    let (data, agents) = fleet_on(&server, &["a"]).await;
    let finish = Arc::new(AtomicBool::new(false));
    data.up(&agents[0], runs(finish.clone()));
    let first = push(&server.api, priority(Priority::Low)).await;
    assert_eq!(first.phase, TransferPhase::Running);
    let low = push(&server.api, priority(Priority::Low)).await;
    let normal = push(&server.api, priority(Priority::Normal)).await;
    let high = push(&server.api, priority(Priority::High)).await;
    let waits = |at: &TransferDetail| at.transfer.rollout.reason.contains("turns are taken");
    let place = reaches(&server.api, &low.transfer_id, waits).await.transfer;
    assert_eq!(place.phase, TransferPhase::Queued);
    let reason = reaches(&server.api, &low.transfer_id, |at| {
        at.transfer.rollout.reason.starts_with("place 3 in the queue")
    });
    reason.await;
    let queued: TransferList = server.api.get("/transfers?state=queued&limit=2").await.unwrap();
    let ids: Vec<_> = queued.transfers.iter().map(|one| one.transfer_id.as_str()).collect();
    assert_eq!(ids, [high.transfer_id.as_str(), normal.transfer_id.as_str()], "newest first");
    server.control.stop().await;

    // The queue is as it was.
    let server = TestServer::start_with(one_at_a_time(folder.path())).await;
    let data = server.data().await;
    data.up(&agents[0], runs(finish.clone()));
    data.snapshot_end();
    let runs_on = |at: &TransferDetail| at.hosts[0].state == TransferHostState::Running;
    reaches(&server.api, &first.transfer_id, runs_on).await;
    finish.store(true, Ordering::SeqCst);
    // Nothing moves while the first has the only turn; a pause gives it to others.
    let still: TransferList = server.api.get("/transfers?state=queued").await.unwrap();
    assert_eq!(still.transfers.len(), 3);
    wish(&server.api, &first.transfer_id, "pause").await.unwrap();
    for one in [&low, &normal, &high] {
        server.api.ended_transfer(&one.transfer_id).await;
    }
    let seen = data.seen();
    let order = seen.commands.iter().filter_map(|(_, body)| match &body.kind {
        Some(command_body::Kind::JoinTransfer(join)) => {
            Some((skein_wire::ids::hex_encode(&join.transfer_id), join.priority()))
        }
        _ => None,
    });
    let order: Vec<_> = order.filter(|(id, _)| *id != first.transfer_id).collect();
    let expected = [
        (high.transfer_id, TransferPriority::High),
        (normal.transfer_id, TransferPriority::Normal),
        (low.transfer_id, TransferPriority::Low),
    ];
    assert_eq!(order, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_is_filtered_and_unknown_wishes_are_refused() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    data.up(&agents[0], ends(TransferState::Done));
    let done = push(&server.api, RolloutRequest::default()).await.transfer_id;
    server.api.ended_transfer(&done).await;
    let count = async |query: &str| {
        let list: TransferList = server.api.get(&format!("/transfers{query}")).await.unwrap();
        list.transfers.len()
    };
    assert_eq!(count("").await, 1);
    assert_eq!(count("?state=ended&newer_than_ms=60000").await, 1);
    assert_eq!(count("?state=open").await, 0);
    assert_eq!(count("?newer_than_ms=-1").await, 0);
    assert_eq!(count("?limit=0").await, 0);
    assert_eq!(wish(&server.api, &done, "resume").await.unwrap_err().0, 409);
    assert_eq!(wish(&server.api, &"0".repeat(32), "pause").await.unwrap_err().0, 404);
    let request = serde_json::json!({
        "source": TransferSource::Upload { upload_id: "x".into() }, "targets": "all",
        "directory": "/opt/app", "rollout": { "batches": "50%,10%" },
    });
    let error = server.api.post::<Transfer>("/transfers", &request).await.unwrap_err();
    assert_eq!(error.0, 400, "{}", error.1);
}
