//! The plan of the whole: the first one, and a new one when too much has changed.

use super::build::{Ground, build};
use super::layout::Scope;
use super::trees::{NONE, Trees};
use super::{Coordinator, State};
use crate::core::planner::{Gear, Shape, ShapeInput};
use std::cmp::Reverse;

/// Nobody joined for this part of [`Settings::gather_ms`](super::Settings::gather_ms): those who are
/// still missing will be long.
const GATHER_CALM: u64 = 2;

/// The first plan waits for so many times `gather_ms` at most.
const GATHER_MAX: u64 = 5;

impl Coordinator {
    /// Makes the first plan when the targets are there, and a new one when as many have joined
    /// since or the trees have grown deep by patching.
    pub(super) fn build_if_due(&mut self) {
        let due = match self.built {
            None => {
                let waiting = self.entries.iter().any(|entry| entry.state == State::Waiting);
                let here = self.entries.iter().any(|entry| entry.state == State::Active);
                here && (!waiting || self.have_gathered())
            }
            Some((at_ms, hosts)) => {
                let since = self.now_ms.saturating_sub(at_ms);
                let grown = self.joined_since * 2 >= hosts.max(2);
                let deep = self.deepest > 2 * self.built_depth + 4;
                // Several are often lost at once.
                let calm = self.now_ms.saturating_sub(self.mended_ms) >= self.settings.gather_ms;
                (grown && since >= self.settings.gather_ms)
                    || (deep && since >= self.settings.rebuild_ms)
                    || (calm && self.is_worn())
            }
        };
        if due {
            self.build();
        }
    }

    /// Whether those that are there have waited long enough for the others: for a while after the
    /// first and for a moment after the last. Whoever is fed from a source before its brothers are
    /// there has pieces that another, who takes its place, gets from the source again.
    fn have_gathered(&self) -> bool {
        let Some((first_ms, last_ms)) = self.gathering else { return false };
        let since = |at_ms: u64| self.now_ms.saturating_sub(at_ms);
        let gather_ms = self.settings.gather_ms;
        let calm = since(last_ms) >= gather_ms / GATHER_CALM;
        since(first_ms) >= gather_ms && (calm || since(first_ms) >= gather_ms * GATHER_MAX)
    }

    /// Notes that `links` are not as the plan of the whole made them.
    pub(super) fn note_mended(&mut self, links: usize) {
        if links > 0 {
            (self.mended, self.mended_ms) = (self.mended + links, self.now_ms);
        }
    }

    /// Whether so much was mended that a plan of the whole pays, and may be made. Where many are
    /// complete they serve, and mending finds them; a chain that was mended is a chain as before.
    pub(super) fn is_worn(&self) -> bool {
        let Some((at_ms, hosts)) = self.built else { return false };
        let links = hosts * usize::from(self.trees.stripes());
        let complete = self.entries.iter().filter(|entry| entry.state == State::Complete).count();
        self.gear == Gear::Planned
            && self.trees.stripes() > 1
            && self.mended > 0
            && self.mended as f64 >= self.settings.worn_share * links as f64
            && complete * 10 <= hosts + 10
            && self.now_ms.saturating_sub(at_ms)
                >= self.settings.rebuild_ms * (1 + hosts as u64 / 1_000)
    }

    pub(super) fn build(&mut self) {
        let is_first = self.built.is_none();
        let mut hosts = self.positions(State::Active);
        self.built = Some((self.now_ms, hosts.len()));
        (self.joined_since, self.deepest, self.mended) = (0, 0, 0);
        self.complaints.clear();
        if is_first {
            self.neighbours_of_all();
        }
        self.changed.extend(hosts.iter().copied());
        match self.gear {
            Gear::Mesh => {
                self.trees = Trees::new(self.layout.len(), 0);
                self.roots = vec![];
            }
            Gear::Planned => self.build_trees(&mut hosts),
            Gear::Inline | Gear::Direct => self.build_star(&hosts),
        }
        let stripes = self.roots.len() as u16;
        (0..stripes).for_each(|stripe| self.help_stand_in(stripe));
        self.built_depth = self.trees.depth();
    }

    fn positions(&self, state: State) -> Vec<u32> {
        (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| entry.state == state)
            .map(|(at, _)| at)
            .collect()
    }

    fn neighbours_of_all(&mut self) {
        let here = |at: &u32| self.is_here(*at);
        let all: Vec<u32> = (0..self.layout.len()).filter(here).collect();
        all.iter().for_each(|at| self.neighbours.enter(*at, &mut self.changed));
        for at in all {
            self.neighbours.fill(at, &self.layout, &mut self.random, &mut self.changed);
        }
    }

