//! The group flush: write, sync, checkpoint, acknowledge.
//!
//! One flush is under way at a time, over all streams that have something unflushed; meanwhile
//! batches go to the tapes' next blocks. A flush has two phases. In the first each file's writes
//! and sync are awaited. In the second one frame with all new lengths and positions is stored in
//! the checkpoint log. A stream that fails in the first phase is left out of the second.

use std::io;

use skein_wire::data::ServerFrame;
use skein_wire::ids::{Epoch, Sequence};

use crate::sinks::checkpoint::Frame;
use crate::sinks::disk::{DiskOp, FileId};

use super::core::RouterCore;
use super::files::FileState;
use super::lanes::LaneIndex;
use super::streams::{Mark, RETRY_MS_MAX, RETRY_MS_MIN, Stream};

/// Entries of a snapshot are cut into frames of about this size.
const SNAPSHOT_FRAME_BYTES: usize = 1 << 20;

/// A flush under way.
#[derive(Debug)]
pub struct Flush {
    started_ms: u64,
    /// Syncs not answered.
    waiting: usize,
    streams: Vec<FlushStream>,
    /// Filled by the second phase: lanes that moved, with their new positions.
    moved: Vec<(LaneIndex, u32, Epoch, Sequence)>,
    to_close: Vec<FileId>,
}

#[derive(Debug)]
struct FlushStream {
    id: u32,
    generation: u32,
    files: Vec<(FileId, u64)>,
    marks: Vec<Mark>,
    records: u64,
    bytes: u64,
    durable: bool,
}

/// What waits for a frame to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// A file may be written.
    Opened(FileId),
    /// The flush is complete.
    Flush,
}

/// The checkpoint log: one frame under way, the next one gathering.
#[derive(Debug)]
pub struct Log {
    /// What the next frame says.
    pub frame: Frame,
    tags: Vec<Tag>,
    durable: bool,
    under_way: Option<UnderWay>,
    /// The last append failed: nobody knows how the log ends, so it is replaced.
    broken: bool,
    retry_at_ms: u64,
    retry_ms: u64,
    bytes: u64,
    replace_at_bytes: u64,
    bytes_min: u64,
}

#[derive(Debug)]
struct UnderWay {
    tags: Vec<Tag>,
    bytes: u64,
    replace: bool,
}

impl Log {
    /// A log that has `bytes` bytes.
    pub fn new(bytes: u64, bytes_min: u64) -> Self {
        Self {
            frame: Frame::default(),
            tags: Vec::new(),
            durable: false,
            under_way: None,
            broken: false,
            retry_at_ms: 0,
            retry_ms: RETRY_MS_MIN,
            bytes,
            replace_at_bytes: bytes_min.max(4 * bytes),
            bytes_min,
        }
    }

    /// The frame that gathers now is waited for.
    pub fn push(&mut self, tag: Tag, durable: bool) {
        self.tags.push(tag);
        self.durable |= durable;
    }

    fn has_work(&self) -> bool {
        !self.frame.is_empty() || !self.tags.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_none() && !self.has_work()
    }

    /// When a failed write is tried again.
    pub fn retry_at_ms(&self) -> Option<u64> {
        (self.broken && self.under_way.is_none() && self.has_work()).then_some(self.retry_at_ms)
    }
}

impl RouterCore {
    /// Whether nothing is unflushed or under way.
    pub(super) fn is_quiet(&self) -> bool {
        let clean = |stream: &Stream| stream.dirty_since_ms.is_none();
        self.flush.is_none() && self.log.is_idle() && self.streams.values().all(clean)
    }

    /// Whether all files of a stream can be written.
    fn can_flush(&self, stream: &Stream) -> bool {
        let writable = |id: &FileId| {
            let file = self.files.get(*id);
            file.is_none_or(|file| !file.is_dirty() || file.state == FileState::Ready)
        };
        stream.dirty_since_ms.is_some()
            && stream.takes_records()
            && stream.files.iter().all(writable)
    }

