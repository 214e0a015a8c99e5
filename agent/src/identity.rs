//! Who this agent is: its key, its certificate, whom it trusts, and whose commands it obeys.
//!
//! Everything lies in `HOME/identity/`, readable by the agent alone. Renewal replaces the
//! certificate in place (same key file name, written atomically) and the dialer takes the new one
//! for its next connection; living sessions go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use skein_wire::ids::{AgentId, IdError};
use skein_wire::signal::v1::CommandKey;

use crate::home::{private_dir, write_atomic};

/// Certificates that one chain or trust list may hold; more is refused.
pub const CERTIFICATES_MAX: usize = 8;
/// Command keys that may be pinned at the same time (old and new during a rotation, twice).
pub const COMMAND_KEYS_MAX: usize = 4;

/// What enrolment gave this agent.
#[derive(Clone)]
pub struct Identity {
    /// The agent's id.
    pub agent_id: AgentId,
    /// Private key, PKCS#8 DER.
    pub key_der: Vec<u8>,
    /// The agent's certificate, then its issuers.
    pub chain: Vec<CertificateDer<'static>>,
    /// Authorities that servers must be certified by.
    pub trusted: Vec<CertificateDer<'static>>,
    /// Keys that may sign commands.
    pub command_keys: Vec<PinnedKey>,
}

/// An Ed25519 public key that may sign commands.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct PinnedKey {
    /// As commands name it.
    pub key_id: u32,
    /// 32 bytes as 64 hexadecimal digits.
    pub public_key_hex: String,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is absent or unreadable.
    #[error("cannot read {0}: {1}; enrol this agent with `skein-agent enrol`")]
    Read(PathBuf, std::io::Error),
    /// A file cannot be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, std::io::Error),
    /// A file is damaged.
    #[error("{0} is damaged ({1}); enrol this agent again")]
    Damaged(PathBuf, String),
    /// What the server sent is not an identity.
    #[error("the server's answer is not usable: {0}")]
    Answer(String),
}

/// When a certificate is valid, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// From.
    pub not_before_ms: i64,
    /// Until.
    pub not_after_ms: i64,
}

impl Validity {
    /// Whether less than a third of the life is left at `now_ms`.
    pub fn wants_renewal(&self, now_ms: i64) -> bool {
        let life = self.not_after_ms.saturating_sub(self.not_before_ms).max(1);
        self.not_after_ms.saturating_sub(now_ms) < life / 3
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({}, key hidden)", self.agent_id)
    }
}

impl Identity {
    /// Puts together what an enrolment or renewal answered.
    pub fn from_answer(
        agent_id: &str,
        key_der: Vec<u8>,
        chain: &[bytes::Bytes],
        trusted: &[bytes::Bytes],
        command_keys: &[CommandKey],
    ) -> Result<Identity, IdentityError> {
        let answer = |why: &str| IdentityError::Answer(why.to_owned());
        let agent_id = AgentId::parse(agent_id)
            .map_err(|error: IdError| IdentityError::Answer(error.to_string()))?;
        let counts = [chain.len(), trusted.len()];
        if counts.iter().any(|count| *count == 0 || *count > CERTIFICATES_MAX) {
            return Err(answer("no certificates, or too many of them"));
        }
        if command_keys.is_empty() || command_keys.len() > COMMAND_KEYS_MAX {
            return Err(answer("no command keys, or too many of them"));
        }
        let mut pinned = Vec::new();
        for key in command_keys {
            if key.public_key.len() != 32 {
                return Err(answer("a command key is not 32 bytes"));
            }
            pinned.push(PinnedKey {
                key_id: key.key_id,
                public_key_hex: skein_wire::ids::hex_encode(&key.public_key),
            });
        }
        let certificates = |list: &[bytes::Bytes]| {
            list.iter().map(|der| CertificateDer::from(der.to_vec())).collect::<Vec<_>>()
        };
        let identity = Identity {
            agent_id,
            key_der,
            chain: certificates(chain),
            trusted: certificates(trusted),
            command_keys: pinned,
        };
        identity.validity()?;
        identity.check_key()?;
        Ok(identity)
    }

    /// Reads `HOME/identity`.
    pub fn load(dir: &Path) -> Result<Identity, IdentityError> {
        let text = |name: &str| {
            let path = dir.join(name);
            let read = std::fs::read_to_string(&path);
            read.map_err(|error| IdentityError::Read(path, error))
        };
        let damaged = |name: &str, why: String| IdentityError::Damaged(dir.join(name), why);
        let certificates = |name: &str| {
            let pem = text(name)?;
            let list: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(pem.as_bytes()).take(CERTIFICATES_MAX).collect();
            match list {
                Ok(list) if !list.is_empty() => Ok(list),
                Ok(_) => Err(damaged(name, "it holds no certificate".into())),
                Err(error) => Err(damaged(name, error.to_string())),
            }
        };
        let agent_id = AgentId::parse(text("agent_id")?.trim())
            .map_err(|error| damaged("agent_id", error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(text("agent.key")?.as_bytes())
            .map_err(|error| damaged("agent.key", error.to_string()))?;
        let command_keys: Vec<PinnedKey> = serde_json::from_str(&text("command_keys.json")?)
            .map_err(|error| damaged("command_keys.json", error.to_string()))?;
        Ok(Identity {
            agent_id,
            key_der: key.secret_der().to_vec(),
            chain: certificates("agent.crt")?,
            trusted: certificates("ca.pem")?,
            command_keys,
        })
    }

    /// Writes `HOME/identity`, the certificate last: with it the identity is complete.
    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        let failed = |path: PathBuf| move |error| IdentityError::Write(path, error);
        private_dir(dir).map_err(failed(dir.to_owned()))?;
        let pem = |list: &[CertificateDer<'_>]| {
            list.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>()
        };
        let keys = serde_json::to_string_pretty(&self.command_keys)
            .map_err(|error| IdentityError::Answer(error.to_string()))?;
        for (name, text) in [
            ("agent.key", self::pem("PRIVATE KEY", &self.key_der)),
            ("ca.pem", pem(&self.trusted)),
            ("command_keys.json", keys),
            ("agent_id", format!("{}\n", self.agent_id)),
            ("agent.crt", pem(&self.chain)),
        ] {
            let path = dir.join(name);
            write_atomic(&path, 0o600, text.as_bytes()).map_err(failed(path))?;
        }
        Ok(())
    }

    /// When the agent's certificate is valid.
    pub fn validity(&self) -> Result<Validity, IdentityError> {
        let damaged = |why: String| IdentityError::Answer(format!("agent certificate: {why}"));
        let leaf = self.chain.first().ok_or_else(|| damaged("absent".into()))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|error| damaged(error.to_string()))?;
        let validity = certificate.validity();
        Ok(Validity {
            not_before_ms: validity.not_before.timestamp().saturating_mul(1000),
            not_after_ms: validity.not_after.timestamp().saturating_mul(1000),
        })
    }

