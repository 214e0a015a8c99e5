//! Ingest: log lines in zstd batches over TLS into files, acknowledged after the group flush. The
//! figure is CPU time of the server process per record, all of its threads, in user space and in
//! the kernel; senders, kernel threads and the rest of the machine are counted beside it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustls::ClientConfig;
use skein_wire::hello::ChannelKind;
use skein_wire::ids::Instance;
use skein_wire::limits::BATCH_RECORDS_MAX;

use crate::agents;
use crate::channel;
use crate::feed::{Feed, Sent};
use crate::lab::{Disk, Lab, LabConfig};
use crate::lines::{Lines, read_samples};
use crate::machine::{self, KernelThreads, Work};
use crate::process::{Cpu, rss_kib, threads_us};
use crate::report::{Report, Spread};

/// Before anything is counted: handshakes, first files, full windows.
const WARM_UP: Duration = Duration::from_secs(2);

/// What generated lines must compress to at 256 KiB, as real logs do; anything else would make the
/// wire too cheap or too dear.
const RATIO: std::ops::RangeInclusive<f64> = 4.0..=5.0;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Ingest {
    /// Agents that send at the same time
    #[arg(long, default_value_t = 8)]
    agents: usize,
    /// Shards and router workers of the data process; several are measured in turn
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    cores: Vec<usize>,
    /// Formats of the sink file (lines, tagged, json), in turn
    #[arg(long, value_delimiter = ',', default_value = "lines,tagged")]
    formats: Vec<String>,
    /// Disk drivers, in turn
    #[arg(long, value_delimiter = ',', default_value = "glommio,plain")]
    disks: Vec<Disk>,
    /// Bytes of a batch before compression
    #[arg(long, default_value_t = 256 * 1024)]
    batch_bytes: usize,
    /// Counted seconds of each round, after two of warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds of each combination; combinations take turns, so that the machine's moods meet all
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Real log lines to send instead of generated ones: a file, or a folder of .log files
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Folder on the disk to write to
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One way to run the server, and what it showed.
struct Case {
    cores: usize,
    format: String,
    disk: Disk,
    /// As the server named it.
    driver: String,
    threads: String,
    rounds: Vec<Round>,
}

/// One round's figures; microseconds are per record.
struct Round {
    rate: f64,
    server_us: f64,
    sender_us: f64,
    flush_us: f64,
    kernel_us: f64,
    other_us: f64,
    rss_kib: u64,
    sink_bytes_per_record: f64,
    sent: Sent,
}

/// Shared with the sender threads.
#[derive(Debug, Default)]
struct Progress {
    acked: AtomicU64,
    stop: AtomicBool,
}

impl Ingest {
    /// Runs all rounds and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let mut report = Report::new("Ingest into a file");
        let samples = self.corpus.as_deref().map(read_samples).transpose()?.map(Arc::new);
        let mut cases = Vec::new();
        for format in &self.formats {
            for &cores in &self.cores {
                cases.extend(self.disks.iter().map(|&disk| Case {
                    cores,
                    format: format.clone(),
                    disk,
                    driver: String::new(),
                    threads: String::new(),
                    rounds: Vec::new(),
                }));
            }
        }
        for number in 0..self.rounds {
            for case in &mut cases {
                let round = self.round(number as u64, case, samples.clone())?;
                eprintln!(
                    "round {} of {}, {}: {:.0} records/s, server {:.3} us/record, sender {:.3}",
                    number + 1,
                    self.rounds,
                    case.name(),
                    round.rate,
                    round.server_us,
                    round.sender_us
                );
                case.rounds.push(round);
            }
        }
        let all = || cases.iter().flat_map(|case| &case.rounds);
        let over = |pick: fn(&Sent) -> f64| Spread::of(all().map(|round| pick(&round.sent)));
        report.row("agents, rounds, counted seconds", {
            format!("{}, {}, {}", self.agents, self.rounds, self.seconds)
        });
        report.row(
            "lines",
            self.corpus.as_ref().map_or("generated".into(), |path| path.display().to_string()),
        );
        report.row("bytes per line", over(|sent| sent.text_bytes as f64 / sent.records as f64));
        report.row("records per batch", over(|sent| sent.records as f64 / sent.batches as f64));
        let ratio = over(|sent| sent.raw_bytes as f64 / sent.body_bytes as f64);
        report.row("compression ratio, batch / body, zstd level 1", ratio);
        report.table(
            &[
                "server",
                "records/s per core of server CPU",
                "server CPU us/record",
                "kernel threads: flush us/record",
                "all kernel threads",
                "sender CPU us/record",
                "rest of the machine",
                "records/s, wall",
                "sink bytes/record",
                "RSS MiB",
            ],
            &cases.iter().map(Case::cells).collect::<Vec<_>>(),
        );
        ratios(&mut report, &cases);
        for case in &cases {
            report.note(&format!("Threads, {}: {}.", case.name(), case.threads));
        }
        report.note(
            "Server CPU is user and system time of the whole data process: every thread, io_uring's \
             workers (`iou-wrk`) and threads that ended included. Bulk is written with \
             O_DIRECT, so no flusher thread takes part; what kernel threads used in the counted time \
             stands beside it, whatever caused it. The rest of the machine is what /proc/stat says \
             of all cores, less server, senders and kernel threads: other programs and interrupts. \
             No batch is sent twice: lines move on with the seed of round and agent, and the first \
             record of a batch carries its identity.",
        );
        if self.corpus.is_none() && self.batch_bytes == 256 * 1024 {
            ensure!(
                RATIO.contains(&ratio.min) && RATIO.contains(&ratio.max),
                "generated lines compressed {ratio} times, not {RATIO:?}"
            );
        }
        report.finish(self.out.as_deref())
    }

    fn round(
        &self,
        number: u64,
        case: &mut Case,
        samples: Option<Arc<Vec<u8>>>,
    ) -> anyhow::Result<Round> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = LabConfig {
            cores: case.cores,
            format: case.format.clone(),
            folder: self.folder.clone(),
            disk: case.disk,
            ..LabConfig::default()
        };
        let mut lab = runtime.block_on(Lab::start(&config))?;
        case.driver = lab.register.disk_driver.clone();
        let mut senders = Vec::new();
        for index in 0..self.agents {
            let sender = Sender {
                index,
                seed: number * 1000 + index as u64 + 1,
                address: lab.addresses()?.data(1),
                signal: lab.addresses()?.signal(1),
                config: lab.authority.client(&agents::name(index))?,
                batch_bytes: self.batch_bytes,
                samples: samples.clone(),
            };
            let progress = Arc::new(Progress::default());
            let shared = progress.clone();
            senders.push((progress, std::thread::spawn(move || sender.run(&shared))));
        }
        let acked = || senders.iter().map(|(p, _)| p.acked.load(Ordering::Relaxed)).sum::<u64>();
        let pid = lab.pid();
        let counted = async {
            tokio::time::sleep(WARM_UP).await;
            let before = Sample::take(pid, acked())?;
            let mut kernel = KernelThreads::watch();
            let (started, length) = (Instant::now(), Duration::from_secs(self.seconds));
            while started.elapsed() < length {
                let left = length.saturating_sub(started.elapsed());
                tokio::time::sleep(left.min(Duration::from_millis(250))).await;
                kernel.look();
            }
            let seconds = started.elapsed().as_secs_f64();
            anyhow::Ok((before, Sample::take(pid, acked())?, kernel, seconds))
        };
        let inbox = &mut lab.inbox;
        // The fleet connection must be read, or the data process would wait for it.
        let drain = async { while inbox.next().await.is_ok() {} };
        let (before, after, kernel, seconds) = runtime.block_on(async {
            tokio::select! {
                counted = counted => counted,
                () = drain => anyhow::bail!("the data process went away"),
            }
        })?;
        let rss_kib = rss_kib(pid)?;
        let threads = threads_us(pid)?;
        let sink_bytes_per_record = lab.sink_bytes() as f64 / acked() as f64;
        senders.iter().for_each(|(progress, _)| progress.stop.store(true, Ordering::Relaxed));
        let mut sent = Sent::default();
        for (_, sender) in senders {
            let of = sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
            sent.records += of.records;
            sent.batches += of.batches;
            sent.text_bytes += of.text_bytes;
            sent.raw_bytes += of.raw_bytes;
            sent.body_bytes += of.body_bytes;
        }
        let total: u64 = threads.iter().map(|(_, us)| us).sum();
        let share = |us: u64| 100.0 * us as f64 / total.max(1) as f64;
        let shares = threads.iter().map(|(name, us)| format!("{name} {:.1} %", share(*us)));
        case.threads = shares.collect::<Vec<_>>().join(", ");
        let records = (after.acked - before.acked) as f64;
        ensure!(records > 0.0, "nothing was acknowledged");
        let per = |us: u64| us as f64 / records;
        let server = after.server.since(before.server);
        let sender = after.own.since(before.own);
        let known = server + sender + kernel.all_us();
        Ok(Round {
            rate: records / seconds,
            server_us: per(server),
            sender_us: per(sender),
            flush_us: per(kernel.used_us(Work::Flush)),
            kernel_us: per(kernel.all_us()),
            other_us: per((after.machine_us - before.machine_us).saturating_sub(known)),
            rss_kib,
            sink_bytes_per_record,
            sent,
        })
    }
}

