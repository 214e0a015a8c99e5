//! Opens channels: TCP, TLS 1.3 with both certificates, HELLO.
//!
//! The server is known by the name `server.skein` in a certificate of a pinned authority, whatever
//! address it has. A channel that comes out of [`Dialer::connect`] is authenticated both ways and
//! accepted by the server; all that can go wrong before is one [`LinkError`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use skein_observe::names;
use skein_wire::hello::{ChannelKind, HELLO_BYTES, Hello, HelloAck, HelloError, HelloStatus};
use skein_wire::ids::Instance;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::servers::Servers;
use crate::clock::{self, ServerClock};
use crate::identity::{Identity, IdentityCell, IdentityError};

/// Every server certificate carries this name.
pub const SERVER_NAME: &str = "server.skein";

const CONNECT_TIME: Duration = Duration::from_secs(5);
/// TLS and HELLO together; the server allows 5 s for its part.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Unacknowledged bytes for this long mean a dead path, whatever the retransmissions do.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Ciphertext that one read of a file channel takes. rustls asks for 4 KiB at a time, which would
/// be five system calls for each of its records.
const FILE_READ_AHEAD_BYTES: usize = 128 * 1024;

/// The bytes of a channel.
pub type ChannelIo = TlsStream<BufReader<TcpStream>>;

/// An open channel.
#[derive(Debug)]
pub struct LinkStream {
    /// Its bytes.
    pub io: ChannelIo,
    /// As logs of the server name this session.
    pub session_id: u64,
    /// Version that both sides speak.
    pub version: u8,
    /// Address that was dialled.
    pub server: String,
}

/// Why a channel could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// `agent.toml` names no server.
    #[error("no server is configured; set `servers` in agent.toml")]
    NoServer,
    /// No TCP connection.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// Address.
        server: String,
        /// Reason.
        source: io::Error,
    },
    /// TLS failed: one side does not trust the other.
    #[error(
        "TLS with {server} failed: {source}; was the server's authority replaced, or this agent revoked?"
    )]
    Tls {
        /// Address.
        server: String,
        /// Reason.
        source: io::Error,
    },
    /// The connection ended before HELLO was answered.
    #[error("{server} did not answer HELLO: {source}")]
    Hello {
        /// Address.
        server: String,
        /// Reason.
        source: io::Error,
    },
    /// The answer is not a HELLO_ACK.
    #[error("{server} answered HELLO wrongly: {source}")]
    Answer {
        /// Address.
        server: String,
        /// Reason.
        source: HelloError,
    },
    /// The server said no.
    #[error("{server} refused the channel: {}", status_text(*.status))]
    Refused {
        /// What it said.
        status: HelloStatus,
        /// When to come back; 0: as we like.
        retry_after_ms: u32,
        /// Address.
        server: String,
    },
    /// Our own key or certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// rustls does not take our key or certificates.
    #[error("this agent's certificate cannot be used: {0}; enrol again")]
    Config(#[from] rustls::Error),
}

impl LinkError {
    /// The slot that the server gave this agent, if any.
    pub fn slot_ms(&self) -> Option<u64> {
        match self {
            LinkError::Refused { retry_after_ms, .. } if *retry_after_ms > 0 => {
                Some(u64::from(*retry_after_ms))
            }
            _ => None,
        }
    }

    /// Whether trying again soon is pointless: somebody has to do something first.
    pub fn needs_people(&self) -> bool {
        match self {
            LinkError::Refused { status, .. } => matches!(
                status,
                HelloStatus::IdentityInUse
                    | HelloStatus::Revoked
                    | HelloStatus::Version
                    | HelloStatus::Unauthorised
            ),
            LinkError::NoServer | LinkError::Identity(_) | LinkError::Config(_) => true,
            _ => false,
        }
    }

    /// Short name for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            LinkError::NoServer => "no_server",
            LinkError::Connect { .. } => "connect",
            LinkError::Tls { .. } => "tls",
            LinkError::Hello { .. } | LinkError::Answer { .. } => "hello",
            LinkError::Refused { status, .. } => status.as_str(),
            LinkError::Identity(_) | LinkError::Config(_) => "identity",
        }
    }
}

fn status_text(status: HelloStatus) -> &'static str {
    match status {
        HelloStatus::Ok => "accepted",
        HelloStatus::Version => "no common version; upgrade the older side",
        HelloStatus::IdentityInUse => {
            "another living agent uses this identity; was HOME copied? Enrol one of them again"
        }
        HelloStatus::Revoked => "this identity was revoked; enrol again with a new token",
        HelloStatus::RetryLater => "it is busy and gave a later time",
        HelloStatus::Unauthorised => "this kind of channel is not allowed to this certificate",
        HelloStatus::Draining => "it is shutting down",
    }
}

/// Opens channels for one agent; cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    servers: Servers,
    identity: IdentityCell,
    instance: Instance,
    clock: Arc<ServerClock>,
    /// The identity that `tls` was made for, so that renewal shows.
    cache: std::sync::Mutex<Option<(Arc<Identity>, TlsConnector)>>,
}

impl Dialer {
    /// A dialer of one worker; `instance` is random per start of the worker.
    pub fn new(
        servers: Servers,
        identity: IdentityCell,
        instance: Instance,
        clock: Arc<ServerClock>,
    ) -> Dialer {
        let cache = std::sync::Mutex::new(None);
        Dialer { shared: Arc::new(Shared { servers, identity, instance, clock, cache }) }
    }

    /// The server list, shared by all channels.
    pub fn servers(&self) -> &Servers {
        &self.shared.servers
    }

