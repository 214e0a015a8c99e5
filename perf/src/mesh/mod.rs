//! Bulk distribution in shaped network namespaces: one file to many hosts, Skein beside the programs
//! that people use for it, on the same links and against what the links allow.
//!
//! Time counts from the submission (`skein push`, or the start of the peer's source) to the last
//! host's complete file; hashing of the source is inside. Whatever waits for files as a service
//! does is running by then. The harness proves every file afterwards, outside of the time.

mod cells;
mod drive;
mod peer;
mod relay;
mod skein;
mod tables;
mod torrent;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

pub use relay::Relay;

use crate::content::{flush_p99, write_noise};
use crate::netlab::{self, NetLab};
use crate::report::Report;
use cells::{Cell, Fault, SHORT_BYTES};
use drive::{Job, Outcome, drive, verify};
use peer::{PEERS, Peer, PeerCrew};
use skein::{Fleet, SkeinCrew, has_gears};
use tables::{Measured, Results};

/// Lost packets of a lossy cell, per mille.
const LOSS_PERMILLE: u32 = 10;
/// Of a slow host, of the others' rate.
const SLOW_DIVISOR: u64 = 4;
/// Beyond the given multiple of the bound: for starting, and for cells that last no time.
const LIMIT_EXTRA: Duration = Duration::from_secs(15);
/// Without limits on the links there is no bound to multiply.
const LIMIT_UNSHAPED: Duration = Duration::from_secs(180);

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Mesh {
    /// small, schedule, robust, cost, tiny, grid, all; or single ones as in 16x20x32M: receivers,
    /// Mbit/s (- for no limit), size. What goes wrong may follow, as in 4x100x16M+loss, or stand
    /// alone: slow-host, kill-tenth, source-dies, loss, source-slows
    #[arg(long, default_value = "small")]
    cells: String,
    /// skein, skein:GEAR, chain, chain-sha256, direct, libtorrent, libtorrent-super,
    /// libtorrent-default, aria2, transmission, udpcast
    #[arg(
        long,
        default_value = "skein,chain,chain-sha256,libtorrent,libtorrent-super,aria2,transmission,\
                         udpcast"
    )]
    peers: String,
    /// Rounds; in each, all take their turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rounds that others than Skein take part in [default: all]
    #[arg(long)]
    peer_rounds: Option<usize>,
    /// How `skein` travels, where a peer does not say it
    #[arg(long)]
    gear: Option<String>,
    /// A run is stopped at this multiple of the least time, and 15 s
    #[arg(long, default_value_t = 6.0)]
    limit_factor: f64,
    /// No run begins after so many minutes
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Folder on the disk to write to
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// Keep what processes said, and what they wrote
    #[arg(long)]
    keep: bool,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Who takes part.
#[derive(Debug, Clone, PartialEq)]
enum Contender {
    /// With the gear that it was told, if any.
    Skein(Option<String>),
    Other(Peer),
}

impl Contender {
    fn parse(name: &str, gear: Option<&str>) -> anyhow::Result<Self> {
        if name == "skein" {
            return Ok(Self::Skein(gear.map(str::to_owned)));
        }
        if let Some(gear) = name.strip_prefix("skein:") {
            return Ok(Self::Skein(Some(gear.to_owned())));
        }
        match PEERS.iter().find(|(known, _)| *known == name) {
            Some((_, peer)) => Ok(Self::Other(*peer)),
            None => bail!("no peer \"{name}\""),
        }
    }
}

impl Mesh {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let cells = cells::choose(&self.cells)?;
        let names: Vec<String> = self.peers.split(',').map(|name| name.trim().to_owned()).collect();
        let contenders = names.iter().map(|name| Contender::parse(name, self.gear.as_deref()));
        let contenders = contenders.collect::<anyhow::Result<Vec<_>>>()?;
        let geared = contenders.iter().any(|who| matches!(who, Contender::Skein(Some(_))));
        ensure!(!geared || has_gears()?, "this `skein push` has no --gear");
        let mut report = Report::new("One file to many hosts in shaped namespaces");
        for (name, contender) in names.iter().zip(&contenders) {
            if let Contender::Other(peer) = contender {
                report.row(name, peer.version()?);
            }
        }
        netlab::cleanup();
        std::fs::create_dir_all(&self.folder)?;
        let deadline = Instant::now() + Duration::from_secs(self.minutes * 60);
        let (mut all, mut failures) = (Vec::new(), 0);
        for cell in cells {
            let who: Vec<_> = names.iter().cloned().zip(contenders.iter().cloned()).collect();
            let results = self.cell(&cell, &who, deadline, &mut failures)?;
            eprintln!("{}", results.summary());
            all.push(results);
        }
        tables::write(&mut report, &all);
        report.finish(self.out.as_deref())?;
        ensure!(failures == 0, "{failures} runs did not start, or gave a wrong file: see above");
        Ok(())
    }

    /// All rounds of a cell.
    fn cell(
        &self,
        cell: &Cell,
        contenders: &[(String, Contender)],
        deadline: Instant,
        failures: &mut usize,
    ) -> anyhow::Result<Results> {
        eprintln!("{}: {cell}", cell.name);
        let mut folder = tempfile::Builder::new().prefix("mesh-").tempdir_in(&self.folder)?;
        folder.disable_cleanup(self.keep);
        let folder_path = folder.path().canonicalize()?;
        let started = Instant::now();
        let lab = NetLab::start(cell.receivers + 1, Some(&folder_path))?;
        cell.rate.map_or(Ok(()), |rate| lab.shape(rate))?;
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{} namespaces in {seconds:.1} s", lab.hosts().len() + 1);
        let goodput = cell.rate.map(|_| lab.goodput(0, 1)).transpose()?;
        spoil(&lab, cell)?;
        let bound = goodput.map(|goodput| cell.bound(goodput));
        let mut measured: Vec<Measured> =
            contenders.iter().map(|(name, _)| Measured::new(name)).collect();
        let mut bench = Bench { lab, folder: folder_path, fleet: None, runs: 0, keep: self.keep };
        for round in 0..self.rounds {
            for ((_, contender), measured) in contenders.iter().zip(&mut measured) {
                let other = matches!(contender, Contender::Other(_));
                if other && self.peer_rounds.is_some_and(|rounds| round >= rounds) {
                    continue;
                }
                if Instant::now() >= deadline {
                    measured.skipped += 1;
                    continue;
                }
                let limit = self.limit(bound);
                if *contender == Contender::Other(Peer::Direct)
                    && let Some(seconds) = goodput.map(|goodput| cell.direct(goodput))
                    && seconds > limit.as_secs_f64()
                {
                    measured.computed = Some(seconds);
                    continue;
                }
                match bench.run(cell, contender, bound, limit, measured) {
                    Ok(outcome) => {
                        eprintln!("round {}, {}: {outcome}", round + 1, measured.name);
                        measured.outcomes.push(outcome);
                    }
                    Err(error) => {
                        eprintln!("round {}, {}: {error:#}", round + 1, measured.name);
                        *failures += 1;
                        measured.failed.push(format!("{error:#}"));
                        bench.fleet = None;
                    }
                }
            }
        }
        let flush_p99 = match cell.bytes {
            ..=SHORT_BYTES => Some(flush_p99(&bench.folder, cell.bytes as usize)?),
            _ => None,
        };
        Ok(Results { cell: cell.clone(), goodput, bound, flush_p99, measured })
    }

    fn limit(&self, bound: Option<f64>) -> Duration {
        bound.map_or(LIMIT_UNSHAPED, |bound| {
            Duration::from_secs_f64(bound * self.limit_factor) + LIMIT_EXTRA
        })
    }
}

