//! Files and trees: fetched because a signed command says so, and offered to the server.
//!
//! One thread with its own small runtime does all of it, from TLS to disk, so that neither bulk
//! cryptography nor a stalled disk is ever in the way of a heartbeat; flushes, which may take
//! seconds, go to threads beside it, so that they are not in the way of other transfers either. An accepted order lies in
//! `HOME/transfers` before anything happens and until its end was acknowledged (one with the content in it does not: [`inline`]); after kill -9 the
//! next worker goes on from the blocks that are proved on disk.
//!
//! ```text
//!   order ─► <id>.order ─► [line] ─► [fetch]: channel, leecher, partial file ─► <id>.end ─► ack
//!      │                               └─ pause: <id>.pause, what is partial stays ─► order, or cancel
//!      with content in it: [inline]: proved, written, renamed ─► report ─► ack
//!                          offer: hash, FileOffer, channel, seeder until served or expired
//! ```

mod arriving;
mod board;
mod fetch;
mod inline;
mod offer;
mod pause;
mod swarm;
mod turns;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skein_filemesh::core::folder::{self, HostNames};
use skein_filemesh::engine::BlockMemory;
use skein_observe::names;
use skein_wire::ids::TransferId;
use skein_wire::signal::v1::{
    CancelTransfer, JoinTransfer, OfferFile, TransferPlan, TransferState, TransferUpdate,
};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinError;

use self::arriving::Arriving;
use self::board::Board;
use self::fetch::{FetchEnd, Signals};
use self::turns::Line;
use crate::clock;
use crate::config::{MeshConfig, TransfersConfig};
use crate::facts;
use crate::home::private_dir;
use crate::link::{Dialer, LinkEvent, Outbox};
use crate::mesh::Mesh;
use crate::paths::PathRules;
use crate::tasks::{TransferOrder, records};

/// Ids of transfers that were cancelled before they arrived.
const TOMBSTONES_MAX: usize = 1024;
/// Orders that may wait to be read by the file thread.
const LETTERS_MAX: usize = 1024;
/// Steps of transfers that wait for a disk at once: more would only seek against each other.
const DISK_STEPS_MAX: usize = 2;
/// Those, one file that is hashed, and a name that is looked up.
const BLOCKING_THREADS_MAX: usize = DISK_STEPS_MAX + 2;
/// They end when idle for this long.
const BLOCKING_KEEP: Duration = Duration::from_secs(2);

/// What transfers need.
#[derive(Clone)]
pub struct Settings {
    /// `HOME/transfers`.
    pub dir: PathBuf,
    /// Limits.
    pub limits: TransfersConfig,
    /// Limits of connections with other agents.
    pub mesh: MeshConfig,
    /// Which paths may be read and written.
    pub rules: Arc<PathRules>,
    /// Opens file channels.
    pub dialer: Dialer,
    /// Where reports go.
    pub outbox: Outbox,
}

enum Letter {
    Order(TransferOrder),
    Acknowledged(TransferId),
    Plan(TransferPlan),
    Link,
}

/// Reaches the file thread; cheap to clone.
#[derive(Clone)]
pub struct TransferHandle {
    letters: mpsc::Sender<Letter>,
}

impl TransferHandle {
    /// Hands over a verified order. One that finds the thread behind is dropped, and the server,
    /// which hears nothing of it, orders again.
    pub fn order(&self, order: TransferOrder) {
        if self.letters.try_send(Letter::Order(order)).is_err() {
            tracing::error!("file thread is behind; an order was dropped");
        }
    }

    /// Resolves when the file thread is over, which only a new worker mends.
    pub async fn ended(&self) {
        self.letters.closed().await;
    }

    /// Hands over a plan, which needs no signature.
    pub fn plan(&self, plan: TransferPlan) {
        // A lost plan is followed by a newer one, or the swarm does without.
        let _ = self.letters.try_send(Letter::Plan(plan));
    }

