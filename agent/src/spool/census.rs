//! How many lanes flow, are held or are offline: the gauge `skein_agent_lanes`, for people.
//!
//! A lane is offline while no server has it open: without a data channel all are, and with one
//! those that have records and wait for the server's LANE_READY. A lane without records flows
//! when there is a channel. Counted anew when one of that changes, which is rare.

use metrics::gauge;
use skein_observe::names;

use super::lane::Lane;
use super::{Spool, State};

impl Spool {
    /// The data channel came up, or ended; then no lane is open any more.
    pub fn set_online(&self, online: bool) {
        let mut state = self.state.borrow_mut();
        state.online = online;
        state.lanes.values_mut().for_each(|lane| lane.open = false);
        state.count_lanes();
    }

    /// Whether the server takes batches of the lane.
    pub fn set_open(&self, data_id: u32, open: bool) {
        let mut state = self.state.borrow_mut();
        if let Some(lane) = state.lanes.get_mut(&data_id) {
            lane.open = open;
            state.count_lanes();
        }
    }
}

impl State {
    pub(super) fn count_lanes(&self) {
        let held = |lane: &Lane| self.online && lane.held.is_some();
        let flowing =
            |lane: &Lane| self.online && !held(lane) && (lane.open || lane.index.depth().0 == 0);
        let held = self.lanes.values().filter(|lane| held(lane)).count();
        let flowing = self.lanes.values().filter(|lane| flowing(lane)).count();
        let offline = self.lanes.len() - held - flowing;
        for (state, lanes) in [("flowing", flowing), ("held", held), ("offline", offline)] {
            gauge!(names::AGENT_LANES, "state" => state).set(lanes as f64);
        }
    }
}
