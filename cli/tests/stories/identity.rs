//! What an identity is worth: a revoked one nothing, and one identity serves one live agent.

use skein_cli::local::{AgentOptions, LocalAgent, wait_for};
use skein_controlplane::api::types::AgentState;

use super::world::{WAIT, World};

#[test]
fn a_revoked_agent_is_cut_off_at_once_and_stays_out() {
    let world = World::new();
    let mut bad = world.agent("bad", AgentOptions::default());
    let good = world.agent("good", AgentOptions::default());
    world.skein_ends(0, &["agent", "revoke", bad.id(), "--reason", "stolen"]);
    world.wait_state(&bad, AgentState::Revoked);
    // It may try as often as it likes, also after a restart.
    bad.stop();
    bad.run().unwrap();
    wait_for("some seconds of trying", WAIT, || {
        let log = std::fs::read_to_string(bad.log()).unwrap_or_default();
        (log.to_lowercase().matches("revoked").count() > 0).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", bad.log_tail()));
    assert_eq!(world.view(bad.id()).unwrap().state, AgentState::Revoked);
    let output = world.skein(&["run", "--deliver-within", "1s", "--on", bad.id(), "--", "true"]);
    assert_ne!(output.status.code(), Some(0), "a revoked agent ran a script");
    world.skein_ends(0, &["run", "--on", good.id(), "--", "true"]);
}

#[test]
fn a_copied_identity_is_refused_while_the_first_lives() {
    let world = World::new();
    let first = world.agent("first", AgentOptions::default());
    let copy_home = world.host("copy");
    copy_folder(first.home(), &copy_home);
    let mut copy = std::process::Command::new(&world.binaries.agent);
    copy.args(["run", "--home"]).arg(&copy_home);
    skein_cli::guard::die_with_parent(&mut copy);
    let log = std::fs::File::create(copy_home.join("copy.log")).unwrap();
    let mut copy = copy.stdout(std::process::Stdio::null()).stderr(log).spawn().unwrap();
    let since = world.view(first.id()).unwrap();
    let refused = wait_for("the refusal in the copy's log", WAIT, || {
        let log = std::fs::read_to_string(copy_home.join("copy.log")).ok()?.to_lowercase();
        (log.contains("identity") && log.contains("use")).then_some(())
    });
    let now = world.view(first.id()).unwrap();
    skein_cli::guard::signal(copy.id(), skein_cli::guard::Signal::Terminate);
    let _ = copy.wait();
    let log = std::fs::read_to_string(copy_home.join("copy.log")).unwrap_or_default();
    assert!(refused.is_ok(), "the copy was not refused:\n{log}");
    assert_eq!(now.state, AgentState::Online);
    assert_eq!(now.state_since_ms, since.state_since_ms, "the first one's session went on");
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(status.success());
    let _ = std::fs::remove_dir_all(to.join("run"));
    std::fs::create_dir_all(to.join("run")).unwrap();
}

#[test]
fn labels_of_operators_add_to_the_agents_own() {
    let world = World::new();
    let options = AgentOptions {
        labels: [("role".to_owned(), "web".to_owned())].into(),
        ..AgentOptions::default()
    };
    let agent: LocalAgent = world.agent("one", options);
    world.skein_ends(0, &["agent", "label", agent.id(), "tier=gold", "role=db"]);
    let view = world.view(agent.id()).unwrap();
    assert_eq!((view.labels["tier"].as_str(), view.labels["role"].as_str()), ("gold", "db"));
    world.skein_ends(0, &["agent", "label", agent.id(), "tier-", "role-"]);
    let view = world.view(agent.id()).unwrap();
    assert_eq!(view.labels.get("tier"), None);
    assert_eq!(view.labels["role"], "web");
    world.skein_ends(2, &["agent", "label", agent.id(), "nonsense"]);
    world.skein_ends(1, &["agent", "label", "nobody", "a=b"]);
    let ping = world.skein_ends(0, &["agent", "ping", "all"]);
    assert!(ping.contains("1 of 1 host answered"), "{ping}");
}
