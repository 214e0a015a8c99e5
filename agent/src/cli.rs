//! The command line of `skein-agent`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use skein_observe::loggen::LogGen;
use skein_wire::token::JoinToken;

use crate::config::{self, Config};
use crate::enrol::{self, Application};
use crate::home::{self, Home};
use crate::identity::Identity;
use crate::inputs::emit;
use crate::link::servers::split_port;
use crate::supervisor::{self, EXIT_CONFIG};
use crate::{facts, status, tasks, worker};

/// Skein's agent: runs signed commands, ships records, receives files.
#[derive(Debug, Parser)]
#[command(
    name = "skein-agent",
    version,
    about,
    after_help = "A new host joins in two steps; the first line is printed by `skein server` and \
                  `skein token create`:\n\n  \
                  skein-agent enrol --server skein.example.com --token skein1.…\n  \
                  skein-agent run\n\n\
                  Everything the agent keeps lies in one folder, --home."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct HomeArg {
    /// Folder of this agent: configuration, identity, spool, tasks.
    #[arg(long, env = "SKEIN_AGENT_HOME", default_value = home::DEFAULT, value_name = "DIR")]
    home: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a fleet: get an identity from a server and write agent.toml.
    ///
    /// The server is recognised by the authority whose hash the token carries, so nothing else has
    /// to be copied to this host. An agent that is enrolled already keeps its id and key.
    Enrol(EnrolArgs),
    /// Run the agent in the foreground until it gets SIGTERM or SIGINT.
    ///
    /// A small supervisor keeps one worker running. Scripts that run survive both.
    Run(HomeArg),
    /// Put lines into a lane, acknowledged when they are in the agent's spool.
    #[command(after_help = "Examples:\n  journalctl -f | skein-agent emit --data-id 1001\n  \
                            skein-agent emit --data-id 1002 --generate 1000000 --seed 7")]
    Emit(EmitArgs),
    /// Show whether the agent runs and is connected.
    Status {
        #[command(flatten)]
        home: HomeArg,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print this agent's id.
    Id(HomeArg),
    /// Print a completion script for a shell.
    #[command(after_help = "Example: skein-agent completions bash > \
                            /etc/bash_completion.d/skein-agent")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// The worker, started by the supervisor.
    #[command(hide = true)]
    Worker(HomeArg),
    /// The runner of one script, started by the worker.
    #[command(hide = true)]
    Runner {
        /// Folder of the task.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct EnrolArgs {
    #[command(flatten)]
    home: HomeArg,
    /// Server to join; the port is that of the signal channel [default port: 28668].
    #[arg(long, value_name = "HOST[:PORT]")]
    server: String,
    /// Join token, as the server printed it.
    #[arg(long, env = "SKEIN_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// Label of this host, selectable at the server; repeatable.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Region of this host.
    #[arg(long)]
    region: Option<String>,
    /// Zone of this host.
    #[arg(long)]
    zone: Option<String>,
    /// BlueKing cloud area of this host.
    #[arg(long, value_name = "ID")]
    cloud_id: Option<i32>,
    /// Port of the server for commands and heartbeats, if --server does not say it.
    #[arg(long, value_name = "PORT")]
    signal_port: Option<u16>,
    /// Port of the server for records.
    #[arg(long, value_name = "PORT")]
    data_port: Option<u16>,
    /// Port of the server for files.
    #[arg(long, value_name = "PORT")]
    file_port: Option<u16>,
    /// Address of /metrics, or "off".
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Take a new id and key even if this host has some.
    #[arg(long)]
    new: bool,
}

#[derive(Debug, Args)]
struct EmitArgs {
    #[command(flatten)]
    home: HomeArg,
    /// Lane that gets the lines.
    #[arg(long, value_name = "N")]
    data_id: u32,
    /// Emit this many generated log lines instead of standard input.
    #[arg(long, value_name = "LINES")]
    generate: Option<u64>,
    /// Seed of the generated lines: the same seed gives the same lines.
    #[arg(long, default_value_t = 1, requires = "generate")]
    seed: u64,
    /// Generated lines per second; unlimited when absent.
    #[arg(long, value_name = "LINES", requires = "generate")]
    rate: Option<u64>,
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    if let Some(home) = std::env::var_os(supervisor::SUPERVISE_VARIABLE) {
        return finish(supervisor::run(&Home::new(home)).map_err(Into::into));
    }
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => finish(Err(error)),
    }
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skein-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Enrol(args) => enrol(args)?,
        Command::Run(args) => run(&args.home)?,
        Command::Emit(args) => emit(&args)?,
        Command::Status { home, json } => return status(&Home::new(home.home), json),
        Command::Id(args) => {
            let identity = Identity::load(&Home::new(args.home).identity())?;
            println!("{}", identity.agent_id);
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skein-agent", &mut io::stdout());
        }
        Command::Worker(args) => return Ok(run_worker(&Home::new(args.home))),
        Command::Runner { dir } => {
            // Standard input is the socket to the worker; without one the files are enough.
            let worker = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
            let worker = worker.peer_addr().is_ok().then_some(worker);
            let code = tasks::runner::run(&dir, worker)?;
            return Ok(ExitCode::from(code as u8));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn run(path: &std::path::Path) -> anyhow::Result<()> {
    let home = Home::new(path);
    // Told here, where somebody reads it, rather than by a worker that is started again and again.
    Config::load(&home.config())?;
    Identity::load(&home.identity())?;
    let home = Home::create(path).with_context(|| format!("cannot use {}", path.display()))?;
    Err(supervisor::become_supervisor(&home)).context("cannot start the supervisor")
}

fn run_worker(home: &Home) -> ExitCode {
    match worker::run(home) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the worker cannot go on");
            eprintln!("skein-agent: {error}");
            ExitCode::from(if error.needs_people() { EXIT_CONFIG as u8 } else { 1 })
        }
    }
}

// ---------------------------------------------------------------------- enrol

fn enrol(args: EnrolArgs) -> anyhow::Result<()> {
    let token: JoinToken = args.token.parse()?;
    let home = Home::create(&args.home.home)
        .with_context(|| format!("cannot use {}", args.home.home.display()))?;
    let config = enrol_config(&args, &home)?;
    let previous = if args.new { None } else { Identity::load(&home.identity()).ok() };
    let server = format!("{}:{}", config.servers[0], config.signal_port);
    let application = Application {
        server: server.clone(),
        token,
        previous,
        facts: facts::collect(&config, &facts::Listening::default(), facts::start_ms()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let enrolled = runtime.block_on(enrol::enrol(application));
    let identity = enrolled.with_context(|| format!("cannot enrol at {server}"))?;
    identity.store(&home.identity())?;
    write_config(&config, &home)?;
    println!("agent-id: {}", identity.agent_id);
    println!("Enrolled. Start the agent:  skein-agent run --home {}", home.root().display());
    Ok(())
}

/// The configuration that follows from what is there and what the command line says.
fn enrol_config(args: &EnrolArgs, home: &Home) -> anyhow::Result<Config> {
    let mut config = match Config::load(&home.config()) {
        Ok((config, _)) => config,
        Err(config::ConfigError::Read(_, error)) if error.kind() == io::ErrorKind::NotFound => {
            Config::default()
        }
        Err(error) => return Err(error.into()),
    };
    let (host, port) = split_port(&args.server, args.signal_port.unwrap_or(config::SIGNAL_PORT))
        .with_context(|| format!("--server {:?} is not HOST[:PORT]", args.server))?;
    config.servers = vec![host];
    config.server.clear();
    config.signal_port = port;
    config.data_port = args.data_port.unwrap_or(config.data_port);
    config.file_port = args.file_port.unwrap_or(config.file_port);
    config.cloud_id = args.cloud_id.unwrap_or(config.cloud_id);
    for (given, place) in [
        (&args.region, &mut config.region),
        (&args.zone, &mut config.zone),
        (&args.metrics, &mut config.metrics),
    ] {
        place.clone_from(given.as_ref().unwrap_or(&place.clone()));
    }
    config.labels.extend(parse_labels(&args.labels)?);
    Ok(config)
}

fn parse_labels(labels: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let pair = |label: &String| {
        let (key, value) = label.split_once('=').filter(|(key, _)| !key.is_empty())?;
        Some((key.to_owned(), value.to_owned()))
    };
    let parsed = labels
        .iter()
        .map(|label| pair(label).with_context(|| format!("--label {label:?} is not KEY=VALUE")));
    parsed.collect()
}

/// Writes agent.toml, unless it says all this already. One that people edited is kept aside.
fn write_config(config: &Config, home: &Home) -> anyhow::Result<()> {
    let path = home.config();
    if path.exists() {
        if Config::load(&path).is_ok_and(|(present, _)| present == *config) {
            return Ok(());
        }
        let aside = path.with_extension("toml.before-enrol");
        std::fs::rename(&path, &aside)?;
        println!("The former agent.toml is now {}", aside.display());
    }
    home::write_atomic(&path, 0o600, config::template(config).as_bytes())?;
    Ok(())
}

// ---------------------------------------------------------------------- emit, status

fn emit(args: &EmitArgs) -> anyhow::Result<()> {
    let home = &args.home.home;
    let Some(lines) = args.generate else {
        emit::emit_stdin(home, args.data_id)?;
        return Ok(());
    };
    let began = std::time::Instant::now();
    let input = Generated::new(args.seed, lines, args.rate);
    let (report, ended) = emit::Emitter::new(home, args.data_id).emit(input);
    eprintln!(
        "{} records, {} bytes, {} acknowledged in {:.1} s",
        report.records,
        report.bytes,
        report.acknowledged,
        began.elapsed().as_secs_f64()
    );
    Ok(ended?)
}

/// Log lines from a seed, at a rate, as something to read.
struct Generated {
    lines: LogGen,
    left: u64,
    made: u64,
    rate: Option<u64>,
    began: std::time::Instant,
    buffer: Vec<u8>,
    read: usize,
}

/// Generated at once.
const GENERATED_BYTES: usize = 64 * 1024;
/// A slow stream is generated in steps of this many per second.
const STEPS_PER_SECOND: u64 = 50;

impl Generated {
    fn new(seed: u64, left: u64, rate: Option<u64>) -> Generated {
        Generated {
            lines: LogGen::new(seed),
            left,
            made: 0,
            rate: rate.filter(|rate| *rate > 0),
            began: std::time::Instant::now(),
            buffer: Vec::with_capacity(GENERATED_BYTES + 4096),
            read: 0,
        }
    }

    /// Makes the next lines when their time has come.
    fn fill(&mut self) {
        self.buffer.clear();
        self.read = 0;
        let mut step = self.left;
        if let Some(rate) = self.rate {
            step = step.min((rate / STEPS_PER_SECOND).max(1));
            let due = Duration::from_secs_f64(self.made as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
        while step > 0 && self.buffer.len() < GENERATED_BYTES {
            self.lines.line(&mut self.buffer);
            self.buffer.push(b'\n');
            step -= 1;
            self.left -= 1;
            self.made += 1;
        }
    }
}

impl Read for Generated {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(out)?;
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Generated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.read >= self.buffer.len() {
            self.fill();
        }
        Ok(&self.buffer[self.read..])
    }

    fn consume(&mut self, amount: usize) {
        self.read += amount;
    }
}

/// Exit code 0: connected; 1: it runs without a connection; 2: it does not run.
fn status(home: &Home, json: bool) -> anyhow::Result<ExitCode> {
    let running = supervisor::is_running(&home.pid_file());
    let known = status::read(&home.status_file()).unwrap_or_default();
    let connected = running && known.connected;
    if json {
        let mut value = serde_json::to_value(&known)?;
        value["running"] = running.into();
        value["connected"] = connected.into();
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else if !running {
        println!("not running (home {})", home.root().display());
    } else if connected {
        println!("connected to {} as {}", known.server, known.agent_id);
    } else {
        println!("running, not connected: {}", known.error);
    }
    Ok(ExitCode::from(match (running, connected) {
        (_, true) => 0,
        (true, false) => 1,
        (false, false) => 2,
    }))
}
