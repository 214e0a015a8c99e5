//! kill -9 of the data process, the control process and an agent in full flow: nothing is lost,
//! nothing is stored twice, and every record is counted by its identity.

use std::time::Duration;

use skein_cli::guard::{self, Signal};
use skein_cli::local::wait_for;
use skein_cli::recount::Recount;
use skein_controlplane::api::types::AgentState;

use super::world::{Logger, Random, WAIT, World, assert_all_stored, number, seed, tailing};

const DATA_ID: u32 = 1001;

/// A moment in full flow.
fn pause(random: &mut Random) {
    std::thread::sleep(Duration::from_millis(50 + random.below(500)));
}

#[test]
fn kill_9_of_the_data_process_loses_and_repeats_nothing() {
    let mut random = Random(seed());
    let world = World::new();
    let folder = world.server.tagged_stream("logs", &[DATA_ID]).unwrap();
    let one = world.agent("one", tailing(&world, "one", DATA_ID));
    let two = world.agent("two", tailing(&world, "two", DATA_ID));
    let loggers = [Logger::start(&one), Logger::start(&two)];
    let mut pid = world.server.data_pid().unwrap();
    for kill in 0..number("SKEIN_KILLS", 20) {
        pause(&mut random);
        println!("kill {kill}: data {pid}");
        assert!(guard::signal(pid, Signal::Kill));
        let data = |status: &skein_controlplane::api::types::Status| {
            status.data_processes.first().map(|data| data.pid)
        };
        pid = world.server.wait_restarted(pid, data).unwrap_or_else(|error| {
            panic!("{error}\n{}", world.server.log_tail());
        });
        world.wait_state(&one, AgentState::Online);
    }
    let [first, second] = loggers.map(Logger::finish);
    assert_all_stored(&world, &folder, &[(one.id(), first), (two.id(), second)]);
}

#[test]
fn kill_9_of_the_control_process_disturbs_no_record() {
    let mut random = Random(seed());
    let world = World::new();
    let folder = world.server.tagged_stream("logs", &[DATA_ID]).unwrap();
    let agent = world.agent("one", tailing(&world, "one", DATA_ID));
    let since = world.view(agent.id()).unwrap().agent_id;
    let logger = Logger::start(&agent);
    let data = world.server.data_pid().unwrap();
    let mut pid = world.server.control_pid().unwrap();
    for kill in 0..number("SKEIN_KILLS", 20) {
        pause(&mut random);
        println!("kill {kill}: control {pid}");
        let before = Recount::of(&folder).unwrap().unique();
        assert!(guard::signal(pid, Signal::Kill));
        wait_for("records to flow without control", WAIT, || {
            (Recount::of(&folder).ok()?.unique() > before).then_some(())
        })
        .unwrap();
        pid = world.server.wait_restarted(pid, |status| Some(status.pid)).unwrap_or_else(|error| {
            panic!("{error}\n{}", world.server.log_tail());
        });
        world.wait_state(&agent, AgentState::Online);
        // What was accepted before is still there: streams, routes and the agent's identity.
        assert_eq!(world.view(agent.id()).unwrap().agent_id, since);
    }
    assert_eq!(world.server.data_pid().unwrap(), data, "the data process was not touched");
    let lines = logger.finish();
    assert_all_stored(&world, &folder, &[(agent.id(), lines)]);
    world.skein_ends(0, &["run", "--on", agent.id(), "--", "true"]);
}

#[test]
fn kill_9_of_an_agent_loses_and_repeats_nothing() {
    let mut random = Random(seed());
    let world = World::new();
    let folder = world.server.tagged_stream("logs", &[DATA_ID]).unwrap();
    let mut agent = world.agent("one", tailing(&world, "one", DATA_ID));
    let logger = Logger::start(&agent);
    for kill in 0..number("SKEIN_KILLS", 20) {
        pause(&mut random);
        println!("kill {kill}: agent {:?}", agent.pids());
        agent.kill();
        agent.run().unwrap();
        world.wait_state(&agent, AgentState::Online);
    }
    let lines = logger.finish();
    assert_all_stored(&world, &folder, &[(agent.id(), lines)]);
}
