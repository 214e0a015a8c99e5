//! An agent that has nothing to do: memory of its processes, CPU over time, size of the binary.

use std::path::PathBuf;
use std::time::Duration;

use crate::process::{Cpu, rss_kib};
use crate::report::Report;
use crate::site::Site;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Idle {
    /// Seconds to watch
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Folder for the site
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Idle {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let mut report = Report::new("An idle agent");
        let site = Site::start(&self.folder)?;
        let agent = site.agent("agent", "")?;
        std::thread::sleep(Duration::from_secs(10));
        let pids = agent.pids();
        let cpu = || -> anyhow::Result<u64> {
            pids.iter().map(|pid| Ok(Cpu::of(*pid)?.total_us())).sum()
        };
        let before = cpu()?;
        std::thread::sleep(Duration::from_secs(self.seconds));
        let used = cpu()? - before;
        let rss: Vec<u64> = pids.iter().map(|pid| rss_kib(*pid)).collect::<Result<_, _>>()?;
        let binary = std::fs::metadata(std::env::current_exe()?.with_file_name("skein-agent"))?;
        report.row("processes (supervisor, worker)", pids.len());
        report.row("RSS of each, KiB", format!("{rss:?}"));
        report.row("RSS in all, MiB", format!("{:.1}", rss.iter().sum::<u64>() as f64 / 1024.0));
        report.row("CPU, % of a core", format!("{:.3}", used as f64 / (self.seconds as f64 * 1e4)));
        report.row("binary, MiB", format!("{:.1}", binary.len() as f64 / (1 << 20) as f64));
        report.finish(self.out.as_deref())
    }
}
