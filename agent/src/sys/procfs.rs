//! What `/proc` tells about processes: who lives, since when, whose child it is.
//!
//! A pid alone names nobody, as pids are reused. [`ProcessId`] adds the start time and the boot, so
//! that a stranger with the same number is never taken for, or killed as, one of ours.

use std::fs;
use std::path::Path;

/// Entries of `/proc` looked at in one walk: more than `pid_max` of ordinary hosts.
const PROCESSES_MAX: usize = 1 << 22;

/// One process for all time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ProcessId {
    /// Pid.
    pub pid: u32,
    /// Clock ticks between boot and its start.
    pub start_ticks: u64,
    /// The boot it lives in.
    pub boot_id: String,
}

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProcStat {
    /// Pid.
    pub pid: u32,
    /// State letter; `Z` has exited and waits for its parent.
    pub state: char,
    /// Parent.
    pub parent: u32,
    /// Clock ticks between boot and its start.
    pub start_ticks: u64,
    /// Clock ticks in user and kernel mode.
    pub cpu_ticks: u64,
    /// Resident pages.
    pub rss_pages: u64,
}

impl ProcessId {
    /// The process that has `pid` now.
    pub fn of(pid: u32) -> Option<ProcessId> {
        let stat = stat(pid)?;
        Some(ProcessId { pid, start_ticks: stat.start_ticks, boot_id: boot_id() })
    }

    /// Whether it still runs; one that has exited and was not reaped yet does not.
    pub fn is_alive(&self) -> bool {
        self.boot_id == boot_id()
            && stat(self.pid)
                .is_some_and(|now| now.start_ticks == self.start_ticks && now.state != 'Z')
    }
}

/// The boot we live in; empty where the kernel does not tell.
pub fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// About one process.
pub fn stat(pid: u32) -> Option<ProcStat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The command's name stands in parentheses and may contain anything, even `) Z 1`: fields are
/// counted from the last closing one.
fn parse_stat(text: &str) -> Option<ProcStat> {
    let pid = text.split(' ').next()?.parse().ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(22).collect();
    let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
    Some(ProcStat {
        pid,
        state: fields.first()?.chars().next()?,
        parent: number(1)? as u32,
        start_ticks: number(19)?,
        cpu_ticks: number(11)? + number(12)?,
        rss_pages: number(21)?,
    })
}

/// Every process there is.
pub fn all() -> Vec<ProcStat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries
        .take(PROCESSES_MAX)
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(stat).collect()
}

/// The descendants of `root` that are not zombies, without `root`.
pub fn descendants(root: u32) -> Vec<ProcStat> {
    let mut rest = all();
    let mut family = vec![root];
    let mut found = Vec::new();
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        next += 1;
        let (children, others) = rest.into_iter().partition(|process| process.parent == parent);
        rest = others;
        for child in children {
            family.push(child.pid);
            found.push(child);
        }
    }
    found.retain(|process| process.state != 'Z');
    found
}

/// Processes whose environment at their start had `entry` (`NAME=value`).
pub fn with_environment(entry: &str) -> Vec<ProcStat> {
    let has = |pid: u32| {
        let environment = fs::read(Path::new("/proc").join(pid.to_string()).join("environ"));
        environment.is_ok_and(|bytes| bytes.split(|b| *b == 0).any(|e| e == entry.as_bytes()))
    };
    all().into_iter().filter(|process| process.state != 'Z' && has(process.pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_name_changes_nothing() {
        let text = "42 (a) Z 1 (x) S 7 1 1 0 -1 0 0 0 0 0 5 6 0 0 20 0 1 0 99 0 321 0";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.pid, stat.state, stat.parent, stat.start_ticks), (42, 'S', 7, 99));
        assert_eq!((stat.cpu_ticks, stat.rss_pages), (11, 321));
    }

    #[test]
    fn this_process_is_alive_and_a_stranger_with_its_pid_is_not() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { start_ticks: me.start_ticks + 1, ..me.clone() }.is_alive());
        assert!(!ProcessId { boot_id: "other".into(), ..me }.is_alive());
    }

    #[test]
    fn children_are_descendants_and_carry_their_environment() {
        let mark = format!("SKEIN_TEST={}", crate::clock::jitter());
        let (name, value) = mark.split_once('=').unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("30").env(name, value).spawn().unwrap();
        let pid = child.id();
        assert!(descendants(std::process::id()).iter().any(|process| process.pid == pid));
        assert_eq!(with_environment(&mark).iter().map(|p| p.pid).collect::<Vec<_>>(), [pid]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(with_environment(&mark).is_empty());
    }
}
