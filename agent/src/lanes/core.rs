//! What to say on a data connection, without I/O: frames and time in, bytes out.
//!
//! Each lane has a [`LaneSender`]. A lane is opened when it has records; after the server's
//! LANE_READY its batches go in turns with those of other lanes, as far as its credit reaches. An
//! epoch of a lane is finished, to the last acknowledgement, before the next one is opened.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use metrics::counter;
use skein_observe::names;
use skein_wire::batch::{FLAG_GAP_BEFORE, HEADER_BYTES};
use skein_wire::data::{
    AgentFrame, Hold, HoldReason, LaneReady, LaneStat, ServerFrame, encode_batch_prefix,
};
use skein_wire::ids::{DataId, Epoch, Sequence};
use skein_wire::lane::LaneSender;

use crate::spool::{Peek, Position, ReadBatch, Spool};

/// Written to the connection at once: batches up to this many bytes and one more.
const OUT_BYTES: usize = 128 * 1024;
/// Silence after which the server is asked whether it is there.
const SILENCE_MS: u64 = 20_000;
/// How long it may take to answer.
const ANSWER_MS: u64 = 30_000;
/// A timer that comes this much too late found our own process stopped, not the server.
const SELF_DOUBT_MS: u64 = 5_000;
/// How often changed depths are reported.
const STAT_MS: u64 = 10_000;
/// After GO_AWAY: how long to wait for the acknowledgement of what was sent.
const DRAIN_MS: u64 = 5_000;
/// Restarts of a lane on one connection before it is left held.
const RESTARTS_MAX: u32 = 3;
/// The server's epoch may be of a clock ahead of ours: jump 34 years, to be behind it once only.
const EPOCH_JUMP: u64 = 1 << 40;

/// The session must end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Over {
    /// The server did not answer for [`ANSWER_MS`].
    Silent,
    /// The server asked for it.
    GoAway {
        /// When to come back.
        reconnect_after_ms: u32,
    },
}

/// One connection's decisions.
pub struct Core {
    spool: Rc<Spool>,
    lanes: BTreeMap<u32, Link>,
    /// Lanes that may have something to send, in turns.
    ring: VecDeque<u32>,
    control: Vec<u8>,
    received_at_ms: u64,
    asked_at_ms: Option<u64>,
    stat_at_ms: Option<u64>,
    going_away: Option<(u32, u64)>,
    expected_tick_ms: u64,
}

struct Link {
    sender: LaneSender,
    /// LANE_OPEN was said for the sender's epoch.
    opened: bool,
    in_ring: bool,
    /// Where the server expects the next batch to begin.
    expected: Sequence,
    reported: Option<LaneStat>,
    restarts: u32,
}

enum Turn {
    Sent,
    /// Later in this pass.
    Later,
    /// Nothing to do until the lane has news.
    Off,
}

impl Core {
    /// A connection begins.
    pub fn new(spool: Rc<Spool>, now_ms: u64) -> Core {
        let mut core = Core {
            lanes: BTreeMap::new(),
            ring: VecDeque::new(),
            control: Vec::new(),
            received_at_ms: now_ms,
            asked_at_ms: None,
            stat_at_ms: None,
            going_away: None,
            expected_tick_ms: now_ms,
            spool,
        };
        core.spool.set_online(true);
        for data_id in core.spool.lanes_with_records() {
            core.look_at(data_id, now_ms);
        }
        core
    }

    /// A frame came.
    pub fn on_frame(&mut self, frame: ServerFrame, now_ms: u64) {
        self.received_at_ms = now_ms;
        self.asked_at_ms = None;
        match frame {
            ServerFrame::LaneReady(ready) => self.on_ready(&ready, now_ms),
            ServerFrame::Ack(ack) => {
                let data_id = ack.data_id.0;
                let Some(link) = self.lanes.get_mut(&data_id) else { return };
                counter!(names::AGENT_ACKS).increment(1);
                if let Some(next) = link.sender.on_ack(&ack) {
                    self.spool.ack(data_id, Position::new(ack.epoch.0, next.0));
                    // It may have been the last of its epoch.
                    self.look_at(data_id, now_ms);
                }
            }
            ServerFrame::Credit(credit) => {
                let Some(link) = self.lanes.get_mut(&credit.data_id.0) else { return };
                link.sender.on_credit(&credit);
                self.enter_ring(credit.data_id.0);
            }
            ServerFrame::Hold(hold) => self.on_hold(&hold, now_ms),
            ServerFrame::GoAway { reconnect_after_ms } => {
                self.going_away.get_or_insert((reconnect_after_ms, now_ms + DRAIN_MS));
            }
            ServerFrame::KeepAlive => {}
        }
    }

