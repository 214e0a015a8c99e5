//! The whole way of a log line, from a file on the sender to a file on the receiver, over TLS: us,
//! rsyslog and syslog-ng in turn, on the same lines, CPU of sender and receiver beside each other.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use skein_observe::loggen::LogGen;

use crate::process::Cpu;
use crate::report::{Report, Spread};
use crate::site::Site;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Pipeline {
    /// Lines per round
    #[arg(long, default_value_t = 2_000_000)]
    lines: u64,
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

/// CPU of one round, in microseconds, and its wall time.
#[derive(Debug, Clone, Copy)]
struct Round {
    sender_us: u64,
    receiver_us: u64,
    seconds: f64,
}

type Runner = fn(&Pipeline, &Path, &Path) -> anyhow::Result<Round>;

impl Pipeline {
    /// Runs all and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let mut report =
            Report::new("From a file to a file over TLS: Skein, rsyslog, syslog-ng", &command);
        std::fs::create_dir_all(&self.folder)?;
        let folder = self.folder.canonicalize()?;
        let source = folder.join("pipeline.log");
        let bytes = self.write_source(&source)?;
        report.row("lines per round", self.lines);
        report.row("mean bytes per line", format!("{:.0}", bytes as f64 / self.lines as f64));
        let contenders: [(&str, Runner); 3] =
            [("Skein", Self::skein), ("rsyslog", Self::rsyslog), ("syslog-ng", Self::syslog_ng)];
        let mut rounds = vec![Vec::new(); contenders.len()];
        for number in 0..self.rounds {
            for (index, (name, run)) in contenders.iter().enumerate() {
                let round = run(&self, &source, &folder).with_context(|| name.to_string())?;
                eprintln!("round {number}: {name}: {round:?}");
                rounds[index].push(round);
            }
        }
        let per = |us: u64| us as f64 / self.lines as f64;
        for ((name, _), rounds) in contenders.iter().zip(&rounds) {
            let spread = |pick: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(pick));
            let receiver = spread(&|round| per(round.receiver_us));
            let sender = spread(&|round| per(round.sender_us));
            let both = spread(&|round| per(round.sender_us + round.receiver_us));
            let rate = spread(&|round| self.lines as f64 / round.seconds);
            report.row(&format!("{name}: receiver CPU us per line"), receiver);
            report.row(&format!("{name}: sender CPU us per line"), sender);
            report.row(&format!("{name}: both"), both);
            report.row(&format!("{name}: lines per second, wall"), rate);
        }
        std::fs::remove_file(&source)?;
        report.note(
            "All read a file, send over TLS on loopback and write plain lines. Skein's sender also \
             keeps everything in its spool on disk until the receiver has flushed it, compresses, \
             and proves each line's place; its receiver acknowledges after fdatasync. rsyslog and \
             syslog-ng hold lines in memory and acknowledge nothing.",
        );
        report.finish(self.out.as_deref())
    }

    fn write_source(&self, file: &Path) -> anyhow::Result<u64> {
        let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(file)?);
        let mut generator = LogGen::new(20_261_121);
        let (mut line, mut bytes) = (Vec::new(), 0);
        for _ in 0..self.lines {
            line.clear();
            generator.line(&mut line);
            line.push(b'\n');
            bytes += line.len() as u64;
            out.write_all(&line)?;
        }
        out.flush()?;
        Ok(bytes)
    }

    /// Waits until the files that `find` names have all lines.
    fn wait(&self, find: &dyn Fn() -> Vec<PathBuf>) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            let lines: u64 = find().iter().map(|file| count_lines(file)).sum();
            if lines >= self.lines {
                ensure!(lines == self.lines, "{lines} lines arrived");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "only {lines} of {} lines arrived", self.lines);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn skein(&self, source: &Path, folder: &Path) -> anyhow::Result<Round> {
        let site = Site::start(folder)?;
        site.skein(&["stream", "add", "lines", "--data-id", "1001"])?;
        let server = site.server_pids();
        let before = cpu_of(&server)?;
        let started = Instant::now();
        let tail = format!(
            "[[tail]]\npath = \"{}\"\ndata_id = 1001\nfrom = \"start\"\n",
            source.display()
        );
        let agent = site.agent("agent", &tail)?;
        let sinks = site.path("server/data/sinks");
        self.wait(&|| files_below(&sinks))?;
        let seconds = started.elapsed().as_secs_f64();
        let receiver_us = cpu_of(&server)? - before;
        Ok(Round { sender_us: cpu_of(&agent.pids())?, receiver_us, seconds })
    }

    fn rsyslog(&self, source: &Path, folder: &Path) -> anyhow::Result<Round> {
        let work = tempfile::tempdir_in(folder)?;
        let (dir, port) = (work.path().display().to_string(), free_port()?);
        certificate(work.path())?;
        let modules = self.peers.join("usr/lib/x86_64-linux-gnu/rsyslog").canonicalize()?;
        let receiver = format!(
            "global(workDirectory=\"{dir}\" defaultNetstreamDriver=\"gtls\" \
             defaultNetstreamDriverCAFile=\"{dir}/cert.pem\" \
             defaultNetstreamDriverCertFile=\"{dir}/cert.pem\" \
             defaultNetstreamDriverKeyFile=\"{dir}/key.pem\" maxMessageSize=\"64k\")\n\
             module(load=\"imtcp\" StreamDriver.Name=\"gtls\" StreamDriver.Mode=\"1\" \
             StreamDriver.AuthMode=\"anon\")\n\
             template(name=\"raw\" type=\"string\" string=\"%msg%\\n\")\n\
             input(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\" ruleset=\"out\")\n\
             ruleset(name=\"out\" queue.type=\"linkedList\" queue.size=\"200000\"){{ \
             action(type=\"omfile\" file=\"{dir}/out.log\" template=\"raw\" ioBufferSize=\"256k\") }}\n"
        );
        let sender = format!(
            "global(workDirectory=\"{dir}/state\" defaultNetstreamDriver=\"gtls\" \
             defaultNetstreamDriverCAFile=\"{dir}/cert.pem\" maxMessageSize=\"64k\")\n\
             module(load=\"imfile\" mode=\"inotify\")\n\
             input(type=\"imfile\" file=\"{}\" tag=\"t\" ruleset=\"fwd\")\n\
             ruleset(name=\"fwd\" queue.type=\"linkedList\" queue.size=\"200000\"){{ \
             action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{port}\" protocol=\"tcp\" \
             StreamDriver=\"gtls\" StreamDriverMode=\"1\" StreamDriverAuthMode=\"anon\" \
             template=\"RSYSLOG_SyslogProtocol23Format\") }}\n",
            source.display()
        );
        std::fs::create_dir(work.path().join("state"))?;
        let start = |name: &str, config: &str| -> anyhow::Result<Peer> {
            let file = work.path().join(format!("{name}.conf"));
            std::fs::write(&file, config)?;
            let mut command = self.peer("usr/sbin/rsyslogd")?;
            command.arg("-n").arg("-f").arg(&file).arg("-M").arg(&modules);
            command.arg("-i").arg(work.path().join(format!("{name}.pid")));
            Peer::start(command)
        };
        let receiver = start("receiver", &receiver)?;
        std::thread::sleep(Duration::from_secs(1));
        let started = Instant::now();
        let sender = start("sender", &sender)?;
        self.wait(&|| vec![work.path().join("out.log")])?;
        self.round(started, &sender, &receiver)
    }

    fn syslog_ng(&self, source: &Path, folder: &Path) -> anyhow::Result<Round> {
        let work = tempfile::tempdir_in(folder)?;
        let (dir, port) = (work.path().display().to_string(), free_port()?);
        certificate(work.path())?;
        let head = "@version: 3.38\n@module affile\n@module afsocket\n@module syslogformat\n\
                    options { log-msg-size(65536); flush-lines(1000); stats-freq(0); };\n";
        let receiver = format!(
            "{head}source s {{ network(ip(\"127.0.0.1\") port({port}) transport(\"tls\") \
             flags(no-parse) log-iw-size(100000) tls(key-file(\"{dir}/key.pem\") \
             cert-file(\"{dir}/cert.pem\") peer-verify(optional-untrusted))); }};\n\
             destination d {{ file(\"{dir}/out.log\" template(\"$MSG\\n\")); }};\n\
             log {{ source(s); destination(d); flags(flow-control); }};\n"
        );
        let sender = format!(
            "{head}source s {{ file(\"{}\" flags(no-parse) follow-freq(1) log-iw-size(100000)); }};\n\
             destination d {{ network(\"127.0.0.1\" port({port}) transport(\"tls\") \
             template(\"$MSG\\n\") log-fifo-size(200000) \
             tls(peer-verify(no) ca-file(\"{dir}/cert.pem\"))); }};\n\
             log {{ source(s); destination(d); flags(flow-control); }};\n",
            source.display()
        );
        let modules = self.peers.join("usr/lib/syslog-ng/3.38").canonicalize()?;
        let start = |name: &str, config: &str| -> anyhow::Result<Peer> {
            let own = |kind: &str| work.path().join(format!("{name}.{kind}"));
            std::fs::write(own("conf"), config)?;
            let mut command = self.peer("usr/sbin/syslog-ng")?;
            command.arg("-F").arg("--no-caps").arg("-f").arg(own("conf"));
            command.arg("-p").arg(own("pid")).arg("-c").arg(own("ctl"));
            command.arg("-R").arg(own("persist"));
            command.arg(format!("--module-path={}", modules.display()));
            Peer::start(command)
        };
        let receiver = start("receiver", &receiver)?;
        std::thread::sleep(Duration::from_secs(1));
        let started = Instant::now();
        let sender = start("sender", &sender)?;
        self.wait(&|| vec![work.path().join("out.log")])?;
        self.round(started, &sender, &receiver)
    }

    /// A program of the unpacked packages, with their libraries.
    fn peer(&self, program: &str) -> anyhow::Result<Command> {
        let root = self.peers.canonicalize().context("run perf/peers.sh first")?;
        let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib/syslog-ng", "lib/x86_64-linux-gnu"]
            .map(|below| root.join(below).display().to_string());
        let mut command = Command::new(root.join(program));
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        Ok(command)
    }

    fn round(&self, started: Instant, sender: &Peer, receiver: &Peer) -> anyhow::Result<Round> {
        let seconds = started.elapsed().as_secs_f64();
        let sender_us = Cpu::of(sender.0.id())?.total_us();
        Ok(Round { sender_us, receiver_us: Cpu::of(receiver.0.id())?.total_us(), seconds })
    }
}

/// A peer's process; ends with this value.
struct Peer(Child);

impl Peer {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(quiet.spawn()?))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cpu_of(pids: &[u32]) -> anyhow::Result<u64> {
    pids.iter().map(|pid| Ok(Cpu::of(*pid)?.total_us())).sum()
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn certificate(folder: &Path) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    std::fs::write(folder.join("cert.pem"), made.cert.pem())?;
    Ok(std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?)
}

fn count_lines(file: &Path) -> u64 {
    use std::io::Read;
    let Ok(mut file) = std::fs::File::open(file) else { return 0 };
    let (mut block, mut lines) = (vec![0; 1 << 20], 0);
    while let Ok(bytes @ 1..) = file.read(&mut block) {
        lines += block[..bytes].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    lines
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
