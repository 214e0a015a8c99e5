//! The sink's disk is full: its lanes wait, visibly, others flow, and when there is space again
//! everything is stored, once.

use std::path::{Path, PathBuf};
use std::process::Command;

use skein_cli::local::wait_for;

use super::routing::{emit, wait_unique};
use super::world::{Logger, WAIT, World, assert_all_stored, tailing};

const FULL: u32 = 1001;
const OTHER: u32 = 2002;

/// A small file system of its own; `None` where mounting is refused.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at);
        let output = mount.output();
        let mounted = output.is_ok_and(|output| output.status.success());
        mounted.then(|| Self(at.to_owned()))
    }

    /// Takes all space but this.
    fn fill_but(&self, bytes: usize) {
        use std::io::Write;
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        let full = filler.metadata().unwrap().len();
        filler.set_len(full.saturating_sub(bytes as u64)).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_holds_its_lanes_loses_nothing_and_repeats_nothing() {
    let world = World::new();
    let folder = world.server.dir().join("data/sinks/full");
    let Some(disk) = SmallDisk::mount(&folder, "96m") else {
        eprintln!("not run: mounting a tmpfs is refused here");
        return;
    };
    assert_eq!(world.server.tagged_stream("full", &[FULL]).unwrap(), folder);
    let other = world.server.tagged_stream("other", &[OTHER]).unwrap();
    let agent = world.agent("one", tailing(&world, "one", FULL));
    let logger = Logger::start(&agent);
    for round in 0..3 {
        disk.fill_but(200_000 * round);
        wait_for("the lane to be held", WAIT, || {
            let held = world.skein_ends(0, &["lanes", "--held"]);
            (held.contains(&FULL.to_string()) && held.contains("sink_unavailable")).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", world.skein_ends(0, &["lanes"])));
        let lines = u32::try_from(round + 1).unwrap() * 200;
        emit(&agent, OTHER, lines - 200..lines);
        wait_unique(&other, lines.into());
        disk.free();
        wait_for("the lane to flow", WAIT, || {
            (!world.skein_ends(0, &["lanes", "--held"]).contains(&FULL.to_string())).then_some(())
        })
        .unwrap();
    }
    let lines = logger.finish();
    assert_all_stored(&world, &folder, &[(agent.id(), lines)]);
}
