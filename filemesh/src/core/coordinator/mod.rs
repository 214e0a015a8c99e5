//! Who sends what to whom in one transfer, and what changes when members fail, lag or return.
//!
//! The coordinator knows every target and what each holds. It makes the first plan when the
//! targets have joined: interleaved trees (see [`super::plan`]) that bring every piece from the
//! source once and over each region's border once. Then it changes as little as possible: news
//! about a member concern its children and its neighbours, and only members whose plan changed get
//! a new one. Nothing that a member holds is ever asked for again: plans only say from whom.
//!
//! ```text
//!   joined ─┐                             ┌─► Output::Plan (changed members only)
//!   progress ┤                            │
//!   late ────┼─► holdings, trees, ring ─ tick
//!   gone ────┘   (changed at once)        └─► Output::Missing, Recovered, Failed
//! ```
//!
//! Invariants: a member is on the ring exactly while it is active or complete; a complete member
//! has no parents; an active member has a parent in every stripe, and its chain of parents ends at
//! a complete member or at the one that stands in for the source (`roots`).

mod blame;
mod build;
mod complaints;
mod holdings;
mod layout;
mod neighbours;
mod positions;
mod replan;
mod settings;
mod status;
mod trees;
mod whole;

#[cfg(test)]
mod beginning_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;

pub use complaints::{COMPLAINTS_MAX, ComplaintCounts};
pub use holdings::Held;
pub use neighbours::NeighbourSettings;
pub use settings::{Participant, Settings, Spec};
pub use status::Status;

use super::geometry::Geometry;
use super::plan::{HostPlan, Member};
use super::planner::{Gear, Shape};
use complaints::Complaints;
use holdings::Holdings;
use layout::{Layout, Random};
use neighbours::Neighbours;
use positions::Positions;
use std::collections::BTreeSet;
use std::ops::Range;
use trees::Trees;

/// What the coordinator wants told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The member has a new plan.
    Plan {
        /// Who it is for.
        member: Member,
        /// What it is to do.
        plan: HostPlan,
    },
    /// No living member holds these pieces. The transfer waits for one that does.
    Missing {
        /// Which pieces, in order.
        pieces: Vec<Range<u32>>,
    },
    /// Every piece has a living holder again.
    Recovered,
    /// Nobody who holds these pieces came back in time. This is the end of the transfer.
    Failed {
        /// Which pieces, in order.
        pieces: Vec<Range<u32>>,
    },
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not yet heard of.
    Waiting,
    /// There and incomplete.
    Active,
    /// There and complete; goes on to send.
    Complete,
    /// Lost, until it joins again.
    Gone,
}

/// How many parents that were late a member remembers.
const REFUSED_MAX: usize = 4;

#[derive(Clone, Debug)]
struct Entry {
    state: State,
    up: f64,
    down: f64,
    /// What it says to receive, averaged over some reports, bytes per second.
    measured: Option<u64>,
    /// Comparisons in a row in which that was low.
    low: u8,
    is_source: bool,
    is_slow: bool,
    /// Until when it is a leaf whatever it receives: several had nothing from it.
    barred_until_ms: u64,
    /// Has parents of its own as a straggler.
    is_dedicated: bool,
    /// When it last got a new parent.
    moved_ms: Option<u64>,
    /// When it last said anything.
    heard_ms: u64,
    /// Parents that were late, the last few.
    refused: Vec<u32>,
    /// Who called it late since when.
    late: (u64, Vec<u32>),
}

/// The coordinator of one transfer.
#[derive(Debug)]
pub struct Coordinator {
    geometry: Geometry,
    settings: Settings,
    gear: Gear,
    layout: Layout,
    random: Random,
    entries: Vec<Entry>,
    holdings: Holdings,
    trees: Trees,
    neighbours: Neighbours,
    shape: Shape,
    /// Per stripe: the incomplete member that stands in for a source, while nobody is complete.
    roots: Vec<u32>,
    /// Members whose plan changed since the last tick.
    changed: Positions,
    /// Members that reported a rate since the last comparison.
    reported: Positions,
    number: u32,
    now_ms: u64,
    /// When the first target joined and when the last, before the first plan.
    gathering: Option<(u64, u64)>,
    /// When the plan of the whole was last made, and for how many.
    built: Option<(u64, usize)>,
    joined_since: usize,
    /// Links that were mended since: their children have whoever had room, not whom a plan of the
    /// whole would give them.
    mended: usize,
    mended_ms: u64,
    /// Members that wait for parents which are starved themselves.
    complaints: Complaints,
    /// Hops to the last member when the whole was planned, and to those moved since.
    built_depth: u32,
    deepest: u32,
    measured_ms: u64,
    missing_since: Option<u64>,
    failed: Option<Vec<Range<u32>>>,
}

