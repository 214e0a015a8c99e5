//! One lane in memory: the batch that is being filled, what is on its way to the disk, and the
//! batches that were read ahead for sending.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use metrics::{Counter, Gauge, counter, gauge};
use skein_observe::names;
use skein_wire::batch::{BatchBuilder, BatchHeader};
use skein_wire::data::HoldReason;
use skein_wire::ids::DataId;
use tokio::sync::oneshot;

use super::Input;
use super::disk::ReadBatch;
use super::index::{Index, Position, SegmentId};

/// Batches read ahead per lane, in bytes: about as many as one connection has in flight.
pub(super) const READ_AHEAD_BYTES: u64 = 512 * 1024;
/// Batches read ahead for all lanes: past this, lanes get one batch at a time, past twice this
/// none.
pub(super) const READ_AHEAD_TOTAL_BYTES: u64 = 4 * 1024 * 1024;

/// A lane of the spool.
pub(super) struct Lane {
    pub data_id: u32,
    /// Epoch of the records that are pushed now.
    pub epoch: u64,
    /// Sequence of the next record to be pushed.
    pub next: u64,
    /// Records refused since the last push that was accepted; their numbers are left out, so that
    /// the server sees a gap of the right size.
    pub skipped: u64,
    pub filling: Filling,
    pub index: Index,
    /// The segment that appends go to and its bytes once everything on its way is written.
    pub active: Option<(SegmentId, u64)>,
    pub writing: VecDeque<Writing>,
    /// Bytes of all of `writing`.
    pub writing_bytes: u64,
    pub waiters: VecDeque<Waiter>,
    /// Entries sealed so far; the number of the entry that is being filled.
    pub entries: u64,
    pub held: Option<HoldReason>,
    /// The server takes batches of it.
    pub open: bool,
    /// What the lane may keep while it is held: its share, or what it had when the hold began.
    pub held_keep_bytes: u64,
    /// Whether records came that are gone when dropped: not from followed files or `emit`, which
    /// wait instead.
    pub lossy: bool,
    pub dropped: u64,
    pub reader: Option<Reader>,
    pub reader_generation: u64,
    /// In the list of lanes that the data channel should look at.
    pub touched: bool,
    /// Acknowledged position that is not noted on disk yet.
    pub ack_unnoted: bool,
    /// Keys under which sources keep their positions in this lane.
    pub marks: BTreeSet<Vec<u8>>,
    /// Monotonic time of the last push or acknowledgement.
    pub used_ms: u64,
    pub metrics: LaneMetrics,
}

/// The batch that is being filled.
pub(super) struct Filling {
    pub builder: BatchBuilder,
    /// Marks that become true with it.
    pub marks: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Filling {
    pub fn is_empty(&self) -> bool {
        self.builder.is_empty() && self.marks.is_empty()
    }

    /// The latest value of a key counts; it is most often the last one that was set. True when
    /// the key is news to this batch, or whether it has a value.
    fn set_mark(&mut self, key: &[u8], value: &[u8]) -> bool {
        match self.marks.iter_mut().rev().find(|(known, _)| known == key) {
            Some((_, known)) => {
                let changed = known.is_empty() != value.is_empty();
                known.clear();
                known.extend_from_slice(value);
                changed
            }
            None => {
                self.marks.push((key.to_vec(), value.to_vec()));
                true
            }
        }
    }

    /// Memory that its records take, about.
    pub fn raw_bytes(&self) -> usize {
        if self.builder.is_empty() { 0 } else { self.builder.raw_len() }
    }
}

/// An entry on its way to the disk.
pub(super) struct Writing {
    pub header: Option<BatchHeader>,
    pub frame: Bytes,
    pub bytes: u64,
}

/// Somebody who wants to know when an entry is durable.
pub(super) struct Waiter {
    pub entry: u64,
    pub tell: oneshot::Sender<()>,
}

/// Batches read ahead for the data channel.
#[derive(Default)]
pub(super) struct Reader {
    pub generation: u64,
    pub batches: VecDeque<ReadBatch>,
    pub bytes: u64,
    /// Everything before is in `batches` or was taken from there.
    pub read_to: Position,
    /// Where the next read of this segment goes on.
    pub cursor: Option<(SegmentId, u64)>,
    pub loading: bool,
    /// Bytes of the segment that the read which is going on may see.
    pub limit: u64,
}

impl Lane {
    pub fn new(data_id: u32, epoch: u64, next: u64, batch_bytes: usize, index: Index) -> Lane {
        Lane {
            data_id,
            epoch,
            next,
            skipped: 0,
            filling: Filling {
                builder: BatchBuilder::new(DataId(data_id), batch_bytes),
                marks: Vec::new(),
            },
            index,
            active: None,
            writing: VecDeque::new(),
            writing_bytes: 0,
            waiters: VecDeque::new(),
            entries: 0,
            held: None,
            open: false,
            held_keep_bytes: 0,
            lossy: false,
            dropped: 0,
            reader: None,
            reader_generation: 0,
            touched: false,
            ack_unnoted: false,
            marks: BTreeSet::new(),
            used_ms: 0,
            metrics: LaneMetrics::new(data_id),
        }
    }

