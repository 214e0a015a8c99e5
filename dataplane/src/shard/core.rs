//! The shard itself. See the module's head for the seam.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use skein_wire::data::ServerFrame;
use skein_wire::liveness::ObservedClock;

use crate::limits::{
    ASSEMBLY_BYTES_MAX, PRE_AUTH_CONNECTIONS_MAX, SCRATCH_BYTES, SHARD_OUT_BYTES_MAX,
};
use crate::metrics::ShardMetrics;
use crate::router::SessionRef;
use crate::session::{CloseReason, Conn, Ctx, Shared};
use crate::tls::{TLS_RECORD_BYTES_MAX, TlsAcceptor};

use super::budget::Budget;
use super::mail::{Delivery, ShardMail};
use super::slab::{ConnKey, Slab};
use super::wheel::{TICK_MS, TimerWheel};

/// A pause between two turns that is longer than this is the shard's own fault and does not count
/// as silence of its peers: eight ticks, room for a loaded machine.
pub const STALL_MS: u64 = 8 * TICK_MS;

/// Why a connection is not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AcceptRefused {
    /// As many sessions as the process may hold.
    #[error("no room for another session")]
    Full,
    /// Too many connections that have not authenticated.
    #[error("too many connections before authentication")]
    PreAuth,
    /// TLS could not be set up.
    #[error("TLS is not available")]
    Tls,
    /// The process goes away.
    #[error("the process goes away")]
    Draining,
}

impl AcceptRefused {
    /// Metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::PreAuth => "pre_auth",
            Self::Tls => "tls",
            Self::Draining => "draining",
        }
    }
}

struct Slot {
    conn: Conn,
    /// Tick of the entry in the wheel that counts; others of this session are ignored. It has at
    /// most three: an earlier deadline makes a new entry, which a challenge and the end do.
    due_ms: u64,
    /// Queued in `dirty`.
    dirty: bool,
    /// Queued in `router_waiters`.
    awaits_router: bool,
    /// Queued in `memory_waiters`.
    awaits_memory: bool,
    /// Queued in `paced`.
    paced: bool,
    /// Counted in `pre_auth`.
    pre_auth: bool,
    /// Counted in `out_bytes`.
    out_bytes: usize,
    /// Counted in `held_bytes`.
    held_bytes: usize,
}

/// One shard.
pub struct Shard {
    number: u16,
    shared: Arc<Shared>,
    tls: TlsAcceptor,
    conns: Slab<Slot>,
    wheel: TimerWheel<ConnKey>,
    /// Deadlines are in observed time: a stalled shard loses nobody.
    clock: ObservedClock,
    turned_ms: u64,
    unix_ms: i64,
    scratch: Box<[u8]>,
    /// Bytes at the front of `scratch` that belong to the session it is lent to.
    lent: Option<(ConnKey, usize)>,
    spare: Vec<Vec<u8>>,
    assembly: Budget,
    out_bytes: usize,
    /// Memory in which received bytes wait, of all sessions.
    held_bytes: usize,
    pre_auth: usize,
    metrics: ShardMetrics,
    dirty: Vec<ConnKey>,
    /// Sessions that wait for memory, in order.
    memory_waiters: VecDeque<ConnKey>,
    /// Sessions that wait for the rate of a transfer, in turn. The wheel is not for them: a
    /// deadline several times a second would leave an entry there each time.
    paced: VecDeque<ConnKey>,
    /// Per router worker: sessions that wait for its queue.
    router_waiters: Vec<Vec<ConnKey>>,
    /// Workers to wait for, not yet told to the driver.
    waits: Vec<usize>,
    /// Per worker: it is waited for.
    awaited: Vec<bool>,
    shutdown: bool,
}

