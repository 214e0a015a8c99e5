//! Swarms with members that die, are slow, lie or say nothing.

use super::super::YIELD_MS;
use super::net::{Net, trees};
use super::runs::{RATE, assert_true_copies, bound_us, last_us, planned};
use crate::core::link::Have;
use crate::core::plan::{HostPlan, Member};
use crate::core::transfer_tests::source;

/// Whether pieces of all are out from the source: somebody else has each.
fn is_out(net: &Net) -> bool {
    let pieces = net.source().geometry().piece_count();
    (0..pieces).all(|piece| net.nodes[1..].iter().any(|node| node.swarm.have().has(piece)))
}

fn share(net: &Net) -> f64 {
    last_us(net) as f64 / bound_us(net) as f64
}

/// What unfinished members lack, for a failure's message.
fn unfinished(net: &Net) -> String {
    let all = net.source().geometry().piece_count();
    let lacking =
        net.nodes.iter().enumerate().filter(|(_, node)| !node.is_mute && !node.swarm.is_done());
    let list = lacking.map(|(at, node)| {
        let lacks: Vec<u32> = (0..all).filter(|piece| !node.swarm.have().has(*piece)).collect();
        format!("\n{at}: {} pieces, {:?}...", lacks.len(), &lacks[..lacks.len().min(8)])
    });
    format!("{:.2} of the bound {}", share(net), list.collect::<String>())
}

#[test]
fn a_dead_inner_node_is_replaced_by_neighbours_without_a_new_plan() {
    for seed in 1..4 {
        let mut net = planned(8 << 20, 128 << 10, 16, seed);
        let bound = bound_us(&net);
        assert!(!net.run(bound * (2 + seed) / 7, Net::all_done), "seed {seed}: too fast");
        // Member 5 stands below member 1 in the tree of stripe 0, with members below itself.
        net.kill(5);
        assert!(net.run(4 * bound, Net::all_done), "seed {seed}: {}", unfinished(&net));
        assert_true_copies(&net);
        println!("seed {seed}: dead inner node, last {:.3} of the bound", share(&net));
        assert!(share(&net) < 1.6, "seed {seed}: {:.3} of the bound", share(&net));
        let reports = net.nodes.iter().filter(|node| node.late.contains(&5)).count();
        assert!(reports >= 3, "seed {seed}: {reports} of its children reported it");
    }
}

#[test]
fn a_dead_first_node_is_replaced_by_a_new_plan() {
    for seed in 1..4 {
        let mut net = planned(8 << 20, 128 << 10, 17, seed);
        let bound = bound_us(&net);
        assert!(!net.run(bound / 2, Net::all_done), "seed {seed}: too fast");
        net.kill(1);
        let died_us = net.now_us;
        let noticed = net.run(4 * bound, |net| net.nodes.iter().any(|node| node.late.contains(&1)));
        let late_ms = (net.now_us - died_us) / 1000;
        // Four piece times at this rate are 210 ms, and it is looked every 50 ms.
        assert!(noticed && late_ms < 500, "seed {seed}: noticed after {late_ms} ms");
        let rest: Vec<Member> = (2..=17).collect();
        for (member, plan) in rest.iter().zip(trees(2, &rest, 4)) {
            net.plan(*member as usize, plan);
        }
        assert!(net.run(4 * bound, Net::all_done), "seed {seed}: {}", unfinished(&net));
        assert_true_copies(&net);
        println!("seed {seed}: dead first node, last {:.3} of the bound", share(&net));
        assert!(share(&net) < 1.6, "seed {seed}: {:.3} of the bound", share(&net));
    }
}

#[test]
fn a_slow_parent_does_not_hold_up_the_others() {
    for seed in 1..4 {
        let mut net = planned(8 << 20, 128 << 10, 16, seed);
        net.nodes[5].up_bytes_per_s = RATE / 8;
        let bound = bound_us(&net);
        assert!(net.run(8 * bound, Net::all_done), "seed {seed}: {}", unfinished(&net));
        assert_true_copies(&net);
        println!("seed {seed}: slow parent, last {:.3} of the bound", share(&net));
        // Alone it would hold up its stripe for four bounds or more.
        assert!(share(&net) < 2.0, "seed {seed}: {:.3} of the bound", share(&net));
    }
}

