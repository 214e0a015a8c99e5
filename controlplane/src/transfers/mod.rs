//! Transfers: a file or a tree to many hosts.
//!
//! ```text
//! upload ──────────────────────────────► running ─► ended
//! agent's file: offering ─► fetching ──►    │
//!               (source hashes) (into the cache)
//! ```
//! In the inline gear the file travels inside the signed order. In the direct gear the data process streams the cached file to every target; control announces
//! it there ([`fleet::v1::SeedFile`](skein_wire::fleet::v1::SeedFile)), orders the targets to join
//! and keeps the account. As with tasks, a transfer is stored before it is answered, each end is
//! stored before it is seen, and what a dead process had announced is announced again to the next.

mod cache;
mod content;
mod counts;
mod gear;
mod host;
mod judged;
mod membership;
mod meshes;
mod meter;
mod pace;
mod progress;
mod rates;
mod record;
mod tree;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::planner::{Decision, PlannerSettings};
use skein_wire::ids::{AgentId, TransferId};
use tokio::sync::{Notify, mpsc, oneshot};

pub use cache::{Cache, CacheError, CacheLimits, Content};
pub use host::{Final, HostPush};
pub use membership::{Link, Membership, MembershipSendError, links_of};
pub use record::{TransferError, TransferRecord};
pub use worker::Worker;

use self::gear::Question;
use self::pace::Course;
use self::rates::RateBook;

use crate::api::types::{
    ForecastRequest, HostsQuery, Transfer, TransferDetail, TransferForecast, TransferHostState,
    TransferPhase, TransferRequest, TransferSource,
};
use crate::clock;
use crate::jobs::history::Bounds;
use crate::registry::{Addressee, Registry, Selector};
use crate::store::{Store, StoreError};
use crate::tasks::state_word;

/// Transfers that run at one time.
pub const TRANSFERS_RUNNING_MAX: usize = 256;
/// Ended transfers that are kept.
pub const TRANSFERS_KEPT_MAX: usize = 1_000;
/// Hosts of all kept transfers together.
pub const TRANSFER_HOSTS_MAX: usize = 2_000_000;
/// Ended transfers are kept this long.
pub const TRANSFER_KEEP_MS: i64 = 7 * 24 * 3_600_000;
const HISTORY: Bounds = Bounds {
    keep_ms: TRANSFER_KEEP_MS,
    jobs_max: TRANSFERS_KEPT_MAX,
    hosts_max: TRANSFER_HOSTS_MAX / 2,
    bytes_max: u64::MAX,
};
const PAGE_HOSTS_MAX: usize = 10_000;
const ORDERS_MAX: usize = 64;
/// Longest wait for an end that one request may ask for.
const WAIT_MS_MAX: u64 = 10_000;

/// What planning goes by, as an operator has set it.
#[derive(Clone, Debug, Default)]
pub struct Planning {
    /// Costs and thresholds.
    pub settings: PlannerSettings,
    /// What the server sends to agents, bytes per second; 0: found out.
    pub server_up_bytes_s: u64,
}

/// Bytes per second over all hosts, looked at about every second.
#[derive(Clone, Copy, Debug, Default)]
struct Speed {
    at_ms: i64,
    bytes: u64,
    per_second: u64,
}

#[derive(Debug)]
struct Entry {
    record: TransferRecord,
    /// In order of agent id.
    hosts: Vec<HostPush>,
    /// Dispatches of its order by this process.
    dispatches: u32,
    speed: Speed,
    /// What data processes have sent of it.
    sent: progress::SourceSent,
    /// When the source was last asked to offer or the data process to fetch.
    asked_ms: i64,
    /// When the first host said that it has begun.
    began_ms: Option<i64>,
    /// What is expected; none before this process has planned.
    course: Option<Course>,
    /// The view of an ended transfer, which never changes: lists do not count its hosts again.
    ended_view: OnceLock<Transfer>,
}

impl Entry {
    fn new(record: TransferRecord, hosts: Vec<HostPush>) -> Self {
        let (speed, ended_view) = (Speed::default(), OnceLock::new());
        let sent = progress::SourceSent::default();
        Self {
            record,
            hosts,
            dispatches: 0,
            speed,
            sent,
            asked_ms: 0,
            began_ms: None,
            course: None,
            ended_view,
        }
    }

