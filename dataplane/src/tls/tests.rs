//! The adapter against rustls's own client, over memory.

use std::io::{Read, Write};
use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::client::WantsClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore};

use super::*;

/// A certificate authority with a server and a client that it certified.
pub(crate) struct Pki {
    pub(crate) acceptor: TlsAcceptor,
    roots: Arc<RootCertStore>,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let (chain, key) = leaf(&issuer, "server", "server.skein");
        let ca: CertificateDer<'static> = issuer.der().clone();
        let acceptor = TlsAcceptor::new(chain, key, vec![ca.clone()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca).unwrap();
        Self { acceptor, roots: Arc::new(roots), issuer }
    }

    pub(crate) fn client(&self, agent: Option<&str>) -> ClientConnection {
        match agent {
            Some(agent) => self.client_with(leaf(&self.issuer, agent, "a.agent.skein")),
            None => connect(self.builder().with_no_client_auth()),
        }
    }

    fn client_with(&self, (chain, key): Identity) -> ClientConnection {
        connect(self.builder().with_client_auth_cert(chain, key).unwrap())
    }

    fn builder(&self) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn connect(config: ClientConfig) -> ClientConnection {
    let name = ServerName::try_from("server.skein").unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

fn leaf(issuer: &CertifiedIssuer<'static, KeyPair>, common_name: &str, dns: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, issuer).unwrap();
    (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// What the server heard in one delivery.
struct Heard {
    result: Result<Received, TlsError>,
    plain: Vec<u8>,
    out: Vec<u8>,
}

fn deliver(session: &mut TlsSession, bytes: &[u8]) -> Heard {
    deliver_with(session, bytes, Flow::Continue)
}

fn deliver_with(session: &mut TlsSession, bytes: &[u8], flow: Flow) -> Heard {
    let mut buffer = vec![0; session.held_bytes() + bytes.len()];
    let held = session.lend(&mut buffer);
    buffer[held..].copy_from_slice(bytes);
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    let result = session.receive(&mut buffer, &mut out, |data| {
        plain.extend_from_slice(data);
        flow
    });
    Heard { result, plain, out }
}

pub(crate) fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

pub(crate) fn hear(client: &mut ClientConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets().unwrap();
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = client.reader().read(&mut chunk) {
            plain.extend_from_slice(&chunk[..read]);
        }
    }
    plain
}

/// Both ends after the handshake.
fn connected(pki: &Pki, agent: Option<&str>) -> (TlsSession, ClientConnection) {
    let (mut server, mut client) = (pki.acceptor.accept().unwrap(), pki.client(agent));
    while client.is_handshaking() || !server.is_established() {
        let heard = deliver(&mut server, &sent(&mut client));
        heard.result.unwrap();
        hear(&mut client, &heard.out);
    }
    (server, client)
}

#[test]
fn handshake_tells_the_agent_and_its_serial() {
    let pki = Pki::new();
    let (server, _) = connected(&pki, Some("0:10.0.0.7"));
    let peer = server.peer().unwrap().unwrap();
    assert_eq!(peer.agent.as_str(), "0:10.0.0.7");
    assert!(!peer.serial.is_empty());
    assert_eq!(server.held_bytes(), 0, "an idle session holds nothing");
    let (server, _) = connected(&pki, None);
    assert_eq!(server.peer().unwrap(), None);
}

#[test]
fn a_certificate_of_another_authority_is_refused_with_an_alert() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let mut client = ours.client_with(leaf(&theirs.issuer, "a", "a.agent.skein"));
    let mut server = ours.acceptor.accept().unwrap();
    let first = deliver(&mut server, &sent(&mut client));
    hear(&mut client, &first.out);
    let second = deliver(&mut server, &sent(&mut client));
    assert!(matches!(second.result, Err(TlsError::Protocol(_))), "{:?}", second.result);
    assert!(!second.out.is_empty(), "the client learns why");
}

#[test]
fn data_flows_both_ways_and_close_notify_ends_it() {
    let pki = Pki::new();
    let (mut server, mut client) = connected(&pki, Some("a"));
    let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    client.set_buffer_limit(None);
    client.writer().write_all(&data).unwrap();
    let heard = deliver(&mut server, &sent(&mut client));
    assert_eq!((heard.result.unwrap(), &heard.plain), (Received::All, &data));
    let mut out = Vec::new();
    server.encrypt(&data, &mut out).unwrap();
    assert_eq!(hear(&mut client, &out), data);
    client.send_close_notify();
    assert_eq!(deliver(&mut server, &sent(&mut client)).result.unwrap(), Received::Closed);
    let mut out = Vec::new();
    server.close(&mut out);
    hear(&mut client, &out);
}

#[test]
fn records_may_be_cut_anywhere() {
    let pki = Pki::new();
    let (mut server, mut client) = connected(&pki, Some("a"));
    for cut in 0..80 {
        client.writer().write_all(b"some plaintext of forty-two bytes in a go.").unwrap();
        let bytes = sent(&mut client);
        let cut = cut.min(bytes.len());
        let first = deliver(&mut server, &bytes[..cut]);
        assert_eq!(server.held_bytes(), if cut == bytes.len() { 0 } else { cut });
        let second = deliver(&mut server, &bytes[cut..]);
        let plain = [first.plain, second.plain].concat();
        assert_eq!(plain, b"some plaintext of forty-two bytes in a go.");
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let pki = Pki::new();
    let (mut server, mut client) = (pki.acceptor.accept().unwrap(), pki.client(Some("a")));
    while client.is_handshaking() || !server.is_established() {
        for byte in sent(&mut client) {
            let heard = deliver(&mut server, &[byte]);
            heard.result.unwrap();
            hear(&mut client, &heard.out);
        }
    }
    assert_eq!(server.peer().unwrap().unwrap().agent.as_str(), "a");
}

#[test]
fn a_pause_keeps_the_rest_and_nothing_is_lost() {
    let pki = Pki::new();
    let (mut server, mut client) = connected(&pki, Some("a"));
    for part in [&b"one"[..], b"two", b"three"] {
        client.writer().write_all(part).unwrap();
        client.writer().flush().unwrap();
    }
    let mut plain = Vec::new();
    let mut heard = deliver_with(&mut server, &sent(&mut client), Flow::Pause);
    while server.held_bytes() > 0 {
        assert_eq!(heard.result.unwrap(), Received::Paused);
        plain.append(&mut heard.plain);
        let mut out = Vec::new();
        server.encrypt(b"output does not disturb what is held", &mut out).unwrap();
        hear(&mut client, &out);
        heard = deliver_with(&mut server, &[], Flow::Pause);
    }
    plain.append(&mut heard.plain);
    assert_eq!(plain, b"onetwothree");
}

#[test]
fn oversize_records_are_refused() {
    let pki = Pki::new();
    let (mut server, _) = connected(&pki, Some("a"));
    let mut record = vec![0x17, 3, 3, 0xff, 0xff];
    record.resize(70_000, 0);
    assert!(deliver(&mut server, &record).result.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_is_an_error_or_waits(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        kind in 20u8..25,
        established in any::<bool>(),
    ) {
        thread_local!(static PKI: Pki = Pki::new());
        PKI.with(|pki| {
            let mut server = if established {
                connected(pki, None).0
            } else {
                pki.acceptor.accept().unwrap()
            };
            let _ = deliver(&mut server, &bytes);
            let mut server = pki.acceptor.accept().unwrap();
            let mut record = vec![kind, 3, 3, (bytes.len() >> 8) as u8, bytes.len() as u8];
            record.extend_from_slice(&bytes);
            let heard = deliver(&mut server, &record);
            assert!(heard.plain.is_empty());
        });
    }
}

/// Every bit of a small record, one at a time.
#[test]
fn a_flipped_bit_never_changes_what_is_read() {
    let pki = Pki::new();
    let length = {
        let (_, mut client) = connected(&pki, None);
        client.writer().write_all(&[7; 20]).unwrap();
        sent(&mut client).len()
    };
    for (at, bit) in (0..length).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let (mut server, mut client) = connected(&pki, None);
        client.writer().write_all(&[7; 20]).unwrap();
        let mut bytes = sent(&mut client);
        bytes[at] ^= 1 << bit;
        let heard = deliver(&mut server, &bytes);
        // The record's type and version are not authenticated: the additional data always says
        // "application data" (RFC 8446, 5.2). Turning them may therefore change nothing. A changed
        // length or content never yields plaintext.
        let unchanged = at < 3 && heard.plain == [7; 20];
        assert!(heard.plain.is_empty() || unchanged, "byte {at}, bit {bit}: {:?}", heard.plain);
    }
}
