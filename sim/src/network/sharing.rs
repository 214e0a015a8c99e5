//! Which flow gets how much of which link: max-min fair shares, kept up to date change by change.
//!
//! Every link has a *level*, the most that one flow gets there; a flow's rate is the least level
//! on its path (or its own ceiling). A link's level follows from what its flows are held to
//! elsewhere: those below the level keep their rate, the others divide the rest. When every link
//! agrees with its flows, the rates are the max-min fair ones (Bertsekas & Gallager, Data Networks,
//! 6.5.2; the asynchronous iteration is Charny's). So a change is handled by recomputing the links
//! that it touched, then those whose flows changed rate, until nothing moves by more than
//! a tolerance: the cost follows how far a change is felt and not the size of the network.

use std::collections::VecDeque;

/// Links of a path at most: host, rack and border on either side.
pub const PATH_MAX: usize = 6;

/// Rates within this share of the fair ones are left alone, which is what ends the spreading of a
/// change. A link may therefore be over or under its capacity by as much for a moment. With a
/// hundredth of this a change is felt in the whole network, and costs that.
pub const TOLERANCE: f64 = 1e-2;

/// A link's number.
pub type LinkId = u32;

/// A flow's number.
pub type FlowId = u32;

#[derive(Debug)]
struct Link {
    capacity: f64,
    level: f64,
    /// Sum of the rates of its flows.
    load: f64,
    flows: Vec<FlowId>,
    is_dirty: bool,
}

#[derive(Debug, Clone)]
struct Route {
    path: [LinkId; PATH_MAX],
    /// Where this flow stands in each link's list.
    place: [u32; PATH_MAX],
    len: u8,
    is_active: bool,
    is_touched: bool,
    /// What the flow cannot exceed for reasons of its own.
    ceiling: f64,
    rate: f64,
}

impl Route {
    fn links(&self) -> &[LinkId] {
        &self.path[..usize::from(self.len)]
    }
}

/// Links, flows and their rates. Rates and capacities are bytes per second.
#[derive(Debug)]
pub struct Sharing {
    tolerance: f64,
    links: Vec<Link>,
    flows: Vec<Route>,
    dirty: VecDeque<LinkId>,
    touched: Vec<FlowId>,
    limits: Vec<f64>,
    /// Link computations so far, for judging the cost.
    computations: u64,
}

impl Sharing {
    /// No links and no flows; rates are kept within `tolerance` of the fair ones, see [`TOLERANCE`].
    pub fn new(tolerance: f64) -> Self {
        Self {
            tolerance,
            links: vec![],
            flows: vec![],
            dirty: VecDeque::new(),
            touched: vec![],
            limits: vec![],
            computations: 0,
        }
    }

    /// Adds a link.
    pub fn add_link(&mut self, capacity: f64) -> LinkId {
        let level = f64::INFINITY;
        self.links.push(Link { capacity, level, load: 0.0, flows: vec![], is_dirty: false });
        (self.links.len() - 1) as LinkId
    }

    /// Adds an inactive flow over `path`, at most [`PATH_MAX`] different links.
    pub fn add_flow(&mut self, path: &[LinkId], ceiling: f64) -> FlowId {
        let mut links = [0; PATH_MAX];
        links[..path.len()].copy_from_slice(path);
        self.flows.push(Route {
            path: links,
            place: [0; PATH_MAX],
            len: path.len() as u8,
            is_active: false,
            is_touched: false,
            ceiling,
            rate: 0.0,
        });
        (self.flows.len() - 1) as FlowId
    }

    /// What `flow` gets at present, as of the last [`Sharing::settle`].
    pub fn rate(&self, flow: FlowId) -> f64 {
        self.flows[flow as usize].rate
    }

    /// Whether `flow` takes part.
    pub fn is_active(&self, flow: FlowId) -> bool {
        self.flows[flow as usize].is_active
    }

    /// The links of `flow`.
    pub fn path(&self, flow: FlowId) -> &[LinkId] {
        self.flows[flow as usize].links()
    }

    /// Capacity of `link`.
    pub fn capacity(&self, link: LinkId) -> f64 {
        self.links[link as usize].capacity
    }

    /// What flows over `link` at present.
    pub fn load(&self, link: LinkId) -> f64 {
        self.links[link as usize].load
    }

    /// How many links were computed so far.
    pub fn computations(&self) -> u64 {
        self.computations
    }

    /// Changes a link's capacity; 0 stops its flows.
    pub fn set_capacity(&mut self, link: LinkId, capacity: f64) {
        self.links[link as usize].capacity = capacity;
        // A level may have stood above the new capacity: every flow is to be looked at again.
        self.links[link as usize].level = capacity;
        self.mark(link);
        self.retune_all(link);
    }