    /// When the next flush begins.
    pub(super) fn flush_due_ms(&self) -> Option<u64> {
        if self.flush.is_some() {
            return None;
        }
        let streams = || self.streams.values().filter(|stream| self.can_flush(stream));
        let bytes: u64 = streams().map(|stream| stream.dirty_bytes).sum();
        let full = self.pool.lent_bytes() >= self.limits.block_bytes_max;
        if bytes >= self.limits.flush_bytes || full || self.stopping || self.pending_table.is_some()
        {
            return streams().next().map(|_| self.now.mono_ms);
        }
        streams().filter_map(Stream::flush_at_ms).min()
    }

    pub(super) fn start_flush_if_due(&mut self) {
        if self.flush_due_ms().is_none_or(|due| due > self.now.mono_ms) {
            return;
        }
        let ids: Vec<u32> = self
            .streams
            .values()
            .filter(|stream| self.can_flush(stream))
            .map(|stream| stream.id)
            .collect();
        let mut flush = Flush {
            started_ms: self.now.mono_ms,
            waiting: 0,
            streams: Vec::with_capacity(ids.len()),
            moved: Vec::new(),
            to_close: Vec::new(),
        };
        for id in ids {
            let part = self.flush_stream(id);
            flush.waiting += part.as_ref().map_or(0, |part| part.files.len());
            flush.streams.extend(part);
        }
        self.flushes += 1;
        let written = flush.waiting == 0;
        self.flush = Some(flush);
        if written {
            self.checkpoint_flush();
        }
    }

    fn flush_stream(&mut self, id: u32) -> Option<FlushStream> {
        let stream = self.streams.get_mut(&id)?;
        let durable = stream.config.as_ref().is_some_and(|config| config.durable);
        let mut part = FlushStream {
            id,
            generation: stream.generation,
            files: Vec::new(),
            marks: std::mem::take(&mut stream.marks),
            records: stream.dirty_records,
            bytes: stream.dirty_bytes,
            durable,
        };
        stream.forget_dirty();
        for file_id in stream.files.clone() {
            self.write_full_blocks(file_id);
            let Some(file) = self.files.get_mut(file_id).filter(|file| file.is_dirty()) else {
                continue;
            };
            part.files.push((file_id, file.tape.length()));
            if let Some(write) = file.tape.take_rest() {
                self.op(DiskOp::Write { file: file_id, write });
            }
            self.op(DiskOp::Sync { file: file_id, durable });
        }
        Some(part)
    }

    pub(super) fn on_synced(&mut self, file: FileId, result: io::Result<()>) {
        if let Err(error) = result {
            self.on_file_error(file, &error);
        }
        let Some(flush) = &mut self.flush else { return };
        flush.waiting = flush.waiting.saturating_sub(1);
        if flush.waiting == 0 {
            self.checkpoint_flush();
        }
    }

    /// The second phase: says in the log what the first has made true.
    fn checkpoint_flush(&mut self) {
        let Some(mut flush) = self.flush.take() else { return };
        flush.streams.retain(|part| {
            let stream = self.streams.get(&part.id);
            stream.is_some_and(|stream| stream.generation == part.generation)
        });
        let mut durable = false;
        for part in &mut flush.streams {
            durable |= part.durable;
            for (id, length) in &part.files {
                let Some(file) = self.files.get_mut(*id) else { continue };
                file.stored = *length;
                self.log.frame.length(*id, *length);
                if file.closing && !file.is_dirty() {
                    flush.to_close.push(*id);
                }
            }
            for mark in std::mem::take(&mut part.marks) {
                let Some(lane) = self.lanes.get_mut(mark.lane) else { continue };
                if lane.generation != mark.generation || lane.rx.epoch() != Some(mark.epoch) {
                    continue;
                }
                let step = lane.streams.iter_mut().find(|step| step.stream == part.id);
                if let Some(step) = step {
                    step.stored = step.stored.max(mark.position);
                }
                if std::mem::replace(&mut lane.touched, self.flushes) != self.flushes {
                    flush.moved.push((mark.lane, mark.generation, mark.epoch, Sequence::ZERO));
                }
            }
        }
        for (index, _, _, position) in &mut flush.moved {
            let Some(lane) = self.lanes.get_mut(*index) else { continue };
            lane.forget_caught_up();
            *position = lane.base;
            log_lane(&mut self.log.frame, lane);
        }
        self.log.push(Tag::Flush, durable);
        self.flush = Some(flush);
    }

