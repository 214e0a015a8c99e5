//! SHA-1 hashes of pieces, which BitTorrent version 1 proves a file by. SHA-1 is broken for whoever
//! can choose both of two files; nothing of Skein's own rests on it.

use sha1::{Digest, Sha1};

/// A SHA-1 hash.
pub type Sha1Hash = [u8; SHA1_BYTES];

/// Bytes of a SHA-1 hash.
pub const SHA1_BYTES: usize = 20;

/// SHA-1 of bytes.
pub fn sha1(bytes: &[u8]) -> Sha1Hash {
    Sha1::digest(bytes).into()
}

/// Hashes a stream into pieces of one size; the last may be short.
#[derive(Clone, Debug)]
pub struct PieceHasher {
    piece_bytes: u32,
    context: Sha1,
    /// Bytes in `context`.
    len: u32,
    pieces: Vec<Sha1Hash>,
}

impl PieceHasher {
    /// A hasher for pieces of `piece_bytes`, more than 0.
    pub fn new(piece_bytes: u32) -> Self {
        assert!(piece_bytes > 0, "pieces have bytes");
        Self { piece_bytes, context: Sha1::new(), len: 0, pieces: Vec::new() }
    }

    /// Takes the next `bytes`.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (self.piece_bytes - self.len) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            self.context.update(now);
            self.len += now.len() as u32;
            if self.len == self.piece_bytes {
                self.close();
            }
            bytes = rest;
        }
    }

    /// Ends the stream: one hash per piece.
    pub fn finish(mut self) -> Vec<Sha1Hash> {
        if self.len > 0 {
            self.close();
        }
        self.pieces
    }

    fn close(&mut self) {
        self.pieces.push(self.context.finalize_reset().into());
        self.len = 0;
    }
}
