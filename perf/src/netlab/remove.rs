//! The end of a lab: every process in its namespaces, then the namespaces. What bears the name of
//! a process that still measures is left alone.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::PREFIX;

/// Where `ip` keeps named namespaces.
const NAMED: &str = "/run/netns";

/// Namespaces of one lab, removed with this value.
pub(super) struct Names(pub(super) Vec<String>);

impl Drop for Names {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// What an interrupted measurement has left.
#[derive(Debug, Clone, clap::Args)]
pub struct Cleanup {}

impl Cleanup {
    /// Removes it and says how much there was.
    pub fn run(self) -> anyhow::Result<()> {
        println!("{} network namespaces removed", cleanup());
        Ok(())
    }
}

/// Removes labs whose makers are gone: killed, or ended by a signal. How many namespaces.
pub fn cleanup() -> usize {
    let entries = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let stale: Vec<String> =
        names.filter(|name| maker(name).is_some_and(|maker| !measures(maker))).collect();
    remove(&stale);
    stale.len()
}

/// Who made a namespace, if it is one of ours.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Whether a process of this program still runs under `pid`.
fn measures(pid: u32) -> bool {
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    name(&pid.to_string()).is_some_and(|found| Some(found) == name("self"))
}

fn remove(names: &[String]) {
    let inode = |name: &String| Some(std::fs::metadata(Path::new(NAMED).join(name)).ok()?.ino());
    let inodes: HashSet<u64> = names.iter().filter_map(inode).collect();
    if inodes.is_empty() {
        return;
    }
    // Processes may start others while they are ended.
    for _ in 0..50 {
        let pids = inside(&inodes);
        if pids.is_empty() {
            break;
        }
        let pids = pids.iter().map(u32::to_string);
        let _ = Command::new("kill").arg("-9").args(pids).stderr(Stdio::null()).status();
        std::thread::sleep(Duration::from_millis(20));
    }
    for name in names.iter().filter(|name| Path::new(NAMED).join(name).exists()) {
        let _ = Command::new("ip").args(["netns", "del", name]).status();
    }
}

/// Processes whose network is one of these namespaces, never this one. Ended processes that nobody
/// has waited for have no namespace any more.
fn inside(inodes: &HashSet<u64>) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let network = |pid: u32| Some(std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino());
    pids.filter(|pid| *pid != std::process::id())
        .filter(|pid| network(*pid).is_some_and(|inode| inodes.contains(&inode)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_labs_have_a_maker() {
        assert_eq!(maker("skein-lab-4711-0-hub"), Some(4711));
        assert_eq!(maker("skein-lab-x-0-hub"), None);
        assert_eq!(maker("skein-lab-4711"), None);
        assert_eq!(maker("web-4711-0-hub"), None);
    }

    #[test]
    fn a_process_that_runs_keeps_its_lab() {
        assert!(measures(std::process::id()));
        assert!(!measures(1), "the first process is none of this program");
        assert!(!measures(u32::MAX));
    }
}
