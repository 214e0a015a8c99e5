//! How a push travels, as the operator sees it: a small file inside its order, a forecast, and what
//! is said afterwards.

use skein_cli::local::AgentOptions;

use super::world::World;

#[test]
fn a_small_file_travels_inline_and_is_judged() {
    let world = World::new();
    let agents = ["one", "two", "three"].map(|name| world.agent(name, AgentOptions::default()));
    let file = world.dir.path().join("app.conf");
    std::fs::write(&file, vec![7; 10_240]).unwrap();
    for agent in &agents {
        // All agents are on this machine, so each gets a folder of its own.
        let target = agent.host().join("to");
        let to = format!("{}:{}", agent.id(), target.display());
        let out = world.skein_ends(0, &["push", file.to_str().unwrap(), "--mkdir", "--to", &to]);
        assert!(out.contains("verified on 1 of 1 host"), "{out}");
        assert!(out.contains("% of the bound"), "{out}");
        assert_eq!(std::fs::read(target.join("app.conf")).unwrap(), vec![7; 10_240]);
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 1, "nothing is left aside");
    }
    let list = world.skein_json(&["transfer", "ls"]);
    assert!(list.as_array().unwrap().iter().all(|one| one["gear"] == "inline"), "{list}");
    let id = list[0]["transfer_id"].as_str().unwrap();
    let shown = world.skein_ends(0, &["transfer", "show", id]);
    assert!(shown.contains("gear   inline") && shown.contains("% of the bound"), "{shown}");
    assert!(shown.contains("inside the order of each host; 0 blocks refused"), "{shown}");
    for agent in &agents {
        let kept = std::fs::read_dir(agent.home().join("transfers")).unwrap().count();
        assert_eq!(kept, 0, "nothing of the orders is kept");
    }
}

#[test]
fn a_dry_run_says_how_and_how_long_and_does_nothing() {
    let world = World::new();
    let agents = ["one", "two"].map(|name| world.agent(name, AgentOptions::default()));
    let file = world.dir.path().join("release.tar");
    // Holes would travel as holes.
    std::fs::write(&file, vec![7; 64 << 20]).unwrap();
    let target = world.dir.path().join("to");
    let (file, to) = (file.to_str().unwrap(), format!("all:{}", target.display()));
    let out = world.skein_ends(0, &["push", file, "--dry-run", "--to", &to]);
    let first = out.lines().next().unwrap_or_default();
    assert!(first.contains("2 hosts x 64 MiB") && first.contains("predicted"), "{out}");
    for gear in ["direct", "planned", "mesh"] {
        assert!(out.lines().any(|line| line.starts_with(gear)), "{gear}: {out}");
    }
    assert_eq!(out.lines().filter(|line| line.contains('*')).count(), 1, "one is chosen: {out}");
    let json = world.skein_json(&["push", file, "--dry-run", "--to", &to]);
    assert_eq!((&json["hosts_total"], &json["size_bytes"]), (&2.into(), &(64 << 20).into()));
    assert!(json["predicted_ms"].as_f64().unwrap() >= json["bound_ms"].as_f64().unwrap());
    let list = world.skein_json(&["transfer", "ls"]);
    assert!(list.as_array().unwrap().is_empty() && !target.exists());
    // Of an agent's file, who says how large it is, and does nothing else.
    let from = format!("{}:{file}", agents[0].id());
    let json = world.skein_json(&["push", "--from", &from, "--dry-run", "--to", &to]);
    assert_eq!((&json["hosts_total"], &json["size_bytes"]), (&2.into(), &(64 << 20).into()));
    let missing = world.skein(&["push", "--from", "one:/x", "--dry-run", "--to", &to]);
    assert!(!missing.status.success());
    let list = world.skein_json(&["transfer", "ls"]);
    assert!(list.as_array().unwrap().is_empty() && !target.exists());
}
