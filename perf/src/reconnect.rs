//! A whole fleet drops and comes back at once: after kill -9 of the data process, and after a TCP
//! reset of every connection. Handshakes with client certificates, as always.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::echo;
use crate::lab::{Lab, LabConfig};
use crate::process::{Cpu, rss_kib};
use crate::report::{Report, Spread};
use crate::returning::Fleet;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Reconnect {
    /// Agents, one signal session each
    #[arg(long, default_value_t = 9_000)]
    agents: usize,
    /// Rounds, each with a kill and a reset
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Shards of the data process
    #[arg(long, default_value_t = 1)]
    cores: usize,
    /// Handshakes that the clients have under way at a time
    #[arg(long, default_value_t = 256)]
    parallel: usize,
    /// Seconds between heartbeats of an agent
    #[arg(long, default_value_t = 10)]
    heartbeat: u64,
    /// Seconds to watch after each return that no session is lost
    #[arg(long, default_value_t = 5)]
    watch: u64,
    /// Folder for the laboratory
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One return of all.
struct Return {
    most: Duration,
    all: Duration,
    server_us: f64,
    client_us: f64,
    down: Duration,
}

impl Reconnect {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(self.measure()))
    }

    async fn measure(self) -> anyhow::Result<()> {
        let mut report = Report::new("A fleet drops and comes back");
        let config = LabConfig {
            cores: self.cores,
            folder: self.folder.clone(),
            heartbeat_interval_ms: (self.heartbeat * 1000) as u32,
            ..LabConfig::default()
        };
        let mut lab = Lab::start(&config).await?;
        let heartbeat = Duration::from_secs(self.heartbeat);
        let fleet =
            Fleet::start(&lab.authority, lab.addresses()?, self.agents, heartbeat, self.parallel)?;
        fleet.wait_opened(&mut lab, 0, self.agents, Instant::now()).await?;
        let (mut kills, mut resets) = (Vec::new(), Vec::new());
        let mut lost = self.settle(&mut lab, &fleet, 1).await?;
        for round in 1..=self.rounds as u64 {
            kills.push(self.kill(&mut lab, &fleet).await?);
            lost += self.settle(&mut lab, &fleet, 2 * round).await?;
            resets.push(self.reset(&mut lab, &fleet).await?);
            lost += self.settle(&mut lab, &fleet, 2 * round + 1).await?;
            eprintln!("round {round}: all are back twice");
        }
        report.row("agents, shards, rounds", {
            format!("{}, {}, {}", self.agents, self.cores, self.rounds)
        });
        report.row("sessions lost after they were back, all rounds", lost);
        report.row("attempts that failed and were repeated", fleet.state.borrow().failed);
        report.row("RSS of the data process at the end, MiB", {
            format!("{:.1}", rss_kib(lab.pid())? as f64 / 1024.0)
        });
        report.table(
            &[
                "what",
                "server CPU us per handshake",
                "handshakes/s, wall",
                "ms until 99 % are back",
                "ms until all are back",
                "of it without a server",
                "client CPU us per handshake",
            ],
            &[self.cells("kill -9 of the data process", &kills), {
                self.cells("TCP reset of every connection", &resets)
            }],
        );
        report.note(
            "Server CPU counts the end of the former session and everything else until all are \
             back. Clients begin again at once, with neither jitter nor slots, and share the \
             machine with the server, so that wall times are bound by both. After each return all \
             are pinged and have answered, and no session may end while watched.",
        );
        for reason in &fleet.state.borrow().reasons {
            report.note(&format!("Seen: {reason}"));
        }
        report.finish(self.out.as_deref())?;
        ensure!(lost == 0, "{lost} sessions were lost after they were back");
        Ok(())
    }

    fn cells(&self, what: &str, returns: &[Return]) -> Vec<String> {
        let spread = |pick: &dyn Fn(&Return) -> f64| Spread::of(returns.iter().map(pick));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let rate = |back: &Return| self.agents as f64 / (back.all - back.down).as_secs_f64();
        vec![
            what.to_owned(),
            spread(&|back| back.server_us).to_string(),
            spread(&rate).to_string(),
            spread(&|back| ms(back.most)).to_string(),
            spread(&|back| ms(back.all)).to_string(),
            spread(&|back| ms(back.down)).to_string(),
            spread(&|back| back.client_us).to_string(),
        ]
    }

    async fn kill(&self, lab: &mut Lab, fleet: &Fleet) -> anyhow::Result<Return> {
        let (own, opened, started) = (Cpu::of(std::process::id())?, fleet.opened(), Instant::now());
        fleet.server_gone();
        lab.kill_and_restart().await?;
        let down = started.elapsed();
        let before = Cpu::of(lab.pid())?;
        fleet.moved(lab.addresses()?);
        let back = fleet.wait_opened(lab, opened, self.agents, started).await?;
        self.returned(lab, back, down, own, before)
    }

    async fn reset(&self, lab: &mut Lab, fleet: &Fleet) -> anyhow::Result<Return> {
        let (own, before) = (Cpu::of(std::process::id())?, Cpu::of(lab.pid())?);
        let (opened, started) = (fleet.opened(), Instant::now());
        fleet.reset(0..self.agents);
        let back = fleet.wait_opened(lab, opened, self.agents, started).await?;
        self.returned(lab, back, Duration::ZERO, own, before)
    }

    fn returned(
        &self,
        lab: &Lab,
        [most, all]: [Duration; 2],
        down: Duration,
        own: Cpu,
        before: Cpu,
    ) -> anyhow::Result<Return> {
        let per = |us: u64| us as f64 / self.agents as f64;
        Ok(Return {
            most,
            all,
            server_us: per(Cpu::of(lab.pid())?.since(before)),
            client_us: per(Cpu::of(std::process::id())?.since(own)),
            down,
        })
    }

    /// All answer a ping, and none ends while watched; how many did.
    async fn settle(&self, lab: &mut Lab, fleet: &Fleet, nonce: u64) -> anyhow::Result<usize> {
        let before = fleet.state.borrow().unasked;
        echo::all(lab, 0..self.agents, nonce, 64).await?;
        let (until, mut seen) = (Instant::now() + Duration::from_secs(self.watch), Vec::new());
        while Instant::now() < until {
            seen.clear();
            let left = until.saturating_duration_since(Instant::now());
            if let Ok(read) = tokio::time::timeout(left, lab.inbox.burst(&mut seen)).await {
                read?;
            }
        }
        Ok(fleet.state.borrow().unasked - before)
    }
}
