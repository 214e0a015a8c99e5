//! Cancel in every phase of a push: afterwards every host has said how it ended and nobody keeps
//! anything of it, neither target nor source nor server.

use std::time::Duration;

use skein_cli::guard::{Signal, signal};
use skein_cli::local::{AgentOptions, LocalAgent, wait_for};
use skein_controlplane::api::types::{TransferDetail, TransferHostState, TransferPhase};

use super::spread::{
    assert_forgotten, begin, ended, everybody, file_of, folder_of, names_in, wait_until,
};
use super::world::{WAIT, World};

fn cancel(world: &World, id: &str) -> TransferDetail {
    world.skein_ends(0, &["transfer", "cancel", id]);
    ended(world, id)
}

fn assert_nothing_is_left(world: &World, agents: &[LocalAgent], detail: &TransferDetail) {
    for host in &detail.hosts {
        assert_eq!(host.state, TransferHostState::Cancelled, "{detail:#?}");
    }
    for agent in agents {
        assert_forgotten(agent);
        assert_eq!(names_in(&folder_of(world, agent)), [""; 0], "{}", agent.id());
    }
}

#[test]
fn a_planned_push_that_runs_or_waits_its_turn_is_cancelled() {
    let world = World::new();
    let options = AgentOptions {
        config: "[transfers]\nconcurrent_max = 1\n".to_owned(),
        ..AgentOptions::default()
    };
    let agents: [LocalAgent; 3] = world.agents(&options);
    let file = file_of(&world, "slow.bin", 16 << 20);
    let flags = ["--gear", "planned", "--limit", "1M"];
    let running = begin(&world, &file, &flags);
    wait_until(&world, &running, "bytes on every host", |detail| {
        detail.hosts.iter().all(|host| host.verified_bytes > 0)
    });
    let waiting = begin(&world, &file, &[&flags[..], &["--name", "later"]].concat());
    wait_until(&world, &waiting, "the second to wait everywhere", |detail| {
        detail.hosts.iter().all(|host| host.state == TransferHostState::Waiting)
    });
    let detail = cancel(&world, &waiting);
    assert!(detail.hosts.iter().all(|host| host.state == TransferHostState::Cancelled));
    let before = super::spread::look(&world, &running).transfer.verified_bytes;
    wait_until(&world, &running, "the first to go on", |detail| {
        detail.transfer.verified_bytes > before
    });
    let detail = cancel(&world, &running);
    assert_nothing_is_left(&world, &agents, &detail);
    // The same file arrives afterwards as if nothing had been.
    world.skein_ends(
        0,
        &["push", file.to_str().unwrap(), "--gear", "planned", "--to", &everybody(&world)],
    );
    super::spread::assert_all_have(&world, &agents, &file, "slow.bin");
    world.skein(&["transfer", "cancel", &running]);
    super::spread::assert_all_have(&world, &agents, &file, "slow.bin");
}

#[test]
fn a_push_is_cancelled_before_anybody_was_told() {
    let world = World::new();
    let [agent, mut away]: [LocalAgent; 2] = world.agents(&AgentOptions::default());
    away.stop();
    world.wait_state(&away, skein_controlplane::api::types::AgentState::Offline);
    let file = file_of(&world, "never.bin", 8 << 20);
    let id = begin(&world, &file, &["--gear", "planned", "--limit", "1M"]);
    wait_until(&world, &id, "one to run and one to be pending", |detail| {
        let states: Vec<_> = detail.hosts.iter().map(|host| host.state).collect();
        states.contains(&TransferHostState::Pending) && states.contains(&TransferHostState::Running)
    });
    let detail = cancel(&world, &id);
    assert_nothing_is_left(&world, &[agent], &detail);
    away.run().unwrap();
    world.wait_state(&away, skein_controlplane::api::types::AgentState::Online);
    std::thread::sleep(Duration::from_millis(500));
    assert_nothing_is_left(&world, &[away], &detail);
}