    /// Remembers `value` under `key` with the batch that is being filled.
    pub fn set_mark(&mut self, key: &[u8], value: &[u8]) {
        if self.filling.set_mark(key, value) {
            match value.is_empty() {
                true => self.marks.remove(key),
                false => self.marks.insert(key.to_vec()),
            };
        }
    }

    /// Bytes on disk and on the way there.
    pub fn bytes(&self) -> u64 {
        self.index.bytes() + self.writing_bytes
    }

    /// The sequence of the first record of the batch that is being filled.
    pub fn filling_first(&self) -> u64 {
        self.next - self.filling.builder.count() as u64
    }

    /// A batch became durable; the reader takes it from memory when it is the next one anyway.
    pub fn read_ahead(
        &mut self,
        before: Position,
        batch: ReadBatch,
        at: (SegmentId, u64),
        room: bool,
    ) {
        let Some(reader) = &mut self.reader else { return };
        let next = reader.read_to >= before && !reader.loading;
        if next && reader.bytes < READ_AHEAD_BYTES && room {
            reader.read_to = Position::new(batch.header.epoch.0, batch.header.end().0);
            reader.bytes += batch.frame.len() as u64;
            reader.batches.push_back(batch);
            reader.cursor = Some(at);
        }
    }

    /// Nothing in it that a server or an input still needs.
    pub fn is_idle(&self) -> bool {
        self.filling.is_empty() && self.writing.is_empty() && self.index.depth().0 == 0
    }
}

/// Handles of the lane's metrics, made once: a lookup by labels costs more than a push.
pub(super) struct LaneMetrics {
    label: Rc<str>,
    inputs: [Option<(Counter, Counter)>; 3],
    pub depth_records: Gauge,
    pub depth_bytes: Gauge,
    pub acknowledged: Counter,
    pub batches_sent: Counter,
    pub records_sent: Counter,
    pub bytes_sent: Counter,
}

impl LaneMetrics {
    fn new(data_id: u32) -> LaneMetrics {
        let label = label(data_id);
        let text = label.to_string();
        LaneMetrics {
            label,
            inputs: [const { None }; 3],
            depth_records: gauge!(names::AGENT_SPOOL_RECORDS, "data_id" => text.clone()),
            depth_bytes: gauge!(names::AGENT_SPOOL_BYTES, "data_id" => text.clone()),
            acknowledged: counter!(names::AGENT_RECORDS_ACKNOWLEDGED, "data_id" => text.clone()),
            batches_sent: counter!(names::AGENT_BATCHES_SENT, "data_id" => text.clone()),
            records_sent: counter!(names::AGENT_RECORDS_SENT, "data_id" => text.clone()),
            bytes_sent: counter!(names::AGENT_SENT_BYTES, "data_id" => text),
        }
    }

    pub fn taken(&mut self, input: Input, bytes: usize) {
        let text = &self.label;
        let (records, sum) = self.inputs[input as usize].get_or_insert_with(|| {
            let labels = [("input", input.as_str().to_owned()), ("data_id", text.to_string())];
            (
                counter!(names::AGENT_INPUT_RECORDS, &labels),
                counter!(names::AGENT_INPUT_BYTES, &labels),
            )
        });
        records.increment(1);
        sum.increment(bytes as u64);
    }

    pub fn dropped(&self, records: u64, reason: &'static str) {
        counter!(names::AGENT_SPOOL_DROPPED, "data_id" => self.label.to_string(), "reason" => reason)
            .increment(records);
    }
}

/// The label of a data id: itself for as many ids as there may be lanes, then "other", so that a
/// process that writes random ids cannot fill the memory with metrics.
fn label(data_id: u32) -> Rc<str> {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    thread_local! {
        static SEEN: RefCell<BTreeSet<u32>> = const { RefCell::new(BTreeSet::new()) };
    }
    SEEN.with_borrow_mut(|seen| {
        if !seen.contains(&data_id) && seen.len() >= super::LANES_MAX {
            return Rc::from("other");
        }
        seen.insert(data_id);
        Rc::from(data_id.to_string())
    })
}
