//! What all TLS sessions of a process share: certificate, trust, and the choices that keep an idle
//! session small (TLS 1.3 only, no tickets, no session cache).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};

use super::session::{TlsError, TlsSession};

/// Makes server sessions. Cheap to clone.
#[derive(Clone)]
pub struct TlsAcceptor {
    config: Arc<ServerConfig>,
}

/// Why the TLS configuration could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    /// A PEM file could not be read.
    #[error("cannot read {path}: {source}; the control process writes it at first start")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A PEM file holds something else.
    #[error("{path} is not usable PEM: {what}; delete it and restart the control process")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Certificate and key were read but do not make a server.
    #[error("certificate, key or certificate authority refused: {0}")]
    Rustls(#[from] rustls::Error),
    /// The certificate authority cannot verify clients.
    #[error("certificate authority cannot verify clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl TlsAcceptor {
    /// Reads `server.crt` (leaf and issuers), `server.key` and `ca.crt` in PEM.
    pub fn from_files(cert: &Path, key: &Path, ca: &Path) -> Result<Self, TlsConfigError> {
        let chain = certificates(cert)?;
        let key_pem = read(key)?;
        let key_der = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|e| TlsConfigError::Pem { path: key.to_owned(), what: e.to_string() })?;
        Self::new(chain, key_der, certificates(ca)?)
    }

    /// A server with this chain and key that trusts clients of these authorities. A client may
    /// come without a certificate; the session then has no identity and may only enrol.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsConfigError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority)?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config) })
    }

    /// A session for a connection that was just accepted.
    pub fn accept(&self) -> Result<TlsSession, TlsError> {
        TlsSession::new(self.config.clone())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsConfigError> {
    fs::read(path).map_err(|source| TlsConfigError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let bad = |what: String| TlsConfigError::Pem { path: path.to_owned(), what };
    let chain = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(e.to_string()))?;
    if chain.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(chain)
}
