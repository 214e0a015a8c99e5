//! What is seen of a push while it runs and afterwards, on the command line and in JSON.

use std::process::Stdio;

use skein_cli::local::{AgentOptions, LocalAgent, wait_for};

use super::world::{WAIT, World};

/// A slow push to one host, which lives as long as it is held, and its id.
fn begin(world: &World, name: &str) -> (LocalAgent, String) {
    let agent = world.agent(name, AgentOptions::default());
    let file = world.dir.path().join("slow.bin");
    std::fs::write(&file, vec![5; 12_000_000]).unwrap();
    let to = format!("{}:{}", agent.id(), world.dir.path().join("to").display());
    let file = file.to_str().unwrap();
    let arguments = ["push", file, "--mkdir", "--limit", "2M", "--detach", "--to", &to];
    let id = world.skein_ends(0, &arguments).trim().to_owned();
    (agent, id)
}

#[test]
fn the_end_of_a_push_is_predicted_and_its_traffic_is_told() {
    let world = World::new();
    let (_agent, id) = begin(&world, "one");
    let running = wait_for("a predicted end", WAIT, || {
        let detail = world.skein_json(&["transfer", "show", &id]);
        let progress = detail["transfer"]["progress"].clone();
        progress["predicted_end_ms"].is_i64().then_some(progress)
    })
    .unwrap();
    // One host: its end is that of the whole, and follows from what is left and its own rate.
    let number = |value: &serde_json::Value| value.as_i64().unwrap();
    let left_ms = number(&running["predicted_end_ms"]) - number(&running["at_ms"]);
    let slow = &running["slowest"][0];
    let left = 12_000_000 - number(&slow["verified_bytes"]);
    let expected_ms = left * 1_000 / number(&slow["bytes_per_s"]).max(1);
    assert!((left_ms - expected_ms).abs() <= 1, "{running}");
    assert!(running["percent"].as_u64().unwrap() < 100, "{running}");
    let shown = world.skein_ends(0, &["transfer", "show", &id]);
    for line in ["gear   direct: ", "hosts  1 running of 1\n", "ends in ", "slow   "] {
        assert!(shown.contains(line), "{line:?} is not in\n{shown}");
    }
    world.skein_ends(0, &["transfer", "show", "--watch", &id]);
    let ended = wait_for("the data process's last count", WAIT, || {
        let detail = world.skein_json(&["transfer", "show", &id]);
        let progress = detail["transfer"]["progress"].clone();
        (progress["source_is_final"] == true).then_some(progress)
    })
    .unwrap();
    assert_eq!(ended["source_sent_bytes"], 12_000_000, "one host needs one copy: {ended}");
    assert_eq!(ended["delivered_bytes"], 12_000_000);
    assert_eq!((&ended["percent"], &ended["from_peers_bytes"]), (&100.into(), &0.into()));
    assert!(ended["predicted_end_ms"].is_null(), "{ended}");
    let shown = world.skein_ends(0, &["transfer", "show", &id]);
    let traffic = "the server sent 12 MB, 1.00 of the file; 0 % came from other hosts; 0 blocks";
    assert!(shown.contains(traffic), "{shown}");
}

#[test]
fn without_a_terminal_progress_is_plain_lines_and_with_json_nothing() {
    let world = World::new();
    let (_agent, id) = begin(&world, "one");
    let watch = |json: bool| {
        let mut command = std::process::Command::new(&world.binaries.skein);
        command.arg("--data-dir").arg(world.server.dir());
        command.args(json.then_some("--json")).args(["transfer", "show", "--watch", &id]);
        for variable in skein_cli::connection::VARIABLES {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let (plain, json) = (watch(false), watch(true));
    let (plain, json) = (plain.wait_with_output().unwrap(), json.wait_with_output().unwrap());
    let lines = String::from_utf8(plain.stderr).unwrap();
    let said = |line: &&str| {
        line.starts_with("push ")
            && line.contains(" % 1 running, ")
            && line.contains("/s, ends in ")
    };
    assert!(lines.lines().any(|line| said(&line)), "{lines}");
    assert!(!lines.contains(['\r', '\u{1b}']), "{lines:?}");
    assert!(json.stderr.is_empty(), "{}", String::from_utf8_lossy(&json.stderr));
    let detail: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(detail["transfer"]["progress"]["percent"], 100);
}
