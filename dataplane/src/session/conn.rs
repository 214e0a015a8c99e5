//! One connection from its first byte to its last.
//!
//! ```text
//! TLS handshake ─► Hello ─┬─► Enrol ──► (reply) ─► closing
//!                         ├─► Signal ─┐
//!                         ├─► Data ───┼─► closing ─► finished
//!                         └─► File ───┘
//! ```
//! Invariants: until HELLO is accepted at most `PRE_AUTH_BYTES_MAX` bytes are held; plaintext that
//! waits in `plain` and ciphertext in `out` are bounded per kind; an idle connection owns no buffer.

use std::net::SocketAddr;

use bytes::Bytes;
use skein_wire::data::ServerFrame;
use skein_wire::hello::{ChannelKind, HELLO_BYTES, Hello, HelloStatus};
use skein_wire::limits::{PRE_AUTH_BYTES_MAX, PRE_AUTH_TIME_MS};

use crate::files::FileMail;
use crate::limits::{
    DATA_OUT_BYTES_MAX, ENROL_WAIT_MS, FILE_IDLE_MS, FRAME_TIME_MS, LINGER_MS,
    READ_UNDER_PRESSURE_BYTES, SIGNAL_OUT_BYTES_MAX,
};
use crate::router::ToRouter;
use crate::shard::ShardMail;
use crate::tls::{Flow, PeerIdentity, Received, TlsError, TlsSession};

use super::data::{Blocked, DataState};
use super::enrol::{self, EnrolState};
use super::file::FileState;
use super::hello;
use super::signal::{self, SignalState};
use super::{CloseReason, Ctx};

/// A session that was challenged by a second instance must show life within this time.
const CHALLENGE_MS: u64 = 5_000;

/// A connection of a shard.
pub struct Conn {
    tls: TlsSession,
    state: State,
    identity: Option<PeerIdentity>,
    remote: SocketAddr,
    accepted_ms: u64,
    /// Observed time of the last byte.
    heard_ms: u64,
    /// When the TLS record that is not whole began.
    record_since_ms: Option<u64>,
    challenge_until_ms: Option<u64>,
    /// Plaintext to be encrypted when the socket asks for output.
    plain: Vec<u8>,
    /// Ciphertext, of which the first `out_sent` bytes are sent.
    out: Vec<u8>,
    out_sent: usize,
    ending: Option<Ending>,
}

#[derive(Clone, Copy)]
struct Ending {
    reason: CloseReason,
    since_ms: u64,
    /// The socket is of no use: do not wait for output.
    broken: bool,
    /// The peer has closed its direction.
    peer_gone: bool,
}

enum State {
    Hello(HelloState),
    Enrol(EnrolState, u64),
    Signal(Box<SignalState>),
    Data(Box<DataState>),
    File(Box<FileState>),
    Ended,
}

#[derive(Default)]
struct HelloState {
    bytes: [u8; HELLO_BYTES],
    filled: usize,
    /// What came in the same record behind HELLO.
    early: Vec<u8>,
}

impl Conn {
    /// A connection that was just accepted.
    pub fn new(tls: TlsSession, remote: SocketAddr, now_ms: u64) -> Self {
        Self {
            tls,
            state: State::Hello(HelloState::default()),
            identity: None,
            remote,
            accepted_ms: now_ms,
            heard_ms: now_ms,
            record_since_ms: None,
            challenge_until_ms: None,
            plain: Vec::new(),
            out: Vec::new(),
            out_sent: 0,
            ending: None,
        }
    }

    /// The kind of channel; `None` before HELLO and after the end.
    pub fn kind(&self) -> Option<ChannelKind> {
        match self.state {
            State::Hello(_) | State::Ended => None,
            State::Enrol(..) => Some(ChannelKind::Enrol),
            State::Signal(_) => Some(ChannelKind::Signal),
            State::Data(_) => Some(ChannelKind::Data),
            State::File(_) => Some(ChannelKind::File),
        }
    }

    /// Whether a client certificate has been accepted by HELLO.
    pub fn is_authenticated(&self) -> bool {
        matches!(self.state, State::Signal(_) | State::Data(_) | State::File(_))
    }

    /// Who it is, once authenticated.
    pub fn identity(&self) -> Option<&PeerIdentity> {
        self.identity.as_ref()
    }

    // ------------------------------------------------------------------ input

