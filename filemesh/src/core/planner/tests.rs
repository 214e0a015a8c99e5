//! Decisions cell by cell.

use super::*;
use crate::core::manifest::choose_piece_bytes;

const MBIT: u64 = 125_000;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Sources, targets and borders of one decision.
struct Case {
    size: u64,
    sources: Vec<Host>,
    targets: Vec<Host>,
    borders: Vec<Border>,
    limits: Limits,
    can_inline: bool,
    fresh: u64,
}

fn host(mbit: u64, region: u16) -> Host {
    let place = Place { region, ..Place::default() };
    Host { place, rates: Rates::both(mbit * MBIT), held_bytes: 0 }
}

fn case(size: u64, hosts: usize, mbit: u64) -> Case {
    Case {
        size,
        sources: vec![host(mbit, 0)],
        targets: vec![host(mbit, 0); hosts],
        borders: vec![],
        limits: Limits::default(),
        can_inline: true,
        fresh: size,
    }
}

impl Case {
    fn plan(&self) -> Decision {
        let piece = choose_piece_bytes(self.size, self.targets.len() as u32);
        let input = PlannerInput {
            geometry: Geometry::new(self.size, piece).unwrap(),
            is_hashed: true,
            can_inline: self.can_inline,
            fresh_bytes: self.fresh,
            sources: &self.sources,
            targets: &self.targets,
            borders: &self.borders,
            limits: self.limits,
            rtt_ms: Some(0.5),
            starts: Starts::default(),
        };
        plan(&input, &PlannerSettings::default())
    }
}

impl Decision {
    fn time(&self, gear: Gear) -> f64 {
        self.gears.iter().find(|one| one.gear == gear).unwrap().time_ms
    }
}

#[test]
fn the_gear_follows_size_hosts_and_rate() {
    use Gear::{Direct, Inline, Planned};
    let rows = [
        (KIB, 1_000, [Inline; 5]),
        (64 * KIB, 1_000, [Direct; 5]),
        (MIB, 1_000, [Direct, Direct, Direct, Planned, Planned]),
        (16 * MIB, 100, [Direct, Planned, Planned, Planned, Planned]),
        (128 * MIB, 100, [Direct, Planned, Planned, Planned, Planned]),
    ];
    for (size, mbit, expected) in rows {
        let hosts = [1, 2, 4, 16, 48];
        let decisions = hosts.map(|hosts| case(size, hosts, mbit).plan());
        for (decision, hosts) in decisions.iter().zip(hosts) {
            let bound = 8e-3 * size as f64 / (mbit as f64 * 1e6) * 1e6;
            assert!((decision.bound_ms / bound - 1.0).abs() < 1e-9, "{}", decision.sentence);
            assert!(decision.predicted_ms > decision.bound_ms, "{}", decision.sentence);
            let least = decision.gears.iter().map(|one| one.time_ms).fold(f64::MAX, f64::min);
            assert_eq!(decision.predicted_ms, least);
            // Small transfers are all start; from a second on the plan is near the bound.
            let near = bound < 1_000.0 || decision.predicted_ms < 1.15 * bound;
            assert!(near || hosts == 1, "{}", decision.sentence);
        }
        assert_eq!(decisions.map(|one| one.gear), expected, "{size} bytes");
    }
}

#[test]
fn one_host_is_served_directly_and_nobody_costs_nothing() {
    for size in [0, 1, 40 * KIB, 5 << 30] {
        let mut one = case(size, 1, 1_000);
        one.can_inline = false;
        assert_eq!(one.plan().gear, Gear::Direct, "{size}");
        one.targets.clear();
        let none = one.plan();
        assert_eq!((none.gear, none.bound_ms), (Gear::Direct, 0.0));
    }
}

#[test]
fn only_small_files_that_are_at_hand_travel_inline() {
    assert_eq!(case(32 * KIB, 100, 1_000).plan().gear, Gear::Inline);
    assert_ne!(case(32 * KIB + 1, 100, 1_000).plan().gear, Gear::Inline);
    let mut elsewhere = case(KIB, 4, 1_000);
    elsewhere.can_inline = false;
    assert_eq!(elsewhere.plan().gear, Gear::Direct);
}

