//! What operators see of a transfer: who sent the bytes, how far it is, and the metrics of it.

use skein_controlplane::api::types::*;
use skein_wire::fleet::v1::SeedSent;
use skein_wire::fleet::v1::from_data::Kind as From;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::{
    CommandBody, HostFacts, ReceivedFrom, TransferState, TransferUpdate, command_body,
};

use crate::harness::{Api, FakeData, TestAgent, facts, fleet_of, until};

const SIZE: u64 = 300_000;

async fn push(api: &Api, gear: &str) -> Transfer {
    let upload: Upload = api.put("/uploads?name=f", vec![7; SIZE as usize]).await.expect("room");
    let request = TransferRequest {
        gear: Some(gear.into()),
        ..crate::harness::push(TransferSource::Upload { upload_id: upload.upload_id })
    };
    api.post("/transfers", &request).await.expect("a transfer")
}

/// The agent says where it is and that others reach it.
fn stands(data: &FakeData, agent: &TestAgent, region: &str) {
    let facts = HostFacts {
        region: region.into(),
        mesh_addresses: vec!["192.0.2.1:60020".into()],
        ..facts(region)
    };
    data.say(agent.id.as_str(), Agent::Facts(facts));
}

fn update(body: &CommandBody) -> Option<TransferUpdate> {
    let Some(command_body::Kind::JoinTransfer(join)) = &body.kind else { return None };
    Some(TransferUpdate {
        transfer_id: join.transfer_id.clone(),
        state: TransferState::Done.into(),
        verified_bytes: SIZE,
        started_ms: 1_000,
        ended_ms: 2_000,
        ..TransferUpdate::default()
    })
}

async fn metric(api: &Api, line: &str) -> f64 {
    let (_, text, _) = api.raw("GET", "/metrics", vec![]).await;
    let text = String::from_utf8(text).expect("text");
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {line} in\n{text}")).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sent_what_is_shown_and_counted_by_gear_and_region() {
    let (server, data, agents) = fleet_of(&["a", "b"]).await;
    for (agent, region) in agents.iter().zip(["here-1", "there-1"]) {
        stands(&data, agent, region);
    }
    // Member 1 is the first in order of agent id.
    let mut order: Vec<&TestAgent> = agents.iter().collect();
    order.sort_by(|a, b| a.id.cmp(&b.id));
    let first = order[0].id.clone();
    for agent in &agents {
        let is_first = agent.id == first;
        data.up(agent, move |body| {
            let Some(mut update) = update(&body) else { return Vec::new() };
            let from = |member, bytes| ReceivedFrom { member, bytes };
            update.received_from = match is_first {
                true => vec![from(0, SIZE)],
                false => vec![from(1, SIZE - 100_000), from(0, 100_000)],
            };
            update.from_peers_bytes = if is_first { 0 } else { SIZE - 100_000 };
            update.refused_blocks = u64::from(is_first);
            vec![Agent::TransferUpdate(update)]
        });
    }
    let transfer = push(&server.api, "mesh").await;
    assert_eq!(transfer.gear, "mesh");
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    let progress = detail.transfer.progress;
    assert_eq!((progress.percent, progress.delivered_bytes), (100, 2 * SIZE));
    assert_eq!((progress.from_peers_bytes, progress.refused_blocks), (SIZE - 100_000, 1));
    assert_eq!((progress.predicted_end_ms, progress.slowest.len()), (None, 2));
    assert!(progress.elapsed_ms.is_some() && !progress.source_is_final);

    let transfer_id: bytes::Bytes = until("the file is served no longer", || {
        data.seen().unseeds.first().map(|unseed| unseed.transfer_id.clone())
    })
    .await;
    let sent = |bytes, is_last| {
        From::SeedSent(SeedSent { transfer_id: transfer_id.clone(), bytes, is_last })
    };
    data.send(sent(400_000, false));
    data.send(sent(420_000, true));
    let path = format!("/transfers/{}", transfer.transfer_id);
    let progress = loop {
        let detail: TransferDetail = server.api.get(&path).await.unwrap();
        if detail.transfer.progress.source_is_final {
            break detail.transfer.progress;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(progress.source_sent_bytes, 420_000);

    // The recorder is shared with other tests of this process; these regions are not.
    let bytes = |name: &str, labels: &str| {
        let line = format!("skein_control_transfer_{name}_bytes_total{{{labels}}}");
        let api = server.api.clone();
        async move { metric(&api, &line).await as u64 }
    };
    let region_of = |agent: &TestAgent| if agent.id == agents[0].id { "here-1" } else { "there-1" };
    let (one, two) = (region_of(order[0]), region_of(order[1]));
    let second = format!("gear=\"mesh\",region=\"{two}\"");
    assert_eq!(bytes("delivered", &second).await, SIZE);
    assert_eq!(bytes("peer", &second).await, SIZE - 100_000);
    let border = |from: &str, to: &str| bytes("border", &format!("from=\"{from}\",to=\"{to}\""));
    assert_eq!(border(one, two).await, SIZE - 100_000);
    assert_eq!(border("server", two).await, 100_000);
    assert_eq!(border("server", one).await, SIZE);
    let ended = "skein_control_transfers_ended_total{gear=\"mesh\",outcome=\"done\"}";
    assert!(metric(&server.api, ended).await >= 1.0);
    let ratio = "skein_control_transfer_source_ratio_bucket{gear=\"mesh\",le=\"1.5\"}";
    assert!(metric(&server.api, ratio).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_predicted_from_reports_and_not_before() {
    let (server, data, agents) = fleet_of(&["a", "b"]).await;
    data.up(&agents[0], move |body| {
        let running = TransferState::Running.into();
        let begun = update(&body).map(|update| TransferUpdate {
            state: running,
            verified_bytes: 0,
            ..update
        });
        begun.map(Agent::TransferUpdate).into_iter().collect()
    });
    data.up(&agents[1], |_| Vec::new());
    let transfer = push(&server.api, "direct").await;
    let path = format!("/transfers/{}", transfer.transfer_id);
    let seen =
        || async { server.api.get::<TransferDetail>(&path).await.unwrap().transfer.progress };
    while seen().await.note != "1 not measured yet, 1 not reached" {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(seen().await.predicted_end_ms, None);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let transfer_id = skein_wire::ids::TransferId::from_slice(
        &skein_wire::ids::hex_decode::<16>(&transfer.transfer_id).unwrap(),
    )
    .unwrap();
    data.say(
        agents[0].id.as_str(),
        Agent::TransferUpdate(TransferUpdate {
            transfer_id: transfer_id.to_bytes(),
            state: TransferState::Running.into(),
            verified_bytes: SIZE / 2,
            started_ms: 1_000,
            ..TransferUpdate::default()
        }),
    );
    let progress = loop {
        let progress = seen().await;
        if progress.predicted_end_ms.is_some() {
            break progress;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!((progress.percent, &*progress.note), (25, "1 not reached"));
    // Half in half a second and more: the other half takes as long again.
    let left_ms = progress.predicted_end_ms.unwrap() - progress.at_ms;
    assert!((500..15_000).contains(&left_ms), "{left_ms}");
    assert_eq!(progress.slowest[0].agent_id, agents[0].id.as_str());
}
