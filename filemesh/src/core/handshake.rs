//! The handshake of BEP 3: which transfer, who speaks, and which extensions.

use super::merkle::Hash;
use super::peer_wire::WireError;
use ring::digest;

/// Bytes of the handshake.
pub const HANDSHAKE_BYTES: usize = 68;

const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";
const RESERVED_EXTENDED: (usize, u8) = (5, 0x10);
const RESERVED_FAST: (usize, u8) = (7, 0x04);
const RESERVED_V2: (usize, u8) = (7, 0x10);

/// What both sides send first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Capability bits.
    pub reserved: [u8; 8],
    /// Which transfer: [`info_hash`].
    pub info_hash: [u8; 20],
    /// Who speaks: [`peer_id`].
    pub peer_id: [u8; 20],
}

/// What a transfer is called in a handshake: the first 20 bytes of SHA-256(transfer id ‖ root).
pub fn info_hash(transfer_id: &[u8; 16], root: &Hash) -> [u8; 20] {
    first_20(&[transfer_id, root])
}

/// What an agent (or `server`) is called in a handshake: the first 20 bytes of SHA-256(its id).
pub fn peer_id(agent_id: &str) -> [u8; 20] {
    first_20(&[agent_id.as_bytes()])
}

fn first_20(parts: &[&[u8]]) -> [u8; 20] {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut id = [0; 20];
    id.copy_from_slice(&context.finish().as_ref()[..20]);
    id
}

impl Handshake {
    /// A handshake that announces what Skein speaks: fast, extended and v2.
    pub fn new(info_hash: [u8; 20], peer_id: [u8; 20]) -> Self {
        let mut reserved = [0; 8];
        for (at, bit) in [RESERVED_EXTENDED, RESERVED_FAST, RESERVED_V2] {
            reserved[at] |= bit;
        }
        Self { reserved, info_hash, peer_id }
    }

    /// A handshake for ordinary clients of BitTorrent version 1: it announces fast alone.
    pub fn plain(info_hash: [u8; 20], peer_id: [u8; 20]) -> Self {
        let mut reserved = [0; 8];
        reserved[RESERVED_FAST.0] |= RESERVED_FAST.1;
        Self { reserved, info_hash, peer_id }
    }

    /// Whether this is for ordinary clients.
    pub fn is_plain(&self) -> bool {
        self.reserved[RESERVED_V2.0] & RESERVED_V2.1 == 0
    }

    /// Whether the sender speaks what `ours` needs of it: BEP 6 and BEP 52 for Skein's own
    /// transfers, BEP 6 alone for a [plain](Self::plain) one.
    pub fn suffices_for(&self, ours: &Self) -> bool {
        [RESERVED_FAST, RESERVED_V2]
            .iter()
            .all(|(at, bit)| ours.reserved[*at] & bit == 0 || self.reserved[*at] & bit != 0)
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HANDSHAKE_BYTES] {
        let mut bytes = [0; HANDSHAKE_BYTES];
        bytes[..20].copy_from_slice(PROTOCOL);
        bytes[20..28].copy_from_slice(&self.reserved);
        bytes[28..48].copy_from_slice(&self.info_hash);
        bytes[48..].copy_from_slice(&self.peer_id);
        bytes
    }

    /// The handshake at the start of `buf`, [`HANDSHAKE_BYTES`] long; `None` while it is not
    /// whole. A wrong protocol name is refused at its first wrong byte.
    pub fn decode(buf: &[u8]) -> Result<Option<Self>, WireError> {
        let seen = buf.len().min(PROTOCOL.len());
        if buf[..seen] != PROTOCOL[..seen] {
            return Err(WireError::Handshake);
        }
        let Some(bytes) = buf.first_chunk::<HANDSHAKE_BYTES>() else { return Ok(None) };
        let mut handshake = Self { reserved: [0; 8], info_hash: [0; 20], peer_id: [0; 20] };
        handshake.reserved.copy_from_slice(&bytes[20..28]);
        handshake.info_hash.copy_from_slice(&bytes[28..48]);
        handshake.peer_id.copy_from_slice(&bytes[48..]);
        Ok(Some(handshake))
    }
}