#[test]
fn the_sentence_says_what_how_long_and_why() {
    let decision = case(16 * MIB, 48, 8).plan();
    assert_eq!(
        decision.sentence,
        "planned: 48 hosts x 16 MiB at 8 Mbit/s; predicted 18.1 s of 16.8 s bound; \
         direct would take 805 s because the source's 8 Mbit/s is the limit"
    );
    assert_eq!(
        case(64 * KIB, 4, 1_000).plan().sentence,
        "direct: 4 hosts x 64 KiB at 250 Mbit/s; predicted 17.9 ms of 0.52 ms bound; \
         planned would take 57.1 ms because its start alone costs 55 ms"
    );
    assert!(case(KIB, 1, 1_000).plan().sentence.starts_with("inline: 1 host x 1 KiB at 1 Gbit/s;"));
}

#[test]
fn a_slow_source_is_the_bound_and_is_shared_by_a_plan() {
    let mut slow = case(16 * MIB, 16, 100);
    slow.sources[0] = host(10, 0);
    let decision = slow.plan();
    assert_eq!((decision.gear, decision.limit), (Gear::Planned, Limit::Sources(1.25e6)));
    assert!(decision.predicted_ms < 1.1 * decision.bound_ms, "{}", decision.sentence);
    // Two sources halve it.
    slow.sources.push(host(10, 0));
    assert!((slow.plan().bound_ms / decision.bound_ms - 0.5).abs() < 1e-9);
}

#[test]
fn a_slow_host_is_its_own_bound_and_not_the_others() {
    let mut slow = case(32 * MIB, 16, 20);
    slow.targets[7] = host(5, 0);
    let decision = slow.plan();
    assert_eq!((decision.gear, decision.limit), (Gear::Planned, Limit::HostDown(625_000.0)));
    assert!(decision.predicted_ms < 1.05 * decision.bound_ms, "{}", decision.sentence);
    let planned = decision.gears.iter().find(|one| one.gear == Gear::Planned).unwrap();
    assert_eq!(planned.rate, 2.5e6);
}

#[test]
fn hosts_that_send_little_bound_all() {
    let mut thin = case(64 * MIB, 20, 100);
    let rates = Rates { up_bytes_s: Some(10 * MBIT), down_bytes_s: Some(100 * MBIT) };
    thin.targets.iter_mut().for_each(|host| host.rates = rates);
    let decision = thin.plan();
    let total = (100 + 20 * 10) as f64 * MBIT as f64;
    assert_eq!(decision.limit, Limit::TotalUp(total));
    assert!((decision.bound_ms - 1e3 * 20.0 * (64 * MIB) as f64 / total).abs() < 1e-6);
    assert_eq!(decision.gear, Gear::Planned);
}

#[test]
fn a_thin_border_is_crossed_once_by_a_plan() {
    let mut two = case(64 * MIB, 8, 1_000);
    two.targets.extend(vec![host(1_000, 1); 8]);
    let border = |region| Border { region, in_bytes_s: 50 * MBIT, out_bytes_s: 50 * MBIT };
    two.borders = vec![border(1)];
    let decision = two.plan();
    assert_eq!((decision.gear, decision.limit), (Gear::Planned, Limit::Border(1, 6.25e6)));
    assert!(decision.predicted_ms < 1.05 * decision.bound_ms, "{}", decision.sentence);
    assert!(decision.time(Gear::Direct) > 7.9 * decision.bound_ms);
    assert!(decision.sentence.ends_with("because the border of region 1 carries 50 Mbit/s"));
    assert!(decision.time(Gear::Mesh) > 1.4 * decision.bound_ms);
    // The same border in front of the source's region.
    two.borders = vec![border(0)];
    assert_eq!(two.plan().limit, Limit::Border(0, 6.25e6));
    // A region that holds the file already needs nothing across.
    two.targets[8].held_bytes = 64 * MIB;
    assert_ne!(two.plan().limit, Limit::Border(0, 6.25e6));
}

