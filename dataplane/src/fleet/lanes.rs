//! The newest state of every lane, so that a control process that starts again learns all of them
//! and not only those that change afterwards.

use std::collections::HashMap;

use skein_wire::fleet::v1::from_data::Kind;
use skein_wire::fleet::v1::{LaneReport, LaneState};
use skein_wire::prost::Message;

use super::sender::FleetSender;

/// Lanes that are remembered: about 250 bytes each, 16 MiB. Beyond it a lane is still reported
/// when it changes, only not repeated to a new link.
pub const LANES_MAX: usize = 65_536;

/// Lanes in one report: far below a frame.
const LANES_PER_REPORT: usize = 8_192;

/// Lanes by agent and data id.
#[derive(Default)]
pub struct LaneBoard {
    lanes: HashMap<(String, u32), LaneState>,
    /// The link for which everything was sent.
    told_link: u64,
}

impl LaneBoard {
    /// Lanes changed: remember them, and tell control if it is there.
    pub fn changed(&mut self, lanes: Vec<LaneState>, fleet: &FleetSender) {
        let link = fleet.link();
        if link.is_some_and(|link| link == self.told_link) {
            report(lanes.iter(), fleet);
        }
        for lane in lanes {
            let key = (lane.agent_id.clone(), lane.data_id);
            if self.lanes.len() < LANES_MAX || self.lanes.contains_key(&key) {
                self.lanes.insert(key, lane);
            }
        }
        self.repeat(fleet);
    }

    /// Tells a new link everything.
    pub fn repeat(&mut self, fleet: &FleetSender) {
        if let Some(link) = fleet.link().filter(|link| *link != self.told_link) {
            self.told_link = link;
            report(self.lanes.values(), fleet);
        }
    }
}

fn report<'a>(lanes: impl Iterator<Item = &'a LaneState>, fleet: &FleetSender) {
    let lanes: Vec<_> = lanes.collect();
    for lanes in lanes.chunks(LANES_PER_REPORT) {
        let lanes: Vec<LaneState> = lanes.iter().map(|lane| (*lane).clone()).collect();
        let bytes = lanes.iter().map(LaneState::encoded_len).sum();
        fleet.push(Kind::Lanes(LaneReport { lanes }), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(agent: &str, next_sequence: u64) -> LaneState {
        LaneState { agent_id: agent.to_owned(), data_id: 1, next_sequence, ..Default::default() }
    }

    fn told(queue: &super::super::sender::FleetQueue) -> Vec<(String, u64)> {
        let mut told = Vec::new();
        while let Some(kind) = queue.try_next() {
            let Kind::Lanes(report) = kind else { panic!("{kind:?}") };
            told.extend(report.lanes.into_iter().map(|lane| (lane.agent_id, lane.next_sequence)));
        }
        told.sort();
        told
    }

    #[test]
    fn a_new_link_learns_all_and_then_what_changes() {
        let (fleet, queue) = FleetSender::new();
        let mut board = LaneBoard::default();
        board.changed(vec![lane("a", 1), lane("b", 1)], &fleet);
        board.changed(vec![lane("a", 2)], &fleet);
        assert!(told(&queue).is_empty(), "control is away");
        queue.set_up(true);
        board.repeat(&fleet);
        assert_eq!(told(&queue), [("a".to_owned(), 2), ("b".to_owned(), 1)]);
        board.changed(vec![lane("b", 5)], &fleet);
        assert_eq!(told(&queue), [("b".to_owned(), 5)]);
        queue.set_up(false);
        queue.set_up(true);
        board.changed(vec![lane("a", 3)], &fleet);
        assert_eq!(told(&queue), [("a".to_owned(), 3), ("b".to_owned(), 5)]);
    }
}
