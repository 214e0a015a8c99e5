//! Frames of BlueKing's collectors, without I/O (agent.md 1.2 to 1.5).
//!
//! ```text
//! header    0 type u32   4 data id i32   8 time u32   12 body bytes u32   16 0 u32   20 0 u32
//! DYNAMIC  24 index u64 32 flags u32 36 meta bytes u32 40 meta room u32 44 metas u32
//!          48 metas, padded to the room                48 + room: payload
//! answer    0 0x0A u32   4 body bytes u32   8 JSON
//! ```
//! All integers are big-endian; there is no magic and no version. A client that timed out in the
//! middle of a frame starts the same frame again on the same connection, so the only defence is to
//! doubt every header and to close when one is wrong: the client reconnects and sends again.

use skein_wire::limits::RECORD_BYTES_MAX;

/// Bytes of the header of every frame.
pub const HEADER_BYTES: usize = 24;
/// Bytes that DYNAMIC adds before its metas.
pub const DYNAMIC_BYTES: usize = 24;
/// What a header may say of its body: 10 MiB and what DYNAMIC adds (agent.md 1.6, item 7).
pub const BODY_BYTES_MAX: usize = RECORD_BYTES_MAX;

const TYPE_COMMON: u32 = 0xC01;
const TYPE_OPS: u32 = 0xC0C;
const TYPE_DYNAMIC: u32 = 0x09;
const TYPE_ASK_INFO: u32 = 0x0A;
const TYPE_TLOGC: u32 = 0x02;

/// One frame of a collector.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame<'a> {
    /// A record for a data id.
    Data {
        /// Which way it came.
        kind: Kind,
        /// Its data id.
        data_id: u32,
        /// What the collector reports, without the metas of DYNAMIC.
        payload: &'a [u8],
    },
    /// Wants to know whose agent this is.
    AskInfo,
}

/// How a record was framed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// GSE_TYPE_COMMON.
    Common,
    /// GSE_TYPE_OP.
    Ops,
    /// GSE_TYPE_DYNAMIC.
    Dynamic,
    /// GSE_TYPE_TLOGC; its layout is not public, so its body is passed on as it is.
    Tlogc,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// Not a type of this protocol.
    #[error("unknown frame type {0:#x}; the stream is out of step or not a collector's")]
    Type(u32),
    /// A body longer than any collector sends.
    #[error("frame body of {0} bytes; at most {BODY_BYTES_MAX} are taken")]
    TooLong(u32),
    /// A question has no body.
    #[error("agent-info request with a body of {0} bytes")]
    Question(u32),
    /// Metas that do not fit their frame.
    #[error("DYNAMIC frame of {body} bytes with {meta} bytes of metas in a room of {room}")]
    Metas {
        /// Bytes of the body.
        body: u32,
        /// Bytes of metas in use.
        meta: u32,
        /// Bytes set aside for them.
        room: u32,
    },
}

impl FrameError {
    /// Short name for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            FrameError::Type(_) => "frame_type",
            FrameError::TooLong(_) => "frame_too_long",
            FrameError::Question(_) => "frame_question",
            FrameError::Metas { .. } => "frame_metas",
        }
    }
}

/// What the start of a buffer holds.
#[derive(Debug, Eq, PartialEq)]
pub enum Step<'a> {
    /// A frame, and the bytes it took.
    Frame(Frame<'a>, usize),
    /// The frame, or the part of it that tells more, ends at this length.
    Need(usize),
}

/// Decodes the frame at the start of `bytes`. A header is judged before its body arrives.
pub fn decode(bytes: &[u8]) -> Result<Step<'_>, FrameError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(Step::Need(HEADER_BYTES));
    };
    let (kind, data_id, body_bytes) = (u32_at(header, 0), u32_at(header, 4), u32_at(header, 12));
    let kind = match kind {
        TYPE_COMMON => Kind::Common,
        TYPE_OPS => Kind::Ops,
        TYPE_DYNAMIC => Kind::Dynamic,
        TYPE_TLOGC => Kind::Tlogc,
        TYPE_ASK_INFO if body_bytes == 0 => return Ok(Step::Frame(Frame::AskInfo, HEADER_BYTES)),
        TYPE_ASK_INFO => return Err(FrameError::Question(body_bytes)),
        unknown => return Err(FrameError::Type(unknown)),
    };
    if body_bytes as usize > BODY_BYTES_MAX {
        return Err(FrameError::TooLong(body_bytes));
    }
    let end = HEADER_BYTES + body_bytes as usize;
    let mut payload_at = HEADER_BYTES;
    if kind == Kind::Dynamic {
        let shortest = FrameError::Metas { body: body_bytes, meta: 0, room: 0 };
        if (body_bytes as usize) < DYNAMIC_BYTES {
            return Err(shortest);
        }
        let Some(head) = bytes.first_chunk::<{ HEADER_BYTES + DYNAMIC_BYTES }>() else {
            return Ok(Step::Need(HEADER_BYTES + DYNAMIC_BYTES));
        };
        let (meta, room) = (u32_at(head, 36), u32_at(head, 40));
        if meta > room || u64::from(body_bytes) < DYNAMIC_BYTES as u64 + u64::from(room) {
            return Err(FrameError::Metas { body: body_bytes, meta, room });
        }
        payload_at = HEADER_BYTES + DYNAMIC_BYTES + room as usize;
    }
    match bytes.get(payload_at..end) {
        Some(payload) => Ok(Step::Frame(Frame::Data { kind, data_id, payload }, end)),
        None => Ok(Step::Need(end)),
    }
}