    /// Everything that the flush said is stored: acknowledge.
    fn finish_flush(&mut self) {
        let Some(flush) = self.flush.take() else { return };
        let seconds = (self.now.mono_ms - flush.started_ms) as f64 / 1_000.0;
        for part in &flush.streams {
            let Some(stream) = self.streams.get_mut(&part.id) else { continue };
            stream.retry_ms = RETRY_MS_MIN;
            stream.meter.records.increment(part.records);
            stream.meter.bytes.increment(part.bytes);
            stream.meter.flush_seconds.record(seconds);
        }
        let mut acks = 0;
        for (index, generation, epoch, position) in flush.moved {
            let Some(lane) = self.lanes.get_mut(index) else { continue };
            if lane.generation != generation {
                continue;
            }
            lane.rx.stored(epoch, position);
            if let Some(session) = lane.session {
                let ack = lane.rx.take_ack();
                let credit = lane.rx.take_credit();
                acks += u64::from(ack.is_some());
                let ack = ack.map(ServerFrame::Ack);
                for frame in ack.into_iter().chain(credit.map(ServerFrame::Credit)) {
                    self.reply(session, frame);
                }
            }
            self.lanes.mark_changed(index);
        }
        self.meter.acks.increment(acks);
        for id in flush.to_close {
            self.close_if_complete(id);
        }
    }

    /// Stores the gathered frame, unless one is under way.
    pub(super) fn log_if_idle(&mut self) {
        let now_ms = self.now.mono_ms;
        let log = &mut self.log;
        if log.under_way.is_some() || !log.has_work() || (log.broken && now_ms < log.retry_at_ms) {
            return;
        }
        let replace = log.broken || log.bytes >= log.replace_at_bytes;
        let bytes = if replace {
            // A snapshot says all that the frame would.
            log.frame = Frame::default();
            self.snapshot()
        } else {
            log.frame.finish()
        };
        let log = &mut self.log;
        let tags = std::mem::take(&mut log.tags);
        log.under_way = Some(UnderWay { tags, bytes: bytes.len() as u64, replace });
        let durable = std::mem::take(&mut log.durable);
        self.op(DiskOp::Log { bytes, replace, durable });
    }

    pub(super) fn on_logged(&mut self, result: io::Result<()>) {
        let Some(done) = self.log.under_way.take() else { return };
        if let Err(error) = result {
            tracing::error!(%error, "checkpoint cannot be stored; nothing is acknowledged meanwhile");
            self.meter.checkpoint_errors.increment(1);
            let log = &mut self.log;
            log.broken = true;
            log.tags.splice(0..0, done.tags);
            log.retry_at_ms = self.now.mono_ms + log.retry_ms;
            log.retry_ms = (2 * log.retry_ms).min(RETRY_MS_MAX);
            return;
        }
        self.meter.checkpoint_bytes.increment(done.bytes);
        let log = &mut self.log;
        (log.broken, log.retry_ms) = (false, RETRY_MS_MIN);
        if done.replace {
            log.bytes = done.bytes;
            log.replace_at_bytes = log.bytes_min.max(4 * done.bytes);
        } else {
            log.bytes += done.bytes;
        }
        for tag in done.tags {
            match tag {
                Tag::Opened(file) => self.on_recorded(file),
                Tag::Flush => self.finish_flush(),
            }
        }
    }

    /// Everything that the log must say, as frames.
    fn snapshot(&self) -> Vec<u8> {
        let mut frames = Vec::new();
        let mut frame = Frame::default();
        for (id, file) in self.files.iter() {
            let known = file.recorded || file.state == FileState::Recording;
            if known {
                frame.file(&file.entry(id));
            }
        }
        for (_, lane) in self.lanes.iter() {
            if lane.rx.epoch().is_some() {
                log_lane(&mut frame, lane);
            }
            if frame.len() >= SNAPSHOT_FRAME_BYTES {
                frames.extend(frame.finish());
            }
        }
        frames.extend(frame.finish());
        frames
    }
}

fn log_lane(frame: &mut Frame, lane: &super::lanes::Lane) {
    let ahead = lane.streams.iter().filter(|step| step.stored > lane.base);
    let ahead = ahead.map(|step| (step.stream, step.stored));
    frame.lane(&lane.agent, lane.data_id, lane.epoch(), lane.base, ahead);
}
