//! A cgroup of its own for a script, where cgroup v2 is writable for us.
//!
//! The kernel then knows the script's processes whatever they do, and `cgroup.kill` (5.14) ends
//! them in one step. Nothing is limited here, so no controller needs to be enabled and the rule
//! against processes in inner groups does not bite.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often, and how far apart, the removal of a group is tried: 200 ms in all.
const REMOVE_ATTEMPTS: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// The group of one script.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Makes a group called `name` below our own; none where that is not possible.
    pub fn create(name: &str) -> Option<Cgroup> {
        let own = own_group()?;
        let dir = own.join(name);
        match fs::create_dir(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => return None,
        }
        let group = Cgroup { dir };
        // A container may show a read-only or foreign tree: joining must be possible.
        group.procs_file().is_ok().then_some(group)
    }

    /// The group whose folder is `dir`, as a record names it.
    pub fn existing(dir: &str) -> Option<Cgroup> {
        let dir = PathBuf::from(dir);
        dir.join("cgroup.procs").is_file().then_some(Cgroup { dir })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writing "0" here moves the writer into the group.
    pub fn procs_file(&self) -> io::Result<OwnedFd> {
        Ok(File::options().write(true).open(self.dir.join("cgroup.procs"))?.into())
    }

    /// The pids in it.
    pub fn members(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Ends all of them where the kernel can do that in one step.
    pub fn kill(&self) -> bool {
        fs::write(self.dir.join("cgroup.kill"), "1").is_ok()
    }

    /// Removes the group if nobody is in it, or whoever is in it is just ending: a process closes
    /// its files a moment before it leaves its group.
    pub fn remove(&self) {
        for _ in 0..REMOVE_ATTEMPTS {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(REMOVE_PAUSE);
                }
                _ => return,
            }
        }
    }
}

/// Our own group in the v2 hierarchy.
fn own_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mount = cgroup2_mount(&mounts)?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mount.join(path))
}

/// `36 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw`: the fifth field, where the type
/// after the dash is cgroup2 and the mount shows the whole tree.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let whole = fields.get(3) == Some(&"/");
        (whole && kind.starts_with("cgroup2 ")).then(|| fields.get(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_among_others() {
        let text = "25 1 0:24 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    30 25 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                    36 25 0:30 / /sys/fs/cgroup/unified rw,nosuid shared:7 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(text), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2_mount("x"), None);
    }
}
