//! Disks of one host that fill up, break, hang or lose what was written, in the middle of a push:
//! that host says what is wrong or goes on where it can, the others have the file, and what stands
//! under the final name is the file or nothing.
//!
//! The disks are file systems of their own, in memory or behind a loop device, which only root may
//! make. A kernel without `dm-error` still has the truncated device that answers EIO here.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use skein_cli::local::{AgentOptions, LocalAgent};
use skein_controlplane::api::types::{TransferDetail, TransferHostState};

use super::spread::{
    assert_all_have, assert_forgotten, begin, ended, file_of, folder_of, host, look, names_in,
    wait_until,
};
use super::world::{World, assert_may_skip};

const FILE_BYTES: usize = 16 << 20;
/// So slow that there is a middle.
const SLOWLY: [&str; 4] = ["--gear", "planned", "--limit", "2M"];

/// A file system of its own, gone with this value.
struct Disk {
    at: PathBuf,
    image: PathBuf,
    device: Option<String>,
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.ok().filter(|output| output.status.success());
    if output.is_none() {
        println!("skipped: {program} {arguments:?} is refused here");
        assert_may_skip();
    }
    Some(String::from_utf8_lossy(&output?.stdout).trim().to_owned())
}

impl Disk {
    fn at(at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        Self { image: at.with_extension("image"), at, device: None }
    }

    fn in_memory(at: PathBuf, bytes: usize) -> Option<Self> {
        let disk = Self::at(at);
        let size = format!("size={bytes}");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", disk.at.to_str()?])?;
        Some(disk)
    }

    /// An ext4 in an image of 64 MiB, behind a loop device.
    fn on_loop(at: PathBuf) -> Option<Self> {
        if !Path::new("/dev/loop-control").exists() {
            println!("skipped: this kernel has no loop devices");
            return None;
        }
        let mut disk = Self::at(at);
        File::create(&disk.image).and_then(|file| file.set_len(64 << 20)).unwrap();
        let image = disk.image.to_str()?.to_owned();
        run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0", &image])?;
        let device = run("losetup", &["--show", "-f", &image])?;
        disk.device = Some(device.clone());
        run("mount", &[&device, disk.at.to_str()?])?;
        Some(disk)
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut filler = File::create(self.at.join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
    }

    /// The end of the device is gone: what lies there answers with EIO.
    fn break_after(&self, bytes: u64) {
        run("sync", &["-f", self.at.to_str().unwrap()]);
        File::options().write(true).open(&self.image).unwrap().set_len(bytes).unwrap();
        run("losetup", &["-c", self.device.as_deref().unwrap()]).unwrap();
    }

    /// Writes wait, or go on.
    fn freeze(&self, is_frozen: bool) -> Option<String> {
        let how = if is_frozen { "-f" } else { "-u" };
        run("fsfreeze", &[how, self.at.to_str()?])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let at = self.at.to_str().unwrap_or_default();
        // What is frozen cannot be unmounted, and nobody could be killed that writes to it.
        let _ = Command::new("fsfreeze").args(["-u", at]).output();
        let _ = Command::new("umount").args(["-l", at]).output();
        if let Some(device) = &self.device {
            let _ = Command::new("losetup").args(["-d", device]).output();
        }
    }
}

/// Small disks would not do with what must stay free by default.
fn sparing_nothing() -> AgentOptions {
    let config = "[transfers]\nkeep_free_bytes = 0\n".to_owned();
    AgentOptions { config, ..AgentOptions::default() }
}

fn wait_for_bytes(world: &World, id: &str, agent: &LocalAgent, bytes: usize) {
    wait_until(world, id, "bytes on the host", |detail| {
        host(detail, agent).verified_bytes > bytes as u64
    });
}

/// The second of three has failed for one of these reasons, the others have the file.
fn assert_second_failed(detail: &TransferDetail, agents: &[LocalAgent; 3], reasons: &[&str]) {
    let failed = host(detail, &agents[1]);
    assert_eq!(failed.state, TransferHostState::Failed, "{detail:#?}");
    assert!(reasons.iter().any(|reason| failed.error.contains(reason)), "{}", failed.error);
    assert_eq!(detail.transfer.hosts_done, 2, "{detail:#?}");
}

#[test]
fn a_disk_that_fills_up_costs_a_file_nothing_that_has_begun() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&sparing_nothing());
    let folder = folder_of(&world, &agents[1]);
    let Some(disk) = Disk::in_memory(folder.clone(), FILE_BYTES + (4 << 20)) else { return };
    let file = file_of(&world, "release.bin", FILE_BYTES);
    let id = begin(&world, &file, &SLOWLY);
    wait_for_bytes(&world, &id, &agents[1], FILE_BYTES / 4);
    // Its room was taken before its first byte came.
    disk.fill();
    let detail = ended(&world, &id);
    assert_eq!(detail.transfer.hosts_done, 3, "{detail:#?}");
    fs::remove_file(folder.join("filler")).unwrap();
    assert_all_have(&world, &agents, &file, "release.bin");
    agents.iter().for_each(assert_forgotten);
}