impl Case {
    fn name(&self) -> String {
        let cores = if self.cores == 1 { "1 core".into() } else { format!("{} cores", self.cores) };
        format!("{}, {cores}, {}", self.format, self.driver)
    }

    fn spread(&self, pick: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(pick))
    }

    fn cells(&self) -> Vec<String> {
        let of = |pick: fn(&Round) -> f64| self.spread(pick).to_string();
        vec![
            self.name(),
            of(|round| 1e6 / round.server_us),
            of(|round| round.server_us),
            of(|round| round.flush_us),
            of(|round| round.kernel_us),
            of(|round| round.sender_us),
            of(|round| round.other_us),
            of(|round| round.rate),
            of(|round| round.sink_bytes_per_record),
            of(|round| round.rss_kib as f64 / 1024.0),
        ]
    }
}

/// What glommio costs against ordinary calls, round by round in the same run.
fn ratios(report: &mut Report, cases: &[Case]) {
    for one in cases.iter().filter(|case| case.disk == Disk::Glommio) {
        let other = cases.iter().find(|case| {
            case.disk == Disk::Plain && case.cores == one.cores && case.format == one.format
        });
        let Some(other) = other else { continue };
        let pairs = || one.rounds.iter().zip(&other.rounds);
        let server = Spread::of(pairs().map(|(a, b)| a.server_us / b.server_us));
        let with = |round: &Round| round.server_us + round.flush_us;
        let flushed = Spread::of(pairs().map(|(a, b)| with(a) / with(b)));
        let of = format!("{}, {} shards: glommio / plain", one.format, one.cores);
        report.row(&format!("{of}, server CPU"), server);
        report.row(&format!("{of}, server and flusher CPU"), flushed);
    }
}

