//! The data process: puts the parts together, keeps them running, and ends them in the order in
//! which nothing is lost.
//!
//! ```text
//! SIGTERM ─► agents are told to go elsewhere ─► routers store and acknowledge what they hold
//!         ─► shards send the acknowledgements and close ─► end
//! ```

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, bail};
use metrics::gauge;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skein_observe::names;
use skein_wire::fleet::v1::TableApplied;
use skein_wire::fleet::v1::from_data::Kind;
use skein_wire::hello::ChannelKind;
use skein_wire::prost::Message;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::DataConfig;
use crate::directory::Directory;
use crate::driver::{self, ShardParts, unix_ms};
use crate::files::{FilePool, FileService};
use crate::fleet::{FleetLink, FleetSender, LaneBoard, RegisterInfo, persist};
use crate::limits::{MAILBOX_LEN, REPORTS_LEN};
use crate::ports::Ports;
use crate::router::{self, RouterConfig, RouterReport, ToRouter};
use crate::session::{Liveness, Shared};
use crate::shard::ShardMail;
use crate::tls::TlsAcceptor;

/// How long a first start waits for the control process to write the certificate.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(60);

/// Between the farewell to agents and the stop of the routers: what is on the way still arrives.
const FAREWELL: Duration = Duration::from_millis(300);

/// How long routers may take to store what they hold.
const DRAIN_TIME: Duration = Duration::from_secs(20);

/// Descriptors beside those of sessions: sinks, transfers, store files, libraries.
const OTHER_FILES: u64 = 1_024;

/// Runs a data process until SIGTERM or SIGINT. Logging is the caller's.
pub fn run_data(config: DataConfig) -> anyhow::Result<()> {
    let process = DataProcess::start(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reason = runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        io::Result::Ok(tokio::select! {
            _ = term.recv() => None,
            _ = interrupt.recv() => None,
            fault = process.fault() => Some(fault),
        })
    })?;
    match reason {
        None => process.stop(),
        // Threads may be stuck: end at once, the supervisor starts another process.
        Some(fault) => bail!(fault),
    }
}

/// A running data process.
pub struct DataProcess {
    ports: Ports,
    shared: Arc<Shared>,
    shards: Vec<JoinHandle<io::Result<()>>>,
    router: router::Started,
    office: JoinHandle<()>,
    stop: watch::Sender<bool>,
    fault: watch::Receiver<Option<String>>,
}

