//! The shipping swarm and coordinator on the modelled network: small fleets, every block hashed.

#![allow(clippy::unwrap_used)]

mod common;

use common::{MIB, fleet, simulate};
use skein_sim::outcome::HostEnd;
use skein_sim::queue::SECOND;

#[test]
fn sixteen_hosts_have_the_file_near_the_bound() {
    let run = simulate(&fleet(16, "20Mbit"), 32 * MIB, 131_072, 1, &[], 1);
    assert!(run.is_whole());
    assert!(run.last() < 1.03 && run.source_copies < 1.02, "{} {}", run.last(), run.source_copies);
    // The last window of each is on its way down the chain: nobody asks others for it.
    assert!(run.run.outcome.wasted_bytes < MIB, "{}", run.run.outcome.wasted_bytes);
}

#[test]
fn a_hop_costs_little_more_than_a_block() {
    let run = simulate(&fleet(8, "100Mbit"), 16 * MIB, 131_072, 1, &[], 1);
    assert!(run.is_whole());
    assert!(run.last() < 1.04, "{}", run.last());
}

#[test]
fn equal_seeds_give_equal_runs() {
    let of = |seed| {
        let faults = ["kill share=20% at=30% until=60%", "slow host=h3 to=25% at=0s"];
        simulate(&fleet(12, "20Mbit"), 4 * MIB, 65_536, 1, &faults, seed)
    };
    let (first, again, other) = (of(7), of(7), of(8));
    assert_eq!(first.run, again.run);
    assert_ne!(first.run.outcome.ends, other.run.outcome.ends, "the seed changes nothing");
}

#[test]
fn the_killed_come_back_and_the_others_go_on() {
    for seed in 1..4 {
        let faults = ["kill share=20% at=40% until=70%"];
        let run = simulate(&fleet(20, "20Mbit"), 4 * MIB, 65_536, 1, &faults, seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        let run =
            simulate(&fleet(20, "20Mbit"), 4 * MIB, 65_536, 1, &["kill host=h7 at=50%"], seed);
        assert_eq!(run.having(HostEnd::Killed), ["h7"]);
        assert!(run.having(HostEnd::Unfinished).is_empty(), "seed {seed}");
    }
}

#[test]
fn a_liar_is_refused_and_everybody_finishes() {
    for seed in 1..4 {
        let faults = ["corrupt host=h2 at=0s"];
        let run = simulate(&fleet(12, "20Mbit"), 4 * MIB, 65_536, 1, &faults, seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        assert!(run.run.outcome.refused_blocks > 0, "seed {seed}: it sent nothing");
    }
}

#[test]
fn without_its_source_a_transfer_ends_and_says_so() {
    let run = simulate(&fleet(6, "20Mbit"), 4 * MIB, 65_536, 1, &["kill source at=20%"], 1);
    assert_eq!(run.having(HostEnd::Unfinished).len(), 6);
    assert!(run.run.outcome.ended_at < 60 * SECOND, "it was given up, not forgotten");
}

#[test]
fn a_scaled_file_takes_about_as_long() {
    let of = |scale| {
        let run = simulate(&fleet(16, "200Mbit"), 256 * MIB, 1 << 20, scale, &[], 1);
        assert!(run.is_whole());
        run.last()
    };
    let (real, scaled) = (of(1), of(16));
    assert!((0.85..1.15).contains(&(scaled / real)), "{real} {scaled}");
}
