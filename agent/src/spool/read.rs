//! The data channel's side of the spool: batches in order, read ahead, and acknowledgements.

use metrics::counter;
use skein_observe::names;
use skein_wire::ids::Epoch;

use super::disk::{Found, Read, ReadBatch, Request};
use super::index::{Position, Segment};
use super::lane::{Lane, READ_AHEAD_BYTES, READ_AHEAD_TOTAL_BYTES, Reader};
use super::segment::SEGMENT_HEADER_BYTES;
use super::{ACK_NOTE_MS, LaneDepth, Spool, State};

/// What comes next in a lane.
#[derive(Clone, Debug)]
pub enum Peek {
    /// A batch.
    Batch(ReadBatch),
    /// Being read from disk; the lane is touched when it is there.
    Loading,
    /// Other lanes have too much read ahead; ask again when some of it was sent.
    Busy,
    /// Everything durable was handed out; the lane is touched when there is more.
    End,
}

impl Spool {
    /// Returns when [`Spool::take_touched`] has something.
    pub async fn changed(&self) {
        self.touched.notified().await;
    }

    /// A lane with news since it was last taken: durable batches, batches read, records dropped.
    pub fn take_touched(&self) -> Option<u32> {
        let mut state = self.state.borrow_mut();
        let data_id = state.touched.pop_front()?;
        if let Some(lane) = state.lanes.get_mut(&data_id) {
            lane.touched = false;
        }
        Some(data_id)
    }

    /// Lanes that hold records.
    pub fn lanes_with_records(&self) -> Vec<u32> {
        let state = self.state.borrow();
        let holding = state.lanes.values().filter(|lane| lane.index.depth().0 > 0);
        let mut lanes: Vec<u32> = holding.map(|lane| lane.data_id).collect();
        lanes.sort_unstable();
        lanes
    }

    /// The epoch that must be sent next: the oldest with records that are not acknowledged.
    pub fn epoch_to_send(&self, data_id: u32) -> Option<u64> {
        let state = self.state.borrow();
        let lane = state.lanes.get(&data_id)?;
        Some(lane.index.find(lane.index.acked())?.id.epoch)
    }

    /// Oldest record held of `epoch` and the end of the durable ones.
    pub fn range_of(&self, data_id: u32, epoch: u64) -> Option<(u64, u64)> {
        self.state.borrow().lanes.get(&data_id)?.index.range_of(epoch)
    }

    /// Everything before is acknowledged or was dropped.
    pub fn acked(&self, data_id: u32) -> Option<Position> {
        Some(self.state.borrow().lanes.get(&data_id)?.index.acked())
    }

    /// For LANE_STAT.
    pub fn depth(&self, data_id: u32) -> Option<LaneDepth> {
        let state = self.state.borrow();
        let lane = state.lanes.get(&data_id)?;
        let (records, bytes) = lane.index.depth();
        let oldest = lane.index.find(lane.index.acked());
        let epoch = Epoch(oldest.map_or(lane.epoch, |segment| segment.id.epoch));
        Some(LaneDepth { epoch, records, bytes, dropped: lane.dropped })
    }

    /// Batches are wanted from `position` on.
    pub fn seek(&self, data_id: u32, position: Position) {
        let mut state = self.state.borrow_mut();
        state.forget_reader(data_id);
        if let Some(lane) = state.lanes.get_mut(&data_id) {
            lane.reader_generation += 1;
            lane.reader = Some(Reader {
                generation: lane.reader_generation,
                read_to: position,
                ..Reader::default()
            });
        }
    }

    /// No batches are wanted now.
    pub fn unseek(&self, data_id: u32) {
        self.state.borrow_mut().forget_reader(data_id);
    }

    /// Bytes read ahead over all lanes; past half of their bound, lanes that may not send should
    /// give theirs back by [`Spool::seek`].
    pub fn read_ahead_is_scarce(&self) -> bool {
        self.state.borrow().read_ahead_bytes > READ_AHEAD_TOTAL_BYTES
    }

    /// The next batch of a lane that was sought.
    pub fn peek(&self, data_id: u32) -> Peek {
        self.state.borrow_mut().peek(data_id)
    }

    /// The batch that [`Spool::peek`] showed was sent.
    pub fn pop(&self, data_id: u32) {
        self.state.borrow_mut().pop(data_id, true);
    }

    /// The batch that [`Spool::peek`] showed need not be sent.
    pub fn discard(&self, data_id: u32) {
        self.state.borrow_mut().pop(data_id, false);
    }

    /// A server has stored everything before `position`.
    pub fn ack(&self, data_id: u32, position: Position) {
        let mut state = self.state.borrow_mut();
        let Some(lane) = state.lanes.get_mut(&data_id) else { return };
        let before = lane.index.depth().0;
        let removed = lane.index.ack(position);
        lane.metrics.acknowledged.increment(before.saturating_sub(lane.index.depth().0));
        lane.show_depth();
        lane.ack_unnoted = true;
        lane.used_ms = crate::clock::now_ms();
        for segment in removed {
            state.ask(Request::Remove { data_id, segment });
        }
        state.count_total();
        if state.ack_note_at_ms.is_none() {
            state.ack_note_at_ms = Some(crate::clock::now_ms() + ACK_NOTE_MS);
            self.due.notify_one();
        }
        drop(state);
        self.room.notify_waiters();
    }
}

