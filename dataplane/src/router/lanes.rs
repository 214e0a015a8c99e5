//! The lanes of one worker's agents.
//!
//! A lane joins three things: what its agent sent (`rx`), how far each stream of its routes has
//! got (`streams`), and what the agent was told (`hold`). A lane lives on without a session, since
//! its positions are what keeps records from being repeated; only when the table is full the lanes
//! that were idle longest are forgotten. That repeats nothing either, as long as the agent got its
//! last ack: it then holds nothing that the lane has stored.

use std::collections::HashMap;

use skein_wire::data::{HoldReason, LaneStat};
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};
use skein_wire::lane::LaneReceiver;
use skein_wire::limits::LANES_PER_AGENT_MAX;

use crate::sinks::checkpoint::LaneEntry;

use super::SessionRef;

/// How far one stream has got with a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStream {
    /// Which.
    pub stream: u32,
    /// Whether a route leads there now. A stream whose route went away keeps its position for the
    /// case that the route comes back before the others have caught up.
    pub active: bool,
    /// Everything before is on the stream's tape.
    pub written: Sequence,
    /// Everything before is in the checkpoint (or in the frame that is being stored).
    pub stored: Sequence,
}

/// Why a lane waits although its sinks are well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The agent must start a new epoch.
    Stale,
    /// The agent broke the lane's rules; it must open the lane again.
    Violated,
    /// A body was altered on its way; try again at this time.
    Altered {
        /// Monotonic.
        retry_at_ms: u64,
    },
}

/// One lane.
#[derive(Debug)]
pub struct Lane {
    /// With the data id it names the lane.
    pub agent: AgentId,
    /// See `agent`.
    pub data_id: DataId,
    /// Who speaks for it now.
    pub session: Option<SessionRef>,
    /// What was received and stored.
    pub rx: LaneReceiver,
    /// Routes' streams.
    pub streams: Vec<LaneStream>,
    /// Everything before is stored in all streams.
    pub base: Sequence,
    /// What the agent was told last; `None`: it may send.
    pub hold: Option<HoldReason>,
    /// A reason of the lane's own to be held.
    pub fault: Option<Fault>,
    /// Set by a hold: batches of the flow that it interrupted, up to this position, may still
    /// arrive and must not be taken for the flow that begins after the LANE_READY.
    pub stale_end: Option<Sequence>,
    /// The agent's last word on its spool.
    pub stat: Option<LaneStat>,
    /// Repeats that were recognised.
    pub duplicate_records: u64,
    /// Number of the last flush that moved it.
    pub touched: u64,
    /// Last sign of life.
    pub active_ms: u64,
    /// Tells lanes apart that used the same place one after another.
    pub generation: u32,
    changed: bool,
}

impl Lane {
    /// The lane's epoch; 0 before it is known.
    pub fn epoch(&self) -> Epoch {
        self.rx.epoch().unwrap_or(Epoch(0))
    }

    /// What all active streams have stored.
    pub fn stored_everywhere(&self) -> Sequence {
        let active = self.streams.iter().filter(|stream| stream.active);
        active.map(|stream| stream.stored).min().unwrap_or(self.base).max(self.base)
    }

    /// A new life: nothing of it is known to any stream.
    pub fn restart(&mut self, position: Sequence) {
        self.base = position;
        self.streams.retain(|stream| stream.active);
        for stream in &mut self.streams {
            (stream.written, stream.stored) = (position, position);
        }
    }

    /// The streams of its routes are now these. Called when nothing of it is unflushed.
    pub fn route(&mut self, routes: &[u32]) {
        for stream in &mut self.streams {
            stream.active = routes.contains(&stream.stream);
        }
        for id in routes {
            if !self.streams.iter().any(|stream| stream.stream == *id) {
                let (stream, position) = (*id, self.base);
                self.streams.push(LaneStream {
                    stream,
                    active: true,
                    written: position,
                    stored: position,
                });
            }
        }
        self.forget_caught_up();
    }

    /// Moves the base and drops positions of former streams that it has passed.
    pub fn forget_caught_up(&mut self) {
        self.base = self.stored_everywhere();
        let base = self.base;
        self.streams.retain(|stream| stream.active || stream.stored > base);
    }

