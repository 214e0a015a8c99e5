//! `skein run`: what the hosts print comes back whole and grouped, and the exit code is the worst.

use std::time::Instant;

use skein_cli::guard;
use skein_cli::local::{AgentOptions, wait_for};

use super::world::{WAIT, World};

#[test]
fn output_is_grouped_and_the_worst_exit_code_wins() {
    let world = World::new();
    let one = world.agent("one", AgentOptions::default());
    let _two = world.agent("two", AgentOptions::default());
    let out = world.skein_ends(0, &["run", "--on", "all", "--", "uname", "-s"]);
    assert!(out.contains("2 hosts") && out.contains("(exit 0)"), "{out}");
    assert_eq!(out.matches("Linux").count(), 1, "{out}");
    // One host that did well is printed bare.
    let out = world.skein_ends(0, &["run", "--on", one.id(), "--", "echo 'a  b' | tr a-z A-Z"]);
    assert_eq!(out, "A  B\n");
    let out =
        world.skein_ends(0, &["run", "--on", one.id(), "--", "printf", "%s|", "it's", "$HOME"]);
    assert_eq!(out, "it's|$HOME|");
    let out = world.skein_ends(7, &["run", "--on", "all", "--", "exit 7"]);
    assert!(out.contains("exit 7"), "{out}");
    let json = world.skein_json(&["run", "--on", "all", "--", "echo", "hello"]);
    assert_eq!(json["groups"][0]["output"], "hello\n");
    assert_eq!(json["task"]["hosts_succeeded"], 2);
    world.skein_ends(2, &["run", "--on", "all"]);
}

#[test]
fn large_output_and_scripts_with_arguments_come_back_whole() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let out = world.skein_ends(0, &["run", "--on", agent.id(), "--", "seq 1 300000"]);
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert!(out == expected, "{} bytes of {}", out.len(), expected.len());
    let script = world.dir.path().join("script.sh");
    std::fs::write(&script, "#!/bin/bash\necho \"$# $1\"\n").unwrap();
    let script = script.to_str().unwrap();
    let arguments = ["run", "--on", agent.id(), "--script", script, "--", "a b", "c"];
    assert_eq!(world.skein_ends(0, &arguments), "2 a b\n");
}

#[test]
fn a_timeout_kills_the_whole_process_tree() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let pids = world.dir.path().join("pids");
    // A child that ignores TERM and a grandchild in a session of its own.
    let script = format!(
        "trap '' TERM; (trap '' TERM; echo $BASHPID >> {0}; setsid sleep 600 & echo $! >> {0}; sleep 600) & \
         echo $! >> {0}; sleep 600",
        pids.display()
    );
    let started = Instant::now();
    let arguments =
        ["run", "--timeout", "1s", "--kill-grace", "500ms", "--on", agent.id(), "--", &script];
    let out = world.skein_ends(124, &arguments);
    assert!(out.contains("timed out"), "{out}");
    assert!(started.elapsed() < WAIT / 2);
    let pids = std::fs::read_to_string(&pids).unwrap();
    for pid in pids.split_whitespace().map(|pid| pid.parse().unwrap()) {
        wait_for("the process tree to be gone", WAIT, || (!guard::lives(pid)).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: pid {pid} lives"));
    }
}

#[test]
fn a_running_task_is_seen_and_cancelled() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let arguments = ["run", "--detach", "--note", "long", "--on", agent.id(), "--", "sleep 600"];
    let id = world.skein_ends(0, &arguments).trim().to_owned();
    wait_for("the script to run", WAIT, || {
        world.skein_ends(0, &["task", "show", &id]).contains("running").then_some(())
    })
    .unwrap();
    assert!(world.skein_ends(0, &["task", "ls"]).contains("long"));
    world.skein_ends(0, &["task", "cancel", &id]);
    let out = world.skein_ends(125, &["task", "show", "--follow", &id]);
    assert!(out.contains("cancelled"), "{out}");
}

#[test]
fn a_host_that_is_away_is_undeliverable_and_never_runs_it_later() {
    let world = World::new();
    let mut agent = world.agent("one", AgentOptions::default());
    agent.stop();
    let mark = world.dir.path().join("mark");
    let script = format!("touch {}", mark.display());
    let arguments = ["run", "--deliver-within", "1s", "--on", agent.id(), "--", &script];
    let out = world.skein_ends(125, &arguments);
    assert!(out.contains("undeliverable"), "{out}");
    agent.run().unwrap();
    world.wait_state(&agent, skein_controlplane::api::types::AgentState::Online);
    world.skein_ends(0, &["run", "--on", agent.id(), "--", "true"]);
    assert!(!mark.exists(), "the expired order was carried out");
    // Nobody is a mistake, not a success.
    let output = world.skein(&["run", "--on", "region=nowhere", "--", "true"]);
    assert_ne!(output.status.code(), Some(0));
}
