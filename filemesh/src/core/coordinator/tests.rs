//! What single events change, and how near to the bound plans come.

#![expect(clippy::single_range_in_vec_init, reason = "runs of pieces, not their numbers")]

use super::trees::NONE;
use super::*;
use crate::core::bitfield::Bitfield;
use crate::core::manifest::choose_piece_bytes;
use crate::core::place::{Place, Rates};
use std::collections::BTreeSet;

const MBIT: u64 = 125_000;

fn spec(hosts: u32, mbit: u64, mib: u64) -> Spec {
    let one =
        |member| Participant { member, place: Place::default(), rates: Rates::both(mbit * MBIT) };
    let geometry = Geometry::new(mib << 20, choose_piece_bytes(mib << 20, hosts)).unwrap();
    let (sources, targets) = (vec![one(0)], (1..=hosts).map(one).collect());
    Spec { geometry, sources, targets, gear: Gear::Planned }
}

fn plans(outputs: Vec<Output>) -> Vec<(Member, HostPlan)> {
    let plan = |output| match output {
        Output::Plan { member, plan } => (member, plan),
        other => panic!("{other:?}"),
    };
    outputs.into_iter().map(plan).collect()
}

/// In trees, also few of them.
fn started(spec: Spec) -> Coordinator {
    let mut settings = Settings::default();
    settings.shape.chain_max = 0;
    started_with(spec, settings)
}

fn started_with(spec: Spec, settings: Settings) -> Coordinator {
    let targets: Vec<_> = spec.targets.iter().map(|one| one.member).collect();
    let mut coordinator = Coordinator::new(spec, settings, 7, 0);
    targets.iter().for_each(|member| coordinator.joined(*member, &Held::Nothing, 0));
    assert_eq!(plans(coordinator.tick(0)).len(), targets.len());
    coordinator
}

impl Coordinator {
    fn at(&self, member: Member) -> u32 {
        self.layout.position(member).unwrap()
    }

    fn parents(&self, member: Member) -> Vec<Option<Member>> {
        let parent = |stripe| self.trees.parent(self.at(member), stripe);
        let name = |at| self.layout.member(at);
        (0..self.trees.stripes()).map(|stripe| parent(stripe).map(name)).collect()
    }

    fn children(&self, member: Member) -> Vec<Member> {
        self.trees.children(self.at(member)).iter().map(|(_, at)| self.layout.member(*at)).collect()
    }

    /// A target with children that also has a parent that is a target.
    fn inner(&self) -> Member {
        let inner = |member: &Member| self.children(*member).len() >= 2;
        (1..self.layout.len()).find(inner).unwrap()
    }

    fn all_pieces(&self) -> Range<u32> {
        0..self.geometry.piece_count()
    }
}

/// When the last member is complete if every link of the plan has an equal share of what its
/// parent sends: the rate of a stripe is that of the narrowest link above, each hop adds a block
/// and half a round trip, and the last round of pieces takes a piece time per stripe.
fn fluid_ms(coordinator: &Coordinator, spec: &Spec, except: &[Member]) -> f64 {
    let stripes = coordinator.trees.stripes();
    let size = spec.geometry.size_bytes() as f64;
    let mut last: f64 = 0.0;
    for target in spec.targets.iter().filter(|one| !except.contains(&one.member)) {
        for stripe in 0..stripes {
            let mut at = coordinator.at(target.member);
            let mut rate = coordinator.entries[at as usize].down / f64::from(stripes);
            let mut hops = 0.0;
            while let Some(parent) = coordinator.trees.parent(at, stripe) {
                let is_slow = |at: &u32| coordinator.entries[*at as usize].is_slow;
                let children = coordinator.trees.children(parent);
                let slow = children.iter().filter(|(_, at)| is_slow(at)).count() as f64;
                let up = coordinator.entries[parent as usize].up;
                let down =
                    coordinator.entries.iter().map(|entry| entry.down).fold(f64::MAX, f64::min);
                // A slow child takes what it receives, not a full share.
                let taken = slow * (down / f64::from(stripes)).min(up / children.len() as f64);
                rate = rate.min((up - taken) / (children.len() as f64 - slow).max(1.0));
                hops += 1.0;
                at = parent;
            }
            let piece = f64::from(spec.geometry.piece_bytes());
            let tail = f64::from(stripes - 1) * piece / (rate * f64::from(stripes));
            let time = size / f64::from(stripes) / rate + tail + hops * 16_384.0 / rate;
            last = last.max(1e3 * time + hops * 0.25);
        }
    }
    last
}

