//! What a coordinator knows about its transfer, for people.

use super::{Coordinator, State};
use std::ops::Range;

/// A transfer at one moment. Hosts are targets; sources are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Hosts that have not joined.
    pub waiting: usize,
    /// Hosts that receive.
    pub active: usize,
    /// Of these, how many are slow.
    pub slow: usize,
    /// Hosts that hold the file.
    pub complete: usize,
    /// Hosts that are lost.
    pub gone: usize,
    /// Bytes that living hosts hold.
    pub bytes: u64,
    /// Bytes that they are to hold.
    pub wanted_bytes: u64,
    /// When the last active host will be complete, on the coordinator's clock, at the rates it
    /// was told of; `None` before the first plan and when no host is active.
    pub end_ms: Option<u64>,
    /// Pieces that no living member holds.
    pub missing: Vec<Range<u32>>,
    /// The pieces for want of which the transfer has failed.
    pub failed: Option<Vec<Range<u32>>>,
    /// Trees of the plan.
    pub stripes: u16,
    /// Links of the plan from sources: with `stripes` of them the sources send every piece once.
    pub source_links: usize,
    /// Links of the plan that cross a region's border.
    pub border_links: usize,
}

impl Coordinator {
    /// The transfer now. Costs a look at every member.
    pub fn status(&self) -> Status {
        let mut status = Status {
            missing: self.holdings.missing(),
            failed: self.failed.clone(),
            stripes: self.trees.stripes(),
            ..Status::default()
        };
        let size = self.geometry.size_bytes();
        for (at, entry) in (0..).zip(&self.entries) {
            let children = self.trees.children(at);
            let across = children.iter().filter(|(_, child)| !self.layout.same_region(at, *child));
            status.border_links += across.count();
            if entry.is_source {
                status.source_links += children.len();
                continue;
            }
            match entry.state {
                State::Waiting => status.waiting += 1,
                State::Gone => status.gone += 1,
                State::Complete => status.complete += 1,
                State::Active => {
                    status.active += 1;
                    status.slow += usize::from(entry.is_slow);
                    let planned = self.shape.rate.min(entry.down).max(1.0) as u64;
                    let rate = entry.measured.unwrap_or(planned).max(1);
                    let left = (size - self.holdings.bytes(at)).saturating_mul(1000) / rate;
                    let end = self.now_ms.saturating_add(left);
                    status.end_ms = status.end_ms.max(self.built.map(|_| end));
                }
            }
            if matches!(entry.state, State::Active | State::Complete) {
                status.bytes += self.holdings.bytes(at);
                status.wanted_bytes += size;
            }
        }
        status
    }
}
