//! What a swarm tells its caller.

use super::super::download::PeerKey;
use super::super::hashes::FalseHashes;
use super::super::link::LinkError;
use super::super::merkle::Hash;
use crate::core::plan::Member;
use std::ops::Range;
use std::sync::Arc;

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write these proved bytes of the buffer given to [`Swarm::receive`](super::Swarm::receive)
    /// at `offset`, then call [`Swarm::written`](super::Swarm::written). From now on they may be
    /// asked for by [`Pull::Data`](super::Pull::Data), written or not.
    Write {
        /// Where in the file.
        offset: u64,
        /// Where in the buffer.
        data: Range<usize>,
    },
    /// Keep the proved leaves of a piece, padded to a power of two, where
    /// [`Pull::Leaves`](super::Pull::Leaves) can read them. Comes once per piece.
    Leaves {
        /// The piece.
        piece: u32,
        /// Its leaves.
        leaves: Arc<[Hash]>,
    },
    /// Open a connection to this member and call [`Swarm::connected`](super::Swarm::connected), or
    /// [`Swarm::connect_failed`](super::Swarm::connect_failed).
    Connect(Member),
    /// Close this connection; the swarm knows the key no longer. What was pulled may still be sent.
    Close {
        /// Which.
        key: PeerKey,
        /// The member at its other end.
        member: Member,
        /// Why.
        why: CloseReason,
    },
    /// A planned parent made no progress in time. Comes once until it makes progress again, for a
    /// caller that reports at once; [`Report::late`] repeats it.
    ParentLate(Member),
    /// Everything is proved and written. Comes once; the swarm goes on serving.
    Done,
}

/// Why a swarm ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// A block was false; nothing of it was kept or relayed.
    #[error("it sent a false block at byte {offset}")]
    FalseBlock {
        /// Where the block starts in the file.
        offset: u64,
    },
    /// Hashes were false.
    #[error("it lied: {0}")]
    FalseHashes(FalseHashes),
    /// It broke the protocol.
    #[error(transparent)]
    Protocol(#[from] LinkError),
    /// Nothing came for too long.
    #[error("it sent nothing for {waited_ms} ms")]
    Silent {
        /// How long.
        waited_ms: u64,
    },
    /// There is another connection with the same member.
    #[error("another connection with this member is kept")]
    Duplicate,
    /// It sent false bytes before.
    #[error("it sent false bytes earlier in this transfer")]
    Banned,
    /// Too many connections.
    #[error("all connections of this transfer are taken")]
    Crowded,
    /// Neither the plan nor the peer needs the connection.
    #[error("the plan does not need this connection any more")]
    Unneeded,
}

impl CloseReason {
    /// Whether the peer is to blame for false bytes, so that it must not be asked again.
    pub fn is_lie(&self) -> bool {
        matches!(self, Self::FalseBlock { .. } | Self::FalseHashes(_))
    }
}

/// What changed since the last report, for the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Number of the plan that is followed.
    pub plan: u32,
    /// Pieces that became complete, as ranges in rising order.
    pub gained: Vec<Range<u32>>,
    /// Bytes of the file that were handed out to be sent.
    pub up_bytes: u64,
    /// Bytes of the file that arrived, false and double ones included.
    pub down_bytes: u64,
    /// Planned parents that are late or whose stripes are behind the others, at this moment.
    pub late: Vec<Member>,
    /// Members that sent false bytes, since the start.
    pub liars: Vec<Member>,
}

/// Numbers as ranges; they need not be in order.
pub(super) fn ranges(mut numbers: Vec<u32>) -> Vec<Range<u32>> {
    numbers.sort_unstable();
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => ranges.push(number..number + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges() {
        assert_eq!(ranges(vec![]), []);
        assert_eq!(ranges(vec![4, 1, 3, 9, 2]), [1..5, 9..10]);
    }
}