/// A session together with what it may touch; a macro because the borrows are of single fields.
macro_rules! with_conn {
    ($shard:ident, $key:expr, |$conn:ident, $ctx:ident| $body:expr) => {
        match $shard.conns.get_mut($key) {
            None => None,
            Some(slot) => {
                let $conn = &mut slot.conn;
                #[allow(unused_mut)]
                let mut $ctx = Ctx {
                    me: SessionRef { shard: $shard.number, conn: $key.0 },
                    now_ms: $shard.clock.observed_ms(),
                    unix_ms: $shard.unix_ms,
                    shared: &$shard.shared,
                    assembly: &mut $shard.assembly,
                    metrics: &$shard.metrics,
                    crowded: $shard.out_bytes > SHARD_OUT_BYTES_MAX / 4,
                    spare: &mut $shard.spare,
                };
                Some($body)
            }
        }
    };
}

impl Shard {
    /// Shard `number` with room for `sessions_max` sessions.
    pub fn new(
        number: u16,
        shared: Arc<Shared>,
        tls: TlsAcceptor,
        sessions_max: usize,
        now_ms: u64,
    ) -> Self {
        let workers = shared.router.workers();
        Self {
            number,
            shared,
            tls,
            conns: Slab::new(sessions_max),
            wheel: TimerWheel::new(0),
            clock: ObservedClock::new(now_ms, STALL_MS),
            turned_ms: now_ms,
            unix_ms: 0,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            lent: None,
            spare: Vec::new(),
            assembly: Budget::new(ASSEMBLY_BYTES_MAX),
            out_bytes: 0,
            held_bytes: 0,
            pre_auth: 0,
            metrics: ShardMetrics::new(number),
            dirty: Vec::new(),
            memory_waiters: VecDeque::new(),
            paced: VecDeque::new(),
            router_waiters: vec![Vec::new(); workers],
            waits: Vec::new(),
            awaited: vec![false; workers],
            shutdown: false,
        }
    }

    /// Number of connections.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Memory in which received bytes wait, of all sessions; idle ones have none.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether so many connections have not authenticated that no other should be accepted now.
    pub fn is_pre_auth_full(&self) -> bool {
        self.pre_auth >= PRE_AUTH_CONNECTIONS_MAX
    }

    /// Counters of this shard.
    pub fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    /// Whether the shard was shut down and every session is gone.
    pub fn is_over(&self) -> bool {
        self.shutdown && self.conns.is_empty()
    }

    // ------------------------------------------------------------------ sockets

    /// A connection was accepted by a listener.
    pub fn accept(&mut self, remote: SocketAddr) -> Result<ConnKey, AcceptRefused> {
        if self.shutdown {
            return Err(AcceptRefused::Draining);
        }
        if self.is_pre_auth_full() {
            return Err(AcceptRefused::PreAuth);
        }
        let tls = self.tls.accept().map_err(|_| AcceptRefused::Tls)?;
        let conn = Conn::new(tls, remote, self.clock.observed_ms());
        let slot = Slot {
            conn,
            due_ms: u64::MAX,
            dirty: false,
            awaits_router: false,
            awaits_memory: false,
            paced: false,
            pre_auth: true,
            out_bytes: 0,
            held_bytes: 0,
        };
        let key = self.conns.insert(slot).map_err(|_| AcceptRefused::Full)?;
        self.pre_auth += 1;
        self.schedule(key);
        Ok(key)
    }

    /// A buffer to read into, or `None` when the session does not want to read now. Must be
    /// followed by [`Self::received`].
    pub fn lend(&mut self, key: ConnKey) -> Option<&mut [u8]> {
        debug_assert!(self.lent.is_none(), "lent twice");
        let conn = &mut self.conns.get_mut(key)?.conn;
        // What a full router does not take stays with the session: one record at most.
        let router_full = conn.router_worker().is_some_and(|worker| self.awaited[worker]);
        let tight = router_full || self.assembly.is_tight();
        let room = conn.read_room(tight).filter(|room| *room > 0)?;
        let held = conn.lend(&mut self.scratch);
        self.lent = Some((key, held));
        let end = held.saturating_add(room).min(self.scratch.len());
        Some(&mut self.scratch[held..end])
    }

