//! Fetching a file or a tree: checks, a channel, the leecher, what is partial, the rename.
//!
//! The file appears under its name only when every block was proved against the signed root and
//! flushed. A channel that breaks is dialled again and the transfer goes on where it was; it ends
//! without success when nothing new arrives for [`STUCK_MS`], or at once for what no retry mends.
//!
//! What may wait for a disk in one piece for seconds, making room and the final flush, is done on
//! a thread beside, so that other transfers go on meanwhile ([`Shared::on_disk`]).

use std::time::Duration;

use skein_filemesh::core::download::Download;
use skein_filemesh::core::leecher::{Action, Failure, Leecher, LeecherOptions};
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::peer_wire::{Handshake, info_hash, peer_id};
use skein_filemesh::engine::{FileError, Inbound, Taken};
use skein_observe::names;
use skein_wire::hello::ChannelKind;
use skein_wire::ids::TransferId;
use skein_wire::signal::v1::{JoinTransfer, TransferState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinError;

use super::arriving::Arriving;
use super::{Shared, cancelled, swarm};
use crate::clock;
use crate::link::{LinkStream, Redial};
use crate::mesh::Mesh;
use crate::paths::PathError;

/// Without a new block for this long a transfer fails. Longer than a server's upgrade.
const STUCK_MS: u64 = 900_000;
/// The same while the server answers but has nothing for us: it has forgotten the transfer.
const REFUSED_MS: u64 = 120_000;
/// Servers that send false blocks are asked this often in all.
const LIES_MAX: u32 = 3;

/// Why a fetch ended without its file.
pub(super) enum FetchEnd {
    /// It was not wanted any more.
    Cancelled,
    /// For this reason.
    Failed(String),
}

impl From<FileError> for FetchEnd {
    fn from(error: FileError) -> FetchEnd {
        FetchEnd::Failed(error.to_string())
    }
}

impl From<PathError> for FetchEnd {
    fn from(error: PathError) -> FetchEnd {
        FetchEnd::Failed(error.to_string())
    }
}

impl From<JoinError> for FetchEnd {
    fn from(error: JoinError) -> FetchEnd {
        FetchEnd::Failed(format!("the agent ends: {error}"))
    }
}

/// How one channel ended.
enum ChannelEnd {
    Done,
    Broken(String),
    Peer(Failure),
}

/// What may come while a fetch runs.
pub(super) struct Signals {
    /// It is not wanted any more.
    pub cancelled: watch::Receiver<bool>,
    /// It goes on among peers.
    pub meshed: watch::Receiver<bool>,
}

struct Fetch<'a> {
    shared: &'a Shared,
    id: TransferId,
    file: Arriving,
    /// When the last new block came.
    progress_ms: u64,
    verified_bytes: u64,
    refused_blocks: u64,
    received: metrics::Counter,
}

/// Runs a transfer to its end. One that ends without its file leaves nothing behind, also of an
/// earlier worker that was killed in the middle of it.
///
/// The answer is a swarm that serves the file to others, where the order asks for one.
pub(super) async fn run<'a>(
    shared: &'a Shared,
    mesh: &Mesh,
    id: TransferId,
    join: JoinTransfer,
    signals: Signals,
) -> Result<Option<swarm::Run<'a>>, FetchEnd> {
    let result = whole(shared, mesh, id, &join, signals).await;
    if result.is_err() {
        let settings = shared.settings.clone();
        // A folder that is not there, or not for us, has nothing of ours.
        let _ = shared.on_disk(move || Arriving::discard(&settings, &id, &join)).await;
    }
    result
}