/// Cuts a stream into frames. Whole frames are taken straight from what was read; only the rest
/// of a frame is kept, and memory grows with what arrived, not with what a header announces.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
    frames: u64,
}

/// A buffer that grew for a large frame is given back when it is larger than this.
const KEPT_CAPACITY: usize = 16 * 1024;

impl Decoder {
    /// Takes what was read and hands out the frames that it completes.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        mut on_frame: impl FnMut(Frame<'_>),
    ) -> Result<(), FrameError> {
        while !self.held.is_empty() {
            match decode(&self.held)? {
                Step::Frame(frame, _) => {
                    self.frames += 1;
                    on_frame(frame);
                    self.held.clear();
                    self.held.shrink_to(KEPT_CAPACITY);
                }
                Step::Need(_) if input.is_empty() => return Ok(()),
                Step::Need(bytes) => {
                    let (taken, rest) = input.split_at(input.len().min(bytes - self.held.len()));
                    self.held.extend_from_slice(taken);
                    input = rest;
                }
            }
        }
        while !input.is_empty() {
            match decode(input)? {
                Step::Frame(frame, bytes) => {
                    self.frames += 1;
                    on_frame(frame);
                    input = &input[bytes..];
                }
                Step::Need(_) => {
                    self.held.extend_from_slice(input);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Bytes of a frame whose end has not come.
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Frames handed out so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }
}

/// The answer to [`Frame::AskInfo`]: header and JSON in one piece, because libgse reads each by a
/// single read (agent.md 1.6, quirk 1).
pub fn encode_info(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + json.len());
    out.extend_from_slice(&TYPE_ASK_INFO.to_be_bytes());
    out.extend_from_slice(&(json.len() as u32).to_be_bytes());
    out.extend_from_slice(json);
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: u32, data_id: u32, body: usize) -> Vec<u8> {
        let fields = [kind, data_id, 1_682_477_366, body as u32, 0, 0];
        fields.iter().flat_map(|field| field.to_be_bytes()).collect()
    }

    fn plain(kind: u32, data_id: u32, payload: &[u8]) -> Vec<u8> {
        [header(kind, data_id, payload.len()), payload.to_vec()].concat()
    }

    fn dynamic(data_id: u32, room: u32, metas: &[u8], payload: &[u8]) -> Vec<u8> {
        let body = DYNAMIC_BYTES + room as usize + payload.len();
        let mut out = header(TYPE_DYNAMIC, data_id, body);
        out.extend_from_slice(&[0; 12]);
        for field in [metas.len() as u32, room, u32::from(!metas.is_empty())] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(metas);
        out.resize(HEADER_BYTES + DYNAMIC_BYTES + room as usize, 0);
        out.extend_from_slice(payload);
        out
    }

    fn frames(bytes: &[u8], piece: usize) -> Result<Vec<(Kind, u32, Vec<u8>)>, FrameError> {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        for piece in bytes.chunks(piece.max(1)) {
            decoder.feed(piece, |frame| match frame {
                Frame::Data { kind, data_id, payload } => {
                    out.push((kind, data_id, payload.to_vec()))
                }
                Frame::AskInfo => out.push((Kind::Common, 0, b"?".to_vec())),
            })?;
        }
        Ok(out)
    }

    /// agent.md 1.4: the frame of a live bkmonitorbeat, as strace showed it: one write of 1712
    /// bytes, type 9, data id 1572885, body 1688, meta room 408.
    #[test]
    fn the_frame_of_a_live_collector_is_read() {
        let payload = vec![b'{'; 1256];
        let frame = dynamic(1_572_885, 408, &[], &payload);
        assert_eq!(frame.len(), 1712);
        assert_eq!(u32_at(&frame, 12), 1688);
        assert_eq!(frames(&frame, 1712), Ok(vec![(Kind::Dynamic, 1_572_885, payload)]));
    }

    /// agent.md 1.3: all types; 1.5: the question is a bare header.
    #[test]
    fn every_type_is_read() {
        let mut bytes = plain(TYPE_COMMON, 1001, b"common");
        bytes.extend(plain(TYPE_OPS, 1002, b"ops"));
        bytes.extend(plain(TYPE_TLOGC, 1003, b"\0opaque"));
        bytes.extend(header(TYPE_ASK_INFO, 0, 0));
        bytes.extend(plain(TYPE_COMMON, 1004, b""));
        let expected = vec![
            (Kind::Common, 1001, b"common".to_vec()),
            (Kind::Ops, 1002, b"ops".to_vec()),
            (Kind::Tlogc, 1003, b"\0opaque".to_vec()),
            (Kind::Common, 0, b"?".to_vec()),
            (Kind::Common, 1004, Vec::new()),
        ];
        for piece in [1, 7, 24, 1000] {
            assert_eq!(frames(&bytes, piece), Ok(expected.clone()));
        }
    }

    /// agent.md 1.4: the room comes from the frame, not from the constant 408.
    #[test]
    fn metas_of_any_room_are_skipped() {
        let meta = b"\0\0\0\x03\0\0\0\x05tagtlogc";
        for room in [0, 16, 17, 408, 5000] {
            let metas = if room >= 16 { &meta[..16] } else { &[] };
            let frame = dynamic(5, room, metas, b"payload");
            assert_eq!(frames(&frame, 10), Ok(vec![(Kind::Dynamic, 5, b"payload".to_vec())]));
        }
    }

    /// agent.md 1.4 and 1.6, quirk 3: what cannot be right closes the connection, and before the
    /// body is waited for.
    #[test]
    fn wrong_headers_are_refused_at_once() {
        let wrong = |bytes: Vec<u8>| decode(&bytes[..bytes.len().min(48)]).unwrap_err();
        assert_eq!(wrong(header(0x7B22_6461, 0, 5)), FrameError::Type(0x7B22_6461));
        assert_eq!(wrong(header(TYPE_ASK_INFO, 0, 1)), FrameError::Question(1));
        let long = BODY_BYTES_MAX as u32 + 1;
        assert_eq!(wrong(header(TYPE_COMMON, 1, long as usize)), FrameError::TooLong(long));
        assert!(decode(&header(TYPE_COMMON, 1, BODY_BYTES_MAX)).is_ok());
        assert!(matches!(wrong(header(TYPE_DYNAMIC, 1, 23)), FrameError::Metas { .. }));
        let mut frame = dynamic(1, 408, &[], b"");
        frame[39] = 1; // meta bytes 1: fits
        assert!(decode(&frame).is_ok());
        frame[38] = 0xFF; // meta bytes over the room
        assert!(matches!(wrong(frame.clone()), FrameError::Metas { .. }));
        let mut frame = dynamic(1, 408, &[], b"");
        frame[40] = 0xFF; // room beyond the body, near the end of u32
        assert!(matches!(wrong(frame), FrameError::Metas { .. }));
    }

    #[test]
    fn memory_follows_what_arrived() {
        let mut decoder = Decoder::default();
        let bytes = plain(TYPE_COMMON, 1, &vec![b'x'; 5_000_000]);
        for piece in bytes[..100_000].chunks(1000) {
            decoder.feed(piece, |_| panic!("the frame is not whole")).unwrap();
        }
        assert!(decoder.held.capacity() <= 200_000);
        let mut got = 0;
        decoder.feed(&bytes[100_000..], |_| got += 1).unwrap();
        assert_eq!((got, decoder.held_bytes()), (1, 0));
        assert!(decoder.held.capacity() <= KEPT_CAPACITY);
    }

    proptest! {
        #[test]
        fn frames_come_out_whatever_the_reads(
            parts in prop::collection::vec((0u8..4, any::<u32>(), prop::collection::vec(any::<u8>(), 0..200), 0u32..500), 0..20),
            piece in 1usize..300,
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (kind, data_id, payload, room) in parts {
                let (frame, kind) = match kind {
                    0 => (plain(TYPE_COMMON, data_id, &payload), Kind::Common),
                    1 => (plain(TYPE_OPS, data_id, &payload), Kind::Ops),
                    2 => (plain(TYPE_TLOGC, data_id, &payload), Kind::Tlogc),
                    _ => (dynamic(data_id, room, &[], &payload), Kind::Dynamic),
                };
                bytes.extend(frame);
                expected.push((kind, data_id, payload));
            }
            prop_assert_eq!(frames(&bytes, piece), Ok(expected));
        }

        #[test]
        fn garbage_is_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..300), kind in prop::sample::select(vec![9u32, 2, 0xA, 0xC01]),
            body in 0u32..200, piece in 1usize..50,
        ) {
            let _ = frames(&bytes, piece);
            let mut near = header(kind, 1, body as usize);
            near.extend(bytes);
            let _ = frames(&near, piece);
        }
    }
}
