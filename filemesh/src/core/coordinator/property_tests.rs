//! Plans of random fleets, before and after random events. A failing case prints the fleet's seed.

use super::layout::Random;
use super::trees::NONE;
use super::*;
use crate::core::bitfield::Bitfield;
use crate::core::place::{Place, Rates};
use crate::core::plan::NEIGHBOURS_MAX;
use proptest::prelude::*;
use std::collections::BTreeMap;

const MBIT: u64 = 125_000;

/// A fleet drawn from a seed: 1 to 3 sources, up to `most` targets, some places, some rates.
fn fleet(seed: u64, most: u32, sources: u32, uneven: bool) -> Spec {
    let mut random = Random(seed);
    let hosts = 1 + random.below(most);
    let (regions, zones) = (1 + random.below(4), 1 + random.below(3));
    let racks = 1 + random.below(1 + hosts / 8);
    let base = MBIT * u64::from(8 + random.below(1_000));
    let one = |member: u32, random: &mut Random| {
        let place = Place {
            region: random.below(regions) as u16,
            zone: random.below(zones) as u16,
            rack: random.below(racks),
        };
        let rate = |random: &mut Random| match random.below(10) {
            0 if uneven => None,
            1 if uneven => Some(base / 5),
            2..=5 if uneven => Some(base / 100 * u64::from(70 + random.below(60))),
            _ => Some(base),
        };
        let rates = Rates { up_bytes_s: rate(random), down_bytes_s: rate(random) };
        Participant { member, place, rates }
    };
    let sources = (0..sources).map(|member| one(member, &mut random)).collect::<Vec<_>>();
    let first = sources.len() as u32;
    let targets = (first..first + hosts).map(|member| one(member, &mut random)).collect();
    let geometry = Geometry::new(u64::from(1 + random.below(300)) * 65_536 - 7, 65_536).unwrap();
    Spec { geometry, sources, targets, gear: Gear::Planned }
}

fn gathered(spec: &Spec, seed: u64) -> (Coordinator, Vec<Output>) {
    let mut coordinator = Coordinator::new(spec.clone(), Settings::default(), seed, 1_000);
    spec.targets.iter().for_each(|one| coordinator.joined(one.member, &Held::Nothing, 1_000));
    let outputs = coordinator.tick(1_000);
    (coordinator, outputs)
}

impl Coordinator {
    fn living(&self) -> Vec<u32> {
        (0..self.layout.len()).filter(|at| self.is_here(*at)).collect()
    }

    /// Every active member has its parents, and their chains lead to who can serve.
    fn check_trees(&self) {
        for at in self.living() {
            for stripe in 0..self.trees.stripes() {
                let name = (self.layout.member(at), stripe);
                let parent = self.trees.parent(at, stripe);
                if self.entries[at as usize].state == State::Complete {
                    assert_eq!(parent, None, "complete {name:?}");
                    continue;
                }
                let root = self.roots[usize::from(stripe)];
                assert_eq!(parent.is_none(), root == at, "{name:?} has {parent:?}, root {root}");
                assert!(parent.is_none_or(|parent| self.is_here(parent)), "{name:?}");
                let end = self.trees.chain(at, stripe, |_| false).expect("no circle").end;
                let complete = self.entries[end as usize].state == State::Complete;
                assert!(complete || root == end, "{name:?} ends at {end}");
                assert!(self.holdings.complete() == 0 || root == NONE, "{name:?}");
            }
        }
        for at in 0..self.layout.len() {
            let children = self.trees.children(at);
            assert!(children.is_empty() || self.is_here(at));
            for (stripe, child) in children {
                assert_eq!(self.trees.parent(*child, *stripe), Some(at));
            }
        }
    }

