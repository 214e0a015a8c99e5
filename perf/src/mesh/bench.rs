//! Where the runs of a cell happen: its network, the agents that stay between runs, and what is
//! done before and after each.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::cells::{Cell, Fault, SHORT_BYTES};
use super::drive::{Job, Outcome, drive, verify};
use super::evidence;
use super::peer::{Peer, PeerCrew};
use super::skein::{Fleet, SkeinCrew};
use super::tables::Measured;
use super::tree::{TreeCrew, compare, copy_of, write_tree};
use crate::content::{flush_times, write_noise};
use crate::netlab::NetLab;

/// Lost packets of a lossy cell, per mille.
const LOSS_PERMILLE: u32 = 10;
/// Of a slow host, of the others' rate.
const SLOW_DIVISOR: u64 = 4;

/// Who takes part.
#[derive(Debug, Clone, PartialEq)]
pub enum Contender {
    /// With the gear that it was told, if any.
    Skein(Option<String>),
    /// Another program.
    Other(Peer),
}

/// What all runs of a cell share. The agents go before the network that they are in.
pub struct Bench {
    fleet: Option<Fleet>,
    /// The network.
    pub lab: NetLab,
    folder: PathBuf,
    /// Where what went wrong is kept.
    scratch: PathBuf,
    runs: usize,
    keep: bool,
}

impl Bench {
    /// Makes the network of a cell.
    pub fn new(lab: NetLab, folder: PathBuf, scratch: PathBuf, keep: bool) -> Self {
        Self { fleet: None, lab, folder, scratch, runs: 0, keep }
    }

    /// What is wrong with the links of a cell from the start.
    pub fn spoil(&self, cell: &Cell) -> anyhow::Result<()> {
        match (cell.fault, cell.rate) {
            (Fault::SlowHost, Some(rate)) => {
                let mut slow = cell.special().into_iter();
                slow.try_for_each(|host| self.lab.set_rate(host + 1, rate / SLOW_DIVISOR))
            }
            (Fault::Loss, _) => {
                (1..=cell.receivers).try_for_each(|host| self.lab.set_loss(host, LOSS_PERMILLE))
            }
            _ => Ok(()),
        }
    }

    /// The agents of Skein, and the border of a cell that has one, which follows from them.
    fn fleet(&mut self, cell: &Cell) -> anyhow::Result<&mut Fleet> {
        if self.fleet.is_none() {
            let started = Instant::now();
            self.fleet = Some(Fleet::start(&self.lab, &self.folder, &self.scratch, cell)?);
            eprintln!("server and agents in {:.1} s", started.elapsed().as_secs_f64());
        }
        self.fleet.as_mut().context("it was started")
    }

    /// One run, its files proved and removed. Where it went wrong, logs are kept and named.
    pub fn run(
        &mut self,
        cell: &Cell,
        contender: &Contender,
        bound: Option<f64>,
        limit: Duration,
        measured: &mut Measured,
    ) -> anyhow::Result<Outcome> {
        self.runs += 1;
        let source = self.source(cell)?;
        // Other programs meet the border as well.
        if matches!(contender, Contender::Skein(_)) || cell.border().is_some() {
            self.fleet(cell)?;
        }
        let mut fleet = self.fleet.take();
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
        let mut ran = self.carry(contender, &job, fleet.as_mut(), measured);
        if let (Fault::SourceSlows, Some(rate)) = (cell.fault, cell.rate) {
            self.lab.set_rate(0, rate)?;
        }
        if let Ok(outcome) = &ran
            && let Err(error) = check(&job, outcome)
        {
            ran = Err(error);
        }
        let is_skein = matches!(contender, Contender::Skein(_));
        let special = cell.special();
        let is_liar = |host: usize| cell.fault == Fault::Liar && special.contains(&host);
        let is_whole = |outcome: &Outcome| {
            let hosts = outcome.finished.iter().enumerate();
            let mut hosts = hosts.filter(|(host, _)| !is_liar(*host));
            hosts.all(|(_, at)| at.is_some())
        };
        let went_well = ran.as_ref().is_ok_and(is_whole);
        if !went_well {
            let own = fleet.as_ref().filter(|_| is_skein);
            let kept = evidence::keep(&self.scratch, &measured.name, &job, own);
            let kept = format!("logs in {}", kept.display());
            match &mut ran {
                Ok(outcome) => outcome.note += &format!("; {kept}"),
                Err(error) => *error = anyhow::anyhow!("{error:#}; {kept}"),
            }
        }
        // A transfer that goes on, or a dead server, would spoil the next run.
        if is_skein && (!went_well || cell.fault == Fault::SourceDies) {
            fleet = None;
        }
        self.fleet = fleet;
        // Directories stay until the lab ends: for minutes after 20,000 files were removed, ext4 walks
        // past all their inodes for each one that it makes, and the next run would measure that.
        if !self.keep && cell.files.is_none() {
            job.remove_folders();
        }
        ran
    }

