//! The end of a lab: every process in its namespaces, then the namespaces. A lab whose
//! maker still runs is left alone.

use std::collections::HashSet;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::PREFIX;

/// Exit status of a measurement that was told to end.
const EXIT_TOLD: i32 = 130;

/// Where `ip` keeps named namespaces.
const NAMED: &str = "/run/netns";

/// Namespaces of this process's labs.
static ACTIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn active() -> MutexGuard<'static, Vec<String>> {
    ACTIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Namespaces of one lab, removed with this value.
pub(super) struct Names(pub(super) Vec<String>);

impl Names {
    /// Counts as this process's from now on, before any is made.
    pub(super) fn new(names: Vec<String>) -> Self {
        active().extend(names.iter().cloned());
        Self(names)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        remove(&self.0);
        active().retain(|name| !self.0.contains(name));
    }
}

/// Has SIGINT and SIGTERM end this process's labs with everything in them, then `last`, then this
/// process: without that, agents and servers would go on.
pub fn end_with_signals(last: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        eprintln!("told to end: labs are removed");
        let names = active().clone();
        remove(&names);
        last();
        std::process::exit(EXIT_TOLD)
    })?;
    Ok(())
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
        names.filter(|name| lab_of(name).is_some_and(|lab| hold(lab).is_ok())).collect();
    remove(&stale);
    stale.len()
}

/// The lab that a namespace belongs to, if it is one of ours.
fn lab_of(namespace: &str) -> Option<&str> {
    let (lab, host) = namespace.rsplit_once('-')?;
    let (maker, number) = lab.strip_prefix(PREFIX)?.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(maker) && digits(number) && (host == "hub" || digits(host))).then_some(lab)
}

/// What a lab holds as long as its maker lives, whatever ends it: a socket that no other process
/// can have meanwhile. A process id alone would not do, as it may be another's by now.
pub(super) fn hold(lab: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(lab)?)
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
    fn only_names_of_labs_are_of_a_lab() {
        assert_eq!(lab_of("skein-lab-4711-0-hub"), Some("skein-lab-4711-0"));
        assert_eq!(lab_of("skein-lab-4711-0-12"), Some("skein-lab-4711-0"));
        let others = ["skein-lab-x-0-hub", "skein-lab-4711-0", "skein-lab-1-2-x", "web-4711-0-hub"];
        for other in others {
            assert_eq!(lab_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_lab_is_held_until_its_maker_ends() {
        let lab = format!("{PREFIX}{}-test", std::process::id());
        let held = hold(&lab).unwrap();
        assert!(hold(&lab).is_err());
        drop(held);
        hold(&lab).unwrap();
    }
}
