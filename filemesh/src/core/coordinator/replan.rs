//! Changes of the trees when members come, go, complete or are late: only the links concerned.
//!
//! A new parent is looked for from near to far among members that may take another child, and of
//! those found the one nearest to a source is taken. If nobody in the region has room, one of the
//! region is overloaded rather than its border crossed twice (in a chain, where that would halve the
//! rate of all behind, only if nobody beyond has room); beyond it too rather than that a
//! member stays without a parent.

use super::layout::{SCOPES, Scope};
use super::trees::NONE;
use super::{Coordinator, Held, REFUSED_MAX, State};
use crate::core::plan::pieces_of;
use crate::core::planner::Gear;
use std::cmp::Reverse;

/// Candidates that are looked at in each scope.
const LOOKS: usize = 24;

/// A member that said anything within so many windows of lateness is there.
const HEARD_WINDOWS: u64 = 2;

/// Members that are made neighbours of one that stands in for the source, at most.
const HELPERS: usize = 8;

impl Coordinator {
    pub(super) fn enter(&mut self, at: u32, held: &Held) {
        self.holdings.enter(at, held);
        let is_complete = self.holdings.is_complete(at);
        let entry = &mut self.entries[at as usize];
        entry.state = if is_complete { State::Complete } else { State::Active };
        (entry.low, entry.measured, entry.is_dedicated) = (0, None, false);
        entry.heard_ms = self.now_ms;
        entry.refused.clear();
        entry.late.1.clear();
        if self.built.is_none() {
            if !self.entries[at as usize].is_source {
                let first_ms = self.gathering.map_or(self.now_ms, |(first_ms, _)| first_ms);
                self.gathering = Some((first_ms, self.now_ms));
            }
            return;
        }
        self.neighbours.enter(at, &mut self.changed);
        self.neighbours.fill(at, &self.layout, &mut self.random, &mut self.changed);
        let is_source = self.entries[at as usize].is_source;
        let budget = match self.gear {
            Gear::Planned if !is_source => self.children_of(at),
            Gear::Planned => self.trees.stripes().into(),
            Gear::Inline | Gear::Direct if is_complete => u32::MAX,
            _ => 0,
        };
        self.trees.set_budget(at, budget);
        if is_complete {
            self.replace_stand_ins(at);
        } else {
            self.joined_since += 1;
            let stripes = self.trees.stripes();
            self.note_mended(stripes.into());
            let home = self.random.below(stripes.into()) as u16;
            // In a chain it goes to the end: whoever stood behind it would wait for all that it lacks.
            let is_chain = stripes == 1 && self.trees.budget(at) <= 1;
            for stripe in 0..stripes {
                if is_chain || stripe != home || !self.take_leafs_place(at, stripe) {
                    self.attach_stripe(at, stripe);
                }
            }
        }
    }

    /// Puts a member that brings room for children in the place of a leaf, which becomes its
    /// child: so the new room is near the source and those that come later do not form a chain.
    fn take_leafs_place(&mut self, at: u32, stripe: u16) -> bool {
        if self.trees.budget(at) == 0 {
            return false;
        }
        let Some((leaf, above)) = self.find_leaf(at, stripe, u32::MAX) else { return false };
        // What a source has sent to the leaf it would send once more.
        if self.entries[above as usize].is_source {
            return false;
        }
        self.trees.unlink(leaf, stripe);
        self.set_parent(at, stripe, above);
        self.set_parent(leaf, stripe, at);
        true
    }

    pub(super) fn completed(&mut self, at: u32) {
        self.entries[at as usize].state = State::Complete;
        (0..self.trees.stripes()).for_each(|stripe| self.trees.unlink(at, stripe));
        if self.built.is_some() {
            self.replace_stand_ins(at);
        }
    }

