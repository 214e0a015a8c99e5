//! Lanes and batches as they come from agents.
//!
//! A batch is judged first (whose lane, which session, new or known), opened once, and formatted
//! onto the tape of each stream of its routes. A stream that has a record already, because another
//! stream of the same lane failed and made the agent send it again, skips it.

use skein_wire::batch::{BatchHeader, FLAG_GAP_BEFORE};
use skein_wire::data::{Hold, HoldReason, LaneOpen, LaneStat, ServerFrame};
use skein_wire::ids::AgentId;
use skein_wire::lane::{Offer, Opened, Violation};

use super::SessionRef;
use super::core::{RouterCore, wanted_hold};
use super::lanes::{Fault, LaneIndex};
use super::streams::Mark;

/// An agent whose body was altered on its way sends it again after this.
const ALTERED_RETRY_MS: u64 = 1_000;

/// An agent that broke a lane's rules may come back after this.
const VIOLATED_RECONNECT_MS: u32 = 5_000;

/// What of the buffer for opened bodies is kept after a larger one.
const RAW_BYTES_KEPT: usize = 4 << 20;

impl RouterCore {
    pub(super) fn on_open(&mut self, session: SessionRef, agent: &AgentId, open: &LaneOpen) {
        let data_id = open.data_id;
        let Ok(index) = self.lanes.ensure(agent, data_id) else {
            self.meter.lane_held(HoldReason::Quota);
            return self
                .reply(session, ServerFrame::Hold(Hold { data_id, reason: HoldReason::Quota }));
        };
        let Some(lane) = self.lanes.get_mut(index) else { return };
        let was_held = lane.session.map(|_| lane.hold.is_some());
        let known_epoch = lane.rx.epoch();
        lane.session = Some(session);
        lane.active_ms = self.now.mono_ms;
        (lane.fault, lane.stale_end) = (None, None);
        let ready = match lane.rx.open(open) {
            Opened::Ready { ready, missing } => {
                if known_epoch != Some(open.epoch) {
                    lane.restart(ready.resume);
                }
                if missing > 0 {
                    self.meter.data(data_id).missing.increment(missing);
                }
                Some(ready)
            }
            Opened::Stale => {
                lane.fault = Some(Fault::Stale);
                None
            }
        };
        lane.route(self.routes.get(&data_id).map_or(&[], Vec::as_slice));
        lane.hold = wanted_hold(lane, &self.streams);
        let ack = ready.and_then(|_| lane.rx.take_ack());
        self.meter.lane_moved(was_held, Some(lane.hold.is_some()));
        let first = match (lane.hold, ready) {
            (Some(reason), _) => {
                self.meter.lane_held(reason);
                Some(ServerFrame::Hold(Hold { data_id, reason }))
            }
            (None, ready) => ready.map(ServerFrame::LaneReady),
        };
        for frame in first.into_iter().chain(ack.map(ServerFrame::Ack)) {
            self.reply(session, frame);
        }
        self.lanes.mark_changed(index);
    }

    pub(super) fn on_gone(&mut self, session: SessionRef, agent: &AgentId) {
        for index in self.lanes.of_agent(agent) {
            let Some(lane) = self.lanes.get_mut(index) else { continue };
            if lane.session == Some(session) {
                self.meter.lane_moved(Some(lane.hold.is_some()), None);
                lane.session = None;
                lane.active_ms = self.now.mono_ms;
            }
        }
    }

    pub(super) fn on_stat(&mut self, session: SessionRef, agent: &AgentId, stat: LaneStat) {
        let Some(index) = self.lanes.find(agent, stat.data_id) else { return };
        let Some(lane) = self.lanes.get_mut(index) else { return };
        if lane.session == Some(session) {
            lane.stat = Some(stat);
            self.lanes.mark_changed(index);
        }
    }

