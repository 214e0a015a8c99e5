//! The whole way of a log line, from a file on the sender to a file on the receiver, over TLS: us,
//! rsyslog and syslog-ng in turn, on the same lines, CPU of sender and receiver beside each other.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use skein_cli::recount::files_below;

use crate::lines::{Lines, read_samples};
use crate::peers::{self, Kind, Peers};
use crate::process::Cpu;
use crate::report::{Report, Spread};
use crate::site::Site;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Pipeline {
    /// Lines per round
    #[arg(long, default_value_t = 2_000_000)]
    lines: u64,
    /// Real log lines instead of generated ones: a file, or a folder of .log files
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Rounds of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Root of unpacked rsyslog and syslog-ng packages, from perf/peers.sh
    #[arg(long, default_value = "target/perf/peers/root")]
    peers: PathBuf,
    /// Folder on the disk to write to
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Longest wait for all lines of a round.
const WAIT: Duration = Duration::from_secs(600);

/// CPU of one round, in microseconds, and its wall time.
#[derive(Debug, Clone, Copy)]
struct Round {
    sender_us: u64,
    receiver_us: u64,
    seconds: f64,
    /// Whether the lines that arrived are those that were sent, byte for byte.
    same: bool,
}

/// Lines regardless of their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct LineSet {
    lines: u64,
    bytes: u64,
    hashes: u64,
}

/// Who takes part.
#[derive(Debug, Clone, Copy)]
enum Contender {
    Skein,
    Peer(Kind),
}

