//! What a killed receiver leaves of a tree, and what a full or read-only disk does to one.
//!
//! Each test starts this test binary again as a child that does one thing and ends badly. The
//! `child_` tests are those things; without a parent they do nothing.
#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not know as such

mod tree_world;

use skein_filemesh::engine::tree::Existing;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tree_world::{World, bytes_of};

const FILES: usize = 400;

fn fill(source: &Path) {
    for number in 0..FILES {
        let dir = source.join(format!("dir {}", number % 20));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file {number}")), bytes_of(number, number * 53)).unwrap();
    }
    fs::write(source.join("large"), bytes_of(1, 4 << 20)).unwrap();
}

/// This binary again, running only the child test `name` in `base`.
fn child(name: &str, base: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("SKEIN_TEST_BASE", base);
    command
}

/// Where a child works; `None` when it was not started by its parent test.
fn child_world() -> Option<World> {
    std::env::var_os("SKEIN_TEST_BASE").map(PathBuf::from).map(|base| World::at(&base))
}

#[test]
fn child_receives_until_it_is_killed() {
    let Some(world) = child_world() else { return };
    let sent = world.send();
    let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
    for block in 0..sent.manifest.geometry.block_count() {
        sent.give(&mut stage, block..block + 1).unwrap();
        println!("\nwritten {}", block + 1);
        std::io::stdout().flush().unwrap();
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_receiver_goes_on_where_it_was() {
    for stop_after in [1, 2, 150, 460] {
        let base = tempfile::tempdir().unwrap();
        let world = World::at(base.path());
        fill(&world.source());
        let mut command = child("child_receives_until_it_is_killed", base.path());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut confirmed = 0u32;
        for line in lines.map_while(Result::ok) {
            if let Some(count) = line.strip_prefix("written ") {
                confirmed = count.parse().unwrap();
            }
            if confirmed >= stop_after {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(confirmed >= stop_after, "the child ended after {confirmed} blocks");
        assert_eq!(world.names_in("target"), [tree_world::STAGED], "nothing under a final name");
        let sent = world.send();
        let blocks = sent.manifest.geometry.block_count();
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        let refetched = sent.repair(&mut stage);
        // What waited in memory: 128 KiB of one open file, and 384 KiB of small ones.
        let lost = refetched.saturating_sub(blocks - confirmed);
        assert!(lost <= 9 + 25, "{lost} of {confirmed} blocks were lost");
        stage.finish().unwrap();
        world.assert_same("t", &sent);
        assert_eq!(world.names_in("target"), ["t"]);
        assert_eq!(world.names_in("state"), [""; 0]);
    }
}

#[test]
fn child_receives_and_says_how_it_ended() {
    let Some(world) = child_world() else { return };
    let sent = world.send();
    let result = world.receive("t", &sent, Existing::Refuse);
    match result {
        Ok(()) => println!("\nended well"),
        Err(error) => println!("\nended: full {}: {error}", error.is_full()),
    }
}

/// What a child says that receives into a file system of its own, mounted with `options`; `None`
/// where this user may not mount.
fn receive_on(options: &str) -> Option<(String, World, tempfile::TempDir)> {
    let base = tempfile::tempdir().unwrap();
    let world = World::at(base.path());
    fill(&world.source());
    let binary = std::env::current_exe().unwrap();
    let script = r#"mount -t tmpfs -o "$1" tmpfs "$2/target" || { echo "no mount"; exit; }
        "$3" --exact child_receives_and_says_how_it_ended --nocapture
        ls -A "$2/target" | sed 's/^/left: /'"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", options]);
    let output = command.arg(base.path()).arg(binary).env("SKEIN_TEST_BASE", base.path()).output();
    let output = output.ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).unwrap();
    (!text.contains("no mount")).then_some((text, world, base))
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    // No bytes, which is seen at once; no inodes, which is met on the way.
    for options in ["size=1m", "size=9m,nr_inodes=100"] {
        let Some((text, world, _base)) = receive_on(options) else {
            eprintln!("skipped: this user may not mount");
            return;
        };
        assert!(text.contains("ended: full true"), "{text}");
        assert_eq!(world.names_in("target"), [""; 0]);
        // The staged tree is kept or gone, but nothing has the final name.
        assert!(!text.contains("left: t\n"), "{text}");
    }
    let (text, _, _base) = receive_on("size=30m").unwrap();
    assert!(text.contains("ended well") && text.contains("left: t\n"), "{text}");
}

#[test]
fn a_read_only_target_is_said() {
    let Some((text, _, _base)) = receive_on("ro") else {
        eprintln!("skipped: this user may not mount");
        return;
    };
    assert!(text.contains("ended: full false: cannot make directory"), "{text}");
    assert!(!text.contains("left: "), "{text}");
}
