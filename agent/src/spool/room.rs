//! Who gives way when the spool is full.
//!
//! A lane over its quota gives up its own oldest segment. When the cap of all lanes is reached,
//! the first to give way is a held lane with more than a held lane's share, then the lane that
//! wants room if it has at least its fair part, then the largest lane of inputs that cannot wait,
//! then the largest of all. Inputs that can wait stop at seven eighths, so that the last eighth
//! absorbs what cannot wait.
//!
//! The shares of all held lanes together are at most half of the cap, however many are held, and
//! what they have over their shares does not count as taken when a lane that flows wants room. So
//! lanes that are held for ever never stop those that flow.

use skein_wire::data::HoldReason;

use super::disk::Request;
use super::index::{Dropped, Position};
use super::lane::Lane;
use super::{LANE_IDLE_MS, LANES_MAX, Spool, State, new_epoch};

/// Nearly every record is smaller.
const USUAL_RECORD_BYTES: u64 = 4 * 1024;

impl Spool {
    /// Whether an input that can wait may push a record of usual size to the lane now. Each push
    /// asks again for its own size: what it takes displaces nothing.
    pub fn has_room(&self, data_id: u32) -> bool {
        self.state.borrow().has_room(data_id, USUAL_RECORD_BYTES)
    }

    /// Returns when [`Spool::has_room`] may have become true.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    /// The server holds the lane, or no longer does.
    pub fn set_held(&self, data_id: u32, held: Option<HoldReason>) {
        let mut state = self.state.borrow_mut();
        if let Some(lane) = state.lanes.get_mut(&data_id) {
            if lane.held.is_none() && held.is_some() {
                lane.held_keep_bytes = lane.bytes() + lane.filling.raw_bytes() as u64;
            }
            lane.held = held;
        }
        drop(state);
        self.room.notify_waiters();
    }

    /// The server knows another life of the lane: what is left of `epoch` can never be sent and is
    /// dropped; records from now on start a new epoch, later than `after`.
    pub fn restart_lane(&self, data_id: u32, epoch: u64, after: u64) {
        self.state.borrow_mut().restart_lane(data_id, epoch, after);
        self.room.notify_waiters();
    }
}

impl State {
    /// Raw bytes of batches that are being filled count in full: they may not compress.
    pub(super) fn has_room(&self, data_id: u32, bytes: u64) -> bool {
        let most = |bound: u64| bound - bound / 8;
        let lane_room = match self.lanes.get(&data_id) {
            // A record larger than the lane's bound goes alone.
            Some(lane) if lane.is_idle() => true,
            Some(lane) => {
                let filling = lane.filling.raw_bytes() as u64;
                lane.bytes() + filling + bytes < most(self.limit_of(lane))
            }
            None => self.lanes.len() < LANES_MAX,
        };
        let total = self.total_bytes + self.filling_bytes as u64 + bytes;
        let bound = most(self.bounds.total_bytes);
        let held = self.lanes.get(&data_id).is_some_and(|lane| lane.held.is_some());
        let room = total < bound || (!held && total < bound + self.held_excess());
        lane_room && room && !self.refused && !self.stalled()
    }

    /// What one of the held lanes may have.
    fn held_share(&self) -> u64 {
        let held = self.lanes.values().filter(|lane| lane.held.is_some()).count() as u64;
        self.bounds.held_bytes.min(self.bounds.total_bytes / 2 / held.max(1))
    }

    /// What held lanes have over their shares: they give it to lanes that flow.
    fn held_excess(&self) -> u64 {
        let share = self.held_share();
        let held = self.lanes.values().filter(|lane| lane.held.is_some());
        held.map(|lane| lane.index.bytes().saturating_sub(share)).sum()
    }

    /// To be called after what changes the bytes of a lane.
    pub(super) fn count_total(&mut self) {
        let on_disk: u64 = self.lanes.values().map(|lane| lane.index.bytes()).sum();
        self.total_bytes = self.queued_bytes + on_disk;
    }

    fn limit_of(&self, lane: &Lane) -> u64 {
        match lane.held {
            None => self.bounds.lane_bytes,
            Some(_) => lane.held_keep_bytes.clamp(self.held_share(), self.bounds.lane_bytes),
        }
    }

