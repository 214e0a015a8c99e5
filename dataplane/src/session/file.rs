//! The file channel: the peer wire of [`skein_filemesh::core`] with one agent about one file.
//!
//! The agent's handshake names the transfer; the directory of transfers says whether it is a member
//! and whether it fetches (we seed) or delivers (we fetch). A transfer that control has not
//! announced yet is waited for a moment, because the agent may have been faster.

use std::sync::Arc;

use skein_filemesh::core::download::Download;
use skein_filemesh::core::leecher::{Action, Leecher, LeecherOptions};
use skein_filemesh::core::link::Have;
use skein_filemesh::core::merkle::Hash;
use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, Handshake, peer_id};
use skein_filemesh::core::seeder::{Pull, Seeder};
use skein_wire::ids::AgentId;

use crate::files::{FetchDisk, FetchOrder, FileMail, OpenError, Role, SeedOffer, WriteJob};
use crate::limits::{FILE_INPUT_BYTES_MAX, FILE_OUT_BYTES_CROWDED, FILE_OUT_BYTES_HIGH};
use crate::shard::ShardMail;

use super::{CloseReason, Ctx};

/// Name of a server in handshakes.
const SERVER: &str = "server";

/// State of a file channel.
pub struct FileState {
    agent: AgentId,
    phase: Phase,
    /// Received and not used up.
    input: Vec<u8>,
}

enum Phase {
    /// The handshake is not whole, or its transfer is not announced or not open yet.
    Handshake,
    Seed(Box<SeedRun>),
    Opening(Arc<FetchOrder>, Handshake),
    Fetch(Box<FetchRun>),
}

struct SeedRun {
    offer: Arc<SeedOffer>,
    seeder: Seeder,
    /// A disk job is under way; its answer goes out next.
    busy: bool,
    /// There is something to send for which the transfer's rate has no room.
    paced: bool,
}

struct FetchRun {
    order: Arc<FetchOrder>,
    leecher: Leecher,
    /// Here unless a disk job has it.
    disk: Option<Box<FetchDisk>>,
    /// Proved leaves that go to the disk with the next blocks.
    leaves: Vec<(u32, Arc<[Hash]>)>,
    done: bool,
}

impl FileState {
    /// A channel whose HELLO was accepted.
    pub fn new(agent: AgentId) -> Self {
        Self { agent, phase: Phase::Handshake, input: Vec::new() }
    }

    /// Whether more input is welcome.
    pub fn wants_read(&self) -> bool {
        match &self.phase {
            Phase::Handshake | Phase::Opening(..) => self.input.len() < FILE_OUT_BYTES_CROWDED,
            Phase::Seed(_) | Phase::Fetch(_) => self.input.len() < FILE_INPUT_BYTES_MAX,
        }
    }

    /// Memory of what was received and not used up.
    pub fn held_bytes(&self) -> usize {
        self.input.capacity()
    }

