//! The worker: puts the agent's parts together and runs them until it is asked to end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skein_observe::names::{Kind, Process};
use skein_wire::ids::Instance;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::{self, ServerClock};
use crate::config::{Config, ConfigError};
use crate::home::Home;
use crate::identity::{Identity, IdentityCell, IdentityError};
use crate::inputs::{AgentInfo, InfoCell};
use crate::link::servers::Servers;
use crate::link::{Dialer, Outbox, SignalLink};
use crate::paths::PathRules;
use crate::status::StatusFile;
use crate::sys::{memory, process};
use crate::{facts, inputs, lanes, mesh, tasks, transfers};

/// Threads for name lookups, the status file and other small waits.
const BLOCKING_THREADS_MAX: usize = 4;
/// They end when idle for this long, so that an idle agent has none.
const BLOCKING_KEEP: Duration = Duration::from_secs(2);
/// By then channels are up or waiting, and the code of the start can go.
const STARTED: Duration = Duration::from_secs(10);
/// Spool and sockets get this long at the end.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// How long the goodbye to the server may take.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// Why a worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// HOME.
    #[error("cannot use {0}: {1}")]
    Home(PathBuf, io::Error),
    /// `agent.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `HOME/identity`.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] crate::spool::SpoolError),
    /// A part of the agent cannot start or has ended.
    #[error("cannot go on without {0}: {1}")]
    Part(&'static str, io::Error),
}

impl WorkerError {
    /// Whether a new worker would fail in the same way.
    pub fn needs_people(&self) -> bool {
        // A spool may be held by an earlier worker that is just ending, a disk may be cleaned up.
        matches!(self, WorkerError::Config(_) | WorkerError::Identity(_))
    }
}

/// Runs a worker to its end.
pub fn run(home: &Home) -> Result<(), WorkerError> {
    process::set_name("skein-agent");
    process::unblock_signals();
    // Folders made for pushes are for all; what is ours lies in folders that are not.
    process::set_umask(0o022);
    // An orphaned worker would stand in the way of the next supervisor's.
    process::die_with_parent(process::SIGTERM);
    let (config, unknown) = Config::load(&home.config())?;
    skein_observe::init_logging("agent", config.log_json);
    for key in unknown {
        tracing::warn!(key, "agent.toml has a key that this version does not know; ignored");
    }
    let home = Home::create(home.root())
        .map_err(|error| WorkerError::Home(home.root().to_owned(), error))?;
    let identity = Identity::load(&home.identity())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP)
        .build()
        .map_err(|error| WorkerError::Part("the runtime", error))?;
    let worked = tokio::task::LocalSet::new().block_on(&runtime, work(home, config, identity));
    runtime.shutdown_timeout(Duration::from_secs(1));
    worked
}