    fn place(&self, agent: &AgentId) -> Option<usize> {
        self.hosts.binary_search_by(|host| host.agent.cmp(agent)).ok()
    }

    fn is_open(&self) -> bool {
        self.record.ended_ms.is_none()
    }

    /// Bytes that came over the network to all hosts.
    fn moved_bytes(&self) -> u64 {
        let moved =
            |host: &HostPush| host.run.verified_bytes.saturating_sub(host.run.resumed_bytes);
        self.hosts.iter().map(moved).sum()
    }

    fn view(&self) -> Transfer {
        match self.record.ended_ms {
            Some(_) => self.ended_view.get_or_init(|| self.counted()).clone(),
            None => self.counted(),
        }
    }

    fn counted(&self) -> Transfer {
        let mut by_state: HashMap<TransferHostState, u64> = HashMap::new();
        let (mut verified_bytes, mut resumed_bytes) = (0, 0);
        for host in &self.hosts {
            *by_state.entry(host.state()).or_default() += 1;
            verified_bytes += host.run.verified_bytes;
            resumed_bytes += host.run.resumed_bytes;
        }
        let record = &self.record;
        let overall = record.ended_ms.zip(record.running_ms).map(|(ended_ms, running_ms)| {
            let seconds = (ended_ms - running_ms).max(1) as f64 / 1_000.0;
            (self.moved_bytes() as f64 / seconds) as u64
        });
        Transfer {
            transfer_id: record.transfer_id.clone(),
            phase: if self.is_open() { record.phase } else { TransferPhase::Ended },
            source: record.source.clone(),
            targets: record.targets.clone(),
            directory: record.directory.clone(),
            file_name: record.file_name.clone(),
            tree: record.file.as_ref().is_some_and(|file| file.tree),
            gear: record.gear.gear.clone(),
            why: record.gear.why.clone(),
            predicted_ms: record.gear.predicted_ms,
            bound_ms: record.gear.bound_ms,
            replans: record.gear.replans.into(),
            replanned_ms: record.gear.replanned_ms,
            achieved_share: record.judged.as_ref().map(|judged| judged.share),
            judgement: record.judged.as_ref().map_or_else(String::new, |j| j.sentence.clone()),
            size_bytes: record.file.as_ref().map_or(0, |file| file.size_bytes),
            root: record.file.as_ref().map_or_else(String::new, |file| file.root.clone()),
            error: record.error.clone(),
            created_ms: record.created_ms,
            ended_ms: record.ended_ms,
            hosts_done: by_state.get(&TransferHostState::Done).copied().unwrap_or(0),
            hosts_by_state: by_state
                .into_iter()
                .map(|(state, count)| (state_word(&state), count))
                .collect::<BTreeMap<_, _>>(),
            hosts_total: self.hosts.len() as u64,
            verified_bytes,
            resumed_bytes,
            bytes_per_s: overall.unwrap_or(self.speed.per_second),
            progress: progress::progress(self, clock::now_ms()),
        }
    }
}

/// What the API asks of the worker.
#[derive(Debug)]
pub enum Order {
    /// A new transfer is stored and entered: begin.
    Start(TransferId),
    /// Cancel; answered when the wish is stored.
    Cancel(TransferId, oneshot::Sender<Result<(), TransferError>>),
}

/// The transfer service, as the API sees it.
#[derive(Debug)]
pub struct Transfers {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    cache: Arc<Cache>,
    entries: Mutex<HashMap<TransferId, Entry>>,
    orders: mpsc::Sender<Order>,
    planner: PlannerSettings,
    rates: RateBook,
    /// Some transfer has ended.
    ends: Notify,
}

