//! A data process with its certificate authority, a control process's end of the fleet link, and
//! agents that speak TLS over loopback.
// Each test file uses its part, and a test fails by unwrapping.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use skein_dataplane::config::DataConfig;
use skein_dataplane::process::DataProcess;
use skein_wire::fleet::v1::{FromData, ToData, from_data, to_data};
use skein_wire::frame::{self, FrameDecoder};
use skein_wire::hello::{ChannelKind, Hello, HelloAck};
use skein_wire::ids::Instance;
use skein_wire::limits::{FLEET_MESSAGE_BYTES_MAX, SIGNAL_MESSAGE_BYTES_MAX};
use skein_wire::prost::Message;
use skein_wire::signal::v1::{AgentMessage, ServerMessage, agent_message, server_message};

/// Nothing here takes longer unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn certify(&self, name: &str, dns: &str, serial: u64) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.serial_number = Some(serial.into());
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    pub fn agent(&self, name: &str, serial: u64) -> Identity {
        let (certificate, key) = self.certify(name, "a.agent.skein", serial);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone()], key)
    }

    /// An agent's certificate after `change` to what is otherwise right.
    pub fn agent_with(&self, name: &str, change: fn(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.agent.skein".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone()], key)
    }

    fn write(&self, dir: &Path) {
        let (certificate, key) = self.certify("server", "server.skein", 1);
        std::fs::create_dir_all(dir).unwrap();
        let chain = certificate.pem() + &self.issuer.pem();
        std::fs::write(dir.join("server.crt"), chain).unwrap();
        std::fs::write(dir.join("server.key"), key.serialize_pem()).unwrap();
        std::fs::write(dir.join("ca.crt"), self.issuer.pem()).unwrap();
    }

    fn client_config(&self, identity: Option<Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        }
    }
}

/// A certificate that nobody but its owner vouches for.
pub fn self_signed(name: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["a.agent.skein".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (vec![certificate.der().clone()], key)
}

/// A data process, its folder, and the listener of its control process.
pub struct Server {
    pub process: DataProcess,
    pub pki: Pki,
    pub dir: PathBuf,
    fleet: UnixListener,
    _temp: tempfile::TempDir,
}

pub fn config(dir: &Path) -> DataConfig {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = DataConfig::new(dir.to_owned());
    config.signal_listen = any;
    config.data_listen = any;
    config.file_listen = any;
    config.metrics_listen = None;
    config.shards = 2;
    config.router_workers = 2;
    config.disk = skein_dataplane::router::DiskChoice::Plain;
    config.sessions_max = 1_000;
    config
}

impl Server {
    /// Ends the process and starts another on the same folder; control is away meanwhile.
    pub fn restart(self) -> Self {
        let Self { process, pki, dir, fleet, _temp } = self;
        process.stop().unwrap();
        let process = DataProcess::start(config(&dir)).unwrap();
        Self { process, pki, dir, fleet, _temp }
    }

    pub fn start() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().to_owned();
        let pki = Pki::new();
        pki.write(&dir.join("data"));
        std::fs::create_dir_all(dir.join("run")).unwrap();
        let fleet = UnixListener::bind(dir.join("run/fleet.sock")).unwrap();
        let process = DataProcess::start(config(&dir)).unwrap();
        Self { process, pki, dir, fleet, _temp: temp }
    }

    /// The next link of the data process.
    pub fn control(&self) -> Control {
        let (stream, _) = self.fleet.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Control { stream, buffer: Vec::new() }
    }

    /// A control end after registration, with the heartbeat that tests want.
    pub fn registered(&self) -> Control {
        let mut control = self.control();
        control.expect(|kind| matches!(kind, from_data::Kind::SnapshotEnd(_)));
        control
    }

    pub fn port(&self, kind: ChannelKind) -> SocketAddr {
        let ports = self.process.ports();
        match kind {
            ChannelKind::Enrol | ChannelKind::Signal => ports.signal,
            ChannelKind::Data => ports.data,
            ChannelKind::File => ports.file,
        }
    }

    pub fn connect(&self, kind: ChannelKind, identity: Option<Identity>) -> Client {
        let config = self.pki.client_config(identity);
        let name = ServerName::try_from("server.skein").unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = TcpStream::connect(self.port(kind)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: StreamOwned::new(tls, stream), buffer: Vec::new() }
    }

    /// A channel of this agent after HELLO, with the answer to it.
    pub fn open(
        &self,
        kind: ChannelKind,
        identity: Option<Identity>,
        instance: u8,
    ) -> (Client, HelloAck) {
        let mut client = self.connect(kind, identity);
        client.send(&Hello::new(kind, Instance([instance; 16])).encode());
        let ack = client.exactly(32);
        let ack = HelloAck::decode(ack[..].try_into().unwrap()).unwrap();
        (client, ack)
    }
}