    /// Lets a flow take part or not.
    pub fn set_active(&mut self, flow: FlowId, active: bool) {
        if self.flows[flow as usize].is_active == active {
            return;
        }
        self.flows[flow as usize].is_active = active;
        for at in 0..usize::from(self.flows[flow as usize].len) {
            let link = self.flows[flow as usize].path[at];
            if active {
                let flows = &mut self.links[link as usize].flows;
                self.flows[flow as usize].place[at] = flows.len() as u32;
                flows.push(flow);
            } else {
                self.leave(flow, at, link);
            }
        }
        if active {
            self.retune(flow, None);
        } else {
            self.flows[flow as usize].rate = 0.0;
        }
    }

    fn leave(&mut self, flow: FlowId, at: usize, link: LinkId) {
        let route = &self.flows[flow as usize];
        let (place, rate) = (route.place[at], route.rate);
        let state = &mut self.links[link as usize];
        state.flows.swap_remove(place as usize);
        state.load = if state.flows.is_empty() { 0.0 } else { state.load - rate };
        let is_full = state.level.is_finite();
        if let Some(moved) = state.flows.get(place as usize).copied() {
            let moved = &mut self.flows[moved as usize];
            let at = moved.links().iter().position(|of| *of == link).unwrap_or_default();
            moved.place[at] = place;
        }
        if is_full {
            self.mark(link);
        }
    }

    fn mark(&mut self, link: LinkId) {
        let state = &mut self.links[link as usize];
        if !state.is_dirty {
            state.is_dirty = true;
            self.dirty.push_back(link);
        }
    }

    /// The rate that the levels of `flow`'s path allow; a flow alone gets its narrowest link.
    fn allowed(&self, route: &Route, but: Option<LinkId>) -> f64 {
        let others = route.links().iter().filter(|link| Some(**link) != but);
        others.fold(route.ceiling, |least, link| {
            let link = &self.links[*link as usize];
            least.min(link.level).min(link.capacity)
        })
    }

    /// Brings a flow's rate to what is allowed and marks the links that this concerns, except
    /// `by`, whose new level is the cause.
    fn retune(&mut self, flow: FlowId, by: Option<LinkId>) {
        let route = &self.flows[flow as usize];
        let rate = self.allowed(route, None);
        let change = rate - route.rate;
        if change.abs() <= self.tolerance * rate.max(route.rate) {
            return;
        }
        for at in 0..usize::from(route.len) {
            let link = self.flows[flow as usize].path[at];
            let state = &mut self.links[link as usize];
            state.load += change;
            if Some(link) != by && (state.level.is_finite() || state.load > state.capacity) {
                self.mark(link);
            }
        }
        let route = &mut self.flows[flow as usize];
        route.rate = rate;
        if !route.is_touched {
            route.is_touched = true;
            self.touched.push(flow);
        }
    }

    fn retune_all(&mut self, link: LinkId) {
        for at in 0..self.links[link as usize].flows.len() {
            let flow = self.links[link as usize].flows[at];
            self.retune(flow, Some(link));
        }
    }

    /// The level at which a link's flows fill it, or infinity if they cannot.
    fn compute(&mut self, link: LinkId) -> f64 {
        self.computations += 1;
        let state = &self.links[link as usize];
        let mut limits = std::mem::take(&mut self.limits);
        limits.clear();
        let routes = state.flows.iter().map(|flow| &self.flows[*flow as usize]);
        limits.extend(routes.map(|route| self.allowed(route, Some(link))));
        let level = fill(state.capacity, &limits);
        self.limits = limits;
        level
    }

    /// Brings all rates up to date; calls `changed` for each flow whose rate may be another now.
    pub fn settle(&mut self, mut changed: impl FnMut(FlowId, f64)) {
        // Each turn around the queue fixes at least one more level for good, but there may be very
        // many levels: then computing all from nothing is cheaper.
        let mut budget = 1000 + 10 * self.links.len();
        while let Some(link) = self.dirty.pop_front() {
            self.links[link as usize].is_dirty = false;
            self.links[link as usize].level = self.compute(link);
            self.retune_all(link);
            budget -= 1;
            if budget == 0 {
                self.fill_exactly();
                break;
            }
        }
        for flow in std::mem::take(&mut self.touched) {
            let route = &mut self.flows[flow as usize];
            route.is_touched = false;
            changed(flow, route.rate);
        }
    }

