//! Tasks: one script on many hosts.
//!
//! A task is in the store before its submitter is answered; from then on every target ends in
//! exactly one explicit state, whatever dies. Only ends are written per host (progress is soft and
//! agents repeat it), and an agent is acknowledged after its end or output is on disk. Orders are
//! repeated until they are answered ([`crate::jobs::delivery`]); the agent's journal makes a repeat
//! harmless, so delivery is at least once and execution at most once.
//!
//! [`automaton`] is the state machine, [`output`] the segment files, [`worker`] the one task that
//! moves everything forward; this module is what the API calls.

mod automaton;
mod output;
mod record;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use skein_wire::ids::{AgentId, TaskId};
use tokio::sync::{mpsc, oneshot};

pub use automaton::{Final, HostRun, Report};
pub use output::{OutputStore, Piece};
pub use record::{TaskError, TaskRecord};
pub use worker::Worker;

use crate::api::types::{HostsQuery, Task, TaskDetail, TaskHostState, TaskRequest};
use crate::jobs::history::Bounds;
use crate::registry::{Addressee, Registry};
use crate::store::{Store, StoreError};

/// Tasks that run at one time.
pub const TASKS_RUNNING_MAX: usize = 256;
/// Ended tasks that are kept.
pub const TASKS_KEPT_MAX: usize = 1_000;
/// Hosts of all kept tasks together; one takes about 250 bytes, so this is 500 MB at the most.
pub const TASK_HOSTS_MAX: usize = 2_000_000;
/// Ended tasks are kept this long.
pub const TASK_KEEP_MS: i64 = 7 * 24 * 3_600_000;
/// Output of all tasks on disk; the oldest ended tasks go first.
pub const OUTPUT_DISK_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
const HISTORY: Bounds = Bounds {
    keep_ms: TASK_KEEP_MS,
    jobs_max: TASKS_KEPT_MAX,
    hosts_max: TASK_HOSTS_MAX / 2,
    bytes_max: OUTPUT_DISK_BYTES_MAX,
};
/// Hosts of one page of a task.
const PAGE_HOSTS_MAX: usize = 10_000;
/// Orders of the API to the worker that wait.
const ORDERS_MAX: usize = 64;

/// A task in memory.
#[derive(Debug)]
struct Entry {
    record: TaskRecord,
    /// In order of agent id.
    hosts: Vec<HostRun>,
    /// Dispatches of its order by this process.
    dispatches: u32,
    /// The view of an ended task, which never changes: lists do not count its hosts again.
    ended_view: OnceLock<Task>,
}

impl Entry {
    fn place(&self, agent: &AgentId) -> Option<usize> {
        self.hosts.binary_search_by(|host| host.agent.cmp(agent)).ok()
    }

    fn new(record: TaskRecord, hosts: Vec<HostRun>) -> Self {
        Self { record, hosts, dispatches: 0, ended_view: OnceLock::new() }
    }

    fn view(&self) -> Task {
        match self.record.ended_ms {
            Some(_) => self.ended_view.get_or_init(|| self.counted()).clone(),
            None => self.counted(),
        }
    }

    fn counted(&self) -> Task {
        let mut by_state: HashMap<TaskHostState, u64> = HashMap::new();
        for host in &self.hosts {
            *by_state.entry(host.state).or_default() += 1;
        }
        let ended = by_state.iter().filter(|(state, _)| state.is_final()).map(|(_, n)| n).sum();
        let succeeded = by_state.get(&TaskHostState::Succeeded).copied().unwrap_or(0);
        let word = |(state, count): (TaskHostState, u64)| (state_word(&state), count);
        Task {
            task_id: self.record.task_id.clone(),
            targets: self.record.targets.clone(),
            script_head: self.record.script.chars().take(200).collect(),
            interpreter: self.record.interpreter.clone(),
            timeout_ms: self.record.timeout_ms,
            note: self.record.note.clone(),
            created_ms: self.record.created_ms,
            ended_ms: self.record.ended_ms,
            cancel_asked: self.record.cancel_ms.is_some(),
            hosts_by_state: by_state.into_iter().map(word).collect::<BTreeMap<_, _>>(),
            hosts_total: self.hosts.len() as u64,
            hosts_ended: ended,
            hosts_succeeded: succeeded,
        }
    }
}

