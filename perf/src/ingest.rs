//! Ingest: log lines in zstd batches over TLS into files, acknowledged after the group flush. The
//! figure is CPU time of the server process per record; senders are counted beside it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls::ClientConfig;
use skein_observe::loggen::LogGen;
use skein_wire::batch::BatchBuilder;
use skein_wire::compress::{Codec, Compressor};
use skein_wire::data::{ServerFrame, decode_server_frame, encode_batch_prefix};
use skein_wire::hello::ChannelKind;
use skein_wire::ids::{AgentId, DataId, Epoch, Instance, Sequence};
use skein_wire::lane::LaneSender;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agents;
use crate::channel;
use crate::lab::{Lab, LabConfig};
use crate::process::{Cpu, rss_kib};
use crate::report::{Report, Spread};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Ingest {
    /// Agents that send at the same time
    #[arg(long, default_value_t = 8)]
    agents: usize,
    /// Shards and router workers of the data process
    #[arg(long, default_value_t = 1)]
    cores: usize,
    /// Format of the sink file: lines, tagged or json
    #[arg(long, default_value = "lines")]
    format: String,
    /// Bytes of a batch before compression
    #[arg(long, default_value_t = 256 * 1024)]
    batch_bytes: usize,
    /// Counted seconds of each round, after two of warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Real log lines to send instead of generated ones, renumbered so that none repeats
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Folder on the disk to write to
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Shared with the sender threads.
#[derive(Debug, Default)]
struct Progress {
    acked: AtomicU64,
    raw_bytes: AtomicU64,
    wire_bytes: AtomicU64,
    stop: AtomicBool,
}

/// One round's figures.
struct Round {
    rate: f64,
    server_us: f64,
    sender_us: f64,
    other_us: f64,
    rss_kib: u64,
    bytes_per_record: f64,
    ratio: f64,
    sink_bytes_per_record: f64,
}

impl Ingest {
    /// Runs all rounds and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let mut report =
            Report::new("Ingest into a file", &std::env::args().collect::<Vec<_>>().join(" "));
        let mut rounds = Vec::new();
        for number in 0..self.rounds {
            let round = self.round(number as u64)?;
            eprintln!(
                "round {}: {:.0} records/s, server {:.3} us/record, sender {:.3}",
                number + 1,
                round.rate,
                round.server_us,
                round.sender_us
            );
            rounds.push(round);
        }
        let spread = |pick: fn(&Round) -> f64| Spread::of(rounds.iter().map(pick));
        let server = spread(|round| round.server_us);
        report.row(
            "agents, shards, format",
            format!("{}, {}, {}", self.agents, self.cores, self.format),
        );
        report.row("records acknowledged per second, wall", spread(|round| round.rate));
        report.row("server CPU us per record", format!("{server:.3}"));
        report.row(
            "records per second and core of server CPU",
            spread(|round| 1e6 / round.server_us),
        );
        report.row("sender CPU us per record", spread(|round| round.sender_us));
        report.row("other CPU of the machine, us per record", spread(|round| round.other_us));
        report.row("bytes per record", spread(|round| round.bytes_per_record));
        report.row("compression ratio", spread(|round| round.ratio));
        report.row("bytes in the sink per record", spread(|round| round.sink_bytes_per_record));
        report.row("server RSS, MiB", spread(|round| round.rss_kib as f64 / 1024.0));
        report.finish(self.out.as_deref())
    }

    fn round(&self, number: u64) -> anyhow::Result<Round> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = LabConfig {
            cores: self.cores,
            format: self.format.clone(),
            data_ids: vec![1],
            folder: self.folder.clone(),
            heartbeat_interval_ms: 10_000,
        };
        let mut lab = runtime.block_on(Lab::start(&config))?;
        let progress = Arc::new(Progress::default());
        let lines = self.corpus.as_deref().map(std::fs::read).transpose()?.map(Arc::new);
        let mut senders = Vec::new();
        for index in 0..self.agents {
            let sender = Sender {
                agent: agents::name(index),
                address: lab.addresses()?.data(1),
                signal: lab.addresses()?.signal(1),
                config: lab.authority.client(&agents::name(index))?,
                batch_bytes: self.batch_bytes,
                seed: number * 1000 + index as u64,
                corpus: lines.clone(),
                progress: progress.clone(),
            };
            senders.push(std::thread::spawn(move || sender.run()));
        }
        // The fleet connection must be read, or the data process would wait for it.
        let drain = async {
            loop {
                if lab.inbox.next().await.is_err() {
                    return;
                }
            }
        };
        let pid = lab.register.pid;
        let seconds = self.seconds;
        let counted = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let before = Sample::take(pid, &progress)?;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let after = Sample::take(pid, &progress)?;
            anyhow::Ok((before, after, rss_kib(pid)?))
        };
        let (before, after, rss_kib) = runtime.block_on(async {
            tokio::select! {
                counted = counted => counted,
                () = drain => anyhow::bail!("the data process went away"),
            }
        })?;
        progress.stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        }
        let records = (after.acked - before.acked) as f64;
        ensure!(records > 0.0, "nothing was acknowledged");
        let per = |value: u64| value as f64 / records;
        let busy = after.machine_us - before.machine_us;
        let server = after.server.since(before.server);
        let sender = after.own.since(before.own);
        let all = progress.acked.load(Ordering::Relaxed) as f64;
        let raw = progress.raw_bytes.load(Ordering::Relaxed) as f64;
        Ok(Round {
            rate: records / seconds as f64,
            server_us: per(server),
            sender_us: per(sender),
            other_us: per(busy.saturating_sub(server + sender)),
            rss_kib,
            bytes_per_record: raw / all,
            ratio: raw / progress.wire_bytes.load(Ordering::Relaxed) as f64,
            sink_bytes_per_record: lab.sink_bytes() as f64 / all,
        })
    }
}