    /// How many bytes it wants to read next; `None`: not now.
    pub fn read_room(&self, tight: bool) -> Option<usize> {
        if let Some(ending) = &self.ending {
            return (self.lingers() && !ending.peer_gone).then_some(READ_UNDER_PRESSURE_BYTES);
        }
        match &self.state {
            State::Hello(_) | State::Enrol(..) => Some(PRE_AUTH_BYTES_MAX - self.pre_auth_held()),
            State::Data(data) if !data.wants_read() => None,
            State::File(file) if !file.wants_read() => None,
            _ if tight => Some(READ_UNDER_PRESSURE_BYTES),
            _ => Some(usize::MAX),
        }
    }

    fn pre_auth_held(&self) -> usize {
        let state = match &self.state {
            State::Hello(hello) => hello.early.len(),
            State::Enrol(enrol, _) => enrol.held_bytes(),
            _ => 0,
        };
        (self.tls.held_bytes() + state).min(PRE_AUTH_BYTES_MAX)
    }

    /// Bytes of memory in which received bytes wait; none while it is idle.
    pub fn held_bytes(&self) -> usize {
        let state = match &self.state {
            State::Hello(hello) => hello.early.capacity(),
            State::Enrol(enrol, _) => enrol.held_bytes(),
            State::Signal(signal) => signal.held_bytes(),
            State::Data(data) => data.held_bytes(),
            State::File(file) => file.held_bytes(),
            State::Ended => 0,
        };
        self.tls.held_bytes() + state
    }

    /// The router worker that takes what it receives.
    pub fn router_worker(&self) -> Option<usize> {
        match &self.state {
            State::Data(data) => Some(data.worker),
            _ => None,
        }
    }

    /// Moves bytes that TLS kept to the front of the shard's buffer; says how many.
    pub fn lend(&mut self, scratch: &mut [u8]) -> usize {
        self.tls.lend(scratch)
    }

    /// Takes them back when nothing new was read.
    pub fn give_back(&mut self, held: &[u8]) {
        self.tls.give_back(held);
    }

    /// Processes the first `filled` bytes of the shard's buffer.
    pub fn receive(&mut self, scratch: &mut [u8], filled: usize, ctx: &mut Ctx<'_>) {
        if self.ending.is_some() {
            return; // lingering: what comes is thrown away
        }
        self.heard_ms = ctx.now_ms;
        self.challenge_until_ms = None;
        let mut filled = filled;
        loop {
            match self.turn(&mut scratch[..filled], ctx) {
                Ok(true) => filled = self.tls.lend(scratch),
                Ok(false) => break,
                Err(reason) => return self.close(reason, ctx),
            }
        }
        // A record that trickles in is no better than a message that does; one that waits for us is
        // not the peer's fault.
        let trickles = self.tls.held_bytes() > 0 && self.read_room(false).is_some();
        let since_ms = self.record_since_ms.unwrap_or(ctx.now_ms);
        self.record_since_ms = trickles.then_some(since_ms);
    }

    /// One pass over the buffer; true when TLS holds more that can be processed now.
    fn turn(&mut self, buffer: &mut [u8], ctx: &mut Ctx<'_>) -> Result<bool, CloseReason> {
        let was_established = self.tls.is_established();
        let Self { tls, state, plain, out, remote, record_since_ms, .. } = self;
        let mut result = Ok(());
        let received = tls.receive(buffer, out, |input| {
            *record_since_ms = None;
            if result.is_err() {
                return Flow::Pause;
            }
            match state.receive(input, plain, *remote, ctx) {
                Ok(flow) => flow,
                Err(reason) => {
                    result = Err(reason);
                    Flow::Pause
                }
            }
        });
        if !was_established && self.tls.is_established() {
            ctx.metrics.handshake(ctx.now_ms - self.accepted_ms);
        }
        let received = received.map_err(|error| {
            if !was_established && !self.tls.is_established() {
                ctx.metrics.handshakes_failed.increment(1);
            }
            tracing::debug!(remote = %self.remote, %error, "TLS ended the connection");
            if matches!(error, TlsError::Identity(_)) {
                CloseReason::Identity
            } else {
                CloseReason::Tls
            }
        })?;
        result?;
        if received == Received::Closed {
            return Err(CloseReason::PeerClosed);
        }
        if let State::Hello(hello) = &self.state
            && hello.filled == HELLO_BYTES
        {
            self.hello(ctx)?;
            return Ok(self.tls.held_bytes() > 0 && self.read_room(false).is_some());
        }
        if !self.is_authenticated() && self.pre_auth_held() >= PRE_AUTH_BYTES_MAX {
            return Err(CloseReason::PreAuthOversize);
        }
        if matches!(self.state, State::File(_)) {
            self.advance_file(ctx);
        }
        self.check_output()?;
        Ok(false)
    }