    /// Gives up old segments until `bytes` more fit; answers with the files to remove.
    pub(super) fn make_room(&mut self, data_id: u32, bytes: u64) -> Vec<Request> {
        let mut removals = Vec::new();
        while let Some(lane) = self.lanes.get(&data_id) {
            let (victim, reason) = if lane.bytes() + bytes > self.limit_of(lane) {
                (data_id, if lane.held.is_some() { "held" } else { "lane_full" })
            } else if self.total_bytes + bytes > self.bounds.total_bytes {
                (self.victim(data_id), "spool_full")
            } else {
                break;
            };
            let Some(lane) = self.lanes.get_mut(&victim) else { break };
            let Some(Dropped { segment, records, .. }) = lane.index.drop_oldest() else { break };
            removals.push(Request::Remove { data_id: victim, segment });
            self.count_dropped(victim, records, reason);
            self.keep_history(victim, data_id);
            self.after_removal(victim);
        }
        removals
    }

    fn victim(&self, wanting: u32) -> u32 {
        let share = self.held_share();
        let held_over = |lane: &&Lane| lane.held.is_some() && lane.index.bytes() > share;
        let size = |lane: &&Lane| lane.index.bytes();
        let fair = self.bounds.total_bytes / (self.lanes.len().max(1) as u64);
        let wants = self.lanes.get(&wanting);
        let wants = wants.filter(|lane| lane.lossy && lane.index.bytes() >= fair);
        let largest = |only_lossy: bool| {
            self.lanes.values().filter(|lane| lane.lossy || !only_lossy).max_by_key(size)
        };
        self.lanes
            .values()
            .filter(held_over)
            .max_by_key(size)
            .or(wants)
            .or_else(|| largest(true).filter(|lane| lane.index.bytes() > 0))
            .or_else(|| largest(false))
            .map_or(wanting, |lane| lane.data_id)
    }

    /// A lane that lost its newest segment gets a fresh one that carries its epoch, sequence and
    /// marks across a restart; the lane that is being appended to gets it by that.
    fn keep_history(&mut self, victim: u32, appending: u32) {
        let Some(lane) = self.lanes.get(&victim) else { return };
        let headless = !lane.active.is_some_and(|(id, _)| lane.index.contains(id));
        if victim != appending && headless {
            let next = lane.filling_first();
            self.place(victim, next, Vec::new(), None, Default::default());
        }
    }

    fn restart_lane(&mut self, data_id: u32, epoch: u64, after: u64) {
        let Some(lane) = self.lanes.get_mut(&data_id) else { return };
        let mut removals = Vec::new();
        let mut records = 0;
        while lane.index.oldest().is_some_and(|id| id.epoch <= epoch) {
            let Some(dropped) = lane.index.drop_oldest() else { break };
            records += dropped.records;
            removals.push(Request::Remove { data_id, segment: dropped.segment });
        }
        if lane.epoch <= epoch {
            lane.epoch = new_epoch(after.max(epoch));
            lane.next = lane.filling.builder.count() as u64;
            lane.skipped = 0;
        }
        let acked = Position::new(lane.index.oldest().map_or(lane.epoch, |id| id.epoch), 0);
        removals.extend(
            lane.index.ack(acked).into_iter().map(|segment| Request::Remove { data_id, segment }),
        );
        lane.ack_unnoted = true;
        let next = lane.filling_first();
        self.count_dropped(data_id, records, "stale_epoch");
        self.after_removal(data_id);
        self.place(data_id, next, Vec::new(), None, Default::default());
        removals.into_iter().for_each(|request| self.ask(request));
        self.touch(data_id);
    }

    /// Forgets a lane that nothing needs, so that a new one fits the bound.
    pub(super) fn evict_idle(&mut self) -> bool {
        let now_ms = crate::clock::now_ms();
        let idle = self.lanes.values().filter(|lane| {
            lane.is_idle()
                && lane.marks.is_empty()
                && now_ms.saturating_sub(lane.used_ms) > LANE_IDLE_MS
        });
        let Some(data_id) = idle.min_by_key(|lane| lane.used_ms).map(|lane| lane.data_id) else {
            return false;
        };
        self.lanes.remove(&data_id);
        self.ask(Request::RemoveLane { data_id });
        true
    }

    /// The data channel and the metrics learn that the lane's oldest records are gone.
    fn after_removal(&mut self, data_id: u32) {
        if let Some(lane) = self.lanes.get_mut(&data_id) {
            lane.show_depth();
        }
        self.count_total();
        self.touch(data_id);
    }
}
