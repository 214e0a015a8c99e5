//! kill -9 in full flow, many times, of one role of a real site, and an account of every record at
//! the end. The moments come from a seed, which is printed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use skein_cli::guard::{self, Signal};
use skein_cli::local::{AgentOptions, Binaries, LocalAgent, LocalServer, ServerOptions, wait_for};
use skein_controlplane::api::types::{
    AgentState, Route, RouteRequest, Status, Stream, StreamRequest,
};
use skein_observe::loggen::LogGen;

use crate::ledger::{Ledger, Verdict};
use crate::report::{Report, Spread};

mod direct;

const DATA_ID: u32 = 1001;

/// Longest wait for anything: then the run has failed.
const WAIT: Duration = Duration::from_secs(60);

/// Kills between two sweeps of closed files; each sweep must find more records than the last.
const SWEEP_KILLS: u64 = 25;

/// Whom to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// The data process.
    Data,
    /// The control process.
    Control,
    /// An agent, supervisor and worker at once; agents in turn.
    Agent,
}

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Kills {
    /// Whom to kill
    #[arg(long)]
    role: Role,
    /// How often
    #[arg(long, default_value_t = 1000)]
    kills: u64,
    /// Decides the moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Agents
    #[arg(long, default_value_t = 4)]
    agents: usize,
    /// In role data: senders that speak the protocol and reconnect at once instead of real agents,
    /// whose back-off makes kills rare (only the data process runs then)
    #[arg(long)]
    direct: bool,
    /// Lines per second that a program on each agent's host logs
    #[arg(long, default_value_t = 2500)]
    rate: u64,
    /// Longest pause between all being well and the next kill, in milliseconds
    #[arg(long, default_value_t = 500)]
    pause: u64,
    /// Size at which sink files are closed; closed ones are counted and deleted on the way
    #[arg(long, default_value_t = 8 << 20)]
    rotate_bytes: u64,
    /// The server's disk driver: plain or glommio
    #[arg(long, default_value = "plain")]
    disk: String,
    /// Folder for the site
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Kills {
    /// Runs and reports; an error when a record is lost or repeated.
    pub fn run(self) -> anyhow::Result<()> {
        let mut report = Report::new(&format!("kill -9 of {:?}, {} times", self.role, self.kills));
        eprintln!("seed {}", self.seed);
        std::fs::create_dir_all(&self.folder)?;
        if self.direct {
            ensure!(self.role == Role::Data, "--direct is for role data");
            let verdict = direct::torture(&self, &mut report);
            report.finish(self.out.as_deref())?;
            return verdict;
        }
        let parent = self.folder.canonicalize()?;
        let dir = tempfile::Builder::new().prefix("skein-kills-").tempdir_in(parent)?;
        let ended = self.torture(dir.path(), &mut report);
        if ended.is_err() {
            eprintln!("kept for a look: {}", dir.keep().display());
        }
        report.finish(self.out.as_deref())?;
        ended
    }

    fn torture(&self, dir: &Path, report: &mut Report) -> anyhow::Result<()> {
        let binaries = Binaries::beside(&std::env::current_exe()?.with_file_name("skein"))?;
        let config = format!("restart_pause_ms_max = 100\n[data]\ndisk = \"{}\"\n", self.disk);
        let options = ServerOptions { config, ..ServerOptions::default() };
        let server = LocalServer::start(&binaries, &dir.join("server"), &options)?;
        let sink = self.stream(&server)?;
        let mut agents = Vec::new();
        for index in 0..self.agents {
            let host = dir.join(format!("host-{index}"));
            agents.push(enrol(&binaries, &server, &host)?);
        }
        for agent in &mut agents {
            agent.run()?;
        }
        wait_online(&server, &agents, agents.len())?;
        let data = server.data_pid()?;
        let loggers = agents.iter().map(|agent| Logger::start(agent, self.rate));
        let loggers: Vec<Logger> = loggers.collect::<Result<_, _>>()?;

        let (mut random, mut ledger) = (Random(self.seed), Ledger::new(true));
        let (mut known, mut backs) = (0, Vec::new());
        let started = Instant::now();
        for kill in 1..=self.kills {
            std::thread::sleep(Duration::from_millis(random.below(self.pause.max(1))));
            let killed = Instant::now();
            self.kill(&server, &mut agents, kill)
                .with_context(|| format!("kill {kill}; server:\n  {}", server.log_tail()))?;
            backs.push(killed.elapsed().as_secs_f64() * 1e3);
            if kill % SWEEP_KILLS == 0 || kill == self.kills {
                ledger.sweep(&sink)?;
                let now = ledger.with_rest(&sink)?.unique();
                ensure!(now > known, "no record was stored during {SWEEP_KILLS} kills");
                known = now;
                let rate = kill as f64 / started.elapsed().as_secs_f64();
                eprintln!("{kill} kills, {rate:.2} a second, {known} records in the files");
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let mut expected = Vec::new();
        for (agent, logger) in agents.iter().zip(loggers) {
            expected.push((agent.id().to_owned(), logger.finish()?));
        }
        let lines: u64 = expected.iter().map(|(_, lines)| lines).sum();
        let deadline = Instant::now() + WAIT;
        let ledger = loop {
            let all = ledger.with_rest(&sink)?;
            if all.unique() >= lines || Instant::now() > deadline {
                break all;
            }
            std::thread::sleep(Duration::from_millis(500));
        };
        let verdict = ledger.verdict(&expected);
        self.account(report, seconds, backs, &ledger, &verdict);
        if self.role != Role::Data {
            ensure!(server.data_pid()? == data, "the data process was restarted, unasked");
        }
        ensure!(verdict.is_clean(), "records were lost or repeated: {verdict:?}");
        Ok(())
    }

    /// What is said of a run, however it was done.
    fn account(
        &self,
        report: &mut Report,
        seconds: f64,
        backs: Vec<f64>,
        ledger: &Ledger,
        verdict: &Verdict,
    ) {
        report.row("role, seed, senders, disk driver", {
            let senders = if self.direct { "direct" } else { "agents" };
            format!("{:?}, {}, {} {senders}, {}", self.role, self.seed, self.agents, self.disk)
        });
        report.row("kills per second", format!("{:.2}", self.kills as f64 / seconds));
        report.row("ms from a kill until it is back and records flow", Spread::of(backs));
        report.row("sink files counted and deleted on the way", {
            format!("{} of {} MiB together", ledger.files, ledger.bytes >> 20)
        });
        report.table(
            &["kills", "records written", "stored", "lost", "duplicates", "damaged lines"],
            &[[
                self.kills,
                verdict.expected,
                verdict.stored,
                verdict.lost,
                verdict.duplicates,
                verdict.malformed,
            ]
            .map(|number| number.to_string())
            .to_vec()],
        );
        report.note(
            "Recounted from the sink files by (agent, data id, epoch, sequence), and, with real \
             agents, by the number that each line was written with.",
        );
    }

    fn stream(&self, server: &LocalServer) -> anyhow::Result<PathBuf> {
        let request = StreamRequest {
            name: "logs".to_owned(),
            path_template: Some("{data_id}/{writer}.log".to_owned()),
            format: Some("tagged".to_owned()),
            rotate_bytes: Some(self.rotate_bytes),
            ..StreamRequest::default()
        };
        let stream: Stream = server.client().post("/streams", &request)?;
        let request =
            RouteRequest { stream: "logs".to_owned(), data_id: Some(DATA_ID), name: None };
        let _: Route = server.client().post("/routes", &request)?;
        Ok(PathBuf::from(stream.directory))
    }

    /// One kill, and what was killed is back: for the data process that is when half of the agents
    /// are, since their back-off spreads over many seconds when kills are frequent.
    fn kill(
        &self,
        server: &LocalServer,
        agents: &mut [LocalAgent],
        number: u64,
    ) -> anyhow::Result<()> {
        match self.role {
            Role::Data => {
                let pid = server.data_pid()?;
                ensure!(guard::signal(pid, Signal::Kill), "data process {pid} is gone already");
                let data = |status: &Status| status.data_processes.first().map(|data| data.pid);
                server.wait_restarted(pid, data)?;
                wait_online(server, agents, agents.len().div_ceil(2))
            }
            Role::Control => {
                let pid = server.control_pid()?;
                ensure!(guard::signal(pid, Signal::Kill), "control {pid} is gone already");
                server.wait_restarted(pid, |status| Some(status.pid))?;
                wait_online(server, agents, agents.len())
            }
            Role::Agent => {
                let agent = &mut agents[(number % self.agents as u64) as usize];
                ensure!(!agent.pids().is_empty(), "the agent is gone already");
                let since = |agent: &LocalAgent| -> Option<i64> {
                    let known = server.client().agents("all").ok()?;
                    let view = known.into_iter().find(|view| view.agent_id == agent.id())?;
                    (view.state == AgentState::Online).then_some(view.state_since_ms)
                };
                let before = since(agent);
                agent.kill();
                agent.run()?;
                // Online since another moment: what is seen is not what was killed.
                let again = || since(agent).filter(|now| Some(*now) != before);
                wait_for("the killed agent to be online again", WAIT, again)?;
                Ok(())
            }
        }
    }
}

/// An agent that tails the logs of its host.
fn enrol(binaries: &Binaries, server: &LocalServer, host: &Path) -> anyhow::Result<LocalAgent> {
    let config = format!(
        "[[tail]]\npath = \"{}/logs/*.log\"\ndata_id = {DATA_ID}\nfrom = \"start\"\n",
        host.display()
    );
    let options = AgentOptions { config, ..AgentOptions::default() };
    Ok(LocalAgent::enrol(binaries, host, server, &server.token(1)?, &options)?)
}

/// Waits until so many of these agents are online.
fn wait_online(server: &LocalServer, agents: &[LocalAgent], count: usize) -> anyhow::Result<()> {
    let online = || {
        let known = server.client().agents("all").ok()?;
        let is_online = |agent: &LocalAgent| {
            known.iter().any(|view| view.agent_id == agent.id() && view.state == AgentState::Online)
        };
        (agents.iter().filter(|agent| is_online(agent)).count() >= count).then_some(())
    };
    Ok(wait_for("agents to be online", WAIT, online)?)
}

/// splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// A program that logs numbered lines until told to end.
struct Logger {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Logger {
    fn start(agent: &LocalAgent, rate: u64) -> anyhow::Result<Self> {
        let path = agent.logs().join("app.log");
        let mut file = std::fs::File::options().create(true).append(true).open(path)?;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), written.clone());
        let burst = (rate / 50).max(1);
        let thread = std::thread::spawn(move || {
            let (mut generator, mut lines, mut number) = (LogGen::new(rate), Vec::new(), 0u64);
            while !stopped.load(Ordering::SeqCst) {
                lines.clear();
                for _ in 0..burst {
                    lines.extend_from_slice(format!("{number} ").as_bytes());
                    generator.line(&mut lines);
                    lines.push(b'\n');
                    number += 1;
                }
                file.write_all(&lines)?;
                count.store(number, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Ok(Self { stop, written, thread })
    }

    /// Ends it and answers with the number of lines.
    fn finish(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("a logger panicked"))??;
        Ok(self.written.load(Ordering::SeqCst))
    }
}