#[test]
fn a_later_batch_has_the_earlier_ones_as_sources() {
    let spec = spec(40, 20, 32);
    let mut coordinator = Coordinator::new(spec, Settings::default(), 7, 0);
    let mut now_ms = 0;
    for (batch, most) in [(1..=1, 1.0), (2..=10, 0.5), (11..=40, 0.25)] {
        let members: Vec<Member> = batch.collect();
        members.iter().for_each(|member| coordinator.joined(*member, &Held::Nothing, now_ms));
        now_ms += 200;
        assert_eq!(plans(coordinator.tick(now_ms)).len(), members.len());
        // The share of the file that the source sends to this batch.
        let stripes = f64::from(coordinator.trees.stripes());
        let share = coordinator.children(0).len() as f64 / stripes;
        assert!(share <= most, "{share} for {members:?}");
        for member in &members {
            assert!(coordinator.parents(*member).iter().all(Option::is_some));
            let all = coordinator.all_pieces();
            coordinator.progress(*member, &[all], None, now_ms);
        }
        now_ms += 5_000;
        assert!(coordinator.tick(now_ms).is_empty());
    }
}

#[test]
fn equal_hosts_come_near_the_bound() {
    for (hosts, mbit, mib, most) in
        [(8, 100, 16, 1.05), (16, 20, 32, 1.03), (48, 8, 16, 1.04), (500, 100, 64, 1.03)]
    {
        let spec = spec(hosts, mbit, mib);
        let coordinator = started(spec.clone());
        let bound = 1e3 * (mib << 20) as f64 / (mbit * MBIT) as f64;
        let factor = fluid_ms(&coordinator, &spec, &[]) / bound;
        assert!((1.0..most).contains(&factor), "{hosts} hosts: {factor}");
        // Every piece leaves the source once.
        assert_eq!(coordinator.children(0).len(), usize::from(coordinator.trees.stripes()));
    }
}

#[test]
fn plans_go_out_from_the_sources_on() {
    for hosts in [16, 500] {
        let mut coordinator = Coordinator::new(spec(hosts, 20, 32), Settings::default(), 7, 0);
        (1..=hosts).for_each(|member| coordinator.joined(member, &Held::Nothing, 0));
        let mut told: BTreeSet<Member> = [0].into();
        for (member, plan) in plans(coordinator.tick(200)) {
            if !coordinator.children(member).is_empty() {
                let knows = |parent: &Option<Member>| parent.is_some_and(|one| told.contains(&one));
                assert!(plan.parents.iter().any(knows), "{member} of {hosts}");
            }
            told.insert(member);
        }
        assert_eq!(told.len(), 1 + hosts as usize);
    }
}

#[test]
fn who_comes_back_to_a_chain_stands_at_its_end() {
    let mut coordinator = started_with(spec(16, 20, 32), Settings::default());
    let last = (1..=16).find(|member| coordinator.children(*member).is_empty()).unwrap();
    let (below, above) = (coordinator.children(5)[0], coordinator.parents(5)[0]);
    coordinator.gone(5, 1_000);
    coordinator.tick(1_000);
    assert_eq!(coordinator.parents(below), [above]);
    coordinator.joined(5, &Held::Nothing, 2_000);
    coordinator.tick(2_000);
    assert_eq!(
        (coordinator.parents(5), coordinator.parents(below)),
        (vec![Some(last)], vec![above])
    );
    assert!(coordinator.children(5).is_empty());
}