    fn on_ready(&mut self, ready: &LaneReady, now_ms: u64) {
        let data_id = ready.data_id.0;
        let Some(link) = self.lanes.get_mut(&data_id) else { return };
        link.sender.on_ready(ready);
        if ready.epoch != link.sender.epoch() || !link.sender.is_ready() {
            return;
        }
        link.expected = ready.resume;
        let next = link.sender.next_to_send();
        self.spool.set_held(data_id, None);
        self.spool.seek(data_id, Position::new(ready.epoch.0, next.0));
        self.spool.set_open(data_id, true);
        self.enter_ring(data_id);
        self.stat_soon(now_ms);
    }

    fn on_hold(&mut self, hold: &Hold, now_ms: u64) {
        let data_id = hold.data_id.0;
        let Some(link) = self.lanes.get_mut(&data_id) else { return };
        link.sender.on_hold(hold);
        self.spool.unseek(data_id);
        self.spool.set_held(data_id, Some(hold.reason));
        self.spool.set_open(data_id, false);
        if hold.reason == HoldReason::StaleEpoch && link.restarts < RESTARTS_MAX {
            let epoch = link.sender.epoch().0;
            link.restarts += 1;
            tracing::warn!(data_id, epoch, "the server knows a later life of this lane");
            self.spool.restart_lane(data_id, epoch, epoch.saturating_add(EPOCH_JUMP));
            self.look_at(data_id, now_ms);
        }
        self.stat_soon(now_ms);
    }

    /// Takes the lanes that have news from the spool.
    pub fn take_news(&mut self, now_ms: u64) {
        while let Some(data_id) = self.spool.take_touched() {
            self.look_at(data_id, now_ms);
        }
    }

    /// Opens a lane, or its next epoch, or lets it take its turns.
    fn look_at(&mut self, data_id: u32, now_ms: u64) {
        self.stat_soon(now_ms);
        let Some(epoch) = self.spool.epoch_to_send(data_id) else { return };
        let acked = self.spool.acked(data_id).filter(|acked| acked.epoch == epoch);
        let acked = Sequence(acked.map_or(0, |acked| acked.next));
        let link = self.lanes.entry(data_id).or_insert_with(|| Link {
            sender: LaneSender::new(DataId(data_id), Epoch(epoch), acked),
            opened: false,
            in_ring: false,
            expected: acked,
            reported: None,
            restarts: 0,
        });
        if link.sender.epoch().0 != epoch {
            link.sender.restart(Epoch(epoch), acked);
            link.opened = false;
        }
        link.sender.dropped_before(acked);
        if link.opened {
            self.enter_ring(data_id);
        } else {
            self.open(data_id, epoch);
        }
    }

    fn open(&mut self, data_id: u32, epoch: u64) {
        let Some((first, next)) = self.spool.range_of(data_id, epoch) else { return };
        let Some(link) = self.lanes.get_mut(&data_id) else { return };
        let open = link.sender.connected(Sequence(first), Sequence(next));
        link.opened = true;
        AgentFrame::LaneOpen(open).encode(&mut self.control);
        self.spool.set_open(data_id, false);
    }

    fn enter_ring(&mut self, data_id: u32) {
        if let Some(link) = self.lanes.get_mut(&data_id)
            && link.sender.is_ready()
            && !std::mem::replace(&mut link.in_ring, true)
        {
            self.ring.push_back(data_id);
        }
    }