    /// A whole HELLO has come.
    fn hello(&mut self, ctx: &mut Ctx<'_>) -> Result<(), CloseReason> {
        let State::Hello(state) = std::mem::replace(&mut self.state, State::Ended) else {
            return Err(CloseReason::Internal);
        };
        let hello = Hello::decode(&state.bytes).map_err(|_| CloseReason::BadHello)?;
        let identity = self.tls.peer().map_err(|_| CloseReason::Identity)?;
        let ack = hello::decide(&hello, identity.as_ref(), self.remote, ctx);
        self.plain.extend_from_slice(&ack.encode());
        if ack.status != HelloStatus::Ok {
            return Err(CloseReason::Refused(ack.status));
        }
        self.state = match (hello.kind, &identity) {
            (ChannelKind::Enrol, _) => State::Enrol(EnrolState::new(), self.accepted_ms),
            (ChannelKind::Signal, Some(PeerIdentity { agent, .. })) => {
                State::Signal(Box::new(SignalState::new(agent.clone(), ack.session_id)))
            }
            (ChannelKind::Data, Some(PeerIdentity { agent, .. })) => {
                let worker = ctx.shared.router.worker_of(agent);
                State::Data(Box::new(DataState::new(agent.clone(), worker)))
            }
            (ChannelKind::File, Some(PeerIdentity { agent, .. })) => {
                State::File(Box::new(FileState::new(agent.clone())))
            }
            (_, None) => return Err(CloseReason::Internal),
        };
        self.identity = identity.filter(|_| hello.kind != ChannelKind::Enrol);
        ctx.metrics.opened(hello.kind);
        if !state.early.is_empty() {
            self.state.receive(&state.early, &mut self.plain, self.remote, ctx)?;
        }
        Ok(())
    }

    /// Tries again what was blocked by the router or by memory. What TLS kept is processed then.
    pub fn resume(&mut self, scratch: &mut [u8], ctx: &mut Ctx<'_>) {
        let free = match &mut self.state {
            State::Data(data) => data.retry(ctx),
            State::File(file) => file.wants_read(),
            _ => false,
        };
        let mut heard_ms = self.heard_ms;
        if free && matches!(self.state, State::Data(_)) {
            heard_ms = ctx.now_ms; // it could not be heard while it was not read
        }
        if free && self.tls.held_bytes() > 0 {
            let filled = self.tls.lend(scratch);
            self.receive(scratch, filled, ctx);
        }
        self.heard_ms = heard_ms;
    }

    /// What keeps it from being read, and the router worker if that is what it waits for.
    pub fn blocked(&self) -> Option<(Blocked, usize)> {
        match &self.state {
            State::Data(data) => data.blocked().map(|blocked| (blocked, data.worker)),
            _ => None,
        }
    }

    /// The peer closed its direction, or the socket broke.
    pub fn socket_closed(&mut self, broken: bool, ctx: &mut Ctx<'_>) {
        self.close(CloseReason::Disconnected, ctx);
        if let Some(ending) = &mut self.ending {
            ending.peer_gone = true;
            ending.broken |= broken;
        }
    }

    // ------------------------------------------------------------------ mails

    /// A frame of the router for this data channel.
    pub fn router_frame(&mut self, frame: &ServerFrame, ctx: &mut Ctx<'_>) {
        if matches!(self.state, State::Data(_)) {
            frame.encode(&mut self.plain);
            if let Err(reason) = self.check_output() {
                self.close(reason, ctx);
            }
        }
    }

    /// A message of control for this agent. False: it cannot be delivered.
    pub fn deliver(&mut self, common: &Bytes, extra: &Bytes, ctx: &mut Ctx<'_>) -> bool {
        if !matches!(self.state, State::Signal(_)) {
            return false;
        }
        if let Err(error) = signal::deliver(common, extra, &mut self.plain) {
            tracing::warn!(%error, "control sent a message that no agent accepts");
            return false;
        }
        if let Err(reason) = self.check_output() {
            self.close(reason, ctx);
        }
        true
    }

