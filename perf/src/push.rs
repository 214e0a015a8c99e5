//! A push of one file to one host: CPU of every process that took part, against the sum of its
//! parts measured alone on the same bytes: TLS sends and receives, hashes, one read, one write.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::ensure;

use crate::content::{sha256_of, write_noise};
use crate::machine::{KernelThreads, Work};
use crate::process::{Cpu, children_us};
use crate::push_parts::{GIB, Parts};
use crate::report::{Report, Spread};
use crate::site::{Agent, Site};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Push {
    /// Size of the file
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder on the disk to write to
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One push and its parts; CPU in seconds per GiB.
struct Round {
    parts: Parts,
    /// By process.
    processes: Vec<(String, f64)>,
    flush: f64,
    seconds: f64,
}

impl Round {
    fn whole(&self) -> f64 {
        self.processes.iter().map(|(_, cpu)| cpu).sum()
    }
}

impl Push {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let mut report = Report::new("Push of one file to one host");
        std::fs::create_dir_all(&self.folder)?;
        let folder = self.folder.canonicalize()?;
        let file = folder.join("push.bin");
        write_noise(&file, self.bytes, 0)?;
        let site = Site::start(&folder)?;
        let agent = site.agent("agent", "")?;
        let target = site.path("received");
        std::fs::create_dir_all(&target)?;
        let mut rounds = Vec::new();
        for number in 0..self.rounds {
            let round = self.round(number, &file, &target, &site, &agent)?;
            eprintln!(
                "round {}: {:.3} CPU s/GiB, least parts {:.3}, with the detour {:.3}",
                number + 1,
                round.whole(),
                round.parts.least(),
                round.parts.least() + round.parts.detour()
            );
            rounds.push(round);
        }
        std::fs::remove_file(&file)?;
        let spread = |pick: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(pick));
        let with_detour = |round: &Round| round.parts.least() + round.parts.detour();
        report.row("bytes, rounds", format!("{}, {}", self.bytes, self.rounds));
        report.row("whole push, all processes, CPU s/GiB", spread(&Round::whole));
        report.row("least parts, sum, CPU s/GiB", spread(&|round| round.parts.least()));
        report
            .row("parts of the detour over the cache, sum", spread(&|round| round.parts.detour()));
        report.row("whole / least parts", spread(&|round| round.whole() / round.parts.least()));
        report.row(
            "whole / (least parts + the upload's plain send and receive)",
            spread(&|round| round.whole() / (round.parts.least() + round.parts.upload())),
        );
        report.row(
            "whole / (least parts + detour)",
            spread(&|round| round.whole() / with_detour(round)),
        );
        report.row("flusher threads meanwhile, CPU s/GiB", spread(&|round| round.flush));
        report.row("MB/s, wall, upload included", {
            spread(&|round| self.bytes as f64 / 1e6 / round.seconds)
        });
        let process = |index: usize| {
            let cpu = spread(&|round: &Round| round.processes[index].1);
            vec![rounds[0].processes[index].0.clone(), cpu.to_string()]
        };
        let of_processes: Vec<_> = (0..rounds[0].processes.len()).map(process).collect();
        report.table(&["process", "CPU s/GiB"], &of_processes);
        type Pick = fn(&Parts) -> f64;
        let parts: [(&str, &str, &str, Pick); 7] = [
            ("read from the page cache", "1", "1", |parts| parts.read),
            ("SHA-256 of 16 KiB leaves", "2", "", |parts| parts.hash),
            ("write and fdatasync", "1", "1", |parts| parts.write),
            ("TLS send", "1", "", |parts| parts.tls_send),
            ("TLS receive", "1", "", |parts| parts.tls_receive),
            ("TCP send, plain", "", "1", |parts| parts.tcp_send),
            ("TCP receive, plain", "", "1", |parts| parts.tcp_receive),
        ];
        let parts = parts.map(|(name, least, detour, pick)| {
            let once = spread(&|round| pick(&round.parts)).to_string();
            vec![name.to_owned(), once, least.to_owned(), detour.to_owned()]
        });
        report.table(&["part", "CPU s/GiB, once", "times in the least", "in the detour"], &parts);
        report.note(
            "The whole is `skein push FILE` from this machine to one agent: the file is read and \
             uploaded through the API (plain HTTP on loopback), hashed for its manifest and written \
             into the server's cache as it comes, read from there, sent through TLS, proved block \
             by block and written at the target, flushed twice. The least parts are what a push \
             from host to host could not do without; the detour is what this way does beside them: \
             the upload's hop through a plain socket, and the cache's write and read. Flusher threads write back what both plain writes left dirty; their CPU belongs to \
             neither figure.",
        );
        report.finish(self.out.as_deref())
    }

    fn round(
        &self,
        number: usize,
        file: &Path,
        target: &Path,
        site: &Site,
        agent: &Agent,
    ) -> anyhow::Result<Round> {
        let parts = Parts::measure(file, &self.folder)?;
        let processes: Vec<(String, u32)> =
            site.processes().into_iter().chain(agent.processes()).collect();
        let cpu = || -> anyhow::Result<Vec<u64>> {
            processes.iter().map(|(_, pid)| Ok(Cpu::of(*pid)?.total_us())).collect()
        };
        let (before, children) = (cpu()?, children_us());
        let (mut kernel, started) = (KernelThreads::watch(), Instant::now());
        let to = format!("all:{}/round-{number}/", target.display());
        site.skein(&["push", &file.to_string_lossy(), "--to", &to, "--mkdir"])?;
        let seconds = started.elapsed().as_secs_f64();
        kernel.look();
        let per_gib = |us: u64| us as f64 / 1e6 * GIB / self.bytes as f64;
        let used = cpu()?.into_iter().zip(before).map(|(after, before)| after - before);
        let used = processes.iter().zip(used).map(|((name, _), us)| (name.clone(), per_gib(us)));
        let mut used: Vec<_> = used.collect();
        used.push(("skein push".to_owned(), per_gib(children_us() - children)));
        let received = target.join(format!("round-{number}/push.bin"));
        ensure!(
            sha256_of(&received)? == sha256_of(file)?,
            "the received file differs from its source"
        );
        std::fs::remove_file(&received)?;
        Ok(Round { parts, processes: used, flush: per_gib(kernel.used_us(Work::Flush)), seconds })
    }
}
