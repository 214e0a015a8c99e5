//! Small and large frames over thousands of connections: server CPU of a frame and of a MiB, on
//! signal sessions (there and back) and on data channels (into a file, acknowledged).

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use skein_wire::compress::Compressor;
use skein_wire::limits::{BATCH_BODY_BYTES_MAX, BATCH_RECORDS_MAX, SIGNAL_MESSAGE_BYTES_MAX};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use crate::agents;
use crate::echo;
use crate::feed::{Channel, Feed};
use crate::lab::{Disk, Lab, LabConfig};
use crate::lines::Lines;
use crate::process::{Cpu, rss_kib};
use crate::report::{Report, Spread};
use crate::returning::{self, Fleet};

/// The largest batch that a builder makes: what its lines need if nothing of them compresses.
const LARGE_RAW_BYTES: usize = BATCH_BODY_BYTES_MAX - 64 * 1024;

/// A payload that leaves room for the message around it.
const LARGE_PAYLOAD_BYTES: usize = SIGNAL_MESSAGE_BYTES_MAX - 1024;

/// Longest wait of an idle data channel before it says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Frames {
    /// Whole agents: a signal and a data connection each
    #[arg(long, default_value_t = 3_000)]
    agents: usize,
    /// Small batches, of one line each, per agent and round
    #[arg(long, default_value_t = 20)]
    small: u64,
    /// Agents that send or get a large frame at the same time
    #[arg(long, default_value_t = 64)]
    parallel: usize,
    /// Agents that take part with large frames
    #[arg(long, default_value_t = 1_000)]
    large_agents: usize,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
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

/// What is sent on data channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batches {
    Small,
    Large,
    NearLimit,
}

/// One agent's data channel and what it sends.
struct Pipe {
    feed: Feed,
    channel: Channel,
}

/// One phase of one round.
#[derive(Debug, Clone, Copy)]
struct Phase {
    frames: f64,
    /// Over the wire, both directions, without TLS.
    bytes: f64,
    server_us: f64,
    seconds: f64,
}

