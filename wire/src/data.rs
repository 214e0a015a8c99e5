//! Frames of the data channel: batches up, acknowledgements and credit down.
//!
//! A frame is a type (u8), the payload's length (u24, big-endian) and the payload:
//!
//! ```text
//! agent to server                             server to agent
//!  1 BATCH      header (64) and body           16 LANE_READY data id 4, epoch 8, resume 8, credit 8
//!  2 LANE_OPEN  data id 4, epoch 8,            17 ACK        data id 4, epoch 8, next 8
//!               first 8, next 8                18 CREDIT     data id 4, limit 8
//!  3 LANE_STAT  data id 4, epoch 8,            19 HOLD       data id 4, reason 1
//!               records 8, bytes 8, dropped 8  20 GO_AWAY    reconnect after, ms 4
//! 32 KEEP_ALIVE empty                          32 KEEP_ALIVE empty
//! ```
//! A lane is opened before its first batch. The server answers with LANE_READY or HOLD; after a
//! HOLD it sends LANE_READY when the lane may flow again. A frame of unknown type is an error of
//! the peer: types are added only with a version of HELLO.

use crate::batch::{BatchError, BatchHeader, HEADER_BYTES};
use crate::hello::array;
use crate::ids::{DataId, Epoch, Sequence};
use crate::limits::DATA_FRAME_BYTES_MAX;

/// Bytes before the payload.
pub const PREFIX_BYTES: usize = 4;

/// Type of a BATCH frame, for readers that move its body without decoding it twice.
pub const TYPE_BATCH: u8 = 1;
const TYPE_LANE_OPEN: u8 = 2;
const TYPE_LANE_STAT: u8 = 3;
const TYPE_LANE_READY: u8 = 16;
const TYPE_ACK: u8 = 17;
const TYPE_CREDIT: u8 = 18;
const TYPE_HOLD: u8 = 19;
const TYPE_GO_AWAY: u8 = 20;
const TYPE_KEEP_ALIVE: u8 = 32;

/// Why a frame is refused; the connection ends with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A type that this side does not receive.
    #[error("unknown data frame type {0}")]
    Type(u8),
    /// A length that the type cannot have.
    #[error("data frame of type {kind} has {bytes} bytes")]
    Length {
        /// The frame's type.
        kind: u8,
        /// Its payload.
        bytes: usize,
    },
    /// A lane whose oldest record is after its newest.
    #[error("lane of records {first} to {next} is impossible")]
    Positions {
        /// The oldest, as the agent says.
        first: u64,
        /// After the newest.
        next: u64,
    },
    /// A reason to hold that is not known.
    #[error("unknown reason {0} to hold a lane")]
    Reason(u8),
    /// The batch's own fault.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// Opens or re-opens a lane on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneOpen {
    /// Names the lane, with the agent.
    pub data_id: DataId,
    /// The lane's life.
    pub epoch: Epoch,
    /// Oldest record that the agent still holds.
    pub first: Sequence,
    /// Position after the newest record that it holds.
    pub next: Sequence,
}

/// How full a lane's spool is; sent when it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStat {
    /// Names the lane.
    pub data_id: DataId,
    /// The lane's life.
    pub epoch: Epoch,
    /// Records not acknowledged yet.
    pub spool_records: u64,
    /// Their bytes on the agent's disk.
    pub spool_bytes: u64,
    /// Records dropped in this epoch because the spool was full.
    pub dropped_records: u64,
}

/// The lane may flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneReady {
    /// Names the lane.
    pub data_id: DataId,
    /// The lane's life.
    pub epoch: Epoch,
    /// Send from here: everything before was received. Only an ACK says that it is stored.
    pub resume: Sequence,
    /// Bytes of batches of this lane that may follow this frame in all, as in [`Credit`].
    pub credit_bytes: u64,
}

/// Everything before `next` is stored in every sink of its routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Names the lane.
    pub data_id: DataId,
    /// The lane's life.
    pub epoch: Epoch,
    /// Position after the last record stored.
    pub next: Sequence,
}

/// Raises what the agent may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Names the lane.
    pub data_id: DataId,
    /// Bytes of batches (headers and bodies) of this lane that may follow its last LANE_READY in
    /// all.
    pub limit_bytes: u64,
}

/// Why a lane may not flow now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HoldReason {
    /// No route takes this data id.
    UnknownDataId = 1,
    /// A sink of its routes does not take records now.
    SinkUnavailable = 2,
    /// An operator paused it.
    Paused = 3,
    /// The server knows a newer life of this lane; the agent must start a new epoch.
    StaleEpoch = 4,
    /// The lane or its agent is over its quota, or the server holds too many lanes.
    Quota = 5,
}

