//! One run: a file is submitted, hosts are watched until all have it, and what is to go wrong goes
//! wrong on time. Who carries the file does not matter here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};

use super::cells::{Cell, Fault, SHORT_BYTES};
use super::told::Told;
use crate::content::sha256_of;
use crate::machine::busy_us;
use crate::netlab::{Carried, Host, NetLab};
use crate::process::{children_us, whole_us};
use crate::site::families;

/// Between two looks at all hosts.
const LOOK: Duration = Duration::from_millis(20);
/// The same for short files.
const LOOK_OFTEN: Duration = Duration::from_millis(1);
/// A host that was killed is back after this time.
pub const BACK: Duration = Duration::from_secs(1);
/// Copies that have left a source when it dies.
const COPIES_BEFORE_DEATH: f64 = 1.05;

/// What one run is about. Receiver `n` is host `n + 1` of the lab, the source is host 0.
pub struct Job<'a> {
    /// Its hosts.
    pub lab: &'a NetLab,
    /// Its conditions.
    pub cell: &'a Cell,
    /// Folder of the lab.
    pub folder: PathBuf,
    /// No other run of this lab has it.
    pub number: usize,
    /// The file.
    pub source: PathBuf,
    /// Longest time.
    pub limit: Duration,
    /// Least time, without a limit of the links none.
    pub bound: Option<Duration>,
}

