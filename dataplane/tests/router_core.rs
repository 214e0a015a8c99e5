//! The router's core against a disk and agents in memory: scenarios, and the property that no
//! interleaving of arrivals, repeats, reconnects, faults, changes of routes and crashes loses or
//! repeats a record.

#![allow(clippy::unwrap_used)] // helpers of tests

mod router_support;

use std::sync::Arc;

use proptest::prelude::*;
use router_support::*;
use skein_dataplane::router::{RouterReport, ToRouter};
use skein_wire::data::{HoldReason, LaneStat};
use skein_wire::fleet::v1::{FileStream, RoutingTable};
use skein_wire::ids::{DataId, Epoch};

fn simple() -> World {
    World::new(1, &[7], table(1, vec![stream(1, |_| ())], vec![route(7, 1)]))
}

fn connected(mut world: World) -> World {
    for lane in 0..world.lanes.len() {
        world.connect(lane);
    }
    world.settle();
    world
}

#[test]
fn nothing_is_acknowledged_before_the_checkpoint() {
    let mut world = connected(simple());
    world.lanes[0].append(3);
    while world.lanes[0].send() {}
    world.deliver(0);
    world.pass(100);
    // Open, record, write, sync, checkpoint: each must end before the ack.
    let mut steps = 0;
    while world.lanes[0].to_agent.is_empty() {
        assert!(world.disk_step(0), "the disk has nothing to do and there is no ack");
        steps += 1;
    }
    assert!(steps >= 5, "acknowledged after {steps} operations");
    world.finish();
    world.assert_exactly_once("s1");
}

#[test]
fn an_idle_worker_has_no_deadline() {
    let mut world = World::new(1, &[7], table(1, vec![], vec![]));
    world.settle();
    assert_eq!(world.core.deadline_ms(), None);
}

#[test]
fn an_unknown_data_id_is_held_and_flows_when_its_route_comes() {
    let mut world = connected(World::new(1, &[7], table(1, vec![stream(1, |_| ())], vec![])));
    world.lanes[0].append(5);
    world.settle();
    assert_eq!(world.lanes[0].held_for, Some(HoldReason::UnknownDataId));
    world.pass(1_000);
    let held = |report: &RouterReport| match report {
        RouterReport::Lanes(lanes) => lanes.iter().any(|lane| lane.held == "unknown_data_id"),
        _ => false,
    };
    assert!(world.reports.iter().any(held), "the held lane is reported");
    let routed = table(2, vec![stream(1, |_| ())], vec![route(7, 1)]);
    world.tell(ToRouter::Table(Arc::new(routed)));
    world.finish();
    world.assert_exactly_once("s1");
    assert!(world.reports.iter().any(|report| matches!(report, RouterReport::TableApplied(2))));
}

#[test]
fn a_full_disk_holds_its_lanes_and_no_other_and_resumes() {
    let tables = vec![stream(1, |_| ()), stream(2, |file| file.directory = "/other".to_owned())];
    let mut world =
        connected(World::new(1, &[7, 8], table(1, tables, vec![route(7, 1), route(8, 2)])));
    for round in 0..3 {
        world.lanes[0].append(4);
        world.settle();
        world.pass(100);
        world.settle();
        world.disk.faults = Faults { write: true, ..Faults::default() };
        world.lanes[0].append(4);
        world.settle();
        world.pass(100);
        world.settle();
        assert_eq!(world.lanes[0].held_for, Some(HoldReason::SinkUnavailable), "round {round}");
        world.disk.faults = Faults::default();
        world.lanes[1].append(3);
        world.settle();
        world.pass(100);
        world.settle();
        assert!(world.lanes[1].spool.is_empty(), "the other lane flows");
        assert_eq!(world.lanes[1].held_for, None);
        world.disk.faults = Faults { write: true, truncate: true, ..Faults::default() };
        for _ in 0..10 {
            world.pass(7_000);
            world.settle();
            assert!(!world.lanes[0].spool.is_empty());
        }
        world.finish();
    }
    let stored = world.stored("/sink/s1");
    let expected: Vec<u64> = (0..world.lanes[0].next).collect();
    assert_eq!(stored[&("agent-0".to_owned(), 7)], expected);
}

