//! Builds the trees of all stripes at once.
//!
//! Hosts form groups by place: racks in zones in regions. A tree enters each group once and leaves
//! it as often as the group is to feed others, so a group is to its siblings what a host is: an
//! inner node of few stripes with as many children as it has uploads to spare, a leaf of the
//! others. Two passes follow from that. [`Builder::allot`] goes down and says how many children
//! each group and at last each host has in each stripe: always the stripe that lacks most to the
//! one that has most to give, whole stripes where possible. [`Builder::grow`] goes up and joins
//! what was allotted to trees, inner nodes first and each at the shallowest free place.
//!
//! A rack or zone that cannot feed its own hosts hands its slowest ones up; a region never does,
//! because its border is what must not be crossed twice: there the hosts are overloaded instead,
//! in proportion to their rates.

use super::layout::{Layout, Scope};
use crate::core::place::Place;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What trees are built from.
pub(super) struct Ground<'a> {
    pub layout: &'a Layout,
    /// Hosts that need the file, in order of position.
    pub hosts: &'a [u32],
    /// Children that each position may have in all stripes.
    pub children: &'a [u32],
    /// The source of each stripe, and how many children it may have there beyond the first.
    pub roots: &'a [(u32, u32)],
}

/// (child, stripe, parent).
pub(super) type Link = (u32, u16, u32);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Host(u32),
    Group(usize),
}

struct Group {
    nodes: Vec<Node>,
    scope: Scope,
    place: Place,
    /// Children outside that it can have in all stripes; below zero only for a region.
    spare: i64,
    /// Children outside that it has in each stripe.
    need: Vec<u32>,
}

struct Builder<'a> {
    ground: &'a Ground<'a>,
    stripes: usize,
    groups: Vec<Group>,
    /// Per position: stripe and children there.
    allotted: Vec<Vec<(usize, u32)>>,
    /// Per stripe: the nodes from the top to the one that the source feeds.
    paths: Vec<Vec<Node>>,
    /// Per stripe: children of the source beyond the first.
    extra: Vec<u32>,
}

/// A group's tree of one stripe: its first node, where more can hang, and its height.
struct Grown {
    entry: u32,
    free: Vec<(u32, u32)>,
    height: u32,
}

/// All links of all stripes. Every host has a parent in every stripe.
pub(super) fn build(ground: &Ground<'_>) -> Vec<Link> {
    let stripes = ground.roots.len();
    let mut builder = Builder {
        ground,
        stripes,
        groups: vec![],
        allotted: vec![vec![]; ground.layout.len() as usize],
        paths: vec![],
        extra: vec![0; stripes],
    };
    let Some(top) = builder.group(ground.hosts, Scope::All) else { return vec![] };
    let mut links = Vec::with_capacity(stripes * ground.hosts.len());
    for (root, _) in ground.roots {
        let path = builder.path(top, ground.layout.place(*root));
        builder.paths.push(path);
    }
    builder.allot(top, &vec![0; stripes]);
    for stripe in 0..stripes {
        builder.grow(top, stripe, &mut links);
    }
    links
}

fn inner(scope: Scope) -> Option<Scope> {
    match scope {
        Scope::All => Some(Scope::Region),
        Scope::Region => Some(Scope::Zone),
        Scope::Zone => Some(Scope::Rack),
        Scope::Rack => None,
    }
}

fn same(one: Place, other: Place, scope: Scope) -> bool {
    match scope {
        Scope::All => true,
        Scope::Region => one.region == other.region,
        Scope::Zone => (one.region, one.zone) == (other.region, other.zone),
        Scope::Rack => one == other,
    }
}

