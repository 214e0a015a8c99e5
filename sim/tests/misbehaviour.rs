//! Hosts that lie in other ways than by false blocks, and networks that fall apart: by seed, every
//! write compared with the file.

#![allow(clippy::unwrap_used)]

mod common;

use common::{MIB, Run, fleet, simulate};
use skein_sim::outcome::HostEnd;
use skein_sim::queue::SECOND;

const SEEDS: std::ops::Range<u64> = 1..4;

fn of(hosts: u32, mib: u64, faults: &[&str], seed: u64) -> Run {
    simulate(&fleet(hosts, "20Mbit"), mib * MIB, 65_536, 1, faults, seed)
}

#[test]
fn a_host_that_says_nothing_holds_up_nobody_for_long() {
    for seed in SEEDS {
        let run = of(16, 8, &["silent host=h3 at=0s until=200%"], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        let others = run.last_of(|name| name != "h3");
        assert!(others < 2.0, "seed {seed}: {others}");
        // In the middle it owes answers to those whose parent it is.
        let run = of(16, 8, &["silent share=10% at=40% until=300%"], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        assert!(run.last() < 4.5, "seed {seed}: {}", run.last());
    }
}

#[test]
fn a_host_that_floods_takes_no_more_than_its_share_and_breaks_nothing() {
    for seed in SEEDS {
        let run = of(16, 8, &["flood host=h3 at=5% until=300%"], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        assert_eq!(run.run.outcome.refused_blocks, 0, "seed {seed}: nothing false was sent");
        let others = run.last_of(|name| name != "h3");
        assert!(others < 3.0, "seed {seed}: {others}");
    }
}

#[test]
fn a_fleet_that_falls_in_two_goes_on_inside_and_is_one_again() {
    let fleet = "[[region]]\nname='far'\nrate='20Mbit'\nlatency='5ms'\n\
                 [[host]]\nname='s'\nrate='20Mbit'\n\
                 [[host]]\nname='near{}'\ncount=8\nrate='20Mbit'\n\
                 [[host]]\nname='far{}'\ncount=8\nrate='20Mbit'\nregion='far'\n";
    for seed in SEEDS {
        let faults = ["cut region=far at=30% until=130%"];
        let run = simulate(fleet, 8 * MIB, 65_536, 1, &faults, seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        let near = run.last_of(|name| name.starts_with("near"));
        let far = run.last_of(|name| name.starts_with("far"));
        assert!(near < 1.5, "seed {seed}: the side of the source has it at {near}");
        assert!(far > 1.3 && far < 3.5, "seed {seed}: {far}");
        let copies = run.border_copies.unwrap();
        assert!(copies < 2.0, "seed {seed}: {copies} copies over the border");
    }
}

#[test]
fn clocks_that_jump_cost_connections_and_nothing_else() {
    for seed in SEEDS {
        let run = of(16, 8, &["jump share=20% at=50%", "jump source at=60%"], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        assert!(run.last() < 2.5, "seed {seed}: {}", run.last());
    }
}

#[test]
fn twenty_percent_killed_at_random_times_and_one_link_at_one_percent() {
    for seed in SEEDS {
        let [first, second] = [10 + 13 * seed, 25 + 11 * seed];
        let faults = [
            "slow host=h5 to=1% at=10%".to_owned(),
            format!("kill share=10% at={first}% until={}%", first + 20),
            format!("kill share=10% at={second}% until={}%", second + 30),
        ];
        let faults = faults.each_ref().map(String::as_str);
        let run = of(20, 8, &faults, seed);
        let late = run.having(HostEnd::Unfinished);
        assert!(late.iter().all(|name| *name == "h5"), "seed {seed}: {late:?}");
        assert!(run.having(HostEnd::Killed).is_empty(), "seed {seed}");
        let others = run.last_of(|name| name != "h5");
        assert!(others < 3.5, "seed {seed}: {others}");
    }
}

#[test]
fn a_source_that_dies_before_one_copy_is_out_fails_the_transfer_by_its_pieces() {
    for seed in SEEDS {
        let at = format!("kill source at={}%", 10 + 15 * seed);
        let run = of(8, 4, &[&at], seed);
        assert_eq!(run.having(HostEnd::Unfinished).len(), 8, "seed {seed}");
        assert!(run.run.outcome.ended_at < 60 * SECOND, "seed {seed}: given up, not forgotten");
        assert!(!run.run.missing.is_empty(), "seed {seed}: the pieces are named");
        assert_eq!(run.run.missing, run.run.unheld, "seed {seed}: those that nobody has");
    }
}