    /// Those that hold everything: sources, and targets of an earlier batch, so that a later one
    /// costs the sources no further copy. Slow targets only if there is nobody else.
    fn givers(&self) -> Vec<u32> {
        let complete = self.positions(State::Complete);
        let is_able = |at: &u32| {
            let entry = &self.entries[*at as usize];
            entry.is_source || !entry.is_slow
        };
        let able: Vec<u32> = complete.iter().copied().filter(is_able).collect();
        if able.is_empty() { complete } else { able }
    }

    fn build_star(&mut self, hosts: &[u32]) {
        self.trees = Trees::new(self.layout.len(), 1);
        self.roots = vec![NONE];
        self.shape.stripes = 1;
        let givers = self.givers();
        for at in hosts {
            let least = |giver: &&u32| {
                let children = self.trees.children(**giver).len() as f64 + 1.0;
                (1e6 * children / self.entries[**giver as usize].up) as u64
            };
            match givers.iter().min_by_key(least).copied() {
                Some(giver) => self.trees.link(*at, 0, giver),
                None => self.attach_stripe(*at, 0),
            }
        }
        for giver in givers {
            self.trees.set_budget(giver, u32::MAX);
        }
    }

    fn build_trees(&mut self, hosts: &mut Vec<u32>) {
        let mut givers = self.givers();
        // Nobody is complete: who has most stands in, and gets the rest as a neighbour.
        let mut stand_in = None;
        if givers.is_empty() {
            stand_in = hosts.iter().copied().max_by_key(|at| self.holdings.bytes(*at));
            givers.extend(stand_in);
            hosts.retain(|at| Some(*at) != stand_in);
        }
        self.shape = self.shape_for(hosts, &givers);
        self.put_first_who_has_most(hosts);
        let stripes = self.shape.stripes;
        let children: Vec<u32> = (0..self.layout.len()).map(|at| self.children_of(at)).collect();
        let roots = self.share_out(&givers);
        let ground = Ground { layout: &self.layout, hosts, children: &children, roots: &roots };
        let links = build(&ground);
        self.trees = Trees::new(self.layout.len(), stripes);
        self.roots = vec![stand_in.unwrap_or(NONE); usize::from(stripes)];
        for (child, stripe, parent) in links {
            self.trees.link(child, stripe, parent);
        }
        for at in 0..self.layout.len() {
            if !self.is_here(at) {
                continue;
            }
            let has = self.trees.children(at).len() as u32;
            let is_source = self.entries[at as usize].is_source;
            let may = if is_source { 0 } else { children[at as usize] };
            self.trees.set_budget(at, may.max(has));
        }
    }

    /// Of hosts in one place those that a source feeds come first and then those that hold most, so
    /// that they stay near it: who stands before somebody that has more gets it from the source
    /// once more.
    fn put_first_who_has_most(&self, hosts: &mut [u32]) {
        let place = |at: u32| self.layout.place(at);
        let is_source = |parent: u32| self.entries[parent as usize].is_source;
        let is_fed = |at: u32| {
            let mut parents = (0..self.trees.stripes()).map(|stripe| self.trees.parent(at, stripe));
            parents.any(|parent| parent.is_some_and(is_source))
        };
        for together in hosts.chunk_by_mut(|one, other| place(*one) == place(*other)) {
            together.sort_by_cached_key(|at| (!is_fed(*at), Reverse(self.holdings.bytes(*at))));
        }
    }

    fn shape_for(&self, hosts: &[u32], givers: &[u32]) -> Shape {
        let entry = |at: &u32| &self.entries[*at as usize];
        let fast: Vec<_> = hosts.iter().map(entry).filter(|entry| !entry.is_slow).collect();
        let ups: Vec<f64> = fast.iter().map(|entry| entry.up).collect();
        let downs = if fast.is_empty() { hosts.iter().map(entry).collect() } else { fast };
        let input = ShapeInput {
            geometry: self.geometry,
            source_up: givers.iter().map(|at| entry(at).up).sum::<f64>().max(1.0),
            leaves: hosts.len() - ups.len(),
            ups: &ups,
            down_min: downs.iter().map(|entry| entry.down).fold(f64::MAX, f64::min),
            rtt_ms: self.settings.rtt_ms,
        };
        Shape::choose(&input, &self.settings.shape)
    }

    /// Children that a member may have in all stripes by its rate.
    pub(super) fn children_of(&self, at: u32) -> u32 {
        let entry = &self.entries[at as usize];
        if entry.is_slow || self.shape.stripes == 0 {
            return 0;
        }
        self.shape.children(entry.up, &self.settings.shape)
    }

