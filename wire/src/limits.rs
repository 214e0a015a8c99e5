//! The bounds of everything that crosses a connection, in one place with their arithmetic.
//!
//! A peer that exceeds one of them is closed and counted; nothing is allocated from a length
//! field before it was compared with its bound here.

/// One signal message, without its length prefix. Small enough that a command is never delayed by
/// more than a millisecond behind another on a 1 Gbit/s link.
pub const SIGNAL_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// One message between control and data process. A fan-out to 20,000 agents with 800 bytes of
/// proof each is cut into several messages of this size.
pub const FLEET_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The one message that an unauthenticated client may send: token, certificate request (about
/// 500 bytes) and host facts.
pub const ENROL_REQUEST_BYTES_MAX: usize = 12 * 1024;

/// All that may be held for a connection that has not authenticated: handshake and enrol request.
pub const PRE_AUTH_BYTES_MAX: usize = 16 * 1024;

/// How long an unauthenticated connection may live without completing its handshake or request.
pub const PRE_AUTH_TIME_MS: u64 = 5_000;

/// Body of a batch on the wire. Below Kafka's default `message.max.bytes` (1,048,588) with room
/// for the batch header, so that a broker takes the body as it is.
pub const BATCH_BODY_BYTES_MAX: usize = 900 * 1024;

/// Body of a batch after decompression: one largest record of a collector
/// ([`RECORD_BYTES_MAX`]) and its framing fit.
pub const BATCH_RAW_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Records in one batch.
pub const BATCH_RECORDS_MAX: usize = 65_536;

/// One record. GSE's data receiver takes frames of 10 MiB (agent.md 1.6, item 7).
pub const RECORD_BYTES_MAX: usize = 10 * 1024 * 1024 + 432;

/// Payload of one frame of the data channel: a batch with its header.
pub const DATA_FRAME_BYTES_MAX: usize = BATCH_BODY_BYTES_MAX + crate::batch::HEADER_BYTES;

/// Output of a task in one message; leaves a signal message room for others.
pub const TASK_OUTPUT_CHUNK_BYTES_MAX: usize = 64 * 1024;

/// Script of one task inside a signal message.
pub const TASK_SCRIPT_BYTES_MAX: usize = 128 * 1024;

/// Agents of one signed dispatch: bounds the proof to [`COMMAND_PATH_MAX`] hashes.
pub const DISPATCH_AGENTS_MAX: usize = 1 << COMMAND_PATH_MAX;

/// Hashes from a command's leaf to its root: 2^17 = 131,072 agents.
pub const COMMAND_PATH_MAX: usize = 17;

/// Lanes that one agent may open on one data channel.
pub const LANES_PER_AGENT_MAX: usize = 1_024;

/// Longest interval between heartbeats that a server may ask for.
pub const HEARTBEAT_INTERVAL_MS_MAX: u32 = 300_000;

/// Peers of one member's signed list. A plan needs the parents and children of its stripes and a
/// few dozen neighbours.
pub const MESH_PEERS_MAX: usize = 256;

/// Addresses of one peer: more would only be tried one after the other in vain.
pub const MESH_PEER_ADDRESSES_MAX: usize = 4;

/// One address as text: an IPv6 address in brackets, a port.
pub const MESH_ADDRESS_BYTES_MAX: usize = 64;

/// Highest number of a member. Numbers are not used again, so there are more than agents.
pub const MESH_MEMBER_MAX: u32 = (1 << 24) - 1;

/// Members that one message removes.
pub const MESH_REMOVED_MAX: usize = 16_384;

/// Ranges of pieces in one report; what does not fit goes into the next.
pub const MESH_RANGES_MAX: usize = 8_192;

/// A peer's id, key hash, addresses, number and their tags and lengths.
const MESH_PEER_BYTES_MAX: usize =
    64 + 32 + MESH_PEER_ADDRESSES_MAX * (MESH_ADDRESS_BYTES_MAX + 2) + 16;

const _: () = {
    assert!(MESH_PEERS_MAX * MESH_PEER_BYTES_MAX + 8 * 1024 < SIGNAL_MESSAGE_BYTES_MAX);
    assert!(MESH_REMOVED_MAX * 4 + 8 * 1024 < SIGNAL_MESSAGE_BYTES_MAX);
    assert!(MESH_RANGES_MAX * 14 + 8 * 1024 < SIGNAL_MESSAGE_BYTES_MAX);
    assert!(ENROL_REQUEST_BYTES_MAX < PRE_AUTH_BYTES_MAX);
    assert!(TASK_SCRIPT_BYTES_MAX + 8 * 1024 < SIGNAL_MESSAGE_BYTES_MAX);
    assert!(TASK_OUTPUT_CHUNK_BYTES_MAX < SIGNAL_MESSAGE_BYTES_MAX);
    assert!(RECORD_BYTES_MAX < BATCH_RAW_BYTES_MAX);
    assert!(DATA_FRAME_BYTES_MAX < 1 << 24);
};
