//! Two regions: what crosses the border between them, and that nothing stays behind it for ever.

use super::net::Net;
use super::runs::{RATE, assert_true_copies, bound_us};
use crate::core::plan::{HostPlan, Member};
use crate::core::transfer_tests::source;

/// Members 1 to 4 are in the source's region, 5 to 8 beyond its border.
const NEAR: std::ops::RangeInclusive<Member> = 1..=4;
const FAR: std::ops::RangeInclusive<Member> = 5..=8;

/// Of each stripe of trees one near and one far member gets all and sends it to its region; of a
/// chain everybody has one parent. Everybody is everybody's neighbour.
fn two_regions(seed: u64, is_chain: bool) -> Net {
    let mut net = Net::new(source(4 << 20, 64 << 10, seed), RATE, seed);
    for _ in NEAR.chain(FAR) {
        net.join(RATE);
    }
    for member in NEAR.chain(FAR) {
        let is_far = |other: &Member| NEAR.contains(other) != NEAR.contains(&member);
        let neighbours: Vec<Member> = NEAR.chain(FAR).filter(|other| *other != member).collect();
        let far = neighbours.iter().copied().filter(is_far).collect();
        let entries = || NEAR.zip(FAR);
        let parent = |(near, far): (Member, Member)| match member {
            _ if member == near => 0,
            _ if member == far => near,
            _ if NEAR.contains(&member) => near,
            _ => far,
        };
        let parents = match is_chain {
            true => vec![Some(member - 1)],
            false => entries().map(|entry| Some(parent(entry))).collect(),
        };
        net.plan(member as usize, HostPlan { number: 1, parents, neighbours, far });
    }
    net
}

/// Copies of the file that went into the far region.
fn crossed(net: &Net) -> f64 {
    let into = |(from, to): &(usize, usize)| {
        !FAR.contains(&(*from as Member)) && FAR.contains(&(*to as Member))
    };
    let bytes: u64 = net.sent.iter().filter(|(ends, _)| into(ends)).map(|(_, sent)| sent).sum();
    bytes as f64 / net.source().data.len() as f64
}

fn copies(seed: u64, is_chain: bool) -> f64 {
    let mut net = two_regions(seed, is_chain);
    // A near member is too slow to pass its stripe on at the pace of the others.
    net.nodes[2].up_bytes_per_s = if is_chain { RATE } else { RATE / 2 };
    let bound = bound_us(&net);
    assert!(net.run(8 * bound, Net::all_done), "seed {seed}: not done after 8 bounds");
    assert_true_copies(&net);
    crossed(&net)
}

#[test]
fn a_border_is_crossed_once() {
    for seed in 1..4 {
        let (chain, trees) = (copies(seed, true), copies(seed, false));
        println!("seed {seed}: {chain:.3} copies in a chain, {trees:.3} in trees");
        assert!((1.0..1.03).contains(&chain), "seed {seed}: {chain:.3} copies in a chain");
        assert!((1.0..1.05).contains(&trees), "seed {seed}: {trees:.3} copies in trees");
    }
}

/// Bytes that member 1 has from member 2, which has all, 400 ms after its parent was late and when
/// it is done.
fn from_second(seed: u64, far: Vec<Member>) -> [u64; 2] {
    let mut net = Net::new(source(4 << 20, 64 << 10, seed), RATE, seed);
    net.join(RATE);
    let whole = net.source().data.clone();
    net.resume(whole, RATE);
    let second = HostPlan { number: 1, neighbours: vec![0], ..HostPlan::default() };
    net.plan(2, second);
    assert!(net.run(2_000_000, |net| net.nodes[2].swarm.is_done()), "seed {seed}");
    net.plan(1, HostPlan { number: 1, parents: vec![Some(0)], neighbours: vec![2], far });
    let some = net.now_us + bound_us(&net) / 2;
    assert!(!net.run(some, Net::all_done), "seed {seed}: too fast");
    net.kill(0);
    assert!(net.run(some + 2_000_000, |net| net.nodes[1].late.contains(&0)), "seed {seed}");
    let soon = net.now_us + 400_000;
    net.run(soon, |_| false);
    let sent = |net: &Net| net.sent.get(&(2, 1)).copied().unwrap_or(0);
    let before = sent(&net);
    assert!(net.run(soon + 8 * bound_us(&net), Net::all_done), "seed {seed}: not done");
    [before, sent(&net)]
}

#[test]
fn a_far_neighbour_is_asked_when_no_parent_will_bring_it() {
    for seed in 1..4 {
        let ([near, _], [far, all]) = (from_second(seed, vec![]), from_second(seed, vec![2]));
        assert!(near > 400_000, "seed {seed}: {near} bytes of one that is near, at once");
        assert!(far < 16_384 && all > 1_000_000, "seed {seed}: {far} at once, {all} in the end");
    }
}

#[test]
fn the_last_that_is_fed_over_a_border_is_no_single_way() {
    for seed in 1..4 {
        let mut net = two_regions(seed, true);
        let bound = bound_us(&net);
        assert!(!net.run(bound / 2, Net::all_done), "seed {seed}: too fast");
        // The one that feeds the far region, and the one that is fed: nobody is told.
        net.kill(4);
        net.kill(5);
        assert!(net.run(12 * bound, Net::all_done), "seed {seed}: not done after 12 bounds");
        assert_true_copies(&net);
    }
}
