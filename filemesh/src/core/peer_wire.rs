//! The peer wire: BEP 3 handshake and the messages of BEP 3, 6 (fast), 10 (extended) and 52 (hashes).
//!
//! A message is a big-endian u32 length, one type byte and a body. Its length is judged from the
//! first five bytes, before anything is kept or waited for: every type has an exact length or a
//! stated bound. A piece message is decoded up to the start of its data, which the reader then
//! takes from the stream block by block; so a receive buffer of [`MESSAGE_BYTES_MAX`] is always
//! enough, whatever the size of a request.

use super::geometry::{BLOCK_BYTES, PIECES_MAX};
use super::merkle::{HASH_BYTES, Hash};

pub use super::handshake::{HANDSHAKE_BYTES, Handshake, info_hash, peer_id};

/// Largest request: 16 blocks.
pub const REQUEST_BYTES_MAX: u32 = 256 * 1024;

/// Most base hashes in one hashes message: the leaves of the largest piece.
pub const HASHES_MAX: u32 = 1_024;

/// Most uncles: a tree of 2^26 leaves has fewer levels.
pub const UNCLES_MAX: u32 = 32;

/// Largest payload of an extended or unknown message.
pub const EXTENDED_BYTES_MAX: usize = 16 * 1024;

/// Bytes in front of a piece message's data: length, type, piece, begin.
pub const PIECE_HEADER_BYTES: usize = 13;

/// Bytes that decoding ever needs at once: a full hashes message.
pub const MESSAGE_BYTES_MAX: usize =
    4 + 1 + HASH_RANGE_BYTES + (HASHES_MAX + UNCLES_MAX) as usize * HASH_BYTES;

const HASH_RANGE_BYTES: usize = 32 + 4 * 4;

const _: () = {
    assert!(4 + 1 + PIECES_MAX as usize / 8 <= MESSAGE_BYTES_MAX);
    assert!(4 + 1 + EXTENDED_BYTES_MAX <= MESSAGE_BYTES_MAX);
    assert!(PIECE_HEADER_BYTES + BLOCK_BYTES as usize <= MESSAGE_BYTES_MAX);
};

/// A range of bytes of one piece, as requests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    /// Index of the piece.
    pub piece: u32,
    /// Offset in the piece.
    pub begin: u32,
    /// Number of bytes.
    pub len: u32,
}

/// An aligned range of hashes of one level of a file's tree and the proof wanted for it (BEP 52).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashRange {
    /// Root of the file's tree.
    pub root: Hash,
    /// Level of the hashes: 0 is the leaves.
    pub base_layer: u32,
    /// First hash; a multiple of `length`.
    pub index: u32,
    /// Number of hashes: a power of two, at least 2.
    pub length: u32,
    /// Levels above the base layer for which the proof is wanted.
    pub proof_layers: u32,
}

impl HashRange {
    /// Hashes of the proof: one per proof layer that the range itself does not determine.
    pub fn uncle_count(&self) -> u32 {
        self.proof_layers.saturating_sub(self.length.ilog2() - 1)
    }

    /// Bytes of the hashes in the answer.
    pub fn answer_bytes(&self) -> usize {
        (self.length + self.uncle_count()) as usize * HASH_BYTES
    }

    /// The proof layers to ask for so that the range is proved up to `height` above the leaves.
    pub fn proof_layers_to(base_layer: u32, length: u32, height: u32) -> u32 {
        let proved_alone = base_layer + length.ilog2() >= height;
        if proved_alone { 0 } else { height - base_layer - 1 }
    }

    fn is_legal(&self) -> bool {
        self.length >= 2
            && self.length.is_power_of_two()
            && self.length <= HASHES_MAX
            && self.index.is_multiple_of(self.length)
            && self.index.checked_add(self.length).is_some()
            && self.base_layer < UNCLES_MAX
            && self.proof_layers <= UNCLES_MAX
    }
}