impl Coordinator {
    /// A coordinator whose sources are there and whose targets have not yet joined. Equal seeds
    /// and inputs give equal outputs.
    pub fn new(spec: Spec, settings: Settings, seed: u64, now_ms: u64) -> Self {
        let all = spec.sources.iter().chain(&spec.targets);
        let layout = Layout::new(all.map(|one| (one.member, one.place)));
        let mut entries = vec![Entry::new(settings.default_bytes_s); layout.len() as usize];
        for one in spec.targets.iter().chain(&spec.sources) {
            let Some(at) = layout.position(one.member) else { continue };
            let rate = |known: Option<u64>| known.unwrap_or(settings.default_bytes_s).max(1) as f64;
            let entry = &mut entries[at as usize];
            (entry.up, entry.down) = (rate(one.rates.up_bytes_s), rate(one.rates.down_bytes_s));
        }
        let sources: BTreeSet<u32> =
            spec.sources.iter().filter_map(|one| layout.position(one.member)).collect();
        let mut coordinator = Self {
            geometry: spec.geometry,
            gear: spec.gear,
            random: Random(seed),
            holdings: Holdings::new(spec.geometry, layout.len()),
            trees: Trees::new(layout.len(), 0),
            neighbours: Neighbours::new(settings.neighbours, layout.len(), sources.clone()),
            shape: Shape { stripes: 0, rate: 1.0, children_max: 0, depth: 0, tail_ms: 0.0 },
            roots: vec![],
            changed: Positions::new(layout.len()),
            reported: Positions::new(layout.len()),
            number: 0,
            now_ms,
            gathering: None,
            built: None,
            joined_since: 0,
            mended: 0,
            mended_ms: now_ms,
            complaints: Complaints::default(),
            built_depth: 0,
            deepest: 0,
            measured_ms: now_ms,
            missing_since: None,
            failed: None,
            settings,
            layout,
            entries,
        };
        coordinator.mark_slow_by_known_rates();
        for at in sources {
            coordinator.entries[at as usize].is_source = true;
            coordinator.enter(at, &Held::All);
        }
        coordinator
    }

    /// `member` takes part, for the first time or again, and holds `held`.
    pub fn joined(&mut self, member: Member, held: &Held, now_ms: u64) {
        self.now_ms = now_ms;
        let Some(at) = self.layout.position(member) else { return };
        if self.is_here(at) {
            self.gone(member, now_ms);
        }
        self.enter(at, held);
    }

    /// `member` got the pieces of `gained` and receives `down_bytes_s` at the moment, if it knows.
    pub fn progress(
        &mut self,
        member: Member,
        gained: &[Range<u32>],
        down_bytes_s: Option<u64>,
        now_ms: u64,
    ) {
        self.now_ms = now_ms;
        let Some(at) = self.layout.position(member) else { return };
        if self.entries[at as usize].state != State::Active {
            return;
        }
        if let Some(rate) = down_bytes_s {
            // Over some reports: one alone says more of how connections share a link just then.
            let entry = &mut self.entries[at as usize];
            entry.measured = Some(entry.measured.map_or(rate, |before| (3 * before + rate) / 4));
            self.reported.insert(at);
        }
        self.entries[at as usize].heard_ms = now_ms;
        self.holdings.gain(at, gained);
        if self.holdings.is_complete(at) {
            self.completed(at);
        }
    }

    /// `member` has had nothing from `parent` for as long as it waits.
    pub fn late(&mut self, member: Member, parent: Member, now_ms: u64) {
        self.now_ms = now_ms;
        let positions = (self.layout.position(member), self.layout.position(parent));
        if let (Some(at), Some(parent)) = positions
            && self.entries[at as usize].state == State::Active
        {
            self.entries[at as usize].heard_ms = now_ms;
            self.complain(at, parent);
        }
    }