impl Transfers {
    /// Loads what is stored; the worker must be run.
    pub async fn load(
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        cache: Arc<Cache>,
        planning: Planning,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Order>), StoreError> {
        let entries = record::load(&*store).await?;
        for (id, entry) in entries.iter().filter(|(_, entry)| entry.is_open()) {
            match (running_file(&entry.record), &entry.record.file) {
                (Some(file), _) => drop(cache.pin(&file)),
                (None, Some(file)) if entry.record.content_hex.is_none() => {
                    cache.expect_still(id, file.size_bytes);
                }
                (None, _) => {}
            }
        }
        if let Err(error) = cache.remove_strangers() {
            tracing::warn!(%error, "the cache is not tidied");
        }
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let entries = Mutex::new(entries);
        let (planner, rates) = (planning.settings, RateBook::new(planning.server_up_bytes_s));
        let ends = Notify::new();
        let this = Self { store, registry, cache, entries, orders, planner, rates, ends };
        Ok((Arc::new(this), queue))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TransferId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Accepts a transfer: stored when this returns.
    pub async fn create(&self, request: TransferRequest) -> Result<Transfer, TransferError> {
        let now_ms = clock::now_ms();
        let selector: Selector = request.targets.parse()?;
        let source = request.source.clone();
        let mut record = TransferRecord::from_request(request, now_ms)?;
        if self.running() >= TRANSFERS_RUNNING_MAX as u64 {
            return Err(TransferError::Busy);
        }
        let targets = self.registry.select(&selector);
        if targets.is_empty() {
            return Err(TransferError::NoTargets(record.targets));
        }
        let kept: usize = self.lock().values().map(|entry| entry.hosts.len()).sum();
        if kept + targets.len() > TRANSFER_HOSTS_MAX {
            return Err(TransferError::Busy);
        }
        let Some(id) = record.id() else { return Err(TransferError::Busy) };
        let content = content::of_request(&source, now_ms)?;
        self.settle_source(&mut record, now_ms)?;
        let agents: Vec<_> = targets.iter().map(|target| (&target.id, 0)).collect();
        let mut decision = None;
        if let Some((file, content)) = content {
            record.run(file.clone(), now_ms);
            decision = self.choose(&mut record, &agents);
            if record.gear.is_inline() {
                record.content_hex = Some(skein_wire::ids::hex_encode(&content));
            } else {
                record.file = Some(self.cache_content(&file, content).await?);
            }
        }
        if record.phase == TransferPhase::Running && decision.is_none() {
            decision = self.choose(&mut record, &agents);
        }
        let pinned = running_file(&record);
        let host = |Addressee { id, hostname, .. }| HostPush::new(id, hostname);
        let mut entry = Entry::new(record, targets.into_iter().map(host).collect());
        entry.course = decision.map(|decision| Course::new(decision, 0, now_ms));
        let names = entry.hosts.iter().map(|host| (&host.agent, &*host.hostname));
        let record = &entry.record;
        let stored = record::SHELF.store_new(&*self.store, &record.transfer_id, record, names);
        if let Err(error) = stored.await {
            pinned.iter().for_each(|id| self.cache.unpin(id));
            return Err(error.into());
        }
        let view = entry.view();
        self.lock().insert(id, entry);
        // The worker's tick finds it too, so a closed queue loses nothing.
        let _ = self.orders.send(Order::Start(id)).await;
        Ok(view)
    }

    fn settle_source(&self, record: &mut TransferRecord, now_ms: i64) -> Result<(), TransferError> {
        match record.source.clone() {
            TransferSource::Upload { upload_id } => {
                let upload = upload_id.parse().ok().and_then(|id| self.cache.pin(&id));
                let upload = upload.ok_or(TransferError::NoUpload(upload_id))?;
                if let Err(error) = record.check_content(&upload) {
                    upload.upload_id.parse().iter().for_each(|id| self.cache.unpin(id));
                    return Err(error);
                }
                record.run(upload, now_ms);
            }
            TransferSource::Agent { agent, .. } => {
                let found = self.registry.select(&agent.parse()?);
                let [source] = &found[..] else {
                    return Err(TransferError::Source(agent, found.len()));
                };
                if !source.online {
                    return Err(TransferError::SourceAway(source.id.clone()));
                }
                record.source_agent = Some(source.id.to_string());
            }
            TransferSource::Content { .. } => {}
        }
        Ok(())
    }

    /// Has the planner choose; the record has the outcome.
    fn choose(&self, record: &mut TransferRecord, targets: &[(&AgentId, u64)]) -> Option<Decision> {
        let choice = record.choose_gear(&self.registry, &self.rates, &self.planner, targets)?;
        Some(choice.decision)
    }

    /// How a file would travel; nothing is begun.
    pub fn forecast(&self, request: &ForecastRequest) -> Result<TransferForecast, TransferError> {
        let forced = gear::wanted(request.gear.as_deref())?;
        let targets = self.registry.select(&request.targets.parse()?);
        if targets.is_empty() {
            return Err(TransferError::NoTargets(request.targets.clone()));
        }
        let targets: Vec<_> = targets.iter().map(|target| (&target.id, 0)).collect();
        let size_bytes = request.size_bytes;
        let question = Question {
            registry: &self.registry,
            rates: &self.rates,
            settings: &self.planner,
            size_bytes,
            piece_bytes: choose_piece_bytes(size_bytes, cache::HOSTS_ASSUMED),
            targets: &targets,
            rate_limit_bytes_per_s: request.rate_limit_bytes_per_s.unwrap_or(0),
            forced,
            may_inline: true,
        };
        let too_large = || TransferError::Invalid(format!("no file has {size_bytes} bytes"));
        Ok(question.choose().ok_or_else(too_large)?.forecast(size_bytes, targets.len()))
    }

    /// Waits until a transfer has ended, for at most `wait_ms`.
    pub async fn ended(&self, id: &TransferId, wait_ms: u64) {
        let ended = async {
            loop {
                let mut notified = std::pin::pin!(self.ends.notified());
                notified.as_mut().enable();
                if !self.lock().get(id).is_some_and(Entry::is_open) {
                    return;
                }
                notified.await;
            }
        };
        let wait = Duration::from_millis(wait_ms.min(WAIT_MS_MAX));
        // Whoever asked sees how it stands.
        let _ = tokio::time::timeout(wait, ended).await;
    }

    /// Transfers that have not ended.
    pub fn running(&self) -> u64 {
        self.lock().values().filter(|entry| entry.is_open()).count() as u64
    }

    /// All transfers, newest first.
    pub fn list(&self) -> Vec<Transfer> {
        let mut list: Vec<Transfer> = self.lock().values().map(Entry::view).collect();
        list.sort_by(|a, b| (b.created_ms, &b.transfer_id).cmp(&(a.created_ms, &a.transfer_id)));
        list
    }

    /// One transfer.
    pub fn get(&self, id: &TransferId) -> Option<Transfer> {
        self.lock().get(id).map(Entry::view)
    }

    /// One transfer with a page of its hosts.
    pub fn detail(&self, id: &TransferId, query: &HostsQuery) -> Option<TransferDetail> {
        let limit = query.limit.unwrap_or(1_000).clamp(1, PAGE_HOSTS_MAX);
        let now_ms = clock::now_ms();
        let entries = self.lock();
        let entry = entries.get(id)?;
        let after = query.after.as_deref().unwrap_or_default();
        let meant = |host: &&HostPush| {
            let state_fits = |state: &String| state_word(&host.state()) == *state;
            host.agent.as_str() > after && query.state.as_ref().is_none_or(state_fits)
        };
        let mut page: Vec<_> = entry
            .hosts
            .iter()
            .filter(meant)
            .take(limit + 1)
            .map(|host| host.view(now_ms))
            .collect();
        let more = page.len() > limit;
        page.truncate(limit);
        let next = page.last().filter(|_| more).map(|last| last.agent_id.clone());
        Some(TransferDetail { transfer: entry.view(), hosts: page, next })
    }

    /// Cancels: the wish is stored when this returns, and hosts end as their agents report.
    pub async fn cancel(&self, id: &TransferId) -> Result<Transfer, TransferError> {
        let (answer, done) = oneshot::channel();
        let order = Order::Cancel(*id, answer);
        self.orders.send(order).await.map_err(|_| TransferError::Stopping)?;
        done.await.map_err(|_| TransferError::Stopping)??;
        self.get(id).ok_or(TransferError::Unknown(*id))
    }
}

/// The cached file that a transfer uses.
fn running_file(record: &TransferRecord) -> Option<TransferId> {
    let file = record.file.as_ref().filter(|_| record.phase == TransferPhase::Running)?;
    file.upload_id.parse().ok()
}