    /// For a report.
    pub fn state(&self) -> fleet::LaneState {
        let stat = self.stat.filter(|stat| stat.epoch == self.epoch());
        fleet::LaneState {
            agent_id: self.agent.to_string(),
            data_id: self.data_id.0,
            epoch: self.epoch().0,
            next_sequence: self.base.0,
            held: self.hold.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            spool_records: stat.map_or(0, |stat| stat.spool_records),
            spool_bytes: stat.map_or(0, |stat| stat.spool_bytes),
            dropped_records: stat.map_or(0, |stat| stat.dropped_records),
            duplicate_records: self.duplicate_records,
        }
    }

    fn may_be_forgotten(&self) -> bool {
        self.session.is_none()
            && self.streams.iter().all(|stream| stream.written == stream.stored)
            && self.base >= self.rx.position_received()
    }
}

/// A lane's place in the table.
pub type LaneIndex = u32;

/// All lanes of a worker.
#[derive(Debug)]
pub struct Lanes {
    places: Vec<Option<Lane>>,
    free: Vec<LaneIndex>,
    /// By agent, sorted by data id.
    by_agent: HashMap<AgentId, Vec<(DataId, LaneIndex)>>,
    changed: Vec<LaneIndex>,
    count: usize,
    count_max: usize,
    window_bytes: u64,
    generation: u32,
}

/// The table or the agent has too many lanes.
#[derive(Debug)]
pub struct Full;

