//! How a host joins: with a token that is right, unused and in time, and in no other way.

use std::time::Duration;

use skein_cli::local::{AgentOptions, LocalAgent, wait_for};
use skein_controlplane::api::types::AgentState;

use super::world::{WAIT, World};

#[test]
fn an_agent_joins_with_the_command_that_the_server_prints() {
    let world = World::new();
    let command = world.skein_ends(0, &["token", "create", "--note", "for web-1"]);
    assert!(command.starts_with("skein-agent enrol "), "{command}");
    let home = world.host("typed").join("agent");
    let mut words = command.split_whitespace();
    assert_eq!(words.next(), Some("skein-agent"));
    let typed = std::process::Command::new(&world.binaries.agent)
        .args(words)
        .arg("--home")
        .arg(&home)
        .output()
        .unwrap();
    assert!(typed.status.success(), "{command}{}", String::from_utf8_lossy(&typed.stderr));
    assert!(home.join("identity/agent_id").exists());
    let list = world.skein_ends(0, &["token", "ls"]);
    assert!(list.contains("for web-1"), "{list}");
    let options = AgentOptions {
        region: "eu".into(),
        labels: [("role".to_owned(), "web".to_owned())].into(),
        ..AgentOptions::default()
    };
    let agent = world.agent("one", options);
    let hosts = world.skein_ends(0, &["hosts"]);
    assert!(hosts.contains(agent.id()) && hosts.contains("role=web"), "{hosts}");
    assert!(hosts.contains("online"), "{hosts}");
    let wide = world.skein_ends(0, &["hosts", "--wide"]);
    assert!(wide.contains("CERT ENDS"), "{wide}");
    let status = world.skein_ends(0, &["status"]);
    assert!(status.contains("1 online"), "{status}");
}

#[test]
fn an_agent_that_is_stopped_is_offline_and_one_that_dies_is_lost() {
    let world = World::new();
    let mut agent = world.agent("one", AgentOptions::default());
    agent.stop();
    world.wait_state(&agent, AgentState::Offline);
    agent.run().unwrap();
    world.wait_state(&agent, AgentState::Online);
    agent.kill();
    world.wait_state(&agent, AgentState::Lost);
}

#[test]
fn an_agent_keeps_its_id_over_restarts() {
    let world = World::new();
    let mut agent = world.agent("one", AgentOptions::default());
    let id = agent.id().to_owned();
    agent.stop();
    agent.run().unwrap();
    world.wait_state(&agent, skein_controlplane::api::types::AgentState::Online);
    assert_eq!(world.server.client().agents("").unwrap().len(), 1);
    assert_eq!(std::fs::read_to_string(agent.home().join("identity/agent_id")).unwrap().trim(), id);
}

fn refused(world: &World, name: &str, token: &str) -> String {
    let output =
        LocalAgent::try_enrol(&world.binaries, &world.host(name), &world.server, token).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "enrolled with a bad token: {text}");
    assert!(!world.host(name).join("identity/agent.crt").exists());
    text
}

#[test]
fn wrong_reused_expired_and_withdrawn_tokens_are_refused_with_a_reason() {
    let world = World::new();
    let good = world.server.token(1).unwrap();

    // One digit of the secret altered: parts are skein1.<id>.<secret>.<ca>.
    let mut parts: Vec<String> = good.split('.').map(str::to_owned).collect();
    let flipped = if parts[2].starts_with('0') { "1" } else { "0" };
    parts[2].replace_range(0..1, flipped);
    let reason = refused(&world, "wrong", &parts.join("."));
    assert!(!reason.trim().is_empty(), "a reason is given");
    refused(&world, "nonsense", "not-a-token");

    // Another server's authority: the agent must refuse the server, whatever the server says.
    let mut parts: Vec<String> = good.split('.').map(str::to_owned).collect();
    parts[3] = "0".repeat(64);
    refused(&world, "foreign", &parts.join("."));

    let enrol = |name: &str, token: &str| {
        LocalAgent::try_enrol(&world.binaries, &world.host(name), &world.server, token).unwrap()
    };
    assert!(enrol("first", &good).status.success(), "the refused tries used nothing up");
    refused(&world, "second", &good);

    let short = world.skein_json(&["token", "create", "--ttl", "1s"]);
    let text = short["token"].as_str().unwrap().to_owned();
    let expires = short["expires_ms"].as_i64().unwrap();
    wait_for("the token's end", WAIT, || {
        (skein_cli::quantity::now_ms() > expires + 100).then_some(())
    })
    .unwrap();
    refused(&world, "late", &text);

    let gone = world.skein_json(&["token", "create"]);
    world.skein_ends(0, &["token", "rm", gone["id"].as_str().unwrap()]);
    refused(&world, "withdrawn", gone["token"].as_str().unwrap());
    assert_eq!(world.server.client().agents("").unwrap().len(), 1);
}

#[test]
fn the_api_refuses_strangers_and_says_what_to_do() {
    let world = World::new();
    let api = world.server.client().api().to_owned();
    let output = std::process::Command::new(&world.binaries.skein)
        .args(["--api", &api, "--token", "wrong", "hosts"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("admin.token"), "{text}");
    let output = std::process::Command::new(&world.binaries.skein)
        .args(["--api", "127.0.0.1:1", "--token", "x", "hosts"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Is the server running"));

    let token = world.skein_ends(0, &["token", "create", "--admin", "--ttl", "2s"]);
    let with = |token: &str| {
        let arguments = ["--api", &api, "--token", token, "status"];
        std::process::Command::new(&world.binaries.skein).args(arguments).output().unwrap()
    };
    assert_eq!(with(token.trim()).status.code(), Some(0));
    wait_for("the admin token's end", Duration::from_secs(20), || {
        (with(token.trim()).status.code() == Some(4)).then_some(())
    })
    .unwrap();
}