impl DataProcess {
    /// Starts all threads. Returns when agents can connect.
    pub fn start(config: DataConfig) -> anyhow::Result<Self> {
        let handle = skein_observe::install();
        let own_dir = config.own_dir();
        let run_dir = config.data_dir.join("run");
        for dir in [&own_dir, &own_dir.join("checkpoints"), &run_dir] {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let sessions_max = raise_file_limit(config.sessions_max);
        let tls = wait_for_certificate(&own_dir)?;

        let shards = config.shard_count();
        let wanted = [
            (ChannelKind::Signal, config.signal_listen),
            (ChannelKind::Data, config.data_listen),
            (ChannelKind::File, config.file_listen),
        ];
        let (listeners, bound) = driver::bind_all(shards, &wanted)?;
        let metrics_listener = match config.metrics_listen {
            Some(address) => Some(
                std::net::TcpListener::bind(address)
                    .with_context(|| format!("cannot listen on {address} for metrics"))?,
            ),
            None => None,
        };
        let metrics = metrics_listener.as_ref().map(|l| l.local_addr()).transpose()?;
        let ports = Ports { signal: bound[0].1, data: bound[1].1, file: bound[2].1, metrics };

        let (senders, mailboxes): (Vec<_>, Vec<_>) =
            (0..shards).map(|_| flume::bounded(MAILBOX_LEN)).unzip();
        let (link, fleet) = FleetLink::new();
        let pool = FilePool::start(config.file_threads).context("cannot start file threads")?;
        let files = FileService::new(pool, fleet.clone(), senders.clone());
        let (reports_in, reports) = flume::bounded(REPORTS_LEN);
        let workers = config.worker_count();
        let router_config = RouterConfig {
            workers,
            checkpoints: own_dir.join("checkpoints"),
            queue_bytes: config.router_queue_bytes / workers,
            disk: config.disk,
            limits: router::Limits::default(),
        };
        let router = router::start(router_config, senders.clone(), reports_in)
            .context("cannot start the router")?;

        let directory = Arc::new(Directory::default());
        if let Some(revoked) = persist::load_revoked(&own_dir) {
            directory.set_revoked(persist::revoked_set(&revoked));
        }
        if let Some(table) = persist::load_table(&own_dir) {
            let table = Arc::new(table);
            router.handle.broadcast(|| ToRouter::Table(table.clone()));
        }
        let shared = Arc::new(Shared {
            directory,
            fleet: fleet.clone(),
            router: router.handle.clone(),
            files,
            shards: senders,
            liveness: Liveness::default(),
            draining: AtomicBool::new(false),
            session_ids: AtomicU64::new((unix_ms() as u64) << 20),
        });

        let (fault_in, fault) = watch::channel(None);
        let mut threads = Vec::new();
        for (number, (listeners, mailbox)) in listeners.into_iter().zip(mailboxes).enumerate() {
            let parts = ShardParts {
                number: u16::try_from(number).context("too many shards")?,
                listeners,
                mailbox,
                shared: shared.clone(),
                tls: tls.clone(),
                sessions_max, // the kernel does not spread them evenly
            };
            let thread = thread::Builder::new().name(format!("shard-{number}"));
            let fault = fault_in.clone();
            threads.push(thread.spawn(move || watched(parts, &fault))?);
        }

        let register = RegisterInfo {
            node_id: config.node_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            shards: shards as u32,
            signal_addr: ports.signal.to_string(),
            data_addr: ports.data.to_string(),
            file_addr: ports.file.to_string(),
            metrics_addr: ports.metrics.map(|address| address.to_string()).unwrap_or_default(),
            disk_driver: router.disk_driver(),
        };
        let (stop, stopped) = watch::channel(false);
        let office = Office {
            shared: shared.clone(),
            fleet,
            link,
            register,
            socket: config.fleet_socket(),
            own_dir,
            reports,
            metrics: metrics_listener.map(|listener| (listener, handle)),
            stopped,
            fault: fault_in,
        };
        // Before control hears of this process: whoever learns from control that it is there finds it.
        ports.write(&run_dir).context("cannot write data.ports.json")?;
        let office = thread::Builder::new().name("office".to_owned()).spawn(|| office.run())?;
        tracing::info!(signal = %ports.signal, data = %ports.data, file = %ports.file, "agents can connect");
        Ok(Self { ports, shared, shards: threads, router, office, stop, fault })
    }

    /// Where it listens.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Waits for a fault after which the process must end.
    pub async fn fault(&self) -> String {
        let mut fault = self.fault.clone();
        match fault.wait_for(Option::is_some).await {
            Ok(fault) => fault.clone().unwrap_or_default(),
            Err(_) => "the office thread ended".to_owned(),
        }
    }

    /// Ends everything in order: what was received is stored and acknowledged.
    pub fn stop(self) -> anyhow::Result<()> {
        tracing::info!("stopping: agents are told, what was received is stored");
        let Self { shared, shards, router, office, stop, .. } = self;
        shared.draining.store(true, Ordering::Relaxed);
        mail_all(&shared, || ShardMail::GoAway);
        thread::sleep(FAREWELL);
        mail_all(&shared, || ShardMail::StopData);
        shared.router.broadcast(|| ToRouter::Stop);
        if !router.join(DRAIN_TIME) {
            tracing::error!("routers did not end in time; agents will send the rest again");
        }
        // Behind the acknowledgements in every mailbox.
        mail_all(&shared, || ShardMail::Shutdown);
        for shard in shards {
            match shard.join() {
                Ok(result) => result.context("a shard ended badly")?,
                Err(_) => bail!("a shard panicked"),
            }
        }
        let _ = stop.send(true);
        let _ = office.join();
        Ok(())
    }
}

/// Runs a shard. One that ends badly takes the process with it: its agents would otherwise connect
/// to a port that nobody serves.
fn watched(parts: ShardParts, fault: &watch::Sender<Option<String>>) -> io::Result<()> {
    let number = parts.number;
    let run = AssertUnwindSafe(|| driver::run(parts));
    let result = catch_unwind(run).unwrap_or_else(|_| Err(io::Error::other("panicked")));
    if let Err(error) = &result {
        raise(fault, format!("shard {number} ended: {error}"));
    }
    result
}

fn mail_all(shared: &Shared, mail: impl Fn() -> ShardMail) {
    for shard in &shared.shards {
        let _ = shard.send(mail()); // fails when that shard has ended
    }
}

/// The thread for everything that is not a byte's way: link, reports, metrics, expiry.
struct Office {
    shared: Arc<Shared>,
    fleet: FleetSender,
    link: FleetLink,
    register: RegisterInfo,
    socket: std::path::PathBuf,
    own_dir: std::path::PathBuf,
    reports: flume::Receiver<RouterReport>,
    metrics: Option<(std::net::TcpListener, skein_observe::Handle)>,
    stopped: watch::Receiver<bool>,
    fault: watch::Sender<Option<String>>,
}

impl Office {
    fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.work()),
            Err(error) => tracing::error!(%error, "no runtime for the link to control"),
        }
    }

    async fn work(self) {
        let Self { shared, fleet, link, register, socket, own_dir, reports, .. } = self;
        let (metrics, mut stopped, fault) = (self.metrics, self.stopped, self.fault);
        tokio::select! {
            () = link.run(socket, own_dir, register, shared.clone()) => {}
            () = forward(reports, fleet, fault) => {}
            () = serve_metrics(metrics, shared.clone()) => {}
            () = sweep(shared) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
}

/// Router reports become messages for control.
async fn forward(
    reports: flume::Receiver<RouterReport>,
    fleet: FleetSender,
    fault: watch::Sender<Option<String>>,
) {
    let mut board = LaneBoard::default();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let report = tokio::select! {
            report = reports.recv_async() => report,
            _ = second.tick() => {
                board.repeat(&fleet);
                continue;
            }
        };
        // The workers have ended when there is no sender; the office stays open.
        let Ok(report) = report else { return std::future::pending().await };
        match report {
            RouterReport::Lanes(lanes) => board.changed(lanes, &fleet),
            RouterReport::Tap(records) => {
                let bytes = records.encoded_len();
                fleet.push(Kind::Tap(records), bytes);
            }
            RouterReport::TableApplied(revision) => {
                fleet.push(Kind::TableApplied(TableApplied { revision }), 0);
            }
            RouterReport::Failed { worker, error } => {
                raise(&fault, format!("router worker {worker} failed: {error}"));
            }
        }
    }
}