impl Lanes {
    /// An empty table.
    pub fn new(count_max: usize, window_bytes: u64) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            by_agent: HashMap::new(),
            changed: Vec::new(),
            count: 0,
            count_max,
            window_bytes,
            generation: 0,
        }
    }

    /// Takes a lane from a checkpoint.
    pub fn restore(&mut self, entry: LaneEntry) {
        let stored = Some((entry.epoch, entry.position));
        let Ok(index) = self.add(&entry.agent, entry.data_id, stored) else { return };
        if let Some(lane) = self.get_mut(index) {
            lane.streams = entry
                .streams
                .into_iter()
                .map(|(stream, stored)| LaneStream {
                    stream,
                    active: false,
                    written: stored,
                    stored,
                })
                .collect();
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.count
    }

    /// By place.
    pub fn get_mut(&mut self, index: LaneIndex) -> Option<&mut Lane> {
        self.places.get_mut(index as usize)?.as_mut()
    }

    /// Where a lane is.
    pub fn find(&self, agent: &AgentId, data_id: DataId) -> Option<LaneIndex> {
        let lanes = self.by_agent.get(agent)?;
        let at = lanes.binary_search_by_key(&data_id, |(data_id, _)| *data_id).ok()?;
        Some(lanes[at].1)
    }

    /// All lanes of an agent.
    pub fn of_agent(&self, agent: &AgentId) -> Vec<LaneIndex> {
        let lanes = self.by_agent.get(agent);
        lanes.map_or_else(Vec::new, |lanes| lanes.iter().map(|(_, index)| *index).collect())
    }

    /// Finds or makes a lane.
    pub fn ensure(&mut self, agent: &AgentId, data_id: DataId) -> Result<LaneIndex, Full> {
        match self.find(agent, data_id) {
            Some(index) => Ok(index),
            None => self.add(agent, data_id, None),
        }
    }

    fn add(
        &mut self,
        agent: &AgentId,
        data_id: DataId,
        stored: Option<(Epoch, Sequence)>,
    ) -> Result<LaneIndex, Full> {
        if self.count >= self.count_max {
            self.forget_idle();
        }
        let known = self.by_agent.get(agent).map_or(0, Vec::len);
        if self.count >= self.count_max || known >= LANES_PER_AGENT_MAX {
            return Err(Full);
        }
        self.generation = self.generation.wrapping_add(1);
        let lane = Lane {
            agent: agent.clone(),
            data_id,
            session: None,
            rx: LaneReceiver::new(data_id, self.window_bytes, stored),
            streams: Vec::new(),
            base: stored.map_or(Sequence::ZERO, |(_, position)| position),
            hold: None,
            fault: None,
            stale_end: None,
            stat: None,
            duplicate_records: 0,
            touched: 0,
            active_ms: 0,
            generation: self.generation,
            changed: false,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as LaneIndex
        });
        self.places[index as usize] = Some(lane);
        let lanes = self.by_agent.entry(agent.clone()).or_default();
        let at = lanes.partition_point(|(known, _)| *known < data_id);
        lanes.insert(at, (data_id, index));
        self.count += 1;
        Ok(index)
    }

    /// Forgets the idle hundredth, or what there is of it, so that a full table is searched once
    /// per so many new lanes.
    fn forget_idle(&mut self) {
        let mut idle: Vec<(u64, LaneIndex)> = self
            .iter()
            .filter(|(_, lane)| lane.may_be_forgotten())
            .map(|(index, lane)| (lane.active_ms, index))
            .collect();
        idle.sort_unstable();
        for (_, index) in idle.into_iter().take(self.count_max.div_ceil(100)) {
            let Some(lane) = self.places[index as usize].take() else { continue };
            if let Some(lanes) = self.by_agent.get_mut(&lane.agent) {
                lanes.retain(|(_, known)| *known != index);
                if lanes.is_empty() {
                    self.by_agent.remove(&lane.agent);
                }
            }
            self.free.push(index);
            self.count -= 1;
        }
    }

    /// All lanes.
    pub fn iter(&self) -> impl Iterator<Item = (LaneIndex, &Lane)> {
        (0..).zip(&self.places).filter_map(|(index, lane)| Some((index, lane.as_ref()?)))
    }

    /// The places of all lanes.
    pub fn indices(&self) -> Vec<LaneIndex> {
        self.iter().map(|(index, _)| index).collect()
    }

    /// A lane's report is out of date.
    pub fn mark_changed(&mut self, index: LaneIndex) {
        if let Some(lane) = self.places.get_mut(index as usize).and_then(Option::as_mut)
            && !lane.changed
        {
            lane.changed = true;
            self.changed.push(index);
        }
    }

    /// Whether a report is due.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The states that are out of date, at most `count_max` of them.
    pub fn take_changed(&mut self, count_max: usize) -> Vec<fleet::LaneState> {
        let rest = self.changed.len().saturating_sub(count_max);
        let taken = self.changed.split_off(rest);
        let mut states = Vec::with_capacity(taken.len());
        for index in taken {
            if let Some(lane) = self.get_mut(index) {
                lane.changed = false;
                states.push(lane.state());
            }
        }
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(index: usize) -> AgentId {
        AgentId::parse(&format!("a-{index}")).unwrap()
    }

    #[test]
    fn a_full_table_forgets_idle_lanes_and_never_busy_ones() {
        let mut lanes = Lanes::new(100, 1000);
        for index in 0..100 {
            let place = lanes.ensure(&agent(index), DataId(1)).unwrap();
            let lane = lanes.get_mut(place).unwrap();
            lane.active_ms = 1000 - index as u64;
            lane.session = (index != 40).then_some(SessionRef { shard: 0, conn: 1 });
        }
        let place = lanes.ensure(&agent(100), DataId(1)).unwrap();
        lanes.get_mut(place).unwrap().session = Some(SessionRef { shard: 0, conn: 1 });
        assert_eq!(lanes.find(&agent(40), DataId(1)), None);
        assert!(lanes.ensure(&agent(101), DataId(1)).is_err());
        assert_eq!(lanes.len(), 100);
    }

    #[test]
    fn an_agent_has_a_bound_of_its_own() {
        let mut lanes = Lanes::new(10_000, 1000);
        for data_id in 0..LANES_PER_AGENT_MAX as u32 {
            lanes.ensure(&agent(1), DataId(data_id)).unwrap();
        }
        assert!(lanes.ensure(&agent(1), DataId(9_999)).is_err());
        assert!(lanes.ensure(&agent(2), DataId(9_999)).is_ok());
        assert_eq!(lanes.of_agent(&agent(1)).len(), LANES_PER_AGENT_MAX);
    }

    #[test]
    fn routes_come_and_go_without_moving_what_is_stored() {
        let mut lanes = Lanes::new(10, 1000);
        let index = lanes.ensure(&agent(1), DataId(1)).unwrap();
        let lane = lanes.get_mut(index).unwrap();
        lane.base = Sequence(10);
        lane.route(&[1, 2]);
        assert!(lane.streams.iter().all(|stream| stream.stored == Sequence(10)));
        lane.streams[0].stored = Sequence(30);
        lane.streams[0].written = Sequence(30);
        assert_eq!(lane.stored_everywhere(), Sequence(10));
        // The route to stream 1 goes away while stream 2 is behind, and comes back.
        lane.route(&[2]);
        lane.route(&[1, 2]);
        assert_eq!(lane.streams[0].written, Sequence(30));
        lane.route(&[2]);
        lane.streams.iter_mut().for_each(|stream| stream.stored = stream.stored.max(Sequence(30)));
        lane.forget_caught_up();
        assert_eq!((lane.base, lane.streams.len()), (Sequence(30), 1));
    }
}
