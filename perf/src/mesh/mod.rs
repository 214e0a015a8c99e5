//! Bulk distribution in shaped network namespaces: one file to many hosts, Skein beside the programs
//! that people use for it, on the same links and against what the links allow.
//!
//! Time counts from the submission (`skein push`, or the start of the peer's source) to the last
//! host's complete file; hashing of the source is inside. Whatever waits for files as a service
//! does is running by then. The harness proves every file afterwards, outside of the time.

mod bars;
mod bench;
mod cells;
mod drive;
mod evidence;
mod gears;
mod liar;
mod lines;
mod notes;
mod peer;
mod plots;
mod relay;
mod simulated;
mod skein;
mod tables;
mod told;
mod torrent;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

pub use liar::LiarProcess;
pub use relay::Relay;

use crate::netlab::{self, NetLab};
use crate::push_parts::Parts;
use crate::report::Report;
use bench::{Bench, Contender};
use cells::Cell;
use lines::{Line, split};
use peer::{PEERS, Peer};
use skein::push_help;
use tables::{Measured, Results};

/// Beyond the given multiple of the bound: for starting, and for cells that last no time.
const LIMIT_EXTRA: Duration = Duration::from_secs(15);
/// Without limits on the links there is no bound to multiply.
const LIMIT_UNSHAPED: Duration = Duration::from_secs(180);
/// Of the file with which the parts of a costly cell are measured alone.
const PARTS_BYTES: u64 = 256 << 20;
/// What the folders of cells are called; the maker's process id follows.
const FOLDERS: &str = "mesh-";

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Mesh {
    /// Whole questions with their cells, peers and rounds: bound, bound-long, border, robust, replan,
    /// gears, tiny, tree, cost, repeat, simulator; quick: a look at each kind within ten minutes;
    /// matrix: all of them within two hours
    #[arg(long, conflicts_with = "cells")]
    line: Option<String>,
    /// The same as --line quick
    #[arg(long, conflicts_with_all = ["cells", "line"])]
    quick: bool,
    /// Cells one by one: small, a line's name, or as in 16x20x32M: receivers, Mbit/s (- for no
    /// limit), size; 1x1000x20000f4K are 20000 files of 4 KiB. What goes wrong may follow, as in
    /// 4x100x16M+loss, or stand alone: slow-host, kill-tenth, source-dies, loss, source-slows, liar,
    /// border
    #[arg(long, default_value = "small")]
    cells: String,
    /// skein, skein:GEAR, chain, chain-sha256, direct, libtorrent, libtorrent-super,
    /// libtorrent-default, aria2, transmission, udpcast; for directories skein, rsync, tar
    /// [default: the line's]
    #[arg(long)]
    peers: Option<String>,
    /// Rounds; in each, all take their turn [default: the line's, else 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// Rounds of pushes alone, with agents that stay; others take no part
    #[arg(long, conflicts_with_all = ["rounds", "peer_rounds"])]
    repeat: Option<usize>,
    /// Rounds that others than Skein take part in [default: the line's, else 3]
    #[arg(long)]
    peer_rounds: Option<usize>,
    /// How `skein` travels, where a peer does not say it
    #[arg(long)]
    gear: Option<String>,
    /// A run is stopped at this multiple of the least time, and 15 s [default: the line's, else 6]
    #[arg(long)]
    limit_factor: Option<f64>,
    /// Ask the simulator about the same hosts and compare
    #[arg(long)]
    simulate: bool,
    /// No run begins after so many minutes
    #[arg(long, default_value_t = 115)]
    minutes: u64,
    /// Folder on the disk to write to; logs of runs that failed stay below it
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// Keep what processes said, and what they wrote
    #[arg(long)]
    keep: bool,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder for a plot of each cell: which share of the hosts had the file when
    #[arg(long)]
    plots: Option<PathBuf>,
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

    /// Whether it sends what the cell is about.
    fn is_for(&self, cell: &Cell) -> bool {
        match self {
            Self::Skein(_) => true,
            Self::Other(peer) => peer.is_for_trees() == cell.files.is_some(),
        }
    }
}

/// Whether `skein push` takes a directory, by what its help says.
fn takes_directories(help: &str) -> bool {
    help.to_lowercase().contains("director")
}

