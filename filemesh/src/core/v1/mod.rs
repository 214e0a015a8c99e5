//! BitTorrent version 1 with ordinary clients: SHA-1 of whole pieces, no TLS, no membership.
//!
//! Nothing of Skein's own transfers runs this way; it exists for exported torrents. What differs
//! from the rest of `core` is the proof: a piece is true or false as a whole, so its bytes wait in
//! memory until its last one is here, and only then may they be written or offered to others. A
//! false piece names the peer only because there is but one. Serving needs nothing new: a
//! [`Seeder`](super::seeder::Seeder) with [`Handshake::plain`](super::peer_wire::Handshake::plain)
//! answers any client, which never asks it for hashes.

mod leecher;

pub use leecher::{ARRIVING_BYTES_MAX, V1Action, V1Failure, V1Leecher};

#[cfg(test)]
mod tests;
