//! A test authority, agents' ends of a mesh, and what strangers do, all over real TLS sockets.

#![allow(dead_code)] // Each test binary uses its part.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use skein_agent::clock::ServerClock;
use skein_agent::config::{Config, MeshConfig};
use skein_agent::identity::{Identity, IdentityCell};
use skein_agent::link::Dialer;
use skein_agent::link::servers::Servers;
use skein_agent::mesh::{ALPN, Mesh};
use skein_filemesh::core::membership::{Peer, PeerList, Who};
use skein_filemesh::core::peer_wire::{Handshake, info_hash, peer_id};
use skein_filemesh::core::plan::Member;
use skein_wire::hello::{ChannelKind, HELLO_BYTES, Hello, HelloAck, HelloStatus};
use skein_wire::ids::{AgentId, Instance, TransferId};
use skein_wire::signal::v1::CommandKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const TRANSFER: TransferId = TransferId([1; 16]);
pub const ROOT: [u8; 32] = [2; 32];
/// Name in every certificate, for clients that compare names.
const DNS_NAME: &str = "a.agent.skein";

/// `future`, or a failed test.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("takes too long")
}

pub fn now_ms() -> i64 {
    skein_agent::clock::wall_ms()
}

/// A fleet's authority.
pub struct Authority {
    params: rcgen::CertificateParams,
    key: rcgen::KeyPair,
    der: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let der = params.clone().self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    /// Enrols an agent with a new key.
    pub fn identity(&self, agent: &str) -> Identity {
        let key_der = Identity::new_key().unwrap();
        let key = rcgen::KeyPair::try_from(key_der.as_slice()).unwrap();
        let mut params = rcgen::CertificateParams::new(vec![DNS_NAME.into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, agent);
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let ca = bytes::Bytes::from(self.der.to_vec());
        let chain = [bytes::Bytes::from(leaf.der().to_vec()), ca.clone()];
        let keys = [CommandKey { key_id: 1, public_key: vec![7; 32].into() }];
        Identity::from_answer(agent, key_der, &chain, &[ca], &keys).unwrap()
    }
}

fn key_hash(identity: &Identity) -> [u8; 32] {
    let (_, certificate) = x509_parser::parse_x509_certificate(&identity.chain[0]).unwrap();
    skein_wire::merkle::sha256(certificate.public_key().raw)
}

/// As a list names a holder of `identity`.
pub fn peer(member: Member, identity: &Identity, address: Option<SocketAddr>) -> Peer {
    let (id, key_hash) = (identity.agent_id.clone(), key_hash(identity));
    let addresses = address.into_iter().collect();
    Peer { member, who: Who::Agent { id, key_hash, addresses } }
}

/// A list of [`TRANSFER`] for `me`, good for a minute.
pub fn list(me: Member, number: u32, peers: &[Peer]) -> PeerList {
    PeerList::new(TRANSFER, ROOT, me, number, now_ms() + 60_000, peers.to_vec()).unwrap()
}

/// One agent's end of the mesh.
pub struct Node {
    pub mesh: Mesh,
    pub identity: Identity,
    pub address: SocketAddr,
    pub clock: Arc<ServerClock>,
    pub member: Member,
}

impl Node {
    pub fn start(authority: &Authority, member: Member) -> Node {
        Self::limited(authority, member, &MeshConfig::default())
    }

    pub fn limited(authority: &Authority, member: Member, config: &MeshConfig) -> Node {
        let identity = authority.identity(&format!("agent-{member}"));
        let clock = Arc::new(ServerClock::default());
        let cell = IdentityCell::new(identity.clone());
        let servers = Servers::new(&Config::default());
        let dialer = Dialer::new(servers, cell, Instance([member as u8; 16]), clock.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mesh = Mesh::start(config, dialer, Some(listener)).unwrap();
        Node { mesh, identity, address, clock, member }
    }

    pub fn peer(&self) -> Peer {
        peer(self.member, &self.identity, Some(self.address))
    }

    pub fn take(&self, number: u32, peers: &[Peer]) {
        self.mesh.take_list(&list(self.member, number, peers).to_message());
    }
}

/// What a client says to an acceptor.
pub struct Knock {
    pub info_hash: [u8; 20],
    pub peer_id: [u8; 20],
    pub alpn: Option<&'static [u8]>,
    pub with_certificate: bool,
    pub kind: ChannelKind,
}

impl Knock {
    /// As an honest member of [`TRANSFER`] would.
    pub fn of(identity: &Identity) -> Self {
        Self {
            info_hash: info_hash(&TRANSFER.0, &ROOT),
            peer_id: peer_id(identity.agent_id.as_str()),
            alpn: Some(ALPN),
            with_certificate: true,
            kind: ChannelKind::File,
        }
    }

    /// Knocks as `identity` and answers every byte that came back inside TLS before the end. The
    /// answering certificate is one of the authority that `trusting` trusts.
    pub async fn at(&self, to: SocketAddr, identity: &Identity, trusting: &Identity) -> Vec<u8> {
        let mut roots = RootCertStore::empty();
        roots.add(trusting.trusted[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.with_certificate {
            true => builder
                .with_client_auth_cert(identity.chain.clone(), identity.private_key())
                .unwrap(),
            false => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|alpn| alpn.to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(DNS_NAME).unwrap();
        let stream = TcpStream::connect(to).await.unwrap();
        let Ok(mut io) = soon(connector.connect(name, stream)).await else { return Vec::new() };
        let hello = Hello::new(self.kind, Instance([9; 16])).encode();
        let handshake = Handshake::new(self.info_hash, self.peer_id).encode();
        let _ = io.write_all(&[&hello[..], &handshake].concat()).await;
        let _ = io.flush().await;
        let mut answer = Vec::new();
        // An alert or a reset is an end as good as any.
        let _ = soon(io.read_to_end(&mut answer)).await;
        answer
    }
}

/// The status of an answer that is HELLO_ACK and nothing else.
pub fn only_status(answer: &[u8]) -> HelloStatus {
    let bytes: &[u8; HELLO_BYTES] = answer.try_into().expect("HELLO_ACK and nothing else");
    HelloAck::decode(bytes).unwrap().status
}

/// Answers one TLS connection as `identity` and gives back every byte that its client sent.
pub async fn impostor(
    identity: Identity,
    alpn: &'static [u8],
) -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.private_key())
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let heard = tokio::spawn(async move {
        let (stream, _) = soon(listener.accept()).await.unwrap();
        let mut heard = Vec::new();
        if let Ok(mut io) = soon(acceptor.accept(stream)).await {
            let _ = soon(io.read_to_end(&mut heard)).await;
        }
        heard
    });
    (address, heard)
}

/// Everything that an agent id may be here.
pub fn id(text: &str) -> AgentId {
    AgentId::parse(text).unwrap()
}
