//! Who may become an agent, and for how long.

use rcgen::KeyPair;
use skein_controlplane::api::types::*;
use skein_wire::signal::v1::RenewRequest;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::token::JoinToken;

use crate::harness::{TestServer, csr, fleet_of, request, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_and_a_signed_request_make_an_agent() {
    let server = TestServer::start().await;
    let data = server.data().await;
    let token = server.api.join_token(1).await;
    let agent = data.enrol(&token, "web-1").await;
    assert_eq!(agent.id.as_str().len(), 36);
    assert!(agent.id.as_str().starts_with("020000000052540025157e"));
    assert_eq!(agent.reply.certificate_chain_der.len(), 2);
    let ca = &agent.reply.trusted_ca_der[0];
    assert_eq!(skein_wire::merkle::sha256(ca), token.ca_sha256, "what the token pins");
    let list: AgentList = server.api.get("/agents?selector=host%3Dweb-1").await.unwrap();
    assert_eq!(list.agents[0].agent_id, agent.id.as_str());
    assert_eq!(list.agents[0].state, AgentState::Offline);

    // Its answer was lost: the same key and token again give the same id and cost no use.
    let again = data.try_enrol(request(&token, &agent.key, "web-1")).await;
    assert_eq!((again.error.as_str(), again.agent_id.as_str()), ("", agent.id.as_str()));
    // Another key finds the token used.
    let other = KeyPair::generate().unwrap();
    let refused = data.try_enrol(request(&token, &other, "web-2")).await;
    assert!(refused.error.contains("as often as it may be"), "{}", refused.error);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_stays_with_its_key() {
    let server = TestServer::start().await;
    let data = server.data().await;
    let token = server.api.join_token(0).await;
    let agent = data.enrol(&token, "web-1").await;
    let fresh = server.api.join_token(1).await;
    let mut wish = request(&fresh, &agent.key, "renamed");
    wish.agent_id = agent.id.to_string();
    assert_eq!(data.try_enrol(wish.clone()).await.error, "");
    wish.csr_der = csr(&KeyPair::generate().unwrap());
    let refused = data.try_enrol(wish.clone()).await;
    assert!(refused.error.contains("another key"), "{}", refused.error);
    wish.agent_id = "0200000000".into();
    let refused = data.try_enrol(wish).await;
    assert!(refused.error.contains("not registered"), "{}", refused.error);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_expired_and_deleted_tokens_open_nothing() {
    let server = TestServer::start().await;
    let data = server.data().await;
    let key = KeyPair::generate().unwrap();
    let good = server.api.join_token(1).await;
    let mut wrong = good.clone();
    wrong.secret[0] ^= 1;
    let unknown = JoinToken { id: [0; 8], ..good.clone() };
    for token in [&wrong, &unknown] {
        let refused = data.try_enrol(request(token, &key, "x")).await;
        assert!(refused.error.contains("not known"), "{}", refused.error);
    }
    let short = JoinTokenRequest { ttl_ms: Some(0), ..Default::default() };
    let short: JoinTokenCreated = server.api.post("/join-tokens", &short).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let refused = data.try_enrol(request(&short.token.parse().unwrap(), &key, "x")).await;
    assert!(refused.error.contains("expired"), "{}", refused.error);
    server.api.delete(&format!("/join-tokens/{}", good.id_text())).await.unwrap();
    let refused = data.try_enrol(request(&good, &key, "x")).await;
    assert!(refused.error.contains("not known"), "{}", refused.error);
    let mut garbage = request(&good, &key, "x");
    garbage.csr_der = vec![0x30; 100].into();
    assert!(!data.try_enrol(garbage).await.error.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_uses_serve_ten_of_forty_at_once() {
    let server = TestServer::start().await;
    let data = server.data().await;
    let token = server.api.join_token(10).await;
    let mut waiting = Vec::new();
    for n in 0..40 {
        let (data, token) = (data.clone(), token.clone());
        waiting.push(tokio::spawn(async move {
            let key = KeyPair::generate().unwrap();
            data.try_enrol(request(&token, &key, &format!("h{n}"))).await.error.is_empty()
        }));
    }
    let mut served = 0;
    for one in waiting {
        served += u32::from(one.await.unwrap());
    }
    assert_eq!(served, 10);
    let tokens: JoinTokenList = server.api.get("/join-tokens").await.unwrap();
    let info = tokens.tokens.iter().find(|one| one.id == token.id_text()).unwrap();
    assert_eq!(info.used, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_reaches_the_data_process_at_once_and_lasts() {
    let (server, data, agents) = fleet_of(&["a", "b"]).await;
    let revoked = agents[0].id.to_string();
    let body = RevokeRequest { agent_ids: vec![revoked.clone()], ..Default::default() };
    let reply: RevokeReply = server.api.post("/agents/revoke", &body).await.unwrap();
    assert_eq!(reply.agent_ids, std::slice::from_ref(&revoked));
    until("the revoked set comes", || {
        let seen = data.seen();
        seen.revoked
            .as_ref()
            .filter(|set| set.agent_ids == std::slice::from_ref(&revoked))
            .map(|_| ())
    })
    .await;
    let token = server.api.join_token(1).await;
    let refused = data.try_enrol(request(&token, &agents[0].key, "a")).await;
    assert!(refused.error.contains("revoked"), "{}", refused.error);
    let task = TaskRequest { targets: revoked, script: "id".into(), ..Default::default() };
    let error = server.api.post::<Task>("/tasks", &task).await.unwrap_err();
    assert_eq!(error.0, 400, "a revoked agent is nobody's target: {}", error.1);
    let unknown = RevokeRequest { agent_ids: vec!["nobody".into()], ..Default::default() };
    let error = server.api.post::<RevokeReply>("/agents/revoke", &unknown).await.unwrap_err();
    assert_eq!(error.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_over_its_own_session() {
    let (_server, data, agents) = fleet_of(&["a"]).await;
    let renewed = RenewRequest { csr_der: csr(&agents[0].key) };
    data.say(agents[0].id.as_str(), Agent::Renew(renewed));
    let reply = until("the renewal is answered", || data.seen().replies.pop()).await.1;
    assert_eq!(reply.error, "");
    assert_ne!(reply.certificate_chain_der[0], agents[0].reply.certificate_chain_der[0]);
    assert_eq!(reply.command_keys, agents[0].reply.command_keys);
}
