//! `skein push` under an operator's hand: batches that halt, a queue, a pause.

use skein_cli::guard::{Signal, signal};
use skein_cli::local::{AgentOptions, wait_for};
use skein_controlplane::api::types::AgentState;

use super::spread::{path_of, same};
use super::world::{WAIT, World};

fn shows(world: &World, id: &str) -> serde_json::Value {
    world.skein_json(&["transfer", "show", id])
}

fn waits_for(world: &World, id: &str, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
    let reached = || Some(shows(world, id)).filter(&is);
    wait_for(what, WAIT, reached).unwrap_or_else(|error| panic!("{error}: {}", shows(world, id)));
}

/// All agents are on this machine and would write to one name, so each is a batch of its own.
#[test]
fn a_canary_that_fails_halts_the_rest_until_somebody_decides() {
    let world = World::new();
    let mut agents: Vec<_> =
        ["a", "b", "c"].map(|name| world.agent(name, AgentOptions::default())).into();
    agents.sort_by_key(|agent| agent.id().to_owned());
    agents[0].kill();
    world.wait_state(&agents[0], AgentState::Lost);
    let file = path_of(&world, "app.bin", 100_000);
    let target = world.dir.path().join("to");
    let to = format!("all:{}", target.display());
    let arguments =
        ["push", &file, "--mkdir", "--batch", "1,2,100%", "--deliver-within", "1s", "--to", &to];
    let output = world.skein(&arguments);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}\n{err}");
    assert!(err.contains("halted in batch 1 of 3"), "{err}");
    assert!(err.contains("2 hosts were never started"), "{err}");
    assert!(err.contains("skein transfer resume"), "{err}");
    assert_eq!(out.matches("never started").count(), 2, "each host says so: {out}");
    assert!(!target.exists(), "nobody else was touched");

    let halted = world.skein_json(&["transfer", "ls", "--state", "halted"]);
    let id = halted[0]["transfer_id"].as_str().unwrap();
    assert_eq!(shows(&world, id)["transfer"]["hosts_by_state"]["not_started"], 2);
    world.skein_ends(0, &["transfer", "resume", id]);
    let out = world.skein_ends(1, &["transfer", "show", "--follow", id]);
    assert!(out.contains("verified on 2 of 3 hosts"), "{out}");
    assert!(same(&file, &target.join("app.bin")));
    let again = world.skein(&["transfer", "resume", id]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("has ended"));
}

#[test]
fn a_pause_survives_a_killed_control_process_and_keeps_what_is_verified() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let file = path_of(&world, "slow.bin", 8_000_000);
    let target = world.dir.path().join("to");
    let to = format!("{}:{}", agent.id(), target.display());
    let arguments = ["push", &file, "--mkdir", "--limit", "2M", "--detach", "--to", &to];
    let id = world.skein_ends(0, &arguments).trim().to_owned();
    let verified = |at: &serde_json::Value| at["transfer"]["verified_bytes"].as_u64().unwrap();
    waits_for(&world, &id, "bytes", |at| verified(at) >= 2_000_000);
    let out = world.skein_ends(0, &["transfer", "pause", &id]);
    assert!(out.contains("paused"), "{out}");
    waits_for(&world, &id, "the host to stop", |at| at["hosts"][0]["state"] == "paused");
    let before = verified(&shows(&world, &id));

    let control = world.server.control_pid().unwrap();
    assert!(signal(control, Signal::Kill));
    wait_for("a new control process", WAIT, || {
        let pid = world.server.control_pid().ok().filter(|pid| *pid != control)?;
        world.server.client().agents("all").ok().map(|_| pid)
    })
    .unwrap();
    waits_for(&world, &id, "the host again", |at| at["hosts"][0]["state"] == "paused");
    let still = shows(&world, &id);
    assert_eq!((still["transfer"]["phase"].as_str(), verified(&still)), (Some("paused"), before));
    assert!(!target.join("slow.bin").exists());

    world.skein_ends(0, &["transfer", "resume", &id]);
    let out = world.skein_ends(0, &["transfer", "show", "--follow", &id]);
    assert!(out.contains("verified on 1 of 1 host"), "{out}");
    assert!(same(&file, &target.join("slow.bin")));
    let resumed = shows(&world, &id)["hosts"][0]["resumed_bytes"].as_u64().unwrap();
    assert!(resumed >= 2_000_000, "it began anew: {resumed}");
}

#[test]
fn what_has_no_turn_waits_with_its_reason_and_the_urgent_goes_first() {
    let world = World::with_config("[control]\ntransfers_running_max = 1\n");
    let agent = world.agent("one", AgentOptions::default());
    let file = path_of(&world, "slow.bin", 20_000_000);
    let target = world.dir.path().join("to");
    let to = format!("{}:{}", agent.id(), target.display());
    let push = |name: &str, more: &[&str]| {
        let mut arguments = vec!["push", &file, "--mkdir", "--detach", "--name", name, "--to", &to];
        arguments.extend_from_slice(more);
        world.skein_ends(0, &arguments).trim().to_owned()
    };
    let slow = push("slow", &["--limit", "1M"]);
    let low = push("low", &["--priority", "low"]);
    let high = push("high", &["--priority", "high"]);
    waits_for(&world, &low, "its place", |at| {
        let reason = at["transfer"]["rollout"]["reason"].as_str().unwrap();
        reason.starts_with("place 2 in the queue: 1 of 1 turns are taken")
    });
    let queued = world.skein_ends(0, &["transfer", "ls", "--state", "queued"]);
    assert!(queued.contains(&low) && queued.contains(&high) && !queued.contains(&slow), "{queued}");
    world.skein_ends(0, &["transfer", "cancel", &slow]);
    for id in [&low, &high] {
        world.skein_ends(0, &["transfer", "show", "--follow", id]);
    }
    assert!(!target.join("slow").exists());
    let ended = |id: &str| shows(&world, id)["transfer"]["ended_ms"].as_i64().unwrap();
    assert!(ended(&high) <= ended(&low));
    let list = world.skein_json(&["transfer", "ls", "--state", "ended", "--limit", "2"]);
    assert_eq!(list.as_array().unwrap().len(), 2);
}
