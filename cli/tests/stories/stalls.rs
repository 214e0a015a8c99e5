//! A data process that stands still for 10 s (a stalled disk, a suspended machine) declares no
//! agent lost: an observer that was away doubts itself first.

use std::time::Duration;

use skein_cli::guard::{self, Signal};
use skein_controlplane::api::types::AgentState;

use super::world::{Logger, World, assert_all_stored, tailing};

const DATA_ID: u32 = 1001;

#[test]
fn a_data_process_that_slept_10_s_loses_no_agent_and_no_record() {
    // By the server's own clock an agent is lost after 6 s, so the pause alone would lose it; the
    // agent's patience with a silent server (3.5 intervals) is longer than the pause.
    let world = World::with_config(
        "restart_pause_ms_max = 300\n[control]\nheartbeat_seconds = 4\nheartbeat_misses = 1\n",
    );
    let folder = world.server.tagged_stream("logs", &[DATA_ID]).unwrap();
    let agent = world.agent("one", tailing(&world, "one", DATA_ID));
    let logger = Logger::start(&agent);
    // The agent has heard of the interval: its second heartbeat is under way.
    std::thread::sleep(Duration::from_secs(5));
    let before = world.view(agent.id()).unwrap();
    let pid = world.server.data_pid().unwrap();
    assert!(guard::signal(pid, Signal::Stop));
    std::thread::sleep(Duration::from_secs(10));
    assert!(guard::signal(pid, Signal::Continue));
    // The seconds in which a hasty observer would count missed heartbeats.
    for _ in 0..50 {
        let status = world.server.status().unwrap();
        assert_eq!(status.agents.lost, 0, "{}", world.server.log_tail());
        std::thread::sleep(Duration::from_millis(100));
    }
    let after = world.view(agent.id()).unwrap();
    assert_eq!(after.state, AgentState::Online);
    assert_eq!(after.state_since_ms, before.state_since_ms, "the session went on");
    let lines = logger.finish();
    assert_all_stored(&world, &folder, &[(agent.id(), lines)]);
}