#[test]
fn few_hosts_stand_in_a_chain() {
    for hosts in [4, 16, 48] {
        let coordinator = started_with(spec(hosts, 20, 32), Settings::default());
        assert_eq!((coordinator.trees.stripes(), coordinator.children(0).len()), (1, 1));
        let fans = (1..=hosts).map(|member| coordinator.children(member).len());
        assert!(fans.clone().all(|fan| fan <= 1) && fans.sum::<usize>() == hosts as usize - 1);
    }
    assert!(started_with(spec(65, 20, 32), Settings::default()).trees.stripes() > 1);
}

#[test]
fn a_host_known_to_be_slow_holds_up_nobody() {
    let mut spec = spec(16, 20, 32);
    spec.targets[3].rates = Rates::both(5 * MBIT);
    let coordinator = started(spec.clone());
    let bound = 1e3 * (32 << 20) as f64 / (20 * MBIT) as f64;
    let factor = fluid_ms(&coordinator, &spec, &[4]) / bound;
    assert!((1.0..1.12).contains(&factor), "{factor}");
    assert_eq!(coordinator.children(4), []);
}

#[test]
fn a_host_found_to_be_slow_becomes_a_leaf_and_recovers() {
    let mut coordinator = started(spec(16, 20, 32));
    let slow = coordinator.inner();
    let report = |coordinator: &mut Coordinator, share: u64, now_ms| {
        for member in 1..=16 {
            let rate = if member == slow { 20 * MBIT / share } else { 20 * MBIT };
            let gained = if member == slow { 0..4 } else { 0..32 };
            coordinator.progress(member, &[gained], Some(rate), now_ms);
        }
        plans(coordinator.tick(now_ms))
    };
    assert!(report(&mut coordinator, 4, 600).is_empty());
    assert!(report(&mut coordinator, 4, 1_200).len() < 16);
    assert_eq!(coordinator.children(slow), []);
    assert_eq!(coordinator.status().slow, 1);
    assert!(report(&mut coordinator, 4, 1_800).is_empty());
    // In so small a fleet there is a new plan of the whole, but not too soon after another.
    assert_eq!(report(&mut coordinator, 4, 2_400).len(), 16);
    assert!(report(&mut coordinator, 1, 3_000).is_empty());
    assert_eq!(coordinator.status().slow, 1, "one report proves nothing");
    (6..11).for_each(|nth| drop(report(&mut coordinator, 1, nth * 600)));
    assert_eq!(coordinator.status().slow, 0);
    let has_children = !coordinator.children(slow).is_empty();
    assert!(has_children || coordinator.trees.has_room(coordinator.at(slow)));
}

#[test]
fn a_slow_host_in_a_chain_goes_to_its_end() {
    let mut coordinator = started_with(spec(16, 20, 32), Settings::default());
    let (mut chain, mut next) = (vec![], coordinator.children(0));
    while let Some(member) = next.first().copied() {
        chain.push(member);
        next = coordinator.children(member);
    }
    let slow = chain[2];
    for now_ms in [600, 1_200] {
        assert_eq!(coordinator.status().slow, 0);
        for (nth, member) in chain.iter().enumerate() {
            // Who stands behind it is as slow as it is.
            let (rate, pieces) = if nth < 2 { (20 * MBIT, 32) } else { (5 * MBIT, 4) };
            coordinator.progress(*member, std::slice::from_ref(&(0..pieces)), Some(rate), now_ms);
        }
        coordinator.tick(now_ms);
    }
    assert_eq!(coordinator.status().slow, 1);
    assert_eq!(coordinator.children(chain[1]), [chain[3]]);
    assert_eq!(coordinator.parents(slow), [chain.last().copied()]);
    assert_eq!(coordinator.children(slow), []);
}

#[test]
fn a_host_that_is_starved_is_not_slow() {
    let mut coordinator = started(spec(16, 20, 32));
    let starved = coordinator.inner();
    for now_ms in [600, 1_200, 1_800] {
        for member in 1..=16 {
            let rate = if member == starved { MBIT } else { 20 * MBIT };
            coordinator.progress(member, &[0..4], Some(rate), now_ms);
        }
        coordinator.tick(now_ms);
    }
    assert_eq!(coordinator.status().slow, 0, "nobody has anything that it lacks, but the source");
}

