//! Hostile and careless requests: what they may not learn, take or leave behind.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rcgen::{KeyUsagePurpose, SanType};
use skein_controlplane::api::types::*;
use skein_wire::ids::AgentId;
use skein_wire::signal::v1::RenewRequest;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::harness::{TestAgent, TestServer, fleet_of, request, until};
use crate::running_tasks::runs;

/// A request that asks for an authority, for the server's name and for another agent's.
fn greedy(key: &KeyPair) -> bytes::Bytes {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    params.distinguished_name.push(DnType::CommonName, "server.skein");
    params.subject_alt_names = vec![
        SanType::DnsName("server.skein".try_into().expect("well-formed")),
        SanType::IpAddress("127.0.0.1".parse().expect("well-formed")),
    ];
    bytes::Bytes::copy_from_slice(params.serialize_request(key).expect("well-formed").der())
}

fn assert_humble(der: &[u8], agent: &str) {
    let (_, certificate) = X509Certificate::from_der(der).expect("well-formed");
    assert!(!certificate.is_ca());
    let name = certificate
        .subject()
        .iter_common_name()
        .next()
        .expect("well-formed")
        .as_str()
        .expect("well-formed");
    assert_eq!((name, certificate.subject().iter().count()), (agent, 1));
    let names =
        certificate.subject_alternative_name().expect("well-formed").expect("well-formed").value;
    let [GeneralName::DNSName(dns)] = names.general_names[..] else { panic!("{names:?}") };
    assert_eq!(dns, format!("{agent}.agent.skein"));
    let usage = certificate.key_usage().expect("well-formed").expect("well-formed").value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let purposes =
        certificate.extended_key_usage().expect("well-formed").expect("well-formed").value;
    assert!(purposes.client_auth && purposes.server_auth && !purposes.any);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_more_than_an_agents_certificate_gets_an_agents_certificate() {
    let server = TestServer::start().await;
    let data = server.data().await;
    let token = server.api.join_token(0).await;
    let key = KeyPair::generate().unwrap();
    let mut wish = request(&token, &key, "greedy");
    wish.csr_der = greedy(&key);
    let reply = data.try_enrol(wish).await;
    assert_eq!(reply.error, "");
    assert_humble(&reply.certificate_chain_der[0], &reply.agent_id);

    let id = AgentId::parse(&reply.agent_id).unwrap();
    let agent = TestAgent { key, id, reply };
    data.up(&agent, |_| Vec::new());
    data.say(agent.id.as_str(), Agent::Renew(RenewRequest { csr_der: greedy(&agent.key) }));
    let reply = until("the renewal is answered", || data.seen().replies.pop()).await.1;
    assert_eq!(reply.error, "");
    assert_humble(&reply.certificate_chain_der[0], agent.id.as_str());

    let weak = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let refused = data.try_enrol(request(&token, &weak, "weak")).await;
    assert!(refused.error.contains("P-256"), "{}", refused.error);
}

/// Looks at every file below a folder.
fn walk(folder: &Path, look: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).expect("is readable") {
        let path = entry.expect("is readable").path();
        look(&path);
        if path.is_dir() {
            walk(&path, look);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_secret_is_readable_by_its_owner_alone_and_tokens_are_nowhere_in_the_clear() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    data.up(&agents[0], runs("output", 0));
    let upload: Upload = server.api.put("/uploads?name=f", vec![7; 1_000]).await.unwrap();
    let task = TaskRequest { targets: "all".into(), script: "x".into(), ..Default::default() };
    let task: Task = server.api.post("/tasks", &task).await.unwrap();
    server.api.ended_task(&task.task_id).await;
    let join = server.api.join_token(1).await;
    let admin: AdminTokenCreated =
        server.api.post("/admin-tokens", &AdminTokenRequest::default()).await.unwrap();
    let public = ["ca.crt", "server.crt", "control.ports.json"];
    let secrets = [
        admin.token.rsplit('.').next().unwrap().as_bytes().to_vec(),
        join.secret.to_vec(),
        skein_wire::ids::hex_encode(&join.secret).into_bytes(),
    ];
    let mut seen = 0;
    walk(&server.dir, &mut |path| {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        let (kind, mode) = (metadata.file_type(), metadata.permissions().mode() & 0o777);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if kind.is_dir() {
            return assert_eq!(mode, 0o700, "{}", path.display());
        }
        seen += 1;
        if !public.contains(&name.as_str()) && !name.ends_with(".leaves") {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
        if !kind.is_socket() {
            let content = std::fs::read(path).unwrap();
            for secret in &secrets {
                let found = content.windows(secret.len()).any(|part| part == secret);
                assert!(!found, "a token is in {}", path.display());
            }
        }
    });
    let output = server.dir.join(format!("control/tasks/{}.out", task.task_id));
    let cached = server.dir.join("control/cache").join(upload.upload_id);
    assert!(output.exists() && cached.exists() && seen > 8, "{seen} files");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_almost_right_open_nothing_and_are_not_repeated() {
    let server = TestServer::start().await;
    let request = AdminTokenRequest { ttl_ms: Some(0), ..Default::default() };
    let expired: AdminTokenCreated = server.api.post("/admin-tokens", &request).await.unwrap();
    let good: AdminTokenCreated =
        server.api.post("/admin-tokens", &AdminTokenRequest::default()).await.unwrap();
    let [prefix, id, secret] = good.token.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let other_id = expired.id.as_str();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let almost = [
        expired.token.clone(),
        format!("{prefix}.{id}"),
        format!("{prefix}.{id}."),
        format!("{prefix}.{id}.{}", &secret[1..]),
        format!("{prefix}.{id}.{}", secret.to_uppercase()),
        format!("{prefix}.{id}.{secret}.x"),
        format!("{prefix}.{other_id}.{secret}"),
        format!("skadm2.{id}.{secret}"),
        format!("{prefix}..{secret}"),
    ];
    for token in almost {
        let (status, body, _) = server.api.with_token(&token).raw("GET", STATUS, vec![]).await;
        assert_eq!(status, 401, "{token}");
        let body = String::from_utf8(body).unwrap();
        assert!(!body.contains(secret) && !body.contains(id), "{body}");
    }
    assert!(server.api.with_token(&good.token).get::<Status>("/status").await.is_ok());
}

const STATUS: &str = "/api/skein/v1/status";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_withdraw_the_last_two_admin_tokens_do_not_both_succeed() {
    let server = TestServer::start().await;
    for _ in 0..10 {
        let made: AdminTokenCreated =
            server.api.post("/admin-tokens", &AdminTokenRequest::default()).await.unwrap();
        let list: AdminTokenList = server.api.get("/admin-tokens").await.unwrap();
        let other = list.tokens.iter().find(|token| token.id != made.id).unwrap().id.clone();
        let (one, two) = (server.api.clone(), server.api.with_token(&made.token));
        let (one_path, two_path) =
            (format!("/admin-tokens/{}", made.id), format!("/admin-tokens/{other}"));
        let (one, two) = tokio::join!(one.delete(&one_path), two.delete(&two_path));
        if two.is_ok() {
            assert!(one.is_err(), "somebody can still come in");
            return assert!(
                server.api.with_token(&made.token).get::<Status>("/status").await.is_ok()
            );
        }
        one.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversize_requests_names_and_lists_are_refused_or_cut() {
    let (server, _data, agents) = fleet_of(&["a", "b"]).await;
    let base = BASE_PATH;
    let huge = format!("{{\"targets\":\"all\",\"script\":\"{}\"}}", "x".repeat(1 << 20));
    let (status, _, _) = server.api.raw("POST", &format!("{base}/tasks"), huge.into_bytes()).await;
    assert_eq!(status, 413);
    for wrong in ["..%2F..%2Fadmin.token", "%2e%2e", "x", "0", "%00"] {
        let error = server.api.delete(&format!("/uploads/{wrong}")).await.unwrap_err();
        assert_eq!(error.0, 400, "{wrong}: {}", error.1);
        let error = server.api.get::<TaskDetail>(&format!("/tasks/{wrong}")).await.unwrap_err();
        assert_eq!(error.0, 400, "{wrong}: {}", error.1);
    }
    for wrong in ["..%2Fx", ".", "..", "", "a%2Fb", "a%00b"] {
        let error = server.api.put::<Upload>(&format!("/uploads?name={wrong}"), vec![1]).await;
        assert_eq!(error.unwrap_err().0, 400, "{wrong}");
    }
    let page: AgentList = server.api.get("/agents?limit=18446744073709551615").await.unwrap();
    assert_eq!(page.agents.len(), 2);
    let page: AgentList = server.api.get("/agents?limit=0").await.unwrap();
    assert_eq!(page.agents.len(), 1);
    for body in [
        RevokeRequest { reason: "r".repeat(2_000), ..Default::default() },
        RevokeRequest { certificate_serials: vec!["0".repeat(41)], ..Default::default() },
        RevokeRequest { certificate_serials: vec!["../x".into()], ..Default::default() },
    ] {
        let error = server.api.post::<RevokeReply>("/agents/revoke", &body).await.unwrap_err();
        assert_eq!(error.0, 400, "{}", error.1);
    }
    let id = agents[0].id.as_str();
    let misspelt = format!("{{\"agent_ids\":[\"{id}\"],\"reasn\":\"x\"}}");
    let path = format!("{base}/agents/revoke");
    let (status, _, _) = server.api.raw("POST", &path, misspelt.into_bytes()).await;
    assert_eq!(status, 400, "an option that is misspelt is not dropped");
}
