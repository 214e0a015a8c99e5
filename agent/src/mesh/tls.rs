//! TLS between agents: both show the certificate that the fleet's authority gave them.
//!
//! rustls proves that the other side holds the key of a certificate of the authority. Which agent
//! that is, [`Holder`] says; whether it is the one that was wanted or may come in is decided by the
//! list, before any byte is sent. So names in the handshake play no role, and none is sent.

use std::sync::{Arc, Mutex, PoisonError};

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore, ServerConfig,
    SignatureScheme,
};
use skein_filemesh::core::merkle::Hash;
use skein_wire::ids::AgentId;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::identity::Identity;
use crate::link::tls_provider;

/// What both sides say they speak inside TLS.
pub const ALPN: &[u8] = b"skein-mesh/1";

/// Who holds a certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Its subject's common name.
    pub agent: AgentId,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key_hash: Hash,
}

impl Holder {
    /// Of the first certificate, which TLS has verified; none when its name is no agent's.
    pub fn of(certificates: Option<&[CertificateDer<'_>]>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificates?.first()?).ok()?;
        let mut names = certificate.subject().iter_common_name();
        let (Some(name), None) = (names.next(), names.next()) else { return None };
        let agent = AgentId::parse(name.as_str().ok()?).ok()?;
        let mut key_hash = [0; 32];
        let digest = digest::digest(&digest::SHA256, certificate.public_key().raw);
        key_hash.copy_from_slice(digest.as_ref());
        Some(Self { agent, key_hash })
    }
}

/// Both sides' settings, made once per identity: renewal shows in the next connection.
#[derive(Default)]
pub(super) struct TlsCache(Mutex<Option<(Arc<Identity>, TlsConnector, TlsAcceptor)>>);

impl TlsCache {
    pub fn get(
        &self,
        identity: Arc<Identity>,
    ) -> Result<(TlsConnector, TlsAcceptor), rustls::Error> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, connector, acceptor)) = cache.as_ref()
            && Arc::ptr_eq(of, &identity)
        {
            return Ok((connector.clone(), acceptor.clone()));
        }
        let provider = Arc::new(tls_provider());
        let mut roots = RootCertStore::empty();
        for authority in &identity.trusted {
            roots.add(authority.clone())?;
        }
        let roots = Arc::new(roots);
        let client = client(&identity, provider.clone(), roots.clone())?;
        let connector = TlsConnector::from(Arc::new(client));
        let acceptor = TlsAcceptor::from(Arc::new(server(&identity, provider, roots)?));
        *cache = Some((identity, connector.clone(), acceptor.clone()));
        Ok((connector, acceptor))
    }
}

fn client(
    identity: &Identity,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = Arc::new(OfTheFleet { provider: provider.clone(), roots });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(identity.chain.clone(), identity.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    // A resumed session would have no certificate to compare.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn server(
    identity: &Identity,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Accepts every certificate of the fleet's authority for a server's use, in its time of validity,
/// whatever its name: that is compared with the list afterwards, together with its key.
#[derive(Debug)]
struct OfTheFleet {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for OfTheFleet {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_without_an_agents_name_has_no_holder() {
        // The test authority puts no agent id into the subject.
        let identity = crate::identity::tests::example("a");
        assert_eq!(Holder::of(Some(&identity.chain)), None);
        assert_eq!(Holder::of(None), None);
        assert_eq!(Holder::of(Some(&[CertificateDer::from(vec![0x30, 0])])), None);
    }
}