/// Asks for the end of the process; the first reason counts.
fn raise(fault: &watch::Sender<Option<String>>, reason: String) {
    tracing::error!(reason, "this process must end");
    fault.send_if_modified(|known| known.is_none() && known.replace(reason).is_none());
}

async fn serve_metrics(
    metrics: Option<(std::net::TcpListener, skein_observe::Handle)>,
    shared: Arc<Shared>,
) {
    let Some((listener, handle)) = metrics else { return std::future::pending().await };
    let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    match listener {
        Ok(listener) => {
            let ready = move || {
                let draining = shared.draining.load(Ordering::Relaxed);
                if draining { Err("the process goes away".to_owned()) } else { Ok(()) }
            };
            skein_observe::serve(listener, handle, ready).await;
        }
        Err(error) => tracing::error!(%error, "metrics are not served"),
    }
    std::future::pending().await
}

/// Once a second: expired transfers, depths of queues.
async fn sweep(shared: Arc<Shared>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        shared.files.sweep(unix_ms());
        shared.files.report_sent();
        for worker in 0..shared.router.workers() {
            let (bytes, messages) = shared.router.depth(worker);
            let label = worker.to_string();
            gauge!(names::DATA_ROUTER_QUEUE_BYTES, "worker" => label.clone()).set(bytes as f64);
            gauge!(names::DATA_ROUTER_QUEUE_MESSAGES, "worker" => label).set(messages as f64);
        }
    }
}

/// The control process writes the certificate at its first start, perhaps just now.
fn wait_for_certificate(dir: &Path) -> anyhow::Result<TlsAcceptor> {
    let (cert, key, ca) = (dir.join("server.crt"), dir.join("server.key"), dir.join("ca.crt"));
    let pause = Duration::from_millis(100);
    let mut waited = Duration::ZERO;
    loop {
        // Written one after the other: all must be there and fit.
        match TlsAcceptor::from_files(&cert, &key, &ca) {
            Ok(acceptor) => return Ok(acceptor),
            Err(error) if waited >= CERTIFICATE_WAIT => return Err(error.into()),
            Err(error) if waited.is_zero() => tracing::info!(%error, "waiting for the certificate"),
            Err(_) => {}
        }
        thread::sleep(pause);
        waited += pause;
    }
}

/// Raises the limit of open files as far as needed and allowed; returns how many sessions fit.
fn raise_file_limit(sessions: usize) -> usize {
    let wanted = sessions as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current < wanted {
        let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..limit });
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let fit = current.saturating_sub(OTHER_FILES.min(current / 2));
    let fit = usize::try_from(fit).unwrap_or(usize::MAX);
    if fit < sessions {
        tracing::warn!(fit, "the limit of open files allows fewer sessions; raise it (ulimit -n)");
    }
    fit.min(sessions)
}
