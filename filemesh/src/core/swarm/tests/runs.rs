//! Swarms without faults: how close they come to the bound, joining late, resuming, plain peers.

use super::super::extension::Take;
use super::super::serve::ANNOUNCE_MS_MAX;
use super::super::{Config, Dial, Pull, Start, Swarm};
use super::net::{Net, Node, trees};
use crate::core::leecher::{self, Leecher, LeecherOptions};
use crate::core::link::Have;
use crate::core::peer_wire::{BlockRange, HANDSHAKE_BYTES};
use crate::core::plan::{HostPlan, Member};
use crate::core::seeder::Seeder;
use crate::core::transfer_tests::source;

/// 20 Mbit/s.
pub const RATE: u64 = 2_500_000;

/// A source and `count` members that follow interleaved trees of four stripes.
pub fn planned(len: usize, piece_bytes: u32, count: usize, seed: u64) -> Net {
    let mut net = Net::new(source(len, piece_bytes, seed), RATE, seed);
    let members: Vec<Member> = (1..=count as Member).collect();
    members.iter().for_each(|_| {
        net.join(RATE);
    });
    for (member, plan) in members.iter().zip(trees(1, &members, 4)) {
        net.plan(*member as usize, plan);
    }
    net
}

/// The time that one link needs for the file, in microseconds.
pub fn bound_us(net: &Net) -> u64 {
    net.source().data.len() as u64 * 1_000_000 / RATE
}

pub fn last_us(net: &Net) -> u64 {
    net.nodes.iter().filter(|node| !node.is_mute).filter_map(|node| node.done_us).max().unwrap_or(0)
}

pub fn assert_true_copies(net: &Net) {
    for (at, node) in net.nodes.iter().enumerate().filter(|(_, node)| !node.is_mute) {
        assert!(node.disk == net.source().data, "member {at} holds other bytes");
        // Each proved byte has one sender, whatever came twice.
        let Some(progress) = node.swarm.progress() else { continue };
        let received: u64 = node.swarm.received().values().sum();
        let fetched = net.source().data.len() as u64 - progress.resumed_bytes;
        assert_eq!(received, fetched, "what member {at} got by sender");
    }
}

#[test]
fn interleaved_trees_reach_the_bound_and_the_source_sends_one_copy() {
    let seed = 1;
    let mut net = planned(32 << 20, 512 << 10, 16, seed);
    let bound = bound_us(&net);
    assert!(net.run(4 * bound, Net::all_done), "seed {seed}: not done after 4 bounds");
    assert_true_copies(&net);
    let last = last_us(&net);
    let source_sent = net.nodes[0].swarm.traffic().0;
    let share = last as f64 / bound as f64;
    println!("seed {seed}: last {share:.4} of the bound, source sent {source_sent} bytes");
    assert!(share <= 1.05, "seed {seed}: {share:.4} of the bound");
    assert!(source_sent <= 32 << 20, "seed {seed}: the source sent {source_sent}");
    for node in &net.nodes[1..] {
        let progress = node.swarm.progress().unwrap();
        assert_eq!((progress.refused_blocks, progress.wasted_blocks), (0, 0), "seed {seed}");
    }
    // Nothing came twice, so what the members got from the source is what it sent.
    let from_source = |node: &Node| node.swarm.received().get(&0).copied().unwrap_or(0);
    assert_eq!(net.nodes[1..].iter().map(from_source).sum::<u64>(), source_sent);
}

#[test]
fn rate_limits_hold_in_both_directions() {
    let mut net = Net::new(source(2 << 20, 64 << 10, 1), RATE, 1);
    // Member 1 asks for a quarter of its link; member 2 gets all from 1, which sends an eighth.
    net.limits = (RATE / 8, RATE / 4);
    net.join(RATE);
    net.limits = (0, 0);
    net.join(RATE);
    for (member, parent) in [(1, 0), (2, 1)] {
        let plan =
            HostPlan { number: 1, parents: vec![Some(parent)], neighbours: vec![], far: vec![] };
        net.plan(member, plan);
    }
    let bound = bound_us(&net);
    assert!(net.run(16 * bound, Net::all_done));
    for (member, share) in [(1, 4.0), (2, 8.0)] {
        let took = net.nodes[member].done_us.unwrap() as f64 / bound as f64;
        assert!((took / share - 1.0).abs() < 0.03, "member {member}: {took:.3} of the bound");
    }
}

