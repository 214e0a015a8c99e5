//! A certificate request from outside: only its key counts, and only when it signed the request.

use rcgen::SubjectPublicKeyInfo;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use skein_wire::merkle::sha256;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Longest request; a P-256 request has about 400 bytes.
pub const CSR_BYTES_MAX: usize = 4_096;

/// 1.2.840.10045.4.3.2, ecdsa-with-SHA256.
const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
/// 1.2.840.10045.3.1.7, the curve P-256.
const PRIME256V1: &str = "1.2.840.10045.3.1.7";

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than any honest request.
    #[error("the certificate request has {0} bytes; at most {CSR_BYTES_MAX} are taken")]
    TooLong(usize),
    /// Not PKCS#10.
    #[error("the certificate request is not PKCS#10 in DER")]
    Malformed,
    /// Another kind of key.
    #[error("the certificate request must have a P-256 key and be signed with ECDSA and SHA-256")]
    KeyType,
    /// The requester does not hold the key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
}

/// A public key whose owner has proved that it holds the private one.
#[derive(Clone, Debug)]
pub struct CertifiedKey {
    pub(super) key: SubjectPublicKeyInfo,
    /// SHA-256 of the key (SubjectPublicKeyInfo, DER): the identity of its owner.
    pub sha256: [u8; 32],
}

impl CertifiedKey {
    /// Checks a request and takes its key.
    pub fn from_csr(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(CsrError::TooLong(der.len()));
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &csr.certification_request_info;
        let point = info.subject_pki.subject_public_key.data.as_ref();
        let key =
            SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| CsrError::KeyType)?;
        let curve = info.subject_pki.algorithm.parameters.as_ref();
        let curve = curve.and_then(|curve| curve.as_oid().ok()).map(|oid| oid.to_id_string());
        let is_p256 = curve.as_deref() == Some(PRIME256V1);
        let signed_so = csr.signature_algorithm.algorithm.to_id_string() == ECDSA_SHA256;
        if !is_p256 || !signed_so || point.len() != 65 {
            return Err(CsrError::KeyType);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(info.raw, csr.signature_value.data.as_ref())
            .map_err(|_| CsrError::Signature)?;
        Ok(Self { key, sha256: sha256(info.subject_pki.raw) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn csr(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn an_honest_request_yields_its_key() {
        let key = KeyPair::generate().unwrap();
        let first = CertifiedKey::from_csr(&csr(&key)).unwrap();
        let second = CertifiedKey::from_csr(&csr(&key)).unwrap();
        assert_eq!(first.sha256, second.sha256, "the same key is the same identity");
    }

    #[test]
    fn altered_foreign_and_torn_requests_are_refused() {
        let good = csr(&KeyPair::generate().unwrap());
        let sha256 = CertifiedKey::from_csr(&good).unwrap().sha256;
        for at in 0..good.len() {
            let mut altered = good.clone();
            altered[at] ^= 1;
            // A few bits of the envelope are not signed and do not matter; the key always is.
            let same = CertifiedKey::from_csr(&altered).is_ok_and(|key| key.sha256 == sha256);
            assert!(same || CertifiedKey::from_csr(&altered).is_err(), "bit 0 of byte {at}");
            assert!(CertifiedKey::from_csr(&good[..at]).is_err(), "cut to {at} bytes");
        }
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(CertifiedKey::from_csr(&csr(&p384)).unwrap_err(), CsrError::KeyType);
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert_eq!(CertifiedKey::from_csr(&csr(&ed25519)).unwrap_err(), CsrError::KeyType);
        assert_eq!(CertifiedKey::from_csr(&[0; 5_000]).unwrap_err(), CsrError::TooLong(5_000));
    }
}
