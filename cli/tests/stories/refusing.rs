//! Hosts that cannot take a file, and files that do not hold still: each host says why, the others
//! go on, and nothing half-written stands under the final name.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skein_cli::local::{AgentOptions, LocalAgent};
use skein_controlplane::api::types::TransferHostState;

use super::spread::{
    assert_all_have, assert_forgotten, begin, ended, everybody, file_of, folder_of, host, names_in,
};
use super::world::{World, assert_may_skip, is_root};

/// A small file system of its own, which only root may mount.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        if !mounted {
            println!("skipped: a file system of its own at {}: mount is refused", at.display());
            assert_may_skip();
        }
        mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// One of three hosts fails with this reason, the others have the file.
fn assert_one_fails(world: &World, agents: &[LocalAgent; 3], reason: &str) {
    let file = file_of(world, "release.bin", 8 << 20);
    for gear in ["planned", "direct"] {
        let id = begin(world, &file, &["--gear", gear]);
        let detail = ended(world, &id);
        let failed = host(&detail, &agents[1]);
        assert_eq!(failed.state, TransferHostState::Failed, "{gear}: {detail:#?}");
        assert!(failed.error.contains(reason), "{gear}: {}", failed.error);
        assert_eq!(detail.transfer.hosts_done, 2, "{gear}: {detail:#?}");
        let others = [&agents[0], &agents[2]];
        for agent in others {
            let received = std::fs::read(folder_of(world, agent).join("release.bin")).unwrap();
            assert!(received == std::fs::read(&file).unwrap());
            std::fs::remove_file(folder_of(world, agent).join("release.bin")).unwrap();
        }
        agents.iter().for_each(assert_forgotten);
    }
}

#[test]
fn a_host_without_room_says_so_and_the_others_have_the_file() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&AgentOptions::default());
    let folder = folder_of(&world, &agents[1]);
    let Some(_disk) = Mounted::tmpfs(&folder, "size=4m") else { return };
    assert_one_fails(&world, &agents, "free");
    assert_eq!(names_in(&folder), [""; 0]);
}

#[test]
fn a_host_that_must_keep_room_free_says_so() {
    let world = World::new();
    let [one, two]: [LocalAgent; 2] = world.agents(&AgentOptions::default());
    let options = AgentOptions {
        config: "[transfers]\nkeep_free_bytes = 1000000000000000\n".to_owned(),
        ..AgentOptions::default()
    };
    let agents = [one, world.agent("sparing", options), two];
    assert_one_fails(&world, &agents, "free");
    assert_eq!(names_in(&folder_of(&world, &agents[1])), [""; 0]);
}

#[test]
fn a_host_whose_folder_is_read_only_says_so() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&AgentOptions::default());
    let folder = folder_of(&world, &agents[1]);
    // Root may write into any folder, but not into a file system that is read-only.
    let (_disk, reason) = if is_root() {
        let Some(disk) = Mounted::tmpfs(&folder, "ro,size=64m") else { return };
        (Some(disk), "Read-only file system")
    } else {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555)).unwrap();
        (None, "Permission denied")
    };
    assert_one_fails(&world, &agents, reason);
    assert_eq!(names_in(&folder), [""; 0]);
}

#[test]
fn a_file_that_changes_while_it_is_pushed_goes_nowhere() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&AgentOptions::default());
    let file = file_of(&world, "moving.bin", 48 << 20);
    let stop = AtomicBool::new(false);
    let writer = || {
        let file = std::fs::File::options().write(true).open(&file).unwrap();
        for round in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // All over the file, so that something is changed that was read already.
            let at = round.wrapping_mul(7_919_993) % (48 << 20);
            file.write_all_at(&round.to_le_bytes(), at).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(writer);
        let (path, to) = (file.to_str().unwrap(), everybody(&world));
        let here = world.skein(&["push", path, "--mkdir", "--gear", "planned", "--to", &to]);
        let from = format!("{}:{path}", agents[0].id());
        let there = world.skein(&["push", "--from", &from, "--mkdir", "--to", &to]);
        stop.store(true, Ordering::Relaxed);
        let said = |output: &std::process::Output| {
            let text = [&output.stdout[..], &output.stderr[..]].concat();
            String::from_utf8_lossy(&text).into_owned()
        };
        for output in [here, there] {
            let text = said(&output);
            assert!(!output.status.success() && text.contains("changed"), "{text}");
        }
    });
    for agent in &agents {
        assert_eq!(names_in(&folder_of(&world, agent)), [""; 0]);
        assert_forgotten(agent);
    }
    // When it holds still it goes.
    let id = begin(&world, &file, &["--gear", "planned"]);
    assert_eq!(ended(&world, &id).transfer.hosts_done, 3);
    assert_all_have(&world, &agents, &file, "moving.bin");
}

#[test]
fn two_pushes_to_one_path_leave_one_whole_file() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&AgentOptions::default());
    let files = [file_of(&world, "one.bin", 6 << 20), file_of(&world, "two.bin", 7 << 20)];
    let flags = ["--gear", "planned", "--limit", "8M", "--name", "same"];
    let ids = files.each_ref().map(|file| begin(&world, file, &flags));
    for id in &ids {
        let detail = ended(&world, id);
        assert_eq!(detail.transfer.hosts_done, 3, "{detail:#?}");
    }
    let whole = files.each_ref().map(|file| std::fs::read(file).unwrap());
    for agent in &agents {
        let received = std::fs::read(folder_of(&world, agent).join("same")).unwrap();
        assert!(whole.contains(&received), "{}: {} bytes", agent.id(), received.len());
        assert_eq!(names_in(&folder_of(&world, agent)), ["same"]);
        assert_forgotten(agent);
    }
}

#[test]
fn names_of_any_bytes_that_a_name_may_have_arrive() {
    let world = World::new();
    let agents: [LocalAgent; 2] = world.agents(&AgentOptions::default());
    let file = file_of(&world, "x", 300_000);
    let long = "n".repeat(255);
    for name in ["two\nlines", "{agent}", " ", "-rf", "ü\t\"'\\$*", &long] {
        let flags = ["--gear", "planned", &format!("--name={name}")];
        let id = begin(&world, &file, &flags);
        let detail = ended(&world, &id);
        assert_eq!(detail.transfer.hosts_done, 2, "{name:?}: {detail:#?}");
        assert_all_have(&world, &agents, &file, name);
        // What is shown is one line, whatever the name says.
        let shown = world.skein_ends(0, &["transfer", "show", &id]);
        assert!(!shown.contains("two\nlines"), "{shown}");
        for agent in &agents {
            std::fs::remove_file(folder_of(&world, agent).join(name)).unwrap();
        }
    }
    let too_long = "n".repeat(256);
    let (path, to) = (file.to_str().unwrap(), everybody(&world));
    let refused = world.skein(&["push", path, "--name", &too_long, "--to", &to]);
    assert!(!refused.status.success());
    assert_eq!(names_in(&folder_of(&world, &agents[0])), [""; 0]);
}
