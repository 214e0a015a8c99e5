//! `skein push`: the file arrives whole, proved and in one step, or not at all and with a reason.

use std::os::unix::fs::PermissionsExt;

use skein_cli::local::{AgentOptions, wait_for};

use super::spread::{path_of, same};
use super::world::{WAIT, World};

#[test]
fn a_file_arrives_with_mode_and_folder_on_every_host() {
    let world = World::new();
    let one = world.agent("one", AgentOptions::default());
    let two = world.agent("two", AgentOptions::default());
    for (name, bytes) in [("empty", 0), ("small", 1), ("block", 16384), ("large", 5_000_001)] {
        let file = path_of(&world, name, bytes);
        // Both agents are on this machine, so each gets a folder of its own.
        for agent in [&one, &two] {
            let target = agent.host().join(format!("to/{name}"));
            let to = format!("{}:{}", agent.id(), target.display());
            let arguments = ["push", &file, "--mkdir", "--mode", "0750", "--to", &to];
            let out = world.skein_ends(0, &arguments);
            assert!(out.contains("verified on 1 of 1 host"), "{out}");
            let received = target.join(name);
            assert!(same(&file, &received), "{name}");
            assert_eq!(received.metadata().unwrap().permissions().mode() & 0o777, 0o750);
            let others = std::fs::read_dir(&target).unwrap().count();
            assert_eq!(others, 1, "nothing is left aside");
        }
    }
    assert_eq!(world.skein_json(&["transfer", "ls"]).as_array().unwrap().len(), 8);
}

#[test]
fn a_file_travels_from_one_agent_to_another() {
    let world = World::new();
    let one = world.agent("one", AgentOptions::default());
    let two = world.agent("two", AgentOptions::default());
    let file = path_of(&world, "source.bin", 3_000_000);
    let target = world.dir.path().join("to");
    let (from, to) = (format!("{}:{file}", one.id()), format!("{}:{}", two.id(), target.display()));
    let arguments = ["push", "--from", &from, "--mkdir", "--name", "renamed.bin", "--to", &to];
    world.skein_ends(0, &arguments);
    assert!(same(&file, &target.join("renamed.bin")));
    let missing = format!("{}:/nonexistent/file", one.id());
    let output = world.skein(&["push", "--from", &missing, "--to", &to]);
    assert_ne!(output.status.code(), Some(0));
}

#[test]
fn hostile_names_and_places_are_refused_and_nothing_is_written() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let file = path_of(&world, "x", 100);
    let inside = world.dir.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let to = |folder: &str| format!("{}:{folder}", agent.id());
    let inside_text = inside.to_str().unwrap();
    for (name, folder) in [
        ("../escaped", inside_text.to_owned()),
        ("a/b", inside_text.to_owned()),
        ("..", inside_text.to_owned()),
        (".", inside_text.to_owned()),
        ("x", format!("{inside_text}/../up")),
        ("x", "/proc/self".to_owned()),
        ("agent.key", agent.home().join("identity").to_str().unwrap().to_owned()),
    ] {
        let output = world.skein(&["push", &file, "--mkdir", "--name", name, "--to", &to(&folder)]);
        assert_ne!(output.status.code(), Some(0), "{name} in {folder} was accepted");
    }
    assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 0);
    assert!(!world.dir.path().join("escaped").exists() && !world.dir.path().join("up").exists());
    // A folder that does not exist is made only on demand.
    let output = world.skein(&["push", &file, "--to", &to("/nonexistent/folder")]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_cancelled_push_leaves_nothing_behind_under_the_files_name() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let file = path_of(&world, "slow.bin", 20_000_000);
    let target = world.dir.path().join("to");
    let to = format!("{}:{}", agent.id(), target.display());
    let arguments = ["push", &file, "--mkdir", "--limit", "1M", "--detach", "--to", &to];
    let id = world.skein_ends(0, &arguments).trim().to_owned();
    wait_for("the first bytes", WAIT, || {
        let detail = world.skein_json(&["transfer", "show", &id]);
        (detail["transfer"]["verified_bytes"].as_u64()? > 0).then_some(())
    })
    .unwrap();
    world.skein_ends(0, &["transfer", "cancel", &id]);
    let out = world.skein_ends(1, &["transfer", "show", "--follow", &id]);
    assert!(out.contains("cancelled"), "{out}");
    assert!(!target.join("slow.bin").exists());
}

#[test]
fn a_push_goes_on_where_it_was_when_the_data_process_and_the_agent_die() {
    use skein_cli::guard::{Signal, signal};
    let world = World::new();
    let mut agent = world.agent("one", AgentOptions::default());
    let file = path_of(&world, "slow.bin", 12_000_000);
    let target = world.dir.path().join("to");
    let to = format!("{}:{}", agent.id(), target.display());
    let arguments = ["push", &file, "--mkdir", "--limit", "2M", "--detach", "--to", &to];
    let id = world.skein_ends(0, &arguments).trim().to_owned();
    let verified = |least: u64| {
        wait_for("bytes to be verified", WAIT, || {
            let detail = world.skein_json(&["transfer", "show", &id]);
            detail["transfer"]["verified_bytes"].as_u64().filter(|bytes| *bytes >= least)
        })
        .unwrap()
    };
    let before = verified(2_000_000);
    let data = world.server.data_pid().unwrap();
    assert!(signal(data, Signal::Kill));
    verified(before + 1_000_000);
    agent.kill();
    agent.run().unwrap();
    let out = world.skein_ends(0, &["transfer", "show", "--follow", &id]);
    assert!(out.contains("verified on 1 of 1 host"), "{out}");
    assert!(same(&file, &target.join("slow.bin")));
    let detail = world.skein_json(&["transfer", "show", &id]);
    let resumed = detail["hosts"][0]["resumed_bytes"].as_u64().unwrap();
    assert!(resumed > 0, "the restarted agent began anew: {detail}");
}