#[test]
fn a_liar_is_named_at_its_first_block_and_nothing_of_it_is_relayed() {
    for seed in 1..4 {
        let mut net = planned(4 << 20, 64 << 10, 16, seed);
        net.nodes[5].lies = true;
        let bound = bound_us(&net);
        assert!(net.run(8 * bound, Net::all_done), "seed {seed}: {}", unfinished(&net));
        assert_true_copies(&net);
        let mut victims = 0;
        for node in &mut net.nodes {
            let lies = node.closed.iter().filter(|(_, why)| why.is_lie()).count();
            assert!(lies <= 1, "seed {seed}: after its first lie a member is not asked again");
            let liars = node.swarm.take_report().liars;
            assert!(liars.iter().all(|liar| *liar == 5), "seed {seed}: {liars:?} named");
            assert_eq!(liars.len(), lies, "seed {seed}");
            let refused = node.swarm.progress().map_or(0, |progress| progress.refused_blocks);
            assert_eq!(refused, lies as u64, "seed {seed}: one block of one liar");
            victims += lies;
        }
        assert!(victims >= 3, "seed {seed}: its children noticed");
    }
}

#[test]
fn a_silent_peer_costs_patience_and_no_more() {
    for seed in 1..4 {
        let mut net = planned(4 << 20, 64 << 10, 16, seed);
        net.run(20_000, |_| false);
        net.kill(5);
        let bound = bound_us(&net);
        assert!(net.run(8 * bound, Net::all_done), "seed {seed}: {}", unfinished(&net));
        assert_true_copies(&net);
        println!("seed {seed}: silent from the start, last {:.3} of the bound", share(&net));
        assert!(share(&net) < 1.6, "seed {seed}: {:.3} of the bound", share(&net));
    }
}

#[test]
fn all_finish_when_the_source_dies_after_one_copy_is_out() {
    for seed in 1..4 {
        let mut net = planned(4 << 20, 64 << 10, 16, seed);
        let bound = bound_us(&net);
        assert!(net.run(4 * bound, is_out), "seed {seed}");
        assert!(!net.all_done(), "seed {seed}: nothing is left to do");
        net.kill(0);
        assert!(net.run(8 * bound, Net::all_done), "seed {seed}: {}", unfinished(&net));
        assert_true_copies(&net);
    }
}

#[test]
fn an_isolated_member_goes_on_with_new_neighbours() {
    for seed in 1..4 {
        let mut net = planned(4 << 20, 64 << 10, 8, seed);
        let lonely = net.join(RATE);
        net.plan(
            lonely,
            HostPlan { number: 1, parents: vec![Some(5)], neighbours: vec![5], far: vec![] },
        );
        let bound = bound_us(&net);
        assert!(!net.run(bound / 2, Net::all_done), "seed {seed}: too fast");
        net.kill(5);
        let others =
            |net: &Net| net.nodes[..lonely].iter().all(|node| node.is_mute || node.swarm.is_done());
        assert!(net.run(4 * bound, others), "seed {seed}");
        assert!(!net.nodes[lonely].swarm.is_done(), "seed {seed}");
        assert!(net.nodes[lonely].late.contains(&5), "seed {seed}: it says why");
        let before = net.nodes[lonely].swarm.progress().unwrap().verified_bytes;
        let neighbours = vec![1, 2, 3];
        net.plan(lonely, HostPlan { number: 2, parents: vec![], neighbours, far: vec![] });
        assert!(net.run(12 * bound, Net::all_done), "seed {seed}");
        assert_true_copies(&net);
        let Have::All = net.nodes[lonely].swarm.have() else { panic!("seed {seed}") };
        let fetched = net.nodes[lonely].swarm.traffic().1;
        assert!(before > 0 && fetched <= (4 << 20) + 65_536, "seed {seed}: {fetched} fetched");
    }
}

#[test]
fn the_last_blocks_of_a_slow_peer_are_asked_for_twice() {
    for seed in 1..4 {
        let mut net = Net::new(source(1 << 20, 64 << 10, seed), RATE, seed);
        let whole = net.source().data.clone();
        let second = net.resume(whole, RATE);
        net.plan(second, HostPlan { number: 1, parents: vec![], neighbours: vec![0], far: vec![] });
        assert!(net.run(1_000_000, Net::all_done), "seed {seed}: the second seed is ready");
        net.nodes[second].up_bytes_per_s = RATE / 16;
        // It gives its neighbours time to call first.
        let (start_us, bound) = (net.now_us + YIELD_MS * 1000, bound_us(&net));
        let member = net.join(RATE);
        let neighbours = vec![0, second as Member];
        net.plan(member, HostPlan { number: 1, parents: vec![], neighbours, far: vec![] });
        assert!(net.run(start_us + 8 * bound, Net::all_done), "seed {seed}");
        assert_true_copies(&net);
        // What the slow one was asked for first, 256 KiB, takes it four bounds.
        let took = (net.now_us - start_us) as f64 / bound as f64;
        println!("seed {seed}: one slow seed of two, {took:.2} of the bound");
        assert!(took < 2.5, "seed {seed}: {took:.2} of the bound");
    }
}