#[test]
fn a_checkpoint_that_cannot_be_stored_delays_acks_and_nothing_else() {
    let mut world = connected(simple());
    world.lanes[0].append(4);
    world.settle();
    world.pass(60);
    world.settle();
    world.lanes[0].append(4);
    world.disk.faults = Faults { log: true, ..Faults::default() };
    for _ in 0..5 {
        world.settle();
        world.pass(2_000);
    }
    assert_eq!(world.lanes[0].spool.len(), 1);
    world.finish();
    world.crash(0);
    world.lanes[0].append(4);
    world.finish();
    world.assert_exactly_once("s1");
}

#[test]
fn streams_change_format_and_place_without_losing_or_repeating() {
    let mut world = connected(simple());
    world.lanes[0].append(4);
    world.settle();
    for revision in 2..6 {
        world.lanes[0].append(3);
        while world.lanes[0].send() {}
        world.deliver(0);
        let moved = stream(1, |file| file.path_template = format!("r{revision}/s1.log"));
        world.tell(ToRouter::Table(Arc::new(table(revision, vec![moved], vec![route(7, 1)]))));
        world.lanes[0].append(3);
        world.settle();
        world.pass(100);
        world.settle();
    }
    world.finish();
    world.assert_exactly_once("s1");
    assert_eq!(world.disk.files.len(), 5);
}

#[test]
fn files_rotate_by_size_and_restart_goes_on_in_the_last() {
    let rotating = stream(1, |file| file.rotate_bytes = 20_000);
    let mut world = connected(World::new(1, &[7], table(1, vec![rotating], vec![route(7, 1)])));
    for _ in 0..40 {
        world.lanes[0].append(7);
        world.settle();
        world.pass(60);
        world.settle();
    }
    world.finish();
    let files = world.disk.files.len();
    assert!(files > 3, "{files} files");
    world.crash(0);
    world.lanes[0].append(1);
    world.finish();
    assert!(world.disk.files.len() <= files + 1);
    world.assert_exactly_once("s1");
}

#[test]
fn a_data_id_with_two_streams_is_acknowledged_when_both_have_it() {
    let two = vec![stream(1, |_| ()), stream(2, |_| ())];
    let mut world = connected(World::new(2, &[7], table(1, two, vec![route(7, 1), route(7, 2)])));
    world.lanes[0].append(4);
    world.lanes[1].append(4);
    world.finish();
    world.assert_exactly_once("s1");
    world.assert_exactly_once("s2");
}

#[test]
fn an_old_session_cannot_write_after_a_new_one_opened_the_lane() {
    let mut world = connected(simple());
    world.lanes[0].append(2);
    world.lanes[0].append(2);
    while world.lanes[0].send() {}
    // Both batches are on the way of the first session when the second opens.
    let on_the_way: Vec<_> = world.lanes[0].to_server.drain(..).collect();
    world.connect(0);
    world.settle();
    for message in on_the_way {
        world.core.handle(world.now, message);
        world.turn();
    }
    world.finish();
    world.assert_exactly_once("s1");
}

#[test]
fn an_altered_batch_is_asked_for_again() {
    let mut world = connected(simple());
    world.lanes[0].append(3);
    world.lanes[0].send();
    match world.lanes[0].to_server.front_mut() {
        Some(ToRouter::Batch { body, .. }) => body[5] ^= 1,
        other => panic!("{other:?}"),
    }
    world.deliver(0);
    while world.lanes[0].receive() {}
    assert_eq!(world.lanes[0].held_for, Some(HoldReason::Paused));
    world.finish();
    world.assert_exactly_once("s1");
}

#[test]
fn the_spools_depth_is_reported() {
    let mut world = connected(simple());
    let session = world.lanes[0].session.unwrap();
    let stat = LaneStat {
        data_id: DataId(7),
        epoch: Epoch(1),
        spool_records: 5,
        spool_bytes: 600,
        dropped_records: 3,
    };
    world.core.handle(world.now, ToRouter::Stat { session, agent: agent_id(0), stat });
    world.pass(1_000);
    let reported = world.reports.iter().any(|report| match report {
        RouterReport::Lanes(lanes) => {
            lanes.iter().any(|lane| (lane.spool_records, lane.dropped_records) == (5, 3))
        }
        _ => false,
    });
    assert!(reported);
}