struct Sample {
    acked: u64,
    server: Cpu,
    own: Cpu,
    machine_us: u64,
}

impl Sample {
    fn take(server: u32, acked: u64) -> anyhow::Result<Self> {
        Ok(Self {
            acked,
            server: Cpu::of(server)?,
            own: Cpu::of(std::process::id())?,
            machine_us: machine::busy_us()?,
        })
    }
}

/// One agent that sends as fast as its credit allows, on a thread of its own.
struct Sender {
    index: usize,
    seed: u64,
    address: SocketAddr,
    signal: SocketAddr,
    config: Arc<ClientConfig>,
    batch_bytes: usize,
    samples: Option<Arc<Vec<u8>>>,
}

impl Sender {
    fn run(self, progress: &Progress) -> anyhow::Result<Sent> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.send(progress))
    }

    async fn send(self, progress: &Progress) -> anyhow::Result<Sent> {
        let instance = Instance([self.index as u8; 16]);
        let _signal =
            channel::open(self.signal, self.config.clone(), ChannelKind::Signal, instance).await?;
        let lines = Lines::new(self.seed, self.samples);
        let agent = agents::name(self.index);
        let mut feed =
            Feed::new(agent, self.config, instance, lines, self.batch_bytes, BATCH_RECORDS_MAX);
        let mut compressor = Feed::compressor()?;
        let mut channel = feed.connect(self.address).await?;
        while !progress.stop.load(Ordering::Relaxed) {
            feed.step(&mut channel, Some(&mut compressor)).await?;
            progress.acked.store(feed.acked(), Ordering::Relaxed);
        }
        Ok(feed.sent())
    }
}
