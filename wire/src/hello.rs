//! HELLO and its answer: the first 32 bytes each way inside TLS on every channel.
//!
//! ```text
//! HELLO                                   HELLO_ACK
//!  0  4  magic "SKN1"                      0  4  magic "SKN1"
//!  4  1  lowest version spoken             4  1  version chosen, 0 when refused
//!  5  1  highest version spoken            5  1  status
//!  6  1  kind of channel                   6  2  zero
//!  7  1  zero                              8  4  retry after, ms
//!  8 16  instance                         12  4  zero
//! 24  8  features, a bit set              16  8  session id
//!                                         24  8  server time, ms since 1970
//! ```
//! All numbers are big-endian. Bytes that must be zero are ignored by the receiver, so that they
//! can get a meaning.

use crate::ids::Instance;

/// Bytes of HELLO and of HELLO_ACK.
pub const HELLO_BYTES: usize = 32;

/// The one version that this code speaks.
pub const VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"SKN1";

/// What a channel is for. On TCP each is a connection of its own, so that bulk data never delays
/// a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ChannelKind {
    /// One enrol request of a client without a certificate.
    Enrol = 0,
    /// Heartbeats, commands and reports.
    Signal = 1,
    /// Batches of records and their acknowledgements.
    Data = 2,
    /// Pieces of files.
    File = 3,
}

impl ChannelKind {
    fn from_u8(value: u8) -> Option<Self> {
        [Self::Enrol, Self::Signal, Self::Data, Self::File]
            .into_iter()
            .find(|kind| *kind as u8 == value)
    }

    /// The name used in logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrol => "enrol",
            Self::Signal => "signal",
            Self::Data => "data",
            Self::File => "file",
        }
    }
}

/// Why a HELLO is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first bytes are not ours.
    #[error("not a Skein channel: wrong magic; is something else connected to this port?")]
    Magic,
    /// A kind or status that this version does not know.
    #[error("unknown {0} {1}")]
    Unknown(&'static str, u8),
    /// Lowest version above highest.
    #[error("impossible version range {0} to {1}")]
    Versions(u8, u8),
}

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lowest version that the client speaks.
    pub min_version: u8,
    /// Highest version that the client speaks.
    pub max_version: u8,
    /// What this channel is for.
    pub kind: ChannelKind,
    /// This start of the client.
    pub instance: Instance,
    /// Optional features, a bit each; none is defined yet.
    pub features: u64,
}

impl Hello {
    /// A HELLO of this version.
    pub fn new(kind: ChannelKind, instance: Instance) -> Self {
        Self { min_version: VERSION, max_version: VERSION, kind, instance, features: 0 }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.min_version;
        out[5] = self.max_version;
        out[6] = self.kind as u8;
        out[8..24].copy_from_slice(&self.instance.0);
        out[24..].copy_from_slice(&self.features.to_be_bytes());
        out
    }

    /// Reads and checks the bytes of [`Hello::encode`].
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        if bytes[..4] != MAGIC {
            return Err(HelloError::Magic);
        }
        let (min_version, max_version) = (bytes[4], bytes[5]);
        if min_version > max_version || min_version == 0 {
            return Err(HelloError::Versions(min_version, max_version));
        }
        let kind = ChannelKind::from_u8(bytes[6])
            .ok_or(HelloError::Unknown("kind of channel", bytes[6]))?;
        Ok(Self {
            min_version,
            max_version,
            kind,
            instance: Instance(array(&bytes[8..24])),
            features: u64::from_be_bytes(array(&bytes[24..32])),
        })
    }
}

/// The version both sides speak, or none.
pub fn negotiate(hello: &Hello) -> Option<u8> {
    (hello.min_version <= VERSION && VERSION <= hello.max_version).then_some(VERSION)
}

/// The server's decision on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HelloStatus {
    /// The channel is open.
    Ok = 0,
    /// No common version; upgrade the older side.
    Version = 1,
    /// Another living instance has this identity.
    IdentityInUse = 2,
    /// The identity was revoked; enrol again.
    Revoked = 3,
    /// The server is busy; come back after the given time.
    RetryLater = 4,
    /// This kind of channel needs a client certificate (or must not have one).
    Unauthorised = 5,
    /// The server is going away; use another or come back.
    Draining = 6,
}

impl HelloStatus {
    fn from_u8(value: u8) -> Option<Self> {
        [
            Self::Ok,
            Self::Version,
            Self::IdentityInUse,
            Self::Revoked,
            Self::RetryLater,
            Self::Unauthorised,
            Self::Draining,
        ]
        .into_iter()
        .find(|status| *status as u8 == value)
    }

    /// The name used in logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Version => "version",
            Self::IdentityInUse => "identity_in_use",
            Self::Revoked => "revoked",
            Self::RetryLater => "retry_later",
            Self::Unauthorised => "unauthorised",
            Self::Draining => "draining",
        }
    }
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloAck {
    /// The version chosen; 0 when refused.
    pub version: u8,
    /// Whether the channel is open, else why not.
    pub status: HelloStatus,
    /// When refused: the client's own slot for its next attempt; 0: its own back-off.
    pub retry_after_ms: u32,
    /// Names this session in logs of both sides.
    pub session_id: u64,
    /// The server's clock, milliseconds since 1970; deadlines of commands are in it.
    pub server_time_ms: u64,
}

impl HelloAck {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.version;
        out[5] = self.status as u8;
        out[8..12].copy_from_slice(&self.retry_after_ms.to_be_bytes());
        out[16..24].copy_from_slice(&self.session_id.to_be_bytes());
        out[24..].copy_from_slice(&self.server_time_ms.to_be_bytes());
        out
    }

    /// Reads and checks the bytes of [`HelloAck::encode`].
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        if bytes[..4] != MAGIC {
            return Err(HelloError::Magic);
        }
        let status =
            HelloStatus::from_u8(bytes[5]).ok_or(HelloError::Unknown("status", bytes[5]))?;
        Ok(Self {
            version: bytes[4],
            status,
            retry_after_ms: u32::from_be_bytes(array(&bytes[8..12])),
            session_id: u64::from_be_bytes(array(&bytes[16..24])),
            server_time_ms: u64::from_be_bytes(array(&bytes[24..32])),
        })
    }
}

/// A fixed-size copy of a slice whose length the caller fixed by its range.
pub(crate) fn array<const N: usize>(slice: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(slice);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hello_has_the_documented_bytes() {
        let hello = Hello::new(ChannelKind::Data, Instance([7; 16]));
        let mut expected = *b"SKN1\x01\x01\x02\x00................\x00\x00\x00\x00\x00\x00\x00\x00";
        expected[8..24].fill(7);
        assert_eq!(hello.encode(), expected);
        assert_eq!(Hello::decode(&expected), Ok(hello));
    }

    #[test]
    fn versions_without_overlap_are_refused() {
        let mut hello = Hello::new(ChannelKind::Signal, Instance([0; 16]));
        assert_eq!(negotiate(&hello), Some(VERSION));
        hello.max_version = VERSION + 3;
        assert_eq!(negotiate(&hello), Some(VERSION));
        hello.min_version = VERSION + 1;
        assert_eq!(negotiate(&hello), None);
    }

    proptest! {
        #[test]
        fn any_32_bytes_are_read_or_refused(bytes in any::<[u8; 32]>(), ours in any::<bool>()) {
            let mut bytes = bytes;
            if ours {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            if let Ok(hello) = Hello::decode(&bytes) {
                prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            }
            if let Ok(ack) = HelloAck::decode(&bytes) {
                prop_assert_eq!(HelloAck::decode(&ack.encode()), Ok(ack));
            }
        }
    }
}