/// One message. What is borrowed lies in the buffer that was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the variants are those of the BEPs
pub enum Message<'a> {
    KeepAlive,
    Choke,
    Unchoke,
    Interested,
    NotInterested,
    Have(u32),
    Bitfield(&'a [u8]),
    Request(BlockRange),
    /// `len` bytes of data follow in the stream.
    Piece(BlockRange),
    Cancel(BlockRange),
    Port(u16),
    Suggest(u32),
    HaveAll,
    HaveNone,
    Reject(BlockRange),
    AllowedFast(u32),
    Extended(u8, &'a [u8]),
    HashRequest(HashRange),
    Hashes(HashRange, &'a [u8]),
    HashReject(HashRange),
    /// A type that is not known here; to be ignored.
    Unknown(u8),
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first bytes are no BitTorrent handshake.
    #[error("the peer did not start with a BitTorrent handshake")]
    Handshake,
    /// A length that the type cannot have.
    #[error("a message of type {kind} with {len} bytes")]
    Length {
        /// Type byte.
        kind: u8,
        /// Length of type and body as the peer stated it.
        len: u32,
    },
    /// A request or piece that is empty or too long.
    #[error("a block range of {0} bytes; 1 to {REQUEST_BYTES_MAX} are allowed")]
    BlockRange(u32),
    /// A hash range that BEP 52 or our limits do not allow.
    #[error("a hash range of {length} hashes at {index}")]
    HashRange {
        /// Its first hash.
        index: u32,
        /// Its length.
        length: u32,
    },
}

mod kind {
    pub const CHOKE: u8 = 0;
    pub const UNCHOKE: u8 = 1;
    pub const INTERESTED: u8 = 2;
    pub const NOT_INTERESTED: u8 = 3;
    pub const HAVE: u8 = 4;
    pub const BITFIELD: u8 = 5;
    pub const REQUEST: u8 = 6;
    pub const PIECE: u8 = 7;
    pub const CANCEL: u8 = 8;
    pub const PORT: u8 = 9;
    pub const SUGGEST: u8 = 13;
    pub const HAVE_ALL: u8 = 14;
    pub const HAVE_NONE: u8 = 15;
    pub const REJECT: u8 = 16;
    pub const ALLOWED_FAST: u8 = 17;
    pub const EXTENDED: u8 = 20;
    pub const HASH_REQUEST: u8 = 21;
    pub const HASHES: u8 = 22;
    pub const HASH_REJECT: u8 = 23;
}

/// Whether `len`, which counts the type byte, is a length that a message of `kind` can have.
fn length_is_legal(kind: u8, len: usize) -> bool {
    const RANGE: usize = 1 + HASH_RANGE_BYTES;
    match kind {
        kind::CHOKE | kind::UNCHOKE | kind::INTERESTED | kind::NOT_INTERESTED => len == 1,
        kind::HAVE_ALL | kind::HAVE_NONE => len == 1,
        kind::HAVE | kind::SUGGEST | kind::ALLOWED_FAST => len == 5,
        kind::PORT => len == 3,
        kind::BITFIELD => len <= 1 + PIECES_MAX as usize / 8,
        kind::REQUEST | kind::CANCEL | kind::REJECT => len == 13,
        kind::PIECE => len > 9 && len <= 9 + REQUEST_BYTES_MAX as usize,
        kind::EXTENDED => (2..=1 + EXTENDED_BYTES_MAX).contains(&len),
        kind::HASH_REQUEST | kind::HASH_REJECT => len == RANGE,
        kind::HASHES => (RANGE..=MESSAGE_BYTES_MAX - 4).contains(&len),
        _ => len <= 1 + EXTENDED_BYTES_MAX,
    }
}

/// The message at the start of `buf` and the bytes it takes; `None` while it is not whole. Of a
/// piece message the data is not counted.
pub fn decode(buf: &[u8]) -> Result<Option<(Message<'_>, usize)>, WireError> {
    let Some((len, rest)) = buf.split_first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*len);
    if len == 0 {
        return Ok(Some((Message::KeepAlive, 4)));
    }
    let Some((&kind, body)) = rest.split_first() else { return Ok(None) };
    let error = WireError::Length { kind, len };
    if !length_is_legal(kind, len as usize) {
        return Err(error);
    }
    let (body_len, data_len) =
        if kind == kind::PIECE { (8, len - 9) } else { (len as usize - 1, 0) };
    let Some(body) = body.get(..body_len) else { return Ok(None) };
    let message = Body(body).message(kind, data_len).ok_or(error)??;
    Ok(Some((message, 5 + body_len)))
}

/// A reader over a body whose length was checked; `None` would mean that the check was wrong.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn block_range(&mut self, len: Option<u32>) -> Option<Result<BlockRange, WireError>> {
        let (piece, begin) = (self.u32()?, self.u32()?);
        let len = len.or_else(|| self.u32())?;
        let legal = (1..=REQUEST_BYTES_MAX).contains(&len);
        let range = BlockRange { piece, begin, len };
        Some(legal.then_some(range).ok_or(WireError::BlockRange(len)))
    }

    fn hash_range(&mut self) -> Option<Result<HashRange, WireError>> {
        let range = HashRange {
            root: self.array()?,
            base_layer: self.u32()?,
            index: self.u32()?,
            length: self.u32()?,
            proof_layers: self.u32()?,
        };
        let error = WireError::HashRange { index: range.index, length: range.length };
        Some(range.is_legal().then_some(range).ok_or(error))
    }

    fn message(mut self, kind: u8, data_len: u32) -> Option<Result<Message<'a>, WireError>> {
        Some(Ok(match kind {
            kind::CHOKE => Message::Choke,
            kind::UNCHOKE => Message::Unchoke,
            kind::INTERESTED => Message::Interested,
            kind::NOT_INTERESTED => Message::NotInterested,
            kind::HAVE => Message::Have(self.u32()?),
            kind::BITFIELD => Message::Bitfield(self.0),
            kind::REQUEST => return Some(self.block_range(None)?.map(Message::Request)),
            kind::PIECE => return Some(self.block_range(Some(data_len))?.map(Message::Piece)),
            kind::CANCEL => return Some(self.block_range(None)?.map(Message::Cancel)),
            kind::PORT => Message::Port(self.array().map(u16::from_be_bytes)?),
            kind::SUGGEST => Message::Suggest(self.u32()?),
            kind::HAVE_ALL => Message::HaveAll,
            kind::HAVE_NONE => Message::HaveNone,
            kind::REJECT => return Some(self.block_range(None)?.map(Message::Reject)),
            kind::ALLOWED_FAST => Message::AllowedFast(self.u32()?),
            kind::EXTENDED => {
                let [id] = self.array()?;
                Message::Extended(id, self.0)
            }
            kind::HASH_REQUEST => return Some(self.hash_range()?.map(Message::HashRequest)),
            kind::HASH_REJECT => return Some(self.hash_range()?.map(Message::HashReject)),
            kind::HASHES => {
                let range = match self.hash_range()? {
                    Ok(range) => range,
                    Err(error) => return Some(Err(error)),
                };
                if self.0.len() != range.answer_bytes() {
                    return None;
                }
                Message::Hashes(range, self.0)
            }
            unknown => Message::Unknown(unknown),
        }))
    }
}