async fn whole<'a>(
    shared: &'a Shared,
    mesh: &Mesh,
    id: TransferId,
    join: &JoinTransfer,
    signals: Signals,
) -> Result<Option<swarm::Run<'a>>, FetchEnd> {
    let Signals { cancelled: mut cancel, mut meshed } = signals;
    let turn = tokio::select! {
        turn = shared.running.acquire() => turn,
        () = cancelled(&mut cancel) => return Err(FetchEnd::Cancelled),
    };
    let _turn = turn.map_err(|_| FetchEnd::Failed("the agent stops".into()))?;
    let info = join.file.clone().unwrap_or_default();
    let manifest = Manifest::from_info(&info).map_err(|e| FetchEnd::Failed(e.to_string()))?;
    let (settings, order, expected) = (shared.settings.clone(), join.clone(), manifest.clone());
    let mut file =
        shared.on_disk(move || Arriving::open(&settings, &id, &order, &expected)).await??;
    file.use_memory(&shared.memory);
    let mut update = super::update(&id, TransferState::Running);
    update.verified_bytes = 0;
    shared.board.set(id, update);
    shared.changed.notify_one();
    let rate_limit_bytes_per_s = join.rate_limit_bytes_per_s;
    let order = swarm::Order { id, manifest: manifest.clone(), rate_limit_bytes_per_s };
    if join.meshed || *meshed.borrow() {
        return among_peers(shared, mesh, file, order, &mut cancel).await;
    }
    let progress_ms = clock::now_ms();
    let received = metrics::counter!(names::AGENT_FILE_RECEIVED_BYTES);
    let (verified_bytes, refused_blocks) = (0, 0);
    let mut fetch =
        Fetch { shared, id, file, progress_ms, verified_bytes, refused_blocks, received };
    let fetched = tokio::select! {
        fetched = fetch.fetch(join, &manifest) => Some(fetched),
        () = cancelled(&mut cancel) => Some(Err(FetchEnd::Cancelled)),
        () = cancelled(&mut meshed) => None,
    };
    let Some(fetched) = fetched else {
        tracing::info!(transfer = %id, "goes on among peers");
        // Opened anew, so that what is there is proved and its hashes are known, to serve it.
        let file = fetch.file;
        let join = JoinTransfer { meshed: true, ..join.clone() };
        shared.keep_order(id, join.clone()).await?;
        let settings = shared.settings.clone();
        let opened = shared.on_disk(move || {
            drop(file);
            Arriving::open(&settings, &id, &join, &manifest)
        });
        let mut file = opened.await??;
        file.use_memory(&shared.memory);
        return among_peers(shared, mesh, file, order, &mut cancel).await;
    };
    match fetched {
        Ok(()) => {
            shared.finish(fetch.file).await?;
            Ok(None)
        }
        Err(end) => {
            // What is there helps nobody: a new order is a new transfer.
            let file = fetch.file;
            if let Err(error) = shared.on_disk(move || file.abandon()).await? {
                tracing::warn!(transfer = %id, %error, "partial file is left");
            }
            Err(end)
        }
    }
}

async fn among_peers<'a>(
    shared: &'a Shared,
    mesh: &Mesh,
    file: Arriving,
    order: swarm::Order,
    cancel: &mut watch::Receiver<bool>,
) -> Result<Option<swarm::Run<'a>>, FetchEnd> {
    let endpoint = mesh.register(order.id, order.manifest.root);
    let endpoint = endpoint.map_err(|error| FetchEnd::Failed(error.to_string()))?;
    swarm::Run::fetch(shared, endpoint, file, order, cancel).await.map(Some)
}