async fn work(home: Home, config: Config, identity: Identity) -> Result<(), WorkerError> {
    let part = |name: &'static str| move |error| WorkerError::Part(name, error);
    let gone = |name| WorkerError::Part(name, io::Error::other("it ended"));
    let mut terminate = signal(SignalKind::terminate()).map_err(part("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(part("signals"))?;
    let config = Arc::new(config);
    let agent_id = identity.agent_id.clone();
    let metrics = start_metrics(&config, &home).await?;
    let (mesh_listener, mesh) = listen_for_agents(&config)?;
    let listening = facts::Listening { metrics, mesh };

    let mut instance = Instance([0; 16]);
    clock::random(&mut instance.0);
    let clock = Arc::new(ServerClock::default());
    let outbox = Outbox::default();
    let servers = Servers::new(&config);
    let dialer = Dialer::new(servers, IdentityCell::new(identity), instance, clock.clone());
    let rules = Arc::new(PathRules::new(&config.paths, home.root()));
    let status = StatusFile::new(home.status_file(), agent_id.as_str(), &listening.metrics);
    status.write_now();
    tracing::info!(agent = %agent_id, version = crate::VERSION, "agent started");

    let (spool, mut spooling) = open_spool(&home, &config, &agent_id)?;
    let info = collectors_info(&config, &dialer);
    let readable = rules.clone();
    let open_file: inputs::OpenFile = Box::new(move |path| {
        let path = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(readable.open_file(path)?.0)
    });
    inputs::start(&config.inputs, &config.tail, &home, &spool, &info, open_file);
    let settings = transfers::Settings {
        dir: home.transfers(),
        limits: config.transfers.clone(),
        mesh: config.mesh.clone(),
        rules: rules.clone(),
        dialer: dialer.clone(),
        outbox: outbox.clone(),
    };
    let transfers = transfers::start(settings, mesh_listener).map_err(part("transfers"))?;
    let (forward, files) = (transfers.clone(), transfers.clone());
    let (tasks, mut task_thread) = tasks::start(tasks::Settings {
        dir: home.tasks(),
        limits: config.tasks.clone(),
        runner: PathBuf::from("/proc/self/exe"),
        outbox: outbox.clone(),
        clock: clock.clone(),
        transfers: Box::new(move |order| forward.order(order)),
    })
    .map_err(part("tasks"))?;
    let totals = spool.clone();
    let (leave, leaving) = tokio::sync::watch::channel(false);
    let link = SignalLink {
        dialer: dialer.clone(),
        outbox,
        tasks: tasks.clone(),
        transfers,
        config: config.clone(),
        listening,
        status: Arc::new(status),
        spool: Box::new(move || totals.totals()),
        identity_dir: home.identity(),
        leaving,
    };
    let linked = tokio::task::spawn_local(link.run());
    tokio::task::spawn_local(lanes::run(spool.clone(), dialer));
    tokio::task::spawn_local(async {
        tokio::time::sleep(STARTED).await;
        memory::forget_start();
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = &mut spooling => return Err(gone("the spool")),
        () = task_thread.ended() => return Err(gone("the task thread")),
        () = files.ended() => return Err(gone("the file thread")),
    }
    tracing::info!("agent ends; scripts go on and are reported by the next one");
    spool.close(CLOSE_TIME).await;
    tasks.stop();
    // The thread may wait for a disk: then its journal is what counts.
    let ended = tokio::task::spawn_blocking(move || task_thread.join());
    let _ = tokio::time::timeout(CLOSE_TIME, ended).await;
    let _ = leave.send(true);
    let _ = tokio::time::timeout(LEAVE_TIME, linked).await;
    Ok(())
}

fn open_spool(
    home: &Home,
    config: &Config,
    agent_id: &skein_wire::ids::AgentId,
) -> Result<(Rc<crate::spool::Spool>, tokio::task::JoinHandle<()>), WorkerError> {
    let place = crate::spool::Place::on_this_host(home.spool());
    let spool = crate::spool::Spool::open(place, &config.spool, agent_id.clone())?;
    let driven = spool.clone();
    let spooling = tokio::task::spawn_local(async move { driven.run().await });
    Ok((spool, spooling))
}

/// What collectors are told, from the host's addresses and the identity as they are when they ask.
fn collectors_info(config: &Arc<Config>, dialer: &Dialer) -> InfoCell {
    let (config, dialer) = (config.clone(), dialer.clone());
    InfoCell::new(move || {
        let identity = dialer.identity().get();
        let ip = facts::ip().unwrap_or_default();
        AgentInfo::new(identity.agent_id.as_str(), &ip, config.cloud_id, &config.inputs)
    })
}

/// Listens for other agents; answers where, none when it is off or no port is free.
fn listen_for_agents(
    config: &Config,
) -> Result<(Option<std::net::TcpListener>, Option<SocketAddr>), WorkerError> {
    match mesh::bind(&config.mesh.place()?) {
        Ok(listener) => {
            let bound = listener.as_ref().and_then(|listener| listener.local_addr().ok());
            Ok((listener, bound))
        }
        Err(error) => {
            // Without it other agents cannot connect here, but this one connects to them.
            tracing::warn!(listen = config.mesh.listen, %error,
                "no port is free for other agents; set mesh.listen in agent.toml");
            Ok((None, None))
        }
    }
}

async fn bind(address: &str) -> io::Result<(TcpListener, String)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?.to_string();
    Ok((listener, bound))
}

/// Starts `/metrics`; answers where it listens, empty when it is off.
async fn start_metrics(config: &Config, home: &Home) -> Result<String, WorkerError> {
    let handle = skein_observe::install();
    // What has not happened is shown as 0, so that its first time shows as a change.
    let plain = skein_observe::names::all().iter().filter(|metric| {
        let counter = matches!(metric.kind, Kind::Counter);
        metric.process == Process::Agent && counter && metric.labels.is_empty()
    });
    plain.for_each(|metric| metrics::counter!(metric.name).increment(0));
    if config.metrics == "off" {
        let _ = std::fs::remove_file(home.ports_file());
        return Ok(String::new());
    }
    let (listener, bound) = match bind(&config.metrics).await {
        Ok(bound) => bound,
        Err(error) => {
            // Whoever has the port may go; the agent's work must not wait for that.
            tracing::error!(address = config.metrics, %error,
                "/metrics cannot listen; set `metrics` in agent.toml to another address or \"off\"");
            return Ok(String::new());
        }
    };
    let ports = serde_json::json!({ "metrics": bound }).to_string();
    crate::home::write_atomic(&home.ports_file(), 0o644, ports.as_bytes())
        .map_err(|error| WorkerError::Part("run/ports.json", error))?;
    tokio::task::spawn_local(skein_observe::serve(listener, handle, || Ok(())));
    Ok(bound)
}
