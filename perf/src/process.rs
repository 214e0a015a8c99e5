//! What the kernel counts for a process: CPU time of all its threads, and memory.

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