/// The control process's end of the link.
pub struct Control {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Control {
    pub fn send(&mut self, kind: to_data::Kind) {
        let mut out = Vec::new();
        let message = ToData { kind: Some(kind) };
        frame::encode_message(&message, FLEET_MESSAGE_BYTES_MAX, &mut out).unwrap();
        self.stream.write_all(&out).unwrap();
    }

    pub fn next(&mut self) -> from_data::Kind {
        let decoder = FrameDecoder::new(FLEET_MESSAGE_BYTES_MAX);
        loop {
            if let Some((message, used)) = decoder.next_message::<FromData>(&self.buffer).unwrap() {
                self.buffer.drain(..used);
                return message.kind.unwrap();
            }
            let mut chunk = [0; 65536];
            let read = match self.stream.read(&mut chunk) {
                // A test that was stopped and goes on, as by a debugger, has waited enough.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.expect("control waits for the data process"),
            };
            assert!(read > 0, "the data process closed the link");
            self.buffer.extend_from_slice(&chunk[..read]);
        }
    }

    /// The next message that is wanted; others are passed over.
    pub fn expect(&mut self, wanted: impl Fn(&from_data::Kind) -> bool) -> from_data::Kind {
        let until = Instant::now() + PATIENCE;
        loop {
            let kind = self.next();
            if wanted(&kind) {
                return kind;
            }
            assert!(Instant::now() < until, "control waits in vain; last was {kind:?}");
        }
    }

    pub fn session_up(&mut self, agent: &str) -> skein_wire::fleet::v1::SessionUp {
        let up = self
            .expect(|kind| matches!(kind, from_data::Kind::SessionUp(up) if up.agent_id == agent));
        let from_data::Kind::SessionUp(up) = up else { unreachable!() };
        up
    }

    pub fn session_down(&mut self, agent: &str) -> skein_wire::fleet::v1::SessionDown {
        let down = self.expect(
            |kind| matches!(kind, from_data::Kind::SessionDown(down) if down.agent_id == agent),
        );
        let from_data::Kind::SessionDown(down) = down else { unreachable!() };
        down
    }
}

/// One TLS connection of an agent.
pub struct Client {
    pub stream: StreamOwned<ClientConnection, TcpStream>,
    pub buffer: Vec<u8>,
}

impl Client {
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// Reads more; false at the end.
    pub fn read_more(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                true
            }
            Err(error) => {
                let timeout = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                assert!(!timeout, "the server says nothing");
                false
            }
        }
    }

    pub fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            assert!(self.read_more(), "the server closed; {} of {bytes} bytes", self.buffer.len());
        }
        self.buffer.drain(..bytes).collect()
    }

    pub fn frame<M: Message + Default>(&mut self) -> M {
        let decoder = FrameDecoder::new(SIGNAL_MESSAGE_BYTES_MAX);
        loop {
            if let Some((message, used)) = decoder.next_message::<M>(&self.buffer).unwrap() {
                self.buffer.drain(..used);
                return message;
            }
            assert!(self.read_more(), "the server closed");
        }
    }

    pub fn say(&mut self, kind: agent_message::Kind) {
        let mut out = Vec::new();
        let message = AgentMessage { kind: Some(kind) };
        frame::encode_message(&message, SIGNAL_MESSAGE_BYTES_MAX, &mut out).unwrap();
        self.send(&out);
    }

    pub fn hear(&mut self) -> server_message::Kind {
        self.frame::<ServerMessage>().kind.unwrap()
    }

    /// Waits until the server closes; everything before is passed over.
    pub fn closed(&mut self) {
        while self.read_more() {}
    }
}

/// Waits for a condition.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A metric's value by its name and labels as rendered, 0 when it is not there yet.
pub fn metric(line_start: &str) -> f64 {
    let text = skein_observe::install().render();
    let line = text.lines().find(|line| line.starts_with(line_start));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}