impl Mesh {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let lines = self.lines()?;
        let help = push_help()?;
        let mut report = Report::new("One file to many hosts in shaped namespaces");
        let mut seen: Vec<&String> = Vec::new();
        for name in lines.iter().flat_map(|line| &line.peers) {
            let contender = Contender::parse(name, self.gear.as_deref())?;
            let is_geared = matches!(contender, Contender::Skein(Some(_)));
            ensure!(!is_geared || help.contains("--gear"), "this `skein push` has no --gear");
            if let (Contender::Other(peer), false) = (contender, seen.contains(&name)) {
                report.row(name, peer.version()?);
                seen.push(name);
            }
        }
        netlab::cleanup();
        std::fs::create_dir_all(&self.folder)?;
        remove_folders(&self.folder, |maker| !Path::new("/proc").join(maker).exists());
        let (folder, own) = (self.folder.clone(), std::process::id().to_string());
        netlab::end_with_signals(move || remove_folders(&folder, |maker| maker == own))?;
        let deadline = Instant::now() + Duration::from_secs(self.minutes * 60);
        tables::preface(&mut report);
        let mut failures = 0;
        for line in &lines {
            let mut all = Vec::new();
            for cell in &line.cells {
                let ran = self.cell(cell, line, &help, deadline, &mut failures);
                // The other cells may still work.
                let results = ran.unwrap_or_else(|error| {
                    eprintln!("{}: {error:#}", cell.name);
                    failures += 1;
                    let failed = vec![format!("{error:#}")];
                    let measured = Measured { failed, ..Measured::new("nobody") };
                    Results::of(cell.clone(), vec![measured])
                });
                eprintln!("{}", results.summary());
                for note in notes::of(&results) {
                    eprintln!("  {note}");
                }
                if let Some(folder) = &self.plots {
                    plots::write(folder, &results)?;
                }
                all.push(results);
            }
            if !line.title.is_empty() {
                report.note(&format!("## {}", line.title));
            }
            if line.gears {
                gears::write(&mut report, &all);
            }
            tables::write(&mut report, &all);
            if let Some(file) = &self.out {
                report.save(file)?;
            }
        }
        report.finish(self.out.as_deref())?;
        ensure!(failures == 0, "{failures} runs did not start, or gave a wrong file: see above");
        Ok(())
    }

    /// What is measured, with what the command line says instead.
    fn lines(&self) -> anyhow::Result<Vec<Line>> {
        let mut lines = match &self.line {
            _ if self.quick => lines::named("quick")?,
            Some(names) => lines::named(names)?,
            None => vec![lines::of_cells(&self.cells)?],
        };
        for line in &mut lines {
            if let Some(peers) = &self.peers {
                line.peers = split(peers);
            }
            if let Some(rounds) = self.repeat {
                line.rounds = rounds;
                line.peers.retain(|name| name.starts_with("skein"));
            }
            line.rounds = self.rounds.unwrap_or(line.rounds);
            line.peer_rounds = self.peer_rounds.unwrap_or(line.peer_rounds).min(line.rounds);
            line.limit_factor = self.limit_factor.unwrap_or(line.limit_factor);
            line.simulated |= self.simulate;
            line.gears |= lines::compares_gears(&line.peers);
        }
        Ok(lines)
    }

    /// All rounds of a cell.
    fn cell(
        &self,
        cell: &Cell,
        line: &Line,
        help: &str,
        deadline: Instant,
        failures: &mut usize,
    ) -> anyhow::Result<Results> {
        let parse = |name: &String| {
            anyhow::Ok((Contender::parse(name, self.gear.as_deref())?, Measured::new(name)))
        };
        let all = line.peers.iter().map(parse).collect::<anyhow::Result<Vec<_>>>()?;
        let mut contenders: Vec<_> = all.into_iter().filter(|(who, _)| who.is_for(cell)).collect();
        if Instant::now() >= deadline {
            for (who, measured) in &mut contenders {
                measured.skipped = line.rounds_of(who);
            }
            let measured = contenders.into_iter().map(|(_, measured)| measured).collect();
            return Ok(Results::of(cell.clone(), measured));
        }
        eprintln!("{}: {cell}", cell.name);
        let prefix = format!("{FOLDERS}{}-", std::process::id());
        let mut folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.folder)?;
        folder.disable_cleanup(self.keep);
        let folder_path = folder.path().canonicalize()?;
        let started = Instant::now();
        let lab = NetLab::start(cell.receivers + 1, Some(&folder_path))?;
        cell.rate.map_or(Ok(()), |rate| lab.shape(rate))?;
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{} namespaces in {seconds:.1} s", lab.hosts().len() + 1);
        let goodput = cell.rate.map(|_| lab.goodput(0, 1)).transpose()?;
        let bound = goodput.map(|goodput| cell.bound(goodput));
        let scratch = self.folder.clone();
        let mut bench = Bench::new(lab, folder_path.clone(), scratch, self.keep);
        bench.spoil(cell)?;
        let limit = limit(bound, line.limit_factor);
        let predictions = gears::predictions(cell, goodput);
        for (who, measured) in &mut contenders {
            measured.not_tried = match who {
                Contender::Skein(_) if cell.files.is_some() && !takes_directories(help) => {
                    Some("skipped: skein push takes no directory yet".to_owned())
                }
                Contender::Skein(Some(gear)) if line.gears => gears::impossible(gear, cell, help)
                    .or_else(|| gears::not_worth(gear, &predictions, bound)),
                _ => None,
            };
            if *who == Contender::Other(Peer::Direct) {
                let seconds = goodput.map(|goodput| cell.direct(goodput));
                measured.computed = seconds.filter(|seconds| *seconds > limit.as_secs_f64());
            }
        }
        for round in 0..line.rounds {
            for (who, measured) in &mut contenders {
                let tried = measured.not_tried.is_none() && measured.computed.is_none();
                if !tried || round >= line.rounds_of(who) {
                    continue;
                }
                if Instant::now() >= deadline {
                    measured.skipped += 1;
                    continue;
                }
                match bench.run(cell, who, bound, limit, measured) {
                    Ok(outcome) => {
                        eprintln!("round {}, {}: {outcome}", round + 1, measured.name);
                        measured.outcomes.push(outcome);
                    }
                    Err(error) => {
                        eprintln!("round {}, {}: {error:#}", round + 1, measured.name);
                        *failures += 1;
                        measured.failed.push(format!("{error:#}"));
                    }
                }
            }
        }
        drop(bench);
        let mut parts = None;
        if cell.rate.is_none() {
            let file = folder_path.join("parts-source.bin");
            crate::content::write_noise(&file, PARTS_BYTES.min(cell.bytes), 0)?;
            parts = Some(Parts::measure(&file, &folder_path)?);
        }
        if line.simulated {
            for (_, measured) in &mut contenders {
                let simulated = simulate(cell, goodput, measured, &folder_path);
                measured.simulated = simulated.map_err(|error| format!("{error:#}")).transpose();
            }
        }
        let measured = contenders.into_iter().map(|(_, measured)| measured).collect();
        Ok(Results { goodput, bound, parts, ..Results::of(cell.clone(), measured) })
    }
}

