//! The rules of the peer wire that a single peer can break.

use super::peer_wire::WireError;

/// A peer that broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Undecodable bytes.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Another transfer than was expected.
    #[error("the peer shook hands for another transfer")]
    OtherTransfer,
    /// It lacks extensions that Skein needs.
    #[error("the peer does not speak the fast extension and BitTorrent v2")]
    Capabilities,
    /// What it has must be its first message, once.
    #[error("the peer did not say what it has as its first message, or said it twice")]
    FirstMessage,
    /// Its bitfield does not fit the file.
    #[error("the peer's bitfield does not fit the file")]
    Bitfield,
    /// A range that is not in the file, or not on block borders.
    #[error(
        "the peer named {len} bytes at {begin} of piece {piece}, which is not a range of blocks"
    )]
    Range {
        /// Piece.
        piece: u32,
        /// Offset in it.
        begin: u32,
        /// Length.
        len: u32,
    },
    /// Data or hashes that nobody asked for.
    #[error("the peer sent something that was not requested")]
    Unrequested,
    /// Data came before the hashes that were asked for ahead of it.
    #[error("the peer sent data or leaves before the hashes that prove them")]
    Order,
    /// A message of the `skein` extension that is not one.
    #[error("the peer sent an illegal message of the skein extension")]
    Extension,
    /// It asks for more than it takes.
    #[error("the peer sends requests and does not read the answers")]
    Flood,
}