    /// Appends what should be written now; nothing when there is nothing to say.
    pub fn fill(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.control);
        let mut idle = 0;
        while self.going_away.is_none() && out.len() < OUT_BYTES && idle < self.ring.len() {
            let Some(data_id) = self.ring.pop_front() else { return };
            match self.send_one(data_id, out) {
                Turn::Sent => {
                    self.ring.push_back(data_id);
                    idle = 0;
                }
                Turn::Later => {
                    self.ring.push_back(data_id);
                    idle += 1;
                }
                Turn::Off => {
                    if let Some(link) = self.lanes.get_mut(&data_id) {
                        link.in_ring = false;
                    }
                    // It may have given back memory that others wait for.
                    idle = 0;
                }
            }
        }
    }

    fn send_one(&mut self, data_id: u32, out: &mut Vec<u8>) -> Turn {
        let Some(link) = self.lanes.get_mut(&data_id) else { return Turn::Off };
        if !link.sender.is_ready() {
            return Turn::Off;
        }
        let ReadBatch { mut header, frame } = match self.spool.peek(data_id) {
            Peek::Batch(batch) => batch,
            Peek::Busy => return Turn::Later,
            Peek::Loading | Peek::End => return Turn::Off,
        };
        if header.epoch != link.sender.epoch() {
            // Of the next epoch: what was sent must be acknowledged first.
            return Turn::Off;
        }
        if header.first < link.sender.next_to_send() {
            // Sent before, or its beginning was dropped with what came before it.
            self.spool.discard(data_id);
            return Turn::Sent;
        }
        if !link.sender.may_send(header.wire_bytes()) {
            if self.spool.read_ahead_is_scarce() {
                let next = link.sender.next_to_send().0;
                self.spool.seek(data_id, Position::new(header.epoch.0, next));
            }
            return Turn::Off;
        }
        if header.first > link.expected {
            header.flags |= FLAG_GAP_BEFORE;
        }
        encode_batch_prefix(&header, out);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&frame[HEADER_BYTES..]);
        link.sender.sent(&header);
        link.expected = header.end();
        self.spool.pop(data_id);
        Turn::Sent
    }

    /// When [`Core::on_time`] should be called, at the latest.
    pub fn tick_at_ms(&mut self, now_ms: u64) -> u64 {
        let silence = match self.asked_at_ms {
            Some(asked) => asked + ANSWER_MS,
            None => self.received_at_ms + SILENCE_MS,
        };
        let drain = self.going_away.map(|(_, until)| until);
        let at = [Some(silence), self.stat_at_ms, drain].into_iter().flatten().min();
        // What is set while the timer runs waits for at most this long.
        self.expected_tick_ms = at.unwrap_or(silence).min(now_ms + STAT_MS).max(now_ms);
        self.expected_tick_ms
    }

    /// Time passed.
    pub fn on_time(&mut self, now_ms: u64) -> Result<(), Over> {
        if now_ms > self.expected_tick_ms + SELF_DOUBT_MS {
            // We were stopped: an answer may lie unread in the socket.
            self.asked_at_ms = self.asked_at_ms.map(|_| now_ms);
            self.received_at_ms = self.received_at_ms.max(now_ms.saturating_sub(SILENCE_MS));
        }
        match self.asked_at_ms {
            Some(asked) if now_ms >= asked + ANSWER_MS => return Err(Over::Silent),
            None if now_ms >= self.received_at_ms + SILENCE_MS => {
                self.asked_at_ms = Some(now_ms);
                AgentFrame::KeepAlive.encode(&mut self.control);
            }
            _ => {}
        }
        if self.stat_at_ms.is_some_and(|at| now_ms >= at) {
            self.stat_at_ms = None;
            self.report();
        }
        self.drained(now_ms)
    }

    /// Whether nothing keeps this connection any more after GO_AWAY.
    pub fn drained(&self, now_ms: u64) -> Result<(), Over> {
        let Some((reconnect_after_ms, until_ms)) = self.going_away else { return Ok(()) };
        let open = self
            .lanes
            .values()
            .any(|link| link.sender.is_ready() && link.sender.acked() < link.sender.next_to_send());
        if open && now_ms < until_ms { Ok(()) } else { Err(Over::GoAway { reconnect_after_ms }) }
    }

    fn stat_soon(&mut self, now_ms: u64) {
        self.stat_at_ms.get_or_insert(now_ms + STAT_MS);
    }

    /// LANE_STAT of the lanes whose depth changed.
    fn report(&mut self) {
        for (data_id, link) in &mut self.lanes {
            let Some(depth) = self.spool.depth(*data_id) else { continue };
            let stat = LaneStat {
                data_id: DataId(*data_id),
                epoch: depth.epoch,
                spool_records: depth.records,
                spool_bytes: depth.bytes,
                dropped_records: depth.dropped,
            };
            if link.reported.replace(stat) != Some(stat) {
                AgentFrame::LaneStat(stat).encode(&mut self.control);
            }
        }
    }
}

impl Drop for Core {
    /// The connection is gone: nothing is wanted from the spool, and a hold for the sake of a sink
    /// must not shorten what the lane may keep while nobody can ask the server.
    fn drop(&mut self) {
        for (data_id, link) in &self.lanes {
            self.spool.unseek(*data_id);
            if link.sender.held().is_some_and(|reason| reason != HoldReason::UnknownDataId) {
                self.spool.set_held(*data_id, None);
            }
        }
        self.spool.set_online(false);
    }
}