impl HoldReason {
    fn from_u8(value: u8) -> Option<Self> {
        [Self::UnknownDataId, Self::SinkUnavailable, Self::Paused, Self::StaleEpoch, Self::Quota]
            .into_iter()
            .find(|reason| *reason as u8 == value)
    }

    /// The name used in reports and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownDataId => "unknown_data_id",
            Self::SinkUnavailable => "sink_unavailable",
            Self::Paused => "paused",
            Self::StaleEpoch => "stale_epoch",
            Self::Quota => "quota",
        }
    }
}

/// The lane must wait; a [`LaneReady`] ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Names the lane.
    pub data_id: DataId,
    /// Why.
    pub reason: HoldReason,
}

/// What an agent sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentFrame<'a> {
    /// See [`LaneOpen`].
    LaneOpen(LaneOpen),
    /// Records.
    Batch {
        /// Checked.
        header: BatchHeader,
        /// Not checked against its CRC.
        body: &'a [u8],
    },
    /// See [`LaneStat`].
    LaneStat(LaneStat),
    /// Asks for a KEEP_ALIVE back.
    KeepAlive,
}

/// What a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerFrame {
    /// See [`LaneReady`].
    LaneReady(LaneReady),
    /// See [`Ack`].
    Ack(Ack),
    /// See [`Credit`].
    Credit(Credit),
    /// See [`Hold`].
    Hold(Hold),
    /// The server goes away; reconnect after this time.
    GoAway {
        /// Milliseconds.
        reconnect_after_ms: u32,
    },
    /// Answer to the agent's.
    KeepAlive,
}

/// Type and payload length of the next frame, checked against the channel's bound; `None` while
/// its prefix is incomplete.
pub fn peek_frame(buffer: &[u8]) -> Result<Option<(u8, usize)>, DataError> {
    let Some([kind, high, middle, low]) = buffer.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let bytes = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    let bound = match *kind {
        TYPE_BATCH => DATA_FRAME_BYTES_MAX,
        TYPE_LANE_OPEN | TYPE_LANE_STAT | TYPE_LANE_READY | TYPE_ACK | TYPE_CREDIT | TYPE_HOLD
        | TYPE_GO_AWAY | TYPE_KEEP_ALIVE => 64,
        unknown => return Err(DataError::Type(unknown)),
    };
    if bytes > bound {
        return Err(DataError::Length { kind: *kind, bytes });
    }
    Ok(Some((*kind, bytes)))
}

/// The first frame of `buffer` and the bytes it took; `None` while it is incomplete.
pub fn decode_agent_frame(buffer: &[u8]) -> Result<Option<(AgentFrame<'_>, usize)>, DataError> {
    let Some((kind, payload)) = payload(buffer)? else { return Ok(None) };
    let length = DataError::Length { kind, bytes: payload.len() };
    let frame = match kind {
        TYPE_BATCH => {
            let (header, body) = payload.split_first_chunk::<HEADER_BYTES>().ok_or(length)?;
            let header = BatchHeader::decode(header)?;
            if body.len() != header.body_bytes as usize {
                let stated = header.body_bytes as usize;
                return Err(BatchError::BodyLength { stated, actual: body.len() }.into());
            }
            AgentFrame::Batch { header, body }
        }
        TYPE_LANE_OPEN => {
            let fields: &[u8; 28] = payload.try_into().map_err(|_| length)?;
            let (first, next) = (u64_at(fields, 12), u64_at(fields, 20));
            if first > next {
                return Err(DataError::Positions { first, next });
            }
            AgentFrame::LaneOpen(LaneOpen {
                data_id: DataId(u32_at(fields, 0)),
                epoch: Epoch(u64_at(fields, 4)),
                first: Sequence(first),
                next: Sequence(next),
            })
        }
        TYPE_LANE_STAT => {
            let fields: &[u8; 36] = payload.try_into().map_err(|_| length)?;
            AgentFrame::LaneStat(LaneStat {
                data_id: DataId(u32_at(fields, 0)),
                epoch: Epoch(u64_at(fields, 4)),
                spool_records: u64_at(fields, 12),
                spool_bytes: u64_at(fields, 20),
                dropped_records: u64_at(fields, 28),
            })
        }
        TYPE_KEEP_ALIVE if payload.is_empty() => AgentFrame::KeepAlive,
        TYPE_KEEP_ALIVE => return Err(length),
        other => return Err(DataError::Type(other)),
    };
    Ok(Some((frame, PREFIX_BYTES + payload.len())))
}