    /// Control's answer to this enrol channel.
    pub fn enrol_answer(&mut self, reply: &[u8], ctx: &mut Ctx<'_>) {
        if matches!(self.state, State::Enrol(EnrolState::Waiting, _)) {
            let reason = enrol::answer(reply, &mut self.plain).err();
            self.close(reason.unwrap_or(CloseReason::Enrolled), ctx);
        }
    }

    /// A second instance wants this identity: show life or go.
    pub fn challenge(&mut self, ctx: &mut Ctx<'_>) {
        if let State::Signal(signal) = &self.state
            && self.challenge_until_ms.is_none()
            && signal.challenge(&mut self.plain).is_ok()
        {
            self.challenge_until_ms = Some(ctx.now_ms + CHALLENGE_MS);
        }
    }

    /// A disk job of this file channel has ended.
    pub fn file_mail(&mut self, mail: FileMail, ctx: &mut Ctx<'_>) {
        let State::File(file) = &mut self.state else { return };
        if let Err(reason) = file.mail(mail, &mut self.plain, ctx) {
            return self.close(reason, ctx);
        }
        // Encrypted now, so that the next block can be read while this one is sent.
        self.encrypt_plain(ctx);
        self.advance_file(ctx);
    }

    /// Transfers were announced, opened or withdrawn.
    pub fn transfers_changed(&mut self, ctx: &mut Ctx<'_>) {
        let State::File(file) = &mut self.state else { return };
        match file.still_offered(ctx) {
            Ok(()) => self.advance_file(ctx),
            Err(reason) => self.close(reason, ctx),
        }
    }

    /// Whether it has something to send and waits for its transfer's rate; [`Self::pace_turn`]
    /// tries again.
    pub fn is_paced(&self) -> bool {
        matches!(&self.state, State::File(file) if file.is_paced())
    }

    /// Its turn in the line of those that wait for a transfer's rate.
    pub fn pace_turn(&mut self, ctx: &mut Ctx<'_>) {
        self.heard_ms = ctx.now_ms; // who is kept waiting need not show life
        self.advance_file(ctx);
    }

    fn advance_file(&mut self, ctx: &mut Ctx<'_>) {
        let waiting = self.out.len() - self.out_sent;
        if let State::File(file) = &mut self.state
            && let Err(reason) = file.advance(waiting, &mut self.plain, ctx)
        {
            self.close(reason, ctx);
        }
    }

    /// Revoked identities are closed at once.
    pub fn check_revoked(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(PeerIdentity { agent, serial }) = &self.identity
            && ctx.shared.directory.revoked().contains(agent, serial)
        {
            self.close(CloseReason::Revoked, ctx);
        }
    }

    /// The process goes away: the agent is told its slot. Everything goes on for a moment.
    pub fn go_away(&mut self, ctx: &mut Ctx<'_>) {
        const SPREAD_MS: u64 = 3_000;
        let reconnect_after_ms = hello::reconnect_slot(ctx.me.conn, SPREAD_MS);
        match &self.state {
            State::Signal(signal) => {
                let _ = signal.go_away(reconnect_after_ms, &mut self.plain);
            }
            State::Data(_) => ServerFrame::GoAway { reconnect_after_ms }.encode(&mut self.plain),
            _ => {}
        }
    }

    /// No batch is taken any more; acknowledgements still go out.
    pub fn stop_data(&mut self, ctx: &mut Ctx<'_>) {
        if let State::Data(data) = &mut self.state {
            data.leave(ctx);
        }
    }

    // ------------------------------------------------------------------ time

    /// When [`Self::timer`] is to be called, observed time.
    pub fn deadline_ms(&self, lost_after_ms: u64) -> u64 {
        if let Some(ending) = &self.ending {
            return ending.since_ms + LINGER_MS;
        }
        let frame = |since: Option<u64>| since.map(|since| since + FRAME_TIME_MS);
        let lost = self.heard_ms + lost_after_ms;
        let record = frame(self.record_since_ms);
        let soonest = |other: [Option<u64>; 3]| other.into_iter().flatten().fold(lost, u64::min);
        match &self.state {
            State::Hello(_) | State::Enrol(EnrolState::Reading(_), _) => {
                self.accepted_ms + PRE_AUTH_TIME_MS
            }
            State::Enrol(EnrolState::Waiting, since_ms) => since_ms + ENROL_WAIT_MS,
            State::Signal(signal) => {
                soonest([frame(signal.partial_since_ms()), record, self.challenge_until_ms])
            }
            State::Data(data) => soonest([frame(data.partial_since_ms()), record, None]),
            State::File(file) if file.is_in_handshake() => self.accepted_ms + FILE_IDLE_MS,
            State::File(_) => (self.heard_ms + FILE_IDLE_MS).min(record.unwrap_or(u64::MAX)),
            State::Ended => self.accepted_ms,
        }
    }