impl Fetch<'_> {
    async fn fetch(&mut self, join: &JoinTransfer, manifest: &Manifest) -> Result<(), FetchEnd> {
        let claimed = self.file.claimed();
        let mut download = Download::new(manifest.geometry, manifest.root, claimed);
        let mut redial = Redial::default();
        let mut lies = 0;
        while !download.is_done() {
            let connected = self.shared.settings.dialer.connect(ChannelKind::File).await;
            let (pause, bound, why) = match connected {
                Err(error) => (redial.after(&error), STUCK_MS, error.to_string()),
                Ok(link) => {
                    let before = self.progress_ms;
                    let (back, end) = self.channel(link, download, join, manifest).await?;
                    download = back;
                    if self.progress_ms > before {
                        redial.reset();
                    }
                    match end {
                        ChannelEnd::Done => break,
                        ChannelEnd::Broken(why) => (redial.after_session(0), REFUSED_MS, why),
                        ChannelEnd::Peer(failure) => {
                            lies += u32::from(failure.is_lie());
                            if lies >= LIES_MAX {
                                return Err(FetchEnd::Failed(failure.to_string()));
                            }
                            (redial.after_session(0), REFUSED_MS, failure.to_string())
                        }
                    }
                }
            };
            if clock::now_ms() >= self.progress_ms + bound {
                return Err(FetchEnd::Failed(format!("no progress for too long: {why}")));
            }
            tracing::info!(transfer = %self.id, why, "file channel is dialled again");
            tokio::time::sleep(pause.min(Duration::from_secs(5))).await;
        }
        self.note(&download);
        Ok(())
    }

    /// Uses one channel until it ends; gives the download back.
    async fn channel(
        &mut self,
        mut link: LinkStream,
        download: Download,
        join: &JoinTransfer,
        manifest: &Manifest,
    ) -> Result<(Download, ChannelEnd), FetchEnd> {
        let agent = self.shared.settings.dialer.identity().get().agent_id.clone();
        let ours = Handshake::new(info_hash(&self.id.0, &manifest.root), peer_id(agent.as_str()));
        let options = LeecherOptions {
            peer_name: link.server.clone(),
            rate_limit_bytes_per_s: join.rate_limit_bytes_per_s,
        };
        let mut leecher = Leecher::connect(download, ours, options, clock::now_ms());
        let mut input = Inbound::new(&self.shared.memory);
        let (mut output, mut actions) = (Vec::new(), Vec::new());
        leecher.tick(clock::now_ms(), &mut actions);
        let end = loop {
            self.check_claims(&mut leecher, &mut actions).await;
            if let Some(end) = self.act(&mut leecher, &mut actions, &Taken::default())? {
                break end;
            }
            leecher.take_output(&mut output, clock::now_ms());
            if !output.is_empty() {
                // Requests are small: the server reads while it sends.
                let sent = async {
                    link.io.write_all(&output).await?;
                    link.io.flush().await
                };
                if let Err(error) = sent.await {
                    break ChannelEnd::Broken(error.to_string());
                }
                output.clear();
            }
            let now = clock::now_ms();
            let deadline = leecher.deadline_ms().unwrap_or(now).saturating_sub(now);
            let read = tokio::time::timeout(
                Duration::from_millis(deadline.max(1)),
                link.io.read(input.space(leecher.link().arriving_bytes())),
            );
            match read.await {
                Err(_) => leecher.tick(clock::now_ms(), &mut actions),
                Ok(Ok(0)) => break ChannelEnd::Broken("the server closed the file channel".into()),
                Ok(Err(error)) => break ChannelEnd::Broken(error.to_string()),
                Ok(Ok(count)) => {
                    input.arrived(count);
                    let used = leecher.receive(input.bytes(), clock::now_ms(), &mut actions);
                    let taken = input.take(used);
                    if let Some(end) = self.act(&mut leecher, &mut actions, &taken)? {
                        break end;
                    }
                }
            }
            self.note(leecher.download());
        };
        // Says that nothing more is wanted, so that the server need not wonder.
        leecher.take_output(&mut output, clock::now_ms());
        let farewell = async {
            link.io.write_all(&output).await?;
            link.io.shutdown().await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
        Ok((leecher.into_download(), end))
    }

    /// Does what the leecher asks for; `taken` is what writes refer to.
    fn act(
        &mut self,
        leecher: &mut Leecher,
        actions: &mut Vec<Action>,
        taken: &Taken,
    ) -> Result<Option<ChannelEnd>, FetchEnd> {
        let mut end = None;
        while !actions.is_empty() {
            for action in std::mem::take(actions) {
                match action {
                    Action::Write { offset, data } => {
                        let length = data.len() as u64;
                        self.file.write(taken, offset, data)?;
                        self.received.increment(length);
                        leecher.written(length, clock::now_ms(), actions);
                    }
                    Action::Leaves { .. } => {}
                    Action::Done => end = Some(ChannelEnd::Done),
                    Action::Failed(failure) => end = Some(ChannelEnd::Peer(failure)),
                }
            }
        }
        Ok(end)
    }

    /// Proves what an earlier run claims to have written. Others get their turn in between.
    async fn check_claims(&mut self, leecher: &mut Leecher, actions: &mut Vec<Action>) {
        let mut data = Vec::new();
        while let Some(range) = leecher.next_check() {
            data.clear();
            let length = (range.end - range.start) as usize;
            let read = self.file.append_at(range.start, length, &mut data);
            let read = read.ok().map(|()| data.as_slice());
            leecher.checked(read, clock::now_ms(), actions);
            tokio::task::yield_now().await;
        }
    }

    /// Puts the progress on the board.
    fn note(&mut self, download: &Download) {
        let progress = download.progress();
        if progress.written_bytes != self.verified_bytes {
            self.progress_ms = clock::now_ms();
            self.verified_bytes = progress.written_bytes;
        }
        let refused = progress.refused_blocks.saturating_sub(self.refused_blocks);
        self.refused_blocks += refused;
        metrics::counter!(names::AGENT_FILE_REFUSED_BLOCKS).increment(refused);
        if let Some(mut update) = self.shared.board.get(&self.id) {
            update.verified_bytes = progress.written_bytes;
            update.resumed_bytes = progress.resumed_bytes;
            update.refused_blocks = progress.refused_blocks;
            self.shared.board.set(self.id, update);
        }
    }
}
