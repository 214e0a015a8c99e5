//! An agent that is revoked while a transfer runs: its fellow members are told at once, its own part
//! ends with that reason, and the transfer goes on without it.

use skein_controlplane::api::types::*;
use skein_wire::ids::TransferId;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::{
    CommandBody, HostFacts, MeshReport, TransferState, TransferUpdate, command_body,
};

use crate::harness::{Api, FakeData, TestAgent, facts, fleet_of, push, until};

const SIZE: u64 = 300_000;

fn update(id: &bytes::Bytes, state: TransferState, verified_bytes: u64) -> Agent {
    Agent::TransferUpdate(TransferUpdate {
        transfer_id: id.clone(),
        state: state.into(),
        verified_bytes,
        started_ms: 1_000,
        ..TransferUpdate::default()
    })
}

/// Agents that take part and do not end by themselves.
fn joins(body: CommandBody) -> Vec<Agent> {
    match body.kind {
        Some(command_body::Kind::JoinTransfer(join)) => {
            let id = join.transfer_id;
            let report = MeshReport { transfer_id: id.clone(), ..MeshReport::default() };
            vec![update(&id, TransferState::Running, 0), Agent::MeshReport(report)]
        }
        _ => Vec::new(),
    }
}

/// A transfer by the mesh to all, of which everybody has a list.
async fn running(api: &Api, data: &FakeData, agents: &[TestAgent]) -> (String, bytes::Bytes) {
    for agent in agents {
        data.up(agent, joins);
        let mesh_addresses = vec!["192.0.2.1:60020".into()];
        let listens = HostFacts { mesh_addresses, ..facts(agent.id.as_str()) };
        data.say(agent.id.as_str(), Agent::Facts(listens));
    }
    let upload: Upload = api.put("/uploads?name=f", vec![7; SIZE as usize]).await.expect("a place");
    let source = TransferSource::Upload { upload_id: upload.upload_id };
    let request = TransferRequest { gear: Some("mesh".into()), ..push(source) };
    let transfer: Transfer = api.post("/transfers", &request).await.expect("begins");
    until("everybody has a list of the others", || {
        let has_list = |agent: &TestAgent| {
            peers_of(data, agent).is_some_and(|(_, peers)| peers.len() == agents.len())
        };
        agents.iter().all(has_list).then_some(())
    })
    .await;
    let id: TransferId = transfer.transfer_id.parse().expect("an id");
    (transfer.transfer_id, id.to_bytes())
}

/// The number and the agents (the server is one without name) of the newest list of an agent.
fn peers_of(data: &FakeData, agent: &TestAgent) -> Option<(u32, Vec<String>)> {
    let seen = data.seen();
    let lists = seen.commands.iter().filter(|(of, _)| of == agent.id.as_str());
    let lists = lists.filter_map(|(_, body)| match &body.kind {
        Some(command_body::Kind::TransferPeers(list)) => Some(list),
        _ => None,
    });
    let peers = lists.max_by_key(|list| list.number)?;
    Some((peers.number, peers.peers.iter().map(|peer| peer.agent_id.clone()).collect()))
}

/// What an agent was told to remove: the order's number and the members.
fn removed(data: &FakeData, agent: &TestAgent) -> Option<(u32, Vec<u32>)> {
    let seen = data.seen();
    let mut orders = seen.commands.iter().filter(|(of, _)| of == agent.id.as_str());
    orders.find_map(|(_, body)| match &body.kind {
        Some(command_body::Kind::RemovePeers(removal)) => {
            Some((removal.number, removal.members.clone()))
        }
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_members_are_told_of_a_revocation_and_go_on() {
    for forgotten in [false, true] {
        let (server, data, agents) = fleet_of(&["a", "b", "c"]).await;
        let (name, id) = running(&server.api, &data, &agents).await;
        let lost = &agents[1];
        let (number, _) = peers_of(&data, &agents[0]).unwrap();
        if forgotten {
            server.api.delete(&format!("/agents/{}", lost.id)).await.unwrap();
        } else {
            let agent_ids = vec![lost.id.to_string()];
            let request = RevokeRequest {
                agent_ids,
                certificate_serials: Vec::new(),
                reason: "stolen".into(),
            };
            server.api.post::<RevokeReply>("/agents/revoke", &request).await.unwrap();
        }
        // By order of their ids, members are numbered from 1.
        let mut ids: Vec<_> = agents.iter().map(|agent| agent.id.clone()).collect();
        ids.sort();
        let member = 1 + ids.iter().position(|id| *id == lost.id).unwrap() as u32;
        for agent in [&agents[0], &agents[2]] {
            let order = until("the member is told", || removed(&data, agent)).await;
            assert_eq!(order.1, [member]);
            assert!(order.0 > number, "above every list before: {} {number}", order.0);
        }
        let path = format!("/transfers/{name}");
        let detail: TransferDetail = until_ended_host(&server.api, &path, lost).await;
        let host = detail.hosts.iter().find(|host| host.agent_id == lost.id.as_str()).unwrap();
        assert_eq!(host.state, TransferHostState::Failed, "{host:?}");
        assert_eq!(host.error, "the agent was revoked");
        // What comes late of it changes nothing, and no list names it again.
        let report = MeshReport { transfer_id: id.clone(), ..MeshReport::default() };
        data.say(lost.id.as_str(), Agent::MeshReport(report));
        data.say(lost.id.as_str(), update(&id, TransferState::Done, SIZE));
        for agent in [&agents[0], &agents[2]] {
            let (number, peers) = peers_of(&data, agent).unwrap();
            let (removal, _) = removed(&data, agent).unwrap();
            assert!(number < removal || !peers.contains(&lost.id.to_string()), "{peers:?}");
            data.say(agent.id.as_str(), update(&id, TransferState::Done, SIZE));
        }
        let detail = server.api.ended_transfer(&name).await;
        assert_eq!(detail.transfer.hosts_done, 2, "{detail:?}");
    }
}

async fn until_ended_host(api: &Api, path: &str, agent: &TestAgent) -> TransferDetail {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let detail: TransferDetail = api.get(path).await.expect("is known");
        let host = detail.hosts.iter().find(|host| host.agent_id == agent.id.as_str());
        if host.is_some_and(|host| host.state == TransferHostState::Failed) {
            return detail;
        }
        assert!(tokio::time::Instant::now() < deadline, "{detail:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_revoked_source_a_transfer_fails_and_says_so() {
    let (server, data, agents) = fleet_of(&["source", "target"]).await;
    agents.iter().for_each(|agent| data.up(agent, |_| Vec::new()));
    let source = crate::transfers::from_agent(agents[0].id.as_str(), "/x");
    let request = TransferRequest { targets: format!("id={}", agents[1].id), ..push(source) };
    let transfer: Transfer = server.api.post("/transfers", &request).await.unwrap();
    assert_eq!(transfer.phase, TransferPhase::Offering);
    let request = RevokeRequest {
        agent_ids: vec![agents[0].id.to_string()],
        certificate_serials: Vec::new(),
        reason: "stolen".into(),
    };
    server.api.post::<RevokeReply>("/agents/revoke", &request).await.unwrap();
    let detail = server.api.ended_transfer(&transfer.transfer_id).await;
    assert_eq!(detail.transfer.error, "the source agent was revoked");
    assert_eq!(detail.hosts[0].state, TransferHostState::Failed, "{detail:?}");
}
