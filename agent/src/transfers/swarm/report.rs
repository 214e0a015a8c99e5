//! What control hears of a swarm: pieces gained, traffic, late parents. At most four times a second,
//! at once when something is wrong; what cannot be said now is said later.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use skein_filemesh::core::hints::Progress;
use skein_filemesh::core::link::Have;
use skein_filemesh::core::plan::{Member, STRIPES_MAX};
use skein_filemesh::core::swarm::Report;
use skein_wire::ids::TransferId;
use skein_wire::limits::MESH_PEERS_MAX;
use skein_wire::signal::v1::ReceivedFrom;
use skein_wire::signal::v1::agent_message::Kind;

use crate::link::{Outbox, Priority};

/// The server's number: it has no agent id and is the first source.
const SERVER: Member = 0;
/// Between two reports.
const REPORT_MS: u64 = 250;
/// Ranges of pieces in one report: some 10 KiB.
const RANGES_MAX: usize = 1_024;

/// Reports that are due, and what they must still say.
pub(super) struct Reports {
    id: TransferId,
    due_ms: u64,
    last_ms: u64,
    gained: Vec<Range<u32>>,
    /// Parents that made no progress in time. Not all that [`Report::late`] names: that also has
    /// those whose stripes are merely behind, whom a new plan would only disturb.
    late: BTreeSet<Member>,
    /// Something must be said, even that nothing was gained.
    must: bool,
}

impl Reports {
    /// Nothing to say yet.
    pub fn new(id: TransferId, now_ms: u64) -> Self {
        Self {
            id,
            due_ms: now_ms,
            last_ms: now_ms,
            gained: Vec::new(),
            late: BTreeSet::new(),
            must: false,
        }
    }

    /// Says that this member is there.
    pub fn begin(&mut self) {
        self.must = true;
        self.urge();
    }

    /// The next report goes at once.
    pub fn urge(&mut self) {
        self.due_ms = self.last_ms;
    }

    /// A parent made no progress in time.
    pub fn late(&mut self, parent: Member) {
        self.late.insert(parent);
        self.urge();
    }

    /// Whoever hears the next report knows nothing.
    pub fn everything(&mut self, have: &Have, pieces: u32) {
        match have {
            Have::All if pieces > 0 => self.gained.push(0..pieces),
            Have::All => {}
            Have::Some(pieces) => self.gained.extend(pieces.ranges()),
        }
        self.begin();
    }

    /// When [`Reports::send`] is due.
    pub fn deadline_ms(&self) -> u64 {
        self.due_ms
    }

    /// Sends what there is to say.
    pub fn send(&mut self, report: Report, traffic: (u64, u64), outbox: &Outbox, now_ms: u64) {
        (self.due_ms, self.last_ms) = (now_ms + REPORT_MS, now_ms);
        // What arrived is news without a whole piece too: by it control knows who is slow.
        self.must |= report.down_bytes > 0;
        self.gained.extend(report.gained);
        merge(&mut self.gained);
        if self.gained.is_empty() && self.late.is_empty() && !self.must {
            return;
        }
        let said = self.gained.len().min(RANGES_MAX);
        let progress = Progress {
            plan_number: report.plan,
            gained: self.gained[..said].to_vec(),
            bytes_down: traffic.1,
            bytes_up: traffic.0,
            late_parents: self.late.iter().copied().take(STRIPES_MAX.into()).collect(),
        };
        let message = Kind::MeshReport(progress.to_message(&self.id));
        if outbox.push(Priority::Report, message) {
            self.gained.drain(..said);
            self.late.clear();
            self.must = false;
        }
    }
}

/// What came from other agents, of what each member sent.
pub(super) fn from_peers(received: &BTreeMap<Member, u64>) -> u64 {
    received.iter().filter(|(member, _)| **member != SERVER).map(|(_, bytes)| bytes).sum()
}

/// Who sent how much; of more than [`MESH_PEERS_MAX`] members those who sent most.
pub(super) fn received_from(received: &BTreeMap<Member, u64>) -> Vec<ReceivedFrom> {
    let mut all: Vec<ReceivedFrom> = received
        .iter()
        .map(|(member, bytes)| ReceivedFrom { member: *member, bytes: *bytes })
        .collect();
    all.sort_by_key(|from| (std::cmp::Reverse(from.bytes), from.member));
    all.truncate(MESH_PEERS_MAX);
    all
}

/// Puts ranges in order and joins those that touch.
fn merge(ranges: &mut Vec<Range<u32>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let touches = next.start <= before.end;
        if touches {
            before.end = before.end.max(next.end);
        }
        touches
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_everything_says_so() {
        let mut reports = Reports::new(TransferId([1; 16]), 0);
        reports.everything(&Have::All, 9);
        let first = reports.gained.pop();
        assert_eq!((first, reports.gained.len(), reports.must), (Some(0..9), 0, true));
    }

    #[test]
    fn what_the_server_sent_is_not_from_peers() {
        let received = BTreeMap::from([(SERVER, 100), (3, 7), (9, 50)]);
        assert_eq!(from_peers(&received), 57);
        let named: Vec<_> = received_from(&received).iter().map(|from| from.member).collect();
        assert_eq!(named, [SERVER, 9, 3], "who sent most comes first");
        let many = (0..1_000).map(|member| (member, u64::from(member))).collect();
        let named = received_from(&many);
        assert_eq!((named.len(), named[0].member), (MESH_PEERS_MAX, 999));
    }

    #[test]
    fn ranges_are_said_in_order_and_once() {
        let mut ranges = vec![7..9, 0..2, 2..3, 8..12, 20..21];
        merge(&mut ranges);
        assert_eq!(ranges, [0..3, 7..12, 20..21]);
    }
}
