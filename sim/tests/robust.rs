//! What one bad host, link or moment costs the others: faults by seed, against the bound.
//! Control knows no rates and learns of a fault as it does in the product.

#![allow(clippy::unwrap_used)]

mod common;

use common::{MIB, Run, fleet, simulate};
use skein_sim::outcome::HostEnd;

fn of(hosts: u32, mib: u64, faults: &[&str], seed: u64) -> Run {
    simulate(&fleet(hosts, "20Mbit"), mib * MIB, 65_536, 1, faults, seed)
}

#[test]
fn a_host_at_a_quarter_of_the_rate_holds_up_itself_alone() {
    // It is an inner node at first: children wait for a stripe until its rate is known.
    for seed in 1..3 {
        let run = of(16, 16, &["slow host=h3 to=25% at=0s"], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        let (others, own) = (run.last_of(|name| name != "h3"), run.last_of(|name| name == "h3"));
        assert!(others < 1.4, "seed {seed}: {others}");
        assert!(own / 4.0 < 1.1, "seed {seed}: {own} of the others' bound, 4 of its own");
    }
}

#[test]
fn a_host_at_a_hundredth_of_the_rate_does_not_hold_up_the_others() {
    let run = of(16, 16, &["slow host=h3 to=1% at=0s"], 1);
    let others = run.last_of(|name| name != "h3");
    assert_eq!(run.having(HostEnd::Unfinished), ["h3"], "it needs ten minutes and more");
    // It stands in the chain until its first pieces are missed.
    assert!(others < 1.5, "{others}");
}

#[test]
fn the_survivors_of_a_tenth_hardly_notice() {
    for seed in 1..3 {
        let run = of(24, 8, &["kill share=10% at=50%"], seed);
        assert!(run.having(HostEnd::Unfinished).is_empty(), "seed {seed}");
        assert!(
            run.last() < 1.3 && run.source_copies < 1.2,
            "{} {}",
            run.last(),
            run.source_copies
        );
    }
}

#[test]
fn who_comes_back_stands_at_the_end_and_holds_up_nobody() {
    for seed in 1..3 {
        let run = of(16, 16, &["kill host=h5 at=50% until=65%"], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        let (others, own) = (run.last_of(|name| name != "h5"), run.last_of(|name| name == "h5"));
        assert!(others < 1.1, "seed {seed}: {others}");
        // It was away for 15 % of the bound.
        assert!(own < 1.3, "seed {seed}: {own}");
    }
}

#[test]
fn whatever_is_killed_and_comes_back_everybody_finishes() {
    for seed in 1..9 {
        let (at, until) = (10 + 9 * seed, 40 + 11 * seed);
        let first = format!("kill share=20% at={at}% until={until}%");
        let second = format!("kill share=20% at={}% until={}%", at + 15, until + 20);
        let run = of(16, 4, &[&first, &second], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        assert!(run.last() < until as f64 / 100.0 + 3.0, "seed {seed}: {}", run.last());
    }
}

#[test]
fn a_liar_is_expelled_at_its_first_block_by_each_who_asks_it() {
    for seed in 1..4 {
        let run = of(16, 8, &["corrupt host=h3 at=0s"], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        let refused = run.run.outcome.refused_blocks;
        assert!((1..=16).contains(&refused), "seed {seed}: {refused}");
        assert!(run.last() < 2.2, "seed {seed}: {}", run.last());
    }
}

#[test]
fn what_was_cut_off_catches_up() {
    for seed in 1..3 {
        let run = of(16, 8, &["cut host=h1* at=30% until=60%"], seed);
        assert!(run.is_whole(), "seed {seed}: {:?}", run.having(HostEnd::Unfinished));
        assert!(run.last() < 4.0, "seed {seed}: {}", run.last());
    }
}

#[test]
fn a_source_is_not_missed_once_it_sent_everything() {
    for seed in 1..4 {
        let run = of(16, 8, &["kill source at=112%"], seed);
        assert!(run.having(HostEnd::Unfinished).is_empty(), "seed {seed}");
    }
}

#[test]
fn one_packet_in_a_hundred_may_be_lost() {
    let fleet = "[[host]]\nname='s'\nrate='20Mbit'\nloss='1%'\n\
                 [[host]]\nname='h{}'\ncount=16\nrate='20Mbit'\nloss='1%'\n";
    let run = simulate(fleet, 32 * MIB, 131_072, 1, &[], 1);
    assert!(run.is_whole() && run.last() < 1.05, "{}", run.last());
}

#[test]
fn four_hosts_each_have_a_stripe_of_their_own() {
    let run = simulate(&fleet(4, "100Mbit"), 16 * MIB, 131_072, 1, &[], 1);
    assert!(run.is_whole());
    assert!(run.last() < 1.1 && run.source_copies < 1.1, "{} {}", run.last(), run.source_copies);
}
