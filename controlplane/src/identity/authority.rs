//! The certificate authority of one server: made at first start, kept in `DIR/control`.
//!
//! It issues three kinds of certificates: the data process's own (`DIR/data/server.crt`, DNS name
//! [`SERVER_NAME`]), the API's (`DIR/control/api.crt`, the names and addresses by which operators
//! reach it) and agents' (common name = agent id; client and server authentication, so that agents
//! can be peers). The server's two are renewed when less than a third of their life is left. Only
//! the first carries [`SERVER_NAME`] and only agents' names end in `.agent.skein`, so none can
//! stand in for another.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use skein_wire::ids::{AgentId, hex_encode};
use skein_wire::merkle::sha256;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::csr::CertifiedKey;
use crate::files::write_atomic;
use crate::{clock, random};

/// DNS name in the data process's certificate, whatever its address.
pub const SERVER_NAME: &str = "server.skein";

const DAY_MS: i64 = 24 * 3_600_000;
/// Life of the authority.
const AUTHORITY_LIFE_MS: i64 = 3_650 * DAY_MS;
/// Life of the server's certificate.
const SERVER_LIFE_MS: i64 = 365 * DAY_MS;
/// Life of an agent's certificate.
pub const AGENT_LIFE_MS: i64 = 365 * DAY_MS;
/// Certificates begin this long ago, for clocks that go slow.
const BACKDATE_MS: i64 = 3_600_000;

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("{path}: {source}; the control process needs its folder readable and writable")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has the wrong content.
    #[error("{path}: {why}; restore it from a backup (a new authority means enrolling all anew)")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A certificate cannot be made.
    #[error("certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] std::io::Error),
}

/// A certificate that was issued now.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub der: Vec<u8>,
    /// Its serial, hex.
    pub serial: String,
    /// Its end.
    pub not_after_ms: i64,
}

/// The authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", hex_encode(&self.sha256()))
    }
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::File { path, source }
}

fn content_error(path: &Path) -> impl FnOnce(String) -> AuthorityError {
    let path = path.to_owned();
    move |why| AuthorityError::Content { path, why }
}