    /// The identity that new channels use.
    pub fn identity(&self) -> &IdentityCell {
        &self.shared.identity
    }

    /// Server time.
    pub fn clock(&self) -> &Arc<ServerClock> {
        &self.shared.clock
    }

    /// Opens a channel to the current server. After a failure of that server the next one in the
    /// list is current, so that the caller's next attempt goes there.
    pub async fn connect(&self, kind: ChannelKind) -> Result<LinkStream, LinkError> {
        let (place, server) = self.shared.servers.current().ok_or(LinkError::NoServer)?;
        let address = server.address(kind).to_owned();
        let result = self.connect_to(kind, &address).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => {
                self.shared.servers.failed(place);
                error.kind()
            }
        };
        let labels = [("kind", kind.as_str()), ("result", outcome)];
        metrics::counter!(names::AGENT_CONNECTS, &labels).increment(1);
        result
    }

    async fn connect_to(&self, kind: ChannelKind, address: &str) -> Result<LinkStream, LinkError> {
        let connector = self.connector()?;
        let stream = tcp(address).await?;
        let hello = Hello::new(kind, self.shared.instance);
        let (io, ack) = within(HANDSHAKE_TIME, async {
            let mut io = tls(&connector, read_ahead(kind, stream), address).await?;
            let sent_ms = clock::now_ms();
            let ack = greet(&mut io, &hello, address).await?;
            if ack.server_time_ms > 0 {
                self.shared.clock.learn(ack.server_time_ms as i64, sent_ms);
            }
            Ok((io, ack))
        })
        .await
        .unwrap_or_else(|| {
            let source = io::ErrorKind::TimedOut.into();
            Err(LinkError::Hello { server: address.to_owned(), source })
        })?;
        if ack.status != HelloStatus::Ok {
            return Err(LinkError::Refused {
                status: ack.status,
                retry_after_ms: ack.retry_after_ms,
                server: address.to_owned(),
            });
        }
        Ok(LinkStream {
            io,
            session_id: ack.session_id,
            version: ack.version,
            server: address.to_owned(),
        })
    }

    fn connector(&self) -> Result<TlsConnector, LinkError> {
        let identity = self.shared.identity.get();
        let mut cache = self.shared.cache.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some((of, connector)) = cache.as_ref()
            && Arc::ptr_eq(of, &identity)
        {
            return Ok(connector.clone());
        }
        let connector = TlsConnector::from(Arc::new(client_config(&identity)?));
        *cache = Some((identity, connector.clone()));
        Ok(connector)
    }
}

fn client_config(identity: &Identity) -> Result<rustls::ClientConfig, LinkError> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in &identity.trusted {
        roots.add(authority.clone())?;
    }
    let provider = Arc::new(tls_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain.clone(), identity.private_key())?;
    // A full handshake costs the server 400 us; resumption would skip the revocation check.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// What TLS is made of: ring, with the cipher first that costs least per byte. Servers and members
/// take the first that a client offers.
pub(crate) fn tls_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let cheapest = CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != cheapest);
    provider
}

/// A TCP connection that notices dead paths.
pub(crate) async fn tcp(address: &str) -> Result<TcpStream, LinkError> {
    let failed = |source| LinkError::Connect { server: address.to_owned(), source };
    let stream = within(CONNECT_TIME, TcpStream::connect(address))
        .await
        .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    tune(&stream);
    Ok(stream)
}

/// Makes a connection notice dead paths and send at once.
pub(crate) fn tune(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(3);
    // Each is a refinement: a kernel that refuses one still gives a usable connection.
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let _ = stream.set_nodelay(true);
}

/// A buffer in front of channels on which bulk comes down. Others are idle most of the time and
/// get none: one of a single byte is passed by.
pub(crate) fn read_ahead(kind: ChannelKind, stream: TcpStream) -> BufReader<TcpStream> {
    let bytes = if kind == ChannelKind::File { FILE_READ_AHEAD_BYTES } else { 1 };
    BufReader::with_capacity(bytes, stream)
}

/// TLS as a client that expects [`SERVER_NAME`].
pub(crate) async fn tls(
    connector: &TlsConnector,
    stream: BufReader<TcpStream>,
    address: &str,
) -> Result<ChannelIo, LinkError> {
    let name = ServerName::try_from(SERVER_NAME).expect("a constant DNS name");
    let handshake = connector.connect(name, stream).await;
    handshake.map_err(|source| LinkError::Tls { server: address.to_owned(), source })
}

/// HELLO and its answer, accepted or not.
pub(crate) async fn greet(
    io: &mut ChannelIo,
    hello: &Hello,
    address: &str,
) -> Result<HelloAck, LinkError> {
    let mut answer = [0; HELLO_BYTES];
    let exchange = async {
        io.write_all(&hello.encode()).await?;
        io.flush().await?;
        io.read_exact(&mut answer).await
    };
    // With TLS 1.3 a server refuses a client's certificate only after the client's handshake is
    // complete, so that refusal shows here.
    let certificate =
        |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    match exchange.await {
        Ok(_) => {}
        Err(source) if certificate(&source) => {
            return Err(LinkError::Tls { server: address.to_owned(), source });
        }
        Err(source) => return Err(LinkError::Hello { server: address.to_owned(), source }),
    }
    HelloAck::decode(&answer)
        .map_err(|source| LinkError::Answer { server: address.to_owned(), source })
}

/// `future`, or nothing after `time`.
pub(crate) async fn within<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(time, future).await.ok()
}
