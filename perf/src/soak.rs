//! A mixed load for as long as one likes: idle sessions, telemetry into files, round trips and
//! reconnects, with the server's memory, descriptors and queues watched over time, and a verdict:
//! no growth after warm-up, no session lost, every record found once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::agents;
use crate::channel;
use crate::echo;
use crate::feed::{Channel, Feed};
use crate::lab::{Addresses, Disk, Lab, LabConfig};
use crate::ledger::Ledger;
use crate::lines::Lines;
use crate::process::{Cpu, descriptors, rss_kib};
use crate::report::{Report, Spread};
use crate::returning::{self, Fleet};

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Soak {
    /// How long
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Agents with an idle signal session
    #[arg(long, default_value_t = 4_000)]
    agents: usize,
    /// Agents that send lines
    #[arg(long, default_value_t = 8)]
    feeds: usize,
    /// Lines per second of each
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    /// Seconds of a cycle: a ping to all, a sample, resets of some, and rest
    #[arg(long, default_value_t = 10)]
    cycle: u64,
    /// Agents of a hundred that reset in each cycle
    #[arg(long, default_value_t = 5)]
    reset_percent: usize,
    /// Seconds after which a sending agent resets its data channel
    #[arg(long, default_value_t = 20)]
    feed_reset: u64,
    /// Growth of memory after warm-up that is still called none, in percent
    #[arg(long, default_value_t = 5.0)]
    growth_max: f64,
    /// The same in MiB: less is noise, whatever the percentage
    #[arg(long, default_value_t = 4.0)]
    growth_floor: f64,
    /// Shards of the data process
    #[arg(long, default_value_t = 1)]
    cores: usize,
    /// Disk driver
    #[arg(long, default_value = "plain")]
    disk: Disk,
    /// Folder for the laboratory
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The gauges that are watched.
const GAUGES: [&str; 4] = [
    "skein_data_router_queue_bytes",
    "skein_data_fleet_queue_bytes",
    "skein_data_shard_buffers_bytes",
    "skein_data_sink_blocks_bytes",
];

/// The server at one moment.
struct Sample {
    at: f64,
    rss_kib: f64,
    descriptors: f64,
    gauges: [f64; GAUGES.len()],
    cpu_percent: f64,
    ping_ms: f64,
}

impl Soak {
    /// Runs and reports; an error when the verdict is bad.
    pub fn run(self) -> anyhow::Result<()> {
        ensure!(self.seconds >= 5 * self.cycle, "a soak needs at least five cycles");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(self.measure()))
    }

    async fn measure(self) -> anyhow::Result<()> {
        let mut report = Report::new("Soak");
        let config = LabConfig {
            cores: self.cores,
            format: "tagged".to_owned(),
            folder: self.folder.clone(),
            disk: self.disk,
            rotate_bytes: 64 << 20,
            ..LabConfig::default()
        };
        let mut lab = Lab::start(&config).await?;
        let heartbeat = Duration::from_secs(10);
        let fleet = Fleet::start(&lab.authority, lab.addresses()?, self.agents, heartbeat, 64)?;
        fleet.wait_opened(&mut lab, 0, self.agents, Instant::now()).await?;
        let mut senders = Vec::new();
        for number in 0..self.feeds {
            let sender = Sender {
                index: self.agents + number,
                config: lab.authority.client(&agents::name(self.agents + number))?,
                addresses: lab.addresses()?,
                rate: self.rate,
                reset: Duration::from_secs(self.feed_reset.max(1)),
            };
            let shared = Arc::new(Shared::default());
            let given = shared.clone();
            senders.push((shared, std::thread::spawn(move || sender.run(&given))));
        }
        let mut ledger = Ledger::new(false);
        let samples = self.cycles(&mut lab, &fleet, &mut ledger).await?;
        senders.iter().for_each(|(shared, _)| shared.stop.store(true, Ordering::Relaxed));
        // Senders wait for their last acknowledgements, the data process for a reader.
        while !senders.iter().all(|(_, thread)| thread.is_finished()) {
            rest(&mut lab, Duration::from_millis(50)).await?;
        }
        let (mut expected, mut resets) = (Vec::new(), 0);
        for (index, (shared, thread)) in senders.into_iter().enumerate() {
            let ended = thread.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?;
            let records = ended.with_context(|| format!("sender {index}"))?;
            resets += shared.resets.load(Ordering::Relaxed);
            expected.push((agents::name(self.agents + index).to_string(), records));
        }
        let verdict = ledger.with_rest(&lab.sinks())?.verdict(&expected);
        let unasked = fleet.state.borrow().unasked;
        let [first, last] =
            thirds(&samples).map(|part| Spread::of(part.iter().map(|s| s.rss_kib)).median);
        let (growth, grown_mib) = (100.0 * (last - first) / first, (last - first) / 1024.0);
        let handles = growth_of_most(&samples);
        report.row("seconds, idle agents, sending agents, lines/s of each", {
            format!("{}, {}, {}, {}", self.seconds, self.agents, self.feeds, self.rate)
        });
        report.row("disk driver", &lab.register.disk_driver);
        report.row("pings to all, every one answered by all", samples.len());
        report.row("sessions reset and opened again", fleet.opened() - self.agents);
        report.row("data channels reset and opened again", resets);
        report.row("sessions lost without a reset", unasked);
        report.row("records sent, stored, lost, duplicates, damaged lines", {
            let v = &verdict;
            let all = [v.expected, v.stored, v.lost, v.duplicates, v.malformed];
            all.map(|number| number.to_string()).join(", ")
        });
        report.row("growth of RSS after warm-up, medians of the first and last third", {
            format!("{growth:.2} %, {grown_mib:.2} MiB")
        });
        report.row("growth of open descriptors likewise, most to most", handles);
        let failures = [
            (unasked > 0).then(|| format!("{unasked} sessions were lost")),
            (!verdict.is_clean()).then(|| format!("records were lost or repeated: {verdict:?}")),
            (growth > self.growth_max && grown_mib > self.growth_floor)
                .then(|| format!("memory grew by {growth:.2} %")),
            (handles > self.agents as f64 / 50.0).then(|| format!("{handles} more descriptors")),
        ];
        let failures: Vec<String> = failures.into_iter().flatten().collect();
        let failures = failures.join("; ");
        report.row("verdict", if failures.is_empty() { "passed" } else { &failures });
        table(&mut report, &samples);
        report.finish(self.out.as_deref())?;
        ensure!(failures.is_empty(), "{failures}");
        Ok(())
    }

    async fn cycles(
        &self,
        lab: &mut Lab,
        fleet: &Fleet,
        ledger: &mut Ledger,
    ) -> anyhow::Result<Vec<Sample>> {
        let (started, cycle) = (Instant::now(), Duration::from_secs(self.cycle));
        let mut samples: Vec<Sample> = Vec::new();
        let mut before = (Cpu::of(lab.pid())?, Instant::now());
        let some = (self.agents * self.reset_percent / 100).min(self.agents);
        let mut first = 0;
        for number in 1.. {
            let due = cycle * number as u32;
            if due > Duration::from_secs(self.seconds) {
                break;
            }
            let echoes = echo::all(lab, 0..self.agents, number, 64).await?;
            let cpu = Cpu::of(lab.pid())?;
            let metrics = lab.metrics()?;
            samples.push(Sample {
                at: started.elapsed().as_secs_f64(),
                rss_kib: rss_kib(lab.pid())? as f64,
                descriptors: descriptors(lab.pid())? as f64,
                gauges: GAUGES.map(|name| metrics.sum(name)),
                cpu_percent: cpu.since(before.0) as f64 / before.1.elapsed().as_secs_f64() / 1e4,
                ping_ms: echoes.times_ms.last().copied().unwrap_or_default(),
            });
            before = (cpu, Instant::now());
            let (opened, since) = (fleet.opened(), Instant::now());
            if first + some > self.agents {
                first = 0;
            }
            fleet.reset(first..first + some);
            fleet.wait_opened(lab, opened, some, since).await?;
            first += some;
            let records = ledger.sweep(&lab.sinks())?;
            eprintln!(
                "{:.0} s: {:.1} MiB, {records} records in closed files, last echo after {:.0} ms",
                started.elapsed().as_secs_f64(),
                rss_kib(lab.pid())? as f64 / 1024.0,
                echoes.times_ms.last().copied().unwrap_or_default(),
            );
            rest(lab, due.saturating_sub(started.elapsed())).await?;
        }
        Ok(samples)
    }
}

