//! One transfer among peers: drives a [`Swarm`] with connections on one side and files on the other.
//!
//! ```text
//!   peer ══ [line] ── Heard(slab) ──► swarm.receive ── Write ──► Arriving ── finish ──► Whole
//!             ▲                                           │           │                    │
//!             │                                      newest blocks    │                    │
//!             └───── output ◄── swarm.next ◄── Data ──────┴───────────┴────────────────────┘
//! ```
//! The list of members and the plan come through the [`Endpoint`]; what was gained goes back to
//! control as reports. A swarm that has everything goes on serving until the transfer is cancelled
//! or its list is over.

mod content;
mod leaves;
mod line;
mod output;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use skein_filemesh::core::download::{Download, PeerKey};
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::membership::PeerList;
use skein_filemesh::core::peer_wire::{Handshake, info_hash, peer_id};
use skein_filemesh::core::plan::{HostPlan, Member};
use skein_filemesh::core::seeder::ROOM_MIN;
use skein_filemesh::core::swarm::{Action, Config, Dial, Pull, Start, Swarm};
use skein_filemesh::engine::Taken;
use skein_observe::names;
use skein_wire::ids::TransferId;
use tokio::sync::{mpsc, watch};

use self::content::Content;
use self::leaves::LeafStore;
use self::line::{Letter, Line, OUT_BYTES};
use self::report::{Reports, from_peers, received_from};
use super::arriving::Arriving;
use super::fetch::{self, FetchEnd};
use super::{Shared, Stop, cancelled};
use crate::clock;
use crate::mesh::{Direction, Endpoint, PeerStream};

/// Buffers that wait for the swarm; each line has at most two on their way.
const LETTERS_MAX: usize = 64;
/// Without a new block for this long a transfer fails. Longer than a server's upgrade.
const STUCK_MS: u64 = 900_000;
/// What was proved waits in memory for its neighbours at most for about this long: kill -9 would take
/// it, and it would be fetched again. A fast link fills a write sooner.
const WAITING_MS: u64 = 50;
/// Between two looks of others at the progress of a transfer that goes on.
const NOTE_MS: u64 = 50;
/// A list that does not come ends the transfer after this.
const LIST_MS: u64 = 120_000;

/// What a transfer among peers is told at its start.
pub(super) struct Order {
    /// Which transfer.
    pub id: TransferId,
    /// What is fetched.
    pub manifest: Manifest,
    /// Bytes per second in each direction; 0: no limit.
    pub rate_limit_bytes_per_s: u64,
}

/// A swarm and what it moves.
pub(super) struct Run<'a> {
    shared: &'a Shared,
    id: TransferId,
    swarm: Swarm,
    endpoint: Endpoint,
    lists: watch::Receiver<Option<std::sync::Arc<PeerList>>>,
    plans: watch::Receiver<HostPlan>,
    content: Content,
    leaves: LeafStore,
    lines: BTreeMap<PeerKey, Line>,
    next_key: PeerKey,
    post: mpsc::Sender<Letter>,
    inbox: mpsc::Receiver<Letter>,
    actions: Vec<Action>,
    reports: Reports,
    pieces: u32,
    progress_ms: u64,
    /// When what waits in memory is written.
    write_ms: u64,
    verified_bytes: u64,
    refused_blocks: u64,
    is_fetched: bool,
    noted_ms: u64,
    counts: Counts,
}

/// Looked up once: that costs more than counting.
struct Counts {
    received: metrics::Counter,
    sent: metrics::Counter,
    refused: metrics::Counter,
}

impl Counts {
    fn new() -> Self {
        Self {
            received: metrics::counter!(names::AGENT_FILE_RECEIVED_BYTES),
            sent: metrics::counter!(names::AGENT_FILE_SENT_BYTES),
            refused: metrics::counter!(names::AGENT_FILE_REFUSED_BLOCKS),
        }
    }
}