/// The first frame of `buffer` and the bytes it took; `None` while it is incomplete.
pub fn decode_server_frame(buffer: &[u8]) -> Result<Option<(ServerFrame, usize)>, DataError> {
    let Some((kind, payload)) = payload(buffer)? else { return Ok(None) };
    let length = DataError::Length { kind, bytes: payload.len() };
    let frame = match kind {
        TYPE_LANE_READY => {
            let fields: &[u8; 28] = payload.try_into().map_err(|_| length)?;
            ServerFrame::LaneReady(LaneReady {
                data_id: DataId(u32_at(fields, 0)),
                epoch: Epoch(u64_at(fields, 4)),
                resume: Sequence(u64_at(fields, 12)),
                credit_bytes: u64_at(fields, 20),
            })
        }
        TYPE_ACK => {
            let fields: &[u8; 20] = payload.try_into().map_err(|_| length)?;
            ServerFrame::Ack(Ack {
                data_id: DataId(u32_at(fields, 0)),
                epoch: Epoch(u64_at(fields, 4)),
                next: Sequence(u64_at(fields, 12)),
            })
        }
        TYPE_CREDIT => {
            let fields: &[u8; 12] = payload.try_into().map_err(|_| length)?;
            ServerFrame::Credit(Credit {
                data_id: DataId(u32_at(fields, 0)),
                limit_bytes: u64_at(fields, 4),
            })
        }
        TYPE_HOLD => {
            let fields: &[u8; 5] = payload.try_into().map_err(|_| length)?;
            let reason = HoldReason::from_u8(fields[4]).ok_or(DataError::Reason(fields[4]))?;
            ServerFrame::Hold(Hold { data_id: DataId(u32_at(fields, 0)), reason })
        }
        TYPE_GO_AWAY => {
            let fields: &[u8; 4] = payload.try_into().map_err(|_| length)?;
            ServerFrame::GoAway { reconnect_after_ms: u32_at(fields, 0) }
        }
        TYPE_KEEP_ALIVE if payload.is_empty() => ServerFrame::KeepAlive,
        TYPE_KEEP_ALIVE => return Err(length),
        other => return Err(DataError::Type(other)),
    };
    Ok(Some((frame, PREFIX_BYTES + payload.len())))
}

impl AgentFrame<'_> {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Batch { header, body } => put(out, TYPE_BATCH, &[&header.encode(), body]),
            Self::LaneOpen(LaneOpen { data_id, epoch, first, next }) => put(
                out,
                TYPE_LANE_OPEN,
                &[
                    &data_id.0.to_be_bytes(),
                    &epoch.0.to_be_bytes(),
                    &first.0.to_be_bytes(),
                    &next.0.to_be_bytes(),
                ],
            ),
            Self::LaneStat(stat) => put(
                out,
                TYPE_LANE_STAT,
                &[
                    &stat.data_id.0.to_be_bytes(),
                    &stat.epoch.0.to_be_bytes(),
                    &stat.spool_records.to_be_bytes(),
                    &stat.spool_bytes.to_be_bytes(),
                    &stat.dropped_records.to_be_bytes(),
                ],
            ),
            Self::KeepAlive => put(out, TYPE_KEEP_ALIVE, &[]),
        }
    }
}

/// Appends only the prefix of a BATCH frame, for writers that have header and body apart.
pub fn encode_batch_prefix(header: &BatchHeader, out: &mut Vec<u8>) {
    put_prefix(out, TYPE_BATCH, HEADER_BYTES + header.body_bytes as usize);
}

impl ServerFrame {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::LaneReady(ready) => put(
                out,
                TYPE_LANE_READY,
                &[
                    &ready.data_id.0.to_be_bytes(),
                    &ready.epoch.0.to_be_bytes(),
                    &ready.resume.0.to_be_bytes(),
                    &ready.credit_bytes.to_be_bytes(),
                ],
            ),
            Self::Ack(Ack { data_id, epoch, next }) => put(
                out,
                TYPE_ACK,
                &[&data_id.0.to_be_bytes(), &epoch.0.to_be_bytes(), &next.0.to_be_bytes()],
            ),
            Self::Credit(Credit { data_id, limit_bytes }) => {
                put(out, TYPE_CREDIT, &[&data_id.0.to_be_bytes(), &limit_bytes.to_be_bytes()])
            }
            Self::Hold(Hold { data_id, reason }) => {
                put(out, TYPE_HOLD, &[&data_id.0.to_be_bytes(), &[*reason as u8]]);
            }
            Self::GoAway { reconnect_after_ms } => {
                put(out, TYPE_GO_AWAY, &[&reconnect_after_ms.to_be_bytes()]);
            }
            Self::KeepAlive => put(out, TYPE_KEEP_ALIVE, &[]),
        }
    }
}