/// Reads what the data process says for a while, as control would.
async fn rest(lab: &mut Lab, time: Duration) -> anyhow::Result<()> {
    let (until, mut seen) = (Instant::now() + time, Vec::new());
    while Instant::now() < until {
        seen.clear();
        let left = until.saturating_duration_since(Instant::now());
        if let Ok(read) = tokio::time::timeout(left, lab.inbox.burst(&mut seen)).await {
            read?;
        }
    }
    Ok(())
}

/// The samples after warm-up (the first fifth), cut into three: the first and the last third.
fn thirds(samples: &[Sample]) -> [&[Sample]; 2] {
    let warm = &samples[samples.len() / 5..];
    let third = (warm.len() / 3).max(1);
    [&warm[..third], &warm[warm.len() - third..]]
}

/// From the most of the first to the most of the last third.
fn growth_of_most(samples: &[Sample]) -> f64 {
    let most = |part: &[Sample]| Spread::of(part.iter().map(|sample| sample.descriptors)).max;
    let [first, last] = thirds(samples).map(most);
    last - first
}

/// At most 40 rows: long soaks are thinned.
fn table(report: &mut Report, samples: &[Sample]) {
    let every = samples.len().div_ceil(40).max(1);
    let cells = |sample: &Sample| {
        let mut cells = vec![
            format!("{:.0}", sample.at),
            format!("{:.1}", sample.rss_kib / 1024.0),
            format!("{:.0}", sample.descriptors),
            format!("{:.1}", sample.cpu_percent),
            format!("{:.0}", sample.ping_ms),
        ];
        cells.extend(sample.gauges.iter().map(|bytes| format!("{:.0}", bytes / 1024.0)));
        cells
    };
    let rows: Vec<Vec<String>> = samples.iter().step_by(every).map(cells).collect();
    report.table(
        &[
            "s",
            "RSS MiB",
            "descriptors",
            "server CPU, % of a core",
            "ms until all had answered",
            "router queue KiB",
            "fleet queue KiB",
            "lent buffers KiB",
            "sink blocks KiB",
        ],
        &rows,
    );
}