/// The word of a state in JSON.
pub(crate) fn state_word(state: &impl serde::Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// What the API asks of the worker.
#[derive(Debug)]
pub enum Order {
    /// A new task is stored and entered: send it.
    Start(TaskId),
    /// Cancel; answered when the wish is stored.
    Cancel(TaskId, oneshot::Sender<Result<(), TaskError>>),
}

/// The task service, as the API sees it.
#[derive(Debug)]
pub struct Tasks {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    output: Arc<OutputStore>,
    entries: Mutex<HashMap<TaskId, Entry>>,
    orders: mpsc::Sender<Order>,
    /// Held while a task is admitted, so that two requests with one id cannot both pass.
    admission: tokio::sync::Mutex<()>,
}

impl Tasks {
    /// Loads what is stored; the worker must be run.
    pub async fn load(
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        output: OutputStore,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Order>), StoreError> {
        let entries = record::load(&*store).await?;
        if let Ok(on_disk) = output.tasks() {
            let orphans = on_disk.iter().filter(|task| !entries.contains_key(task));
            orphans.for_each(|task| output.remove(task));
        }
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let this = Self {
            store,
            registry,
            output: Arc::new(output),
            entries: Mutex::new(entries),
            orders,
            admission: tokio::sync::Mutex::new(()),
        };
        Ok((Arc::new(this), queue))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a task: stored when this returns. A repeat of the same request answers with the
    /// task of the first.
    pub async fn create(&self, request: TaskRequest, now_ms: i64) -> Result<Task, TaskError> {
        let selector = request.targets.parse()?;
        let record = TaskRecord::from_request(request, now_ms)?;
        let id = record.id()?;
        let _admission = self.admission.lock().await;
        if let Some(entry) = self.lock().get(&id) {
            return match entry.record.request_sha256 == record.request_sha256 {
                true => Ok(entry.view()),
                false => Err(TaskError::IdReused(id)),
            };
        }
        let running = self.running();
        if running >= TASKS_RUNNING_MAX as u64 {
            return Err(TaskError::Busy);
        }
        let targets = self.registry.select(&selector);
        if targets.is_empty() {
            return Err(TaskError::NoTargets(record.targets));
        }
        if targets.len() + self.hosts_kept() > TASK_HOSTS_MAX {
            return Err(TaskError::Busy);
        }
        let hosts =
            targets.into_iter().map(|Addressee { id, hostname, .. }| HostRun::new(id, hostname));
        let entry = Entry::new(record, hosts.collect());
        let names = entry.hosts.iter().map(|host| (&host.agent, &*host.hostname));
        let record = &entry.record;
        record::SHELF.store_new(&*self.store, &record.task_id, record, names).await?;
        let view = entry.view();
        self.lock().insert(id, entry);
        // The worker looks at all tasks at each tick too, so a closed queue loses nothing.
        let _ = self.orders.send(Order::Start(id)).await;
        Ok(view)
    }

    fn hosts_kept(&self) -> usize {
        self.lock().values().map(|entry| entry.hosts.len()).sum()
    }

    /// Tasks that have not ended.
    pub fn running(&self) -> u64 {
        self.lock().values().filter(|entry| entry.record.ended_ms.is_none()).count() as u64
    }

    /// All tasks, newest first.
    pub fn list(&self) -> Vec<Task> {
        let mut tasks: Vec<Task> = self.lock().values().map(Entry::view).collect();
        tasks.sort_by(|a, b| (b.created_ms, &b.task_id).cmp(&(a.created_ms, &a.task_id)));
        tasks
    }

    /// One task.
    pub fn get(&self, id: &TaskId) -> Option<Task> {
        self.lock().get(id).map(Entry::view)
    }

    /// One task with a page of its hosts.
    pub fn detail(&self, id: &TaskId, query: &HostsQuery) -> Option<TaskDetail> {
        let limit = query.limit.unwrap_or(1_000).clamp(1, PAGE_HOSTS_MAX);
        let entries = self.lock();
        let entry = entries.get(id)?;
        let task = entry.view();
        let after = query.after.as_deref().unwrap_or_default();
        let meant = |host: &&HostRun| {
            let state_fits = |state: &String| state_word(&host.state) == *state;
            host.agent.as_str() > after && query.state.as_ref().is_none_or(state_fits)
        };
        let mut page: Vec<(usize, HostRun)> = Vec::new();
        let mut more = false;
        for (place, host) in entry.hosts.iter().enumerate().filter(|(_, host)| meant(host)) {
            if page.len() == limit {
                more = true;
                break;
            }
            page.push((place, host.clone()));
        }
        drop(entries);
        let stored = |place: usize| self.output.stored(id, place as u32).unwrap_or(0);
        let hosts: Vec<_> = page.iter().map(|(place, host)| host.view(stored(*place))).collect();
        let next = hosts.last().filter(|_| more).map(|last| last.agent_id.clone());
        Some(TaskDetail { task, hosts, next })
    }

    /// Output of one host from an offset: bytes, bytes stored, and whether nothing will follow.
    pub async fn output(
        &self,
        id: &TaskId,
        agent: &AgentId,
        offset: u64,
        limit: usize,
    ) -> Result<(Vec<u8>, u64, bool), TaskError> {
        let (place, state, announced) = {
            let entries = self.lock();
            let entry = entries.get(id).ok_or(TaskError::Unknown(*id))?;
            let unknown = || TaskError::NotATarget(agent.clone());
            let place = entry.place(agent).ok_or_else(unknown)?;
            let host = &entry.hosts[place];
            (place as u32, host.state, host.run.output_bytes)
        };
        let (output, id) = (self.output.clone(), *id);
        let read = tokio::task::spawn_blocking(move || {
            let bytes = output.read(&id, place, offset, limit)?;
            Ok::<_, std::io::Error>((bytes, output.stored(&id, place)?))
        });
        let (bytes, stored) = read.await.map_err(std::io::Error::other)??;
        Ok((bytes, stored, state.is_final() && stored >= announced))
    }

    /// Cancels: the wish is stored when this returns, and hosts end as their agents report.
    pub async fn cancel(&self, id: &TaskId) -> Result<Task, TaskError> {
        let (answer, done) = oneshot::channel();
        self.orders.send(Order::Cancel(*id, answer)).await.map_err(|_| TaskError::Stopping)?;
        done.await.map_err(|_| TaskError::Stopping)??;
        self.get(id).ok_or(TaskError::Unknown(*id))
    }
}
