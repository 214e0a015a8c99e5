//! Counters of a worker, looked up once and added to per batch or flush.

use std::collections::HashMap;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use skein_observe::names;
use skein_wire::data::HoldReason;
use skein_wire::ids::DataId;

/// Data ids with counters of their own in one worker; others share the label `other`.
const DATA_IDS_MAX: usize = 1_024;

/// Counters of one data id.
#[derive(Clone)]
pub struct DataMeter {
    /// Batches received.
    pub batches: Counter,
    /// Records received.
    pub records: Counter,
    /// Bytes received, compressed.
    pub bytes: Counter,
    /// Repeated records.
    pub duplicate: Counter,
    /// Records that the agent dropped.
    pub missing: Counter,
}

impl DataMeter {
    fn new(data_id: String) -> Self {
        Self {
            batches: counter!(names::DATA_BATCHES_RECEIVED, "data_id" => data_id.clone()),
            records: counter!(names::DATA_RECORDS_RECEIVED, "data_id" => data_id.clone()),
            bytes: counter!(names::DATA_RECEIVED_BYTES, "data_id" => data_id.clone()),
            duplicate: counter!(names::DATA_RECORDS_DUPLICATE, "data_id" => data_id.clone()),
            missing: counter!(names::DATA_RECORDS_MISSING, "data_id" => data_id),
        }
    }
}

/// Counters of one stream.
pub struct StreamMeter {
    /// Records flushed.
    pub records: Counter,
    /// Bytes flushed.
    pub bytes: Counter,
    /// Time of group flushes that it took part in.
    pub flush_seconds: Histogram,
    /// Files closed because of size or age.
    pub rotations: Counter,
    name: String,
}

impl StreamMeter {
    /// By the stream's name.
    pub fn new(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            records: counter!(names::DATA_SINK_RECORDS, "stream" => name.clone()),
            bytes: counter!(names::DATA_SINK_BYTES, "stream" => name.clone()),
            flush_seconds: histogram!(names::DATA_SINK_FLUSH_SECONDS, "stream" => name.clone()),
            rotations: counter!(names::DATA_SINK_ROTATIONS, "stream" => name.clone()),
            name,
        }
    }

    /// A failed operation.
    pub fn error(&self, label: &'static str) {
        counter!(names::DATA_SINK_ERRORS, "stream" => self.name.clone(), "error" => label)
            .increment(1);
    }
}

impl std::fmt::Debug for StreamMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamMeter({})", self.name)
    }
}

/// Counters of one worker.
pub struct Meter {
    data: HashMap<DataId, DataMeter>,
    other: DataMeter,
    /// Acks pushed.
    pub acks: Counter,
    /// Credits sent.
    pub credits: Counter,
    /// Bytes of checkpoint frames stored.
    pub checkpoint_bytes: Counter,
    /// Checkpoint frames that could not be stored.
    pub checkpoint_errors: Counter,
    /// Files open now, over all workers.
    pub files_open: Gauge,
    block_bytes: Gauge,
    /// Records sent to taps.
    pub tap_records: Counter,
    /// Records that taps left out.
    pub tap_skipped: Counter,
    flowing: Gauge,
    held: Gauge,
    shown_blocks: usize,
}

impl Meter {
    /// For one worker.
    pub fn new() -> Self {
        Self {
            data: HashMap::new(),
            other: DataMeter::new("other".to_owned()),
            acks: counter!(names::DATA_ACKS_SENT),
            credits: counter!(names::DATA_CREDITS_SENT),
            checkpoint_bytes: counter!(names::DATA_CHECKPOINT_BYTES),
            checkpoint_errors: counter!(names::DATA_CHECKPOINT_ERRORS),
            files_open: gauge!(names::DATA_SINK_FILES_OPEN),
            block_bytes: gauge!(names::DATA_SINK_BLOCKS_BYTES),
            tap_records: counter!(names::DATA_TAP_RECORDS),
            tap_skipped: counter!(names::DATA_TAP_SKIPPED),
            flowing: gauge!(names::DATA_LANES, "state" => "flowing"),
            held: gauge!(names::DATA_LANES, "state" => "held"),
            shown_blocks: 0,
        }
    }

    /// Counters of a data id.
    pub fn data(&mut self, data_id: DataId) -> &DataMeter {
        if !self.data.contains_key(&data_id) && self.data.len() >= DATA_IDS_MAX {
            return &self.other;
        }
        self.data.entry(data_id).or_insert_with(|| DataMeter::new(data_id.to_string()))
    }

    /// A batch that was thrown away.
    pub fn refused(&self, reason: &'static str) {
        counter!(names::DATA_BATCHES_REFUSED, "reason" => reason).increment(1);
    }

    /// A lane of a session is held from now on.
    pub fn lane_held(&self, reason: HoldReason) {
        counter!(names::DATA_LANES_HELD, "reason" => reason.as_str()).increment(1);
    }

    /// A lane with a session went from one state to another; `None`: it has no session.
    pub fn lane_moved(&self, from: Option<bool>, to: Option<bool>) {
        let gauge = |held: bool| if held { &self.held } else { &self.flowing };
        if let Some(held) = from {
            gauge(held).decrement(1.0);
        }
        if let Some(held) = to {
            gauge(held).increment(1.0);
        }
    }

    /// What the worker's blocks hold.
    pub fn blocks(&mut self, bytes: usize) {
        self.block_bytes.increment(bytes as f64 - self.shown_blocks as f64);
        self.shown_blocks = bytes;
    }
}