    /// Whether the peer has not named a transfer that is open.
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake)
    }

    /// Whether it has something to send and waits for the transfer's rate.
    pub fn is_paced(&self) -> bool {
        matches!(&self.phase, Phase::Seed(run) if run.paced)
    }

    /// Takes plaintext; it is looked at in [`Self::advance`], once per turn.
    pub fn receive(&mut self, input: &[u8], ctx: &mut Ctx<'_>) {
        if self.input.capacity() == 0 {
            self.input = ctx.spare.pop().unwrap_or_default();
        }
        self.input.extend_from_slice(input);
    }

    /// Does what input, disk and output allow. `waiting` bytes of output are not sent yet.
    pub fn advance(
        &mut self,
        waiting: usize,
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        if matches!(self.phase, Phase::Handshake) {
            self.handshake(ctx)?;
        }
        match &mut self.phase {
            Phase::Seed(run) => run.advance(&mut self.input, waiting, plain, ctx)?,
            Phase::Fetch(run) => run.advance(&mut self.input, plain, ctx)?,
            Phase::Handshake | Phase::Opening(..) => {}
        }
        if self.input.is_empty() && self.input.capacity() > 0 {
            ctx.recycle(std::mem::take(&mut self.input));
        }
        Ok(())
    }

    fn handshake(&mut self, ctx: &mut Ctx<'_>) -> Result<(), CloseReason> {
        let theirs = match Handshake::decode(&self.input) {
            Ok(Some(theirs)) => theirs,
            Ok(None) => return Ok(()),
            Err(_) => return Err(CloseReason::Malformed),
        };
        let files = &ctx.shared.files;
        match files.role(&theirs.info_hash, &self.agent, ctx.unix_ms) {
            None => return Ok(()), // perhaps soon; the idle timer ends it
            Some(Role::Seed(offer)) => match offer.opened() {
                None => return Ok(()),
                Some(Err(_)) => return Err(CloseReason::Transfer),
                Some(Ok(open)) => {
                    let ours = Handshake::new(theirs.info_hash, peer_id(SERVER));
                    let tree = open.leaves.tree().clone();
                    let seeder = Seeder::accept(tree, Have::All, ours, &theirs, ctx.now_ms)
                        .map_err(|_| CloseReason::Malformed)?;
                    let offer = offer.clone();
                    let run = SeedRun { offer, seeder, busy: false, paced: false };
                    self.phase = Phase::Seed(Box::new(run));
                }
            },
            Some(Role::Fetch(order)) => {
                let opened = order.clone();
                submit(ctx, move || FileMail::Opened(opened.open().map(Box::new)))?;
                self.phase = Phase::Opening(order, theirs);
            }
        }
        self.input.drain(..HANDSHAKE_BYTES);
        Ok(())
    }

    /// A disk job has ended. [`Self::advance`] follows.
    pub fn mail(
        &mut self,
        mail: FileMail,
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        match (&mut self.phase, mail) {
            (Phase::Seed(run), FileMail::Read(buffer, result)) => {
                run.busy = false;
                debug_assert!(plain.is_empty(), "nothing is said while the disk is read");
                *plain = buffer;
                result.map_err(|error| run.failed(&error))
            }
            (Phase::Seed(run), FileMail::Leaves(leaves)) => {
                run.busy = false;
                run.seeder.leaves(leaves.as_deref(), plain, ctx.now_ms);
                Ok(())
            }
            (Phase::Opening(..), FileMail::Opened(result)) => self.opened(result, ctx),
            (Phase::Fetch(run), mail) => run.mail(mail, ctx),
            _ => Err(CloseReason::Internal),
        }
    }

    fn opened(
        &mut self,
        result: Result<Box<FetchDisk>, OpenError>,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        let Phase::Opening(order, theirs) = std::mem::replace(&mut self.phase, Phase::Handshake)
        else {
            return Err(CloseReason::Internal);
        };
        let disk = match result {
            Ok(disk) => disk,
            Err(OpenError::Busy) => return Err(CloseReason::Transfer),
            Err(OpenError::Failed(error)) => {
                ctx.shared.files.fetch_ended(&order, Err(error));
                return Err(CloseReason::Transfer);
            }
        };
        let manifest = &order.manifest;
        let download = Download::new(manifest.geometry, manifest.root, disk.claimed());
        let ours = Handshake::new(theirs.info_hash, peer_id(SERVER));
        let peer_name = self.agent.as_str().to_owned();
        let options = LeecherOptions { peer_name, ..LeecherOptions::default() };
        let leecher = Leecher::accept(download, ours, &theirs, options, ctx.now_ms)
            .map_err(|_| CloseReason::Malformed)?;
        let run = FetchRun { order, leecher, disk: Some(disk), leaves: Vec::new(), done: false };
        self.phase = Phase::Fetch(Box::new(run));
        Ok(())
    }

    /// Transfers changed: one may be open now, or withdrawn.
    pub fn still_offered(&self, ctx: &Ctx<'_>) -> Result<(), CloseReason> {
        let info_hash = match &self.phase {
            Phase::Handshake => return Ok(()),
            Phase::Seed(run) => run.offer.info_hash,
            Phase::Opening(order, _) => order.info_hash,
            Phase::Fetch(run) if run.done => return Ok(()),
            Phase::Fetch(run) => run.order.info_hash,
        };
        let role = ctx.shared.files.role(&info_hash, &self.agent, ctx.unix_ms);
        role.map(|_| ()).ok_or(CloseReason::Transfer)
    }
}