    /// Puts those that stand in for a source under `at`, which holds everything.
    fn replace_stand_ins(&mut self, at: u32) {
        for stripe in 0..self.trees.stripes() {
            let root = std::mem::replace(&mut self.roots[usize::from(stripe)], NONE);
            if root != NONE && root != at {
                self.set_parent(root, stripe, at);
            }
        }
    }

    pub(super) fn lose(&mut self, at: u32) {
        self.holdings.leave(at);
        self.entries[at as usize].state = State::Gone;
        if self.built.is_none() {
            return;
        }
        self.neighbours.leave(at, &self.layout, &mut self.random, &mut self.changed);
        self.trees.set_budget(at, 0);
        let mut orphans = self.trees.children(at).to_vec();
        orphans.sort_by_key(|(stripe, child)| (*stripe, Reverse(self.trees.budget(*child))));
        orphans.iter().for_each(|(stripe, child)| self.trees.unlink(*child, *stripe));
        self.note_mended(orphans.len());
        for stripe in 0..self.trees.stripes() {
            let above = self.trees.parent(at, stripe);
            self.trees.unlink(at, stripe);
            if self.roots[usize::from(stripe)] == at {
                self.roots[usize::from(stripe)] = NONE;
            }
            let of_stripe = orphans.iter().filter(|(other, _)| *other == stripe);
            for (nth, (_, child)) in of_stripe.enumerate() {
                // The ablest child takes the place that is free now.
                match above {
                    Some(above) if nth == 0 => self.set_parent(*child, stripe, above),
                    _ => self.attach_stripe(*child, stripe),
                }
            }
        }
    }

    fn set_parent(&mut self, child: u32, stripe: u16, parent: u32) {
        self.trees.link(child, stripe, parent);
        let entry = &mut self.entries[child as usize];
        // What it received from whoever was its parent says nothing about this one.
        (entry.moved_ms, entry.measured, entry.low) = (Some(self.now_ms), None, 0);
        self.changed.insert(child);
        if let Some(chain) = self.trees.chain(child, stripe, |_| false) {
            self.deepest = self.deepest.max(chain.depth);
        }
    }

    /// Gives `child` a parent in `stripe`, or lets it stand in for the source.
    pub(super) fn attach_stripe(&mut self, child: u32, stripe: u16) {
        if let Some(parent) = self.find_parent(child, stripe) {
            self.settle(child, stripe, parent);
            return;
        }
        self.trees.unlink(child, stripe);
        self.roots[usize::from(stripe)] = child;
        self.changed.insert(child);
        self.help_stand_in(stripe);
    }

    /// Puts `child` under `parent`; or, if it has children of its own, in the place of a leaf
    /// nearer to the source, which goes under `parent` instead: so that trees stay flat.
    fn settle(&mut self, child: u32, stripe: u16, parent: u32) {
        let depth = self.depth_for(parent, child, stripe).unwrap_or(u32::MAX);
        if self.is_inner(child, stripe)
            && depth > 0
            && let Some((leaf, above)) = self.find_leaf(child, stripe, depth)
        {
            self.trees.unlink(leaf, stripe);
            self.set_parent(child, stripe, above);
            let place = self.find_parent(leaf, stripe);
            let place = place.filter(|place| !self.is_full_source(*place)).unwrap_or(child);
            self.set_parent(leaf, stripe, place);
            return;
        }
        self.set_parent(child, stripe, parent);
    }

    fn is_inner(&self, at: u32, stripe: u16) -> bool {
        self.trees.children(at).iter().any(|(other, _)| *other == stripe)
    }

    /// A leaf of `stripe` near `child` and its parent, who is less deep than `depth`.
    fn find_leaf(&mut self, child: u32, stripe: u16, depth: u32) -> Option<(u32, u32)> {
        for scope in [Scope::Rack, Scope::Zone, Scope::Region] {
            let range = self.layout.around(child, scope);
            let mut best = None;
            for _ in 0..LOOKS {
                let leaf = self.random.within(&range);
                let Some(above) = self.trees.parent(leaf, stripe) else { continue };
                if leaf == child
                    || self.is_inner(leaf, stripe)
                    || !self.layout.same_region(above, child)
                {
                    continue;
                }
                if let Some(found) = self.depth_for(above, child, stripe) {
                    best = best.into_iter().chain([(found, leaf, above)]).min();
                }
            }
            if let Some((_, leaf, above)) = best.filter(|(found, _, _)| *found < depth) {
                return Some((leaf, above));
            }
        }
        None
    }