    /// `member` is lost: a target or a source. It may join again.
    pub fn gone(&mut self, member: Member, now_ms: u64) {
        self.now_ms = now_ms;
        let Some(at) = self.layout.position(member) else { return };
        if self.is_here(at) {
            self.lose(at);
        }
        self.entries[at as usize].state = State::Gone;
    }

    /// Goes over to another gear; what members hold stays theirs.
    pub fn set_gear(&mut self, gear: Gear, now_ms: u64) {
        self.now_ms = now_ms;
        if gear != self.gear {
            self.gear = gear;
            if self.built.is_some() {
                self.build();
            }
        }
    }

    /// What time and the news since the last call bring. To be called every 50 to 100 ms.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Output> {
        self.now_ms = now_ms;
        let mut outputs = vec![];
        if self.failed.is_some() {
            return outputs;
        }
        if self.built.is_some() {
            self.compare_rates();
        }
        self.build_if_due();
        if self.built.is_none() {
            return outputs;
        }
        self.decide_complaints();
        self.serve_stragglers();
        self.look_for_missing(&mut outputs);
        if self.failed.is_none() {
            self.tell_changed(&mut outputs);
        }
        outputs
    }

    /// What became of complaints about late parents since the last call, for metrics.
    pub fn take_complaint_counts(&mut self) -> ComplaintCounts {
        self.complaints.take_counts()
    }

    fn is_here(&self, at: u32) -> bool {
        matches!(self.entries[at as usize].state, State::Active | State::Complete)
    }

    fn tell_changed(&mut self, outputs: &mut Vec<Output>) {
        let active = |at: &u32| self.entries[*at as usize].state == State::Active;
        let mut changed: Vec<u32> = self.changed.take().into_iter().filter(active).collect();
        if !changed.is_empty() {
            self.number += 1;
        }
        changed.sort_by_cached_key(|at| self.rank(*at));
        let with_sources = self.gear != Gear::Planned;
        for at in changed {
            let member = |at: u32| self.layout.member(at);
            let parents = (0..self.trees.stripes()).map(|stripe| self.trees.parent(at, stripe));
            let neighbours = self.neighbours.of(at, with_sources);
            let far = neighbours.iter().filter(|other| !self.layout.same_region(at, **other));
            let plan = HostPlan {
                number: self.number,
                parents: parents.map(|parent| parent.map(member)).collect(),
                far: far.map(|other| member(*other)).collect(),
                neighbours: neighbours.into_iter().map(member).collect(),
            };
            outputs.push(Output::Plan { member: member(at), plan });
        }
    }

    /// Plans of large fleets take time to send: whoever stands near a source and has others below
    /// it comes first, so that the file moves while the rest hear of it.
    fn rank(&self, at: u32) -> u32 {
        let stripes = self.trees.children(at).iter().map(|(stripe, _)| *stripe);
        let above = stripes.filter_map(|stripe| self.trees.chain(at, stripe, |_| false));
        above.map(|chain| chain.depth).min().unwrap_or(u32::MAX)
    }

    fn look_for_missing(&mut self, outputs: &mut Vec<Output>) {
        let is_wanted = self.entries.iter().any(|entry| entry.state == State::Active);
        if self.holdings.is_covered() || !is_wanted {
            if self.missing_since.take().is_some() {
                outputs.push(Output::Recovered);
            }
            return;
        }
        let pieces = self.holdings.missing();
        match self.missing_since {
            None => {
                self.missing_since = Some(self.now_ms);
                outputs.push(Output::Missing { pieces });
            }
            Some(since) if self.now_ms.saturating_sub(since) >= self.settings.missing_ms => {
                self.failed = Some(pieces.clone());
                outputs.push(Output::Failed { pieces });
            }
            Some(_) => {}
        }
    }
}

impl Entry {
    fn new(default_bytes_s: u64) -> Self {
        let rate = default_bytes_s.max(1) as f64;
        Self {
            state: State::Waiting,
            up: rate,
            down: rate,
            measured: None,
            low: 0,
            is_source: false,
            is_slow: false,
            barred_until_ms: 0,
            is_dedicated: false,
            moved_ms: None,
            heard_ms: 0,
            refused: vec![],
            late: (0, vec![]),
        }
    }
}
