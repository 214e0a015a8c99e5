//! The control process: from a folder to a running service, and down again in good order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use skein_observe::names;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::api::{self, ApiCertificate, ApiListener, ApiTls, App, local_address};
use crate::fleet::Fleet;
use crate::fleet::events::queues;
use crate::fleet::server::{Heartbeats, Server, bind, store_facts};
use crate::identity::{AdminTokens, Authority, CommandKeys, Enroller, JOIN_TTL_MS, JoinTokens};
use crate::registry::Registry;
use crate::routes::Routing;
use crate::store::{RedbConfig, RedbStore, Store};
use crate::tasks::{self, OutputStore, Tasks};
use crate::transfers::{self, Cache, CacheLimits, Planning, Transfers};
use crate::{clock, files, jobs};

/// Requests that are still answered after SIGTERM get this long.
const STOP_TIME: Duration = Duration::from_secs(3);
/// Threads of the runtime: requests on one do not delay the fleet on the other.
const THREADS: usize = 2;

/// How the control process runs.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// The server's folder.
    pub data_dir: PathBuf,
    /// Where the API listens; port 0: any free one.
    pub api: SocketAddr,
    /// Serve the API with TLS; required off loopback.
    pub api_tls: Option<ApiTls>,
    /// Folders below which file streams may write, besides `data_dir/data/sinks`.
    pub sink_roots: Vec<PathBuf>,
    /// Bytes that uploaded files may take together.
    pub cache_bytes_max: u64,
    /// An uploaded file that nobody uses is forgotten after this time.
    pub cache_expiry: Duration,
    /// Between two heartbeats of an agent.
    pub heartbeat_interval: Duration,
    /// Heartbeats that may be missed before an agent counts as lost.
    pub heartbeat_misses: u32,
    /// Name or address by which agents reach this server, for the join command; by default that
    /// of the listener or of the host's default route.
    pub public_host: Option<String>,
    /// What the planner of transfers goes by.
    pub planning: Planning,
}

impl ControlConfig {
    /// Defaults for a folder.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            api: SocketAddr::from(([127, 0, 0, 1], 28863)),
            api_tls: None,
            sink_roots: Vec::new(),
            cache_bytes_max: 20 << 30,
            cache_expiry: Duration::from_secs(24 * 3600),
            heartbeat_interval: Duration::from_secs(10),
            heartbeat_misses: 3,
            public_host: None,
            planning: Planning::default(),
        }
    }
}

/// Runs the control process until SIGTERM or SIGINT.
pub fn run_control(config: ControlConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the runtime does not start")?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut control = Control::start(config).await?;
        let outcome = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            error = control.failed() => Err(error),
        };
        control.stop().await;
        outcome
    });
    // Blocking readers of files end by themselves; nothing durable waits for them.
    runtime.shutdown_timeout(STOP_TIME);
    outcome
}

/// A running control process; the seam for tests, which run it inside their own runtime.
pub struct Control {
    api: SocketAddr,
    store: Arc<dyn Store>,
    stop_api: tokio::sync::oneshot::Sender<()>,
    api_server: tokio::task::JoinHandle<()>,
    workers: JoinSet<()>,
}