    /// The certificate must be for our key, else no handshake can succeed.
    fn check_key(&self) -> Result<(), IdentityError> {
        let key = rcgen::KeyPair::try_from(self.key_der.as_slice())
            .map_err(|error| IdentityError::Answer(format!("agent key: {error}")))?;
        let certified = x509_parser::parse_x509_certificate(&self.chain[0])
            .map_err(|error| IdentityError::Answer(error.to_string()))?
            .1;
        let ours = rcgen::PublicKeyData::der_bytes(&key);
        if certified.public_key().subject_public_key.data.as_ref() != ours {
            return Err(IdentityError::Answer("the certificate is for another key".into()));
        }
        Ok(())
    }

    /// The private key as rustls takes it.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()))
    }

    /// The certificate request by which this key asks for a certificate.
    pub fn csr(key_der: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let refused = |error: rcgen::Error| IdentityError::Answer(error.to_string());
        let key = rcgen::KeyPair::try_from(key_der).map_err(refused)?;
        let params = rcgen::CertificateParams::new(Vec::new()).map_err(refused)?;
        Ok(params.serialize_request(&key).map_err(refused)?.der().to_vec())
    }

    /// A new P-256 key, PKCS#8 DER.
    pub fn new_key() -> Result<Vec<u8>, IdentityError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|error| IdentityError::Answer(error.to_string()))?;
        Ok(key.serialize_der())
    }
}

/// The identity in use, replaced by renewal; cheap to share.
#[derive(Clone, Debug)]
pub struct IdentityCell(Arc<std::sync::Mutex<Arc<Identity>>>);

impl IdentityCell {
    /// Starts with `identity`.
    pub fn new(identity: Identity) -> IdentityCell {
        IdentityCell(Arc::new(std::sync::Mutex::new(Arc::new(identity))))
    }
    /// The identity now.
    pub fn get(&self) -> Arc<Identity> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
    /// Takes a renewed one.
    pub fn set(&self, identity: Identity) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(identity);
    }
}

/// SHA-256 of a certificate, as join tokens pin it.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    out
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut base64 = String::with_capacity(der.len().div_ceil(3) * 4);
    for chunk in der.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let six = (bits >> (18 - 6 * digit)) & 0x3f;
            base64.push(if digit <= chunk.len() { ALPHABET[six as usize] as char } else { '=' });
        }
    }
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in base64.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A self-made authority's answer to an enrolment of `agent_id`.
    pub(crate) fn example(agent_id: &str) -> Identity {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.clone().self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
        let key_der = Identity::new_key().unwrap();
        let key = rcgen::KeyPair::try_from(key_der.as_slice()).unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["a.agent.skein".into()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let der = |certificate: &rcgen::Certificate| bytes::Bytes::from(certificate.der().to_vec());
        let keys = [CommandKey { key_id: 1, public_key: vec![7; 32].into() }];
        let chain = [der(&leaf), der(&ca_certificate)];
        Identity::from_answer(agent_id, key_der, &chain, &[der(&ca_certificate)], &keys).unwrap()
    }

    #[test]
    fn an_identity_survives_its_folder() {
        let temp = tempfile::tempdir().unwrap();
        let identity = example("0:10.0.0.1");
        identity.store(temp.path()).unwrap();
        let read = Identity::load(temp.path()).unwrap();
        assert_eq!(read.agent_id, identity.agent_id);
        assert_eq!(read.key_der, identity.key_der);
        assert_eq!(read.chain, identity.chain);
        assert_eq!(read.trusted, identity.trusted);
        assert_eq!(read.command_keys, identity.command_keys);
        assert!(!format!("{read:?}").contains("key_der"));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(temp.path().join("agent.key")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_for_another_key_is_refused() {
        let identity = example("a");
        let chain: Vec<_> =
            identity.chain.iter().map(|der| bytes::Bytes::from(der.to_vec())).collect();
        let keys = [CommandKey { key_id: 1, public_key: vec![7; 32].into() }];
        let other = Identity::new_key().unwrap();
        let error = Identity::from_answer("a", other, &chain, &chain, &keys).unwrap_err();
        assert!(error.to_string().contains("another key"), "{error}");
    }

    #[test]
    fn renewal_is_wanted_in_the_last_third() {
        let validity = Validity { not_before_ms: 0, not_after_ms: 900 };
        assert!(!validity.wants_renewal(500));
        assert!(validity.wants_renewal(601));
        assert!(validity.wants_renewal(5000));
    }
}