    /// Neighbours are few, mutual, and reach each other.
    fn check_neighbours(&self) {
        let living = self.living();
        let graph: BTreeMap<_, _> =
            living.iter().map(|at| (*at, self.neighbours.of(*at, true))).collect();
        for (at, others) in &graph {
            assert!(others.len() <= NEIGHBOURS_MAX && !others.contains(at));
            assert!(others.iter().all(|other| graph[other].contains(at)), "{at} and {others:?}");
        }
        let mut reached: BTreeSet<u32> = living.first().copied().into_iter().collect();
        let mut next: Vec<u32> = reached.iter().copied().collect();
        while let Some(at) = next.pop() {
            next.extend(graph[&at].iter().copied().filter(|other| reached.insert(*other)));
        }
        assert_eq!(reached.len(), living.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_first_plan_is_whole(seed: u64, most in 1u32..400, sources in 1u32..4, uneven: bool) {
        let spec = fleet(seed, most, sources, uneven);
        let (coordinator, outputs) = gathered(&spec, seed);
        coordinator.check_trees();
        coordinator.check_neighbours();
        let told: BTreeSet<_> = outputs.iter().map(|output| match output {
            Output::Plan { member, .. } => *member,
            other => panic!("{other:?}"),
        }).collect();
        prop_assert_eq!(told.len(), spec.targets.len());

        let place = |at: u32| coordinator.layout.place(at);
        let targets: Vec<u32> =
            (0..coordinator.layout.len()).filter(|at| !coordinator.entries[*at as usize].is_source).collect();
        for stripe in 0..coordinator.trees.stripes() {
            let links: Vec<_> =
                targets.iter().map(|at| (coordinator.trees.parent(*at, stripe).unwrap(), *at)).collect();
            let root = links.iter().find(|(parent, _)| coordinator.entries[*parent as usize].is_source);
            let root = place(root.expect("a source feeds each stripe").0);
            for region in 0..4 {
                let into = links.iter().filter(|(parent, child)| {
                    place(*child).region == region && place(*parent).region != region
                });
                let has_targets = targets.iter().any(|at| place(*at).region == region);
                let expected = usize::from(has_targets && region != root.region);
                prop_assert_eq!(into.count(), expected, "stripe {} region {}", stripe, region);
            }
        }
        // Within the region of the one source nobody has more children than its rate allows, and
        // the source sends more than once only what the others cannot.
        let source = coordinator.layout.position(0).map(place);
        let is_same = |at: &u32| Some(place(*at).region) == source.map(|place| place.region);
        let one_region = targets.iter().all(is_same);
        if one_region && sources == 1 {
            for at in &targets {
                let children = coordinator.trees.children(*at).len() as u32;
                prop_assert!(children <= coordinator.children_of(*at), "{} children", children);
            }
        }
        if !uneven {
            // At the full rate of equal hosts the sources have nothing to spare.
            let stripes = coordinator.trees.stripes();
            let links = coordinator.status().source_links as f64;
            let spare = coordinator.entries[0].up / coordinator.shape.rate * f64::from(sources);
            let most = (f64::from(stripes) * spare * 1.02).floor();
            prop_assert!((f64::from(stripes)..=most).contains(&links), "{} of {}", links, most);
        }
    }

    #[test]
    fn equal_hosts_enter_each_rack_once(seed: u64, racks in 2u32..12, size in 2u32..40) {
        let mut spec = fleet(seed, 1, 1, false);
        spec.geometry = Geometry::new(64 << 20, 65_536).unwrap();
        spec.targets = (1..=racks * size).map(|member| Participant {
            member,
            place: Place { rack: member % racks, ..Place::default() },
            rates: Rates::both(MBIT),
        }).collect();
        spec.sources[0] = Participant { member: 0, place: Place::default(), rates: Rates::both(MBIT) };
        let (coordinator, _) = gathered(&spec, seed);
        let rack = |at: u32| coordinator.layout.place(at).rack;
        for stripe in 0..coordinator.trees.stripes() {
            for here in 0..racks {
                let into = (0..coordinator.layout.len())
                    .filter(|at| rack(*at) == here)
                    .filter_map(|at| coordinator.trees.parent(at, stripe))
                    .filter(|parent| rack(*parent) != here);
                prop_assert_eq!(into.count(), usize::from(here != 0), "rack {}", here);
            }
        }
    }

    #[test]
    fn no_event_leaves_a_living_member_alone(
        seed: u64,
        most in 2u32..120,
        sources in 1u32..3,
        steps in 1usize..150,
    ) {
        let spec = fleet(seed, most, sources, seed % 2 == 0);
        let mut random = Random(!seed);
        let mut coordinator = Coordinator::new(spec.clone(), Settings::default(), seed, 0);
        let members = coordinator.layout.len();
        let pieces = spec.geometry.piece_count();
        let (mut now_ms, mut number) = (0, 0);
        let mut plans: BTreeMap<Member, HostPlan> = BTreeMap::new();
        let mut missing = false;
        for _ in 0..steps {
            for _ in 0..1 + random.below(6) {
                let member = random.below(members + 1);
                match random.below(12) {
                    0..=3 => {
                        let mut some = Bitfield::new(pieces);
                        (0..random.below(pieces)).for_each(|_| { some.set(random.below(pieces)); });
                        let held = match random.below(3) {
                            0 => Held::Nothing,
                            1 if member < sources => Held::All,
                            _ => Held::Pieces(some),
                        };
                        coordinator.joined(member, &held, now_ms);
                    }
                    4 | 5 => coordinator.gone(member, now_ms),
                    6 | 7 => {
                        let at = coordinator.layout.position(member);
                        let parents = at.map(|at| (0..coordinator.trees.stripes())
                            .filter_map(|stripe| coordinator.trees.parent(at, stripe)).collect::<Vec<_>>());
                        if let Some(parent) = parents.and_then(|all| all.first().copied()) {
                            coordinator.late(member, coordinator.layout.member(parent), now_ms);
                        }
                    }
                    _ => {
                        let start = random.below(pieces);
                        let gained = start..start + random.below(pieces + 1);
                        let rate = u64::from(random.below(1_000)) * MBIT;
                        coordinator.progress(member, &[gained], Some(rate), now_ms);
                    }
                }
            }
            now_ms += u64::from(random.below(200));
            for output in coordinator.tick(now_ms) {
                match output {
                    Output::Plan { member, plan } => {
                        assert!(plan.number > 0 && plan.number >= number);
                        number = plan.number;
                        let old = plans.insert(member, plan);
                        assert!(old.is_none_or(|old| old.number < number));
                    }
                    Output::Missing { pieces } => {
                        assert_eq!(pieces, coordinator.holdings.missing());
                        missing = true;
                    }
                    Output::Recovered => missing = false,
                    Output::Failed { pieces } => {
                        assert_eq!(coordinator.status().failed, Some(pieces));
                        return Ok(());
                    }
                }
            }
            if coordinator.built.is_none() {
                continue;
            }
            coordinator.check_trees();
            coordinator.check_neighbours();
            let mut held = Bitfield::new(pieces);
            for at in coordinator.living() {
                (0..pieces).filter(|piece| coordinator.holdings.has(at, *piece)).for_each(|piece| {
                    held.set(piece);
                });
                if coordinator.entries[at as usize].state == State::Complete {
                    continue;
                }
                // What the member was last told is what the coordinator believes.
                let told = &plans[&coordinator.layout.member(at)];
                let name = |at: u32| coordinator.layout.member(at);
                let parents: Vec<_> = (0..coordinator.trees.stripes())
                    .map(|stripe| coordinator.trees.parent(at, stripe).map(name)).collect();
                prop_assert_eq!(&told.parents, &parents);
                let neighbours: Vec<_> =
                    coordinator.neighbours.of(at, false).into_iter().map(name).collect();
                prop_assert_eq!(&told.neighbours, &neighbours);
            }
            let active = coordinator.living().into_iter()
                .any(|at| coordinator.entries[at as usize].state == State::Active);
            prop_assert_eq!(missing, active && !held.is_full());
        }
    }
}

/// Fleets in which a source had to have more children than its own rack had hosts to be, or in
/// which shares were rounded up.
#[test]
fn no_host_has_more_children_than_its_rate_allows() {
    let fleets: [(u64, u32); 6] = [
        (7927451988760164425, 158),
        (6966141131813549287, 304),
        (7234089581409739122, 176),
        (9611587092059844376, 137),
        (17287370135462062461, 373),
        (7139578654281996220, 219),
    ];
    for (seed, most) in fleets {
        let (coordinator, _) = gathered(&fleet(seed, most, 1, true), seed);
        for at in
            (0..coordinator.layout.len()).filter(|at| !coordinator.entries[*at as usize].is_source)
        {
            let children = coordinator.trees.children(at).len() as u32;
            let may = coordinator.children_of(at);
            assert!(children <= may, "fleet {seed}: {at} has {children} children of {may}");
        }
    }
}
