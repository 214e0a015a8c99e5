//! Length-prefixed protobuf frames: signal, enrol and fleet connections.
//!
//! A frame is a big-endian u32 length and that many bytes of one message. The decoder looks at the
//! caller's buffer and says where a message lies; it copies and keeps nothing.

use std::ops::Range;

use prost::Message;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Why a frame cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer announces more than the channel allows.
    #[error("frame of {bytes} bytes; this channel allows {max}")]
    TooLong {
        /// Announced or to be sent.
        bytes: usize,
        /// The channel's bound.
        max: usize,
    },
    /// The bytes are not the expected message.
    #[error("frame is not a valid message: {0}")]
    Malformed(String),
}

/// Finds frames in a receive buffer.
#[derive(Debug, Clone, Copy)]
pub struct FrameDecoder {
    bytes_max: usize,
}

impl FrameDecoder {
    /// Frames of at most `bytes_max` bytes, prefix not counted.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max }
    }

    /// Where the first message of `buffer` lies and how many bytes its frame takes; `None` while
    /// the frame is incomplete. The length is checked as soon as its four bytes are there.
    pub fn next(&self, buffer: &[u8]) -> Result<Option<(Range<usize>, usize)>, FrameError> {
        let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let bytes = u32::from_be_bytes(*prefix) as usize;
        if bytes > self.bytes_max {
            return Err(FrameError::TooLong { bytes, max: self.bytes_max });
        }
        let end = PREFIX_BYTES + bytes;
        Ok((buffer.len() >= end).then_some((PREFIX_BYTES..end, end)))
    }

    /// The first message of `buffer`, decoded, and how many bytes its frame took.
    pub fn next_message<M: Message + Default>(
        &self,
        buffer: &[u8],
    ) -> Result<Option<(M, usize)>, FrameError> {
        let Some((range, consumed)) = self.next(buffer)? else { return Ok(None) };
        let message =
            M::decode(&buffer[range]).map_err(|error| FrameError::Malformed(error.to_string()))?;
        Ok(Some((message, consumed)))
    }
}

/// Appends `message` as one frame to `out`.
pub fn encode_message<M: Message>(
    message: &M,
    bytes_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let bytes = message.encoded_len();
    if bytes > bytes_max {
        return Err(FrameError::TooLong { bytes, max: bytes_max });
    }
    out.reserve(PREFIX_BYTES + bytes);
    out.extend_from_slice(&(bytes as u32).to_be_bytes());
    message.encode_raw(out);
    Ok(())
}

/// Appends the concatenation of `parts` as one frame to `out`. Protobuf merges the fields of
/// concatenated encodings, so what many receivers share is encoded once.
pub fn encode_bytes(
    parts: &[&[u8]],
    bytes_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let bytes = parts.iter().map(|part| part.len()).sum();
    if bytes > bytes_max {
        return Err(FrameError::TooLong { bytes, max: bytes_max });
    }
    out.reserve(PREFIX_BYTES + bytes);
    out.extend_from_slice(&(bytes as u32).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::v1::{Command, Ping, ServerMessage, server_message::Kind};
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_found_only_when_whole() {
        let mut bytes = Vec::new();
        let ping = Ping { nonce: 9, payload: vec![1, 2, 3].into() };
        encode_message(&ping, 100, &mut bytes).unwrap();
        let decoder = FrameDecoder::new(100);
        for cut in 0..bytes.len() {
            assert_eq!(decoder.next(&bytes[..cut]), Ok(None));
        }
        bytes.extend_from_slice(b"rest");
        let (back, consumed) = decoder.next_message::<Ping>(&bytes).unwrap().unwrap();
        assert_eq!((back, &bytes[consumed..]), (ping, &b"rest"[..]));
    }

    #[test]
    fn too_long_is_refused_from_its_prefix() {
        let error = FrameDecoder::new(10).next(&[0, 0, 0, 11]).unwrap_err();
        assert_eq!(error, FrameError::TooLong { bytes: 11, max: 10 });
        let mut out = Vec::new();
        assert!(encode_bytes(&[&[0; 6], &[0; 5]], 10, &mut out).is_err());
        assert!(out.is_empty());
    }

    #[test]
    fn concatenated_parts_of_a_command_merge() {
        let part = |command| ServerMessage { kind: Some(Kind::Command(command)) };
        let common = part(Command { body: vec![1; 40].into(), key_id: 3, ..Default::default() });
        let extra =
            part(Command { leaf_index: 5, nonce: vec![2; 16].into(), ..Default::default() });
        let mut bytes = Vec::new();
        let (common, extra) = (common.encode_to_vec(), extra.encode_to_vec());
        encode_bytes(&[&common, &extra], 1000, &mut bytes).unwrap();
        let decoded = FrameDecoder::new(1000).next_message::<ServerMessage>(&bytes);
        let expected = Command {
            body: vec![1; 40].into(),
            key_id: 3,
            leaf_index: 5,
            nonce: vec![2; 16].into(),
            ..Default::default()
        };
        assert_eq!(decoded.unwrap().unwrap().0.kind, Some(Kind::Command(expected)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = FrameDecoder::new(64).next_message::<ServerMessage>(&bytes);
        }
    }
}
