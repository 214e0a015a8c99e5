//! Certificates for a laboratory fleet: an authority of its own, as the control process makes one,
//! so that 18,000 agents need no 18,000 enrolments before anything can be measured.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use skein_wire::ids::AgentId;

/// The name in every server certificate, whatever the address.
pub const SERVER_NAME: &str = "server.skein";

/// An authority and one key that all laboratory agents share.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    agent_key: KeyPair,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Authority {
    /// A new authority with keys of P-256.
    pub fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "Skein laboratory");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
            agent_key: KeyPair::generate()?,
            verifier,
        })
    }

    /// Writes what a data process expects in its folder.
    pub fn write_server(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)?;
        let key = KeyPair::generate()?;
        let params = leaf(SERVER_NAME, SERVER_NAME)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        std::fs::write(folder.join("ca.crt"), &self.certificate_pem)?;
        std::fs::write(folder.join("server.crt"), certificate.pem() + &self.certificate_pem)?;
        std::fs::write(folder.join("server.key"), key.serialize_pem())?;
        Ok(())
    }

    /// TLS as a server speaks it that asks for no client certificate; `folder` is scratch.
    pub fn server_config(&self, folder: &Path) -> anyhow::Result<rustls::ServerConfig> {
        self.write_server(folder)?;
        let chain = CertificateDer::pem_file_iter(folder.join("server.crt"))?;
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?)
    }

    /// TLS as `agent` speaks it.
    pub fn client(&self, agent: &AgentId) -> anyhow::Result<Arc<ClientConfig>> {
        let host = format!("{agent}.agent.skein");
        let certificate = leaf(agent.as_str(), &host)?.signed_by(&self.agent_key, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::try_from(self.agent_key.serialize_der())
            .map_err(|error| anyhow::anyhow!("agent key: {error}"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(self.verifier.clone())
            .with_client_auth_cert(chain, key)
            .context("client certificate")?;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn leaf(common_name: &str, host: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}