    /// Max-min rates from nothing by progressive filling: the definition, and the way out when the
    /// iteration does not end.
    fn fill_exactly(&mut self) {
        let rates = self.exact_rates();
        for link in &mut self.links {
            (link.load, link.level, link.is_dirty) = (0.0, f64::INFINITY, false);
        }
        self.dirty.clear();
        for (flow, rate) in rates {
            let route = &mut self.flows[flow as usize];
            route.rate = rate;
            if !route.is_touched {
                route.is_touched = true;
                self.touched.push(flow);
            }
            for link in route.links().to_vec() {
                let link = &mut self.links[link as usize];
                link.load += rate;
            }
        }
        for link in &mut self.links {
            if link.load >= link.capacity * (1.0 - 1e-9) {
                let rates = link.flows.iter().map(|flow| self.flows[*flow as usize].rate);
                link.level = rates.fold(0.0, f64::max);
            }
        }
    }

    /// The rates of all active flows, computed from nothing.
    pub fn exact_rates(&self) -> Vec<(FlowId, f64)> {
        let mut rates: Vec<Option<f64>> = vec![None; self.flows.len()];
        let active = (0..self.flows.len()).filter(|flow| self.flows[*flow].is_active);
        let active: Vec<usize> = active.collect();
        let mut open: Vec<usize> = active.clone();
        while !open.is_empty() {
            // What each link would give to each flow that is still open.
            let share = |link: &Link| {
                let (mut count, mut rest) = (0u32, link.capacity);
                for flow in &link.flows {
                    match rates[*flow as usize] {
                        Some(rate) => rest -= rate,
                        None => count += 1,
                    }
                }
                if count == 0 { f64::INFINITY } else { rest.max(0.0) / f64::from(count) }
            };
            let shares: Vec<f64> = self.links.iter().map(share).collect();
            let of = |flow: usize| {
                let route = &self.flows[flow];
                let links = route.links().iter().map(|link| shares[*link as usize]);
                links.fold(route.ceiling, f64::min)
            };
            let least = open.iter().map(|flow| of(*flow)).fold(f64::INFINITY, f64::min);
            let (fixed, rest): (Vec<usize>, Vec<usize>) =
                open.iter().partition(|flow| of(**flow) <= least * (1.0 + 1e-12));
            fixed.iter().for_each(|flow| rates[*flow] = Some(least));
            open = rest;
        }
        active.iter().map(|flow| (*flow as FlowId, rates[*flow].unwrap_or_default())).collect()
    }
}