impl<'a> Run<'a> {
    /// Fetches the file into its final place. The answer serves it to others.
    pub async fn fetch(
        shared: &'a Shared,
        mut endpoint: Endpoint,
        file: Arriving,
        order: Order,
        cancel: &mut watch::Receiver<Stop>,
    ) -> Result<Run<'a>, FetchEnd> {
        let Order { id, manifest, rate_limit_bytes_per_s } = order;
        let me = tokio::select! {
            me = number(&mut endpoint) => me?,
            end = cancelled(cancel) => {
                fetch::give_up(shared, &id, file, &end).await;
                return Err(end);
            }
        };
        let leaves = match LeafStore::create(&shared.settings.dir, &id, &manifest.geometry) {
            Ok(leaves) => leaves,
            Err(error) => {
                let why = format!("no room for the hashes of the file: {error}");
                let end = FetchEnd::Failed(why);
                fetch::give_up(shared, &id, file, &end).await;
                return Err(end);
            }
        };
        let agent = shared.settings.dialer.identity().get().agent_id.clone();
        let ours = Handshake::new(info_hash(&id.0, &manifest.root), peer_id(agent.as_str()));
        let mut seed = [0; 8];
        clock::random(&mut seed);
        let mut config = Config::new(ours, u64::from_ne_bytes(seed));
        config.up_bytes_per_s = rate_limit_bytes_per_s;
        config.down_bytes_per_s = rate_limit_bytes_per_s;
        let download = Download::new(manifest.geometry, manifest.root, file.claimed());
        let now_ms = clock::now_ms();
        let (post, inbox) = mpsc::channel(LETTERS_MAX);
        let mut run = Run {
            shared,
            id,
            swarm: Swarm::new(Start::Download(Box::new(download)), me, config, now_ms),
            lists: endpoint.peers(),
            plans: endpoint.plans(),
            endpoint,
            content: Content::new(file, &shared.memory),
            leaves,
            lines: BTreeMap::new(),
            next_key: 0,
            post,
            inbox,
            actions: Vec::new(),
            reports: Reports::new(id, now_ms),
            pieces: manifest.geometry.piece_count(),
            progress_ms: now_ms,
            write_ms: now_ms,
            verified_bytes: 0,
            refused_blocks: 0,
            is_fetched: false,
            noted_ms: 0,
            counts: Counts::new(),
        };
        let fetched = tokio::select! {
            fetched = run.until_fetched() => fetched,
            end = cancelled(cancel) => Err(end),
        };
        match fetched {
            Ok(()) => run.finish().await.map(|()| run),
            Err(end) => {
                run.lines.clear();
                if let Some(file) = run.content.into_arriving() {
                    fetch::give_up(shared, &id, file, &end).await;
                }
                Err(end)
            }
        }
    }

    async fn until_fetched(&mut self) -> Result<(), FetchEnd> {
        let plan = self.plans.borrow_and_update().clone();
        self.swarm.set_plan(plan, clock::now_ms(), &mut self.actions);
        self.swarm.tick(clock::now_ms(), &mut self.actions);
        self.reports.begin();
        self.settle()?;
        while !self.is_fetched {
            self.step().await?;
            if clock::now_ms() >= self.progress_ms + STUCK_MS {
                let peers = self.lines.len();
                return Err(FetchEnd::Failed(format!(
                    "no progress for {} s with {peers} connections",
                    STUCK_MS / 1000
                )));
            }
        }
        Ok(())
    }

    /// Serves until the transfer is over.
    pub async fn serve(mut self, mut cancel: watch::Receiver<Stop>) {
        let serving = async {
            loop {
                if self.lists.borrow().is_none() || self.step().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = serving => {}
            _ = cancelled(&mut cancel) => {}
        }
    }

    /// Puts the file in its place; peers are served meanwhile.
    async fn finish(&mut self) -> Result<(), FetchEnd> {
        let Some(arriving) = self.content.complete()? else { return Ok(()) };
        let finishing = self.shared.finish(arriving);
        tokio::pin!(finishing);
        loop {
            tokio::select! {
                finished = &mut finishing => {
                    return finished;
                }
                stepped = self.step() => stepped?,
            }
        }
    }

    /// Waits for the next event and does what follows from it.
    async fn step(&mut self) -> Result<(), FetchEnd> {
        let now_ms = clock::now_ms();
        let swarm_ms = self.swarm.deadline_ms().unwrap_or(u64::MAX);
        let tidy_ms = self.content.tidy(now_ms).unwrap_or(u64::MAX);
        let until_ms = swarm_ms.min(self.reports.deadline_ms()).min(tidy_ms);
        let until_ms = until_ms.clamp(now_ms + 1, now_ms + 60_000);
        let pause = Duration::from_millis(until_ms - now_ms);
        tokio::select! {
            Some(letter) = self.inbox.recv() => self.take(letter)?,
            stream = self.endpoint.accept() => self.enter(stream),
            changed = self.plans.changed() => if changed.is_ok() {
                let plan = self.plans.borrow_and_update().clone();
                self.swarm.set_plan(plan, clock::now_ms(), &mut self.actions);
            },
            changed = self.lists.changed() => if changed.is_ok() {
                self.lists.borrow_and_update();
                // Whoever sends a list may be a control process that has just begun.
                self.reports.everything(&self.swarm.have(), self.pieces);
                // Members that were refused for want of a list are tried again.
                self.swarm.tick(clock::now_ms(), &mut self.actions);
            },
            () = tokio::time::sleep(pause) => {
                self.swarm.tick(clock::now_ms(), &mut self.actions);
            }
        }
        self.settle()
    }

    fn take(&mut self, letter: Letter) -> Result<(), FetchEnd> {
        match letter {
            Letter::Heard(key, mut input) => {
                let now_ms = clock::now_ms();
                let used = self.swarm.receive(key, input.bytes(), now_ms, &mut self.actions);
                let taken = input.take(used);
                self.act(&taken)?;
                if let Some(line) = self.lines.get_mut(&key) {
                    let (arriving, may_come) = self.swarm.arriving(key);
                    input.expect_data(may_come);
                    line.read_on(input, arriving);
                }
            }
            Letter::Sent(key, output) => {
                if let Some(line) = self.lines.get_mut(&key) {
                    line.sent(output);
                    self.pump(key);
                }
            }
            Letter::Lost(key, why) => {
                if self.lines.remove(&key).is_some() {
                    tracing::debug!(transfer = %self.id, key, why, "a peer is gone");
                    self.swarm.disconnected(key, clock::now_ms());
                }
            }
            Letter::Dialled(_, Ok(stream)) => self.enter(*stream),
            Letter::Dialled(member, Err(why)) => {
                tracing::debug!(transfer = %self.id, member, why, "a member is not reached");
                self.swarm.connect_failed(member, clock::now_ms());
            }
        }
        Ok(())
    }

    fn enter(&mut self, stream: PeerStream) {
        let key = self.next_key;
        self.next_key += 1;
        let member = stream.member();
        let opened = stream.direction() == Direction::Outgoing;
        let dial = Dial::Shaken { opened, theirs: *stream.theirs() };
        let line = Line::start(key, stream, &self.shared.memory, self.post.clone());
        self.lines.insert(key, line);
        self.swarm.connected(key, member, dial, clock::now_ms(), &mut self.actions);
    }

    /// Does what is asked for until nothing is.
    fn settle(&mut self) -> Result<(), FetchEnd> {
        let nothing = Taken::default();
        self.act(&nothing)?;
        let mut data = Vec::new();
        while let Some(range) = self.swarm.next_check() {
            data.clear();
            let read =
                self.content.append_at(range.start, (range.end - range.start) as usize, &mut data);
            let read = read.ok().map(|()| data.as_slice());
            self.swarm.checked(read, clock::now_ms(), &mut self.actions);
            self.act(&nothing)?;
        }
        for key in self.swarm.take_ready() {
            self.pump(key);
        }
        let now_ms = clock::now_ms();
        // Also when nothing comes: a swarm that is not done looks that often.
        if now_ms >= self.write_ms {
            self.content.write_waiting()?;
            self.write_ms = now_ms + WAITING_MS;
        }
        self.note();
        Ok(())
    }

    /// Does what the swarm asks for; `taken` is what writes refer to.
    fn act(&mut self, taken: &Taken) -> Result<(), FetchEnd> {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                match action {
                    Action::Write { offset, data } => {
                        let length = data.len() as u64;
                        let now_ms = clock::now_ms();
                        self.content.write(taken, offset, data, now_ms)?;
                        self.counts.received.increment(length);
                        self.swarm.written(length, now_ms, &mut self.actions);
                    }
                    Action::Leaves { piece, leaves } => {
                        // Whoever asks for leaves that cannot be read asks another.
                        if let Err(error) = self.leaves.put(piece, &leaves) {
                            tracing::warn!(transfer = %self.id, %error, "hashes are not kept");
                        }
                    }
                    Action::Connect(member) => self.dial(member),
                    Action::Close { key, member, why } => {
                        self.lines.remove(&key);
                        if why.is_lie() {
                            tracing::warn!(transfer = %self.id, member, %why, "a peer is expelled");
                            self.reports.urge();
                        }
                    }
                    Action::ParentLate(parent) => self.reports.late(parent),
                    Action::Done => self.is_fetched = true,
                }
            }
        }
        Ok(())
    }

    fn dial(&self, member: Member) {
        let (dialer, post) = (self.endpoint.dialer().clone(), self.post.clone());
        tokio::task::spawn_local(async move {
            let dialled = dialer.dial(member).await;
            let dialled = dialled.map(Box::new).map_err(|error| error.to_string());
            // Fails when the transfer is over.
            let _ = post.send(Letter::Dialled(member, dialled)).await;
        });
    }

    /// Gives a line its next output, if it has none and there is some.
    fn pump(&mut self, key: PeerKey) {
        let Some(mut out) = self.lines.get_mut(&key).and_then(Line::take_idle) else { return };
        let now_ms = clock::now_ms();
        let (mut failed, mut views) = (false, Vec::new());
        while !failed && out.len() + ROOM_MIN <= OUT_BYTES {
            match self.swarm.next(key, OUT_BYTES - out.len(), &mut out.bytes, now_ms) {
                None => break,
                Some(Pull::Data { offset, len }) => {
                    self.counts.sent.increment(len.into());
                    if self.content.views_at(offset, len as usize, &mut views) {
                        views.drain(..).for_each(|view| out.push(view));
                    } else if let Err(error) =
                        self.content.append_at(offset, len as usize, &mut out.bytes)
                    {
                        tracing::warn!(transfer = %self.id, %error, "a piece cannot be served");
                        failed = true;
                    }
                }
                Some(Pull::Leaves { first, count }) => {
                    let leaves = self.leaves.read(first, count).ok();
                    self.swarm.leaves(key, leaves.as_deref(), &mut out.bytes, now_ms);
                }
            }
        }
        if failed {
            self.lines.remove(&key);
            self.swarm.disconnected(key, now_ms);
        } else if let Some(line) = self.lines.get_mut(&key) {
            line.send(out);
        }
    }

    /// Puts the progress on the board and reports what was gained.
    fn note(&mut self) {
        let now_ms = clock::now_ms();
        if let Some(progress) = self.swarm.progress() {
            if progress.written_bytes != self.verified_bytes {
                self.progress_ms = now_ms;
                self.verified_bytes = progress.written_bytes;
            }
            let refused = progress.refused_blocks.saturating_sub(self.refused_blocks);
            self.refused_blocks += refused;
            self.counts.refused.increment(refused);
            let is_due = self.is_fetched || now_ms >= self.noted_ms + NOTE_MS;
            if is_due
                && self.content.is_arriving()
                && let Some(mut update) = self.shared.board.get(&self.id)
            {
                update.verified_bytes = progress.written_bytes;
                update.resumed_bytes = progress.resumed_bytes;
                update.refused_blocks = progress.refused_blocks;
                let received = self.swarm.received();
                update.from_peers_bytes = from_peers(received);
                if self.is_fetched {
                    update.received_from = received_from(received);
                }
                self.shared.board.set(self.id, update);
                self.shared.changed.notify_one();
                self.noted_ms = now_ms;
            }
        }
        if now_ms >= self.reports.deadline_ms() {
            let (report, traffic) = (self.swarm.take_report(), self.swarm.traffic());
            self.reports.send(report, traffic, &self.shared.settings.outbox, now_ms);
        }
    }
}

/// Waits for the list and answers this member's number.
async fn number(endpoint: &mut Endpoint) -> Result<Member, FetchEnd> {
    let mut lists = endpoint.peers();
    let first = lists.wait_for(Option::is_some);
    match tokio::time::timeout(Duration::from_millis(LIST_MS), first).await {
        Ok(Ok(list)) => list.as_ref().map(|list| list.me).ok_or(FetchEnd::Cancelled),
        Ok(Err(_)) => Err(FetchEnd::Failed("the agent stops".into())),
        Err(_) => Err(FetchEnd::Failed(format!(
            "the list of the transfer's members did not come within {} s",
            LIST_MS / 1000
        ))),
    }
}
