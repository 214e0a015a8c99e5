//! What is promised of 10,000 hosts, held at 120: racks of 40 with uplinks of 100 Gbit/s, hosts and
//! source of 10 Gbit/s, 1 GiB in pieces of 1 MiB of which each is one block. The figures of large
//! fleets are in perf/results/simulated-scale.md.

#![allow(clippy::unwrap_used)]

mod common;

use common::{MIB, Run, simulate_with};
use skein_sim::mesh::Costs;
use skein_sim::outcome::HostEnd;

const HOSTS: usize = 120;

fn racks(hosts: usize) -> String {
    format!(
        "[[rack]]\nname='r{{}}'\ncount={}\nrate='100Gbit'\n\
         [[host]]\nname='source'\nrate='10Gbit'\n\
         [[host]]\nname='h{{}}'\ncount={hosts}\nrate='10Gbit'\nrack='r{{}}'\nper_rack=40\n",
        hosts.div_ceil(40)
    )
}

/// Control knows all rates, as it does from earlier transfers.
fn gib(faults: &[&str]) -> Run {
    let costs = Costs { knows_rates: true, ..Costs::default() };
    simulate_with(costs, &racks(HOSTS), (1024 * MIB, 1 << 20, 64), faults, 1)
}

/// Bytes between control and hosts for each host and piece, signed lists among them.
fn control_bytes(run: &Run) -> f64 {
    run.run.control_bytes.iter().sum()
}

#[test]
fn racks_of_40_have_a_gib_within_a_twentieth_of_the_discrete_bound() {
    let run = gib(&[]);
    assert!(run.is_whole());
    let share = run.discrete_bound as f64 / (run.last() * run.bound as f64);
    assert!(share >= 0.95, "{share} of the discrete bound");
    assert!(run.source_copies <= 1.10, "{} copies", run.source_copies);
    assert!(control_bytes(&run) <= 2.0, "{:?}", run.run.control_bytes);
    assert_eq!(run.run.plans, HOSTS as u64, "nobody is moved who is not late");
}

#[test]
fn the_killed_and_the_slow_do_not_hold_up_the_healthy() {
    let faults = ["kill share=1% at=30%", "slow share=5% to=25% at=0s"];
    let run = gib(&faults);
    assert!(run.having(HostEnd::Unfinished).is_empty());
    assert_eq!(run.having(HostEnd::Killed).len(), 1);
    assert!(run.p99_untouched() <= 1.20, "{} of the bound", run.p99_untouched());
}
