//! Many sessions in one data process: cost of a handshake, memory of an idle session, false
//! losses over time, and a 64-byte message to all and back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use skein_wire::fleet::v1::from_data;

use crate::agents::{self, Shape};
use crate::echo;
use crate::lab::{Lab, LabConfig};
use crate::process::{Cpu, rss_kib};
use crate::report::{Report, Spread};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Sessions {
    /// Agents; a whole agent takes two sockets, and a process has at most 20,000 here
    #[arg(long, default_value_t = 18_000)]
    agents: usize,
    /// Hold a data channel beside each signal channel
    #[arg(long)]
    whole: bool,
    /// Seconds to hold all sessions idle
    #[arg(long, default_value_t = 600)]
    hold: u64,
    /// Broadcasts to all
    #[arg(long, default_value_t = 5)]
    broadcasts: usize,
    /// Shards of the data process
    #[arg(long, default_value_t = 1)]
    cores: usize,
    /// Seconds between heartbeats of an agent
    #[arg(long, default_value_t = 30)]
    heartbeat: u64,
    /// Folder for the laboratory
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Sessions {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(self.measure()))
    }

    async fn measure(self) -> anyhow::Result<()> {
        let mut report = Report::new("Many sessions in one data process");
        let config = LabConfig {
            cores: self.cores,
            folder: self.folder.clone(),
            heartbeat_interval_ms: (self.heartbeat * 1000) as u32,
            ..LabConfig::default()
        };
        let mut lab = Lab::start(&config).await?;
        let pid = lab.register.pid;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let empty_kib = rss_kib(pid)?;

        let shape = if self.whole { Shape::Whole } else { Shape::Signal };
        let heartbeat = Duration::from_secs(self.heartbeat);
        let (cpu, started) = (Cpu::of(pid)?, Instant::now());
        let mut seen = Vec::new();
        let tally = {
            let addresses = lab.addresses()?;
            let hold = agents::hold(&lab.authority, addresses, self.agents, shape, heartbeat, 64);
            tokio::pin!(hold);
            loop {
                tokio::select! {
                    tally = &mut hold => break tally?,
                    burst = lab.inbox.burst(&mut seen) => burst?,
                }
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let handshake_us = Cpu::of(pid)?.since(cpu) as f64 / self.agents as f64;
        report.row("agents", format!("{} ({shape:?})", self.agents));
        report.row("failed to open", tally.borrow().failed);
        report.row(
            "set-up, agents per second (wall, bound by the clients' core)",
            format!("{:.0}", self.agents as f64 / seconds),
        );
        report.row("server CPU us per agent's set-up", format!("{handshake_us:.0}"));

        // Idle: what comes from the data process is read on, as control does.
        let (cpu, until) = (Cpu::of(pid)?, Instant::now() + Duration::from_secs(self.hold));
        let mut downs = 0;
        while Instant::now() < until {
            seen.clear();
            let left = until.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, lab.inbox.burst(&mut seen)).await {
                Ok(read) => read?,
                Err(_) => break,
            }
            downs +=
                seen.iter().filter(|kind| matches!(kind, from_data::Kind::SessionDown(_))).count();
        }
        let idle_us = Cpu::of(pid)?.since(cpu) as f64;
        let rss = rss_kib(pid)?;
        report.row(
            "RSS per agent, KiB",
            format!("{:.2}", rss.saturating_sub(empty_kib) as f64 / self.agents as f64),
        );
        report.row("RSS of the process before, MiB", format!("{:.1}", empty_kib as f64 / 1024.0));
        report.row("seconds held idle", self.hold);
        report.row("sessions lost while idle", downs.max(tally.borrow().ended));
        if self.hold > 0 {
            report.row(
                "server CPU per heartbeat and its answer, us",
                format!(
                    "{:.1}",
                    idle_us / (self.agents as f64 * self.hold as f64 / self.heartbeat as f64)
                ),
            );
        }

        let (mut cpus, mut p50s, mut p99s, mut lasts) = (vec![], vec![], vec![], vec![]);
        for number in 1..=self.broadcasts as u64 {
            let cpu = Cpu::of(pid)?;
            let times = echo::all(&mut lab, 0..self.agents, number, 64).await?.times_ms;
            cpus.push(Cpu::of(pid)?.since(cpu) as f64 / self.agents as f64);
            p50s.push(times[times.len() / 2]);
            p99s.push(times[times.len() * 99 / 100]);
            lasts.push(times[times.len() - 1]);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if self.broadcasts > 0 {
            report
                .row("64-byte message to all and back, server CPU us per agent", Spread::of(cpus));
            report.row("the same, ms until half had answered", Spread::of(p50s));
            report.row("the same, ms until 99 % had answered", Spread::of(p99s));
            report.row("the same, ms until all had answered", Spread::of(lasts));
        }
        for reason in &tally.borrow().reasons {
            report.note(&format!("A session ended or failed: {reason}"));
        }
        report.finish(self.out.as_deref())
    }
}