    /// Makes holders of what a stand-in lacks its neighbours.
    pub(super) fn help_stand_in(&mut self, stripe: u16) {
        let root = self.roots[usize::from(stripe)];
        if root == NONE {
            return;
        }
        let mut lacked: Vec<u32> = pieces_of(&self.geometry, stripe, self.trees.stripes())
            .filter(|piece| !self.holdings.has(root, *piece))
            .collect();
        let mut helpers = 0;
        for at in 0..self.layout.len() {
            if lacked.is_empty() || helpers == HELPERS {
                break;
            }
            let before = lacked.len();
            lacked.retain(|piece| !self.holdings.has(at, *piece));
            if lacked.len() < before {
                helpers += 1;
                self.neighbours.introduce(root, at, &mut self.changed);
            }
        }
    }

    /// The depth of `at` in `stripe`, if it may become the parent of `child`.
    fn depth_for(&self, at: u32, child: u32, stripe: u16) -> Option<u32> {
        if !self.is_here(at) || self.entries[at as usize].is_slow {
            return None;
        }
        // Behind a parent that was late everything is.
        let refused = &self.entries[child as usize].refused;
        let avoid = |at: u32| at == child || refused.contains(&at);
        let chain = self.trees.chain(at, stripe, avoid)?;
        let is_ground = self.entries[chain.end as usize].state == State::Complete
            || self.roots[usize::from(stripe)] == chain.end;
        is_ground.then_some(chain.depth)
    }

    fn find_parent(&mut self, child: u32, stripe: u16) -> Option<u32> {
        // A near one is taken unless it is deep; then the least deep of the region.
        let deep = 2 * self.built_depth;
        let mut best: Option<(u32, u32)> = None;
        for scope in SCOPES {
            let range = self.layout.around(child, scope);
            let start = self.random.within(&range);
            let found = self.trees.open(range, start).take(LOOKS);
            let found = found.filter_map(|at| Some((self.depth_for(at, child, stripe)?, at))).min();
            best = best.into_iter().chain(found).min();
            if let Some((depth, at)) = best
                && (depth <= deep || scope <= Scope::Region)
            {
                return Some(at);
            }
            // In a chain only the last has room, perhaps beyond a border, and a second child of
            // anybody else would halve the rate of all behind it.
            if scope <= Scope::Region
                && self.trees.stripes() > 1
                && let Some(at) = self.find_overloaded(child, stripe, scope)
            {
                return Some(at);
            }
        }
        if self.trees.stripes() == 1
            && let Some(at) = self.find_overloaded(child, stripe, Scope::Region)
        {
            return Some(at);
        }
        // Whoever is complete, though it was late, and at last the one that stands in.
        let complete =
            (0..self.layout.len()).filter(|at| self.entries[*at as usize].state == State::Complete);
        let refused = &self.entries[child as usize].refused;
        let least =
            complete.min_by_key(|at| (refused.contains(at), self.trees.children(*at).len()));
        let root = self.roots[usize::from(stripe)];
        least.or(Some(root).filter(|root| *root != NONE && *root != child))
    }