    pub(super) fn on_batch(
        &mut self,
        session: SessionRef,
        agent: &AgentId,
        header: &BatchHeader,
        body: &[u8],
    ) {
        let meter = self.meter.data(header.data_id);
        meter.batches.increment(1);
        meter.records.increment(header.record_count.into());
        meter.bytes.increment(header.wire_bytes());
        let Some(index) = self.lanes.find(agent, header.data_id) else {
            return self.meter.refused("not_open");
        };
        if let Err(reason) = self.admit(index, session, header) {
            return self.meter.refused(reason);
        }
        let Some(lane) = self.lanes.get_mut(index) else { return };
        if header.end() > lane.rx.position_received() && header.verify_body(body).is_err() {
            lane.stale_end = Some(header.end());
            let retry_at_ms = self.now.mono_ms + ALTERED_RETRY_MS;
            lane.fault = Some(Fault::Altered { retry_at_ms });
            self.altered.push(index);
            tracing::warn!(%agent, data_id = header.data_id.0, "batch was altered on its way");
            self.settle_lane(index);
            return self.meter.refused("checksum");
        }
        match lane.rx.offer(header) {
            Offer::Accept { missing } => {
                if missing > 0 {
                    self.meter.data(header.data_id).missing.increment(missing);
                }
                self.open_and_store(index, agent, header, body);
            }
            Offer::Duplicate => {
                lane.duplicate_records += u64::from(header.record_count);
                let credit = lane.rx.take_credit();
                if let Some(credit) = credit {
                    self.reply(session, ServerFrame::Credit(credit));
                }
                let records = header.record_count.into();
                self.meter.data(header.data_id).duplicate.increment(records);
                self.lanes.mark_changed(index);
            }
            Offer::Stray => self.meter.refused("stale"),
            // Two LANE_READYs that crossed a flow can make the two ends count differently. Nothing
            // was taken, so beginning again from what was received is always right.
            Offer::Violation(Violation::Credit { .. } | Violation::Gap { .. }) => {
                lane.stale_end = lane.stale_end.max(Some(header.end()));
                self.meter.refused("out_of_step");
                self.hold_and_resume(index);
            }
            Offer::Violation(violation) => {
                lane.fault = Some(Fault::Violated);
                tracing::warn!(%agent, data_id = header.data_id.0, %violation, "lane is held");
                self.meter.refused("violation");
                self.settle_lane(index);
                let reconnect_after_ms = VIOLATED_RECONNECT_MS;
                self.reply(session, ServerFrame::GoAway { reconnect_after_ms });
            }
        }
    }