#[test]
fn a_push_from_a_host_is_cancelled_while_it_hashes_and_while_the_server_takes_the_file() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&AgentOptions::default());
    let source = &agents[0];
    let path = source.host().join("image.raw");
    // Not of holes, which would not travel; large, so that each phase takes a while.
    std::fs::write(&path, vec![7; 256 << 20]).unwrap();
    let from = format!("{}:{}", source.id(), path.display());
    let to = everybody(&world);
    let push = ["push", "--from", &from, "--mkdir", "--detach", "--gear", "planned", "--to", &to];
    let cache = world.server.dir().join("control/cache");
    let cached = || [names_in(&cache), names_in(&cache.join(".fetch"))].concat();
    let still = |what: Signal| {
        for pid in source.pids() {
            signal(pid, what);
        }
    };
    // A source that stands still keeps the transfer in its phase for as long as we look.
    for phase in [TransferPhase::Offering, TransferPhase::Fetching] {
        if phase == TransferPhase::Offering {
            still(Signal::Stop);
        }
        let id = world.skein_ends(0, &push).trim().to_owned();
        wait_until(&world, &id, "the phase", |detail| detail.transfer.phase == phase);
        still(Signal::Stop);
        let detail = cancel(&world, &id);
        still(Signal::Continue);
        assert!(detail.transfer.ended_ms.is_some(), "{detail:#?}");
        assert_nothing_is_left(&world, &agents, &detail);
        // What is left is the folder for states of fetches.
        wait_for("the server to drop what it had", WAIT, || {
            cached().iter().all(|name| name == ".fetch").then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", cached()));
    }
}

#[test]
fn a_push_that_is_paused_halted_or_over_is_cancelled() {
    let world = World::new();
    let agents: [LocalAgent; 2] = world.agents(&AgentOptions::default());
    let file = file_of(&world, "slow.bin", 16 << 20);
    let id = begin(&world, &file, &["--gear", "planned", "--limit", "1M"]);
    wait_until(&world, &id, "bytes on every host", |detail| {
        detail.hosts.iter().all(|host| host.verified_bytes > 0)
    });
    world.skein_ends(0, &["transfer", "pause", &id]);
    wait_until(&world, &id, "both to stand still", |detail| {
        detail.hosts.iter().all(|host| host.state == TransferHostState::Paused)
    });
    let detail = cancel(&world, &id);
    assert_nothing_is_left(&world, &agents, &detail);
    // One at a time, and the first cannot: the second is never told.
    for agent in &agents {
        std::fs::create_dir_all(folder_of(&world, agent).join("slow.bin")).unwrap();
    }
    let flags = ["--gear", "direct", "--batch", "1,100%", "--max-errors", "0"];
    let id = begin(&world, &file, &flags);
    wait_until(&world, &id, "the failure to halt it", |detail| {
        detail.transfer.phase == TransferPhase::Halted
    });
    let detail = cancel(&world, &id);
    let mut states: Vec<_> = detail.hosts.iter().map(|host| host.state).collect();
    states.sort();
    assert_eq!(states, [TransferHostState::Failed, TransferHostState::Cancelled], "{detail:#?}");
    for agent in &agents {
        assert_eq!(names_in(&folder_of(&world, agent)), ["slow.bin"], "what was in the way");
        std::fs::remove_dir(folder_of(&world, agent).join("slow.bin")).unwrap();
        assert_forgotten(agent);
    }
    // Too late: the file stays, whichever way it came.
    let small = file_of(&world, "small.conf", 4_000);
    let id = begin(&world, &small, &["--gear", "inline"]);
    ended(&world, &id);
    world.skein(&["transfer", "cancel", &id]);
    assert_eq!(super::spread::look(&world, &id).transfer.hosts_done, 2);
    super::spread::assert_all_have(&world, &agents, &small, "small.conf");
}