struct Sample {
    acked: u64,
    server: Cpu,
    own: Cpu,
    machine_us: u64,
}

impl Sample {
    fn take(server: u32, progress: &Progress) -> anyhow::Result<Self> {
        Ok(Self {
            acked: progress.acked.load(Ordering::Relaxed),
            server: Cpu::of(server)?,
            own: Cpu::of(std::process::id())?,
            machine_us: machine_us()?,
        })
    }
}

/// Busy time of all cores since boot: everything in /proc/stat but idle and waiting for disks.
fn machine_us() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("empty /proc/stat")?;
    let ticks = line.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let ticks: Vec<u64> = ticks.collect::<Result<_, _>>()?;
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|index| ticks.get(*index)).sum();
    Ok(busy * 10_000)
}

/// One agent that sends as fast as its credit allows, on a thread of its own.
struct Sender {
    agent: AgentId,
    address: SocketAddr,
    signal: SocketAddr,
    config: Arc<ClientConfig>,
    batch_bytes: usize,
    seed: u64,
    corpus: Option<Arc<Vec<u8>>>,
    progress: Arc<Progress>,
}

impl Sender {
    fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.send())
    }

    async fn send(self) -> anyhow::Result<()> {
        let instance = Instance([self.seed as u8; 16]);
        let _signal =
            channel::open(self.signal, self.config.clone(), ChannelKind::Signal, instance).await?;
        let stream =
            channel::open(self.address, self.config.clone(), ChannelKind::Data, instance).await?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let epoch = Epoch(1);
        let mut lane = LaneSender::new(DataId(1), epoch, Sequence::ZERO);
        let mut out = Vec::new();
        let open = lane.connected(Sequence::ZERO, Sequence::ZERO);
        skein_wire::data::AgentFrame::LaneOpen(open).encode(&mut out);
        writer.write_all(&out).await?;
        writer.flush().await?;

        let mut source = Source::new(self.seed, self.corpus.clone());
        let mut builder = BatchBuilder::new(DataId(1), self.batch_bytes);
        let mut compressor = Compressor::new(Codec::Zstd, 1)?;
        let mut buffer = Vec::new();
        let mut line = Vec::with_capacity(4096);
        let mut next = None;
        loop {
            if self.progress.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if next.is_none() {
                loop {
                    if line.is_empty() {
                        source.line(&mut line);
                    }
                    if !builder.push(1_700_000_000_000, &line) {
                        break;
                    }
                    line.clear();
                }
                let identity = (&self.agent, epoch, lane.next_to_send());
                next = Some(builder.seal(identity, &mut compressor, 0)?);
            }
            let ready = next.as_ref().is_some_and(|(header, _)| lane.may_send(header.wire_bytes()));
            if ready && let Some((header, body)) = next.take() {
                out.clear();
                encode_batch_prefix(&header, &mut out);
                out.extend_from_slice(&header.encode());
                out.extend_from_slice(&body);
                lane.sent(&header);
                let (raw, wire) = (&self.progress.raw_bytes, &self.progress.wire_bytes);
                raw.fetch_add(header.raw_bytes.into(), Ordering::Relaxed);
                wire.fetch_add(header.wire_bytes(), Ordering::Relaxed);
                writer.write_all(&out).await?;
                writer.flush().await?;
                // Take what the server said meanwhile, without waiting for it.
                let wait = std::future::poll_fn(|_| std::task::Poll::Ready(()));
                tokio::select! {
                    biased;
                    read = reader.read_buf(&mut buffer) => ensure!(read? > 0, "server closed"),
                    () = wait => continue,
                }
            } else {
                let read =
                    tokio::time::timeout(Duration::from_millis(200), reader.read_buf(&mut buffer));
                match read.await {
                    Ok(read) => ensure!(read? > 0, "server closed"),
                    Err(_) => continue,
                }
            }
            let mut used = 0;
            while let Some((frame, bytes)) = decode_server_frame(&buffer[used..])? {
                used += bytes;
                match frame {
                    ServerFrame::LaneReady(ready) => lane.on_ready(&ready),
                    ServerFrame::Credit(credit) => lane.on_credit(&credit),
                    ServerFrame::Ack(ack) => {
                        let before = lane.acked();
                        if let Some(position) = lane.on_ack(&ack) {
                            let acked = position.0 - before.0;
                            self.progress.acked.fetch_add(acked, Ordering::Relaxed);
                        }
                    }
                    ServerFrame::Hold(hold) => anyhow::bail!("held: {}", hold.reason.as_str()),
                    ServerFrame::GoAway { .. } | ServerFrame::KeepAlive => {}
                }
            }
            buffer.drain(..used);
        }
    }
}

/// Where lines come from: the generator, or a real sample with a number before each line so that
/// no batch repeats.
enum Source {
    Generated(LogGen),
    Sample { text: Arc<Vec<u8>>, at: usize, number: u64 },
}

impl Source {
    fn new(seed: u64, corpus: Option<Arc<Vec<u8>>>) -> Self {
        match corpus {
            None => Self::Generated(LogGen::new(seed)),
            Some(text) => Self::Sample { text, at: 0, number: seed << 32 },
        }
    }

    fn line(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Generated(generator) => generator.line(out),
            Self::Sample { text, at, number } => {
                if *at >= text.len() {
                    *at = 0;
                }
                let rest = &text[*at..];
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                out.extend_from_slice(number.to_string().as_bytes());
                out.push(b' ');
                out.extend_from_slice(&rest[..end]);
                *at += end + 1;
                *number += 1;
            }
        }
    }
}
