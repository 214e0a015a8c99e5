//! How files travel: inside the order, as a forecast says, and otherwise when it goes otherwise.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use skein_controlplane::api::types::*;
use skein_wire::ids::hex_encode;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::{
    CommandBody, FileInfo, FileOffer, HostFacts, JoinTransfer, TransferState, TransferUpdate,
    command_body,
};

use crate::harness::{TestServer, config, facts, fleet_of, online, push, until};
use crate::transfers::from_agent;

fn small(content: &[u8]) -> TransferSource {
    TransferSource::Content {
        name: "app.conf".into(),
        mode: 0o640,
        mtime_ms: Some(1_000),
        content_hex: hex_encode(content),
    }
}

fn update(transfer_id: &bytes::Bytes, state: TransferState, verified_bytes: u64) -> Agent {
    Agent::TransferUpdate(TransferUpdate {
        transfer_id: transfer_id.clone(),
        state: state.into(),
        verified_bytes,
        started_ms: 1_000,
        ..TransferUpdate::default()
    })
}

/// An agent that keeps the contents of its orders and is done with them.
fn takes(orders: Arc<Mutex<Vec<JoinTransfer>>>) -> impl FnMut(CommandBody) -> Vec<Agent> + Send {
    move |body| {
        let Some(command_body::Kind::JoinTransfer(join)) = body.kind else { return Vec::new() };
        let size = join.file.as_ref().map_or(0, |file| file.size_bytes);
        let done = update(&join.transfer_id, TransferState::Done, size);
        orders.lock().expect("orders").push(join);
        vec![done]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_travels_inside_the_order() {
    let (server, data, agents) = fleet_of(&["a", "b"]).await;
    let orders = Arc::new(Mutex::new(Vec::new()));
    agents.iter().for_each(|agent| data.up(agent, takes(orders.clone())));
    let content = [7; 10_240];
    let upload: Upload = server.api.put("/uploads?name=f", content.to_vec()).await.unwrap();
    for source in [small(&content), TransferSource::Upload { upload_id: upload.upload_id }] {
        let transfer: Transfer = server.api.post("/transfers", &push(source)).await.unwrap();
        assert_eq!(transfer.gear, "inline", "{}", transfer.why);
        let path = format!("/transfers/{}?wait_ms=10000", transfer.transfer_id);
        let detail: TransferDetail = server.api.get(&path).await.unwrap();
        assert_eq!((detail.transfer.phase, detail.transfer.hosts_done), (TransferPhase::Ended, 2));
        assert!(detail.transfer.achieved_share.is_some_and(|share| share > 0.0), "{detail:?}");
        assert!(detail.transfer.judgement.contains("% of the bound"), "{detail:?}");
        if let TransferSource::Content { content_hex, .. } = detail.transfer.source {
            assert!(content_hex.is_empty(), "it is not told again");
        }
        let orders = std::mem::take(&mut *orders.lock().unwrap());
        assert_eq!(orders.len(), 2);
        for order in orders {
            assert_eq!(order.content.as_deref(), Some(&content[..]));
            assert_eq!(order.file.unwrap().root.to_vec(), hex(&detail.transfer.root));
        }
    }
    assert!(data.seen().seeds.is_empty(), "no data process serves it");
    let large = small(&[0; 32_769]);
    let error = server.api.post::<Transfer>("/transfers", &push(large)).await.unwrap_err();
    assert!(error.1.contains("32768"), "{}", error.1);
}

fn hex(digits: &str) -> Vec<u8> {
    skein_wire::ids::hex_decode::<32>(digits).expect("a root").to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_goes_by_another_gear_where_that_is_asked_for() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    let orders = Arc::new(Mutex::new(Vec::new()));
    data.up(&agents[0], takes(orders.clone()));
    let request = TransferRequest { gear: Some("direct".into()), ..push(small(b"hello")) };
    let transfer: Transfer = server.api.post("/transfers", &request).await.unwrap();
    assert_eq!(transfer.gear, "direct");
    server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!(orders.lock().unwrap()[0].content, None);
    let seed = data.seen().seeds[0].clone();
    assert_eq!(std::fs::read(&seed.path).unwrap(), b"hello", "it lies in the cache");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forecast_begins_nothing() {
    let (server, data, _agents) = fleet_of(&["a", "b"]).await;
    let request = |size_bytes, gear: Option<&str>| ForecastRequest {
        targets: "all".into(),
        size_bytes,
        source: None,
        tree: Default::default(),
        rate_limit_bytes_per_s: None,
        rate_limit_total_bytes_per_s: None,
        gear: gear.map(str::to_owned),
    };
    let ask = async |request| {
        server.api.post::<TransferForecast>("/transfers/forecast", &request).await.unwrap()
    };
    let small = ask(request(1_000, None)).await;
    assert_eq!((small.gear.as_str(), small.hosts_total), ("inline", 2));
    let large = ask(request(1 << 30, None)).await;
    assert_eq!(large.gear, "direct", "nobody listens: {}", large.why);
    assert!(large.predicted_ms >= large.bound_ms && large.bound_ms > 0.0, "{large:?}");
    let gears: Vec<_> = large.gears.iter().map(|one| (&*one.gear, one.possible)).collect();
    assert_eq!(gears, [("direct", true), ("planned", false), ("mesh", false)]);
    let forced = ask(request(1_000, Some("direct"))).await;
    assert_eq!(forced.gear, "direct");
    let nobody = ForecastRequest { targets: "host=none".into(), ..request(1, None) };
    let asked = server.api.post::<TransferForecast>("/transfers/forecast", &nobody).await;
    assert!(asked.unwrap_err().1.contains("no agent matches"));
    let list: TransferList = server.api.get("/transfers").await.unwrap();
    assert!(list.transfers.is_empty() && data.seen().commands.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forecast_asks_the_sources_how_large_it_is() {
    let (server, data, agents) = fleet_of(&["seed1", "seed2", "bad", "other"]).await;
    let answers = |size_bytes: u64, error: &'static str| {
        move |body: CommandBody| match body.kind {
            Some(command_body::Kind::OfferFile(offer)) => {
                assert!(offer.look && offer.path == "/srv/f", "{offer:?}");
                let file = Some(FileInfo { size_bytes, ..FileInfo::default() });
                let (transfer_id, error) = (offer.transfer_id, error.to_owned());
                vec![Agent::FileOffer(FileOffer { transfer_id, file, error })]
            }
            _ => Vec::new(),
        }
    };
    data.up(&agents[0], answers(1 << 30, ""));
    data.up(&agents[1], answers(1 << 30, ""));
    data.up(&agents[2], answers(0, "no such file"));
    data.up(&agents[3], answers(5, ""));
    let ask = async |from: &str| {
        let request = ForecastRequest {
            targets: "all".into(),
            size_bytes: 0,
            source: Some(from_agent(from, "/srv/f")),
            tree: Default::default(),
            rate_limit_bytes_per_s: None,
            rate_limit_total_bytes_per_s: Some(1 << 20),
            gear: None,
        };
        server.api.post::<TransferForecast>("/transfers/forecast", &request).await
    };
    let forecast = ask("host=seed*").await.unwrap();
    assert_eq!((forecast.size_bytes, forecast.hosts_total), (1 << 30, 4));
    assert!(forecast.bound_ms > 1_000_000.0, "a GiB through 1 MiB/s: {forecast:?}");
    let error = ask("host=bad").await.unwrap_err();
    assert!(error.1.contains("no such file"), "{}", error.1);
    let error = ask("host=seed1|host=other").await.unwrap_err();
    assert!(error.1.contains("do not have the same content"), "{}", error.1);
    until("all are told that it is over", || {
        let seen = data.seen();
        let is_end =
            |body: &CommandBody| matches!(body.kind, Some(command_body::Kind::CancelTransfer(_)));
        let ends = seen.commands.iter().filter(|(_, body)| is_end(body)).count();
        (ends == 5).then_some(())
    })
    .await;
    let list: TransferList = server.api.get("/transfers").await.unwrap();
    assert!(list.transfers.is_empty() && data.seen().fetches.is_empty());
}

/// The server was said to be fast, and is not: hosts that get little from it are made a mesh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_off_course_goes_on_as_a_mesh() {
    const SIZE: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.planning.server_up_bytes_s = 10_000_000_000;
    let server = TestServer::start_with(config).await;
    let data = server.data().await;
    let token = server.api.join_token(0).await;
    let mut agents = Vec::new();
    for at in 0..4 {
        let agent = data.enrol(&token, &format!("host{at}")).await;
        data.up(&agent, |_| Vec::new());
        let mesh_addresses = vec![format!("10.0.0.{}:60020", at + 1)];
        let listens = HostFacts { mesh_addresses, ..facts(&format!("host{at}")) };
        data.say(agent.id.as_str(), Agent::Facts(listens));
        agents.push(agent.id.to_string());
    }
    data.snapshot_end();
    online(&server.api, 4).await;
    let upload: Upload = server.api.put("/uploads?name=f", vec![1; SIZE as usize]).await.unwrap();
    let source = TransferSource::Upload { upload_id: upload.upload_id };
    let forecast = ForecastRequest {
        targets: "all".into(),
        size_bytes: SIZE,
        source: None,
        tree: Default::default(),
        rate_limit_bytes_per_s: None,
        rate_limit_total_bytes_per_s: None,
        gear: None,
    };
    let forecast: TransferForecast =
        server.api.post("/transfers/forecast", &forecast).await.unwrap();
    assert!(forecast.gears.iter().all(|gear| gear.possible), "they listen");
    let transfer: Transfer = server.api.post("/transfers", &push(source)).await.unwrap();
    assert_eq!(transfer.gear, "direct", "{}", transfer.why);

    let joined = |meshed: bool| {
        let seen = data.seen();
        let orders = seen.commands.iter().filter_map(|(agent, body)| match &body.kind {
            Some(command_body::Kind::JoinTransfer(join)) if join.meshed == meshed => {
                Some((agent.clone(), join.transfer_id.clone()))
            }
            _ => None,
        });
        orders.collect::<Vec<_>>()
    };
    let orders =
        until("all are ordered", || Some(joined(false)).filter(|all| all.len() == 4)).await;
    let id = orders[0].1.clone();
    let began = std::time::Instant::now();
    let mut bytes = 0;
    while joined(true).len() < 4 {
        // A look at a moment that says little is followed by others, with growing pauses.
        assert!(began.elapsed() < Duration::from_secs(60), "it is not planned again");
        bytes += 60_000;
        agents.iter().for_each(|agent| data.say(agent, update(&id, TransferState::Running, bytes)));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let again: TransferDetail =
        server.api.get(&format!("/transfers/{}", transfer.transfer_id)).await.unwrap();
    assert_eq!(again.transfer.gear, "planned", "{}", again.transfer.why);
    assert!(again.transfer.why.contains("direct until then"), "{}", again.transfer.why);
    assert!(again.transfer.replans >= 1 && again.transfer.replanned_ms.is_some());
    until("everybody has a list of the others", || {
        let seen = data.seen();
        let is_list =
            |body: &&CommandBody| matches!(body.kind, Some(command_body::Kind::TransferPeers(_)));
        let lists = seen.commands.iter().filter(|(_, body)| is_list(&body)).count();
        (lists >= 4).then_some(())
    })
    .await;
    agents.iter().for_each(|agent| data.say(agent, update(&id, TransferState::Done, SIZE)));
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!(detail.transfer.hosts_done, 4);
}
