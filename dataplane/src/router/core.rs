//! The worker's logic without any I/O: messages, finished disk operations and time go in; disk
//! operations, replies and reports come out. Both drivers and the tests run exactly this.
//!
//! Its parts: [`super::ingest`] takes lanes and batches, [`super::files`] opens and rotates,
//! [`super::flush`] makes positions true, [`super::table`] changes routes.

use std::collections::HashMap;
use std::sync::Arc;

use skein_wire::compress::Decompressor;
use skein_wire::data::{Ack, Hold, HoldReason, ServerFrame};
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::DataId;

use crate::sinks::block::Pool;
use crate::sinks::disk::{DiskDone, DiskOp};
use crate::sinks::format::Formatter;
use crate::sinks::recover::{LeftFile, WorkerStart};

use super::files::Files;
use super::flush::{Flush, Log};
use super::lanes::{Fault, LaneIndex, Lanes};
use super::meter::Meter;
use super::streams::Stream;
use super::tap::Taps;
use super::{RouterReport, SessionRef, ToRouter};

/// Bounds of one worker.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Lanes that are remembered. About 400 bytes each: 100 MiB.
    pub lanes_max: usize,
    /// Bytes of batches of one lane that are received and not stored.
    pub window_bytes: u64,
    /// Bytes of blocks that are unflushed or on their way; batches wait beyond it.
    pub block_bytes_max: usize,
    /// Unflushed bytes that are flushed without waiting for the interval.
    pub flush_bytes: u64,
    /// Checkpoint log that is rewritten when it has grown past this and past four times what it
    /// began with.
    pub log_bytes_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lanes_max: 262_144,
            window_bytes: 4 << 20,
            block_bytes_max: 64 << 20,
            flush_bytes: 16 << 20,
            log_bytes_min: 8 << 20,
        }
    }
}

/// The time of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, any origin.
    pub mono_ms: u64,
    /// Since 1970.
    pub wall_ms: u64,
}

/// Lane states in one report: about 100 bytes each, far below a fleet message.
const REPORT_LANES_MAX: usize = 4_096;

/// Between reports of lanes.
const REPORT_MS: u64 = 1_000;

/// Between looks for files that are past their time without being written.
const HOUSEKEEPING_MS: u64 = 30_000;

/// One worker. See the module's head.
pub struct RouterCore {
    pub(super) worker: usize,
    pub(super) limits: Limits,
    pub(super) now: Now,
    pub(super) lanes: Lanes,
    pub(super) streams: HashMap<u32, Stream>,
    pub(super) routes: HashMap<DataId, Vec<u32>>,
    pub(super) files: Files,
    pub(super) left: Vec<LeftFile>,
    pub(super) pool: Pool,
    pub(super) formatter: Formatter,
    pub(super) decompressor: Decompressor,
    pub(super) raw: Vec<u8>,
    pub(super) flush: Option<Flush>,
    pub(super) flushes: u64,
    pub(super) log: Log,
    pub(super) taps: Taps,
    pub(super) meter: Meter,
    pub(super) pending_table: Option<Arc<fleet::RoutingTable>>,
    /// Lanes with a [`Fault::Altered`].
    pub(super) altered: Vec<LaneIndex>,
    pub(super) stopping: bool,
    closed_for_stop: bool,
    ops: Vec<DiskOp>,
    outstanding: usize,
    replies: Vec<(SessionRef, ServerFrame)>,
    reports: Vec<RouterReport>,
    reported_ms: u64,
    kept_house_ms: u64,
}

impl RouterCore {
    /// Worker number `worker` of `workers`, with what it left behind.
    pub fn new(
        worker: usize,
        workers: usize,
        limits: Limits,
        start: WorkerStart,
        now: Now,
    ) -> Self {
        let mut lanes = Lanes::new(limits.lanes_max, limits.window_bytes);
        for entry in start.lanes {
            lanes.restore(entry);
        }
        Self {
            worker,
            now,
            lanes,
            streams: HashMap::new(),
            routes: HashMap::new(),
            files: Files::default(),
            left: start.files,
            pool: Pool::default(),
            formatter: Formatter::default(),
            decompressor: Decompressor::new(),
            raw: Vec::new(),
            flush: None,
            flushes: 0,
            log: Log::new(start.log_bytes, limits.log_bytes_min),
            taps: Taps::new(workers),
            meter: Meter::new(),
            pending_table: None,
            altered: Vec::new(),
            stopping: false,
            closed_for_stop: false,
            ops: Vec::new(),
            outstanding: 0,
            replies: Vec::new(),
            reports: Vec::new(),
            reported_ms: now.mono_ms,
            kept_house_ms: now.mono_ms,
            limits,
        }
    }

    /// Takes one message. Call only while [`RouterCore::accepts`].
    pub fn handle(&mut self, now: Now, message: ToRouter) {
        self.now = now;
        match message {
            ToRouter::Batch { session, agent, header, body } => {
                self.on_batch(session, &agent, &header, &body);
            }
            ToRouter::Open { session, agent, open } => self.on_open(session, &agent, &open),
            ToRouter::Stat { session, agent, stat } => self.on_stat(session, &agent, stat),
            ToRouter::Gone { session, agent } => self.on_gone(session, &agent),
            ToRouter::Table(table) => self.pending_table = Some(table),
            ToRouter::TapStart(tap) => self.taps.start(&tap, now.mono_ms),
            ToRouter::TapStop(tap) => self.taps.stop(tap),
            ToRouter::Stop => self.stopping = true,
        }
    }