impl Control {
    /// Where the API listens.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Opens everything below the folder, makes what is absent, and begins to serve.
    pub async fn start(config: ControlConfig) -> anyhow::Result<Self> {
        let metrics = skein_observe::install();
        let started_ms = clock::now_ms();
        let folders = Folders::make(&config.data_dir)?;

        let store_path = folders.control.join("store.redb");
        let redb = RedbConfig::new(&store_path);
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(redb)?);
        let authority = Arc::new(Authority::open(&folders.control)?);
        authority.equip_server(&folders.data)?;
        let command_keys = Arc::new(CommandKeys::open(&folders.control)?);
        let join_tokens = JoinTokens::load(store.clone(), authority.sha256()).await?;
        let join_tokens = Arc::new(join_tokens);
        let admin_token_path = folders.control.join("admin.token");
        let admin_tokens = AdminTokens::load(store.clone(), &admin_token_path).await?;
        let admin_tokens = Arc::new(admin_tokens);
        let registry = Arc::new(Registry::load(store.clone()).await?);
        let first_join = match registry.is_empty() && join_tokens.list().is_empty() {
            true => Some(join_tokens.create(JOIN_TTL_MS, 0, "made at first start".into()).await?),
            false => None,
        };
        let roots = std::iter::once(folders.sinks.clone()).chain(config.sink_roots.clone());
        let routing = Arc::new(Routing::load(store.clone(), roots.collect()).await?);
        let fleet = Fleet::new(registry.clone(), command_keys.clone(), routing.table());
        let fleet = Arc::new(fleet);
        let output = OutputStore::new(folders.tasks.clone());
        let (tasks, task_orders) = Tasks::load(store.clone(), registry.clone(), output).await?;
        let limits = CacheLimits {
            bytes_max: config.cache_bytes_max,
            expiry_ms: i64::try_from(config.cache_expiry.as_millis()).unwrap_or(i64::MAX / 2),
        };
        let cache = Arc::new(Cache::open(folders.cache.clone(), store.clone(), limits).await?);
        let (transfers, transfer_orders) =
            Transfers::load(store.clone(), registry.clone(), cache, config.planning.clone())
                .await?;
        let enroller =
            Enroller::new(authority.clone(), command_keys, join_tokens.clone(), registry.clone());

        let (inboxes, outlets) = queues();
        let socket = folders.run.join("fleet.sock");
        let links = bind(&socket).context("the socket for data processes")?;
        let heartbeats = Heartbeats {
            interval_ms: config.heartbeat_interval.as_millis() as u32,
            misses: config.heartbeat_misses,
        };
        let server = Server::new(fleet.clone(), Arc::new(enroller), inboxes, heartbeats, &socket)?;
        let mut workers = JoinSet::new();
        workers.spawn(store_facts(registry.clone(), outlets.facts));
        let worker = tasks::Worker::new(tasks.clone(), fleet.clone());
        workers.spawn(jobs::worker::run(worker, outlets.tasks, task_orders));
        let worker = transfers::Worker::new(transfers.clone(), fleet.clone());
        workers.spawn(jobs::worker::run(worker, outlets.transfers, transfer_orders));
        workers.spawn(upkeep(metrics.clone()));
        workers.spawn(forget_ended(
            registry.clone(),
            join_tokens.clone(),
            admin_tokens.clone(),
            store_path,
        ));
        workers.spawn(renew_server_certificate(authority.clone(), folders.data.clone()));

        let certificate = match &config.api_tls {
            None => None,
            Some(tls) => {
                let public_host = config.public_host.as_deref();
                let (authority, folder) = (authority.clone(), &folders.control);
                let (certificate, sources) =
                    ApiCertificate::open(tls, config.api, public_host, authority, folder)?;
                workers.spawn(certificate.clone().keep_fresh(sources));
                Some(certificate)
            }
        };
        let listener = ApiListener::bind(config.api, certificate.clone()).await?;
        let api = listener.local();
        let api_url = match certificate {
            None => format!("http://{}:{}", local_address(api.ip()), api.port()),
            Some(tls) => format!("https://{}:{}", tls.local_host(api), api.port()),
        };
        let app = Arc::new(App {
            store: store.clone(),
            registry,
            fleet,
            join_tokens,
            admin_tokens,
            authority,
            routing,
            tasks,
            transfers,
            metrics,
            started_ms,
            first_join,
            public_host: config.public_host.clone(),
        });
        let (stop_api, stopped) = tokio::sync::oneshot::channel();
        let service = api::router(app).into_make_service_with_connect_info::<api::Admission>();
        let service = axum::serve(listener, service).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let api_server = tokio::spawn(async move {
            if let Err(error) = service.await {
                tracing::error!(%error, "the API has ended");
            }
        });
        // Links last: a data process finds everything in place.
        workers.spawn(Arc::new(server).run(links));
        write_ports(&folders.run, api, &api_url)?;
        tracing::info!(%api, api_url, dir = %config.data_dir.display(), "control process up");
        Ok(Self { api, store, stop_api, api_server, workers })
    }

    /// Waits until this process cannot go on: the store has failed, or a worker has ended, which
    /// only a bug makes it do. Whoever started the process starts it again.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.store.failed() => anyhow::anyhow!(
                "{error}; the control process ends, because it could keep nothing more: see to \
                 the disk of its folder, then it goes on from what it had answered"
            ),
            ended = self.workers.join_next() => match ended {
                Some(Err(error)) => anyhow::anyhow!("a worker of the control process failed: {error}"),
                _ => anyhow::anyhow!("a worker of the control process ended before its time"),
            },
        }
    }

    /// Answers what was asked, then ends. What was accepted is stored already.
    pub async fn stop(mut self) {
        let _ = self.stop_api.send(());
        let abort = self.api_server.abort_handle();
        if tokio::time::timeout(STOP_TIME, self.api_server).await.is_err() {
            abort.abort();
        }
        self.workers.shutdown().await;
        tracing::info!("control process stopped");
    }
}