impl Frames {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(self.measure()))
    }

    async fn measure(self) -> anyhow::Result<()> {
        let mut report = Report::new("Small and large frames");
        let config = LabConfig {
            cores: self.cores,
            folder: self.folder.clone(),
            heartbeat_interval_ms: 30_000,
            disk: self.disk,
            ..LabConfig::default()
        };
        let mut lab = Lab::start(&config).await?;
        let (agents, addresses) = (self.agents, lab.addresses()?);
        let heartbeat = Duration::from_secs(30);
        let fleet = Fleet::start(&lab.authority, addresses, agents, heartbeat, 64)?;
        fleet.wait_opened(&mut lab, 0, agents, Instant::now()).await?;
        let mut pipes = Vec::with_capacity(agents);
        for index in 0..agents {
            let config = lab.authority.client(&agents::name(index))?;
            let lines = Lines::new(index as u64, None);
            let instance = returning::instance(index);
            let mut feed = Feed::new(agents::name(index), config, instance, lines, 4096, 1);
            let address = addresses.data((index / 4000) as u8 + 1);
            let channel = beside(&mut lab, feed.connect(address)).await?;
            pipes.push(Pipe { feed, channel });
        }
        let rss = rss_kib(lab.pid())?;
        let idle = self.idle(&mut lab).await?;
        let names = [
            "signal, small",
            "signal, large",
            "data, small",
            "data, large, zstd",
            "data, near the limit, not compressed",
        ];
        let mut phases: [Vec<Phase>; 5] = Default::default();
        let large = self.large_agents.min(agents);
        for round in 0..self.rounds as u64 {
            let nonce = round * 100_000 + 1;
            let one = [
                self.signal(&mut lab, idle, agents, agents, 64, nonce).await?,
                self.signal(&mut lab, idle, large, self.parallel, LARGE_PAYLOAD_BYTES, nonce + 1)
                    .await?,
                self.data(&mut lab, idle, &mut pipes, Batches::Small).await?,
                self.data(&mut lab, idle, &mut pipes, Batches::Large).await?,
                self.data(&mut lab, idle, &mut pipes, Batches::NearLimit).await?,
            ];
            for ((phases, phase), name) in phases.iter_mut().zip(one).zip(names) {
                eprintln!("round {}: {name}: {phase:?}", round + 1);
                phases.push(phase);
            }
        }
        report.row("agents with two connections each, shards, disk driver", {
            format!("{agents}, {}, {}", self.cores, lab.register.disk_driver)
        });
        report.row("large frames: agents, at a time", format!("{large}, {}", self.parallel));
        report.row("RSS of the data process, all connected, MiB", rss / 1024);
        report.row("the same at the end, MiB", rss_kib(lab.pid())? / 1024);
        report.row("server CPU of idle connections, taken off, us per s", format!("{idle:.0}"));
        report.row("sessions lost", fleet.state.borrow().unasked);
        let rows = names.iter().zip(&phases).map(|(name, phases)| {
            let of = |pick: fn(&Phase) -> f64| Spread::of(phases.iter().map(pick)).to_string();
            vec![
                (*name).to_owned(),
                of(|phase| phase.frames),
                of(|phase| phase.bytes / phase.frames / 1024.0),
                of(|phase| phase.server_us / phase.frames),
                of(|phase| phase.server_us / (phase.bytes / f64::from(1 << 20))),
                of(|phase| phase.frames / phase.seconds),
            ]
        });
        let rows: Vec<_> = rows.collect();
        report.table(
            &[
                "frames",
                "frames per round",
                "KiB of a frame",
                "server CPU us per frame",
                "server CPU us per MiB",
                "frames/s, wall",
            ],
            &rows,
        );
        report.note(
            "A signal message goes to each agent and back and counts as two frames; its bytes are \
             those of the payload. A data frame is one batch, compressed, and its CPU contains \
             opening it, the write, its share of a group flush and the acknowledgement. A small \
             batch holds one line.",
        );
        report.finish(self.out.as_deref())?;
        ensure!(fleet.state.borrow().unasked == 0, "sessions were lost");
        Ok(())
    }

    /// Server CPU of connections on which nothing happens, in microseconds per second.
    async fn idle(&self, lab: &mut Lab) -> anyhow::Result<f64> {
        let (cpu, started) = (Cpu::of(lab.pid())?, Instant::now());
        let pause = async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            Ok(())
        };
        beside(lab, pause).await?;
        Ok(Cpu::of(lab.pid())?.since(cpu) as f64 / started.elapsed().as_secs_f64())
    }

    /// A ping with this payload to `count` agents, `group` at a time.
    async fn signal(
        &self,
        lab: &mut Lab,
        idle: f64,
        count: usize,
        group: usize,
        payload: usize,
        nonce: u64,
    ) -> anyhow::Result<Phase> {
        let (cpu, started) = (Cpu::of(lab.pid())?, Instant::now());
        for (number, first) in (0..count).step_by(group).enumerate() {
            let last = (first + group).min(count);
            echo::all(lab, first..last, nonce + 10 * number as u64, payload).await?;
        }
        let frames = 2.0 * count as f64;
        phase(lab, cpu, started, idle, frames, frames * payload as f64)
    }

    /// New batches of this kind, until all are acknowledged.
    async fn data(
        &self,
        lab: &mut Lab,
        idle: f64,
        pipes: &mut Vec<Pipe>,
        kind: Batches,
    ) -> anyhow::Result<Phase> {
        let (count, batches, parallel) = match kind {
            Batches::Small => (self.agents, self.small, self.agents),
            _ => (self.large_agents.min(self.agents), 1, self.parallel),
        };
        let (raw_bytes, records_max) = match kind {
            Batches::Small => (4096, 1),
            _ => (LARGE_RAW_BYTES, BATCH_RECORDS_MAX),
        };
        let compressor = match kind {
            Batches::NearLimit => Feed::no_compressor()?,
            _ => Feed::compressor()?,
        };
        let (gate, compressor) =
            (Rc::new(Semaphore::new(parallel)), Rc::new(Mutex::new(compressor)));
        let before = sum(pipes);
        let (cpu, started) = (Cpu::of(lab.pid())?, Instant::now());
        let turns = pipes.drain(..).enumerate().map(|(index, mut pipe)| {
            let (gate, compressor) = (gate.clone(), compressor.clone());
            tokio::task::spawn_local(async move {
                if index < count {
                    pipe.feed.set_batches(raw_bytes, records_max);
                    let permit = loop {
                        match timeout(KEEP_ALIVE, gate.acquire()).await {
                            Ok(permit) => break permit?,
                            Err(_) => pipe.feed.keep_alive(&mut pipe.channel).await?,
                        }
                    };
                    pipe.turn(batches, &compressor).await?;
                    drop(permit);
                    pipe.feed.free_buffers();
                }
                anyhow::Ok(pipe)
            })
        });
        let turns: Vec<_> = turns.collect();
        let all = async {
            for turn in turns {
                pipes.push(turn.await??);
            }
            Ok(())
        };
        beside(lab, all).await?;
        let after = sum(pipes);
        let ended = phase(lab, cpu, started, idle, after.0 - before.0, after.1 - before.1);
        for pipe in pipes {
            pipe.feed.keep_alive(&mut pipe.channel).await?;
        }
        ended
    }
}

impl Pipe {
    /// Sends so many new batches and waits for their acknowledgement.
    async fn turn(&mut self, batches: u64, maker: &Mutex<Compressor>) -> anyhow::Result<()> {
        let end = self.feed.sent().batches + batches;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.feed.sent().batches < end || !self.feed.is_done() {
            ensure!(Instant::now() < deadline, "batches were not acknowledged within 60 s");
            if self.feed.sent().batches < end && self.feed.is_ready() {
                // Held for one batch only: nothing is waited for with it but the socket.
                let mut maker = maker.lock().await;
                self.feed.step(&mut self.channel, Some(&mut maker)).await?;
            } else {
                self.feed.step(&mut self.channel, None).await?;
            }
        }
        Ok(())
    }
}

/// Frames and bytes sent so far.
fn sum(pipes: &[Pipe]) -> (f64, f64) {
    let sent = pipes.iter().map(|pipe| pipe.feed.sent());
    sent.fold((0.0, 0.0), |(frames, bytes), sent| {
        (frames + sent.batches as f64, bytes + sent.body_bytes as f64)
    })
}

fn phase(
    lab: &Lab,
    cpu: Cpu,
    started: Instant,
    idle: f64,
    frames: f64,
    bytes: f64,
) -> anyhow::Result<Phase> {
    let seconds = started.elapsed().as_secs_f64();
    let used = Cpu::of(lab.pid())?.since(cpu) as f64;
    Ok(Phase { frames, bytes, server_us: (used - idle * seconds).max(0.0), seconds })
}

/// Waits for something while what the data process says is read, as control would.
async fn beside<T>(
    lab: &mut Lab,
    what: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::pin!(what);
    let mut seen = Vec::new();
    loop {
        seen.clear();
        tokio::select! {
            done = &mut what => return done,
            burst = lab.inbox.burst(&mut seen) => burst?,
        }
    }
}
