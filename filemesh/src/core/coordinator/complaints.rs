//! Complaints that cannot be decided yet: in the order in which they came, one per link of a tree.
//!
//! A source that stops for a moment makes everybody complain within one patience, and every report
//! may bring more. So a complaint is judged by itself when it comes; those that wait are looked at
//! together, and no more often than [`DECIDE_MS`].

use std::collections::BTreeSet;
use std::mem::take;

/// Complaints that wait for a decision, at most. Who is turned away has its neighbours meanwhile and
/// complains again when it is late the next time.
pub const COMPLAINTS_MAX: usize = 4_096;

/// Between two looks at those that wait, in milliseconds.
const DECIDE_MS: u64 = 25;

/// A member that waits for a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub child: u32,
    pub stripe: u16,
    pub parent: u32,
    pub since_ms: u64,
    /// The first piece of the stripe that the member lacked.
    pub first: Option<u32>,
}

impl Complaint {
    fn link(&self) -> (u32, u16, u32) {
        (self.child, self.stripe, self.parent)
    }
}

/// What became of complaints about links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComplaintCounts {
    /// Settled when they came.
    pub settled: u64,
    /// Kept until they can be.
    pub kept: u64,
    /// Not kept, because [`COMPLAINTS_MAX`] waited.
    pub dropped: u64,
}

/// The complaints that wait.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    waiting: Vec<Complaint>,
    links: BTreeSet<(u32, u16, u32)>,
    looked_ms: u64,
    counts: ComplaintCounts,
}

impl Complaints {
    /// Whether one about the same link waits.
    pub fn has(&self, complaint: &Complaint) -> bool {
        self.links.contains(&complaint.link())
    }

    /// Counts one that needs no place here.
    pub fn settled(&mut self) {
        self.counts.settled += 1;
    }

    /// Keeps one that is not here, if there is room.
    pub fn keep(&mut self, complaint: Complaint) {
        if self.waiting.len() >= COMPLAINTS_MAX {
            self.counts.dropped += 1;
            return;
        }
        self.counts.kept += 1;
        self.put_back(complaint);
    }

    /// Takes out all that wait, if it is time to look at them.
    pub fn due(&mut self, now_ms: u64) -> Vec<Complaint> {
        if now_ms.saturating_sub(self.looked_ms) < DECIDE_MS {
            return vec![];
        }
        self.looked_ms = now_ms;
        self.links.clear();
        take(&mut self.waiting)
    }

    /// Goes on waiting.
    pub fn put_back(&mut self, complaint: Complaint) {
        if self.links.insert(complaint.link()) {
            self.waiting.push(complaint);
        }
    }

    /// Forgets all that wait: the trees are others.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.links.clear();
    }

    /// What was counted since the last call.
    pub fn take_counts(&mut self) -> ComplaintCounts {
        take(&mut self.counts)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(child: u32) -> Complaint {
        Complaint { child, stripe: 1, parent: 7, since_ms: 5, first: Some(1) }
    }

    #[test]
    fn beyond_the_limit_complaints_are_counted_and_not_kept() {
        let mut complaints = Complaints::default();
        let most = COMPLAINTS_MAX as u32;
        (0..most + 3).for_each(|child| complaints.keep(about(child)));
        assert_eq!(complaints.len(), COMPLAINTS_MAX);
        assert!(complaints.has(&about(most - 1)) && !complaints.has(&about(most)));
        let counts = ComplaintCounts { settled: 0, kept: most.into(), dropped: 3 };
        assert_eq!(complaints.take_counts(), counts);
        assert_eq!(complaints.take_counts(), ComplaintCounts::default(), "told once");
        // Those that are settled make room.
        let waiting = complaints.due(1_000);
        assert!(waiting.iter().map(|one| one.child).eq(0..most), "in their order");
        waiting.into_iter().skip(1).for_each(|one| complaints.put_back(one));
        complaints.keep(about(most));
        assert!(complaints.has(&about(most)) && !complaints.has(&about(0)));
    }

    #[test]
    fn those_that_wait_are_looked_at_now_and_then() {
        let mut complaints = Complaints::default();
        complaints.keep(about(1));
        assert_eq!(complaints.due(1_000), [about(1)]);
        complaints.put_back(about(1));
        complaints.put_back(about(1));
        assert_eq!(complaints.len(), 1, "one about each link");
        assert_eq!(complaints.due(1_000 + DECIDE_MS - 1), []);
        assert_eq!(complaints.due(1_000 + DECIDE_MS), [about(1)]);
        complaints.put_back(about(1));
        complaints.clear();
        assert!(!complaints.has(&about(1)) && complaints.due(9_000).is_empty());
    }
}