impl Message<'_> {
    /// Appends the bytes on the wire; of a piece message everything but the data. Bodies longer
    /// than their bound are a fault of the caller and refused by every decoder.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        let mut data_len = 0;
        match *self {
            Message::KeepAlive => {}
            Message::Choke => out.push(kind::CHOKE),
            Message::Unchoke => out.push(kind::UNCHOKE),
            Message::Interested => out.push(kind::INTERESTED),
            Message::NotInterested => out.push(kind::NOT_INTERESTED),
            Message::Have(piece) => put(out, kind::HAVE, &[piece]),
            Message::Bitfield(bits) => {
                out.push(kind::BITFIELD);
                out.extend_from_slice(bits);
            }
            Message::Request(range) => put_block(out, kind::REQUEST, &range),
            Message::Piece(range) => {
                put(out, kind::PIECE, &[range.piece, range.begin]);
                data_len = range.len;
            }
            Message::Cancel(range) => put_block(out, kind::CANCEL, &range),
            Message::Port(port) => {
                out.push(kind::PORT);
                out.extend_from_slice(&port.to_be_bytes());
            }
            Message::Suggest(piece) => put(out, kind::SUGGEST, &[piece]),
            Message::HaveAll => out.push(kind::HAVE_ALL),
            Message::HaveNone => out.push(kind::HAVE_NONE),
            Message::Reject(range) => put_block(out, kind::REJECT, &range),
            Message::AllowedFast(piece) => put(out, kind::ALLOWED_FAST, &[piece]),
            Message::Extended(id, payload) => {
                out.extend_from_slice(&[kind::EXTENDED, id]);
                out.extend_from_slice(payload);
            }
            Message::HashRequest(range) => put_hashes(out, kind::HASH_REQUEST, &range),
            Message::Hashes(range, hashes) => {
                put_hashes(out, kind::HASHES, &range);
                out.extend_from_slice(hashes);
            }
            Message::HashReject(range) => put_hashes(out, kind::HASH_REJECT, &range),
            Message::Unknown(kind) => out.push(kind),
        }
        let len = (out.len() - start - 4) as u32 + data_len;
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    }
}

fn put(out: &mut Vec<u8>, kind: u8, words: &[u32]) {
    out.push(kind);
    words.iter().for_each(|word| out.extend_from_slice(&word.to_be_bytes()));
}

fn put_block(out: &mut Vec<u8>, kind: u8, range: &BlockRange) {
    put(out, kind, &[range.piece, range.begin, range.len]);
}

fn put_hashes(out: &mut Vec<u8>, kind: u8, range: &HashRange) {
    out.push(kind);
    out.extend_from_slice(&range.root);
    for word in [range.base_layer, range.index, range.length, range.proof_layers] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

#[cfg(test)]
#[path = "peer_wire_tests.rs"]
mod tests;
