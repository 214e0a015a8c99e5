//! Bounds of the data process's own buffers and queues, with their arithmetic. Bounds of what
//! crosses a connection are in [`skein_wire::limits`].

use skein_wire::limits::{DATA_FRAME_BYTES_MAX, PRE_AUTH_BYTES_MAX, SIGNAL_MESSAGE_BYTES_MAX};

use crate::tls::TLS_RECORD_BYTES_MAX;

/// One receive buffer per shard, lent to the session that has bytes. 256 KiB is where larger reads
/// stopped paying; a held partial record comes before what is read.
pub const SCRATCH_BYTES: usize = 256 * 1024 + TLS_RECORD_BYTES_MAX;

/// Read of a session whose shard is short of memory or whose router queue is full: one record, so
/// that little ciphertext is left over.
pub const READ_UNDER_PRESSURE_BYTES: usize = TLS_RECORD_BYTES_MAX;

/// Batches being assembled or waiting for a full router, per shard. 64 largest batches; a session
/// that finds no room is not read until there is.
pub const ASSEMBLY_BYTES_MAX: usize = 64 << 20;

/// Output of one signal session that its agent has not taken: four largest messages. More means
/// that the agent does not read; it is closed.
pub const SIGNAL_OUT_BYTES_MAX: usize = 4 * SIGNAL_MESSAGE_BYTES_MAX;

/// Acks and credits that a data session's agent has not taken (25 bytes each): about 5,000 frames.
pub const DATA_OUT_BYTES_MAX: usize = 128 * 1024;

/// A seed stops reading its file while this much output waits. Two largest disk blocks keep socket
/// and disk busy at once.
pub const FILE_OUT_BYTES_HIGH: usize = 512 * 1024;

/// The same when a shard serves so many that their buffers add up: one block's size.
pub const FILE_OUT_BYTES_CROWDED: usize = 64 * 1024;

/// Received file content that waits for the disk, per channel: one read of the socket while the
/// one before is written.
pub const FILE_INPUT_BYTES_MAX: usize = 512 * 1024;

/// Output buffers of all sessions of a shard. A broadcast beyond it is reported undeliverable.
pub const SHARD_OUT_BYTES_MAX: usize = 256 << 20;

/// Connections of one shard that have not authenticated, 16 KiB each at most: 32 MiB.
pub const PRE_AUTH_CONNECTIONS_MAX: usize = 2_048;

/// A batch or message that began must arrive within this time, whatever trickles in.
pub const FRAME_TIME_MS: u64 = 60_000;

/// A file channel without a byte for this long is closed.
pub const FILE_IDLE_MS: u64 = 60_000;

/// A session that is being closed has this long to take its last bytes.
pub const LINGER_MS: u64 = 2_000;

/// How long an enrol request may wait for the control process, which writes to its store.
pub const ENROL_WAIT_MS: u64 = 20_000;

/// Messages in a shard's mailbox. A mail carries many items (replies of a router round, a whole
/// fan-out's targets), so a full mailbox means a stalled shard.
pub const MAILBOX_LEN: usize = 4_096;

/// Mails that a shard handles before it lets sockets have a turn.
pub const MAIL_BATCH: usize = 256;

/// Messages for the control process that wait while it is away or slow.
pub const FLEET_QUEUE_LEN: usize = 65_536;

/// Their bytes.
pub const FLEET_QUEUE_BYTES_MAX: usize = 64 << 20;

/// Reports of routers that wait to be forwarded.
pub const REPORTS_LEN: usize = 1_024;

/// Transfers that are seeded or fetched at once.
pub const TRANSFERS_MAX: usize = 4_096;

/// Disk jobs that wait for the file threads. A channel has one at a time, with its own buffer.
pub const FILE_JOBS_MAX: usize = 16_384;

/// Iterations of one session's read and write before others have a turn.
pub const TURNS_PER_POLL: usize = 8;

const _: () = {
    assert!(READ_UNDER_PRESSURE_BYTES < SCRATCH_BYTES);
    assert!(PRE_AUTH_BYTES_MAX < SCRATCH_BYTES);
    assert!(ASSEMBLY_BYTES_MAX >= 64 * DATA_FRAME_BYTES_MAX);
    assert!(FRAME_TIME_MS > LINGER_MS);
};
