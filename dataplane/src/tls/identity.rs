//! Who a client certificate belongs to. rustls has already verified the chain; here only the
//! agent id (the subject's common name) and the serial, by which it can be revoked, are read.

use skein_wire::ids::AgentId;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The authenticated peer of a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerIdentity {
    /// Common name of the certificate.
    pub agent: AgentId,
    /// Serial of the certificate, lower-case hex without leading zero bytes.
    pub serial: String,
}

/// A certificate of a trusted authority that names no agent.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate that the parser knows.
    #[error("client certificate cannot be parsed")]
    Malformed,
    /// No common name, several, or one that is not an agent id.
    #[error("client certificate does not name an agent in its common name")]
    NoAgentId,
}

impl PeerIdentity {
    /// Reads a verified end-entity certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::Malformed)?;
        let mut names = certificate.subject().iter_common_name();
        let (Some(name), None) = (names.next(), names.next()) else {
            return Err(IdentityError::NoAgentId);
        };
        let name = name.as_str().map_err(|_| IdentityError::NoAgentId)?;
        let agent = AgentId::parse(name).map_err(|_| IdentityError::NoAgentId)?;
        Ok(Self { agent, serial: serial_hex(certificate.raw_serial()) })
    }
}

/// Hex of a DER serial; the sign byte that DER puts before a high bit is not part of the number.
pub(crate) fn serial_hex(raw: &[u8]) -> String {
    let digits = &raw[raw.iter().take_while(|b| **b == 0).count()..];
    digits.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_have_no_sign_byte() {
        assert_eq!(serial_hex(&[0, 0x8f, 1]), "8f01");
        assert_eq!(serial_hex(&[0x0a]), "0a");
        assert_eq!(serial_hex(&[]), "");
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(PeerIdentity::from_der(b"").is_err());
        assert!(PeerIdentity::from_der(&[0x30; 300]).is_err());
    }
}