/// The level at which flows with these `limits` fill `capacity`; infinity if they cannot.
fn fill(capacity: f64, limits: &[f64]) -> f64 {
    let (mut held, mut level) = (0, capacity / limits.len().max(1) as f64);
    loop {
        // Flows below the level keep their rate, and the level rises over what they leave.
        let below = limits.iter().filter(|limit| **limit < level);
        let (sum, count) = below.fold((0.0, 0), |(sum, count), limit| (sum + limit, count + 1));
        if count == limits.len() {
            return f64::INFINITY;
        }
        // The level rises in theory; a sum that is rounded may let it fall by a little, for ever.
        if count <= held {
            return level;
        }
        held = count;
        level = (capacity - sum) / (limits.len() - count) as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Near enough to exact that hand-computed cases show.
    const FINE: f64 = 1e-5;

    fn network(capacities: &[f64], paths: &[&[LinkId]]) -> Sharing {
        let mut sharing = Sharing::new(FINE);
        capacities.iter().for_each(|capacity| {
            sharing.add_link(*capacity);
        });
        for path in paths {
            let flow = sharing.add_flow(path, f64::INFINITY);
            sharing.set_active(flow, true);
        }
        sharing.settle(|_, _| {});
        sharing
    }

    fn rates(sharing: &Sharing) -> Vec<f64> {
        (0..sharing.flows.len()).map(|flow| sharing.rate(flow as FlowId)).collect()
    }

    fn is_close(left: &[f64], right: &[f64]) -> bool {
        let close = |(l, r): (&f64, &f64)| (l - r).abs() <= 100.0 * FINE * l.max(*r);
        left.len() == right.len() && left.iter().zip(right).all(close)
    }

    #[test]
    fn shares_are_those_computed_by_hand() {
        // One link, two flows; one of them is held to 2 by its second link.
        assert!(is_close(&rates(&network(&[10.0, 2.0], &[&[0], &[0, 1]])), &[8.0, 2.0]));
        // The textbook's line of links: the long flow shares each link with a short one.
        let line = network(&[1.0, 1.0, 2.0], &[&[0, 1, 2], &[0], &[1], &[2]]);
        assert!(is_close(&rates(&line), &[0.5, 0.5, 0.5, 1.5]), "{:?}", rates(&line));
        // A source of 4 with four receivers, of whom one takes only 0.4.
        let star = network(&[4.0, 9.0, 9.0, 9.0, 0.4], &[&[0, 1], &[0, 2], &[0, 3], &[0, 4]]);
        assert!(is_close(&rates(&star), &[1.2, 1.2, 1.2, 0.4]), "{:?}", rates(&star));
        // A ceiling of its own.
        let mut capped = network(&[10.0], &[&[0]]);
        let flow = capped.add_flow(&[0], 3.0);
        capped.set_active(flow, true);
        capped.settle(|_, _| {});
        assert!(is_close(&rates(&capped), &[7.0, 3.0]));
    }

    #[test]
    fn rounding_does_not_keep_the_level_from_settling() {
        // At the level 13.185875429932207 one limit is below, at the one that follows two are.
        let limits =
            [26.371750859864413, 13.185875429932207, 17.581167239909608, 13.185875429932205];
        let level = fill(52.743501719728826, &limits);
        assert!((level - 13.1858754).abs() < 1e-6, "{level}");
    }

    #[test]
    fn what_is_left_and_what_is_cut_goes_to_the_others() {
        let mut sharing = network(&[12.0, 4.0], &[&[0], &[0], &[0, 1]]);
        assert!(is_close(&rates(&sharing), &[4.0, 4.0, 4.0]));
        sharing.set_capacity(1, 1.0);
        sharing.settle(|_, _| {});
        assert!(is_close(&rates(&sharing), &[5.5, 5.5, 1.0]));
        sharing.set_active(0, false);
        sharing.settle(|_, _| {});
        assert!(is_close(&rates(&sharing), &[0.0, 11.0, 1.0]));
        sharing.set_capacity(0, 0.0);
        sharing.settle(|_, _| {});
        assert_eq!(rates(&sharing), [0.0; 3]);
        sharing.set_capacity(0, 12.0);
        sharing.settle(|_, _| {});
        assert!(is_close(&rates(&sharing), &[0.0, 11.0, 1.0]));
    }

    /// Random hosts behind random racks and borders, with flows that come and go and capacities
    /// that change: after each change the rates are those of progressive filling, no link is over
    /// its capacity, and each flow has a full link or its ceiling (work is conserved).
    #[test]
    fn changes_lead_to_the_exact_rates() {
        for (seed, tolerance) in (0..20).map(|seed| (seed, FINE)).chain([(20, TOLERANCE)]) {
            let mut random = Random::new(seed);
            let mut sharing = Sharing::new(tolerance);
            let (hosts, groups) = (40, 5);
            for _ in 0..2 * hosts + 2 * groups {
                sharing.add_link(1.0 + random.below(1000) as f64);
            }
            let mut flows = vec![];
            for _ in 0..300 {
                let (from, to) = (random.below(hosts), random.below(hosts));
                let mut path = vec![from as LinkId, (hosts + to) as LinkId];
                let (out, into) = (from % groups, to % groups);
                if out != into {
                    path.push((2 * hosts + out) as LinkId);
                    path.push((2 * hosts + groups + into) as LinkId);
                }
                let ceiling = if random.below(4) == 0 { 20.0 } else { f64::INFINITY };
                flows.push(sharing.add_flow(&path, ceiling));
            }
            for step in 0..200 {
                for _ in 0..=random.below(4) {
                    let flow = flows[random.below(300) as usize];
                    sharing.set_active(flow, !sharing.is_active(flow));
                }
                if step % 10 == 0 {
                    let link = random.below(2 * hosts + 2 * groups) as LinkId;
                    sharing.set_capacity(link, 1.0 + random.below(1000) as f64);
                }
                sharing.settle(|_, _| {});
                let exact = sharing.exact_rates();
                let ours: Vec<f64> = exact.iter().map(|(flow, _)| sharing.rate(*flow)).collect();
                let exact: Vec<f64> = exact.into_iter().map(|(_, rate)| rate).collect();
                if tolerance == FINE {
                    assert!(
                        is_close(&ours, &exact),
                        "seed {seed}, step {step}\n{ours:?}\n{exact:?}"
                    );
                }
                check(&sharing);
            }
        }
    }

    fn check(sharing: &Sharing) {
        let slack = (2.0 * sharing.tolerance).max(100.0 * FINE);
        let full = |link: &Link| {
            let sum: f64 = link.flows.iter().map(|flow| sharing.rate(*flow)).sum();
            assert!((sum - link.load).abs() <= 1e-6 * (1.0 + sum), "{sum} {}", link.load);
            assert!(sum <= link.capacity * (1.0 + slack), "{sum} {}", link.capacity);
            sum >= link.capacity * (1.0 - slack)
        };
        let full: Vec<bool> = sharing.links.iter().map(full).collect();
        for route in sharing.flows.iter().filter(|route| route.is_active) {
            let held = route.rate >= route.ceiling * (1.0 - 10.0 * FINE);
            assert!(held || route.links().iter().any(|link| full[*link as usize]));
        }
    }
}
