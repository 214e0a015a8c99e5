//! What the kernel counts for a process: CPU time of all its threads, and memory.

use std::collections::BTreeMap;

use anyhow::Context;

/// CPU time so far, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// In user space.
    pub user_us: u64,
    /// In the kernel on the process's behalf.
    pub system_us: u64,
}

impl Cpu {
    /// Of process `pid`, all threads, from /proc/PID/stat: in ticks of 10 ms, so short spans need
    /// many operations.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let tick = |index: usize| -> anyhow::Result<u64> {
            let ticks = fields.split_ascii_whitespace().nth(index).context("short stat")?;
            Ok(ticks.parse::<u64>()? * 10_000)
        };
        Ok(Self { user_us: tick(11)?, system_us: tick(12)? })
    }

    /// User and system time together, in microseconds.
    pub fn total_us(self) -> u64 {
        self.user_us + self.system_us
    }

    /// What was used since `before`, in microseconds.
    pub fn since(self, before: Self) -> u64 {
        self.total_us() - before.total_us()
    }
}

/// CPU time so far of processes, in microseconds by process id, that of their children which were
/// waited for included. Those that are gone are left out.
pub fn whole_us(pids: &[u32]) -> BTreeMap<u32, u64> {
    let whole = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).take(4);
        let ticks: u64 = fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Some((*pid, ticks * 10_000))
    };
    pids.iter().filter_map(whole).collect()
}

/// CPU of the children that this process has waited for, in microseconds.
#[allow(unsafe_code)]
pub fn children_us() -> u64 {
    // SAFETY: rusage is plain numbers, for which zero is a value; the kernel overwrites it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a valid, exclusive reference to an rusage.
    let status = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    assert_eq!(status, 0, "RUSAGE_CHILDREN is always known");
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

/// CPU time of a process's threads by name, most first, in microseconds. io_uring's worker threads
/// (`iou-wrk-...`) are threads of the process that uses it, so they are here and in [`Cpu::of`].
pub fn threads_us(pid: u32) -> anyhow::Result<Vec<(String, u64)>> {
    let mut named = BTreeMap::<String, u64>::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread may have ended since the listing.
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let name = name.trim_end_matches(|char: char| char.is_ascii_digit() || char == '-');
        let ticks = rest.split_ascii_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        *named.entry(name.to_owned()).or_default() += ticks * 10_000;
    }
    let mut named: Vec<_> = named.into_iter().collect();
    named.sort_by_key(|(_, us)| std::cmp::Reverse(*us));
    Ok(named)
}

/// Open file descriptors of process `pid`.
pub fn descriptors(pid: u32) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Resident memory of process `pid`, in KiB.
pub fn rss_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_ascii_whitespace().nth(1).context("no value")?.parse()?)
}

/// CPU time of the calling thread, in microseconds.
#[allow(unsafe_code)]
pub fn thread_cpu_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to a valid, exclusive reference.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "every Linux has a CPU clock per thread");
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