impl State {
    fn forget_reader(&mut self, data_id: u32) {
        if let Some(lane) = self.lanes.get_mut(&data_id)
            && let Some(reader) = lane.reader.take()
        {
            self.read_ahead_bytes -= reader.bytes;
        }
    }

    fn pop(&mut self, data_id: u32, sent: bool) {
        let Some(lane) = self.lanes.get_mut(&data_id) else { return };
        let Some(reader) = &mut lane.reader else { return };
        let Some(batch) = reader.batches.pop_front() else { return };
        let bytes = batch.frame.len() as u64;
        reader.bytes -= bytes;
        self.read_ahead_bytes -= bytes;
        if sent {
            lane.metrics.batches_sent.increment(1);
            lane.metrics.records_sent.increment(batch.header.record_count.into());
            lane.metrics.bytes_sent.increment(bytes);
        }
    }

    fn peek(&mut self, data_id: u32) -> Peek {
        let Some(lane) = self.lanes.get_mut(&data_id) else { return Peek::End };
        let Some(reader) = &mut lane.reader else { return Peek::End };
        let Some(batch) = reader.batches.front().cloned() else {
            return self.load(data_id);
        };
        // The next ones are read while these are sent.
        if reader.bytes < READ_AHEAD_BYTES / 2 && self.read_ahead_bytes < READ_AHEAD_TOTAL_BYTES {
            self.load(data_id);
        }
        Peek::Batch(batch)
    }

    /// Has the next batches read from disk, if there are any that are not on their way.
    fn load(&mut self, data_id: u32) -> Peek {
        let busy = self.read_ahead_bytes > 2 * READ_AHEAD_TOTAL_BYTES;
        let scarce = self.read_ahead_bytes > READ_AHEAD_TOTAL_BYTES;
        let Some(lane) = self.lanes.get_mut(&data_id) else { return Peek::End };
        let Some(reader) = &mut lane.reader else { return Peek::End };
        if reader.loading {
            return Peek::Loading;
        }
        // Records that were dropped meanwhile are skipped.
        reader.read_to = reader.read_to.max(lane.index.acked());
        let Some(Segment { id, bytes, .. }) = lane.index.find(reader.read_to) else {
            return Peek::End;
        };
        if busy {
            return Peek::Busy;
        }
        let cursor = reader.cursor.filter(|(segment, _)| *segment == id);
        let offset = cursor.map_or(SEGMENT_HEADER_BYTES as u64, |(_, offset)| offset);
        let from = if reader.read_to.epoch == id.epoch { reader.read_to.next } else { 0 };
        reader.loading = true;
        reader.cursor = Some((id, offset));
        reader.limit = bytes;
        let read = Read {
            data_id,
            generation: reader.generation,
            segment: id,
            offset,
            limit: bytes,
            from,
            bytes_max: if scarce { 1 } else { READ_AHEAD_BYTES },
        };
        self.ask(Request::Read(read));
        Peek::Loading
    }

    /// The disk thread answered a [`Request::Read`].
    pub(super) fn on_read(
        &mut self,
        data_id: u32,
        generation: u64,
        result: std::io::Result<Found>,
    ) {
        let Some(lane) = self.lanes.get_mut(&data_id) else { return };
        let Lane { reader: Some(reader), index, .. } = lane else { return };
        if reader.generation != generation || !reader.loading {
            return;
        }
        reader.loading = false;
        let Some((segment, from_offset)) = reader.cursor.take() else { return };
        match result {
            Ok(found) => {
                counter!(names::AGENT_SPOOL_DAMAGED).increment(found.damaged_bytes);
                for batch in found.batches {
                    let end = Position::new(batch.header.epoch.0, batch.header.end().0);
                    if end <= reader.read_to {
                        continue;
                    }
                    reader.read_to = end;
                    reader.bytes += batch.frame.len() as u64;
                    self.read_ahead_bytes += batch.frame.len() as u64;
                    reader.batches.push_back(batch);
                }
                reader.cursor = Some((segment, found.offset));
                if reader.batches.is_empty() && found.offset == from_offset {
                    // Nothing readable is left of it.
                    skip_segment(reader, index.find(reader.read_to), segment);
                }
            }
            Err(error) if !index.contains(segment) => {
                tracing::debug!(data_id, %error, "a segment was dropped while it was read");
            }
            Err(error) => {
                tracing::error!(data_id, %error, "cannot read a spool segment; it is skipped");
                skip_segment(reader, index.find(reader.read_to), segment);
            }
        }
        self.touch(data_id);
    }
}

/// Moves past what cannot be read, unless more was appended while it was tried.
fn skip_segment(reader: &mut Reader, current: Option<Segment>, read: Position) {
    if let Some(segment) = current.filter(|now| now.id == read && now.bytes == reader.limit) {
        reader.read_to = Position::new(segment.id.epoch, segment.end);
        reader.cursor = None;
    }
}