    /// Gives each stripe to the giver that has least to send for its rate. Among those that are
    /// fast enough the targets of an earlier batch come first, for the sources have sent their copy.
    fn share_out(&self, givers: &[u32]) -> Vec<(u32, u32)> {
        let mut counts = vec![0u32; givers.len()];
        let up = |at: usize| self.entries[givers[at] as usize].up;
        let enough = self.shape.rate / f64::from(self.shape.stripes.max(1));
        let mut roots = vec![];
        for _ in 0..self.shape.stripes {
            let load = |at: &usize| {
                let share = (up(*at) / f64::from(counts[*at] + 1)).min(enough);
                (Reverse(share as u64), self.entries[givers[*at] as usize].is_source)
            };
            let Some(at) = (0..givers.len()).min_by_key(load) else { break };
            counts[at] += 1;
            roots.push(at);
        }
        let mut left: Vec<u32> = (0..givers.len())
            .map(|at| {
                let all = up(at) * f64::from(self.shape.stripes) / self.shape.rate;
                let all = (all * self.settings.shape.round_up).min(1e6) as u32;
                all.saturating_sub(counts[at])
            })
            .collect();
        let shares = roots.into_iter().map(|at| {
            let extra = left[at].div_ceil(counts[at].max(1));
            (left[at], counts[at]) = (left[at] - extra, counts[at] - 1);
            (givers[at], extra)
        });
        shares.collect()
    }

    /// Members that are known to be slow are leaves from the first plan on.
    pub(super) fn mark_slow_by_known_rates(&mut self) {
        let downs = self.entries.iter().map(|entry| entry.down as u64).collect();
        let Some(median) = median(downs) else { return };
        for entry in &mut self.entries {
            entry.is_slow = entry.down < self.settings.slow_share * median as f64;
        }
    }

    /// Compares what members receive and makes those slow that lag, for as long as they do.
    pub(super) fn compare_rates(&mut self) {
        if self.now_ms.saturating_sub(self.measured_ms) < self.settings.measure_ms {
            return;
        }
        self.measured_ms = self.now_ms;
        let heard = self.reported.take();
        let rate = |at: &u32| {
            let entry = &self.entries[*at as usize];
            entry.measured.filter(|_| entry.state == State::Active).map(|rate| (*at, rate))
        };
        let mut reported: Vec<(u32, u64)> = heard.iter().filter_map(rate).collect();
        let Some(median) = median(reported.iter().map(|(_, rate)| *rate).collect()) else { return };
        // In a chain one that has received something is enough to compare the next with.
        if reported.len() < 4 && self.trees.stripes() != 1 {
            return;
        }
        // Who says nothing while others do received nothing. Reports come twice in this time.
        let silent_ms = self.settings.measure_ms;
        let is_mute = |at: &u32| {
            let entry = &self.entries[*at as usize];
            let is_silent = self.now_ms.saturating_sub(entry.heard_ms) >= silent_ms;
            entry.state == State::Active && is_silent && heard.binary_search(at).is_err()
        };
        reported.extend((0..self.layout.len()).filter(is_mute).map(|at| (at, 0)));
        for (at, rate) in reported {
            let usual = self.usual_rate(at, median);
            let share = rate as f64 / usual.max(1) as f64;
            let entry = &mut self.entries[at as usize];
            entry.low =
                if share < self.settings.slow_share { entry.low.saturating_add(1) } else { 0 };
            if entry.low >= self.settings.slow_reports && !entry.is_slow {
                if self.is_fed(at) && self.is_behind(at, usual) {
                    self.demote(at);
                }
            } else if entry.is_slow
                && share >= self.settings.recovered_share
                && self.now_ms >= entry.barred_until_ms
            {
                entry.is_slow = false;
                self.note_mended(self.trees.stripes().into());
                let children = self.children_of(at);
                self.trees.set_budget(at, children);
            }
        }
    }

    /// What `at` might receive. In a chain all behind a slow member are as slow as it is, and only
    /// who stands before it shows that it is slow.
    fn usual_rate(&self, at: u32, median: u64) -> u64 {
        let before = self.before(at);
        before.and_then(|parent| self.entries[parent as usize].measured).unwrap_or(median)
    }

    /// In a chain: whether `at` is behind who stands before it, by what `rate` brings between two
    /// comparisons. A moment without packets is no proof that it is slow.
    fn is_behind(&self, at: u32, rate: u64) -> bool {
        if self.trees.stripes() != 1 {
            return true;
        }
        let bytes = |at| self.holdings.bytes(at);
        let least = rate.saturating_mul(self.settings.measure_ms) / 1000;
        self.before(at).is_some_and(|parent| {
            let is_measured = self.entries[parent as usize].measured.is_some();
            is_measured && bytes(parent) >= bytes(at).saturating_add(least)
        })
    }

    /// Who stands before `at` in a chain, unless a border between them may be what is slow.
    fn before(&self, at: u32) -> Option<u32> {
        if self.trees.stripes() != 1 {
            return None;
        }
        let parent = self.trees.parent(at, 0)?;
        self.layout.around(at, Scope::Region).contains(&parent).then_some(parent)
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    let half = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(half).1)
}