    /// The server has stored the end of a transfer.
    pub fn acknowledged(&self, transfer_id: &[u8]) {
        if let Ok(id) = TransferId::from_slice(transfer_id) {
            // A lost acknowledgement is given again after the report's repetition.
            let _ = self.letters.try_send(Letter::Acknowledged(id));
        }
    }
}

/// Starts the file thread; it takes other agents' connections from `peers`, if there is such a
/// listener.
pub fn start(settings: Settings, peers: Option<TcpListener>) -> io::Result<TransferHandle> {
    private_dir(&settings.dir)?;
    let (letters, inbox) = mpsc::channel(LETTERS_MAX);
    let handle = TransferHandle { letters: letters.clone() };
    settings.outbox.subscribe(move |event| {
        if event != LinkEvent::Down {
            let _ = letters.try_send(Letter::Link);
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP)
        .build()?;
    std::thread::Builder::new().name("files".into()).stack_size(512 * 1024).spawn(move || {
        tokio::task::LocalSet::new().block_on(&runtime, run(settings, peers, inbox));
    })?;
    Ok(handle)
}

/// What every transfer of this agent shares.
struct Shared {
    settings: Settings,
    board: Board,
    /// Something on the board changed.
    changed: Notify,
    line: Line,
    hashing: Semaphore,
    disk_steps: Semaphore,
    /// Trees take their places one after the other, so that of two for one folder the later one
    /// stands there whole.
    placing: Semaphore,
    /// Where bytes arrive and wait for the disk.
    memory: BlockMemory,
}

/// Whether a transfer that is on its way shall stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stop {
    /// It shall not.
    No,
    /// What is verified stays for later.
    Pause,
    /// Nothing stays.
    Cancel,
}

/// One transfer on its way; dropping the senders cancels it.
struct Active {
    stop: watch::Sender<Stop>,
    /// Set when the server wants it to go on as one of a mesh.
    meshed: watch::Sender<bool>,
}

impl Active {
    fn new() -> Self {
        Self { stop: watch::Sender::new(Stop::No), meshed: watch::Sender::new(false) }
    }
}

/// Where an order comes from.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Origin {
    /// It must be kept before anything happens.
    Server,
    /// The same after a pause, into the folder that it had.
    Paused,
    /// From `HOME/transfers`, where an earlier worker kept it.
    Earlier,
}

struct Transfers {
    shared: Rc<Shared>,
    mesh: Mesh,
    fetches: HashMap<TransferId, Active>,
    offers: HashMap<TransferId, Active>,
    /// Stopped by a pause, with their orders.
    paused: HashMap<TransferId, JoinTransfer>,
    tombstones: VecDeque<TransferId>,
    ended: mpsc::UnboundedSender<(TransferId, Ended)>,
}

/// What has ended.
enum Ended {
    Fetch,
    Offer,
    /// A pause stopped it.
    Paused(Box<JoinTransfer>),
}

