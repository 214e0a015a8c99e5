//! Two regions with a thin border: what crosses it, and what a bad host on one side costs.

#![allow(clippy::unwrap_used)]

mod common;

use common::{MIB, Run, simulate};

/// A source and half of the hosts before a border that carries little more than one copy.
fn two_regions(each: u32, rate: u32) -> String {
    let border = rate * 5 / 4;
    format!(
        "[[region]]\nname='far'\nrate='{border}Mbit'\nlatency='5ms'\n\
         [[host]]\nname='s'\nrate='{rate}Mbit'\n\
         [[host]]\nname='near{{}}'\ncount={each}\nrate='{rate}Mbit'\n\
         [[host]]\nname='far{{}}'\ncount={each}\nrate='{rate}Mbit'\nregion='far'\n"
    )
}

fn copies(run: &Run) -> f64 {
    run.border_copies.unwrap()
}

#[test]
fn a_thin_border_is_crossed_once() {
    for seed in 1..4 {
        // A short file, whose end is long: there each host asks for what it still lacks twice.
        let run = simulate(&two_regions(4, 40), 8 * MIB, 65_536, 1, &[], seed);
        assert!(run.is_whole());
        assert!(copies(&run) < 1.03, "seed {seed}: {} copies, {}", copies(&run), run.last());
    }
}

#[test]
fn who_feeds_a_region_and_who_is_fed_may_die_and_return() {
    for host in ["near4", "far1", "near2", "far4"] {
        let fault = format!("kill host={host} at=50% until=65%");
        let run = simulate(&two_regions(4, 20), 8 * MIB, 65_536, 1, &[&fault], 1);
        assert!(run.is_whole(), "{fault}");
        assert!(copies(&run) < 1.10, "{fault}: {} copies", copies(&run));
        // One that comes back must not halve the rate of all that stand behind somebody.
        let others = run.last_of(|name| name != host);
        assert!(others < 1.35, "{fault}: {others} of the bound");
    }
}

#[test]
fn a_slow_host_before_a_border_does_not_slow_down_those_behind() {
    let run =
        simulate(&two_regions(8, 20), 32 * MIB, 131_072, 1, &["slow host=near2 to=25% at=0s"], 1);
    assert!(run.is_whole());
    let others = run.last_of(|name| name != "near2");
    assert!(others < 1.25, "{others} of the bound");
    assert!(copies(&run) < 1.05, "{} copies", copies(&run));
}