impl Authority {
    /// Loads the authority of a control folder, or makes it where there is none.
    pub fn open(control_dir: &Path) -> Result<Self, AuthorityError> {
        let (key_path, crt_path) = (control_dir.join("ca.key"), control_dir.join("ca.crt"));
        if !crt_path.exists() {
            Self::make(&key_path, &crt_path)?;
        }
        let key_pem = fs::read_to_string(&key_path).map_err(file_error(&key_path))?;
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|error| content_error(&key_path)(error.to_string()))?;
        let pem = fs::read_to_string(&crt_path).map_err(file_error(&crt_path))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| content_error(&crt_path)(error.to_string()))?;
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|error| content_error(&crt_path)(error.to_string()))?;
        if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(content_error(&crt_path)("does not belong to ca.key".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { issuer, der: der.to_vec(), pem })
    }

    fn make(key_path: &Path, crt_path: &Path) -> Result<(), AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        let now_ms = clock::now_ms();
        life(&mut params, now_ms, AUTHORITY_LIFE_MS);
        params.serial_number = Some(serial()?);
        let mut name = DistinguishedName::new();
        let id = random::bytes::<4>()?;
        name.push(DnType::CommonName, format!("Skein authority {}", hex_encode(&id)));
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        // The certificate is written last: it is what says that an authority exists.
        write_atomic(key_path, key.serialize_pem().as_bytes(), 0o600)
            .map_err(file_error(key_path))?;
        write_atomic(crt_path, certificate.pem().as_bytes(), 0o644).map_err(file_error(crt_path))
    }

    /// The authority's certificate, DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// What join tokens carry.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// Certifies an agent's key.
    pub fn issue_agent(
        &self,
        key: &CertifiedKey,
        agent: &AgentId,
    ) -> Result<Issued, AuthorityError> {
        let dns = format!("{}.agent.skein", agent.as_str().replace(':', "-").to_lowercase());
        let mut params = leaf(agent.as_str(), [dns], AGENT_LIFE_MS)?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, &key.key)
    }

    fn issue(
        &self,
        params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<Issued, AuthorityError> {
        let certificate = params.signed_by(key, &self.issuer)?;
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let not_after_ms = params.not_after.unix_timestamp() * 1_000;
        Ok(Issued { der: certificate.der().to_vec(), serial: hex_encode(&serial), not_after_ms })
    }

    /// Gives the data process its certificate, key and authority, where they are absent, not of
    /// this authority, or past two thirds of their life. True: new ones were written.
    pub fn equip_server(&self, data_dir: &Path) -> Result<bool, AuthorityError> {
        let ca_path = data_dir.join("ca.crt");
        if fs::read(&ca_path).ok().as_deref() != Some(self.pem.as_bytes()) {
            write_atomic(&ca_path, self.pem.as_bytes(), 0o644).map_err(file_error(&ca_path))?;
        }
        let (crt, key) = (data_dir.join("server.crt"), data_dir.join("server.key"));
        self.equip(&crt, &key, SERVER_NAME, &BTreeSet::from([SERVER_NAME.to_owned()]))
    }

    /// Likewise for the API, `api.crt` and `api.key` in the control folder; also when the names
    /// and addresses are others than those in the certificate.
    pub fn equip_api(
        &self,
        control_dir: &Path,
        names: &BTreeSet<String>,
    ) -> Result<bool, AuthorityError> {
        let (crt, key) = (control_dir.join("api.crt"), control_dir.join("api.key"));
        self.equip(&crt, &key, "Skein API", names)
    }

    fn equip(
        &self,
        crt_path: &Path,
        key_path: &Path,
        common_name: &str,
        names: &BTreeSet<String>,
    ) -> Result<bool, AuthorityError> {
        if key_path.exists() && self.certificate_is_good(crt_path, names) {
            return Ok(false);
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf(common_name, names.iter().cloned(), SERVER_LIFE_MS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        // An agent that enrols pins the authority from the chain, so it is part of it.
        let chain = format!("{}{}", certificate.pem(), self.pem);
        write_atomic(key_path, key.serialize_pem().as_bytes(), 0o600)
            .map_err(file_error(key_path))?;
        write_atomic(crt_path, chain.as_bytes(), 0o644).map_err(file_error(crt_path))?;
        Ok(true)
    }

    fn certificate_is_good(&self, crt_path: &Path, names: &BTreeSet<String>) -> bool {
        let Ok(pem) = fs::read(crt_path) else { return false };
        let Ok(der) = CertificateDer::from_pem_slice(&pem) else { return false };
        let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
        let Ok((_, authority)) = X509Certificate::from_der(&self.der) else { return false };
        let validity = certificate.validity();
        let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let left = to - clock::now_ms() / 1_000;
        certificate.verify_signature(Some(authority.public_key())).is_ok()
            && left > (to - from) / 3
            && names_of(&der) == *names
    }
}

/// The names and addresses that a certificate vouches for; none of one that cannot be read.
pub fn names_of(der: &[u8]) -> BTreeSet<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return BTreeSet::new() };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let name = |name: &GeneralName| match name {
        GeneralName::DNSName(name) => Some(name.to_lowercase()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(IpAddr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| IpAddr::from(v6).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

fn life(params: &mut CertificateParams, now_ms: i64, life_ms: i64) {
    let at = |ms: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(ms.max(0) as u64);
    params.not_before = at(now_ms - BACKDATE_MS);
    params.not_after = at(now_ms + life_ms);
}

/// What all certificates have in common; a name that is an address becomes one.
fn leaf(
    common_name: &str,
    names: impl IntoIterator<Item = String>,
    life_ms: i64,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(names.into_iter().collect::<Vec<_>>())?;
    life(&mut params, clock::now_ms(), life_ms);
    params.serial_number = Some(serial()?);
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A positive serial of 16 bytes without leading zero, so that its hex form is one text.
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = random::bytes::<16>()?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_and_the_servers_certificate_outlive_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path()).unwrap();
        assert!(first.equip_server(folder.path()).unwrap());
        let second = Authority::open(folder.path()).unwrap();
        assert_eq!(first.sha256(), second.sha256());
        assert!(!second.equip_server(folder.path()).unwrap(), "a fresh certificate is kept");
        fs::remove_file(folder.path().join("ca.crt")).unwrap();
        let third = Authority::open(folder.path()).unwrap();
        assert_ne!(third.sha256(), second.sha256());
        assert!(third.equip_server(folder.path()).unwrap(), "of another authority: replaced");
    }

    #[test]
    fn the_apis_certificate_is_replaced_when_its_names_change() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let first: BTreeSet<String> = names(&["127.0.0.1", "::1", "skein.example.com"]);
        assert!(authority.equip_api(folder.path(), &first).unwrap());
        assert!(!authority.equip_api(folder.path(), &first).unwrap(), "the same names: kept");
        let chain = fs::read(folder.path().join("api.crt")).unwrap();
        assert_eq!(names_of(&CertificateDer::from_pem_slice(&chain).unwrap()), first);
        assert!(authority.equip_api(folder.path(), &names(&["10.0.0.1"])).unwrap());
    }

    #[test]
    fn an_agents_certificate_carries_its_id_and_both_purposes() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let pair = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&pair).unwrap();
        let key = CertifiedKey::from_csr(csr.der()).unwrap();
        let agent = AgentId::parse("0:10.0.0.1").unwrap();
        let issued = authority.issue_agent(&key, &agent).unwrap();
        let (_, certificate) = X509Certificate::from_der(&issued.der).unwrap();
        let name = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap();
        assert_eq!(name, "0:10.0.0.1");
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth);
        let san = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value);
        assert!(san.contains("0-10.0.0.1.agent.skein"), "{san}");
        assert_eq!(certificate.raw_serial_as_string().replace(':', ""), issued.serial);
    }

    #[test]
    fn a_key_of_another_authority_is_noticed() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::open(one.path()).unwrap();
        Authority::open(two.path()).unwrap();
        fs::copy(two.path().join("ca.key"), one.path().join("ca.key")).unwrap();
        let error = Authority::open(one.path()).unwrap_err().to_string();
        assert!(error.contains("does not belong to ca.key"), "{error}");
    }
}