impl Job<'_> {
    fn name(&self) -> String {
        format!("run-{}", self.number)
    }

    /// A receiver.
    pub fn receiver(&self, host: usize) -> &Host {
        &self.lab.hosts()[host + 1]
    }

    /// Where a receiver's file goes.
    pub fn folder_of(&self, host: usize) -> PathBuf {
        self.folder.join(format!("hosts/{:03}", host + 1)).join(self.name())
    }

    /// The same as each receiver's own processes see it.
    pub fn seen_by_all(&self) -> PathBuf {
        self.folder.join("here").join(self.name())
    }

    /// A receiver's file.
    pub fn target(&self, host: usize) -> PathBuf {
        self.folder_of(host).join(self.source.file_name().unwrap_or_default())
    }

    /// What a peer makes when it has the file.
    pub fn done(&self, host: usize) -> PathBuf {
        self.folder_of(host).join("done")
    }

    /// For logs and what peers need beside the file.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join(self.name())
    }

    /// Metainfo of the BitTorrent peers.
    pub fn torrent(&self) -> PathBuf {
        self.scratch().join("file.torrent")
    }

    /// Makes the folders of a run.
    pub fn make_folders(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.scratch())?;
        for host in 0..self.cell.receivers {
            std::fs::create_dir_all(self.folder_of(host))?;
        }
        Ok(())
    }

    /// Removes them with everything in them.
    pub fn remove_folders(&self) {
        let of_hosts = (0..self.cell.receivers).map(|host| self.folder_of(host));
        for folder in of_hosts.chain([self.scratch()]) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Those who carry the file: Skein, or a peer.
pub trait Crew {
    /// When a receiver had the whole file.
    fn finished(&mut self, host: usize) -> Option<SystemTime>;
    /// kill -9 of everything that a receiver runs.
    fn kill(&mut self, host: usize);
    /// Starts it again.
    fn restart(&mut self, host: usize) -> anyhow::Result<()>;
    /// kill -9 of everything that the source runs.
    fn kill_source(&mut self);
    /// Why nothing more will come.
    fn over(&mut self) -> Option<String>;
    /// Processes that all others of the crew come from.
    fn roots(&self) -> Vec<u32>;
    /// The source's link is about to become slower.
    fn source_slows(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    /// A look from time to time, for crews that have something to see.
    fn look(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// What one run showed.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Seconds from the submission until each receiver had the file; none: not within the limit.
    pub finished: Vec<Option<f64>>,
    /// Bytes that the source's link sent until the last host had the file, with headers, in files.
    pub source_copies: f64,
    /// The same of what each receiver's link received.
    pub received_copies: Vec<f64>,
    /// Of that, what arrived while a receiver was down: it was on its way to who was killed.
    pub missed_copies: Vec<f64>,
    /// The same of what went into the far region and out of it.
    pub border_copies: Option<[f64; 2]>,
    /// Whether the source was killed: one that never sends so much is not.
    pub source_died: bool,
    /// Cores of this machine that were busy meanwhile.
    pub cores_busy: f64,
    /// CPU seconds of all processes that took part and did not die.
    pub cpu_s: f64,
    /// Load average of the last minute at the start.
    pub load: f64,
    /// Seconds until the last file was on the disk for good, where somebody asked for that.
    pub synced: Option<f64>,
    /// Bare writes and flushes of as many bytes just before, seconds each.
    pub flushes: Vec<f64>,
    /// What Skein said of the run.
    pub told: Option<Told>,
    /// Why it ended before all hosts had the file.
    pub note: String,
}

/// Bytes that links carried, and CPU, at one moment.
struct Counters {
    source: u64,
    received: Vec<u64>,
    border: Option<Carried>,
    busy_us: u64,
    cpu: BTreeMap<u32, u64>,
    children_us: u64,
}

impl Counters {
    fn look<C: Crew>(job: &Job, crew: &C) -> anyhow::Result<Self> {
        let received = |host| anyhow::Ok(job.receiver(host).carried()?.received);
        Ok(Self {
            source: job.lab.hosts()[0].carried()?.sent,
            received: (0..job.cell.receivers).map(received).collect::<Result<_, _>>()?,
            border: job.lab.crossed()?,
            busy_us: busy_us()?,
            cpu: whole_us(&families(&crew.roots())),
            children_us: children_us(),
        })
    }

    /// What happened since `before`, into `outcome`.
    fn since(&self, before: &Self, job: &Job, elapsed: Duration, outcome: &mut Outcome) {
        let copies = |bytes: u64| bytes as f64 / job.cell.bytes as f64;
        outcome.source_copies = copies(self.source - before.source);
        let received = self.received.iter().zip(&before.received);
        outcome.received_copies = received.map(|(now, then)| copies(now - then)).collect();
        outcome.border_copies = self.border.zip(before.border).map(|(now, then)| {
            [copies(now.sent - then.sent), copies(now.received - then.received)]
        });
        let busy = self.busy_us - before.busy_us;
        outcome.cores_busy = busy as f64 / elapsed.as_micros() as f64;
        let used = self.cpu.iter().map(|(pid, us)| {
            let before = before.cpu.get(pid).copied().unwrap_or(0);
            us.saturating_sub(before)
        });
        let used = used.sum::<u64>() + (self.children_us - before.children_us);
        outcome.cpu_s = used as f64 / 1e6;
    }
}

/// Watches a run from its submission, which `submit` makes.
pub fn drive<C: Crew>(
    job: &Job,
    crew: &mut C,
    submit: impl FnOnce(&mut C) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let cell = job.cell;
    let mut outcome = Outcome { load: load()?, ..Outcome::default() };
    let before = Counters::look(job, crew)?;
    let (began, started) = (SystemTime::now(), Instant::now());
    let mut trouble = Trouble::new(job);
    submit(crew)?;
    let mut finished: Vec<Option<SystemTime>> = vec![None; cell.receivers];
    let is_short = cell.bytes <= SHORT_BYTES;
    let look = if is_short || cell.files.is_some() { LOOK_OFTEN } else { LOOK };
    loop {
        for (host, at) in finished.iter_mut().enumerate() {
            // The kernel's own clock of files is coarse: too coarse for the shortest.
            if at.is_none() {
                let found = crew.finished(host);
                *at = found.map(|at| if is_short { SystemTime::now() } else { at });
            }
        }
        // A liar need not have it.
        let is_liar = |host: &usize| cell.fault == Fault::Liar && trouble.special.contains(host);
        let mut meant = (0..cell.receivers).filter(|host| !is_liar(host));
        if meant.all(|host| finished[host].is_some()) && trouble.is_over() {
            break;
        }
        if started.elapsed() >= job.limit {
            outcome.note = format!("stopped after {} s", job.limit.as_secs());
            break;
        }
        if let Some(why) = crew.over() {
            // It may have ended between the two looks.
            let missing = (0..cell.receivers).any(|host| crew.finished(host).is_none());
            if missing {
                outcome.note = why;
                break;
            }
        }
        trouble.look(job, crew, started.elapsed(), before.source)?;
        crew.look()?;
        std::thread::sleep(look);
    }
    let elapsed = started.elapsed();
    Counters::look(job, crew)?.since(&before, job, elapsed, &mut outcome);
    let missed = |host| trouble.missed.get(&host).copied().unwrap_or(0) as f64;
    outcome.missed_copies =
        (0..cell.receivers).map(|host| missed(host) / cell.bytes as f64).collect();
    outcome.source_died = cell.fault == Fault::SourceDies && trouble.stage == Stage::Over;
    let seconds = |at: SystemTime| at.duration_since(began).map_or(0.0, |time| time.as_secs_f64());
    outcome.finished = finished.into_iter().map(|at| at.map(seconds)).collect();
    Ok(outcome)
}

/// Proves what was received against the source; a difference ends everything.
pub fn verify(job: &Job, outcome: &Outcome) -> anyhow::Result<()> {
    let expected = sha256_of(&job.source)?;
    let had = outcome.finished.iter().enumerate().filter(|(_, at)| at.is_some());
    for (host, _) in had {
        let found = sha256_of(&job.target(host))?;
        ensure!(found == expected, "receiver {host} has another file than the source");
    }
    Ok(())
}

fn load() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("empty /proc/loadavg")?.parse()?)
}

/// What goes wrong, and when.
struct Trouble {
    special: Vec<usize>,
    stage: Stage,
    /// By receiver that was killed: what its link had received until then, and once it is back what
    /// came while it was down.
    missed: BTreeMap<usize, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Waiting,
    Down(Duration),
    Over,
}

impl Trouble {
    fn new(job: &Job) -> Self {
        let late = [Fault::KillTenth, Fault::SourceDies, Fault::SourceSlows];
        let stage = if late.contains(&job.cell.fault) { Stage::Waiting } else { Stage::Over };
        Self { special: job.cell.special(), stage, missed: BTreeMap::new() }
    }

    /// Whether nothing is pending: hosts that are down still have to come back.
    fn is_over(&self) -> bool {
        !matches!(self.stage, Stage::Down(_))
    }

    fn look(
        &mut self,
        job: &Job,
        crew: &mut impl Crew,
        elapsed: Duration,
        sent_before: u64,
    ) -> anyhow::Result<()> {
        let bound = job.bound.unwrap_or(Duration::MAX);
        match (self.stage, job.cell.fault) {
            (Stage::Waiting, Fault::KillTenth) if elapsed >= bound / 2 => {
                for host in &self.special {
                    crew.kill(*host);
                    self.missed.insert(*host, job.receiver(*host).carried()?.received);
                }
                self.stage = Stage::Down(elapsed + BACK);
            }
            (Stage::Down(until), _) if elapsed >= until => {
                for host in &self.special {
                    if let Some(before) = self.missed.get_mut(host) {
                        *before = job.receiver(*host).carried()?.received - *before;
                    }
                    crew.restart(*host)?;
                }
                self.stage = Stage::Over;
            }
            (Stage::Waiting, Fault::SourceDies) => {
                let sent = job.lab.hosts()[0].carried()?.sent - sent_before;
                if sent as f64 >= COPIES_BEFORE_DEATH * job.cell.bytes as f64 {
                    crew.kill_source();
                    self.stage = Stage::Over;
                }
            }
            (Stage::Waiting, Fault::SourceSlows) if elapsed >= bound_at_thirty(job) => {
                let rate = job.cell.rate.context("a source slows on a shaped link")?;
                crew.source_slows()?;
                job.lab.set_rate(0, rate / 5)?;
                self.stage = Stage::Over;
            }
            _ => {}
        }
        Ok(())
    }
}

/// 30 % of what the whole file takes at the full rate: the bound of a cell with a slowing source is
/// 0.3 and 5 times 0.7 of that.
fn bound_at_thirty(job: &Job) -> Duration {
    job.bound.map_or(Duration::MAX, |bound| bound.mul_f64(0.3 / (0.3 + 0.7 * 5.0)))
}