impl Pipeline {
    /// Runs all and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let mut report = Report::new("From a file to a file over TLS: Skein, rsyslog, syslog-ng");
        std::fs::create_dir_all(&self.folder)?;
        let folder = self.folder.canonicalize()?;
        let source = folder.join("pipeline.log");
        let sent = self.write_source(&source)?;
        let contenders = [
            ("Skein".to_owned(), Contender::Skein),
            (peers::version(Kind::Rsyslog, &self.peers)?, Contender::Peer(Kind::Rsyslog)),
            (peers::version(Kind::SyslogNg, &self.peers)?, Contender::Peer(Kind::SyslogNg)),
        ];
        let mut rounds = vec![Vec::new(); contenders.len()];
        for number in 0..self.rounds {
            for (index, (name, contender)) in contenders.iter().enumerate() {
                let round = self.round(*contender, &source, &sent, &folder);
                let round = round.with_context(|| name.clone())?;
                eprintln!("round {}: {name}: {round:?}", number + 1);
                rounds[index].push(round);
            }
        }
        std::fs::remove_file(&source)?;
        report.row("lines per round, rounds", format!("{}, {}", self.lines, self.rounds));
        report.row("mean bytes per line", {
            format!("{:.0}", (sent.bytes / sent.lines.max(1)) as f64)
        });
        let both = |round: &Round| (round.sender_us + round.receiver_us) as f64;
        for (index, (name, _)) in contenders.iter().enumerate().skip(1) {
            let pairs = rounds[index].iter().zip(&rounds[0]);
            let ratio = Spread::of(pairs.map(|(peer, own)| both(peer) / both(own)));
            report.row(&format!("{name} / Skein, CPU of sender and receiver"), ratio);
        }
        let per = |us: f64| us / self.lines as f64;
        let rows = contenders.iter().zip(&rounds).map(|((name, _), rounds)| {
            let spread =
                |pick: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(pick)).to_string();
            vec![
                name.clone(),
                spread(&|round| per(round.sender_us as f64)),
                spread(&|round| per(round.receiver_us as f64)),
                spread(&|round| per(both(round))),
                spread(&|round| self.lines as f64 / round.seconds),
                if rounds.iter().all(|round| round.same) { "same bytes" } else { "same number" }
                    .to_owned(),
            ]
        });
        report.table(
            &[
                "who",
                "sender CPU us/line",
                "receiver CPU us/line",
                "both",
                "lines/s, wall",
                "lines that arrived",
            ],
            &rows.collect::<Vec<_>>(),
        );
        report.note(
            "All read the same file from its start, send over TLS on loopback and write plain lines \
             into a file, which is read again: a round counts only when every line has arrived. \
             CPU is user and system time of the processes from their start; Skein's server, which has to \
             run when its agent enrols, counts from the start of the agent. Skein's sender also \
             keeps everything in its spool on disk until the receiver has flushed it, compresses, \
             and proves each line's place; its receiver acknowledges after fdatasync; all processes \
             of the server count. rsyslog and syslog-ng hold lines in memory and acknowledge \
             nothing.",
        );
        report.finish(self.out.as_deref())
    }

    fn write_source(&self, file: &Path) -> anyhow::Result<LineSet> {
        let samples = self.corpus.as_deref().map(read_samples).transpose()?.map(Arc::new);
        let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(file)?);
        let mut lines = Lines::new(20_261_121, samples);
        let (mut line, mut set) = (Vec::new(), LineSet::default());
        for _ in 0..self.lines {
            line.clear();
            lines.next(&mut line);
            set.add(&line);
            line.push(b'\n');
            out.write_all(&line)?;
        }
        out.flush()?;
        Ok(set)
    }

    fn round(
        &self,
        contender: Contender,
        source: &Path,
        sent: &LineSet,
        folder: &Path,
    ) -> anyhow::Result<Round> {
        match contender {
            Contender::Skein => self.skein(source, sent, folder),
            Contender::Peer(kind) => {
                let work = tempfile::tempdir_in(folder)?;
                let peers = Peers::start(kind, &self.peers, source, work.path())?;
                self.wait(&|| Ok(vec![peers.out.clone()])).with_context(|| said(work.path()))?;
                let seconds = peers.started.elapsed().as_secs_f64();
                let [sender_us, receiver_us] = peers.cpu_us()?;
                let same = arrived(std::slice::from_ref(&peers.out), sent)?;
                Ok(Round { sender_us, receiver_us, seconds, same })
            }
        }
    }

    fn skein(&self, source: &Path, sent: &LineSet, folder: &Path) -> anyhow::Result<Round> {
        let site = Site::start(folder)?;
        site.skein(&["stream", "add", "lines", "--data-id", "1001"])?;
        let tail = format!(
            "[[tail]]\npath = \"{}\"\ndata_id = 1001\nfrom = \"start\"\n",
            source.display()
        );
        let home = site.enrol("agent", &tail)?;
        let server = site.server_pids();
        let before = cpu_of(&server)?;
        let agent = site.start_agent(&home)?;
        let sinks = site.path("server/data/sinks");
        self.wait(&|| Ok(files_below(&sinks)?))?;
        let seconds = agent.started.elapsed().as_secs_f64();
        let (sender_us, receiver_us) = (cpu_of(&agent.pids())?, cpu_of(&server)? - before);
        let same = arrived(&files_below(&sinks)?, sent)?;
        Ok(Round { sender_us, receiver_us, seconds, same })
    }

    /// Waits until the files that `find` names have all lines; what was counted once is not read
    /// again.
    fn wait(&self, find: &dyn Fn() -> anyhow::Result<Vec<PathBuf>>) -> anyhow::Result<()> {
        let deadline = Instant::now() + WAIT;
        let (mut counted, mut lines) = (HashMap::new(), 0);
        loop {
            for file in find()? {
                let at = counted.entry(file.clone()).or_insert(0);
                lines += count_from(&file, at).unwrap_or(0);
            }
            if lines >= self.lines {
                ensure!(lines == self.lines, "{lines} lines of {} arrived", self.lines);
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "only {lines} of {} lines arrived", self.lines);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl LineSet {
    fn add(&mut self, line: &[u8]) {
        let mut hasher = DefaultHasher::new();
        hasher.write(line);
        self.lines += 1;
        self.bytes += line.len() as u64 + 1;
        self.hashes = self.hashes.wrapping_add(hasher.finish());
    }
}

/// Whether all lines are those that were sent; an error when their number differs.
fn arrived(files: &[PathBuf], sent: &LineSet) -> anyhow::Result<bool> {
    let (mut set, mut line) = (LineSet::default(), Vec::new());
    for file in files {
        let mut reader = BufReader::with_capacity(1 << 20, std::fs::File::open(file)?);
        loop {
            line.clear();
            // Space that was reserved beyond the last line is zeros without a line end.
            if reader.read_until(b'\n', &mut line)? == 0 || line.pop() != Some(b'\n') {
                break;
            }
            set.add(&line);
        }
    }
    ensure!(set.lines == sent.lines, "{} lines of {} arrived", set.lines, sent.lines);
    Ok(set == *sent)
}

/// Counts line ends from `at`, which moves behind the last one.
fn count_from(file: &Path, at: &mut u64) -> std::io::Result<u64> {
    let mut file = std::fs::File::open(file)?;
    file.seek(SeekFrom::Start(*at))?;
    let (mut block, mut lines, mut position) = (vec![0; 1 << 20], 0, *at);
    loop {
        let length = file.read(&mut block)?;
        if length == 0 {
            return Ok(lines);
        }
        lines += block[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
        if let Some(last) = block[..length].iter().rposition(|byte| *byte == b'\n') {
            *at = position + last as u64 + 1;
        }
        position += length as u64;
    }
}

/// What peers said, for an error.
fn said(work: &Path) -> String {
    let text = |name: &str| std::fs::read_to_string(work.join(name)).unwrap_or_default();
    format!("receiver: {} sender: {}", text("receiver.out"), text("sender.out"))
}

fn cpu_of(pids: &[u32]) -> anyhow::Result<u64> {
    pids.iter().map(|pid| Ok(Cpu::of(*pid)?.total_us())).sum()
}