/// Shared with a sender's thread.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    resets: AtomicU64,
}

/// One agent that sends lines at a rate and resets its data channel now and then.
struct Sender {
    index: usize,
    config: Arc<rustls::ClientConfig>,
    addresses: Addresses,
    rate: u64,
    reset: Duration,
}

impl Sender {
    /// Runs until told to stop and all is acknowledged; the records sent.
    fn run(self, shared: &Shared) -> anyhow::Result<u64> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let instance = returning::instance(self.index);
            let kind = skein_wire::hello::ChannelKind::Signal;
            let config = self.config.clone();
            let mut signal =
                channel::open(self.addresses.signal(1), config, kind, instance).await?;
            tokio::select! {
                sent = self.send(shared) => sent,
                ended = agents::beat(&mut signal, self.index, Duration::from_secs(10)) => {
                    ended?;
                    anyhow::bail!("the signal session ended")
                }
            }
        })
    }

    async fn send(&self, shared: &Shared) -> anyhow::Result<u64> {
        let lines = Lines::new(self.index as u64, None);
        // About ten batches a second, as an agent makes when lines are few.
        let records_max = (self.rate / 10).clamp(1, 10_000) as usize;
        let mut feed = Feed::new(
            agents::name(self.index),
            self.config.clone(),
            returning::instance(self.index),
            lines,
            256 * 1024,
            records_max,
        );
        let mut compressor = Feed::compressor()?;
        let started = Instant::now();
        let mut deadline = None;
        loop {
            let mut channel: Channel = feed.connect(self.addresses.data(1)).await?;
            let until = Instant::now() + self.reset;
            while Instant::now() < until {
                let due = (started.elapsed().as_secs_f64() * self.rate as f64) as u64;
                let stop = shared.stop.load(Ordering::Relaxed);
                let may_make = !stop && feed.sent().records < due;
                feed.step(&mut channel, may_make.then_some(&mut compressor)).await?;
                if stop {
                    let deadline =
                        *deadline.get_or_insert_with(|| Instant::now() + Duration::from_secs(30));
                    if feed.is_done() {
                        return Ok(feed.sent().records);
                    }
                    ensure!(Instant::now() < deadline, "not acknowledged within 30 s");
                }
            }
            channel.reset();
            shared.resets.fetch_add(1, Ordering::Relaxed);
        }
    }
}