#[test]
fn a_late_parent_is_replaced_in_its_stripes_only() {
    let mut coordinator = started(spec(48, 8, 16));
    let late = coordinator.inner();
    let child = coordinator.children(late)[0];
    let before = coordinator.parents(child);
    let most = 0..coordinator.geometry.piece_count() - 1;
    // The last that was heard of it.
    coordinator.progress(late, &[most], None, 2_900);
    coordinator.late(child, late, 5_000);
    coordinator.late(child, late, 5_001);
    let told = plans(coordinator.tick(5_050));
    // It, the late one if it took its place, and the leaf whose place it may have taken.
    let mine = told.iter().find(|(member, _)| *member == child).unwrap();
    assert!(told.len() <= 3, "{told:?}");
    let of_source = coordinator.children(0).len();
    assert!(of_source <= usize::from(coordinator.trees.stripes()), "{of_source} at the source");
    for (old, new) in before.iter().zip(&mine.1.parents) {
        assert_eq!(old == new, *old != Some(late));
    }
    // Its new parent is not blamed for what it could not have yet.
    let new = coordinator.parents(child);
    let grandchild = coordinator.children(child).first().copied();
    if let Some(grandchild) = grandchild {
        coordinator.late(grandchild, child, 5_060);
        assert_eq!(plans(coordinator.tick(5_100)), []);
    }
    assert_eq!(coordinator.parents(child), new);
}

#[test]
fn a_parent_that_many_call_late_is_a_leaf() {
    let mut coordinator = started(spec(48, 8, 16));
    let late = coordinator.inner();
    let children = coordinator.children(late);
    assert!(children.len() >= 4);
    let most = 0..coordinator.geometry.piece_count() - 1;
    // The last that was heard of it.
    coordinator.progress(late, &[most], None, 2_900);
    children[..3].iter().for_each(|child| coordinator.late(*child, late, 5_000));
    coordinator.tick(5_050);
    assert_eq!(coordinator.children(late), []);
}

#[test]
fn when_everybody_complains_the_rest_is_counted_and_all_is_well_afterwards() {
    let hosts = COMPLAINTS_MAX as u32 + 500;
    let mut coordinator = started(spec(hosts, 100, 64));
    let parents: Vec<_> = (1..=hosts).map(|member| coordinator.parents(member)).collect();
    // The source has stopped: nobody has anything, and each waits for each of its parents.
    for (member, parents) in (1..).zip(&parents) {
        let parents: BTreeSet<Member> = parents.iter().flatten().copied().collect();
        parents.iter().for_each(|parent| coordinator.late(member, *parent, 5_000));
    }
    let counts = coordinator.take_complaint_counts();
    let links = u64::from(hosts) * u64::from(coordinator.trees.stripes());
    assert_eq!(counts.settled + counts.kept + counts.dropped, links, "{counts:?}");
    assert_eq!(
        (counts.kept, coordinator.complaints.len()),
        (COMPLAINTS_MAX as u64, COMPLAINTS_MAX)
    );
    assert!(counts.dropped > 0, "{counts:?}");
    // Again changes nothing of those that wait.
    let (first, parent) = (1, parents[0][0].unwrap());
    let waiting = coordinator.complaints.len();
    coordinator.late(first, parent, 5_010);
    assert_eq!(coordinator.complaints.len(), waiting);
    // It goes on, and nobody is blamed any more.
    (1..=hosts).for_each(|member| coordinator.progress(member, &[0..64], None, 5_200));
    coordinator.tick(5_250);
    assert_eq!(coordinator.complaints.len(), 0);
    for (member, before) in (2..).zip(&parents[1..]) {
        let moved = coordinator.parents(member).iter().zip(before).filter(|(a, b)| a != b).count();
        assert_eq!(moved, 0, "member {member} has other parents");
    }
}