async fn run(settings: Settings, peers: Option<TcpListener>, mut inbox: mpsc::Receiver<Letter>) {
    let mesh = match Mesh::start(&settings.mesh, settings.dialer.clone(), peers) {
        Ok(mesh) => mesh,
        Err(error) => return tracing::error!(%error, "the mesh cannot start"),
    };
    let concurrent = settings.limits.concurrent_max as usize;
    let shared = Rc::new(Shared {
        settings,
        board: Board::default(),
        changed: Notify::new(),
        line: Line::new(concurrent),
        hashing: Semaphore::new(1),
        disk_steps: Semaphore::new(DISK_STEPS_MAX),
        placing: Semaphore::new(1),
        memory: BlockMemory::default(),
    });
    let (ended, mut endings) = mpsc::unbounded_channel();
    let (fetches, offers, paused) = (HashMap::new(), HashMap::new(), HashMap::new());
    let tombstones = VecDeque::new();
    let mut transfers =
        Transfers { shared: shared.clone(), mesh, fetches, offers, paused, tombstones, ended };
    transfers.restore();
    loop {
        let more = shared.board.tell(&shared.settings.outbox);
        let later = async {
            match more {
                true => tokio::time::sleep(Duration::from_millis(board::PROGRESS_MS)).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            letter = inbox.recv() => match letter {
                Some(letter) => transfers.take(letter),
                None => return,
            },
            Some((id, ended)) = endings.recv() => transfers.ended(id, ended),
            () = shared.changed.notified() => {}
            () = later => {}
        }
    }
}

impl Transfers {
    fn take(&mut self, letter: Letter) {
        match letter {
            Letter::Link => self.shared.board.repeat_all(),
            Letter::Acknowledged(id) => {
                if self.shared.board.acknowledged(&id) {
                    self.shared.forget(&id);
                }
                // It has ended without us: nobody will go on with what is left here.
                self.drop_paused(id, false);
            }
            Letter::Order(TransferOrder::Join(join)) => self.join(join),
            Letter::Order(TransferOrder::Offer(offer)) => self.offer(offer),
            Letter::Order(TransferOrder::Cancel(cancel)) => self.cancel(&cancel),
            Letter::Order(TransferOrder::Peers(peers)) => self.mesh.take_list(&peers),
            Letter::Order(TransferOrder::RemovePeers(removed)) => self.mesh.remove(&removed),
            Letter::Plan(plan) => self.mesh.hint(&plan),
        }
    }

    fn join(&mut self, join: JoinTransfer) {
        let Ok(id) = TransferId::from_slice(&join.transfer_id) else {
            return tracing::warn!("a transfer without a usable id was dropped");
        };
        if let Some(kept) = self.paused.remove(&id) {
            let marker = self.shared.settings.dir.join(format!("{id}.pause"));
            let _ = std::fs::remove_file(marker);
            let join = JoinTransfer { directory: kept.directory, ..join };
            return self.fetch(id, join, Origin::Paused);
        }
        if let Some(active) = self.fetches.get(&id).filter(|_| join.meshed) {
            active.meshed.send_replace(true);
        }
        if self.fetches.contains_key(&id) || self.shared.board.get(&id).is_some() {
            return self.shared.board.repeat(&id);
        }
        if self.tombstones.contains(&id) {
            return self.refuse(id, TransferState::Cancelled, "cancelled before it arrived");
        }
        let limits = &self.shared.settings.limits;
        let room = limits.concurrent_max as usize + limits.queue_max as usize;
        if self.fetches.len() + self.paused.len() >= room || self.shared.board.len() >= 2 * room {
            let why = "too many transfers wait or are paused here (transfers.queue_max)";
            return self.refuse(id, TransferState::Failed, why);
        }
        match join.content {
            Some(_) => self.place(id, join),
            None => self.fetch(id, join, Origin::Server),
        }
    }

    /// Carries out an order that has the file's content in it.
    fn place(&mut self, id: TransferId, join: JoinTransfer) {
        let active = Active::new();
        let stopped = active.stop.subscribe();
        self.fetches.insert(id, active);
        let (shared, ended) = (self.shared.clone(), self.ended.clone());
        tokio::task::spawn_local(async move {
            let mut update = update(&id, TransferState::Done);
            let bytes = join.content.as_ref().map_or(0, |content| content.len() as u64);
            let placed = match shared.folder(&join.directory) {
                Ok(directory) => {
                    inline::run(&shared, id, JoinTransfer { directory, ..join }, stopped).await
                }
                Err(end) => Err(end),
            };
            match placed {
                Ok(()) => update.verified_bytes = bytes,
                Err(FetchEnd::Cancelled | FetchEnd::Paused) => {
                    update.state = TransferState::Cancelled.into();
                }
                Err(FetchEnd::Failed(error)) => {
                    (update.state, update.error) = (TransferState::Failed.into(), error);
                }
            }
            shared.note_end(&id, &mut update);
            shared.board.set(id, update);
            shared.changed.notify_one();
            let _ = ended.send((id, Ended::Fetch));
        });
    }

    /// Ends a transfer that never began.
    fn refuse(&mut self, id: TransferId, state: TransferState, why: &'static str) {
        self.shared.board.set(id, update(&id, TransferState::Waiting));
        let shared = self.shared.clone();
        tokio::task::spawn_local(async move { shared.end(&id, state, why).await });
    }

    fn fetch(&mut self, id: TransferId, join: JoinTransfer, origin: Origin) {
        let active = Active::new();
        let (stopped, meshed) = (active.stop.subscribe(), active.meshed.subscribe());
        self.fetches.insert(id, active);
        self.shared.board.set(id, update(&id, TransferState::Waiting));
        let (shared, ended) = (self.shared.clone(), self.ended.clone());
        let mesh = self.mesh.clone();
        tokio::task::spawn_local(async move {
            let until = stopped.clone();
            let mut join = join;
            let fetched = async {
                if origin == Origin::Server {
                    // Kept as it reads here, so that a host that is renamed goes on where it was.
                    join.directory = shared.folder(&join.directory)?;
                }
                if origin != Origin::Earlier {
                    shared.keep_order(id, join.clone()).await?;
                }
                fetch::run(&shared, &mesh, id, join.clone(), Signals { stopped, meshed }).await
            };
            let (state, error, serving) = match fetched.await {
                Ok(serving) => (TransferState::Done, String::new(), serving),
                Err(FetchEnd::Cancelled) => (TransferState::Cancelled, String::new(), None),
                Err(FetchEnd::Failed(text)) => (TransferState::Failed, text, None),
                Err(FetchEnd::Paused) => {
                    shared.keep_pause(id).await;
                    let _ = ended.send((id, Ended::Paused(Box::new(join))));
                    return;
                }
            };
            shared.end(&id, state, &error).await;
            if let Some(swarm) = serving {
                swarm.serve(until).await;
            }
            let _ = ended.send((id, Ended::Fetch));
        });
    }

    fn offer(&mut self, offer: OfferFile) {
        let Ok(id) = TransferId::from_slice(&offer.transfer_id) else { return };
        if self.offers.contains_key(&id) {
            return self.shared.board.repeat(&id);
        }
        let limits = &self.shared.settings.limits;
        if self.offers.len() >= limits.queue_max as usize || self.tombstones.contains(&id) {
            return tracing::warn!(transfer = %id, "offer was cancelled or exceeds the limit");
        }
        let active = Active::new();
        let stopped = active.stop.subscribe();
        self.offers.insert(id, active);
        let (shared, ended) = (self.shared.clone(), self.ended.clone());
        tokio::task::spawn_local(async move {
            offer::run(&shared, id, offer, stopped).await;
            shared.board.withdraw(&id);
            let _ = ended.send((id, Ended::Offer));
        });
    }

    fn cancel(&mut self, cancel: &CancelTransfer) {
        let Ok(id) = TransferId::from_slice(&cancel.transfer_id) else { return };
        if cancel.keep {
            return self.pause(id);
        }
        if self.drop_paused(id, true) {
            return;
        }
        let active = [self.fetches.get(&id), self.offers.get(&id)];
        for active in active.iter().flatten() {
            active.stop.send_replace(Stop::Cancel);
        }
        let known = active.iter().any(Option::is_some) || self.shared.board.get(&id).is_some();
        if !known {
            self.tombstones.push_back(id);
            if self.tombstones.len() > TOMBSTONES_MAX {
                self.tombstones.pop_front();
            }
        }
        self.shared.board.repeat(&id);
    }

    /// Goes on with what an earlier worker left.
    fn restore(&mut self) {
        let dir = self.shared.settings.dir.clone();
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((id, kind)) = name.split_once('.') else { continue };
            let Ok(id) = id.parse::<TransferId>() else { continue };
            match kind {
                "end" => match records::read::<TransferUpdate>(&dir, &name) {
                    Ok(Some(update)) => self.shared.board.set(id, update),
                    _ => drop(std::fs::remove_file(entry.path())),
                },
                "order" if !dir.join(format!("{id}.end")).exists() => {
                    match records::read::<JoinTransfer>(&dir, &name) {
                        Ok(Some(join)) if dir.join(format!("{id}.pause")).exists() => {
                            self.restore_pause(id, join);
                        }
                        Ok(Some(join)) => self.fetch(id, join, Origin::Earlier),
                        _ => drop(std::fs::remove_file(entry.path())),
                    }
                }
                "leaves" => drop(std::fs::remove_file(entry.path())),
                _ => {}
            }
        }
    }
}