    /// The deadline has come.
    pub fn timer(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(ending) = &mut self.ending {
            ending.broken = true;
            return;
        }
        let lost = self.heard_ms + ctx.shared.liveness.lost_after_ms() <= ctx.now_ms;
        if lost && self.blocked().is_some() {
            self.heard_ms = ctx.now_ms; // we do not read it, so its silence is ours
            return;
        }
        let challenged = self.challenge_until_ms.is_some_and(|until| until <= ctx.now_ms);
        let reason = match &self.state {
            State::Hello(_) | State::Enrol(EnrolState::Reading(_), _) => {
                CloseReason::PreAuthTimeout
            }
            State::Enrol(EnrolState::Waiting, _) => {
                let _ = enrol::answer(&enrol::unavailable(), &mut self.plain);
                CloseReason::EnrolTimeout
            }
            State::Signal(_) | State::Data(_) if lost => CloseReason::Lost,
            State::Signal(_) if challenged => CloseReason::Challenged,
            State::Signal(_) | State::Data(_) => CloseReason::SlowSender,
            State::File(_) => CloseReason::Idle,
            State::Ended => CloseReason::Internal,
        };
        self.close(reason, ctx);
    }

    // ------------------------------------------------------------------ output

    fn check_output(&self) -> Result<(), CloseReason> {
        let waiting = self.output_bytes();
        let bound = match &self.state {
            State::Data(_) => DATA_OUT_BYTES_MAX,
            State::File(_) => return Ok(()), // its own production stops at a high-water mark
            _ => SIGNAL_OUT_BYTES_MAX,
        };
        if waiting > bound { Err(CloseReason::SlowReader) } else { Ok(()) }
    }

    /// Bytes that wait to be sent.
    pub fn output_bytes(&self) -> usize {
        self.plain.len() + self.out.len() - self.out_sent
    }

    /// Encrypts what waits as plaintext, once everything before it is sent.
    pub fn prepare_output(&mut self, ctx: &mut Ctx<'_>) {
        if self.out_sent == self.out.len() {
            self.encrypt_plain(ctx);
        }
    }

    /// What the socket should take next.
    pub fn output(&self) -> &[u8] {
        &self.out[self.out_sent..]
    }

    fn encrypt_plain(&mut self, ctx: &mut Ctx<'_>) {
        const SENT_BYTES_KEPT: usize = 128 * 1024; // moving what is left costs less than this did
        if self.plain.is_empty() {
            return;
        }
        if self.out.capacity() == 0 {
            self.out = ctx.spare.pop().unwrap_or_default();
        } else if self.out_sent == self.out.len() || self.out_sent >= SENT_BYTES_KEPT {
            self.out.drain(..self.out_sent);
            self.out_sent = 0;
        }
        let plain = std::mem::take(&mut self.plain);
        if let Err(error) = self.tls.encrypt(&plain, &mut self.out) {
            tracing::debug!(remote = %self.remote, %error, "output is lost");
            if let Some(ending) = &mut self.ending {
                ending.broken = true;
            }
        }
        ctx.recycle(plain);
    }

    /// The socket took `bytes`. A buffer that is empty now is lent to others.
    pub fn sent(&mut self, bytes: usize, ctx: &mut Ctx<'_>) {
        self.out_sent += bytes;
        debug_assert!(self.out_sent <= self.out.len());
        if self.out_sent == self.out.len() {
            self.out_sent = 0;
            ctx.recycle(std::mem::take(&mut self.out));
        }
        if matches!(self.state, State::File(_)) {
            self.heard_ms = ctx.now_ms; // progress either way keeps a file channel
            self.advance_file(ctx);
        }
    }

    // ------------------------------------------------------------------ end