#[test]
fn a_mesh_without_a_plan_finishes() {
    for seed in 1..4 {
        let mut net = Net::new(source(4 << 20, 64 << 10, seed), RATE, seed);
        for member in 1..=8usize {
            net.join(RATE);
            let before = (0..member as Member).rev().take(4).collect();
            net.plan(
                member,
                HostPlan { number: 1, parents: vec![], neighbours: before, far: vec![] },
            );
        }
        let bound = bound_us(&net);
        assert!(net.run(4 * bound, Net::all_done), "seed {seed}");
        assert_true_copies(&net);
        println!("seed {seed}: mesh alone {:.2} of the bound", last_us(&net) as f64 / bound as f64);
    }
}

#[test]
fn who_joins_late_gets_everything_from_neighbours() {
    for seed in 1..4 {
        let mut net = planned(4 << 20, 64 << 10, 8, seed);
        let bound = bound_us(&net);
        assert!(!net.run(bound / 2, Net::all_done), "seed {seed}: too fast");
        let late = net.join(RATE);
        let parents = vec![Some(1), Some(2), Some(3), Some(4)];
        net.plan(late, HostPlan { number: 2, parents, neighbours: vec![5, 6, 7], far: vec![] });
        assert!(net.run(4 * bound, Net::all_done), "seed {seed}");
        assert_true_copies(&net);
    }
}

#[test]
fn claims_of_an_earlier_run_are_checked_and_not_fetched_again() {
    for seed in 1..4 {
        let mut net = planned(4 << 20, 64 << 10, 8, seed);
        let mut disk = net.source().data.clone();
        // Every fifth block is wrong.
        disk.iter_mut().step_by(5 * 16_384).for_each(|byte| *byte ^= 1);
        let resumed = net.resume(disk, RATE);
        let plan = HostPlan {
            number: 1,
            parents: vec![Some(1), Some(2)],
            neighbours: vec![3],
            far: vec![],
        };
        net.plan(resumed, plan);
        let bound = bound_us(&net);
        assert!(net.run(4 * bound, Net::all_done), "seed {seed}");
        assert_true_copies(&net);
        let progress = net.nodes[resumed].swarm.progress().unwrap();
        let wrong = 256u64.div_ceil(5) * 16_384;
        assert_eq!(progress.resumed_bytes, (4 << 20) - wrong, "seed {seed}");
        assert!(net.nodes[resumed].swarm.traffic().1 <= wrong + 65_536, "seed {seed}");
    }
}

/// Appends all that `swarm`, which has the whole of `data`, sends to peer 1.
fn pull_all(swarm: &mut Swarm, data: &[u8], leaves: &[[u8; 32]], out: &mut Vec<u8>, now_ms: u64) {
    while let Some(pull) = swarm.next(1, 1 << 20, out, now_ms) {
        match pull {
            Pull::Data { offset, len } => {
                out.extend_from_slice(&data[offset as usize..(offset + u64::from(len)) as usize]);
            }
            Pull::Leaves { first, count } => {
                let leaves = &leaves[first as usize..(first + count) as usize];
                swarm.leaves(1, Some(leaves.as_flattened()), out, now_ms);
            }
        }
    }
}

#[test]
fn a_plain_leecher_is_served() {
    let source = source(3_000_000, 131_072, 1);
    let config = Config::new(source.handshake("seed"), 1);
    let mut swarm = Swarm::new(Start::Complete(source.tree.clone()), 0, config, 0);
    let ours = source.handshake("leecher");
    let mut leecher = Leecher::connect(source.download(None), ours, LeecherOptions::default(), 0);
    let (mut up, mut down, mut got, mut done) = (vec![], vec![], 0, false);
    swarm.connected(1, 9, Dial::Accepted(ours), 0, &mut vec![]);
    leecher.take_output(&mut up, 0);
    up.drain(..HANDSHAKE_BYTES);
    for now_ms in 0..200 {
        leecher.take_output(&mut up, now_ms);
        let mut actions = vec![];
        let used = swarm.receive(1, &up, now_ms, &mut actions);
        assert_eq!(actions, []);
        up.drain(..used);
        pull_all(&mut swarm, &source.data, &source.leaves, &mut down, now_ms);
        let mut actions = vec![];
        let used = leecher.receive(&down, now_ms, &mut actions);
        for action in actions {
            match action {
                leecher::Action::Write { data, .. } => {
                    got += data.len();
                    let mut more = vec![];
                    leecher.written(data.len() as u64, now_ms, &mut more);
                    done |= more.contains(&leecher::Action::Done);
                }
                leecher::Action::Failed(failure) => panic!("{failure}"),
                leecher::Action::Leaves { .. } | leecher::Action::Done => {}
            }
        }
        down.drain(..used);
    }
    assert!(done && got == 3_000_000);
}

