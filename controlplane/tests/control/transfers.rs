//! Pushes: from an upload or an agent's file to every target, each with its own end.

use std::path::{Path, PathBuf};

use skein_controlplane::api::types::*;
use skein_filemesh::engine::{LeafFile, SeedFile, hash_file};
use skein_wire::fleet::v1::FetchResult;
use skein_wire::fleet::v1::from_data::Kind as From;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::{
    CommandBody, FileInfo, FileOffer, TransferState, TransferUpdate, command_body,
};

use crate::harness::{TestServer, fleet_of, online, push, until};

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * n / 7) as u8).collect()
}

/// A path on the hosts that a selector matches, as source.
pub fn from_agent(agent: &str, path: &str) -> TransferSource {
    TransferSource::Agent { agent: agent.into(), path: path.into(), also: Vec::new() }
}

/// An agent that receives everything.
fn receives(body: CommandBody) -> Vec<Agent> {
    let Some(command_body::Kind::JoinTransfer(join)) = body.kind else { return Vec::new() };
    let file = join.file.expect("names the file");
    let update = |state: TransferState, verified_bytes| TransferUpdate {
        transfer_id: join.transfer_id.clone(),
        state: state.into(),
        verified_bytes,
        started_ms: 1_000,
        ended_ms: if state == TransferState::Done { 2_000 } else { 0 },
        ..TransferUpdate::default()
    };
    vec![
        Agent::TransferUpdate(update(TransferState::Running, file.size_bytes / 2)),
        Agent::TransferUpdate(update(TransferState::Done, file.size_bytes)),
    ]
}

/// A file on the source's host, and what it says of it.
fn source_file(folder: &Path) -> (PathBuf, FileInfo) {
    let path = folder.join("app.tar");
    std::fs::write(&path, content(70_000)).expect("writes");
    let hashed =
        hash_file(&path, None, &folder.join("leaves"), |_| std::ops::ControlFlow::Continue(()));
    (path, hashed.expect("hashes").manifest.to_info())
}