/// Looks once a day whether the data process's certificate must be renewed.
async fn renew_server_certificate(authority: Arc<Authority>, data: PathBuf) {
    let mut tick = tokio::time::interval(Duration::from_secs(24 * 3600));
    loop {
        tick.tick().await;
        match authority.equip_server(&data) {
            Ok(false) => {}
            Ok(true) => tracing::warn!(
                "the server's certificate is renewed; data processes take it at their next start"
            ),
            Err(error) => tracing::error!(%error, "the server's certificate is not renewed"),
        }
    }
}

/// Forgets what has ended, and says how much is kept.
async fn forget_ended(
    registry: Arc<Registry>,
    join_tokens: Arc<JoinTokens>,
    admin_tokens: Arc<AdminTokens>,
    store: PathBuf,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(60));
    loop {
        tick.tick().await;
        let done = async {
            registry.upkeep().await?;
            join_tokens.upkeep().await?;
            admin_tokens.upkeep().await
        };
        if let Err(error) = done.await {
            tracing::warn!(%error, "what has ended is not forgotten");
        }
        let bytes = std::fs::metadata(&store).map_or(0, |file| file.len());
        metrics::gauge!(names::CONTROL_STORE_BYTES).set(bytes as f64);
    }
}

async fn upkeep(metrics: skein_observe::Handle) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        metrics.upkeep();
    }
}

/// `api` is the bound address, `api_url` how this machine reaches it.
fn write_ports(run: &Path, api: SocketAddr, api_url: &str) -> anyhow::Result<()> {
    let pid = std::process::id();
    let ports = serde_json::json!({ "api": api.to_string(), "api_url": api_url, "pid": pid });
    let path = run.join("control.ports.json");
    files::write_atomic(&path, ports.to_string().as_bytes(), 0o644)
        .with_context(|| format!("{}", path.display()))
}

/// The folders of a server that control uses.
struct Folders {
    control: PathBuf,
    tasks: PathBuf,
    cache: PathBuf,
    data: PathBuf,
    sinks: PathBuf,
    run: PathBuf,
}

impl Folders {
    fn make(data_dir: &Path) -> anyhow::Result<Self> {
        files::make_private_folder(data_dir)
            .with_context(|| format!("{} cannot be made", data_dir.display()))?;
        // Absolute from here on: the data process is told these paths.
        let root = data_dir
            .canonicalize()
            .with_context(|| format!("{} cannot be resolved", data_dir.display()))?;
        let make = |path: PathBuf| {
            files::make_private_folder(&path)
                .with_context(|| format!("{} cannot be made", path.display()))?;
            anyhow::Ok(path)
        };
        Ok(Self {
            control: make(root.join("control"))?,
            tasks: make(root.join("control/tasks"))?,
            cache: make(root.join("control/cache"))?,
            data: make(root.join("data"))?,
            sinks: make(root.join("data/sinks"))?,
            run: make(root.join("run"))?,
        })
    }
}
