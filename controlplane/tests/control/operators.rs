//! The API itself: who may use it, and what it does to streams, routes, labels, taps and lanes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;

use skein_controlplane::Control;
use skein_controlplane::api::ApiTls;
use skein_controlplane::api::types::*;
use skein_wire::fleet::v1::from_data::Kind as From;
use skein_wire::fleet::v1::{LaneReport, LaneState, TapRecord, TapRecords, stream};

use crate::harness::{TestServer, config, fleet_of, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_bearers_of_an_admin_token_pass() {
    let server = TestServer::start().await;
    let mode = std::fs::metadata(server.dir.join("control/admin.token")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    for wrong in ["", "x", "skadm1.0000000000000000.00"] {
        let error = server.api.with_token(wrong).get::<Status>("/status").await.unwrap_err();
        assert_eq!(error.0, 401, "{}", error.1);
        let (status, _, _) = server.api.with_token(wrong).raw("GET", "/healthz", vec![]).await;
        assert_eq!(status, 200);
    }
    let made: AdminTokenCreated =
        server.api.post("/admin-tokens", &AdminTokenRequest::default()).await.unwrap();
    let second = server.api.with_token(&made.token);
    let tokens: AdminTokenList = second.get("/admin-tokens").await.unwrap();
    assert_eq!(tokens.tokens.len(), 2);
    second.delete(&format!("/admin-tokens/{}", tokens.tokens[0].id)).await.unwrap();
    assert_eq!(server.api.get::<Status>("/status").await.unwrap_err().0, 401);
    let error = second.delete(&format!("/admin-tokens/{}", made.id)).await.unwrap_err();
    assert!(error.1.contains("last admin token"), "{}", error.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn off_loopback_the_api_needs_tls() {
    let folder = tempfile::tempdir().unwrap();
    let mut open = config(folder.path());
    open.api = "0.0.0.0:0".parse().unwrap();
    let error = Control::start(open).await.err().expect("is refused").to_string();
    assert!(error.contains("api_tls"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_a_certificate_of_the_servers_authority_answers() {
    let folder = tempfile::tempdir().unwrap();
    let mut open = config(folder.path());
    open.api = "0.0.0.0:0".parse().unwrap();
    open.api_tls = Some(ApiTls::default());
    let control = Control::start(open).await.unwrap();
    let pem = std::fs::read(folder.path().join("data/ca.crt")).unwrap();
    let port = control.api().port();
    let text = tokio::task::spawn_blocking(move || {
        use rustls_pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "127.0.0.1".try_into().unwrap();
        let session = rustls::ClientConnection::new(client.into(), name).unwrap();
        let tcp = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut tls = rustls::StreamOwned::new(session, tcp);
        tls.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        let _ = tls.read_to_string(&mut text);
        text
    });
    let text = text.await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_have_a_status_a_word_and_a_remedy() {
    let server = TestServer::start().await;
    let table: [(&str, &str, &str, u16, &str); 9] = [
        ("GET", "/nothing", "", 404, "there is no"),
        ("POST", "/tasks", "{", 400, "JSON"),
        ("POST", "/tasks", r#"{"targets":"all","script":"x","tiemout_ms":5}"#, 400, "tiemout_ms"),
        ("POST", "/tasks", r#"{"targets":"all","script":"x"}"#, 400, "no agent matches"),
        ("POST", "/tasks", r#"{"targets":"a,,b","script":"x"}"#, 400, "extra"),
        ("GET", "/tasks/zz", "", 400, "32 hexadecimal"),
        ("GET", "/agents?selector=cloud%3Dx", "", 400, "not a number"),
        ("GET", "/agents?limit=x", "", 400, "limit"),
        ("DELETE", "/streams/none", "", 404, "skein stream ls"),
    ];
    for (method, path, body, status, hint) in table {
        let path = format!("{BASE_PATH}{path}");
        let (got, reply, _) = server.api.raw(method, &path, body.as_bytes().to_vec()).await;
        let reply = String::from_utf8(reply).unwrap();
        assert_eq!(got, status, "{method} {path}: {reply}");
        assert!(reply.contains(hint), "{method} {path}: {reply}");
    }
    // More than the sockets hold: the answer must wait for a client that is still writing.
    let long = vec![b' '; 12 * 1024 * 1024];
    let (status, reply, _) = server.api.raw("POST", &format!("{BASE_PATH}/tasks"), long).await;
    let reply = String::from_utf8(reply).unwrap();
    assert!(status == 413 && reply.contains("1024 KiB"), "{status} {reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_routes_reach_the_data_process_while_it_runs() {
    let server = TestServer::start().await;
    let data = server.data().await;
    until("the first table comes", || data.seen().tables.pop()).await;
    let request = StreamRequest { name: "logs".into(), ..Default::default() };
    let made: Stream = server.api.post("/streams", &request).await.unwrap();
    assert!(made.directory.ends_with("/data/sinks/logs"), "{}", made.directory);
    let error = server.api.post::<Stream>("/streams", &request).await.unwrap_err();
    assert_eq!(error.0, 409);
    for outside in ["/etc", "relative", "/tmp/../etc"] {
        let directory = Some(outside.to_owned());
        let bad = StreamRequest { name: "x".into(), directory, ..Default::default() };
        let error = server.api.post::<Stream>("/streams", &bad).await.unwrap_err();
        assert_eq!(error.0, 400, "{outside}: {}", error.1);
    }
    let route = RouteRequest { stream: "logs".into(), ..Default::default() };
    let first: Route = server.api.post("/routes", &route).await.unwrap();
    assert_eq!((first.data_id, first.name.as_str()), (1_500_000, "1500000-logs"));
    let second: Route = server.api.post("/routes", &route).await.unwrap();
    assert_eq!(second.data_id, 1_500_001);
    let named = RouteRequest { stream: "logs".into(), data_id: Some(1001), name: None };
    server.api.post::<Route>("/routes", &named).await.unwrap();
    assert_eq!(server.api.post::<Route>("/routes", &named).await.unwrap_err().0, 409);
    assert_eq!(server.api.delete("/streams/logs").await.unwrap_err().0, 409, "is in use");
    let changed = StreamRequest { format: Some("tagged".into()), ..Default::default() };
    let body = serde_json::to_vec(&changed).unwrap();
    let changed: Stream = server.api.put("/streams/logs", body).await.unwrap();
    assert_eq!((changed.stream_id, changed.format.as_str()), (made.stream_id, "tagged"));
    let table = until("the whole table comes", || {
        data.seen().tables.last().filter(|table| table.routes.len() == 3).cloned()
    })
    .await;
    let revisions: Vec<u64> = data.seen().tables.iter().map(|table| table.revision).collect();
    assert!(revisions.is_sorted(), "{revisions:?}");
    assert!(matches!(&table.streams[0].sink, Some(stream::Sink::File(_))));
    let late = server.data().await;
    let at_once = until("a newcomer is told", || late.seen().tables.pop()).await;
    let Some(stream::Sink::File(file)) = &at_once.streams[0].sink else { panic!() };
    assert_eq!(file.format, "tagged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_select_and_pings_come_back() {
    let (server, _data, agents) = fleet_of(&["a", "b", "c"]).await;
    let labels = LabelsRequest {
        selector: "host=a|host=b".into(),
        set: [("role".to_owned(), "db".to_owned())].into(),
        ..Default::default()
    };
    let reply: LabelsReply = server.api.post("/agents/labels", &labels).await.unwrap();
    assert_eq!((reply.matched, reply.changed), (2, 2));
    let list: AgentList = server.api.get("/agents?selector=role%3Dweb").await.unwrap();
    assert_eq!((list.total, list.agents[0].hostname.as_str()), (1, "c"), "the operator's rules");
    let page: AgentList = server.api.get("/agents?limit=2").await.unwrap();
    assert_eq!((page.agents.len(), page.total), (2, 3));
    let path = format!("/agents?limit=2&after={}", page.next.unwrap());
    let rest: AgentList = server.api.get(&path).await.unwrap();
    assert_eq!((rest.agents.len(), rest.next), (1, None));
    let ping = PingRequest { selector: "all".into(), ..Default::default() };
    let reply: PingReply = server.api.post("/agents/ping", &ping).await.unwrap();
    assert_eq!((reply.matched, reply.answered), (3, 3));
    server.api.delete(&format!("/agents/{}", agents[0].id)).await.unwrap();
    let list: AgentList = server.api.get("/agents").await.unwrap();
    assert_eq!(list.total, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_flows_while_it_is_read_and_lanes_are_seen() {
    let (server, data, agents) = fleet_of(&["a"]).await;
    let agent_id = agents[0].id.to_string();
    let held = LaneState {
        agent_id: agent_id.clone(),
        data_id: 7,
        held: "unknown data id".into(),
        ..LaneState::default()
    };
    let flowing = LaneState { data_id: 8, held: String::new(), ..held.clone() };
    data.send(From::Lanes(LaneReport { lanes: vec![held, flowing] }));
    let address = server.control.api();
    let token = std::fs::read_to_string(server.dir.join("control/admin.token")).unwrap();
    let (line_out, mut lines) = tokio::sync::mpsc::channel(10);
    let reader = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head = format!(
            "GET {BASE_PATH}/tap?data_id=7&contains=err HTTP/1.1\r\nhost: x\r\n\
             authorization: Bearer {}\r\n\r\n",
            token.trim()
        );
        stream.write_all(head.as_bytes()).unwrap();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            if line.starts_with('{') {
                line_out.blocking_send(line).unwrap();
                return;
            }
        }
    });
    let tap = until("the tap begins", || data.seen().taps.values().next().cloned()).await;
    assert_eq!((tap.data_id, tap.contains.as_str()), (7, "err"));
    let record = TapRecord {
        agent_id,
        data_id: 7,
        value: "an err\u{fe0f}or".into(),
        ..TapRecord::default()
    };
    data.send(From::Tap(TapRecords { tap_id: tap.tap_id, records: vec![record], skipped: 3 }));
    let line: TapLine = serde_json::from_str(&lines.recv().await.unwrap()).unwrap();
    assert_eq!((line.hostname.as_str(), line.skipped), ("a", 3));
    reader.await.unwrap();
    // The reader has gone; with the next record the server notices.
    until("the tap ends with its reader", || {
        data.send(From::Tap(TapRecords { tap_id: tap.tap_id, ..TapRecords::default() }));
        data.seen().taps.is_empty().then_some(())
    })
    .await;
    let lanes: LaneList = server.api.get("/lanes?held=true").await.unwrap();
    assert_eq!((lanes.total, lanes.lanes[0].data_id), (1, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_metrics_tell_what_is_there() {
    let server = TestServer::start().await;
    let (status, _, _) = server.api.raw("GET", "/readyz", vec![]).await;
    assert_eq!(status, 503, "no data process yet");
    let data = server.data().await;
    until("the table comes", || data.seen().tables.pop()).await;
    let (status, _, _) = server.api.raw("GET", "/readyz", vec![]).await;
    assert_eq!(status, 200);
    let status: Status = server.api.get("/status").await.unwrap();
    assert_eq!(status.data_processes.len(), 1);
    let join = status.first_join.expect("at first start");
    assert!(join.command.contains(&join.token) && join.command.contains("--data-port 1"));
    let agent = data.enrol(&join.token.parse().unwrap(), "first").await;
    assert!(!agent.id.as_str().is_empty());
    let (_, text, _) = server.api.raw("GET", "/metrics", vec![]).await;
    let text = String::from_utf8(text).unwrap();
    for name in ["skein_control_store_commits_total", "skein_control_enrolments_total"] {
        assert!(text.contains(name), "{name} is missing");
    }
    let ports = std::fs::read_to_string(server.dir.join("run/control.ports.json")).unwrap();
    assert!(ports.contains(&server.control.api().to_string()));
}