    /// So many bytes were read into the lent buffer; 0: none were there.
    pub fn received(&mut self, key: ConnKey, bytes: usize) {
        let Some((_, held)) = self.lent.take().filter(|(lent_to, _)| *lent_to == key) else {
            debug_assert!(false, "received without lend");
            return;
        };
        if bytes == 0 {
            if let Some(slot) = self.conns.get_mut(key) {
                slot.conn.give_back(&self.scratch[..held]);
            }
            return;
        }
        let scratch = &mut self.scratch;
        with_conn!(self, key, |conn, ctx| {
            ctx.metrics.received(conn.kind(), bytes);
            conn.receive(scratch, held + bytes, &mut ctx);
        });
        self.settle(key, false);
    }

    /// What is to be sent next.
    pub fn output(&mut self, key: ConnKey) -> &[u8] {
        with_conn!(self, key, |conn, ctx| conn.prepare_output(&mut ctx));
        self.conns.get(key).map_or(&[], |slot| slot.conn.output())
    }

    /// So many bytes of it were sent.
    pub fn sent(&mut self, key: ConnKey, bytes: usize) {
        with_conn!(self, key, |conn, ctx| {
            ctx.metrics.sent(conn.kind(), bytes);
            conn.sent(bytes, &mut ctx);
        });
        self.settle(key, false);
    }

    /// The peer closed its direction (`broken` false) or the socket is of no use (true).
    pub fn closed(&mut self, key: ConnKey, broken: bool) {
        with_conn!(self, key, |conn, ctx| conn.socket_closed(broken, &mut ctx));
        self.settle(key, false);
    }

    /// All output is sent and our direction can be shut.
    pub fn wants_shutdown(&self, key: ConnKey) -> bool {
        self.conns.get(key).is_some_and(|slot| slot.conn.wants_shutdown())
    }

    /// Whether the socket can be dropped; the key finds nothing any more then.
    pub fn is_finished(&mut self, key: ConnKey) -> bool {
        let Some(slot) = self.conns.get(key) else { return true };
        if !slot.conn.is_finished() {
            return false;
        }
        if let Some(slot) = self.conns.remove(key) {
            self.out_bytes -= slot.out_bytes;
            self.held_bytes -= slot.held_bytes;
            if slot.awaits_memory {
                self.memory_waiters.retain(|waiter| *waiter != key);
            }
            if slot.paced {
                self.paced.retain(|waiter| *waiter != key);
            }
            if slot.awaits_router {
                self.router_waiters.iter_mut().for_each(|of| of.retain(|waiter| *waiter != key));
            }
            self.pre_auth -= usize::from(slot.pre_auth);
        }
        true
    }

    // ------------------------------------------------------------------ effects

    /// Sessions whose sockets have something to do.
    pub fn take_dirty(&mut self) -> Vec<ConnKey> {
        let keys = std::mem::take(&mut self.dirty);
        for key in &keys {
            if let Some(slot) = self.conns.get_mut(*key) {
                slot.dirty = false;
            }
        }
        keys
    }