    /// Takes the end of a disk operation.
    pub fn done(&mut self, now: Now, done: DiskDone) {
        self.now = now;
        debug_assert!(self.outstanding > 0, "each operation is answered once");
        self.outstanding = self.outstanding.saturating_sub(1);
        match done {
            DiskDone::Opened(file, result) => self.on_opened(file, result),
            DiskDone::Written(file, block, result) => {
                self.pool.give(block);
                if let Err(error) = result {
                    self.on_file_error(file, &error);
                }
            }
            DiskDone::Synced(file, result) => self.on_synced(file, result),
            DiskDone::Truncated(file, result) => self.on_truncated(file, result),
            DiskDone::Probed(file, result) => self.on_probed(file, result),
            DiskDone::Closed(_) => {}
            DiskDone::Logged(result) => self.on_logged(result),
        }
    }

    /// Does what is due. Call after each round of messages and finished operations.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        self.retry_altered();
        self.retry_failed();
        if now.mono_ms >= self.kept_house_ms + HOUSEKEEPING_MS {
            self.kept_house_ms = now.mono_ms;
            self.close_files_past_their_time();
        }
        self.start_flush_if_due();
        self.apply_table_if_quiet();
        self.log_if_idle();
        if self.stopping && self.is_quiet() && !self.closed_for_stop {
            self.closed_for_stop = true;
            self.close_files_for_stop();
        }
        self.meter.blocks(self.pool.lent_bytes());
        self.taps.collect(now.mono_ms, &mut self.reports, &self.meter);
        if self.lanes.has_changed() && now.mono_ms >= self.reported_ms + REPORT_MS {
            self.reported_ms = now.mono_ms;
            self.reports.push(RouterReport::Lanes(self.lanes.take_changed(REPORT_LANES_MAX)));
        }
    }

    /// Whether there is room for another batch.
    pub fn accepts(&self) -> bool {
        !self.stopping
            && self.pending_table.is_none()
            && self.pool.lent_bytes() < self.limits.block_bytes_max
    }

    /// When [`RouterCore::tick`] has something to do if nothing happens before.
    pub fn deadline_ms(&self) -> Option<u64> {
        let lanes = self.lanes.has_changed().then_some(self.reported_ms + REPORT_MS);
        let house = (!self.files.is_empty()).then_some(self.kept_house_ms + HOUSEKEEPING_MS);
        [lanes, house, self.flush_due_ms(), self.retry_due_ms(), self.log.retry_at_ms()]
            .into_iter()
            .chain([self.taps.due_ms()])
            .flatten()
            .min()
    }

    /// Whether everything that was asked by [`ToRouter::Stop`] is done.
    pub fn is_stopped(&self) -> bool {
        self.closed_for_stop && self.outstanding == 0 && self.ops.is_empty()
    }

    /// Whether [`ToRouter::Stop`] came.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Disk operations to execute, in order.
    pub fn take_ops(&mut self) -> Vec<DiskOp> {
        std::mem::take(&mut self.ops)
    }

    /// Frames for sessions, in order.
    pub fn take_replies(&mut self) -> Vec<(SessionRef, ServerFrame)> {
        std::mem::take(&mut self.replies)
    }

    /// Reports for control.
    pub fn take_reports(&mut self) -> Vec<RouterReport> {
        std::mem::take(&mut self.reports)
    }

    pub(super) fn op(&mut self, op: DiskOp) {
        self.outstanding += 1;
        self.ops.push(op);
    }

    pub(super) fn reply(&mut self, session: SessionRef, frame: ServerFrame) {
        if matches!(frame, ServerFrame::Credit(_)) {
            self.meter.credits.increment(1);
        }
        self.replies.push((session, frame));
    }

    pub(super) fn report(&mut self, report: RouterReport) {
        self.reports.push(report);
    }

    /// Tells a lane's agent whether it may send, if that changed.
    pub(super) fn settle_lane(&mut self, index: LaneIndex) {
        let Some(lane) = self.lanes.get_mut(index) else { return };
        let Some(session) = lane.session else { return };
        let wanted = wanted_hold(lane, &self.streams);
        if wanted == lane.hold {
            return;
        }
        let was_held = std::mem::replace(&mut lane.hold, wanted).is_some();
        let data_id = lane.data_id;
        let mut ack = None;
        let frame = match wanted {
            Some(reason) => {
                lane.stale_end = lane.stale_end.max(Some(lane.rx.position_received()));
                self.meter.lane_held(reason);
                Some(ServerFrame::Hold(Hold { data_id, reason }))
            }
            None => {
                // An ack that came with the hold meant nothing to an agent that had not sent yet.
                let (epoch, next) = (lane.epoch(), lane.rx.position_stored());
                ack = Some(ServerFrame::Ack(Ack { data_id, epoch, next }));
                lane.rx.resume().map(ServerFrame::LaneReady)
            }
        };
        self.meter.lane_moved(Some(was_held), Some(wanted.is_some()));
        self.replies.extend(frame.into_iter().chain(ack).map(|frame| (session, frame)));
        self.lanes.mark_changed(index);
    }
}

/// Why a lane must wait now.
pub(super) fn wanted_hold(
    lane: &super::lanes::Lane,
    streams: &HashMap<u32, Stream>,
) -> Option<HoldReason> {
    match lane.fault {
        Some(Fault::Stale) => return Some(HoldReason::StaleEpoch),
        Some(Fault::Violated | Fault::Altered { .. }) => return Some(HoldReason::Paused),
        None => {}
    }
    let mut active = lane.streams.iter().filter(|stream| stream.active).peekable();
    if active.peek().is_none() {
        return Some(HoldReason::UnknownDataId);
    }
    let fails = |id: u32| !streams.get(&id).is_some_and(Stream::takes_records);
    active.any(|stream| fails(stream.stream)).then_some(HoldReason::SinkUnavailable)
}
