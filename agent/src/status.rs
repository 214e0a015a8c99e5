//! What `skein-agent status` shows, and the numbers that the agent reports of itself.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use skein_wire::signal::v1::AgentStatus;

use crate::clock;
use crate::spool::Totals;
use crate::sys::procfs;

/// Kernel clock ticks per second; the kernel's interface is fixed at 100.
const TICKS_PER_SECOND: u64 = 100;

/// The file that `status` reads.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Status {
    /// The agent's id.
    pub agent_id: String,
    /// Version of the worker.
    pub version: String,
    /// Pid of the worker.
    pub worker_pid: u32,
    /// Whether the signal session is up.
    pub connected: bool,
    /// Server of that session.
    pub server: String,
    /// Since when it is so, milliseconds since 1970.
    pub since_ms: i64,
    /// Why it is not connected.
    pub error: String,
    /// Where `/metrics` listens.
    pub metrics: String,
}

/// Keeps the file up to date.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    status: Mutex<Status>,
}

impl StatusFile {
    /// Starts as not connected.
    pub fn new(path: PathBuf, agent_id: &str, metrics: &str) -> StatusFile {
        let status = Status {
            agent_id: agent_id.into(),
            version: crate::VERSION.into(),
            worker_pid: std::process::id(),
            since_ms: clock::wall_ms(),
            error: "not connected yet".into(),
            metrics: metrics.into(),
            ..Status::default()
        };
        StatusFile { path, status: Mutex::new(status) }
    }

    /// Whether the signal session is up, at which server, and if not, why. The file is written
    /// when that changed; it may wait for a disk, so call it off the loop.
    pub fn set(&self, connected: bool, server: &str, error: &str) {
        let mut status = self.status.lock().unwrap_or_else(|poison| poison.into_inner());
        if (status.connected, status.server.as_str(), status.error.as_str())
            == (connected, server, error)
        {
            return;
        }
        if status.connected != connected {
            status.since_ms = clock::wall_ms();
        }
        status.connected = connected;
        status.server = server.into();
        status.error = error.into();
        self.write(&status);
    }

    /// Writes the file as it is.
    pub fn write_now(&self) {
        self.write(&self.status.lock().unwrap_or_else(|poison| poison.into_inner()));
    }

    fn write(&self, status: &Status) {
        // Only a convenience: an agent that cannot write it works all the same.
        if let Ok(text) = serde_json::to_vec_pretty(status) {
            let aside = self.path.with_extension("tmp");
            let written = std::fs::write(&aside, text);
            let _ = written.and_then(|()| std::fs::rename(&aside, &self.path));
        }
    }
}

/// Reads the file; none when no worker ever wrote it.
pub fn read(path: &Path) -> Option<Status> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Measures this process between two calls.
#[derive(Debug, Default)]
pub struct SelfMeter {
    last: Option<(u64, u64)>,
}

impl SelfMeter {
    /// What to report now.
    pub fn measure(&mut self, spool: Totals) -> AgentStatus {
        let stat = procfs::stat(std::process::id());
        let now_ms = clock::now_ms();
        let ticks = stat.map_or(0, |stat| stat.cpu_ticks);
        let cpu_permille = match self.last.replace((now_ms, ticks)) {
            Some((then_ms, then_ticks)) if now_ms > then_ms => {
                let cpu_ms = ticks.saturating_sub(then_ticks) * 1000 / TICKS_PER_SECOND;
                cpu_ms * 1000 / (now_ms - then_ms)
            }
            _ => 0,
        };
        AgentStatus {
            spool_bytes: spool.bytes,
            spool_records: spool.records,
            dropped_records: spool.dropped,
            cpu_permille: cpu_permille as u32,
            // Whole MiB: the noise of single pages is no news.
            rss_bytes: stat.map_or(0, |stat| stat.rss_pages * page_bytes()) >> 20 << 20,
        }
    }
}

fn page_bytes() -> u64 {
    const AUXV_PAGE_SIZE: u64 = 6;
    let auxv = std::fs::read("/proc/self/auxv").unwrap_or_default();
    let (words, _) = auxv.as_chunks::<8>();
    let pairs = words.chunks_exact(2).map(|pair| [pair[0], pair[1]].map(u64::from_ne_bytes));
    pairs.into_iter().find(|[key, _]| *key == AUXV_PAGE_SIZE).map_or(4096, |[_, value]| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_was_set() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("status.json");
        assert_eq!(read(&path), None);
        let file = StatusFile::new(path.clone(), "a", "off");
        file.set(true, "s:1", "");
        let status = read(&path).unwrap();
        assert!(status.connected && status.server == "s:1" && status.agent_id == "a");
    }

    #[test]
    fn the_meter_sees_this_process() {
        let totals = Totals { bytes: 7, ..Totals::default() };
        let status = SelfMeter::default().measure(totals);
        assert!(status.rss_bytes > 0 && status.spool_bytes == 7);
        assert!(page_bytes().is_power_of_two());
    }
}