#[test]
fn stop_stores_and_acknowledges_what_was_taken() {
    let mut world = connected(simple());
    world.lanes[0].append(5);
    while world.lanes[0].send() {}
    world.deliver(0);
    world.tell(ToRouter::Stop);
    world.turn();
    while world.disk_step(0) {}
    assert!(world.core.is_stopped());
    while world.lanes[0].receive() {}
    assert!(world.lanes[0].spool.is_empty());
    world.assert_exactly_once("s1");
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize, usize),
    Send(usize),
    Deliver(usize),
    Receive(usize),
    Disk(usize),
    Pass(u64),
    Reconnect(usize),
    Crash(usize),
    Faults(Faults),
    Drop(usize),
    Table(usize),
    Settle,
}

fn faults() -> impl Strategy<Value = Faults> {
    any::<[bool; 5]>().prop_map(|[open, write, sync, truncate, log]| Faults {
        open,
        write,
        sync,
        truncate,
        log,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let lane = 0usize..4;
    prop_oneof![
        12 => (lane.clone(), 1usize..12).prop_map(|(lane, count)| Step::Append(lane, count)),
        16 => lane.clone().prop_map(Step::Send),
        16 => lane.clone().prop_map(Step::Deliver),
        10 => lane.clone().prop_map(Step::Receive),
        20 => any::<usize>().prop_map(Step::Disk),
        8 => prop_oneof![Just(1u64), Just(60), Just(1_500), Just(4_000_000)].prop_map(Step::Pass),
        2 => lane.clone().prop_map(Step::Reconnect),
        2 => any::<usize>().prop_map(Step::Crash),
        2 => faults().prop_map(Step::Faults),
        3 => Just(Step::Faults(Faults::default())),
        1 => lane.prop_map(Step::Drop),
        2 => (0usize..4).prop_map(Step::Table),
        3 => Just(Step::Settle),
    ]
}

/// Stream 1 always takes both data ids; stream 2 comes, goes and moves.
fn tables() -> Vec<RoutingTable> {
    let small = |file: &mut FileStream| file.rotate_bytes = 30_000;
    let hourly = |file: &mut FileStream| {
        file.path_template = "{hour}/{data_id}-{stream}.log".to_owned();
    };
    let both = || vec![route(7, 1), route(8, 1)];
    let with = |extra: &[u32]| {
        both().into_iter().chain(extra.iter().map(|id| route(*id, 2))).collect::<Vec<_>>()
    };
    vec![
        table(1, vec![stream(1, small)], both()),
        table(2, vec![stream(1, small), stream(2, |_| ())], with(&[7, 8])),
        table(3, vec![stream(1, small), stream(2, hourly)], with(&[8])),
        table(4, vec![stream(1, hourly), stream(2, small)], with(&[7])),
    ]
}

fn run(steps: Vec<Step>) {
    let tables = tables();
    let mut world = connected(World::new(2, &[7, 8], tables[0].clone()));
    for step in steps {
        match step {
            Step::Append(lane, count) => world.lanes[lane].append(count),
            Step::Send(lane) => {
                world.lanes[lane].send();
            }
            Step::Deliver(lane) => {
                world.deliver(lane);
            }
            Step::Receive(lane) => {
                world.lanes[lane].receive();
            }
            Step::Disk(pick) => {
                world.disk_step(pick);
            }
            Step::Pass(ms) => world.pass(ms),
            Step::Reconnect(lane) => world.connect(lane),
            Step::Crash(torn) => world.crash(torn),
            Step::Faults(faults) => world.disk.faults = faults,
            Step::Drop(lane) => world.lanes[lane].drop_oldest(),
            Step::Table(index) => {
                world.tell(ToRouter::Table(Arc::new(tables[index].clone())));
                world.turn();
            }
            Step::Settle => world.settle(),
        }
    }
    world.finish();
    world.assert_exactly_once("s1-");
    let repeated = |sequences: &Vec<u64>| sequences.windows(2).any(|pair| pair[0] >= pair[1]);
    assert!(!world.stored("s2-").values().any(repeated), "stream 2 repeats a record");
    // What is in the files after the last ack is there after a crash.
    let before = world.stored("s1-");
    world.crash(0);
    assert_eq!(world.stored("s1-"), before);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn no_interleaving_loses_or_repeats_a_record(steps in prop::collection::vec(step(), 1..250)) {
        run(steps);
    }
}