impl Line {
    fn rounds_of(&self, who: &Contender) -> usize {
        match who {
            Contender::Skein(_) => self.rounds,
            Contender::Other(_) => self.peer_rounds,
        }
    }
}

/// The simulator's answer for the one gear that somebody took.
fn simulate(
    cell: &Cell,
    goodput: Option<f64>,
    measured: &Measured,
    folder: &Path,
) -> anyhow::Result<Option<simulated::Simulated>> {
    let gears: Vec<&String> = measured.gears.iter().collect();
    let gear = match (measured.name.as_str(), &gears[..]) {
        ("chain", _) => "chain",
        (_, [gear]) => gear.as_str(),
        _ => return Ok(None),
    };
    simulated::ask(cell, goodput, gear, measured.piece_bytes, folder)
}

/// Removes folders of cells whose makers are meant, with everything in them.
fn remove_folders(folder: &Path, is_meant: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(FOLDERS).and_then(|rest| Some(rest.split_once('-')?.0));
        let is_number = |maker: &str| maker.bytes().all(|byte| byte.is_ascii_digit());
        if maker.is_some_and(|maker| is_number(maker) && is_meant(maker)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn limit(bound: Option<f64>, factor: f64) -> Duration {
    bound.map_or(LIMIT_UNSHAPED, |bound| Duration::from_secs_f64(bound * factor) + LIMIT_EXTRA)
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
        assert!(parse("scp").is_err());
    }

    #[test]
    fn who_sends_a_directory_sends_no_file() {
        let [file, tree] = ["4x100x4M", "1x100x10f4K"].map(|name| Cell::named(name).unwrap());
        let is_for = |name, cell: &Cell| Contender::parse(name, None).unwrap().is_for(cell);
        assert!(is_for("skein", &file) && is_for("skein", &tree));
        assert!(is_for("aria2", &file) && !is_for("aria2", &tree));
        assert!(!is_for("tar", &file) && is_for("tar", &tree));
    }

    #[test]
    fn every_peer_of_every_line_is_known() {
        for line in lines::named("matrix,quick,simulator").unwrap() {
            for name in &line.peers {
                Contender::parse(name, None).unwrap();
            }
            assert!(line.cells.iter().all(|cell| {
                line.peers.iter().any(|name| Contender::parse(name, None).unwrap().is_for(cell))
            }));
        }
    }

    #[test]
    fn only_folders_of_those_that_are_meant_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["mesh-1-abc", "mesh-2-abc", "mesh-x-abc", "failed", "mesh-1"];
        names.iter().for_each(|name| std::fs::create_dir(folder.path().join(name)).unwrap());
        remove_folders(folder.path(), |maker| maker == "1");
        let left = names.map(|name| folder.path().join(name).exists());
        assert_eq!(left, [false, true, true, true, true]);
    }

    #[test]
    fn a_directory_is_sent_when_the_help_says_so() {
        assert!(!takes_directories("A file of this machine ... <SELECTOR:DIR>: /folder"));
        assert!(takes_directories("A file or directory of this machine"));
    }
}