    /// Router workers whose queue is full and for which somebody waits.
    pub fn take_waits(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.waits)
    }

    /// A worker that was waited for has room.
    pub fn router_ready(&mut self, worker: usize) {
        self.awaited[worker] = false;
        let waiters = std::mem::take(&mut self.router_waiters[worker]);
        for key in waiters {
            if let Some(slot) = self.conns.get_mut(key) {
                slot.awaits_router = false;
            }
            self.resume(key);
        }
    }

    fn resume(&mut self, key: ConnKey) {
        let scratch = &mut self.scratch;
        with_conn!(self, key, |conn, ctx| conn.resume(scratch, &mut ctx));
        self.settle(key, true);
    }

    fn wait_for(&mut self, worker: usize) {
        if !std::mem::replace(&mut self.awaited[worker], true) {
            self.waits.push(worker);
        }
    }

    /// After anything that a session did: account for it, and note what it and others wait for.
    fn settle(&mut self, key: ConnKey, wake: bool) {
        use crate::session::Blocked;
        let Some(slot) = self.conns.get_mut(key) else { return };
        if slot.pre_auth && (slot.conn.is_authenticated() || slot.conn.ending().is_some()) {
            slot.pre_auth = false;
            self.pre_auth -= 1;
        }
        let ends = slot.conn.ending().is_some();
        let out_bytes = slot.conn.output_bytes();
        self.out_bytes = self.out_bytes + out_bytes - slot.out_bytes;
        slot.out_bytes = out_bytes;
        let held_bytes = slot.conn.held_bytes();
        self.held_bytes = self.held_bytes + held_bytes - slot.held_bytes;
        slot.held_bytes = held_bytes;
        if wake && !slot.dirty {
            slot.dirty = true;
            self.dirty.push(key);
        }
        if slot.conn.is_paced() && !std::mem::replace(&mut slot.paced, true) {
            self.paced.push_back(key);
        }
        let blocked = slot.conn.blocked();
        let awaits_router = matches!(blocked, Some((Blocked::Router, _)));
        let news = awaits_router && !std::mem::replace(&mut slot.awaits_router, awaits_router);
        match blocked {
            Some((Blocked::Router, worker)) => {
                if news {
                    self.router_waiters[worker].push(key);
                }
                self.wait_for(worker);
            }
            Some((Blocked::Memory, _)) if !std::mem::replace(&mut slot.awaits_memory, true) => {
                self.memory_waiters.push_back(key);
            }
            _ => {}
        }
        if ends {
            self.schedule(key);
        }
        self.serve_memory_waiters();
    }

    /// Lets the first waiters go on as far as memory allows; the others stay in order.
    fn serve_memory_waiters(&mut self) {
        if self.memory_waiters.is_empty() || self.assembly.is_tight() {
            return;
        }
        // Each resumed session settles too; taking the queue keeps that from nesting.
        let mut waiters = std::mem::take(&mut self.memory_waiters);
        while let Some(key) = waiters.pop_front() {
            if let Some(slot) = self.conns.get_mut(key) {
                slot.awaits_memory = false;
            }
            self.resume(key);
            if self.assembly.is_tight() {
                break;
            }
        }
        waiters.extend(self.memory_waiters.drain(..));
        self.memory_waiters = waiters;
    }

    /// Lets each session that waits for a transfer's rate look whether there is room, once. Who
    /// still waits, or waits again, keeps or gets its place behind those that have not been served.
    fn serve_paced(&mut self) {
        for _ in 0..self.paced.len() {
            let Some(key) = self.paced.pop_front() else { return };
            let Some(slot) = self.conns.get_mut(key) else { continue };
            slot.paced = false;
            with_conn!(self, key, |conn, ctx| conn.pace_turn(&mut ctx));
            self.settle(key, true);
        }
    }

    // ------------------------------------------------------------------ mail

    /// Handles one mail.
    pub fn mail(&mut self, mail: ShardMail) {
        match mail {
            ShardMail::Router(frames) => self.router_frames(&frames),
            ShardMail::ToAgents(delivery) => self.deliver(delivery),
            ShardMail::Close(key, reason) => {
                with_conn!(self, key, |conn, ctx| conn.close(reason, &mut ctx));
                self.settle(key, true);
            }
            ShardMail::Challenge(key) => {
                with_conn!(self, key, |conn, ctx| conn.challenge(&mut ctx));
                self.schedule(key);
                self.settle(key, true);
            }
            ShardMail::EnrolAnswer(key, reply) => {
                with_conn!(self, key, |conn, ctx| conn.enrol_answer(&reply, &mut ctx));
                self.settle(key, true);
            }
            ShardMail::File(key, mail) => {
                if with_conn!(self, key, |conn, ctx| conn.file_mail(mail, &mut ctx)).is_some() {
                    self.resume(key);
                }
            }
            ShardMail::RevokedChanged => self.every(|conn, ctx| conn.check_revoked(ctx)),
            ShardMail::TransfersChanged => self.every(|conn, ctx| conn.transfers_changed(ctx)),
            ShardMail::GoAway => self.every(|conn, ctx| conn.go_away(ctx)),
            ShardMail::StopData => self.every(|conn, ctx| conn.stop_data(ctx)),
            ShardMail::Shutdown => {
                self.shutdown = true;
                self.every(|conn, ctx| conn.close(CloseReason::Draining, ctx));
            }
        }
    }

    fn every(&mut self, act: impl Fn(&mut Conn, &mut Ctx<'_>)) {
        for key in self.conns.keys() {
            with_conn!(self, key, |conn, ctx| act(conn, &mut ctx));
            self.settle(key, true);
        }
    }

    fn router_frames(&mut self, frames: &[(SessionRef, ServerFrame)]) {
        let mut last = None;
        for (session, frame) in frames {
            let key = ConnKey(session.conn);
            with_conn!(self, key, |conn, ctx| conn.router_frame(frame, &mut ctx));
            if let Some(previous) = last.replace(key).filter(|previous| *previous != key) {
                self.settle(previous, true);
            }
        }
        if let Some(key) = last {
            self.settle(key, true);
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let Delivery { dispatch_id, common, targets } = delivery;
        let mut undeliverable = Vec::new();
        for (key, agent, extra) in targets {
            let room = self.out_bytes < SHARD_OUT_BYTES_MAX;
            let delivered = room
                && with_conn!(self, key, |conn, ctx| conn.deliver(&common, &extra, &mut ctx))
                    == Some(true);
            if delivered {
                self.settle(key, true);
            } else {
                undeliverable.push(agent);
            }
        }
        if !undeliverable.is_empty() {
            self.shared.fleet.undeliverable(dispatch_id, undeliverable);
        }
    }

    // ------------------------------------------------------------------ time

    /// A turn of the clock, at every tick of the wheel; sockets that are readable should have had
    /// their turn before. Returns how long the shard had not listened, when that was too long.
    pub fn turn(&mut self, now_ms: u64, unix_ms: i64) -> Option<u64> {
        self.unix_ms = unix_ms;
        let passed_ms = now_ms.saturating_sub(std::mem::replace(&mut self.turned_ms, now_ms));
        let stalled = (passed_ms > STALL_MS).then(|| passed_ms - STALL_MS);
        self.clock.advance(now_ms);
        if let Some(away_ms) = stalled {
            self.metrics.self_doubts.increment(1);
            tracing::warn!(shard = self.number, away_ms, "was stalled; nobody is judged for it");
        }
        let mut due = Vec::new();
        self.wheel.advance(self.clock.observed_ms(), |key| due.push(key));
        for key in due {
            self.fire(key);
        }
        self.serve_paced();
        let buffers = self.assembly.used() + self.out_bytes + self.held_bytes;
        self.metrics.buffers.set(buffers as f64);
        stalled
    }

    fn fire(&mut self, key: ConnKey) {
        let now_ms = self.clock.observed_ms();
        let lost_after_ms = self.shared.liveness.lost_after_ms();
        let Some(slot) = self.conns.get_mut(key) else { return };
        if slot.due_ms > now_ms {
            return; // another entry counts
        }
        slot.due_ms = u64::MAX;
        let due = slot.conn.deadline_ms(lost_after_ms) <= now_ms;
        if due {
            with_conn!(self, key, |conn, ctx| conn.timer(&mut ctx));
            self.settle(key, true);
        }
        self.schedule(key);
    }

    /// Puts a session's deadline into the wheel if it is earlier than what is there. A deadline
    /// that moved later is found when the earlier entry fires.
    fn schedule(&mut self, key: ConnKey) {
        let lost_after_ms = self.shared.liveness.lost_after_ms();
        let Some(slot) = self.conns.get_mut(key) else { return };
        let deadline_ms = slot.conn.deadline_ms(lost_after_ms);
        if deadline_ms < slot.due_ms {
            slot.due_ms = self.wheel.schedule(deadline_ms, key);
        }
    }
}

const _: () = assert!(SCRATCH_BYTES > 2 * TLS_RECORD_BYTES_MAX);