impl SeedRun {
    fn advance(
        &mut self,
        input: &mut Vec<u8>,
        waiting: usize,
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        if ctx.unix_ms > self.offer.not_after_ms {
            return Err(CloseReason::Transfer);
        }
        let used = self.seeder.receive(input, ctx.now_ms).map_err(|_| CloseReason::Malformed)?;
        input.drain(..used);
        let high = if ctx.crowded { FILE_OUT_BYTES_CROWDED } else { FILE_OUT_BYTES_HIGH };
        self.paced = false;
        // Below half, so that reads are large.
        while !self.busy && waiting + plain.len() <= high / 2 {
            if self.seeder.has_output() && !self.offer.may_send() {
                self.paced = true;
                break;
            }
            if plain.capacity() == 0 {
                *plain = ctx.spare.pop().unwrap_or_default();
            }
            let room = high - waiting - plain.len();
            match self.seeder.next(room, plain, ctx.now_ms) {
                None => break,
                Some(Pull::Data { offset, len }) => {
                    let (offer, mut buffer) = (self.offer.clone(), std::mem::take(plain));
                    ctx.metrics.file_sent.increment(u64::from(len));
                    self.offer.count_sent(len);
                    submit(ctx, move || {
                        let read = match offer.opened() {
                            Some(Ok(open)) => open
                                .file
                                .append_at(offset, len as usize, &mut buffer)
                                .map_err(|e| e.to_string()),
                            _ => Err("the file is not open".to_owned()),
                        };
                        FileMail::Read(buffer, read)
                    })?;
                    self.busy = true;
                }
                Some(Pull::Leaves { first, count }) => {
                    let offer = self.offer.clone();
                    submit(ctx, move || {
                        let mut leaves = Vec::new();
                        let read = match offer.opened() {
                            Some(Ok(open)) => open.leaves.append_leaves(first, count, &mut leaves),
                            _ => return FileMail::Leaves(None),
                        };
                        FileMail::Leaves(read.is_ok().then_some(leaves))
                    })?;
                    self.busy = true;
                }
            }
        }
        Ok(())
    }

    fn failed(&self, error: &str) -> CloseReason {
        tracing::error!(transfer = %self.offer.transfer, %error, "cannot read a file that is served");
        CloseReason::Transfer
    }
}

impl FetchRun {
    fn advance(
        &mut self,
        input: &mut Vec<u8>,
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        let mut actions = Vec::new();
        self.leecher.tick(ctx.now_ms, &mut actions);
        if self.disk.is_some() && !self.done {
            let used = self.leecher.receive(input, ctx.now_ms, &mut actions);
            self.act(actions, input, used, ctx)?;
            if self.disk.is_some() && !self.done {
                self.check_claims(ctx)?;
            }
        } else {
            self.act(actions, input, 0, ctx)?;
        }
        self.leecher.take_output(plain, ctx.now_ms);
        Ok(())
    }