#[test]
fn limits_are_rates_that_nothing_exceeds() {
    let mut limited = case(64 * MIB, 8, 1_000);
    limited.limits.sources_bytes_s = Some(20 * MBIT);
    assert_eq!(limited.plan().limit, Limit::Sources(2.5e6));
    limited.limits = Limits { down_bytes_s: Some(5 * MBIT), ..Limits::default() };
    assert_eq!(limited.plan().limit, Limit::HostDown(625_000.0));
    limited.limits = Limits { up_bytes_s: Some(MBIT), ..Limits::default() };
    let decision = limited.plan();
    assert_eq!(decision.limit, Limit::Sources(125_000.0));
    assert_eq!(decision.gear, Gear::Planned);
    limited.limits = Limits { sources_bytes_s: Some(0), ..Limits::default() };
    assert!(limited.plan().predicted_ms.is_finite());
}

#[test]
fn what_targets_hold_need_not_move() {
    let mut resumed = case(128 * MIB, 16, 100);
    let whole = resumed.plan();
    resumed.targets.iter_mut().for_each(|host| host.held_bytes = 96 * MIB);
    resumed.fresh = 32 * MIB;
    let rest = resumed.plan();
    assert!((rest.bound_ms / whole.bound_ms - 0.25).abs() < 1e-9);
    assert!(rest.predicted_ms < 0.35 * whole.predicted_ms);
    // When one host lacks a little, nobody needs a plan.
    resumed.targets.iter_mut().skip(1).for_each(|host| host.held_bytes = 128 * MIB);
    resumed.fresh = 0;
    assert_eq!(resumed.plan().gear, Gear::Direct);
}

#[test]
fn unknown_rates_have_defaults_and_hashing_is_counted() {
    let mut unknown = case(MIB, 4, 1_000);
    let known = unknown.plan();
    unknown
        .targets
        .iter_mut()
        .chain(&mut unknown.sources)
        .for_each(|host| host.rates = Rates::default());
    assert_eq!(unknown.plan(), known);
    let input = PlannerInput {
        geometry: Geometry::new(1_500_000_000, 16 << 20).unwrap(),
        is_hashed: false,
        can_inline: false,
        fresh_bytes: 1_500_000_000,
        sources: &unknown.sources,
        targets: &unknown.targets[..1],
        borders: &[],
        limits: Limits::default(),
        rtt_ms: None,
        starts: Starts::default(),
    };
    let settings = PlannerSettings::default();
    let hashed = plan(&PlannerInput { is_hashed: true, ..input.clone() }, &settings);
    let delta = plan(&input, &settings).predicted_ms - hashed.predicted_ms;
    assert!((delta - 1_000.0).abs() < 1e-6, "{delta}");
}

#[test]
fn what_was_measured_of_starts_takes_the_place_of_guesses() {
    let hosts = case(MIB, 16, 1_000);
    let guessed = hosts.plan();
    assert_eq!(guessed.gear, Gear::Planned);
    let mut starts = Starts::default();
    starts.set(Gear::Direct, 18.0, 18.0);
    starts.set(Gear::Planned, 240.0, 60.0);
    let input = PlannerInput {
        geometry: Geometry::new(MIB, choose_piece_bytes(MIB, 16)).unwrap(),
        is_hashed: true,
        can_inline: true,
        fresh_bytes: MIB,
        sources: &hosts.sources,
        targets: &hosts.targets,
        borders: &[],
        limits: Limits::default(),
        rtt_ms: Some(0.5),
        starts,
    };
    let measured = plan(&input, &PlannerSettings::default());
    assert_eq!(measured.gear, Gear::Direct);
    let (before, after) = (guessed.time(Gear::Planned), measured.time(Gear::Planned));
    let one = measured.gears.iter().find(|one| one.gear == Gear::Planned).unwrap();
    assert_eq!(one.start_ms, 240.0);
    let mesh = measured.gears.iter().find(|one| one.gear == Gear::Mesh).unwrap();
    assert_eq!(mesh.start_ms, 4.0 * mesh.guess_ms, "nothing is known of it but that all is slow");
    assert!((after - before - (240.0 - one.guess_ms)).abs() < 1e-6, "{before} {after}");
}

#[test]
fn a_transfer_off_its_course_is_noticed_both_ways() {
    let decision = case(16 * MIB, 48, 8).plan();
    let settings = PlannerSettings::default();
    let at = |share, part| decision.is_off_course(share, part * decision.predicted_ms, &settings);
    assert!(!at(0.0, 0.05) && !at(0.5, 0.5) && !at(0.45, 0.5) && !at(1.0, 0.5));
    assert!(at(0.3, 0.5) && at(0.7, 0.5) && at(0.8, 1.5));
}