/// What is wrong with the links of a cell from the start.
fn spoil(lab: &NetLab, cell: &Cell) -> anyhow::Result<()> {
    match (cell.fault, cell.rate) {
        (Fault::SlowHost, Some(rate)) => {
            let mut slow = cell.special().into_iter();
            slow.try_for_each(|host| lab.set_rate(host + 1, rate / SLOW_DIVISOR))
        }
        (Fault::Loss, _) => {
            (1..=cell.receivers).try_for_each(|host| lab.set_loss(host, LOSS_PERMILLE))
        }
        _ => Ok(()),
    }
}

/// What all runs of a cell share. The agents go before the network that they are in.
struct Bench {
    fleet: Option<Fleet>,
    lab: NetLab,
    folder: PathBuf,
    runs: usize,
    keep: bool,
}

impl Bench {
    /// One run, its files proved and removed.
    fn run(
        &mut self,
        cell: &Cell,
        contender: &Contender,
        bound: Option<f64>,
        limit: Duration,
        measured: &mut Measured,
    ) -> anyhow::Result<Outcome> {
        self.runs += 1;
        let source = self.folder.join("source");
        std::fs::create_dir_all(&source)?;
        let source = source.join("data.bin");
        // Nobody holds any of it yet.
        write_noise(&source, cell.bytes, self.runs as u64)?;
        let job = Job {
            lab: &self.lab,
            cell,
            folder: self.folder.clone(),
            number: self.runs,
            source,
            limit,
            bound: bound.map(Duration::from_secs_f64),
        };
        job.make_folders()?;
        let outcome = match contender {
            Contender::Other(peer) => {
                settle(&self.folder);
                let mut crew = PeerCrew::prepare(*peer, &job)?;
                drive(&job, &mut crew, PeerCrew::submit)?
            }
            Contender::Skein(gear) => {
                if self.fleet.is_none() {
                    self.fleet = Some(Fleet::start(&self.lab, &self.folder)?);
                }
                let fleet = self.fleet.as_mut().expect("it was started");
                settle(&self.folder);
                let mut crew = SkeinCrew::prepare(fleet, &job, gear.as_deref());
                let outcome = drive(&job, &mut crew, SkeinCrew::submit)?;
                measured.gears.insert(crew.end()?);
                measured.agent_peak_kib = measured.agent_peak_kib.max(fleet.agent_peak_kib());
                // A transfer that goes on, or a dead server, would spoil the next run.
                let unfinished = outcome.finished.contains(&None);
                if unfinished || cell.fault == Fault::SourceDies {
                    self.fleet = None;
                }
                outcome
            }
        };
        if let (Fault::SourceSlows, Some(rate)) = (cell.fault, cell.rate) {
            self.lab.set_rate(0, rate)?;
        }
        verify(&job, &outcome)?;
        if !self.keep {
            job.remove_folders();
        }
        Ok(outcome)
    }
}

/// What earlier runs wrote is on the disk before the next one begins.
fn settle(folder: &Path) {
    if let Err(error) = std::process::Command::new("sync").arg("-f").arg(folder).status() {
        eprintln!("sync: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_part() {
        let parse = |name| Contender::parse(name, Some("mesh"));
        assert_eq!(parse("skein").unwrap(), Contender::Skein(Some("mesh".to_owned())));
        assert_eq!(parse("skein:direct").unwrap(), Contender::Skein(Some("direct".to_owned())));
        assert_eq!(parse("aria2").unwrap(), Contender::Other(Peer::Aria2));
        assert_eq!(Contender::parse("skein", None).unwrap(), Contender::Skein(None));
        assert!(parse("rsync").is_err());
    }
}