    /// A member that has no room and gets a child nevertheless: the least loaded of a few.
    fn find_overloaded(&mut self, child: u32, stripe: u16, scope: Scope) -> Option<u32> {
        let range = self.layout.around(child, scope);
        let mut best = None;
        for _ in 0..LOOKS {
            let at = self.random.within(&range);
            let entry = &self.entries[at as usize];
            if entry.is_source {
                continue;
            }
            if let Some(depth) = self.depth_for(at, child, stripe) {
                let load = self.trees.children(at).len() as f64 + 1.0;
                let load = (1e3 * load * self.shape.rate / entry.up) as u64;
                best = best.into_iter().chain([(load, depth, at)]).min();
            }
        }
        best.map(|(_, _, at)| at)
    }

    /// `at` had nothing from `parent` in time: others send what it did.
    pub(super) fn move_from(&mut self, at: u32, parent: u32) {
        let of_parent = |(stripe, child): &(u16, u32)| (*child == at).then_some(*stripe);
        let stripes: Vec<u16> = self.trees.children(parent).iter().filter_map(of_parent).collect();
        // Old news, or a parent that itself was just given another: it needs time, not blame.
        let window = self.settings.late_window_ms;
        let recent = |moved: u64| self.now_ms.saturating_sub(moved) < window;
        let is_starved = self.entries[parent as usize].moved_ms.is_some_and(recent)
            && self.entries[parent as usize].state == State::Active;
        let is_new_here = self.entries[at as usize].moved_ms.is_some_and(recent);
        if stripes.is_empty() || is_starved || is_new_here {
            return;
        }
        let refused = &mut self.entries[at as usize].refused;
        if refused.len() == REFUSED_MAX {
            refused.remove(0);
        }
        refused.push(parent);
        let accused = &self.entries[parent as usize];
        let silent_ms = self.now_ms.saturating_sub(accused.heard_ms);
        if accused.is_source || silent_ms < HEARD_WINDOWS * window {
            // It is there, so a link is full or loses packets, which passes, or it waits itself;
            // the mesh helps meanwhile. A new parent without room would only fill another link.
            for stripe in stripes {
                self.move_to_room(at, stripe, parent);
            }
            return;
        }
        for stripe in stripes {
            self.move_one(at, stripe, parent);
        }
        let (now_ms, window) = (self.now_ms, self.settings.late_window_ms);
        let accused = &mut self.entries[parent as usize];
        if now_ms.saturating_sub(accused.late.0) >= window {
            accused.late = (now_ms, vec![]);
        }
        if !accused.late.1.contains(&at) {
            accused.late.1.push(at);
        }
        if accused.late.1.len() >= self.settings.late_reporters {
            accused.late.1.clear();
            accused.barred_until_ms = now_ms.saturating_add(self.settings.barred_ms);
            self.demote(parent);
        }
    }

    /// Another parent for one stripe; if there is none, the old one stays. In a chain nobody has
    /// room but the last: there `at` takes the place of `parent`. Of trees, a source without room
    /// takes `at` only in the place of `parent`, which goes under `at`; else its children do. When
    /// all are late because links are full, one after the other would end up at the source, and
    /// each would make it slower.
    fn move_one(&mut self, at: u32, stripe: u16, parent: u32) {
        let other = self.find_parent(at, stripe).filter(|other| *other != parent);
        let Some(other) = other else { return };
        let is_below = self.trees.parent(at, stripe) == Some(parent);
        let is_chain = is_below && self.trees.stripes() == 1 && !self.trees.has_room(other);
        let above = self.trees.parent(parent, stripe);
        if let Some(above) = above.filter(|_| is_chain) {
            self.swap(at, stripe, parent, above);
        } else if self.is_full_source(other) {
            if above == Some(other) {
                self.swap(at, stripe, parent, other);
            } else if let Some(first) = self.first_below(other, at, stripe, parent) {
                self.set_parent(at, stripe, first);
            }
        } else {
            self.settle(at, stripe, other);
        }
    }

    /// Puts `at` in the place of `parent`, below `above`, and `parent` where there is room.
    fn swap(&mut self, at: u32, stripe: u16, parent: u32, above: u32) {
        self.trees.unlink(parent, stripe);
        self.set_parent(at, stripe, above);
        let place = self.find_parent(parent, stripe);
        let place = place.filter(|place| self.trees.has_room(*place)).unwrap_or(at);
        // Its new place is no excuse for being late elsewhere.
        self.trees.link(parent, stripe, place);
        self.changed.insert(parent);
    }