impl Builder<'_> {
    fn spare(&self, node: Node) -> i64 {
        match node {
            Node::Host(at) => self.ground.children[at as usize].into(),
            Node::Group(group) => self.groups[group].spare.max(0),
        }
    }

    /// The group of `hosts`, which share a `scope`; a group of one node is that node.
    fn group(&mut self, hosts: &[u32], scope: Scope) -> Option<Node> {
        let layout = self.ground.layout;
        let place = layout.place(*hosts.first()?);
        let mut nodes = vec![];
        if let Some(below) = inner(scope) {
            let parts = hosts.chunk_by(|a, b| same(layout.place(*a), layout.place(*b), below));
            for part in parts {
                let Some(node) = self.group(part, below) else { continue };
                nodes.push(node);
                if below > Scope::Region {
                    self.hand_up(node, &mut nodes);
                }
            }
        } else {
            nodes.extend(hosts.iter().map(|at| Node::Host(*at)));
        }
        if let [only] = nodes[..] {
            return Some(only);
        }
        let spare = nodes.iter().map(|node| self.spare(*node)).sum::<i64>()
            - (self.stripes * (nodes.len() - 1)) as i64;
        self.groups.push(Group { nodes, scope, place, spare, need: vec![] });
        Some(Node::Group(self.groups.len() - 1))
    }

    /// Moves nodes of a group that cannot feed them all to `above`, the slowest first.
    fn hand_up(&mut self, node: Node, above: &mut Vec<Node>) {
        let Node::Group(group) = node else { return };
        if self.groups[group].spare >= 0 {
            return;
        }
        let mut nodes = std::mem::take(&mut self.groups[group].nodes);
        nodes.sort_by_key(|node| Reverse(self.spare(*node)));
        while self.groups[group].spare < 0 && nodes.len() > 1 {
            let Some(slowest) = nodes.pop() else { break };
            self.groups[group].spare += self.stripes as i64 - self.spare(slowest);
            above.push(slowest);
        }
        self.groups[group].nodes = nodes;
    }

    /// The nodes from `top` down to the smallest that `place` belongs to and that can pass on
    /// what it gets first.
    fn path(&self, top: Node, place: Place) -> Vec<Node> {
        let mut path = vec![top];
        while let Some(Node::Group(group)) = path.last() {
            let group = &self.groups[*group];
            let Some(below) = inner(group.scope) else { break };
            let fits = |node: &&Node| match **node {
                // Below a region a single host may be one that its rack handed up.
                Node::Host(at) => {
                    below == Scope::Region && same(self.ground.layout.place(at), place, below)
                }
                Node::Group(at) => {
                    let can =
                        below == Scope::Region || self.groups[at].spare >= self.stripes as i64;
                    can && same(self.groups[at].place, place, below)
                }
            };
            let Some(next) = group.nodes.iter().find(fits) else { break };
            path.push(*next);
        }
        path
    }

    /// Whether `node` is or holds what the source of `stripe` feeds.
    fn is_on_path(&self, node: Node, stripe: usize) -> bool {
        self.paths[stripe].contains(&node)
    }

    fn is_fed(&self, node: Node, stripe: usize) -> bool {
        self.paths[stripe].last() == Some(&node)
    }

    /// Gives `node` children outside of it: `need` in each stripe.
    fn allot(&mut self, node: Node, need: &[u32]) {
        let group = match node {
            Node::Host(at) => {
                let some = need.iter().copied().enumerate().filter(|(_, count)| *count > 0);
                self.allotted[at as usize] = some.collect();
                return;
            }
            Node::Group(group) => group,
        };
        self.groups[group].need = need.to_vec();
        let nodes = self.groups[group].nodes.clone();
        let inside = nodes.len() as u32 - 1;
        let mut demand: Vec<u32> = need.iter().map(|need| need + inside).collect();
        let mut spare: Vec<i64> = nodes.iter().map(|node| self.spare(*node)).collect();
        self.draw_on_sources(group, &mut demand, spare.iter().sum());
        let mut given = vec![vec![0; self.stripes]; nodes.len()];
        self.lean_on_sources(group, &mut demand, &mut given, spare.iter().sum());
        let able: Vec<i64> =
            spare.iter().zip(&given).map(|(spare, given)| spare + sum(given)).collect();
        spread(&mut spare, &demand);
        fit(&mut spare, &demand);

        // A tree goes on from where it enters: from the part that the source is in.
        for (node, (given, spare)) in nodes.iter().zip(given.iter_mut().zip(&mut spare)) {
            for stripe in 0..self.stripes {
                if inside > 0 && demand[stripe] > 0 && self.is_on_path(*node, stripe) {
                    (given[stripe], demand[stripe]) = (given[stripe] + 1, demand[stripe] - 1);
                    *spare -= 1;
                }
            }
        }
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by_key(|at| Reverse(spare[*at]));
        let mut left = sum(&demand) as u64;
        // What the entries above took beyond their share is for those that can do more than theirs,
        // and for the first only where nobody can.
        for round in 0..3 {
            for at in &order {
                let mut spare = match round {
                    0 => spare[*at].max(0) as u64,
                    1 => (able[*at] - sum(&given[*at])).max(0) as u64,
                    _ => left,
                };
                while spare > 0 && left > 0 {
                    let Some(stripe) = (0..self.stripes).max_by_key(|at| demand[*at]) else {
                        break;
                    };
                    let count = u64::from(demand[stripe]).min(spare) as u32;
                    given[*at][stripe] += count;
                    demand[stripe] -= count;
                    spare -= u64::from(count);
                    left -= u64::from(count);
                }
            }
        }
        for (node, given) in nodes.into_iter().zip(&given) {
            self.allot(node, given);
        }
    }

    /// Lets the sources that feed `group` send more than once what its nodes cannot; but not over
    /// the border of a single region.
    fn draw_on_sources(&mut self, group: usize, demand: &mut [u32], spare: i64) {
        let wanted = sum(demand);
        let mut lack = (wanted - spare).max(0);
        let may = |stripe: &usize| {
            let Group { scope, place, .. } = self.groups[group];
            let source = self.ground.layout.place(self.ground.roots[*stripe].0);
            self.is_fed(Node::Group(group), *stripe)
                && (scope == Scope::All || place.region == source.region)
        };
        let fed: Vec<usize> = (0..self.stripes).filter(may).collect();
        let mut progress = true;
        while lack > 0 && progress {
            progress = false;
            for stripe in &fed {
                let (_, most) = self.ground.roots[*stripe];
                if lack > 0 && demand[*stripe] > 0 && self.extra[*stripe] < most {
                    self.extra[*stripe] += 1;
                    demand[*stripe] -= 1;
                    lack -= 1;
                    progress = true;
                }
            }
        }
    }

    /// Has the part that a source is in feed more in the source's own stripe than its hosts can,
    /// where the hosts of all parts together cannot: the source will have those children.
    fn lean_on_sources(
        &self,
        group: usize,
        demand: &mut [u32],
        given: &mut [Vec<u32>],
        spare: i64,
    ) {
        let Group { nodes, scope, .. } = &self.groups[group];
        if *scope == Scope::All {
            return;
        }
        let wanted = sum(demand);
        let mut lack = (wanted - spare).max(0) as u32;
        for stripe in 0..self.stripes {
            let holds = |node: &Node| match node {
                Node::Group(_) => self.is_on_path(*node, stripe),
                Node::Host(_) => false,
            };
            let Some(at) = nodes.iter().position(holds) else { continue };
            let (_, most) = self.ground.roots[stripe];
            let count = most.min(demand[stripe]).min(lack);
            given[at][stripe] += count;
            demand[stripe] -= count;
            lack -= count;
        }
    }

    /// Joins the tree of `stripe` within `node`.
    fn grow(&self, node: Node, stripe: usize, links: &mut Vec<Link>) -> Grown {
        let is_fed = self.is_fed(node, stripe);
        let group = match node {
            Node::Host(at) => {
                let here = self.allotted[at as usize].iter().find(|(other, _)| *other == stripe);
                let count = here.map_or(0, |(_, count)| *count as usize);
                let mut entry = at;
                if is_fed {
                    entry = self.ground.roots[stripe].0;
                    links.push((at, stripe as u16, entry));
                }
                let depth = u32::from(is_fed);
                return Grown { entry, free: vec![(depth, at); count], height: depth };
            }
            Node::Group(group) => &self.groups[group],
        };
        let mut parts: Vec<(bool, Grown)> = (group.nodes.iter())
            .map(|node| (self.is_on_path(*node, stripe), self.grow(*node, stripe, links)))
            .collect();
        parts.sort_by_key(|(first, part)| Reverse((*first, part.free.len(), part.height)));

        let mut free = BinaryHeap::new();
        let mut tree = Grown { entry: 0, free: vec![], height: 0 };
        let (inner, leaves): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|(_, part)| part).partition(|part| !part.free.is_empty());
        let mut is_first = !is_fed;
        if is_fed {
            let root = self.ground.roots[stripe].0;
            tree.entry = root;
            free.extend((0..=self.extra[stripe]).map(|_| Reverse((0, root))));
        }
        // What hangs outside carries more hosts than what is inside: it gets the shallowest places
        // as soon as one is left over for what is to come.
        let need = group.need[stripe] as usize;
        let mut outside = vec![];
        let mut inner = inner.into_iter();
        loop {
            let kept = usize::from(inner.len() > 0);
            while outside.len() < need && free.len() > kept {
                outside.extend(free.pop().map(|Reverse(place)| place));
            }
            let Some(part) = inner.next() else { break };
            let mut base = 0;
            if std::mem::take(&mut is_first) {
                tree.entry = part.entry;
            } else if let Some(Reverse((depth, parent))) = free.pop() {
                links.push((part.entry, stripe as u16, parent));
                base = depth + 1;
            }
            tree.height = tree.height.max(base + part.height);
            free.extend(part.free.into_iter().map(|(depth, at)| Reverse((base + depth, at))));
        }
        let places = free.into_sorted_vec().into_iter().rev().map(|Reverse(place)| place);
        let mut leaves = leaves.into_iter();
        if is_first && let Some(only) = leaves.next() {
            (tree.entry, tree.height) = (only.entry, only.height);
        }
        for (part, (depth, parent)) in leaves.zip(places) {
            links.push((part.entry, stripe as u16, parent));
            tree.height = tree.height.max(depth + 1 + part.height);
        }
        tree.free = outside;
        tree
    }
}

