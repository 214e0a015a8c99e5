//! Why fetching from one peer ended early, in words for an operator, and who is to blame.

use super::hashes::FalseHashes;
use super::link::LinkError;

/// Why a link ended before its file was complete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A block was false.
    #[error("peer {peer} sent a false block at byte {offset}; nothing of it was kept")]
    FalseBlock {
        /// The caller's name for the peer.
        peer: String,
        /// Where the block starts in the file.
        offset: u64,
    },
    /// Hashes were false.
    #[error("peer {peer} lied: {false_hashes}")]
    FalseHashes {
        /// The caller's name for the peer.
        peer: String,
        /// What it claimed.
        false_hashes: FalseHashes,
    },
    /// The peer broke the protocol.
    #[error("peer {peer}: {error}")]
    Protocol {
        /// The caller's name for the peer.
        peer: String,
        /// The rule.
        error: LinkError,
    },
    /// The peer refused what it has.
    #[error("peer {peer} no longer serves this file; try again later")]
    Refused {
        /// The caller's name for the peer.
        peer: String,
    },
    /// Nothing came for too long.
    #[error("peer {peer} sent nothing for {waited_ms} ms; reconnect")]
    Stalled {
        /// The caller's name for the peer.
        peer: String,
        /// How long.
        waited_ms: u64,
    },
}

impl Failure {
    /// Whether the peer is to blame for false bytes, so that it must not be asked again.
    pub fn is_lie(&self) -> bool {
        matches!(self, Self::FalseBlock { .. } | Self::FalseHashes { .. })
    }
}
