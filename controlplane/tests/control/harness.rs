//! A control process under test: the real service in this process (or in a child that can be
//! killed), a scripted data process that speaks the real protocol over the real socket, and agents
//! that verify every command as real ones do.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;
use rcgen::{CertificateParams, KeyPair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_controlplane::api::types::*;
use skein_controlplane::{Control, ControlConfig};
use skein_wire::command::Verifier;
use skein_wire::fleet::v1::from_data::Kind as From;
use skein_wire::fleet::v1::to_data::Kind as To;
use skein_wire::fleet::v1::*;
use skein_wire::frame::{FrameDecoder, encode_message};
use skein_wire::ids::AgentId;
use skein_wire::limits::FLEET_MESSAGE_BYTES_MAX;
use skein_wire::signal::v1::agent_message::Kind as Agent;
use skein_wire::signal::v1::*;
use skein_wire::token::JoinToken;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Longest wait for what must come.
pub const WAIT: Duration = Duration::from_secs(15);

/// Waits until a condition holds.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

// ------------------------------------------------------------------------------ the API's client

#[derive(Clone)]
pub struct Api {
    base: String,
    token: String,
}

pub type ApiResult<T> = Result<T, (u16, String)>;

impl Api {
    pub fn new(address: &str, dir: &Path) -> Self {
        let token = std::fs::read_to_string(dir.join("control/admin.token")).expect("a token");
        Self { base: format!("http://{address}"), token: token.trim().to_owned() }
    }

    pub fn with_token(&self, token: &str) -> Self {
        Self { base: self.base.clone(), token: token.to_owned() }
    }

    /// Status and body of any request.
    pub async fn raw(
        &self,
        method: &'static str,
        path: &str,
        body: Vec<u8>,
    ) -> (u16, Vec<u8>, HashMap<String, String>) {
        let (url, token) = (format!("{}{path}", self.base), self.token.clone());
        let request = move || {
            let config = ureq::Agent::config_builder().http_status_as_error(false);
            let config = config.timeout_global(Some(WAIT)).allow_non_standard_methods(true);
            let agent: ureq::Agent = config.build().into();
            let request = ureq::http::Request::builder()
                .method(method)
                .uri(url)
                .header("authorization", format!("Bearer {token}"))
                .header("content-type", "application/json")
                .body(body)
                .expect("a request");
            let mut response = agent.run(request).expect("an answer");
            let headers = response.headers().iter().map(|(name, value)| {
                (name.to_string(), value.to_str().unwrap_or_default().to_owned())
            });
            let headers = headers.collect();
            let status = response.status().as_u16();
            let body = response.body_mut().with_config().limit(1 << 30).read_to_vec();
            (status, body.expect("a body"), headers)
        };
        tokio::task::spawn_blocking(request).await.expect("no panic")
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: Vec<u8>,
    ) -> ApiResult<T> {
        let (status, body, _) = self.raw(method, &format!("{BASE_PATH}{path}"), body).await;
        if status >= 400 {
            let reply: ErrorReply = serde_json::from_slice(&body)
                .unwrap_or_else(|_| panic!("{status}: {}", String::from_utf8_lossy(&body)));
            return Err((status, reply.error.message));
        }
        Ok(serde_json::from_slice(&body).expect("the type that is documented"))
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> ApiResult<T> {
        self.json("GET", path, Vec::new()).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> ApiResult<T> {
        self.json("POST", path, serde_json::to_vec(body).expect("encodes")).await
    }

    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> ApiResult<T> {
        self.json("PUT", path, body).await
    }

    pub async fn delete(&self, path: &str) -> ApiResult<Empty> {
        self.json("DELETE", path, Vec::new()).await
    }

    pub async fn join_token(&self, uses_max: u32) -> JoinToken {
        let request = JoinTokenRequest { uses_max: Some(uses_max), ..Default::default() };
        let made: JoinTokenCreated = self.post("/join-tokens", &request).await.expect("a token");
        made.token.parse().expect("a join token")
    }

    /// A task once all its hosts have ended.
    pub async fn ended_task(&self, id: &str) -> TaskDetail {
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let detail: TaskDetail = self.get(&format!("/tasks/{id}")).await.expect("the task");
            if detail.task.ended_ms.is_some() {
                return detail;
            }
            assert!(tokio::time::Instant::now() < deadline, "it does not end: {detail:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A transfer once all its hosts have ended.
    pub async fn ended_transfer(&self, id: &str) -> TransferDetail {
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let detail: TransferDetail = self.get(&format!("/transfers/{id}")).await.expect("it");
            if detail.transfer.ended_ms.is_some() {
                return detail;
            }
            assert!(tokio::time::Instant::now() < deadline, "it does not end: {detail:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

// ------------------------------------------------------------------------------ the server

pub struct TestServer {
    pub dir: PathBuf,
    pub control: Control,
    pub api: Api,
    _folder: Option<tempfile::TempDir>,
}

pub fn config(dir: &Path) -> ControlConfig {
    let mut config = ControlConfig::new(dir);
    config.api.set_port(0);
    config
}

impl TestServer {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Self::start_in(folder.path()).await;
        server._folder = Some(folder);
        server
    }

    pub async fn start_in(dir: &Path) -> Self {
        Self::start_with(config(dir)).await
    }

    pub async fn start_with(config: ControlConfig) -> Self {
        let (dir, mut attempts) = (config.data_dir.as_path(), 0);
        let control = loop {
            match Control::start(config.clone()).await {
                Ok(control) => break control,
                // The one before still drops its last tasks.
                Err(error) if attempts < 200 && error.to_string().contains("already open") => {
                    attempts += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error:#}"),
            }
        };
        let api = Api::new(&control.api().to_string(), dir);
        Self { dir: dir.to_path_buf(), control, api, _folder: None }
    }

    pub async fn data(&self) -> FakeData {
        FakeData::connect(&self.dir).await
    }
}

// ------------------------------------------------------------------------------ a data process

/// What an agent does with a command that it has verified.
type Script = Box<dyn FnMut(CommandBody) -> Vec<Agent> + Send>;

#[derive(Default)]
pub struct Seen {
    pub tables: Vec<RoutingTable>,
    pub revoked: Option<Revoked>,
    pub seeds: Vec<SeedFile>,
    pub unseeds: Vec<UnseedFile>,
    pub fetches: Vec<FetchFile>,
    pub taps: BTreeMap<u64, TapStart>,
    pub closed: Vec<CloseSession>,
    pub acks: Vec<(String, ReportAck)>,
    pub replies: Vec<(String, RenewReply)>,
    pub commands: Vec<(String, CommandBody)>,
    enrolled: HashMap<u64, EnrolReply>,
    agents: HashMap<String, (Verifier, Script)>,
}

#[derive(Clone)]
pub struct FakeData {
    out: mpsc::UnboundedSender<From>,
    seen: Arc<Mutex<Seen>>,
}

/// An agent's own side of its identity.
pub struct TestAgent {
    pub key: KeyPair,
    pub id: AgentId,
    pub reply: EnrolReply,
}

pub fn csr(key: &KeyPair) -> bytes::Bytes {
    let request = CertificateParams::default().serialize_request(key).expect("a request");
    bytes::Bytes::copy_from_slice(request.der())
}

/// A push to everybody.
pub fn push(source: TransferSource) -> TransferRequest {
    let request = TransferRequest::new(source, "all", "/opt/app");
    TransferRequest { create_directory: true, ..request }
}

pub fn facts(hostname: &str) -> HostFacts {
    HostFacts {
        hostname: hostname.into(),
        ips: vec!["10.0.0.1".into()],
        mac: "52540025157e".into(),
        labels: [("role".to_owned(), "web".to_owned())].into(),
        region: "east".into(),
        ..HostFacts::default()
    }
}

impl FakeData {
    pub async fn connect(dir: &Path) -> Self {
        let mut attempts = 0;
        let stream = loop {
            match UnixStream::connect(dir.join("run/fleet.sock")).await {
                Ok(stream) => break stream,
                Err(error) => assert!(attempts < 500, "{error}"),
            }
            attempts += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let (mut reader, mut writer) = stream.into_split();
        let (out, mut queue) = mpsc::unbounded_channel::<From>();
        let this = Self { out, seen: Arc::default() };
        tokio::spawn(async move {
            while let Some(kind) = queue.recv().await {
                let mut frame = Vec::new();
                let message = FromData { kind: Some(kind) };
                encode_message(&message, FLEET_MESSAGE_BYTES_MAX, &mut frame).expect("fits");
                if writer.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
        let reading = this.clone();
        tokio::spawn(async move {
            let decoder = FrameDecoder::new(FLEET_MESSAGE_BYTES_MAX);
            let mut buffer = Vec::new();
            loop {
                while let Some((message, consumed)) =
                    decoder.next_message::<ToData>(&buffer).expect("a frame")
                {
                    buffer.drain(..consumed);
                    message.kind.into_iter().for_each(|kind| reading.take(kind));
                }
                if reader.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        });
        this.send(From::Register(Register {
            node_id: "node-1".into(),
            signal_addr: "0.0.0.0:28668".into(),
            data_addr: "127.0.0.1:1".into(),
            file_addr: "127.0.0.1:2".into(),
            ..Register::default()
        }));
        this
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic")
    }

    pub fn send(&self, kind: From) {
        // A killed control process reads nothing; tests notice what is missing.
        let _ = self.out.send(kind);
    }

    pub fn snapshot_end(&self) {
        self.send(From::SnapshotEnd(SnapshotEnd {}));
    }

    fn take(&self, kind: To) {
        let mut seen = self.seen();
        match kind {
            To::Welcome(_) => {}
            To::Table(table) => seen.tables.push(table),
            To::Revoked(revoked) => seen.revoked = Some(revoked),
            To::Seed(seed) => seen.seeds.push(seed),
            To::Unseed(unseed) => seen.unseeds.push(unseed),
            To::Fetch(fetch) => seen.fetches.push(fetch),
            To::TapStart(tap) => drop(seen.taps.insert(tap.tap_id, tap)),
            To::TapStop(tap) => drop(seen.taps.remove(&tap.tap_id)),
            To::Close(close) => seen.closed.push(close),
            To::Enrol(answer) => {
                let reply = EnrolReply::decode(answer.reply).expect("a reply");
                seen.enrolled.insert(answer.request_id, reply);
            }
            To::ToAgents(message) => {
                drop(seen);
                self.deliver(message);
            }
        }
    }

    fn deliver(&self, message: ToAgents) {
        let mut missing = Vec::new();
        for target in message.targets {
            let bytes = [&message.common[..], &target.extra].concat();
            let decoded = ServerMessage::decode(&bytes[..]).expect("common + extra is a message");
            let mut seen = self.seen();
            let seen = &mut *seen;
            let Some((verifier, script)) = seen.agents.get_mut(&target.agent_id) else {
                missing.push(target.agent_id);
                continue;
            };
            match decoded.kind.expect("a kind") {
                server_message::Kind::Command(command) => {
                    let agent = AgentId::parse(&target.agent_id).expect("an id");
                    let now_ms = std::time::SystemTime::now();
                    let now_ms = now_ms.duration_since(std::time::UNIX_EPOCH).expect("a clock");
                    let now_ms = now_ms.as_millis() as i64;
                    let body = verifier.verify(&agent, &command, now_ms).expect("is for it");
                    seen.commands.push((target.agent_id.clone(), body.clone()));
                    let answers = script(body);
                    answers.into_iter().for_each(|answer| self.say(&target.agent_id, answer));
                }
                server_message::Kind::ReportAck(ack) => seen.acks.push((target.agent_id, ack)),
                server_message::Kind::Renew(reply) => seen.replies.push((target.agent_id, reply)),
                server_message::Kind::Ping(ping) => {
                    let echo = Echo { nonce: ping.nonce, payload: ping.payload };
                    self.say(&target.agent_id, Agent::Echo(echo));
                }
                // Hints for swarms, which these agents do not have.
                server_message::Kind::TransferPlan(_) => {}
                other => panic!("{other:?}"),
            }
        }
        if !missing.is_empty() {
            let dispatch_id = message.dispatch_id;
            self.send(From::Undeliverable(Undeliverable { dispatch_id, agent_ids: missing }));
        }
    }

    /// A message of an agent.
    pub fn say(&self, agent: &str, kind: Agent) {
        let message = AgentMessage { kind: Some(kind) }.encode_to_vec().into();
        self.send(From::FromAgent(FromAgent { agent_id: agent.into(), session_id: 1, message }));
    }

    /// Sends an enrolment request and waits for its answer.
    pub async fn try_enrol(&self, request: EnrolRequest) -> EnrolReply {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let request_id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let forward = EnrolForward {
            request_id,
            request: request.encode_to_vec().into(),
            remote_addr: "192.0.2.1:5".into(),
        };
        self.send(From::Enrol(forward));
        until("the enrolment is answered", || self.seen().enrolled.remove(&request_id)).await
    }

    pub async fn enrol(&self, token: &JoinToken, hostname: &str) -> TestAgent {
        let key = KeyPair::generate().expect("a key");
        let reply = self.try_enrol(request(token, &key, hostname)).await;
        assert_eq!(reply.error, "");
        let id = AgentId::parse(&reply.agent_id).expect("an id");
        TestAgent { key, id, reply }
    }

    /// The agent connects and will obey by its script.
    pub fn up(
        &self,
        agent: &TestAgent,
        script: impl FnMut(CommandBody) -> Vec<Agent> + Send + 'static,
    ) {
        let verifier = Verifier::new(agent.reply.command_keys.clone());
        let id = agent.id.to_string();
        self.seen().agents.insert(id.clone(), (verifier, Box::new(script)));
        self.send(From::SessionUp(SessionUp {
            agent_id: id,
            instance: vec![1; 16].into(),
            session_id: 1,
            remote_addr: "192.0.2.1:5".into(),
            connected_ms: 1,
            certificate_serial: String::new(),
        }));
    }

    pub fn down(&self, agent: &TestAgent, reason: &str) {
        let agent_id = agent.id.to_string();
        self.seen().agents.remove(&agent_id);
        let reason = reason.into();
        self.send(From::SessionDown(SessionDown { agent_id, session_id: 1, reason }));
    }
}

pub fn request(token: &JoinToken, key: &KeyPair, hostname: &str) -> EnrolRequest {
    EnrolRequest {
        token_id: token.id_text(),
        token_secret: bytes::Bytes::copy_from_slice(&token.secret),
        csr_der: csr(key),
        agent_id: String::new(),
        facts: Some(facts(hostname)),
    }
}

/// A server with a data process and online agents that record commands and say nothing.
pub async fn fleet_of(names: &[&str]) -> (TestServer, FakeData, Vec<TestAgent>) {
    let server = TestServer::start().await;
    let (data, agents) = fleet_on(&server, names).await;
    (server, data, agents)
}

/// See [`fleet_of`], on a server that runs.
pub async fn fleet_on(server: &TestServer, names: &[&str]) -> (FakeData, Vec<TestAgent>) {
    let data = server.data().await;
    let token = server.api.join_token(0).await;
    let mut agents = Vec::new();
    for name in names {
        let agent = data.enrol(&token, name).await;
        data.up(&agent, |_| Vec::new());
        agents.push(agent);
    }
    data.snapshot_end();
    online(&server.api, names.len() as u64).await;
    (data, agents)
}

/// Waits until so many agents are online.
pub async fn online(api: &Api, count: u64) {
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        let status: Status = api.get("/status").await.expect("a status");
        if status.agents.online == count {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{:?}", status.agents);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