/// A source that offers a file.
fn offers(info: FileInfo) -> impl FnMut(CommandBody) -> Vec<Agent> + Send {
    move |body| match body.kind {
        Some(command_body::Kind::OfferFile(offer)) => {
            let (transfer_id, file) = (offer.transfer_id, Some(info.clone()));
            vec![Agent::FileOffer(FileOffer { transfer_id, file, error: String::new() })]
        }
        _ => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_hashed_on_its_way_and_pushed_to_all() {
    let (server, data, agents) = fleet_of(&["a", "b"]).await;
    let bytes = content(300_000);
    let upload: Upload =
        server.api.put("/uploads?name=lib.so&mode=493", bytes.clone()).await.unwrap();
    assert_eq!((upload.size_bytes, upload.mode), (300_000, 0o755));
    let cached = server.dir.join("control/cache").join(&upload.upload_id);
    assert_eq!(std::fs::read(&cached).unwrap(), bytes);
    // What another would find by hashing the file is what was found while it streamed.
    let leaves = server.dir.join("leaves");
    let hashed = hash_file(&cached, Some(upload.piece_bytes), &leaves, |_| {
        std::ops::ControlFlow::Continue(())
    });
    let root = skein_wire::ids::hex_encode(&hashed.unwrap().manifest.root);
    assert_eq!(root, upload.root);
    let beside = LeafFile::open(&cached.with_extension("leaves")).unwrap();
    assert_eq!(skein_wire::ids::hex_encode(&beside.tree().root()), upload.root);
    SeedFile::open(&cached, beside.stamp()).expect("the data process can serve it as it stands");

    agents.iter().for_each(|agent| data.up(agent, receives));
    let source = TransferSource::Upload { upload_id: upload.upload_id.clone() };
    let transfer: Transfer = server.api.post("/transfers", &push(source)).await.unwrap();
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!(detail.transfer.phase, TransferPhase::Ended);
    assert_eq!((detail.transfer.hosts_done, detail.transfer.verified_bytes), (2, 600_000));
    assert!(detail.hosts.iter().all(|host| host.bytes_per_s == 300_000), "{detail:?}");
    until("the file is served no longer and all ends are acknowledged", || {
        let seen = data.seen();
        (seen.unseeds.len() == 1 && seen.acks.len() >= 2).then_some(())
    })
    .await;
    let seed = data.seen().seeds[0].clone();
    assert_eq!(seed.path, cached.canonicalize().unwrap().to_string_lossy());
    assert_eq!(seed.agent_ids.len(), 2);
    server.api.delete(&format!("/uploads/{}", upload.upload_id)).await.unwrap();
    assert!(!cached.exists() && !cached.with_extension("leaves").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_file_is_offered_fetched_and_pushed() {
    let (server, data, agents) = fleet_of(&["source", "target"]).await;
    let source_id = agents[0].id.to_string();
    let folder = tempfile::tempdir().unwrap();
    let (path, info) = source_file(folder.path());
    let offered = info.clone();
    data.up(&agents[0], move |body| match body.kind {
        Some(command_body::Kind::OfferFile(offer)) => {
            assert_eq!(offer.path, "/srv/app.tar");
            let (transfer_id, file) = (offer.transfer_id, Some(offered.clone()));
            vec![Agent::FileOffer(FileOffer { transfer_id, file, error: String::new() })]
        }
        _ => receives(body),
    });
    data.up(&agents[1], receives);
    let source = from_agent("source", "/srv/app.tar");
    let transfer: Transfer = server.api.post("/transfers", &push(source)).await.unwrap();
    let fetch = until("the data process is to fetch", || data.seen().fetches.pop()).await;
    assert_eq!((fetch.agent_id.as_str(), fetch.file.as_ref()), (source_id.as_str(), Some(&info)));
    assert!(data.seen().seeds.is_empty(), "nothing is served before it is here");
    std::fs::copy(&path, &fetch.path).unwrap();
    let transfer_id = fetch.transfer_id;
    data.send(From::Fetch(FetchResult { transfer_id, error: String::new(), bytes: 70_000 }));
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!((detail.transfer.hosts_done, detail.transfer.size_bytes), (2, 70_000));
    assert_eq!(detail.transfer.file_name, "app.tar");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_cannot_offer_ends_the_whole_with_its_reason() {
    let (server, data, agents) = fleet_of(&["source", "target"]).await;
    data.up(&agents[0], |body| match body.kind {
        Some(command_body::Kind::OfferFile(offer)) => {
            let (transfer_id, error) = (offer.transfer_id, "no such file".to_owned());
            vec![Agent::FileOffer(FileOffer { transfer_id, file: None, error })]
        }
        _ => Vec::new(),
    });
    let source = from_agent("source", "/none");
    let transfer: Transfer = server.api.post("/transfers", &push(source)).await.unwrap();
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!(detail.transfer.error, "no such file");
    assert!(detail.hosts.iter().all(|host| host.state == TransferHostState::Failed));
    let nobody = from_agent("host=nobody", "/x");
    let error = server.api.post::<Transfer>("/transfers", &push(nobody)).await.unwrap_err();
    assert!(error.1.contains("matches no agent"), "{}", error.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_source_takes_over_from_one_that_is_lost() {
    let (server, data, agents) = fleet_of(&["seed1", "seed2", "seed3", "target"]).await;
    let folder = tempfile::tempdir().unwrap();
    let (path, info) = source_file(folder.path());
    data.up(&agents[0], offers(info.clone()));
    data.up(&agents[1], offers(info.clone()));
    data.up(&agents[2], |body| match body.kind {
        Some(command_body::Kind::OfferFile(offer)) => {
            let (transfer_id, error) = (offer.transfer_id, "no such file".to_owned());
            vec![Agent::FileOffer(FileOffer { transfer_id, file: None, error })]
        }
        _ => Vec::new(),
    });
    data.up(&agents[3], receives);
    let source = from_agent("host=seed*", "/srv/app.tar");
    let push = TransferRequest { targets: "host=target".into(), ..push(source) };
    let transfer: Transfer = server.api.post("/transfers", &push).await.unwrap();
    assert_eq!(transfer.sources.len(), 3);
    let first = until("the data process is to fetch", || data.seen().fetches.pop()).await;
    let lost = first.agent_id.clone();
    let (transfer_id, error) = (first.transfer_id, "the connection broke".to_owned());
    data.send(From::Fetch(FetchResult { transfer_id, error, bytes: 0 }));
    let second = until("it is to fetch from the other", || {
        data.seen().fetches.pop().filter(|fetch| fetch.agent_id != lost)
    })
    .await;
    std::fs::copy(&path, &second.path).unwrap();
    let transfer_id = second.transfer_id;
    data.send(From::Fetch(FetchResult { transfer_id, error: String::new(), bytes: 70_000 }));
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!((detail.transfer.hosts_done, detail.transfer.error.as_str()), (1, ""));
    let errors: Vec<_> = detail.transfer.sources.iter().map(|one| one.error.as_str()).collect();
    let broken = "fetching from the source: the connection broke";
    assert!(errors.contains(&broken) && errors.contains(&"no such file"), "{errors:?}");
    assert!(errors.contains(&""), "the one that served is not lost: {errors:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_that_differ_are_named_and_nothing_is_sent() {
    let (server, data, agents) = fleet_of(&["seed1", "seed2", "target"]).await;
    let folder = tempfile::tempdir().unwrap();
    let (_, info) = source_file(folder.path());
    let other = FileInfo { root: vec![7; 32].into(), ..info.clone() };
    data.up(&agents[0], offers(info));
    data.up(&agents[1], offers(other));
    let mut source = from_agent("host=seed1", "/srv/app.tar");
    if let TransferSource::Agent { also, .. } = &mut source {
        let (agent, path) = ("host=seed2".to_owned(), "/srv/app.tar".to_owned());
        also.push(AgentPath { agent, path });
    }
    let push = TransferRequest { targets: "host=target".into(), ..push(source) };
    let transfer: Transfer = server.api.post("/transfers", &push).await.unwrap();
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    let error = &detail.transfer.error;
    assert!(error.contains("do not have the same content"), "{error}");
    for agent in &agents[..2] {
        assert!(error.contains(&format!("{}:/srv/app.tar", agent.id)), "{error}");
    }
    assert!(data.seen().fetches.is_empty() && data.seen().seeds.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_data_process_and_a_new_control_process_learn_what_runs() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path()).await;
    let data = server.data().await;
    let token = server.api.join_token(1).await;
    let agent = data.enrol(&token, "a").await;
    data.up(&agent, |_| Vec::new());
    data.snapshot_end();
    online(&server.api, 1).await;
    let upload: Upload = server.api.put("/uploads?name=f", content(20_000)).await.unwrap();
    let source = TransferSource::Upload { upload_id: upload.upload_id };
    let request = TransferRequest { gear: Some("direct".into()), ..push(source) };
    let transfer: Transfer = server.api.post("/transfers", &request).await.unwrap();
    until("the order comes", || data.seen().commands.pop()).await;

    let newer = server.data().await;
    newer.snapshot_end();
    until("the seed is announced again", || newer.seen().seeds.pop()).await;
    server.control.stop().await;

    let server = TestServer::start_in(folder.path()).await;
    let data = server.data().await;
    data.snapshot_end();
    until("the seed is announced once more", || data.seen().seeds.pop()).await;
    data.up(&agent, receives);
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!(detail.transfer.hosts_done, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_or_is_not_whole_is_refused() {
    let server = TestServer::start().await;
    let huge = format!("{BASE_PATH}/uploads?name=f");
    let (status, _, _) = server.api.raw("PUT", &huge, Vec::new()).await;
    assert_eq!(status, 200, "an empty file is a file");
    let error = server.api.put::<Upload>("/uploads?name=..%2Fx", vec![1]).await.unwrap_err();
    assert!(error.1.contains("file name"), "{}", error.1);
    let gone = push(TransferSource::Upload { upload_id: "00".repeat(16) });
    let error = server.api.post::<Transfer>("/transfers", &gone).await.unwrap_err();
    assert_eq!(error.0, 400, "there are no agents at all: {}", error.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_stops_all_hosts() {
    let (server, data, agents) = fleet_of(&["a", "away"]).await;
    data.down(&agents[1], "closed");
    data.up(&agents[0], |body| match body.kind {
        Some(command_body::Kind::CancelTransfer(cancel)) => {
            let state = TransferState::Cancelled.into();
            let transfer_id = cancel.transfer_id;
            vec![Agent::TransferUpdate(TransferUpdate { transfer_id, state, ..Default::default() })]
        }
        _ => Vec::new(),
    });
    let upload: Upload = server.api.put("/uploads?name=f", content(1_000)).await.unwrap();
    let source = TransferSource::Upload { upload_id: upload.upload_id };
    let transfer: Transfer = server.api.post("/transfers", &push(source)).await.unwrap();
    until("the order comes", || data.seen().commands.pop()).await;
    let path = format!("/transfers/{}/cancel", transfer.transfer_id);
    server.api.post::<Transfer>(&path, &Empty {}).await.unwrap();
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert!(
        detail.hosts.iter().all(|host| host.state == TransferHostState::Cancelled),
        "{detail:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_whose_order_was_lost_on_its_way_is_ordered_again() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    let mut orders = 0;
    data.up(&agents[0], move |body| {
        orders += 1;
        if orders == 1 { Vec::new() } else { receives(body) }
    });
    let upload: Upload = server.api.put("/uploads?name=f", content(1_000)).await.unwrap();
    let source = TransferSource::Upload { upload_id: upload.upload_id };
    let transfer: Transfer = server.api.post("/transfers", &push(source)).await.unwrap();
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!(detail.transfer.hosts_done, 1);
}

/// The last block came, the file was put in its place, and with the connection went the report;
/// the source did not come back. The push waited for it although all was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetched_file_counts_although_its_report_was_lost() {
    let (server, data, agents) = fleet_of(&["source", "target"]).await;
    let folder = tempfile::tempdir().unwrap();
    let (path, info) = source_file(folder.path());
    data.up(&agents[0], offers(info));
    data.up(&agents[1], receives);
    let source = from_agent("source", "/srv/app.tar");
    let push = TransferRequest { targets: "host=target".into(), ..push(source) };
    let transfer: Transfer = server.api.post("/transfers", &push).await.unwrap();
    let fetch = until("the data process is to fetch", || data.seen().fetches.pop()).await;
    data.down(&agents[0], "disconnected");
    let place = std::path::Path::new(&fetch.path);
    std::fs::copy(&path, place.with_extension("part")).unwrap();
    std::fs::rename(place.with_extension("part"), place).unwrap();
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!((detail.transfer.hosts_done, detail.transfer.error.as_str()), (1, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_failed_leaves_no_bytes_in_the_cache() {
    let (server, data, agents) = fleet_of(&["source", "target"]).await;
    let folder = tempfile::tempdir().unwrap();
    let (_, info) = source_file(folder.path());
    data.up(&agents[0], offers(info));
    let source = from_agent("source", "/srv/app.tar");
    let transfer: Transfer = server.api.post("/transfers", &push(source)).await.unwrap();
    let fetch = until("the data process is to fetch", || data.seen().fetches.pop()).await;
    let list: UploadList = server.api.get("/uploads").await.unwrap();
    assert_eq!(list.cache_bytes, 70_000, "room is kept while it comes");
    std::fs::write(&fetch.path, "torn").unwrap();
    let (transfer_id, error) = (fetch.transfer_id, "a lie".to_owned());
    data.send(From::Fetch(FetchResult { transfer_id, error, bytes: 0 }));
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert!(detail.transfer.error.contains("a lie"), "{}", detail.transfer.error);
    let list: UploadList = server.api.get("/uploads").await.unwrap();
    assert_eq!(list.cache_bytes, 0);
    assert!(!std::path::Path::new(&fetch.path).exists());
}
