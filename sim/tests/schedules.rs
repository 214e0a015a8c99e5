//! Schedules whose times are known by arithmetic.

#![allow(clippy::unwrap_used)]

use skein_sim::inventory::Inventory;
use skein_sim::outcome::{HostEnd, Outcome};
use skein_sim::queue::{Nanos, SECOND};
use skein_sim::random::Random;
use skein_sim::relay::{Schedule, run};
use skein_sim::scenario::{Fault, Planned};
use skein_sim::topology::Topology;
use skein_sim::world::World;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 16 * 1024;

fn flat(hosts: u32, rate: &str, latency: &str) -> Topology {
    let text = format!(
        "[network]\nefficiency='100%'\n\
         [[host]]\nname='s'\nrate='{rate}'\nlatency='{latency}'\n\
         [[host]]\nname='h{{}}'\ncount={hosts}\nrate='{rate}'\nlatency='{latency}'\n"
    );
    topology(&text)
}

fn topology(text: &str) -> Topology {
    Topology::new(&Inventory::parse(text).unwrap()).unwrap()
}

fn faults(topology: &Topology, lines: &[&str]) -> Vec<Planned> {
    let plan = |line: &&str| {
        let fault: Fault = line.parse().unwrap();
        fault.plan(topology, SECOND, &mut Random::new(1)).unwrap()
    };
    lines.iter().map(plan).collect()
}

fn finish_of(
    topology: &Topology,
    schedule: &Schedule,
    size: u64,
    lines: &[&str],
) -> (Vec<f64>, World<u32>) {
    let mut world = World::new(topology.clone(), faults(topology, lines), 0, SECOND / 10, 1);
    let outcome = run(&mut world, schedule, size, BLOCK, 3600 * SECOND);
    (seconds(&outcome, topology), world)
}

fn seconds(outcome: &Outcome, topology: &Topology) -> Vec<f64> {
    let of = |host: u32| match outcome.ends[host as usize] {
        HostEnd::Finished(at) => at as f64 / 1e9,
        HostEnd::Killed | HostEnd::Unfinished => f64::INFINITY,
    };
    topology.targets().map(of).collect()
}

fn is_near(left: f64, right: f64) -> bool {
    (left / right - 1.0).abs() < 1e-3
}

#[test]
fn direct_takes_n_copies_over_the_sources_link() {
    let topology = flat(8, "100MB/s", "1ms");
    let (times, world) = finish_of(&topology, &Schedule::direct(&topology), 64 * MIB, &[]);
    // All share the link to the end, so all end together: 8 F / us and one latency.
    let expected = 8.0 * 64.0 * MIB as f64 / 1e8 + 0.002;
    assert!(times.iter().all(|time| is_near(*time, expected)), "{times:?} {expected}");
    assert_eq!(world.network.carried(world.wiring.host(0)[0]), 8 * 64 * MIB);
}

#[test]
fn a_chain_takes_one_copy_and_a_block_and_latency_for_each_hop() {
    let topology = flat(16, "100MB/s", "1ms");
    let (times, world) = finish_of(&topology, &Schedule::chain(&topology), 64 * MIB, &[]);
    for (hop, time) in times.iter().enumerate() {
        let block = BLOCK as f64 / 1e8;
        let expected = 64.0 * MIB as f64 / 1e8 + hop as f64 * (block + 0.002) + 0.002;
        assert!(is_near(*time, expected), "hop {hop}: {time} {expected}");
    }
    assert_eq!(world.network.carried(world.wiring.host(0)[0]), 64 * MIB);
}

#[test]
fn a_chain_is_as_slow_as_its_slowest_host_from_there_on() {
    let topology = flat(6, "100MB/s", "0us");
    let slow = ["slow host=h3 to=25% at=0s"];
    let (times, _) = finish_of(&topology, &Schedule::chain(&topology), 64 * MIB, &slow);
    let copy = 64.0 * MIB as f64 / 1e8;
    // What the slow host lets through is a quarter; those before it are not held up.
    for (host, expected) in [1.0, 1.0, 4.0, 4.0, 4.0, 4.0].into_iter().enumerate() {
        assert!((times[host] / copy - expected).abs() < 0.01, "{host}: {times:?}");
    }
}

#[test]
fn a_border_is_crossed_once_by_a_chain_and_by_every_direct_copy() {
    let text = "[network]\nefficiency='100%'\n[[region]]\nname='far'\nrate='20MB/s'\n\
                [[host]]\nname='s'\nrate='100MB/s'\n\
                [[host]]\nname='near{}'\ncount=3\nrate='100MB/s'\n\
                [[host]]\nname='far{}'\ncount=5\nrate='100MB/s'\nregion='far'\n";
    let topology = topology(text);
    let copy = 32.0 * MIB as f64;
    for (schedule, crossings) in [(Schedule::chain(&topology), 1), (Schedule::direct(&topology), 5)]
    {
        let (times, world) = finish_of(&topology, &schedule, 32 * MIB, &[]);
        let [_, into] = world.wiring.region(0);
        assert_eq!(world.network.carried(into.unwrap()), crossings * 32 * MIB);
        let last = times.iter().copied().fold(0.0, f64::max);
        assert!((last / (crossings as f64 * copy / 20e6) - 1.0).abs() < 0.01, "{last}");
        // Three near copies share what the border leaves of the source's 100 MB/s.
        if crossings == 5 {
            assert!((times[0] / (copy / (80e6 / 3.0)) - 1.0).abs() < 0.01, "{times:?}");
        }
    }
}

#[test]
fn who_is_killed_starves_those_behind_it() {
    let topology = flat(4, "100MB/s", "0us");
    let (times, _) =
        finish_of(&topology, &Schedule::chain(&topology), 64 * MIB, &["kill host=h3 at=100ms"]);
    assert!(times[..2].iter().all(|time| time.is_finite()), "{times:?}");
    assert!(times[2..].iter().all(|time| time.is_infinite()), "{times:?}");
}

#[test]
fn a_cut_that_heals_costs_its_length() {
    let text = "[network]\nefficiency='100%'\n[[region]]\nname='far'\n\
                [[host]]\nname='s'\nrate='100MB/s'\n\
                [[host]]\nname='h'\nrate='100MB/s'\nregion='far'\n";
    let topology = topology(text);
    let cut = ["cut region=far at=200ms until=700ms"];
    let (times, _) = finish_of(&topology, &Schedule::direct(&topology), 64 * MIB, &cut);
    assert!(is_near(times[0], 64.0 * MIB as f64 / 1e8 + 0.5), "{times:?}");
}

#[test]
fn shares_recomputed_in_quanta_change_times_by_little() {
    let topology = topology(Inventory::EXAMPLE);
    let last = |quantum: Nanos| {
        let mut world = World::new(topology.clone(), vec![], quantum, SECOND, 1);
        let outcome = run(&mut world, &Schedule::chain(&topology), 64 * MIB, BLOCK, 3600 * SECOND);
        seconds(&outcome, &topology).into_iter().fold(0.0, f64::max)
    };
    let (exact, coarse) = (last(0), last(20_000));
    assert!((coarse / exact - 1.0).abs() < 0.02, "{exact} {coarse}");
}
