//! The join token: what an operator carries to a new host.
//!
//! `skein1.<id>.<secret>.<ca>`: 16 hexadecimal digits that name the token, 32 that prove it, and
//! the SHA-256 of the certificate authority (64 digits), by which the new agent knows the right
//! server before it trusts anything.

use std::fmt;
use std::str::FromStr;

use crate::ids::{hex_decode, hex_encode};

/// A join token in full. Its `Debug` form hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names the token in lists and logs.
    pub id: [u8; 8],
    /// Proves it; the server stores only a hash.
    pub secret: [u8; 16],
    /// SHA-256 of the authority's certificate in DER.
    pub ca_sha256: [u8; 32],
}

/// The text is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a join token: expected skein1.<16 hex digits>.<32>.<64>, as `skein token create` prints it"
)]
pub struct TokenError;

impl JoinToken {
    /// The id as text.
    pub fn id_text(&self) -> String {
        hex_encode(&self.id)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [id, secret, ca] = [&self.id[..], &self.secret, &self.ca_sha256].map(hex_encode);
        write!(f, "skein1.{id}.{secret}.{ca}")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret hidden)", self.id_text())
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let mut part = || parts.next().ok_or(TokenError);
        if part()? != "skein1" {
            return Err(TokenError);
        }
        let token = Self {
            id: hex_decode(part()?).ok_or(TokenError)?,
            secret: hex_decode(part()?).ok_or(TokenError)?,
            ca_sha256: hex_decode(part()?).ok_or(TokenError)?,
        };
        parts.next().is_none().then_some(token).ok_or(TokenError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_hide_their_secret() {
        let token = JoinToken { id: [1; 8], secret: [0xab; 16], ca_sha256: [3; 32] };
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse::<JoinToken>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("abab"));
        for wrong in ["", "skein1", "skein2.0.0.0", &text[1..], &format!("{text}.x")] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(TokenError), "{wrong}");
        }
    }
}
