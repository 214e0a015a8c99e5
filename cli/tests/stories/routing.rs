//! Streams and routes change while records flow; a lane that leads nowhere waits, visibly, while
//! others flow.

use std::io::Write;
use std::process::Stdio;

use skein_cli::local::{AgentOptions, LocalAgent, wait_for};
use skein_cli::recount::Recount;

use super::world::{WAIT, World};

/// Emits numbered lines.
pub fn emit(agent: &LocalAgent, data_id: u32, lines: std::ops::Range<u32>) {
    let mut child = agent.emit(data_id).stdin(Stdio::piped()).spawn().unwrap();
    let text: String = lines.map(|line| format!("{line} emitted\n")).collect();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Waits until exactly so many different records are stored.
pub fn wait_unique(folder: &std::path::Path, expected: u64) {
    wait_for("the records in the sink", WAIT, || {
        (Recount::of(folder).ok()?.unique() == expected).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", Recount::of(folder).unwrap().unique()));
}

#[test]
fn a_lane_without_a_route_waits_while_others_flow_and_loses_nothing() {
    let world = World::new();
    let flowing = world.server.tagged_stream("flowing", &[1001]).unwrap();
    let agent = world.agent("one", AgentOptions::default());
    emit(&agent, 2002, 0..500);
    emit(&agent, 1001, 0..500);
    wait_unique(&flowing, 500);
    wait_for("the held lane to be seen", WAIT, || {
        let held = world.skein_ends(0, &["lanes", "--held"]);
        (held.contains("2002") && held.contains("held")).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", world.skein_ends(0, &["lanes"])));
    emit(&agent, 1001, 500..1000);
    wait_unique(&flowing, 1000);
    world.skein_ends(0, &["stream", "add", "late", "--format", "tagged", "--data-id", "2002"]);
    let late = world.server.dir().join("data/sinks/late");
    wait_unique(&late, 500);
    assert_eq!(Recount::of(&late).unwrap().missing(), 0);
    wait_for("the lane to flow", WAIT, || {
        (!world.skein_ends(0, &["lanes", "--held"]).contains("2002")).then_some(())
    })
    .unwrap();
}

#[test]
fn streams_and_routes_are_added_listed_and_removed_while_running() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    world.skein_ends(0, &["stream", "add", "plain", "--path", "{data_id}.txt", "--flush", "20ms"]);
    let route = world.skein_json(&["route", "add", "plain"]);
    let data_id = route["data_id"].as_u64().unwrap() as u32;
    assert!(data_id >= 1_500_000, "the server chooses: {data_id}");
    emit(&agent, data_id, 0..100);
    // Writers never share a file, so each puts its number before the extension.
    let folder = world.server.dir().join("data/sinks/plain");
    let file = wait_for("the file of lines", WAIT, || {
        let entry = std::fs::read_dir(&folder).ok()?.next()?.ok()?;
        let text = std::fs::read_to_string(entry.path()).ok()?;
        (text.trim_end_matches('\0').lines().count() == 100).then_some(entry.path())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", folder.display()));
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with(&data_id.to_string()) && name.ends_with(".txt"), "{name}");
    assert!(world.skein_ends(0, &["stream", "ls"]).contains("plain"));
    let routes = world.skein_ends(0, &["route", "ls"]);
    assert!(routes.contains(&data_id.to_string()), "{routes}");
    // A stream with routes is not removed behind their back.
    world.skein_ends(5, &["stream", "rm", "plain"]);
    world.skein_ends(0, &["route", "rm", route["name"].as_str().unwrap()]);
    world.skein_ends(0, &["stream", "rm", "plain"]);
    assert!(file.exists(), "files stay");
    world.skein_ends(5, &["stream", "add", "../up"]);
    world.skein_ends(5, &["stream", "add", "up", "--path", "../{data_id}"]);
}

#[test]
fn a_tap_shows_records_as_they_pass() {
    use std::io::{BufRead, BufReader};
    let world = World::new();
    world.server.tagged_stream("logs", &[1001]).unwrap();
    let agent = world.agent("one", AgentOptions::default());
    let mut tap = std::process::Command::new(&world.binaries.skein);
    tap.arg("--data-dir").arg(world.server.dir());
    tap.args(["tap", "1001", "--filter", "7 emitted", "--count", "3", "--bare"]);
    skein_cli::guard::die_with_parent(&mut tap);
    let mut tap = tap.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = Vec::new();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        // The tap begins when it is ready; records go on passing until it has seen enough.
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                emit(&agent, 1001, 0..50);
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        });
        let reader = BufReader::new(tap.stdout.take().unwrap());
        lines.extend(reader.lines().map(Result::unwrap));
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    assert!(tap.wait().unwrap().success());
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line.ends_with("7 emitted")), "{lines:?}");
}