#[test]
fn a_plain_seed_is_a_mesh_peer() {
    let source = source(3_000_000, 131_072, 2);
    let config = Config::new(source.handshake("leecher"), 1);
    let mut swarm = Swarm::new(Start::Download(Box::new(source.download(None))), 1, config, 0);
    let theirs = source.handshake("seed");
    let mut seeder = Seeder::connect(source.tree.clone(), Have::All, theirs, 0);
    let (mut up, mut down, mut disk) = (vec![], vec![], vec![0; 3_000_000]);
    let mut actions = vec![];
    // Its stripes are planned with it, though it cannot be told so.
    let plan =
        HostPlan { number: 1, parents: vec![Some(0), None], neighbours: vec![0], far: vec![] };
    swarm.set_plan(plan, 0, &mut actions);
    swarm.connected(1, 0, Dial::Opened, 0, &mut actions);
    swarm.next(1, 1 << 20, &mut up, 0);
    for now_ms in 0..200 {
        let used = seeder.receive(&up, now_ms).unwrap();
        up.drain(..used);
        while let Some(pull) = seeder.next(1 << 20, &mut down, now_ms) {
            match pull {
                Pull::Data { offset, len } => {
                    let end = offset as usize + len as usize;
                    down.extend_from_slice(&source.data[offset as usize..end]);
                }
                Pull::Leaves { first, count } => {
                    let leaves = &source.leaves[first as usize..(first + count) as usize];
                    seeder.leaves(Some(leaves.as_flattened()), &mut down, now_ms);
                }
            }
        }
        let mut actions = vec![];
        let used = swarm.receive(1, &down, now_ms, &mut actions);
        for action in actions {
            match action {
                super::super::Action::Write { offset, data } => {
                    let at = offset as usize;
                    disk[at..at + data.len()].copy_from_slice(&down[data.clone()]);
                    swarm.written(data.len() as u64, now_ms, &mut vec![]);
                }
                super::super::Action::Close { why, .. } => panic!("{why}"),
                _ => {}
            }
        }
        down.drain(..used);
        swarm.next(1, 1 << 20, &mut up, now_ms);
    }
    assert!(swarm.is_done() && disk == source.data);
    assert_eq!(swarm.take_report().gained, vec![0..23]);
}

/// News of a piece is 9 bytes, and a packet and a wake-up if it goes alone.
#[test]
fn news_of_a_piece_waits_for_more_unless_pieces_move_by_it() {
    let source = source(1 << 20, 65_536, 1);
    for (parents, is_at_once) in [(vec![Some(7)], false), (vec![], true)] {
        let start = Start::Download(Box::new(source.download(None)));
        let mut swarm = Swarm::new(start, 1, Config::new(source.handshake("us"), 1), 0);
        let mut actions = vec![];
        let plan = HostPlan { number: 1, parents, neighbours: vec![2], far: vec![] };
        swarm.set_plan(plan, 0, &mut actions);
        let dial = Dial::Shaken { opened: false, theirs: source.handshake("them") };
        swarm.connected(5, 2, dial, 0, &mut actions);
        assert_eq!(swarm.next(5, 1 << 20, &mut vec![], 0), None);
        swarm.take_ready();

        swarm.gained.push(3);
        swarm.serve_block(4 * 3, true, 100);
        assert_eq!(swarm.take_ready() == [5], is_at_once);
        if !is_at_once {
            // No rate is measured yet, so it waits for the longest time.
            let at_ms = 100 + ANNOUNCE_MS_MAX;
            assert!(swarm.deadline_ms().is_some_and(|at| at <= at_ms));
            swarm.tick(at_ms - 1, &mut actions);
            assert_eq!(swarm.take_ready(), []);
            swarm.tick(at_ms, &mut actions);
            assert_eq!(swarm.take_ready(), [5]);
        }
        let mut out = vec![];
        assert_eq!(swarm.next(5, 1 << 20, &mut out, 400), None);
        assert_eq!(out, [0, 0, 0, 5, 4, 0, 0, 0, 3]);
    }
}

/// The block that completes a member's file, of which all peers hear at once, is also one that its
/// children wait for: it must not go by them.
#[test]
fn the_last_block_goes_on_like_the_others() {
    let source = source(1 << 20, 65_536, 1);
    let start = Start::Complete(source.tree.clone());
    let mut swarm = Swarm::new(start, 1, Config::new(source.handshake("us"), 1), 0);
    let dial = Dial::Shaken { opened: false, theirs: source.handshake("them") };
    swarm.connected(5, 2, dial, 0, &mut vec![]);
    let peer = swarm.peers.get_mut(&5).unwrap();
    peer.takes = Take { plan: 1, stripes: 1, mask: 1 };
    assert!(peer.uploads.wait(BlockRange { piece: 15, begin: 49_152, len: 16_384 }));
    assert!(peer.uploads.is_empty());
    swarm.serve_block(63, true, 100);
    assert!(!swarm.peers[&5].uploads.is_empty());
}
