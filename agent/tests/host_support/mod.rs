//! The other end of an agent's channels: a real TLS server that enrols agents, keeps signal
//! sessions, signs commands and seeds files, one thread per connection.

#![allow(dead_code)] // Each test binary uses its part.

pub mod data;
pub mod files;
pub mod slow_disk;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use ring::rand::SystemRandom;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use skein_filemesh::core::link::Have;
use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, Handshake, info_hash, peer_id};
use skein_filemesh::core::seeder::{Pull, Seeder};
use skein_filemesh::engine::{HashedFile, SeedFile, hash_file};
use skein_wire::command::{Dispatch, Signer};
use skein_wire::frame::{FrameDecoder, encode_bytes, encode_message};
use skein_wire::hello::{ChannelKind, Hello, HelloAck, HelloStatus, VERSION};
use skein_wire::ids::AgentId;
use skein_wire::limits::SIGNAL_MESSAGE_BYTES_MAX;
use skein_wire::signal::v1::{
    AgentMessage, CommandBody, EnrolReply, EnrolRequest, HeartbeatAck, RenewReply, ReportAck,
    ServerMessage, TaskState, TransferState, agent_message, command_body, server_message,
};
use skein_wire::token::JoinToken;

pub const PATIENCE: Duration = Duration::from_secs(30);

pub type Tls = StreamOwned<ServerConnection, TcpStream>;
type Seed = ([u8; 16], Arc<HashedFile>, PathBuf);

/// What connections share.
pub struct Shared {
    ca: rcgen::CertificateParams,
    ca_key: rcgen::KeyPair,
    ca_der: CertificateDer<'static>,
    tls: Mutex<Arc<ServerConfig>>,
    signer: Signer,
    pub token: JoinToken,
    /// Answer of the next HELLO of a signal channel, once.
    pub refuse: Mutex<Option<(HelloStatus, u32)>>,
    /// Life of certificates that are issued.
    pub certificate_life: Mutex<Duration>,
    pub instances: Mutex<Vec<[u8; 16]>>,
    pub sessions: AtomicU32,
    pub received: Mutex<Vec<agent_message::Kind>>,
    pub outputs: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    /// Whether signal sessions read and answer.
    pub silent: AtomicBool,
    seeds: Mutex<Vec<Seed>>,
    /// File channels are cut after about this many bytes, once per entry.
    pub cuts: Mutex<Vec<u64>>,
    outgoing: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    /// The data channel; refused while it is closed.
    pub data: data::Data,
}

pub struct Server {
    pub shared: Arc<Shared>,
    pub port: u16,
}

