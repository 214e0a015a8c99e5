//! Transfers: a file or a tree to many hosts.
//!
//! ```text
//! upload ──────────────────────► queued ─► running ─► ended
//! agent's file: queued ─► offering ─► fetching ──►│
//!                   (source hashes) (into the cache)
//! ```
//! [`rollout`] says which hosts of a transfer that runs are told, and when nobody is.
//!
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
pub mod rollout;
mod sources;
mod starts;
mod topology;
mod tree;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::planner::{Decision, PlannerSettings};
use skein_filemesh::core::turns::Turns;
use skein_wire::ids::{AgentId, TransferId};
use tokio::sync::{Notify, mpsc, oneshot};

pub use cache::{Cache, CacheError, CacheLimits, Content};
pub use host::{Final, HostPush};
pub use membership::{Link, Membership, MembershipSendError, links_of};
pub use record::{TransferError, TransferRecord};
pub use topology::{RegionBorder, Topology};
pub use worker::Worker;

use self::gear::Question;
use self::pace::Course;
use self::rates::RateBook;

use crate::api::types::{
    ForecastRequest, HostsQuery, Priority, Transfer, TransferDetail, TransferForecast,
    TransferHost, TransferHostState, TransferPhase, TransferRequest, TransferSource,
    TransfersQuery, TreeRequest,
};
use crate::clock;
use crate::jobs::history::Bounds;
use crate::registry::{Addressee, Registry, Selector};
use crate::store::{Store, StoreError};
use crate::tasks::state_word;

/// Transfers that have not ended: those that run, wait, are paused or halted.
pub const TRANSFERS_OPEN_MAX: usize = 256;
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
    /// Where the server and thin borders are.
    pub topology: Topology,
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
    /// Since when sources have been away.
    away_ms: HashMap<AgentId, i64>,
    /// Why it is queued, as was last found.
    queue_note: String,
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
            away_ms: HashMap::new(),
            queue_note: String::new(),
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
        for (place, host) in self.hosts.iter().enumerate() {
            *by_state.entry(self.state_of(place)).or_default() += 1;
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
            phase: self.phase(),
            source: record.source.clone(),
            sources: record.sources.iter().map(sources::SourceAgent::view).collect(),
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
            rollout: record.rollout.view(if self.is_open() { &self.queue_note } else { "" }),
            progress: progress::progress(self, clock::now_ms()),
        }
    }

    /// Where it stands, as people see it.
    fn phase(&self) -> TransferPhase {
        let rollout = &self.record.rollout;
        match () {
            () if !self.is_open() => TransferPhase::Ended,
            () if self.record.cancel_ms.is_some() => self.record.phase,
            () if rollout.paused_ms.is_some() => TransferPhase::Paused,
            () if rollout.queued => TransferPhase::Queued,
            () if rollout.halted.is_some() => TransferPhase::Halted,
            () => self.record.phase,
        }
    }

    /// Hosts, from the first on, that have been started.
    fn started(&self) -> usize {
        self.record.rollout.started_hosts(self.hosts.len())
    }

    fn state_of(&self, place: usize) -> TransferHostState {
        match self.hosts[place].state() {
            TransferHostState::Pending if place >= self.started() => TransferHostState::NotStarted,
            state => state,
        }
    }

    fn host_view(&self, place: usize, now_ms: i64) -> TransferHost {
        let mut view = self.hosts[place].view(now_ms);
        view.state = self.state_of(place);
        view.batch = self.record.rollout.batch_of(place);
        if view.state == TransferHostState::NotStarted && self.record.rollout.halted.is_some() {
            view.error = "never started: the transfer halted".into();
        }
        view
    }

    /// Whether it has a turn that others cannot have.
    fn has_turn(&self) -> bool {
        let rollout = &self.record.rollout;
        let is_idle = rollout.halted.is_some() && rollout::open(&self.hosts[..self.started()]) == 0;
        self.is_open() && !rollout.is_stopped() && !is_idle
    }
}