fn sum(counts: &[u32]) -> i64 {
    counts.iter().map(|count| i64::from(*count)).sum()
}

/// Lowers `spare` where that lets each stripe have an inner node of its own: a node at the top of two
/// stripes has one connection for both, which gets no more of its parent's rate than any other.
fn spread(spare: &mut [i64], demand: &[u32]) {
    let wanted = sum(demand);
    let parts = demand.len().min(spare.len()).max(1) as i64;
    let most = (wanted + parts - 1) / parts;
    if spare.iter().map(|spare| *spare.min(&most)).sum::<i64>() >= wanted {
        spare.iter_mut().for_each(|spare| *spare = most.min(*spare));
    }
}

/// Raises `spare` in proportion until it meets `demand`, and no further: whoever gets more children
/// than its rate allows slows down all below it.
fn fit(spare: &mut [i64], demand: &[u32]) {
    let wanted = sum(demand);
    let mut sum: i64 = spare.iter().sum();
    if sum == 0 {
        spare.fill(1);
        sum = spare.len() as i64;
    }
    let lack = (wanted - sum).max(0);
    let mut rest = lack;
    for spare in spare.iter_mut() {
        let more = *spare * lack / sum;
        (*spare, rest) = (*spare + more, rest - more);
    }
    let mut order: Vec<usize> = (0..spare.len()).collect();
    order.sort_by_key(|at| Reverse(spare[*at]));
    order.into_iter().take(rest as usize).for_each(|at| spare[at] += 1);
}