fn payload(buffer: &[u8]) -> Result<Option<(u8, &[u8])>, DataError> {
    let Some((kind, bytes)) = peek_frame(buffer)? else { return Ok(None) };
    Ok(buffer.get(PREFIX_BYTES..PREFIX_BYTES + bytes).map(|payload| (kind, payload)))
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    put_prefix(out, kind, parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn put_prefix(out: &mut Vec<u8>, kind: u8, bytes: usize) {
    debug_assert!(bytes < 1 << 24, "a frame's length has 24 bits");
    out.extend_from_slice(&(bytes as u32 | u32::from(kind) << 24).to_be_bytes());
}

fn u32_at(fields: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(&fields[at..at + 4]))
}

fn u64_at(fields: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(&fields[at..at + 8]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;
    use crate::compress::{Codec, Compressor};
    use crate::ids::AgentId;
    use proptest::prelude::*;

    fn server_frames() -> Vec<ServerFrame> {
        let (data_id, epoch) = (DataId(9), Epoch(2));
        vec![
            ServerFrame::LaneReady(LaneReady {
                data_id,
                epoch,
                resume: Sequence(1),
                credit_bytes: 77,
            }),
            ServerFrame::Ack(Ack { data_id, epoch, next: Sequence(u64::MAX) }),
            ServerFrame::Credit(Credit { data_id, limit_bytes: 4 << 20 }),
            ServerFrame::Hold(Hold { data_id, reason: HoldReason::SinkUnavailable }),
            ServerFrame::GoAway { reconnect_after_ms: 1500 },
            ServerFrame::KeepAlive,
        ]
    }

    #[test]
    fn server_frames_round_trip_and_wait_for_their_end() {
        for frame in server_frames() {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            for cut in 0..bytes.len() {
                assert_eq!(decode_server_frame(&bytes[..cut]), Ok(None));
            }
            assert_eq!(decode_server_frame(&bytes), Ok(Some((frame, bytes.len()))));
        }
    }

    #[test]
    fn ack_has_the_documented_bytes() {
        let mut bytes = Vec::new();
        let ack = Ack { data_id: DataId(1), epoch: Epoch(2), next: Sequence(3) };
        ServerFrame::Ack(ack).encode(&mut bytes);
        assert_eq!(bytes, b"\x11\0\0\x14\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03");
    }

    #[test]
    fn agent_frames_round_trip() {
        let agent = AgentId::parse("a").unwrap();
        let mut builder = BatchBuilder::new(DataId(4), 1000);
        builder.push(1, b"value");
        let mut compressor = Compressor::new(Codec::Lz4, 0).unwrap();
        let identity = (&agent, Epoch(1), Sequence(0));
        let (header, body) = builder.seal(identity, &mut compressor, 0).unwrap();
        let frames = [
            AgentFrame::Batch { header: header.clone(), body: &body },
            AgentFrame::LaneOpen(LaneOpen {
                data_id: DataId(4),
                epoch: Epoch(1),
                first: Sequence(5),
                next: Sequence(6),
            }),
            AgentFrame::LaneStat(LaneStat {
                data_id: DataId(4),
                epoch: Epoch(1),
                spool_records: 1,
                spool_bytes: 2,
                dropped_records: 3,
            }),
            AgentFrame::KeepAlive,
        ];
        for frame in &frames {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            assert_eq!(decode_agent_frame(&bytes), Ok(Some((frame.clone(), bytes.len()))));
            assert!(decode_server_frame(&bytes).is_err() || *frame == AgentFrame::KeepAlive);
        }
        let (mut whole, mut apart) = (Vec::new(), Vec::new());
        frames[0].encode(&mut whole);
        encode_batch_prefix(&header, &mut apart);
        apart.extend_from_slice(&header.encode());
        apart.extend_from_slice(&body);
        assert_eq!(whole, apart);
    }

    #[test]
    fn a_lane_that_ends_before_it_starts_is_refused() {
        let open = |first, next| {
            let (data_id, epoch) = (DataId(4), Epoch(1));
            let (first, next) = (Sequence(first), Sequence(next));
            let mut bytes = Vec::new();
            AgentFrame::LaneOpen(LaneOpen { data_id, epoch, first, next }).encode(&mut bytes);
            decode_agent_frame(&bytes).map(|_| ())
        };
        assert_eq!(open(7, 7), Ok(()));
        let refused = DataError::Positions { first: u64::MAX, next: 7 };
        assert_eq!(open(u64::MAX, 7), Err(refused));
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_read() {
        assert!(matches!(peek_frame(&[TYPE_ACK, 0, 0, 65]), Err(DataError::Length { .. })));
        assert!(matches!(peek_frame(&[TYPE_BATCH, 255, 255, 255]), Err(DataError::Length { .. })));
        assert_eq!(peek_frame(&[99, 0, 0, 0]), Err(DataError::Type(99)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..40) {
            let _ = decode_agent_frame(&bytes);
            if bytes.len() > 3 {
                bytes[0] = kind;
                bytes[1] = 0;
                bytes[2] = 0;
            }
            let _ = decode_agent_frame(&bytes);
            let _ = decode_server_frame(&bytes);
        }
    }
}