    /// Carries out what the leecher wants; the first `used` bytes of `input` are used up.
    fn act(
        &mut self,
        actions: Vec<Action>,
        input: &mut Vec<u8>,
        used: usize,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        let mut blocks = Vec::new();
        let mut done = false;
        for action in actions {
            match action {
                Action::Write { offset, data } => blocks.push((offset, data)),
                Action::Leaves { piece, leaves } => self.leaves.push((piece, leaves)),
                Action::Done => done = true,
                Action::Failed(failure) => {
                    tracing::warn!(transfer = %self.order.transfer, %failure, "fetch broke off");
                    if failure.is_lie() {
                        ctx.metrics.refused_blocks.increment(1);
                        ctx.shared.files.fetch_ended(&self.order, Err(failure.to_string()));
                    }
                    return Err(CloseReason::Transfer);
                }
            }
        }
        if blocks.is_empty() {
            input.drain(..used);
        } else if let Some(mut disk) = self.disk.take() {
            // The buffer goes to the disk as it is; what is left of it starts the next one.
            let rest = input.split_off(used);
            let buffer = std::mem::replace(input, rest);
            let job = WriteJob { blocks, leaves: std::mem::take(&mut self.leaves) };
            submit(ctx, move || {
                let result = disk.write(&buffer, &job);
                FileMail::Wrote { disk, buffer, result }
            })?;
        }
        if done {
            self.done = true;
            let mut disk = self.disk.take().ok_or(CloseReason::Internal)?;
            let rest = WriteJob { blocks: Vec::new(), leaves: std::mem::take(&mut self.leaves) };
            let layer = self.leecher.download().hashes().whole_layer();
            submit(ctx, move || {
                let written = disk.write(&[], &rest);
                FileMail::Finished(written.and_then(|_| disk.finish(layer)))
            })?;
        }
        Ok(())
    }

    /// Reads back what an earlier run claims to have written.
    fn check_claims(&mut self, ctx: &mut Ctx<'_>) -> Result<(), CloseReason> {
        let Some(range) = self.leecher.next_check() else { return Ok(()) };
        let mut disk = self.disk.take().ok_or(CloseReason::Internal)?;
        submit(ctx, move || {
            let data = disk.read(&range);
            FileMail::Checked(disk, data)
        })
    }

    fn mail(&mut self, mail: FileMail, ctx: &mut Ctx<'_>) -> Result<(), CloseReason> {
        let mut actions = Vec::new();
        match mail {
            FileMail::Wrote { disk, buffer, result } => {
                self.disk = Some(disk);
                ctx.recycle(buffer);
                let bytes = result.map_err(|error| self.failed(error, ctx))?;
                ctx.metrics.file_received.increment(bytes);
                self.leecher.written(bytes, ctx.now_ms, &mut actions);
            }
            FileMail::Checked(disk, data) => {
                self.disk = Some(disk);
                self.leecher.checked(data.as_deref(), ctx.now_ms, &mut actions);
            }
            FileMail::Finished(result) => {
                result.map_err(|error| self.failed(error, ctx))?;
                let bytes = self.order.manifest.geometry.size_bytes();
                ctx.shared.files.fetch_ended(&self.order, Ok(bytes));
                return Err(CloseReason::TransferDone);
            }
            FileMail::Read(..) | FileMail::Leaves(_) | FileMail::Opened(_) => {
                return Err(CloseReason::Internal);
            }
        }
        self.act(actions, &mut Vec::new(), 0, ctx)
    }

    fn failed(&self, error: String, ctx: &Ctx<'_>) -> CloseReason {
        ctx.shared.files.fetch_ended(&self.order, Err(error));
        CloseReason::Transfer
    }
}

/// Gives a job to the file threads; its answer comes back as mail.
fn submit(
    ctx: &Ctx<'_>,
    job: impl FnOnce() -> FileMail + Send + 'static,
) -> Result<(), CloseReason> {
    let key = ctx.key();
    let shard = ctx.shared.shards.get(usize::from(ctx.me.shard)).cloned();
    let shard = shard.ok_or(CloseReason::Internal)?;
    let submitted = ctx.shared.files.pool().submit(move || {
        let _ = shard.send(ShardMail::File(key, job())); // fails when the process ends
    });
    if submitted { Ok(()) } else { Err(CloseReason::Memory) }
}