/// What the API asks of the worker.
#[derive(Debug)]
pub enum Order {
    /// A new transfer is stored and entered: begin.
    Start(TransferId),
    /// How large is what source agents have?
    Look(worker::Look),
    /// Cancel, pause or resume; answered when the wish is stored.
    Wish(TransferId, Wish, oneshot::Sender<Result<(), TransferError>>),
}

/// What an operator wants of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It ends; hosts that are done keep the file.
    Cancel,
    /// Nothing moves; verified blocks are kept.
    Pause,
    /// A pause is over, or the failures that halted it are accepted.
    Resume,
}

/// The transfer service, as the API sees it.
#[derive(Debug)]
pub struct Transfers {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    cache: Arc<Cache>,
    entries: Mutex<HashMap<TransferId, Entry>>,
    /// Turns of transfers that are being stored.
    storing: Mutex<Turns>,
    turns_max: usize,
    orders: mpsc::Sender<Order>,
    planner: PlannerSettings,
    topology: Topology,
    rates: RateBook,
    /// Some transfer has ended.
    ends: Notify,
}

impl Transfers {
    /// Loads what is stored; the worker must be run. `turns_max` transfers run at one time.
    pub async fn load(
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        cache: Arc<Cache>,
        planning: Planning,
        turns_max: usize,
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
        let Planning { settings: planner, server_up_bytes_s, topology } = planning;
        let rates = RateBook::load(&*store, server_up_bytes_s, clock::now_ms()).await?;
        let (storing, ends) = (Mutex::default(), Notify::new());
        let this = Self {
            store,
            registry,
            cache,
            entries,
            storing,
            turns_max,
            orders,
            planner,
            topology,
            rates,
            ends,
        };
        Ok((Arc::new(this), queue))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TransferId, Entry>> {
        lock(&self.entries)
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
        let priority = record.rollout.priority;
        if self.running() >= TRANSFERS_OPEN_MAX as u64 {
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
        record.rollout.divide(targets.len())?;
        let turn = self.take_turn(priority);
        record.rollout.queued = turn.is_none();
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
        {
            let mut entries = self.lock();
            entries.insert(id, entry);
            // From here on the entry itself says that it has its turn.
            drop(turn);
        }
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
            source @ TransferSource::Agent { .. } => {
                record.sources = sources::find(&self.registry, &source)?;
            }
            TransferSource::Content { .. } => {}
        }
        Ok(())
    }

    /// Has the planner choose; the record has the outcome.
    fn choose(&self, record: &mut TransferRecord, targets: &[(&AgentId, u64)]) -> Option<Decision> {
        let choice = record.choose_gear(self, targets)?;
        Some(choice.decision)
    }

    /// How a file would travel; nothing is begun, but source agents are asked how large it is.
    pub async fn forecast(
        &self,
        request: &ForecastRequest,
    ) -> Result<TransferForecast, TransferError> {
        let forced = gear::wanted(request.gear.as_deref())?;
        let targets = self.registry.select(&request.targets.parse()?);
        if targets.is_empty() {
            return Err(TransferError::NoTargets(request.targets.clone()));
        }
        let targets: Vec<_> = targets.iter().map(|target| (&target.id, 0)).collect();
        let size_bytes = match &request.source {
            Some(source) => self.size_of(source, request.tree.clone()).await?,
            None => request.size_bytes,
        };
        let question = Question {
            registry: &self.registry,
            rates: &self.rates,
            settings: &self.planner,
            topology: &self.topology,
            size_bytes,
            piece_bytes: choose_piece_bytes(size_bytes, cache::HOSTS_ASSUMED),
            targets: &targets,
            rate_limit_bytes_per_s: request.rate_limit_bytes_per_s.unwrap_or(0),
            rate_limit_total_bytes_per_s: record::total_limit(
                request.rate_limit_total_bytes_per_s,
            )?,
            forced,
            may_inline: true,
        };
        let too_large = || TransferError::Invalid(format!("no file has {size_bytes} bytes"));
        Ok(question.choose().ok_or_else(too_large)?.forecast(size_bytes, targets.len()))
    }

    /// What would travel of what agents have, bytes.
    async fn size_of(
        &self,
        source: &TransferSource,
        tree: TreeRequest,
    ) -> Result<u64, TransferError> {
        record::check_source(source)?;
        tree::check(&tree)?;
        let sources = sources::find(&self.registry, source)?;
        if sources.is_empty() {
            let why = "a forecast asks agents; of another source say size_bytes";
            return Err(TransferError::Invalid(why.into()));
        }
        let (answer, said) = oneshot::channel();
        let order = Order::Look(worker::Look { sources, tree, answer });
        self.orders.send(order).await.map_err(|_| TransferError::Stopping)?;
        said.await.map_err(|_| TransferError::Stopping)?
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

    /// Transfers, newest first.
    pub fn list(&self, query: &TransfersQuery) -> Vec<Transfer> {
        let since_ms = query.newer_than_ms.map(|age_ms| clock::now_ms().saturating_sub(age_ms));
        let entries = self.lock();
        let meant = |entry: &&Entry| {
            let in_state = match query.state.as_deref() {
                None => true,
                Some("open") => entry.is_open(),
                Some(state) => state_word(&entry.phase()) == state,
            };
            in_state && since_ms.is_none_or(|since_ms| entry.record.created_ms >= since_ms)
        };
        let mut found: Vec<&Entry> = entries.values().filter(meant).collect();
        let key = |entry: &&Entry| (entry.record.created_ms, entry.record.transfer_id.clone());
        found.sort_by_cached_key(|entry| std::cmp::Reverse(key(entry)));
        found.truncate(query.limit.unwrap_or(usize::MAX));
        found.into_iter().map(Entry::view).collect()
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
        let meant = |place: &usize| {
            let state_fits = |state: &String| state_word(&entry.state_of(*place)) == *state;
            let is_after = entry.hosts[*place].agent.as_str() > after;
            is_after && query.state.as_ref().is_none_or(state_fits)
        };
        let places = (0..entry.hosts.len()).filter(meant).take(limit + 1);
        let mut page: Vec<_> = places.map(|place| entry.host_view(place, now_ms)).collect();
        let more = page.len() > limit;
        page.truncate(limit);
        let next = page.last().filter(|_| more).map(|last| last.agent_id.clone());
        Some(TransferDetail { transfer: entry.view(), hosts: page, next })
    }

    /// Cancels, pauses or resumes: the wish is stored when this returns, and hosts follow as their
    /// agents report.
    pub async fn wish(&self, id: &TransferId, wish: Wish) -> Result<Transfer, TransferError> {
        let (answer, done) = oneshot::channel();
        let order = Order::Wish(*id, wish, answer);
        self.orders.send(order).await.map_err(|_| TransferError::Stopping)?;
        done.await.map_err(|_| TransferError::Stopping)??;
        self.get(id).ok_or(TransferError::Unknown(*id))
    }
}

/// A turn of a transfer that is being stored; given back when dropped.
struct Turn<'a> {
    transfers: &'a Transfers,
    priority: Priority,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.transfers.storing).give_back(rollout::kind(self.priority));
    }
}

impl Transfers {
    /// A turn for a new transfer, unless it has to wait for others.
    fn take_turn(&self, priority: Priority) -> Option<Turn<'_>> {
        let kind = rollout::kind(priority);
        let entries = self.lock();
        let mut storing = lock(&self.storing);
        let waits = |entry: &Entry| {
            let rollout = &entry.record.rollout;
            entry.is_open() && rollout.queued && rollout.priority >= priority
        };
        let has_room = taken(&entries).with(*storing).ask(kind, self.turns_max).is_ok();
        if !has_room || entries.values().any(waits) {
            return None;
        }
        storing.take(kind);
        Some(Turn { transfers: self, priority })
    }
}

/// Turns of the transfers that run.
fn taken(entries: &HashMap<TransferId, Entry>) -> Turns {
    let mut turns = Turns::default();
    let running = entries.values().filter(|entry| entry.has_turn());
    running.for_each(|entry| turns.take(rollout::kind(entry.record.rollout.priority)));
    turns
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cached file that a transfer uses.
fn running_file(record: &TransferRecord) -> Option<TransferId> {
    let file = record.file.as_ref().filter(|_| record.phase == TransferPhase::Running)?;
    file.upload_id.parse().ok()
}