#[test]
fn a_lost_host_costs_its_children_and_neighbours_a_plan() {
    let mut coordinator = started(spec(500, 100, 64));
    let lost = coordinator.inner();
    let mut concerned = coordinator.neighbours.of(coordinator.at(lost), false);
    concerned.extend(coordinator.trees.children(coordinator.at(lost)).iter().map(|(_, at)| *at));
    coordinator.gone(lost, 2_000);
    let told = plans(coordinator.tick(2_050));
    // Those that lose a link get another, and so does its other end.
    assert!(told.len() <= 2 * concerned.len() && told.len() < 60, "{}", told.len());
    let names =
        |plan: &HostPlan| plan.parents.contains(&Some(lost)) || plan.neighbours.contains(&lost);
    assert!(!told.iter().any(|(_, plan)| names(plan)));

    // It returns as cheaply, with what it had.
    let mut had = Bitfield::new(coordinator.geometry.piece_count());
    had.set_range(0..100);
    coordinator.joined(lost, &Held::Pieces(had), 3_000);
    let told = plans(coordinator.tick(3_050));
    assert!(told.len() < 16, "{}", told.len());
    let plan = &told.iter().find(|(member, _)| *member == lost).unwrap().1;
    assert!(plan.parents.iter().all(Option::is_some) && plan.neighbours.len() >= 5);
    assert_eq!(
        coordinator.holdings.bytes(coordinator.at(lost)),
        100 * u64::from(coordinator.geometry.piece_bytes())
    );
}

#[test]
fn stragglers_get_parents_that_are_complete() {
    let mut coordinator = started(spec(20, 20, 32));
    let all = coordinator.all_pieces();
    (3..=20)
        .for_each(|member| coordinator.progress(member, std::slice::from_ref(&all), None, 9_000));
    let told = plans(coordinator.tick(9_050));
    assert_eq!(told.iter().map(|(member, _)| *member).collect::<Vec<_>>(), [1, 2]);
    for (_, plan) in told {
        let parents: BTreeSet<_> = plan.parents.iter().flatten().collect();
        assert!(parents.len() == 4 && parents.iter().all(|parent| (3..=20).contains(*parent)));
    }
    let status = coordinator.status();
    assert_eq!((status.complete, status.active, status.bytes), (18, 2, 18 * (32 << 20)));
    assert_eq!(status.end_ms, Some(9_050 + (1_000 * (32 << 20)) / (20 * MBIT)));
}

#[test]
fn a_source_that_dies_too_early_fails_the_transfer_by_name() {
    let mut coordinator = started(spec(16, 20, 32));
    let all = coordinator.all_pieces();
    for member in 1..=16 {
        coordinator.progress(member, &[member - 1..member + 7], None, 500);
    }
    coordinator.gone(0, 1_000);
    let outputs = coordinator.tick(1_050);
    let missing = Output::Missing { pieces: vec![23..all.end] };
    assert_eq!(outputs.first(), Some(&missing));
    // Who stands in for the source has holders of what it lacks beside it.
    let root = coordinator.roots[0];
    let held = |piece: u32| {
        coordinator
            .neighbours
            .of(root, false)
            .into_iter()
            .any(|at| coordinator.holdings.has(at, piece))
    };
    assert!((0..23).step_by(4).all(|piece| coordinator.holdings.has(root, piece) || held(piece)));

    let mut other = started(spec(16, 20, 32));
    other.gone(0, 1_000);
    other.tick(1_050);
    other.joined(0, &Held::All, 5_000);
    assert_eq!(other.tick(5_050).first(), Some(&Output::Recovered));
    assert!(other.roots.iter().all(|root| *root == NONE));

    let failed = Output::Failed { pieces: vec![23..all.end] };
    assert_eq!(coordinator.tick(11_050), [failed]);
    assert_eq!(coordinator.status().failed, Some(vec![23..all.end]));
    assert_eq!(coordinator.tick(20_000), []);
}

#[test]
fn a_dead_source_is_replaced_by_complete_targets() {
    let mut coordinator = started(spec(16, 20, 32));
    let all = coordinator.all_pieces();
    coordinator.progress(5, &[all], None, 1_000);
    coordinator.gone(0, 1_100);
    assert!(coordinator.tick(1_150).iter().all(|output| matches!(output, Output::Plan { .. })));
    assert!(coordinator.roots.iter().all(|root| *root == NONE));
    assert_eq!(coordinator.status().missing, []);
}