    /// Another parent for one stripe, if there is one that has room.
    fn move_to_room(&mut self, at: u32, stripe: u16, parent: u32) {
        let other = self.find_parent(at, stripe);
        if let Some(other) = other.filter(|other| *other != parent && self.trees.has_room(*other)) {
            self.set_parent(at, stripe, other);
        }
    }

    fn is_full_source(&self, at: u32) -> bool {
        self.entries[at as usize].is_source && !self.trees.has_room(at)
    }

    /// A child of `source` that may be the parent of `at` instead of `parent`.
    fn first_below(&self, source: u32, at: u32, stripe: u16, parent: u32) -> Option<u32> {
        let children = self.trees.children(source).iter();
        let of_stripe = children.filter(|(other, child)| *other == stripe && *child != parent);
        let fits = of_stripe.filter(|(_, child)| self.depth_for(*child, at, stripe).is_some());
        fits.map(|(_, child)| *child).min_by_key(|child| self.trees.children(*child).len())
    }

    /// Makes `at` a leaf in every stripe.
    pub(super) fn demote(&mut self, at: u32) {
        self.entries[at as usize].is_slow = true;
        self.trees.set_budget(at, 0);
        self.note_mended(self.trees.children(at).len());
        if self.is_worn() {
            // The plan of the whole comes with this tick.
            self.mended_ms = 0;
            return;
        }
        for (stripe, child) in self.trees.children(at).to_vec() {
            self.move_one(child, stripe, at);
        }
    }

    /// Near the end: who is left gets its stripes from complete members near it, a few each.
    pub(super) fn serve_stragglers(&mut self) {
        let count = |state| {
            let of = |entry: &&super::Entry| entry.state == state && !entry.is_source;
            self.entries.iter().filter(of).count()
        };
        let (active, complete) = (count(State::Active), count(State::Complete));
        let share = complete as f64 / (active + complete).max(1) as f64;
        if self.gear != Gear::Planned || active == 0 || share < self.settings.straggler_share {
            return;
        }
        let left = (0..self.layout.len()).filter(|at| {
            let entry = &self.entries[*at as usize];
            entry.state == State::Active && !entry.is_dedicated
        });
        for at in left.collect::<Vec<_>>() {
            self.entries[at as usize].is_dedicated = true;
            let helpers = self.find_helpers(at);
            for (stripe, helper) in (0..self.trees.stripes()).zip(helpers.iter().cycle()) {
                if self.trees.parent(at, stripe) != Some(*helper) {
                    self.set_parent(at, stripe, *helper);
                }
            }
        }
    }

    /// Complete targets near `at`, those with the fewest children first.
    fn find_helpers(&mut self, at: u32) -> Vec<u32> {
        let most = self.settings.straggler_parents;
        let mut helpers: Vec<u32> = vec![];
        for scope in SCOPES {
            let range = self.layout.around(at, scope);
            let start = self.random.within(&range);
            let fits = |other: &u32| {
                let entry = &self.entries[*other as usize];
                let can = entry.state == State::Complete && !entry.is_slow && !entry.is_source;
                can && !self.entries[at as usize].refused.contains(other)
                    && !helpers.contains(other)
            };
            let mut found: Vec<u32> =
                (start..range.end).chain(range.start..start).filter(fits).take(LOOKS).collect();
            found.sort_by_key(|other| self.trees.children(*other).len());
            found.truncate(most - helpers.len());
            helpers.extend(found);
            // One across a border would bring over it again what is here.
            let is_enough = scope <= Scope::Region && !helpers.is_empty();
            if helpers.len() >= most || is_enough {
                break;
            }
        }
        helpers
    }
}
