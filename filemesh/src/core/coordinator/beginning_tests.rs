//! Targets that join one after the other: whom the source feeds is decided once, because what it
//! sent to one that then loses its place it sends to the next once more.

#![expect(clippy::single_range_in_vec_init, reason = "runs of pieces, not their numbers")]

use super::*;
use crate::core::place::{Place, Rates};

const HOSTS: u32 = 8;

fn coordinator() -> Coordinator {
    let one =
        |member| Participant { member, place: Place::default(), rates: Rates::both(5_000_000) };
    let spec = Spec {
        geometry: Geometry::new(8 << 20, 64 << 10).unwrap(),
        sources: vec![one(0)],
        targets: (1..=HOSTS).map(one).collect(),
        gear: Gear::Planned,
    };
    Coordinator::new(spec, Settings::default(), 3, 0)
}

/// Joins members at their times and ticks every 10 ms from then on until `until_ms`; who the source
/// fed after each change of that, and when.
fn fed(
    coordinator: &mut Coordinator,
    joins: &[(u64, Member)],
    until_ms: u64,
) -> Vec<(u64, Member)> {
    let mut fed = vec![];
    let mut plans: Vec<(Member, HostPlan)> = vec![];
    for now_ms in (0..=until_ms).step_by(10) {
        for (_, member) in joins.iter().filter(|(at_ms, _)| *at_ms == now_ms) {
            coordinator.joined(*member, &Held::Nothing, now_ms);
        }
        for output in coordinator.tick(now_ms) {
            let Output::Plan { member, plan } = output else { panic!("{output:?}") };
            plans.retain(|(known, _)| *known != member);
            plans.push((member, plan));
        }
        let first = plans.iter().find(|(_, plan)| plan.parents.contains(&Some(0)));
        if let Some((member, _)) = first
            && fed.last().is_none_or(|(_, before)| before != member)
        {
            fed.push((now_ms, *member));
        }
    }
    fed
}

#[test]
fn the_first_plan_waits_for_those_that_are_coming() {
    // The order takes 170 ms to the first host, and the others follow.
    let joins = [(170, 7), (200, 3), (210, 2), (240, 4), (260, 5), (280, 1), (290, 8), (300, 6)];
    let fed = fed(&mut coordinator(), &joins, 1_000);
    assert_eq!(fed, [(300, 1)], "planned when the last is there, and once");
}

#[test]
fn who_does_not_come_is_not_waited_for() {
    let joins = [(170, 7), (200, 3)];
    assert_eq!(fed(&mut coordinator(), &joins, 1_000), [(270, 3)]);
    // One more every 40 ms, and one never: there is an end to it.
    let joins: Vec<_> = (1..HOSTS).map(|member| (100 * u64::from(member), member)).collect();
    let fed = fed(&mut coordinator(), &joins, 2_000);
    assert_eq!((fed.len(), fed[0].0), (1, 250), "a pause of 50 ms: {fed:?}");
}

#[test]
fn whoever_comes_later_leaves_the_source_to_the_first() {
    let mut coordinator = coordinator();
    // Member 8 comes last in the order of places, so a plan from nothing would not begin with it.
    let joins = [(0, 8), (200, 7), (300, 1), (310, 2), (320, 3), (600, 4), (700, 5), (900, 6)];
    let fed = fed(&mut coordinator, &joins, 3_000);
    assert_eq!(fed, [(100, 8)]);
}

#[test]
fn of_equals_who_holds_most_is_nearest_to_the_source() {
    let mut coordinator = coordinator();
    let joins: Vec<_> = (1..=HOSTS).map(|member| (0, member)).collect();
    assert_eq!(fed(&mut coordinator, &joins, 100), [(0, 1)]);
    for member in 2..=HOSTS {
        coordinator.progress(member, &[0..u32::from(9 - member as u8)], None, 200);
    }
    coordinator.gone(1, 300);
    coordinator.build();
    let chain: Vec<u32> = (2..=HOSTS)
        .map(|member| {
            let at = coordinator.layout.position(member).unwrap();
            coordinator.trees.chain(at, 0, |_| false).unwrap().depth
        })
        .collect();
    assert_eq!(chain, [1, 2, 3, 4, 5, 6, 7]);
}