fn now_ms() -> i64 {
    skein_agent::clock::wall_ms()
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Server {
    pub fn start() -> Server {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let ca_der = ca.clone().self_signed(&ca_key).unwrap().der().clone();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["server.skein".into()]).unwrap();
        let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
        let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();

        let mut roots = RootCertStore::empty();
        roots.add(ca_der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            provider.clone(),
        )
        .allow_unauthenticated()
        .build()
        .unwrap();
        let tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![leaf, ca_der.clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let pkcs8 = ring::signature::Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let ca_sha256 = skein_agent::identity::fingerprint(&ca_der);
        let shared = Arc::new(Shared {
            ca,
            ca_key,
            ca_der,
            tls: Mutex::new(Arc::new(tls)),
            signer: Signer::from_pkcs8(1, pkcs8.as_ref()).unwrap(),
            token: JoinToken { id: [1; 8], secret: [2; 16], ca_sha256 },
            refuse: Mutex::default(),
            certificate_life: Mutex::new(Duration::from_secs(30 * 24 * 3600)),
            instances: Mutex::default(),
            sessions: AtomicU32::new(0),
            received: Mutex::default(),
            outputs: Mutex::default(),
            silent: AtomicBool::new(false),
            seeds: Mutex::default(),
            cuts: Mutex::default(),
            outgoing: Mutex::default(),
            data: data::Data::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = accepted.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Server { shared, port }
    }

    /// Enrols an agent with the real binary; answers its id.
    pub fn enrol(&self, home: &Path) -> String {
        let output = self.enrol_with(home, &self.shared.token.to_string());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("agent-id: ")).unwrap().to_owned()
    }

    pub fn enrol_with(&self, home: &Path, token: &str) -> std::process::Output {
        let port = self.port.to_string();
        Command::new(env!("CARGO_BIN_EXE_skein-agent"))
            .args(["enrol", "--server", &format!("127.0.0.1:{port}"), "--token", token])
            .args(["--data-port", &port, "--file-port", &port, "--metrics", "127.0.0.1:0"])
            .args(["--label", "role=web", "--region", "r1", "--home"])
            .arg(home)
            .output()
            .unwrap()
    }

    pub fn send(&self, message: server_message::Kind) {
        let mut bytes = Vec::new();
        let message = ServerMessage { kind: Some(message) };
        encode_message(&message, SIGNAL_MESSAGE_BYTES_MAX, &mut bytes).unwrap();
        self.send_bytes(bytes);
    }

    pub fn send_bytes(&self, bytes: Vec<u8>) {
        wait_until("a session is up", || {
            let outgoing = self.shared.outgoing.lock().unwrap();
            outgoing.as_ref().is_some_and(|sender| sender.send(bytes.clone()).is_ok())
        });
    }

    pub fn dispatch(&self, agent: &str, kind: command_body::Kind, not_after_ms: i64) -> Dispatch {
        let mut command_id = [0; 16];
        skein_agent::clock::random(&mut command_id);
        let body = CommandBody { command_id: command_id.to_vec().into(), kind: Some(kind) };
        let agents = [AgentId::parse(agent).unwrap()];
        let random = SystemRandom::new();
        self.shared.signer.dispatch(&body, not_after_ms, &agents, &random).unwrap()
    }

    /// Signs and sends; answers the frame, for replays.
    pub fn command(&self, agent: &str, kind: command_body::Kind) -> Vec<u8> {
        let dispatch = self.dispatch(agent, kind, now_ms() + 60_000);
        let mut bytes = Vec::new();
        let parts = [&dispatch.common[..], &dispatch.extras[0]];
        encode_bytes(&parts, SIGNAL_MESSAGE_BYTES_MAX, &mut bytes).unwrap();
        self.send_bytes(bytes.clone());
        bytes
    }

    /// Hashes `path` and serves it as `transfer_id`.
    pub fn seed(&self, transfer_id: [u8; 16], path: &Path) -> Arc<HashedFile> {
        let leaves = path.with_extension("leaves");
        let hashed =
            hash_file(path, None, &leaves, |_| std::ops::ControlFlow::Continue(())).unwrap();
        let hashed = Arc::new(hashed);
        let seed = (transfer_id, hashed.clone(), path.to_owned());
        self.shared.seeds.lock().unwrap().push(seed);
        hashed
    }

    /// The first message, past or to come, that `pick` takes.
    pub fn find<T>(
        &self,
        what: &str,
        mut pick: impl FnMut(&agent_message::Kind) -> Option<T>,
    ) -> T {
        let mut found = None;
        wait_until(what, || {
            found = self.shared.received.lock().unwrap().iter().find_map(&mut pick);
            found.is_some()
        });
        found.unwrap()
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let config = self.tls.lock().unwrap().clone();
        let connection = ServerConnection::new(config).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut tls = StreamOwned::new(connection, stream);
        let mut hello = [0; 32];
        if tls.read_exact(&mut hello).is_err() {
            return;
        }
        let hello = Hello::decode(&hello).unwrap();
        let authenticated = tls.conn.peer_certificates().is_some();
        let (status, retry_after_ms) = match hello.kind {
            ChannelKind::Enrol => (HelloStatus::Ok, 0),
            _ if !authenticated => (HelloStatus::Unauthorised, 0),
            ChannelKind::Data if self.data.is_open() => (HelloStatus::Ok, 0),
            ChannelKind::Data => (HelloStatus::RetryLater, self.data.retry_ms()),
            ChannelKind::Signal => {
                self.instances.lock().unwrap().push(hello.instance.0);
                self.refuse.lock().unwrap().take().unwrap_or((HelloStatus::Ok, 0))
            }
            ChannelKind::File => (HelloStatus::Ok, 0),
        };
        let ack = HelloAck {
            version: if status == HelloStatus::Ok { VERSION } else { 0 },
            status,
            retry_after_ms,
            session_id: 1,
            server_time_ms: now_ms() as u64,
        };
        if tls.write_all(&ack.encode()).is_err() || status != HelloStatus::Ok {
            return;
        }
        match hello.kind {
            ChannelKind::Enrol => self.enrol(tls),
            ChannelKind::Signal => self.signal(tls),
            ChannelKind::File => self.file(tls),
            ChannelKind::Data => self.data.serve(tls),
        }
    }

    fn issue(&self, csr_der: &[u8], agent_id: &str) -> Vec<bytes::Bytes> {
        let mut csr =
            rcgen::CertificateSigningRequestParams::from_der(&csr_der.to_vec().into()).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.agent.skein".into()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, agent_id);
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        let now = std::time::SystemTime::now();
        let life = *self.certificate_life.lock().unwrap();
        // Half of it is over already when the life is short.
        params.not_before = (now - Duration::from_secs(3600)).into();
        params.not_after = (now + life).into();
        csr.params = params;
        let issuer = rcgen::Issuer::from_params(&self.ca, &self.ca_key);
        let leaf = csr.signed_by(&issuer).unwrap();
        vec![leaf.der().to_vec().into(), self.ca_der.to_vec().into()]
    }

    fn enrol(&self, mut tls: Tls) {
        let decoder = FrameDecoder::new(16 * 1024);
        let mut buffer = Vec::new();
        let request: EnrolRequest = loop {
            let mut chunk = [0; 4096];
            let Ok(length) = tls.read(&mut chunk) else { return };
            buffer.extend_from_slice(&chunk[..length]);
            if let Some((request, _)) = decoder.next_message(&buffer).unwrap() {
                break request;
            }
        };
        let reply = if request.token_secret.as_ref() == self.token.secret {
            let agent_id = match request.agent_id.as_str() {
                "" => "0:127.0.0.1",
                wished => wished,
            };
            EnrolReply {
                agent_id: agent_id.into(),
                certificate_chain_der: self.issue(&request.csr_der, agent_id),
                trusted_ca_der: vec![self.ca_der.to_vec().into()],
                command_keys: vec![self.signer.public()],
                ..EnrolReply::default()
            }
        } else {
            EnrolReply { error: "wrong token".into(), ..EnrolReply::default() }
        };
        let mut bytes = Vec::new();
        encode_message(&reply, SIGNAL_MESSAGE_BYTES_MAX, &mut bytes).unwrap();
        let _ = tls.write_all(&bytes);
        tls.conn.send_close_notify();
        let _ = tls.flush();
    }

    fn signal(&self, mut tls: Tls) {
        let (sender, outgoing) = mpsc::channel::<Vec<u8>>();
        *self.outgoing.lock().unwrap() = Some(sender);
        self.sessions.fetch_add(1, Ordering::SeqCst);
        tls.sock.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let decoder = FrameDecoder::new(SIGNAL_MESSAGE_BYTES_MAX);
        let (mut buffer, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            if self.silent.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            while let Ok(bytes) = outgoing.try_recv() {
                if tls.write_all(&bytes).is_err() {
                    return;
                }
            }
            match tls.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => buffer.extend_from_slice(&chunk[..length]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
            while let Some((message, used)) = decoder.next_message::<AgentMessage>(&buffer).unwrap()
            {
                buffer.drain(..used);
                let answer = self.take(message.kind.unwrap());
                if let Some(kind) = answer {
                    let mut bytes = Vec::new();
                    let message = ServerMessage { kind: Some(kind) };
                    encode_message(&message, SIGNAL_MESSAGE_BYTES_MAX, &mut bytes).unwrap();
                    if tls.write_all(&bytes).is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn take(&self, kind: agent_message::Kind) -> Option<server_message::Kind> {
        let ack = match &kind {
            agent_message::Kind::Heartbeat(beat) => {
                Some(server_message::Kind::HeartbeatAck(HeartbeatAck {
                    sequence: beat.sequence,
                    server_time_ms: now_ms(),
                    interval_ms: 0,
                }))
            }
            agent_message::Kind::TaskOutput(chunk) => {
                let mut outputs = self.outputs.lock().unwrap();
                let output = outputs.entry(chunk.task_id.to_vec()).or_default();
                if chunk.offset == output.len() as u64 {
                    output.extend_from_slice(&chunk.data);
                }
                Some(server_message::Kind::ReportAck(ReportAck {
                    task_id: chunk.task_id.clone(),
                    output_offset: output.len() as u64,
                    ..ReportAck::default()
                }))
            }
            agent_message::Kind::TaskUpdate(update)
                if update.state >= TaskState::Succeeded as i32 =>
            {
                Some(server_message::Kind::ReportAck(ReportAck {
                    task_id: update.task_id.clone(),
                    final_state: true,
                    ..ReportAck::default()
                }))
            }
            agent_message::Kind::TransferUpdate(update)
                if update.state >= TransferState::Done as i32
                    && update.state() != TransferState::Paused =>
            {
                Some(server_message::Kind::ReportAck(ReportAck {
                    transfer_id: update.transfer_id.clone(),
                    ..ReportAck::default()
                }))
            }
            agent_message::Kind::Renew(request) => {
                *self.certificate_life.lock().unwrap() = Duration::from_secs(30 * 24 * 3600);
                Some(server_message::Kind::Renew(RenewReply {
                    certificate_chain_der: self.issue(&request.csr_der, "0:127.0.0.1"),
                    ..RenewReply::default()
                }))
            }
            _ => None,
        };
        self.received.lock().unwrap().push(kind);
        ack
    }

    /// Seeds to an agent, as the data process does.
    fn file(&self, mut tls: Tls) {
        let mut buffer = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        while buffer.len() < HANDSHAKE_BYTES {
            let Ok(length @ 1..) = tls.read(&mut chunk) else { return };
            buffer.extend_from_slice(&chunk[..length]);
        }
        let theirs = Handshake::decode(&buffer).unwrap().unwrap();
        buffer.drain(..HANDSHAKE_BYTES);
        let seeds = self.seeds.lock().unwrap();
        let seed = seeds
            .iter()
            .find(|(id, hashed, _)| info_hash(id, &hashed.manifest.root) == theirs.info_hash);
        let Some((_, hashed, path)) = seed.cloned() else { return };
        drop(seeds);
        let file = SeedFile::open(&path, &hashed.stamp).unwrap();
        let ours = Handshake::new(theirs.info_hash, peer_id("server"));
        let tree = hashed.leaves.tree().clone();
        let mut seeder = Seeder::accept(tree, Have::All, ours, &theirs, 0).unwrap();
        let mut left = self.cuts.lock().unwrap().pop().unwrap_or(u64::MAX);
        loop {
            let used = seeder.receive(&buffer, 0).unwrap();
            buffer.drain(..used);
            let mut out = Vec::new();
            while out.len() < 256 * 1024 {
                match seeder.next(512 * 1024 - out.len(), &mut out, 0) {
                    Some(Pull::Data { offset, len }) => {
                        file.append_at(offset, len as usize, &mut out).unwrap();
                    }
                    Some(Pull::Leaves { first, count }) => {
                        let mut leaves = Vec::new();
                        hashed.leaves.append_leaves(first, count, &mut leaves).unwrap();
                        seeder.leaves(Some(&leaves), &mut out, 0);
                    }
                    None => break,
                }
            }
            if tls.write_all(&out).is_err() || out.len() as u64 > left {
                return;
            }
            left -= out.len() as u64;
            if !seeder.has_output() {
                match tls.read(&mut chunk) {
                    Ok(length @ 1..) => buffer.extend_from_slice(&chunk[..length]),
                    _ => return,
                }
            }
        }
    }
}

/// A running agent; killed at the end.
pub struct Agent {
    pub child: Child,
}

impl Agent {
    pub fn start(home: &Path) -> Agent {
        let child = Command::new(env!("CARGO_BIN_EXE_skein-agent"))
            .args(["run", "--home"])
            .arg(home)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Agent { child }
    }

    pub fn worker_pid(&self) -> Option<u32> {
        let supervisor = self.child.id();
        let children = skein_agent::sys::procfs::all();
        let child = children.iter().find(|process| process.parent == supervisor)?;
        (child.state != 'Z').then_some(child.pid)
    }

    pub fn kill_worker(&self) {
        let pid = self.worker_pid().unwrap();
        skein_agent::sys::process::kill(pid, skein_agent::sys::process::SIGKILL).unwrap();
        wait_until("the worker is gone", || self.worker_pid() != Some(pid));
    }

    pub fn terminate(mut self) -> std::process::ExitStatus {
        let signal = skein_agent::sys::process::SIGTERM;
        skein_agent::sys::process::kill(self.child.id(), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let signal = skein_agent::sys::process::SIGTERM;
            let _ = skein_agent::sys::process::kill(self.child.id(), signal);
            let _ = self.child.wait();
        }
    }
}