#[test]
fn a_disk_that_fills_up_under_a_directory_fails_its_host_alone() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&sparing_nothing());
    let folder = folder_of(&world, &agents[1]);
    let Some(disk) = Disk::in_memory(folder.clone(), FILE_BYTES + (8 << 20)) else { return };
    let tree = world.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..64 {
        let bytes = fs::read(file_of(&world, "part", FILE_BYTES / 64 + number)).unwrap();
        fs::write(tree.join(format!("part {number}")), bytes).unwrap();
    }
    let id = begin(&world, &tree, &SLOWLY);
    wait_for_bytes(&world, &id, &agents[1], FILE_BYTES / 4);
    disk.fill();
    let detail = ended(&world, &id);
    match host(&detail, &agents[1]).state {
        // All its room may have been taken as well.
        TransferHostState::Done => assert_eq!(names_in(&folder), ["filler", "tree"]),
        _ => {
            assert_second_failed(&detail, &agents, &["No space left"]);
            assert_eq!(names_in(&folder), ["filler"], "nothing of it is left");
        }
    }
    for agent in [&agents[0], &agents[2]] {
        assert_eq!(names_in(&folder_of(&world, agent).join("tree")).len(), 64);
        assert_forgotten(agent);
    }
    assert_forgotten(&agents[1]);
}

/// A push of which a quarter is on the second host, whose folder is the top of a disk.
fn begun(world: &World, agents: &[LocalAgent; 3], top: &Path) -> (PathBuf, String) {
    fs::remove_dir_all(top.join("lost+found")).unwrap();
    let file = file_of(world, "release.bin", FILE_BYTES);
    let id = begin(world, &file, &SLOWLY);
    wait_for_bytes(world, &id, &agents[1], FILE_BYTES / 4);
    (file, id)
}

#[test]
fn a_disk_that_breaks_fails_its_host_and_nothing_bears_the_name() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&sparing_nothing());
    let folder = folder_of(&world, &agents[1]);
    let Some(disk) = Disk::on_loop(folder.clone()) else { return };
    let (file, id) = begun(&world, &agents, &folder);
    disk.break_after(4 << 20);
    let detail = ended(&world, &id);
    assert_second_failed(&detail, &agents, &["Input/output error", "Read-only file system"]);
    assert!(!folder.join("release.bin").exists());
    for agent in [&agents[0], &agents[2]] {
        let received = fs::read(folder_of(&world, agent).join("release.bin")).unwrap();
        assert!(received == fs::read(&file).unwrap(), "{} has other bytes", agent.id());
        assert_forgotten(agent);
    }
}

#[test]
fn a_disk_that_hangs_holds_up_its_host_alone() {
    let world = World::new();
    let agents: [LocalAgent; 3] = world.agents(&sparing_nothing());
    let folder = folder_of(&world, &agents[1]);
    let Some(disk) = Disk::on_loop(folder.clone()) else { return };
    let (file, id) = begun(&world, &agents, &folder);
    if disk.freeze(true).is_none() {
        return;
    }
    let detail = wait_until(&world, &id, "the others to have the file", |detail| {
        let done = |agent| host(detail, agent).state == TransferHostState::Done;
        done(&agents[0]) && done(&agents[2])
    });
    assert!(!host(&detail, &agents[1]).state.is_final(), "it waits: {detail:#?}");
    disk.freeze(false).unwrap();
    let detail = ended(&world, &id);
    assert_eq!(detail.transfer.hosts_done, 3, "{detail:#?}");
    assert_all_have(&world, &agents, &file, "release.bin");
    agents.iter().for_each(assert_forgotten);
}

#[test]
fn what_a_killed_host_lost_of_its_writes_is_fetched_again() {
    let world = World::new();
    let mut agents: [LocalAgent; 3] = world.agents(&sparing_nothing());
    let file = file_of(&world, "release.bin", FILE_BYTES);
    let id = begin(&world, &file, &SLOWLY);
    wait_for_bytes(&world, &id, &agents[1], FILE_BYTES / 2);
    agents[1].kill();
    // A power cut may leave blocks that were written as zeros, and one of which only half is there.
    let part = folder_of(&world, &agents[1]).join(format!(".skein-{id}.part"));
    let torn = File::options().read(true).write(true).open(&part).unwrap();
    torn.write_all_at(&vec![0; 1 << 20], 0).unwrap();
    torn.write_all_at(&[0; 5_000], (2 << 20) + 9_000).unwrap();
    drop(torn);
    let before = look(&world, &id);
    agents[1].run().unwrap();
    let detail = ended(&world, &id);
    assert_eq!(detail.transfer.hosts_done, 3, "{detail:#?}");
    assert_all_have(&world, &agents, &file, "release.bin");
    let resumed = host(&detail, &agents[1]).resumed_bytes;
    let verified = host(&before, &agents[1]).verified_bytes;
    assert!(resumed > 0 && resumed < FILE_BYTES as u64 - (1 << 20), "{resumed} of {verified}");
    // A lost write is nobody's lie.
    assert!(detail.hosts.iter().all(|host| host.refused_blocks == 0), "{detail:#?}");
    agents.iter().for_each(assert_forgotten);
}

/// Not a fault of disks, but of what an operator asks of them.
#[test]
fn names_that_lead_elsewhere_are_refused_and_nothing_is_written() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let file = file_of(&world, "x", 20_000);
    let target = agent.host().join("to");
    let to = format!("{}:{}", agent.id(), target.display());
    let path = file.to_str().unwrap();
    for name in ["..", ".", "../x", "/etc/x", "a/b"] {
        let refused = world.skein(&["push", path, "--mkdir", "--name", name, "--to", &to]);
        assert!(!refused.status.success(), "{name:?}");
    }
    for folder in ["../to", "to", "/to/../../etc"] {
        let to = format!("{}:{folder}", agent.id());
        let refused = world.skein(&["push", path, "--mkdir", "--to", &to]);
        assert!(!refused.status.success(), "{folder:?}");
    }
    assert!(!target.exists() && !Path::new("/etc/x").exists());
    assert!(world.skein_json(&["transfer", "ls"]).as_array().unwrap().is_empty());
}