    /// The file or directory; nobody holds any of it yet.
    fn source(&self, cell: &Cell) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("source");
        std::fs::create_dir_all(&folder)?;
        match cell.files {
            Some(files) => {
                // Each has its own, so that none has to be removed.
                let tree = folder.join(self.runs.to_string()).join("tree");
                write_tree(&tree, files, cell.bytes, self.runs as u64)?;
                Ok(tree)
            }
            None => {
                let file = folder.join("data.bin");
                write_noise(&file, cell.bytes, self.runs as u64)?;
                Ok(file)
            }
        }
    }

    fn carry(
        &self,
        contender: &Contender,
        job: &Job,
        fleet: Option<&mut Fleet>,
        measured: &mut Measured,
    ) -> anyhow::Result<Outcome> {
        settle(&self.folder);
        let mut outcome = match contender {
            Contender::Other(peer) if peer.is_for_trees() => {
                let mut crew = TreeCrew::prepare(*peer, job)?;
                drive(job, &mut crew, TreeCrew::submit)?
            }
            Contender::Other(peer) => {
                let mut crew = PeerCrew::prepare(*peer, job)?;
                drive(job, &mut crew, PeerCrew::submit)?
            }
            Contender::Skein(gear) => {
                let fleet = fleet.context("agents")?;
                let flushes = match job.cell.bytes {
                    ..=SHORT_BYTES => flush_times(&self.folder, job.cell.bytes as usize)?,
                    _ => Vec::new(),
                };
                let mut crew = SkeinCrew::prepare(fleet, job, gear.as_deref())?;
                let mut outcome = drive(job, &mut crew, SkeinCrew::submit)?;
                let told = crew.end()?;
                drop(crew);
                measured.gears.insert(told.gear.clone());
                measured.agent_peak_kib = measured.agent_peak_kib.max(fleet.agent_peak_kib());
                measured.piece_bytes = fleet.piece_bytes();
                (outcome.told, outcome.flushes) = (Some(told), flushes);
                outcome
            }
        };
        if job.cell.files.is_some() {
            let started = Instant::now();
            settle(&self.folder);
            let last = outcome.finished.iter().copied().collect::<Option<Vec<f64>>>();
            let last = last.map(|times| times.into_iter().fold(0.0, f64::max));
            outcome.synced = last.map(|last| last + started.elapsed().as_secs_f64());
        }
        Ok(outcome)
    }
}

/// What arrived is what was sent.
fn check(job: &Job, outcome: &Outcome) -> anyhow::Result<()> {
    if job.cell.files.is_none() {
        return verify(job, outcome);
    }
    let had = outcome.finished.iter().enumerate().filter(|(_, at)| at.is_some());
    for (host, _) in had {
        let copy = copy_of(job, host);
        ensure!(copy.is_dir(), "receiver {host} has no directory");
        compare(&job.source, &copy)?;
    }
    Ok(())
}

/// What was written before is on the disk from here on.
fn settle(folder: &Path) {
    if let Err(error) = std::process::Command::new("sync").arg("-f").arg(folder).status() {
        eprintln!("sync: {error}");
    }
}
