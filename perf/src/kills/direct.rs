//! kill -9 of a data process in a laboratory: its senders speak the protocol themselves, keep what is
//! not acknowledged, and come back the moment it listens again, so that each kill meets full flow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use tokio::sync::watch;

use super::{Kills, Random, SWEEP_KILLS, WAIT};
use crate::agents;
use crate::feed::Feed;
use crate::lab::{Addresses, Disk, Lab, LabConfig};
use crate::ledger::Ledger;
use crate::lines::Lines;
use crate::report::Report;
use crate::returning;

/// Runs all kills and fills the report; an error when a record is lost or repeated.
pub fn torture(kills: &Kills, report: &mut Report) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(kills, report))
}

async fn run(kills: &Kills, report: &mut Report) -> anyhow::Result<()> {
    let disk = Disk::from_str(&kills.disk, true).map_err(anyhow::Error::msg)?;
    let config = LabConfig {
        format: "tagged".to_owned(),
        folder: kills.folder.clone(),
        disk,
        rotate_bytes: kills.rotate_bytes,
        ..LabConfig::default()
    };
    let mut lab = Lab::start(&config).await?;
    let (orders, _) = watch::channel(Some(lab.addresses()?));
    let mut senders = Vec::new();
    for index in 0..kills.agents {
        let sender = Sender {
            index,
            config: lab.authority.client(&agents::name(index))?,
            rate: kills.rate,
            addresses: orders.subscribe(),
        };
        let shared = Arc::new(Shared::default());
        let given = shared.clone();
        senders.push((shared, std::thread::spawn(move || sender.run(&given))));
    }
    let acked = || senders.iter().map(|(shared, _)| shared.acked.load(Ordering::Relaxed)).sum();
    let (mut random, mut ledger) = (Random(kills.seed), Ledger::new(false));
    let (mut known, mut backs, started) = (0, Vec::new(), Instant::now());
    flow(&mut lab, 0, &acked).await?;
    for kill in 1..=kills.kills {
        rest(&mut lab, Duration::from_millis(random.below(kills.pause.max(1)))).await?;
        let (killed, before) = (Instant::now(), acked());
        orders.send_replace(None);
        lab.kill_and_restart().await.with_context(|| format!("kill {kill}"))?;
        orders.send_replace(Some(lab.addresses()?));
        flow(&mut lab, before, &acked).await.with_context(|| format!("kill {kill}"))?;
        backs.push(killed.elapsed().as_secs_f64() * 1e3);
        if kill % SWEEP_KILLS == 0 || kill == kills.kills {
            ledger.sweep(&lab.sinks())?;
            let now = ledger.with_rest(&lab.sinks())?.unique();
            ensure!(now > known, "no record was stored during {SWEEP_KILLS} kills");
            known = now;
            let rate = kill as f64 / started.elapsed().as_secs_f64();
            eprintln!("{kill} kills, {rate:.2} a second, {known} records in the files");
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    senders.iter().for_each(|(shared, _)| shared.stop.store(true, Ordering::Relaxed));
    while !senders.iter().all(|(_, thread)| thread.is_finished()) {
        rest(&mut lab, Duration::from_millis(50)).await?;
    }
    let mut expected = Vec::new();
    for (index, (_, thread)) in senders.into_iter().enumerate() {
        let ended = thread.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?;
        let records = ended.with_context(|| format!("sender {index}"))?;
        expected.push((agents::name(index).to_string(), records));
    }
    let ledger = ledger.with_rest(&lab.sinks())?;
    let verdict = ledger.verdict(&expected);
    kills.account(report, seconds, backs, &ledger, &verdict);
    ensure!(verdict.is_clean(), "records were lost or repeated: {verdict:?}");
    Ok(())
}

/// Waits until more records than `before` are acknowledged.
async fn flow(lab: &mut Lab, before: u64, acked: &impl Fn() -> u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + WAIT;
    while acked() <= before {
        ensure!(Instant::now() < deadline, "no record was acknowledged for {WAIT:?}");
        rest(lab, Duration::from_millis(2)).await?;
    }
    Ok(())
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

/// Shared with a sender's thread.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
}

struct Sender {
    index: usize,
    config: Arc<rustls::ClientConfig>,
    rate: u64,
    addresses: watch::Receiver<Option<Addresses>>,
}

impl Sender {
    /// Runs until told to stop and all is acknowledged; the records sent.
    fn run(mut self, shared: &Shared) -> anyhow::Result<u64> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let records_max = (self.rate / 20).clamp(1, 10_000) as usize;
            let mut feed = Feed::new(
                agents::name(self.index),
                self.config.clone(),
                returning::instance(self.index),
                Lines::new(self.index as u64, None),
                256 * 1024,
                records_max,
            );
            let started = Instant::now();
            let (mut last_error, mut deadline) = (None, None);
            while !(shared.stop.load(Ordering::Relaxed) && feed.is_done()) {
                let told = self.addresses.wait_for(Option::is_some);
                let Some(addresses) = *told.await? else { continue };
                // Whatever ends a connection here is answered by the next one; a fault that stays
                // keeps records from being acknowledged, which is noticed.
                if let Err(error) = self.send(&mut feed, addresses, started, shared).await {
                    last_error = Some(error);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                if shared.stop.load(Ordering::Relaxed)
                    && Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + WAIT)
                {
                    break;
                }
            }
            ensure!(feed.is_done(), "not all was acknowledged: {last_error:?}");
            Ok(feed.sent().records)
        })
    }

    async fn send(
        &self,
        feed: &mut Feed,
        addresses: Addresses,
        started: Instant,
        shared: &Shared,
    ) -> anyhow::Result<()> {
        let mut compressor = Feed::compressor()?;
        let mut channel = feed.connect(addresses.data(1)).await?;
        loop {
            let due = (started.elapsed().as_secs_f64() * self.rate as f64) as u64;
            let stop = shared.stop.load(Ordering::Relaxed);
            let may_make = !stop && feed.sent().records < due;
            feed.step(&mut channel, may_make.then_some(&mut compressor)).await?;
            shared.acked.store(feed.acked(), Ordering::Relaxed);
            if stop && feed.is_done() {
                return Ok(());
            }
        }
    }
}