    /// Whether a batch belongs to the flow that its lane waits for.
    fn admit(
        &mut self,
        index: LaneIndex,
        session: SessionRef,
        header: &BatchHeader,
    ) -> Result<(), &'static str> {
        let now_ms = self.now.mono_ms;
        let Some(lane) = self.lanes.get_mut(index) else { return Err("not_open") };
        if lane.session != Some(session) {
            return Err("old_session");
        }
        if lane.rx.epoch() != Some(header.epoch) {
            return Err("old_epoch");
        }
        lane.active_ms = now_ms;
        if lane.hold.is_some() {
            lane.stale_end = lane.stale_end.max(Some(header.end()));
            return Err("held");
        }
        let Some(stale_end) = lane.stale_end else { return Ok(()) };
        // After a hold two flows follow each other: what the agent had under way, which only goes
        // upwards from `stale_end`, and what it sends after the LANE_READY, from there on.
        if header.first == lane.rx.position_received() || header.first < stale_end {
            lane.stale_end = None;
            return Ok(());
        }
        lane.stale_end = Some(header.end());
        if header.flags & FLAG_GAP_BEFORE != 0 {
            // Either flow, if the agent dropped its oldest records meanwhile. Ask it to begin
            // again: what comes then lies before the new `stale_end`, and is the second flow.
            self.hold_and_resume(index);
        }
        Err("stale")
    }

    fn hold_and_resume(&mut self, index: LaneIndex) {
        let Some(lane) = self.lanes.get_mut(index) else { return };
        let (Some(session), Some(ready)) = (lane.session, lane.rx.resume()) else { return };
        let hold = Hold { data_id: lane.data_id, reason: HoldReason::Paused };
        self.reply(session, ServerFrame::Hold(hold));
        self.reply(session, ServerFrame::LaneReady(ready));
    }

    /// Lanes whose altered batch may be tried again.
    pub(super) fn retry_altered(&mut self) {
        if self.altered.is_empty() {
            return;
        }
        let now_ms = self.now.mono_ms;
        let mut waiting = std::mem::take(&mut self.altered);
        waiting.retain(|index| {
            let Some(lane) = self.lanes.get_mut(*index) else { return false };
            match lane.fault {
                Some(Fault::Altered { retry_at_ms }) if retry_at_ms > now_ms => return true,
                Some(Fault::Altered { .. }) => lane.fault = None,
                _ => return false,
            }
            self.settle_lane(*index);
            false
        });
        self.altered = waiting;
    }

    fn open_and_store(
        &mut self,
        index: LaneIndex,
        agent: &AgentId,
        header: &BatchHeader,
        body: &[u8],
    ) {
        let mut raw = std::mem::take(&mut self.raw);
        let raw_bytes = header.raw_bytes as usize;
        let opened = self.decompressor.decompress(header.codec, body, raw_bytes, &mut raw);
        match opened {
            Ok(()) => {
                self.taps.observe(agent, header, &raw, self.now.mono_ms);
                self.store(index, agent, header, Some(&raw));
            }
            Err(error) => {
                self.undecodable(agent, header, &error);
                self.store(index, agent, header, None);
            }
        }
        raw.clear();
        raw.shrink_to(RAW_BYTES_KEPT);
        self.raw = raw;
    }

    /// The agent itself sealed what cannot be read, and would send the same for ever: the batch
    /// counts as stored, and says so loudly.
    fn undecodable(&self, agent: &AgentId, header: &BatchHeader, error: &dyn std::fmt::Display) {
        self.meter.refused("undecodable");
        tracing::error!(
            %agent, data_id = header.data_id.0, epoch = header.epoch.0, first = header.first.0,
            records = header.record_count, %error, "batch cannot be read; its records are lost"
        );
    }

    /// Puts a batch on the tapes of its lane's streams.
    fn store(
        &mut self,
        index: LaneIndex,
        agent: &AgentId,
        header: &BatchHeader,
        raw: Option<&[u8]>,
    ) {
        let mut marked = false;
        for at in 0.. {
            let Some(lane) = self.lanes.get_mut(index) else { return };
            let generation = lane.generation;
            let Some(step) = lane.streams.get(at).copied() else { break };
            if !step.active || step.written >= header.end() {
                continue;
            }
            let file = match self.file_for(step.stream, header.data_id) {
                Ok(file) => file,
                Err(error) => return self.fail_stream(step.stream, &error),
            };
            let Some(stream) = self.streams.get_mut(&step.stream) else { return };
            let (Some(config), Some(sink)) = (&stream.config, self.files.get_mut(file)) else {
                return;
            };
            let before = sink.tape.length();
            if let Some(raw) = raw {
                let mut out = sink.tape.writer(&mut self.pool);
                let written =
                    self.formatter.write(config.format, agent, header, step.written, raw, &mut out);
                match written {
                    Ok(records) => stream.dirty_records += records,
                    Err(error) => {
                        sink.tape.rollback(before, &mut self.pool);
                        self.undecodable(agent, header, &error);
                    }
                }
            }
            let Some(stream) = self.streams.get_mut(&step.stream) else { return };
            if let Some(sink) = self.files.get_mut(file) {
                stream.dirty_bytes += sink.tape.length() - before;
            }
            stream.dirty_since_ms.get_or_insert(self.now.mono_ms);
            let (epoch, position) = (header.epoch, header.end());
            stream.marks.push(Mark { lane: index, generation, epoch, position });
            marked = true;
            if let Some(lane) = self.lanes.get_mut(index) {
                lane.streams[at].written = position;
            }
            self.write_full_blocks(file);
        }
        if !marked {
            self.acknowledge_known(index);
        }
    }

    /// A batch came again that every stream has: no flush will speak of it. What a checkpoint
    /// under way says is left to its end.
    fn acknowledge_known(&mut self, index: LaneIndex) {
        let Some(lane) = self.lanes.get_mut(index) else { return };
        if self.flush.is_some() && lane.touched == self.flushes {
            return;
        }
        let (epoch, position) = (lane.epoch(), lane.stored_everywhere());
        lane.rx.stored(epoch, position);
        let Some(session) = lane.session else { return };
        let (ack, credit) = (lane.rx.take_ack(), lane.rx.take_credit());
        let ack = ack.map(ServerFrame::Ack);
        for frame in ack.into_iter().chain(credit.map(ServerFrame::Credit)) {
            self.reply(session, frame);
        }
    }
}
