//! How far a transfer is and what it cost, computed by control when it is asked for.

use serde::{Deserialize, Serialize};

/// How far a transfer is, when it will end, and where the bytes came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferProgress {
    /// When this was computed: the server's clock, ms since 1970.
    pub at_ms: i64,
    /// Verified share of all bytes on all hosts, 0 to 100, rounded down.
    pub percent: u8,
    /// Time since the file was in the server's cache, ms, until now or the end; absent before.
    pub elapsed_ms: Option<u64>,
    /// When the slowest of the hosts that are on their way will be done at the rate of the last 2.5
    /// to 5 s: the server's clock, ms since 1970. Absent while that is not known and at the end.
    pub predicted_end_ms: Option<i64>,
    /// Why [`Self::predicted_end_ms`] is absent, or whom it leaves out; empty otherwise.
    pub note: String,
    /// Verified bytes that came over the network: without what hosts had from earlier runs.
    pub delivered_bytes: u64,
    /// Of those, what came from other hosts. The share is exact as soon as a host reports.
    pub from_peers_bytes: u64,
    /// Content that the server has sent, repeats included, as its data process counts it: up to
    /// 1 s old while the transfer runs. What a killed data process had not told is missing.
    pub source_sent_bytes: u64,
    /// Whether [`Self::source_sent_bytes`] is all: so a moment after the end.
    pub source_is_final: bool,
    /// Received blocks whose hash was wrong, over all hosts; none of them was written.
    pub refused_blocks: u64,
    /// While it runs the (at most 5) unfinished hosts that will be last, those that stand still
    /// first; afterwards the done hosts with the lowest rates.
    pub slowest: Vec<SlowHost>,
}

/// One of the slowest hosts of a transfer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlowHost {
    /// Its agent.
    pub agent_id: String,
    /// Its host name when the transfer began.
    pub hostname: String,
    /// Verified bytes on its disk.
    pub verified_bytes: u64,
    /// Its rate: of the last 2.5 to 5 s while it runs, overall at the end. Absent while it is not
    /// measured, 0 when nothing came for 10 s.
    pub bytes_per_s: Option<u64>,
    /// When it will be done: the server's clock, ms since 1970. Absent while that is not known.
    pub predicted_end_ms: Option<i64>,
}