#[test]
fn who_does_not_join_in_time_is_not_waited_for() {
    let spec = spec(16, 20, 32);
    let mut coordinator = Coordinator::new(spec, Settings::default(), 7, 0);
    (1..=10).for_each(|member| coordinator.joined(member, &Held::Nothing, 10));
    assert_eq!(coordinator.tick(100), []);
    assert_eq!(plans(coordinator.tick(110)).len(), 10);
    assert!(
        (1..=10).all(|member| coordinator.parents(member).iter().flatten().all(|at| *at <= 10))
    );
    // One that is late joins what there is; when many have come the whole is planned again.
    coordinator.joined(11, &Held::Nothing, 400);
    assert!(plans(coordinator.tick(450)).len() < 11);
    (12..=15).for_each(|member| coordinator.joined(member, &Held::Nothing, 500));
    assert_eq!(plans(coordinator.tick(550)).len(), 15);
    assert_eq!(coordinator.status().waiting, 1);
}

#[test]
fn gears_change_and_keep_what_is_held() {
    let mut spec = spec(8, 100, 16);
    spec.gear = Gear::Direct;
    let mut coordinator = started(spec);
    assert!((1..=8).all(|member| coordinator.parents(member) == [Some(0)]));
    coordinator.progress(3, &[0..9], None, 100);
    coordinator.set_gear(Gear::Planned, 200);
    let told = plans(coordinator.tick(250));
    assert!(told.len() == 8 && told.iter().all(|(_, plan)| plan.parents.len() > 1));
    assert_eq!(coordinator.status().bytes, 9 * u64::from(coordinator.geometry.piece_bytes()));
    coordinator.set_gear(Gear::Mesh, 300);
    let told = plans(coordinator.tick(350));
    assert!(told.iter().all(|(_, plan)| plan.parents.is_empty() && plan.neighbours.len() >= 2));
    coordinator.gone(4, 400);
    coordinator.joined(4, &Held::All, 450);
    coordinator.set_gear(Gear::Direct, 500);
    assert_eq!(plans(coordinator.tick(550)).len(), 7);
}

/// A mesh has no trees in which somebody could stand before another.
#[test]
fn rates_are_compared_in_every_gear() {
    for gear in [Gear::Mesh, Gear::Planned, Gear::Direct] {
        let mut spec = spec(8, 100, 16);
        spec.gear = gear;
        let mut coordinator = started(spec);
        for second in 1..=20 {
            let now_ms = 500 * second;
            for member in 1..=8 {
                let rate = if member == 5 { 1 } else { 8 * MBIT };
                coordinator.progress(member, &[], Some(rate), now_ms);
            }
            coordinator.tick(now_ms);
        }
        assert_eq!(coordinator.status().waiting, 0, "{gear}");
    }
}

#[test]
fn strangers_and_nonsense_change_nothing() {
    let mut coordinator = started(spec(8, 100, 16));
    coordinator.joined(99, &Held::All, 10);
    coordinator.progress(99, &[0..5], None, 10);
    coordinator.late(1, 99, 10);
    coordinator.late(1, 1, 10);
    coordinator.gone(99, 10);
    let reversed = Range { start: 7, end: 3 };
    coordinator.progress(1, &[reversed, u32::MAX - 1..u32::MAX], Some(0), 10);
    assert_eq!(coordinator.tick(20), []);
    assert_eq!(coordinator.status().bytes, 0);
}

#[test]
fn an_empty_file_is_complete_when_its_targets_join() {
    let mut spec = spec(3, 100, 1);
    spec.geometry = Geometry::new(0, 65_536).unwrap();
    let mut coordinator = Coordinator::new(spec, Settings::default(), 1, 0);
    (1..=3).for_each(|member| coordinator.joined(member, &Held::Nothing, 0));
    assert_eq!(coordinator.tick(0), []);
    assert_eq!(coordinator.status().complete, 3);
}
