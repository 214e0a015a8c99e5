//! Joining a fleet: one request with a join token, answered with a certificate.
//!
//! The agent trusts nothing yet but the SHA-256 of the server's authority, which the token carries.
//! So the chain that the server presents must contain exactly that authority, and it must have
//! certified the server under the name `server.skein`. Only then is the token's secret sent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use skein_wire::frame::{FrameDecoder, FrameError, encode_message};
use skein_wire::hello::{ChannelKind, Hello, HelloStatus};
use skein_wire::ids::Instance;
use skein_wire::limits::{ENROL_REQUEST_BYTES_MAX, SIGNAL_MESSAGE_BYTES_MAX};
use skein_wire::signal::v1::{EnrolReply, EnrolRequest, HostFacts};
use skein_wire::token::JoinToken;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::identity::{Identity, IdentityError, fingerprint};
use crate::link::LinkError;
use crate::link::dialer::{greet, read_ahead, tcp, tls, within};

/// Control signs and stores before it answers; its disk may be slow.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// What an enrolment says.
#[derive(Debug)]
pub struct Application {
    /// `host:port` of the signal channel.
    pub server: String,
    /// From the operator.
    pub token: JoinToken,
    /// An identity to be kept: its id and key are used again.
    pub previous: Option<Identity>,
    /// About this host.
    pub facts: HostFacts,
}

/// Why an agent could not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The channel.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Our side of it.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The connection ended in the middle.
    #[error("the server ended the connection ({0}); its log says why")]
    Io(#[from] io::Error),
    /// The answer cannot be read.
    #[error("the server's answer cannot be read: {0}")]
    Frame(#[from] FrameError),
    /// No answer in time.
    #[error("the server did not answer within {} s", ANSWER_TIME.as_secs())]
    Silent,
    /// The server said no.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Asks for an identity.
pub async fn enrol(application: Application) -> Result<Identity, EnrolError> {
    let Application { server, token, previous, facts } = application;
    let (key_der, agent_id) = match previous {
        Some(previous) => (previous.key_der, previous.agent_id.to_string()),
        None => (Identity::new_key()?, String::new()),
    };
    let request = EnrolRequest {
        token_id: token.id_text(),
        token_secret: token.secret.to_vec().into(),
        csr_der: Identity::csr(&key_der)?.into(),
        agent_id,
        facts: Some(facts),
    };
    let connector = TlsConnector::from(Arc::new(pinned_config(token.ca_sha256)?));
    let answer = within(ANSWER_TIME, ask(&server, &connector, &request)).await;
    let reply = answer.ok_or(EnrolError::Silent)??;
    if !reply.error.is_empty() {
        return Err(EnrolError::Refused(reply.error));
    }
    let trusted = &reply.trusted_ca_der;
    if !trusted.iter().any(|authority| fingerprint(authority) == token.ca_sha256) {
        let why = "it does not trust the authority that the token names";
        return Err(IdentityError::Answer(why.into()).into());
    }
    Ok(Identity::from_answer(
        &reply.agent_id,
        key_der,
        &reply.certificate_chain_der,
        trusted,
        &reply.command_keys,
    )?)
}

async fn ask(
    server: &str,
    connector: &TlsConnector,
    request: &EnrolRequest,
) -> Result<EnrolReply, EnrolError> {
    let mut instance = Instance([0; 16]);
    crate::clock::random(&mut instance.0);
    let stream = read_ahead(ChannelKind::Enrol, tcp(server).await?);
    let mut io = tls(connector, stream, server).await?;
    let ack = greet(&mut io, &Hello::new(ChannelKind::Enrol, instance), server).await?;
    if ack.status != HelloStatus::Ok {
        let (status, retry_after_ms) = (ack.status, ack.retry_after_ms);
        let server = server.to_owned();
        return Err(LinkError::Refused { status, retry_after_ms, server }.into());
    }
    let mut buffer = Vec::new();
    encode_message(request, ENROL_REQUEST_BYTES_MAX, &mut buffer)?;
    io.write_all(&buffer).await?;
    io.flush().await?;
    buffer.clear();
    let decoder = FrameDecoder::new(SIGNAL_MESSAGE_BYTES_MAX);
    loop {
        if io.read_buf(&mut buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if let Some((reply, _)) = decoder.next_message(&buffer)? {
            return Ok(reply);
        }
    }
}

fn pinned_config(ca_sha256: [u8; 32]) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedAuthority { ca_sha256, provider: provider.clone() });
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Accepts a server that an authority with the pinned hash has certified, and no other.
#[derive(Debug)]
struct PinnedAuthority {
    ca_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = |der: &&CertificateDer<'_>| fingerprint(der) == self.ca_sha256;
        let authority = intermediates.iter().find(pinned).ok_or_else(|| {
            rustls::Error::General(
                "the server does not present the authority that the join token names; is the \
                 token of another server, or somebody in between?"
                    .into(),
            )
        })?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Chain {
        leaf: CertificateDer<'static>,
        authority: CertificateDer<'static>,
    }

    fn chain(name: &str) -> Chain {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = ca.clone().self_signed(&ca_key).unwrap().der().clone();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.into()]).unwrap();
        let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
        Chain { leaf: params.signed_by(&key, &issuer).unwrap().der().clone(), authority }
    }

    fn accepts(pin: &CertificateDer<'_>, leaf: &Chain, sent: &[CertificateDer<'_>]) -> bool {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = PinnedAuthority { ca_sha256: fingerprint(pin), provider };
        let name = ServerName::try_from(crate::link::dialer::SERVER_NAME).unwrap();
        verifier.verify_server_cert(&leaf.leaf, sent, &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn only_the_pinned_authority_may_certify_the_server() {
        let (ours, theirs, other) = (chain("server.skein"), chain("server.skein"), chain("x.y"));
        assert!(accepts(&ours.authority, &ours, std::slice::from_ref(&ours.authority)));
        // Absent, somebody else's, or present without having signed the server's certificate.
        assert!(!accepts(&ours.authority, &ours, &[]));
        assert!(!accepts(&ours.authority, &theirs, std::slice::from_ref(&theirs.authority)));
        assert!(!accepts(&ours.authority, &theirs, std::slice::from_ref(&ours.authority)));
        // The right authority, another name.
        assert!(!accepts(&other.authority, &other, std::slice::from_ref(&other.authority)));
    }
}