    /// Ends the session: its places in the process's tables are given up now, its last output is
    /// still sent. The first reason counts.
    pub fn close(&mut self, reason: CloseReason, ctx: &mut Ctx<'_>) {
        if self.ending.is_some() {
            return;
        }
        ctx.metrics.closed(self.kind(), reason);
        let broken = matches!(reason, CloseReason::Disconnected | CloseReason::Lost);
        let peer_gone = reason == CloseReason::PeerClosed;
        self.ending = Some(Ending { reason, since_ms: ctx.now_ms, broken, peer_gone });
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Signal(signal) => {
                let dead = matches!(reason, CloseReason::Lost | CloseReason::Challenged);
                let directory = &ctx.shared.directory;
                let sibling =
                    directory.release(&signal.agent, ChannelKind::Signal, ctx.me, reason.as_str());
                if let Some(data) = sibling.filter(|_| dead) {
                    ctx.shared.mail(data, |key| ShardMail::Close(key, CloseReason::Lost));
                }
            }
            State::Data(mut data) => {
                data.end(ctx);
                let (session, agent) = (ctx.me, data.agent.clone());
                // Never refused: only what agents send is.
                let gone = ToRouter::Gone { session, agent };
                let _ = ctx.shared.router.try_send(data.worker, gone);
                let directory = &ctx.shared.directory;
                directory.release(&data.agent, ChannelKind::Data, ctx.me, reason.as_str());
            }
            State::File(_) | State::Hello(_) | State::Enrol(..) | State::Ended => {}
        }
        if self.tls.is_established() && !broken {
            self.encrypt_plain(ctx);
            self.tls.close(&mut self.out);
        }
        self.plain = Vec::new();
        self.tls.forget_held();
    }

    /// Why it ends, once it does.
    pub fn ending(&self) -> Option<CloseReason> {
        self.ending.map(|ending| ending.reason)
    }

    /// After refusals and other orderly ends the peer's bytes are read and thrown away for a
    /// moment: closing a socket with unread bytes would destroy our answer on its way.
    fn lingers(&self) -> bool {
        use CloseReason::{
            ByControl, Draining, EnrolTimeout, Enrolled, Refused, Replaced, Revoked,
        };
        matches!(
            self.ending(),
            Some(Refused(_) | Enrolled | EnrolTimeout | Draining | Replaced | Revoked | ByControl)
        )
    }

    /// All output is sent and the direction to the peer can be shut.
    pub fn wants_shutdown(&self) -> bool {
        self.ending.is_some_and(|ending| !ending.broken) && self.output_bytes() == 0
    }

    /// The socket can be dropped.
    pub fn is_finished(&self) -> bool {
        self.ending.is_some_and(|ending| {
            let sent = self.output_bytes() == 0;
            ending.broken || sent && (ending.peer_gone || !self.lingers())
        })
    }
}

impl State {
    fn receive(
        &mut self,
        input: &[u8],
        plain: &mut Vec<u8>,
        remote: SocketAddr,
        ctx: &mut Ctx<'_>,
    ) -> Result<Flow, CloseReason> {
        match self {
            Self::Hello(hello) => Ok(hello.receive(input)),
            Self::Enrol(enrol, since_ms) => {
                match enrol.receive(input, &remote.to_string(), ctx) {
                    Ok(true) => *since_ms = ctx.now_ms,
                    Ok(false) => {}
                    Err(CloseReason::EnrolTimeout) => {
                        enrol::answer(&enrol::unavailable(), plain)?;
                        return Err(CloseReason::EnrolTimeout);
                    }
                    Err(reason) => return Err(reason),
                }
                Ok(Flow::Continue)
            }
            Self::Signal(signal) => signal.receive(input, plain, ctx).map(|()| Flow::Continue),
            Self::Data(data) => data.receive(input, plain, ctx),
            Self::File(file) => {
                file.receive(input, ctx);
                Ok(if file.wants_read() { Flow::Continue } else { Flow::Pause })
            }
            Self::Ended => Ok(Flow::Pause),
        }
    }
}

impl HelloState {
    fn receive(&mut self, input: &[u8]) -> Flow {
        let missing = HELLO_BYTES - self.filled;
        let (now, early) = input.split_at(missing.min(input.len()));
        self.bytes[self.filled..self.filled + now.len()].copy_from_slice(now);
        self.filled += now.len();
        self.early.extend_from_slice(early);
        if self.filled == HELLO_BYTES { Flow::Pause } else { Flow::Continue }
    }
}