impl Shared {
    /// Runs what may wait for a disk beside this thread, which goes on with other transfers. It is
    /// never broken off: whoever awaits it has its outcome.
    async fn on_disk<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        // The semaphore is never closed.
        let _turn = self.disk_steps.acquire().await;
        tokio::task::spawn_blocking(step).await
    }

    /// The folder of an order with this host's names in it.
    fn folder(&self, folder: &str) -> Result<String, FetchEnd> {
        let identity = self.settings.dialer.identity().get();
        let hostname = facts::hostname();
        let names = HostNames { agent: identity.agent_id.as_str(), hostname: &hostname };
        folder::expand(folder, &names).map_err(|error| FetchEnd::Failed(error.to_string()))
    }

    /// Puts what has arrived in its place.
    async fn finish(&self, arriving: Arriving) -> Result<(), FetchEnd> {
        // The semaphore is never closed.
        let _turn = match arriving {
            Arriving::Tree(_) => self.placing.acquire().await.ok(),
            Arriving::File(..) => None,
        };
        self.on_disk(move || arriving.finish()).await?
    }

    async fn keep_order(&self, id: TransferId, join: JoinTransfer) -> Result<(), FetchEnd> {
        let dir = self.settings.dir.clone();
        let kept = self.on_disk(move || records::write(&dir, &format!("{id}.order"), &join));
        let failed = |error| FetchEnd::Failed(format!("the order cannot be kept: {error}"));
        kept.await?.map_err(failed)
    }

    /// Notes the end of a transfer, on disk before anybody hears of it.
    async fn end(&self, id: &TransferId, state: TransferState, error: &str) {
        let mut ended = self.board.get(id).unwrap_or_else(|| update(id, state));
        ended.state = state.into();
        ended.error = error.to_owned();
        self.note_end(id, &mut ended);
        let (dir, name, record) = (self.settings.dir.clone(), format!("{id}.end"), ended.clone());
        let written = self.on_disk(move || records::write(&dir, &name, &record)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(transfer = %id, %error, "the end of a transfer is not on disk");
        }
        self.board.set(*id, ended);
        self.changed.notify_one();
    }

    fn note_end(&self, id: &TransferId, update: &mut TransferUpdate) {
        update.ended_ms = clock::wall_ms();
        let label = match update.state() {
            TransferState::Done => "done",
            TransferState::Cancelled => "cancelled",
            _ => "failed",
        };
        metrics::counter!(names::AGENT_TRANSFERS, "state" => label).increment(1);
        tracing::info!(transfer = %id, state = label, error = update.error, "transfer ended");
    }

    fn forget(&self, id: &TransferId) {
        for kind in ["order", "end", "pause"] {
            let _ = std::fs::remove_file(self.settings.dir.join(format!("{id}.{kind}")));
        }
    }
}

fn update(id: &TransferId, state: TransferState) -> TransferUpdate {
    TransferUpdate {
        transfer_id: id.to_bytes(),
        state: state.into(),
        started_ms: clock::wall_ms(),
        ..TransferUpdate::default()
    }
}

/// Resolves when the transfer shall stop, with how it ends then.
async fn cancelled(signal: &mut watch::Receiver<Stop>) -> FetchEnd {
    match signal.wait_for(|stop| *stop != Stop::No).await.map(|stop| *stop) {
        Ok(Stop::Pause) => FetchEnd::Paused,
        // A closed channel means that the whole thread ends.
        _ => FetchEnd::Cancelled,
    }
}
