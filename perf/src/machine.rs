//! CPU that no process of ours is charged for: the whole machine's, and that of the kernel's own
//! threads. A server that leaves its writing to the kernel's flusher threads looks cheaper than it
//! is; these figures stand beside every ingest figure so that it would be seen.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;

/// PF_KTHREAD of the kernel's `sched.h`: a thread of the kernel itself.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Busy time of all cores since boot, in microseconds: everything in /proc/stat but idle, waiting
/// for disks and time stolen by other guests.
pub fn busy_us() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("empty /proc/stat")?;
    let ticks = line.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let ticks: Vec<u64> = ticks.collect::<Result<_, _>>()?;
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|index| ticks.get(*index)).sum();
    Ok(busy * 10_000)
}

/// What a kernel thread works on, as far as its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Writing dirty pages back, and journals.
    Flush,
    /// Network packets that came while nobody waited for them.
    SoftInterrupts,
    /// Anything else.
    Other,
}

impl Work {
    /// A worker's name ends with what it does or did last: `kworker/u4:1-flush-254:0`.
    fn of(name: &str) -> Self {
        let has = |part: &str| name.contains(part);
        if ["flush", "writeback", "jbd2", "kswapd", "dio/"].into_iter().any(has) {
            Self::Flush
        } else if has("ksoftirqd") {
            Self::SoftInterrupts
        } else {
            Self::Other
        }
    }
}

/// CPU of all kernel threads, gathered by looking from time to time: a worker that ends takes its
/// counter along, and its name says only what it does now.
#[derive(Debug)]
pub struct KernelThreads {
    /// By process id and start time.
    last: HashMap<(u32, u64), u64>,
    used_us: BTreeMap<Work, u64>,
}

impl KernelThreads {
    /// Counts from now on.
    pub fn watch() -> Self {
        let mut threads = Self { last: HashMap::new(), used_us: BTreeMap::new() };
        threads.look();
        threads.used_us.clear();
        threads
    }

    /// Looks at all of them. Several times a second is often enough.
    pub fn look(&mut self) {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids {
            let Some((key, name, cpu_us)) = kernel_thread(pid) else { continue };
            // One that was not there at the last look has used all of its time since then.
            let before = self.last.insert(key, cpu_us).unwrap_or(0);
            *self.used_us.entry(Work::of(&name)).or_default() += cpu_us.saturating_sub(before);
        }
    }

    /// What was used for `work` since the watch began, in microseconds.
    pub fn used_us(&self, work: Work) -> u64 {
        self.used_us.get(&work).copied().unwrap_or(0)
    }

    /// What was used for anything.
    pub fn all_us(&self) -> u64 {
        self.used_us.values().sum()
    }
}

fn kernel_thread(pid: u32) -> Option<((u32, u64), String, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    (number(6)? & KERNEL_THREAD != 0).then_some(())?;
    let cpu_us = (number(11)? + number(12)?) * 10_000;
    Some(((pid, number(19)?), name.to_owned(), cpu_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_work() {
        assert_eq!(Work::of("kworker/u4:1-flush-254:0"), Work::Flush);
        assert_eq!(Work::of("kworker/u4:3-writeback"), Work::Flush);
        assert_eq!(Work::of("ksoftirqd/1"), Work::SoftInterrupts);
        assert_eq!(Work::of("kworker/0:1-events"), Work::Other);
    }

    #[test]
    fn the_machine_is_busy_and_has_kernel_threads() {
        assert!(busy_us().unwrap() > 0);
        let mut threads = KernelThreads::watch();
        assert_eq!(threads.all_us(), 0);
        threads.look();
        assert!(!threads.last.contains_key(&(std::process::id(), 0)));
    }
}
