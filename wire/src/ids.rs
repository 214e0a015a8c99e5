//! Names of things: every identity is a type of its own, so that none is taken for another.

use std::fmt;
use std::sync::Arc;

/// What is wrong with an identity that came from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Agent ids have 1 to 64 characters.
    #[error("agent id has {0} characters; 1 to 64 are allowed")]
    Length(usize),
    /// Agent ids are made of letters, digits and `:._-`.
    #[error("agent id has a character other than letters, digits and :._-")]
    Character,
    /// The binary form of an id is 16 bytes.
    #[error("{kind} has {bytes} bytes; it must have 16")]
    Bytes {
        /// Which id.
        kind: &'static str,
        /// What came.
        bytes: usize,
    },
    /// The text form of an id is 32 hexadecimal digits.
    #[error("{0} must be 32 hexadecimal digits")]
    Hex(&'static str),
}

/// An agent, for its whole life. GSE's `bk_agent_id`: opaque, at most 64 characters; the legacy
/// form `cloud:ip` is one too.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId(Arc<str>);

impl AgentId {
    /// Most characters of an agent id.
    pub const CHARS_MAX: usize = 64;

    /// Checks length and characters. The id is safe in file names, except that it may be `.` or
    /// `..`: those are refused too.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.is_empty() || text.len() > Self::CHARS_MAX {
            return Err(IdError::Length(text.len()));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'.' | b'_' | b'-');
        if !text.bytes().all(allowed) || text.bytes().all(|b| b == b'.') {
            return Err(IdError::Character);
        }
        Ok(Self(Arc::from(text)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentId({})", self.0)
    }
}

/// Names a kind of data and the route it takes; GSE's data id or channel id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataId(pub u32);

/// One life of a lane's history. Rises when a lane starts again without its past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// A record's number in its lane and epoch, from 0. Positions are exclusive ends: position 10
/// means that records 0 to 9 are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The first position of an epoch.
    pub const ZERO: Self = Self(0);

    /// The position `records` later; saturates, as nothing real reaches 2^64 records.
    pub fn plus(self, records: u64) -> Self {
        Self(self.0.saturating_add(records))
    }
}

impl fmt::Display for DataId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! binary_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// From the 16 bytes of a message field.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                let bytes16 = bytes
                    .try_into()
                    .map_err(|_| IdError::Bytes { kind: $kind, bytes: bytes.len() })?;
                Ok(Self(bytes16))
            }

            /// The 16 bytes, shared, as message fields take them.
            pub fn to_bytes(&self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                hex_decode::<16>(text).map(Self).ok_or(IdError::Hex($kind))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&hex_encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

binary_id! {
    /// One distribution of one file.
    TransferId, "transfer id"
}
binary_id! {
    /// One script on many hosts.
    TaskId, "task id"
}
binary_id! {
    /// One signed dispatch.
    CommandId, "command id"
}
binary_id! {
    /// One start of an agent's worker: tells a returning agent from a second one with its identity.
    Instance, "instance"
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex_encode(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Exactly `N` bytes from `2 N` hexadecimal digits of either case.
pub fn hex_decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16)?;
        let low = (pair[1] as char).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_ids_of_both_generations_are_accepted() {
        for id in ["02000000005254003dd2ea1700473962076n", "0:10.0.0.1", "a", &"x".repeat(64)] {
            assert_eq!(AgentId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn hostile_agent_ids_are_refused() {
        for id in ["", "..", ".", "a/b", "a b", "a\n", "é", "a\0", &"x".repeat(65)] {
            assert!(AgentId::parse(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn binary_ids_round_trip_as_text() {
        let id = TransferId([0xa7; 16]);
        assert_eq!(id.to_string().parse::<TransferId>().unwrap(), id);
        assert!("a7".parse::<TransferId>().is_err());
        assert!("zz".repeat(16).parse::<TransferId>().is_err());
        assert!(TransferId::from_slice(&[0; 15]).is_err());
    }
}
