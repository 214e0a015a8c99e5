//! Counters of a shard, looked up once: a counter on the way of a byte costs one addition.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use skein_observe::names;
use skein_wire::hello::ChannelKind;

use crate::session::CloseReason;

/// Kinds of channels, in the order of their numbers, and `none` for what has not said HELLO.
const KINDS: [&str; 5] = ["enrol", "signal", "data", "file", "none"];

/// Handles of one shard.
pub struct ShardMetrics {
    /// Heartbeats answered.
    pub heartbeats: Counter,
    /// Second instances refused.
    pub identity_conflicts: Counter,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Sessions declared lost.
    pub lost: Counter,
    /// Stalls of this shard.
    pub self_doubts: Counter,
    /// How late its timer was met.
    pub loop_lag: Histogram,
    /// Buffers that sessions hold.
    pub buffers: Gauge,
    /// Bytes of file content sent.
    pub file_sent: Counter,
    /// Bytes of file content received and verified.
    pub file_received: Counter,
    /// False blocks.
    pub refused_blocks: Counter,
    handshakes: Counter,
    handshake_seconds: Histogram,
    sessions: [Gauge; 5],
    opened: [Counter; 5],
    received: [Counter; 5],
    sent: [Counter; 5],
}

impl ShardMetrics {
    /// Handles for the shard of this number.
    pub fn new(shard: u16) -> Self {
        let label = shard.to_string();
        Self {
            heartbeats: counter!(names::DATA_HEARTBEATS),
            identity_conflicts: counter!(names::DATA_IDENTITY_CONFLICTS),
            handshakes_failed: counter!(names::DATA_HANDSHAKES, "result" => "failed"),
            lost: counter!(names::DATA_AGENTS_LOST),
            self_doubts: counter!(names::DATA_SELF_DOUBTS),
            loop_lag: histogram!(names::DATA_SHARD_LOOP_LAG_SECONDS, "shard" => label.clone()),
            buffers: gauge!(names::DATA_SHARD_BUFFERS_BYTES, "shard" => label),
            file_sent: counter!(names::DATA_FILE_SENT_BYTES),
            file_received: counter!(names::DATA_FILE_RECEIVED_BYTES),
            refused_blocks: counter!(names::DATA_FILE_REFUSED_BLOCKS),
            handshakes: counter!(names::DATA_HANDSHAKES, "result" => "ok"),
            handshake_seconds: histogram!(names::DATA_HANDSHAKE_SECONDS),
            sessions: KINDS.map(|kind| gauge!(names::DATA_SESSIONS, "kind" => kind)),
            opened: KINDS.map(|kind| counter!(names::DATA_SESSIONS_OPENED, "kind" => kind)),
            received: KINDS.map(|kind| counter!(names::DATA_SOCKET_RECEIVED_BYTES, "kind" => kind)),
            sent: KINDS.map(|kind| counter!(names::DATA_SOCKET_SENT_BYTES, "kind" => kind)),
        }
    }

    /// A TLS handshake ended well.
    pub fn handshake(&self, took_ms: u64) {
        self.handshakes.increment(1);
        self.handshake_seconds.record(took_ms as f64 / 1e3);
    }

    /// HELLO was accepted.
    pub fn opened(&self, kind: ChannelKind) {
        self.opened[kind as usize].increment(1);
        self.sessions[kind as usize].increment(1);
    }

    /// A connection ends; `None` before HELLO.
    pub fn closed(&self, kind: Option<ChannelKind>, reason: CloseReason) {
        let label = KINDS[index(kind)];
        let reason_label = reason.as_str();
        counter!(names::DATA_SESSIONS_CLOSED, "kind" => label, "reason" => reason_label)
            .increment(1);
        if kind.is_some() {
            self.sessions[index(kind)].decrement(1);
        }
        if reason.is_protocol_error() {
            counter!(names::DATA_PROTOCOL_ERRORS, "kind" => label, "error" => reason_label)
                .increment(1);
        }
        if reason == CloseReason::Lost {
            self.lost.increment(1);
        }
    }

    /// Bytes came from a socket.
    pub fn received(&self, kind: Option<ChannelKind>, bytes: usize) {
        self.received[index(kind)].increment(bytes as u64);
    }

    /// Bytes went to a socket.
    pub fn sent(&self, kind: Option<ChannelKind>, bytes: usize) {
        self.sent[index(kind)].increment(bytes as u64);
    }
}

fn index(kind: Option<ChannelKind>) -> usize {
    kind.map_or(4, |kind| kind as usize)
}
