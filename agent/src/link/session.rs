//! The signal session: heartbeats, commands in, reports out, over one channel that is dialled again
//! for ever.
//!
//! Three loops share one task, so none waits for another's work: the reader hands commands to the
//! task thread, the writer takes the most urgent message there is, the ticker sends heartbeats and
//! watches the server. Whoever ends first ends the session.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use skein_observe::names;
use skein_wire::command::Verifier;
use skein_wire::frame::{FrameDecoder, encode_message};
use skein_wire::hello::ChannelKind;
use skein_wire::limits::SIGNAL_MESSAGE_BYTES_MAX;
use skein_wire::liveness::{Beat, Heartbeater, ObservedClock};
use skein_wire::signal::v1::{
    AgentStatus, Command, CommandKey, Echo, Heartbeat, HeartbeatAck, HostFacts, RenewReply,
    RenewRequest, ServerMessage, agent_message::Kind, server_message,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};

use super::dialer::ChannelIo;
use super::{Dialer, LinkStream, Outbox, Priority, Redial, renewal};
use crate::clock;
use crate::config::Config;
use crate::facts;
use crate::spool::Totals;
use crate::status::{SelfMeter, StatusFile};
use crate::tasks::{self, Order, TaskHandle};
use crate::transfers::TransferHandle;

/// Until the server says otherwise.
const INTERVAL_MS: u64 = 10_000;
/// Intervals without a sign of life before the server is given up.
const MISSES: u64 = 3;
/// The ticker looks at least this often, so that [`OBSERVER_STEP_MS`] means a stall.
const LOOK_MS: u64 = 10_000;
/// A longer pause than this between two looks was our own stall, not the server's silence.
const OBSERVER_STEP_MS: u64 = LOOK_MS + 2_000;
/// Facts and the certificate's age are looked at this often.
const SLOW_LOOK_MS: u64 = 60_000;
/// A certificate request without a usable answer is repeated after this.
const RENEW_AGAIN_MS: u64 = 600_000;
/// A session of this age counts as a success.
const SETTLED_MS: u64 = 30_000;
/// The writer collects small messages up to this before it writes.
const WRITE_BYTES: usize = 64 * 1024;
/// The receive buffer of a quiet session.
const READ_BYTES: usize = 4 * 1024;

/// What a signal session works with.
pub struct SignalLink {
    /// Opens channels.
    pub dialer: Dialer,
    /// What is to be sent.
    pub outbox: Outbox,
    /// Takes commands.
    pub tasks: TaskHandle,
    /// Hears acknowledgements of transfers.
    pub transfers: TransferHandle,
    /// For facts.
    pub config: Arc<Config>,
    /// For facts.
    pub listening: facts::Listening,
    /// For `skein-agent status`.
    pub status: Arc<StatusFile>,
    /// What the spool holds, reported every now and then.
    pub spool: Box<dyn Fn() -> Totals>,
    /// `HOME/identity`, for renewal.
    pub identity_dir: std::path::PathBuf,
    /// True from when the agent is about to end.
    pub leaving: watch::Receiver<bool>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("the connection ended: {0}")]
    Io(#[from] std::io::Error),
    #[error("the agent ends")]
    Left,
    #[error("the server sent what is not a message: {0}")]
    Frame(#[from] skein_wire::frame::FrameError),
    #[error("the server was silent for too long")]
    Silent,
    #[error("the server said goodbye: {reason}")]
    GoAway { reason: String, slot_ms: u32 },
}

struct Beats {
    clock: ObservedClock,
    heart: Heartbeater,
    /// The last heartbeat and when it was sent.
    sent: (u64, u64),
    /// The server was heard: the next beat may be due earlier.
    changed: Arc<Notify>,
}

impl SignalLink {
    /// Keeps a session up until the agent leaves. The last session is closed in good order, so that
    /// the server knows this end from a loss.
    pub async fn run(self) {
        let mut redial = Redial::default();
        while !*self.leaving.borrow() {
            let pause = match self.dialer.connect(ChannelKind::Signal).await {
                Ok(link) => {
                    let began = clock::now_ms();
                    let end = self.session(link).await;
                    if clock::now_ms() - began >= SETTLED_MS {
                        redial.reset();
                    }
                    let slot = match &end {
                        SessionEnd::GoAway { slot_ms, .. } => *slot_ms,
                        _ => 0,
                    };
                    let pause = redial.after_session(slot);
                    if matches!(end, SessionEnd::Left) {
                        return;
                    }
                    tracing::warn!(reason = %end, again_ms = pause.as_millis() as u64, "session over");
                    self.show(false, "", &end.to_string());
                    pause
                }
                Err(error) => {
                    let pause = redial.after(&error);
                    tracing::warn!(%error, again_ms = pause.as_millis() as u64, "not connected");
                    self.show(false, "", &error.to_string());
                    pause
                }
            };
            let _ = tokio::time::timeout(pause, self.left()).await;
        }
    }

    /// Waits until the agent leaves.
    async fn left(&self) {
        // Without a sender there is nobody to say it: the runtime is about to end.
        let _ = self.leaving.clone().wait_for(|leaving| *leaving).await;
    }

    async fn session(&self, link: LinkStream) -> SessionEnd {
        tracing::info!(server = %link.server, session = link.session_id, "connected");
        self.show(true, &link.server, "");
        let (reader, writer) = tokio::io::split(link.io);
        let now = clock::now_ms();
        let mut clock = ObservedClock::new(now, OBSERVER_STEP_MS);
        let heart = Heartbeater::new(INTERVAL_MS, MISSES, clock.advance(now));
        let beats = Mutex::new(Beats { clock, heart, sent: (0, now), changed: Arc::default() });
        self.outbox.open();
        metrics::gauge!(names::AGENT_CONNECTED, "kind" => "signal").set(1.0);
        let end = tokio::select! {
            end = self.read(reader, &beats) => end,
            end = self.write(writer) => end,
            end = self.tick(&beats) => end,
        };
        metrics::gauge!(names::AGENT_CONNECTED, "kind" => "signal").set(0.0);
        self.outbox.close();
        end.err().unwrap_or(SessionEnd::Silent)
    }

    /// Shows the state in the status file, off the loop.
    fn show(&self, connected: bool, server: &str, error: &str) {
        let (status, server, error) = (self.status.clone(), server.to_owned(), error.to_owned());
        tokio::task::spawn_blocking(move || status.set(connected, &server, &error));
    }

    // ------------------------------------------------------------------ the writer

    async fn write(&self, mut writer: WriteHalf<ChannelIo>) -> Result<(), SessionEnd> {
        let mut buffer = Vec::new();
        loop {
            let mut message = tokio::select! {
                biased;
                message = self.outbox.next() => Some(message),
                () = self.left() => {
                    writer.shutdown().await?;
                    return Err(SessionEnd::Left);
                }
            };
            while let Some(next) = message {
                encode_message(&next, SIGNAL_MESSAGE_BYTES_MAX, &mut buffer)?;
                message = if buffer.len() < WRITE_BYTES { self.outbox.take() } else { None };
            }
            writer.write_all(&buffer).await?;
            writer.flush().await?;
            buffer.clear();
            buffer.shrink_to(READ_BYTES);
        }
    }

    // ------------------------------------------------------------------ the reader

    async fn read(
        &self,
        mut reader: ReadHalf<ChannelIo>,
        beats: &Mutex<Beats>,
    ) -> Result<(), SessionEnd> {
        let decoder = FrameDecoder::new(SIGNAL_MESSAGE_BYTES_MAX);
        let mut buffer: Vec<u8> = Vec::with_capacity(READ_BYTES);
        loop {
            if reader.read_buf(&mut buffer).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            {
                let mut beats = lock(beats);
                let observed = beats.clock.advance(clock::now_ms());
                beats.heart.heard(observed);
            }
            let mut start = 0;
            while let Some((message, length)) =
                decoder.next_message::<ServerMessage>(&buffer[start..])?
            {
                start += length;
                self.handle(message, beats)?;
            }
            buffer.drain(..start);
            if buffer.is_empty() {
                buffer.shrink_to(READ_BYTES);
            }
        }
    }

    fn handle(&self, message: ServerMessage, beats: &Mutex<Beats>) -> Result<(), SessionEnd> {
        // A kind that only a newer server knows is none.
        let Some(kind) = message.kind else { return Ok(()) };
        match kind {
            server_message::Kind::HeartbeatAck(ack) => self.heartbeat_answered(&ack, beats),
            server_message::Kind::Command(command) => self.command(&command),
            server_message::Kind::ReportAck(ack) if ack.transfer_id.is_empty() => {
                self.tasks.acknowledged(ack);
            }
            server_message::Kind::ReportAck(ack) => self.transfers.acknowledged(&ack.transfer_id),
            server_message::Kind::GoAway(away) => {
                let (reason, slot_ms) = (away.reason, away.reconnect_after_ms);
                return Err(SessionEnd::GoAway { reason, slot_ms });
            }
            server_message::Kind::Ping(ping) => {
                let echo = Echo { nonce: ping.nonce, payload: ping.payload };
                self.outbox.push(Priority::Urgent, Kind::Echo(echo));
            }
            server_message::Kind::Renew(reply) => self.renewed(reply),
            server_message::Kind::Servers(list) => self.dialer.servers().announce(&list.addresses),
            server_message::Kind::TransferPlan(plan) => self.transfers.plan(plan),
        }
        Ok(())
    }

    fn heartbeat_answered(&self, ack: &HeartbeatAck, beats: &Mutex<Beats>) {
        let mut beats = lock(beats);
        let now = clock::now_ms();
        let (sequence, sent_ms) = beats.sent;
        if ack.sequence == sequence {
            self.dialer.clock().learn(ack.server_time_ms, sent_ms);
            let seconds = now.saturating_sub(sent_ms) as f64 / 1000.0;
            metrics::histogram!(names::AGENT_HEARTBEAT_SECONDS).record(seconds);
            metrics::counter!(names::AGENT_HEARTBEATS).increment(1);
        }
        let observed = beats.clock.advance(now);
        let wanted = ack.interval_ms.min(skein_wire::limits::HEARTBEAT_INTERVAL_MS_MAX);
        beats.heart.set_interval(wanted.into(), observed);
        // A shorter interval counts from now, not from the end of the ticker's sleep.
        beats.changed.notify_one();
    }

    fn command(&self, command: &Command) {
        let identity = self.dialer.identity().get();
        let keys = identity.command_keys.iter().filter_map(|key| {
            let public = skein_wire::ids::hex_decode::<32>(&key.public_key_hex)?;
            Some(CommandKey { key_id: key.key_id, public_key: public.to_vec().into() })
        });
        let verifier = Verifier::new(keys.collect());
        let now = self.dialer.clock().now_ms();
        let refused = match verifier.verify(&identity.agent_id, command, now) {
            Ok(body) => {
                let command_id = body.command_id.clone();
                let order = Order { body, not_after_ms: command.not_after_ms };
                self.tasks.order(order).err().map(|reason| (command_id, reason))
            }
            Err(refusal) => Some((claimed_id(command), refusal.as_str())),
        };
        if let Some((command_id, reason)) = refused {
            tasks::refuse(&self.outbox, command_id, reason);
        }
    }

    fn renewed(&self, reply: RenewReply) {
        let old = self.dialer.identity().get();
        let now = self.dialer.clock().now_ms();
        match renewal::accept(&old, &reply, now) {
            Ok(identity) => {
                let (cell, dir) = (self.dialer.identity().clone(), self.identity_dir.clone());
                tokio::task::spawn_blocking(move || match identity.store(&dir) {
                    Ok(()) => {
                        tracing::info!("certificate renewed");
                        cell.set(identity);
                    }
                    Err(error) => tracing::error!(%error, "the renewed certificate is not kept"),
                });
            }
            Err(error) => tracing::error!(%error, "certificate was not renewed"),
        }
    }

    // ------------------------------------------------------------------ the ticker

    async fn tick(&self, beats: &Mutex<Beats>) -> Result<(), SessionEnd> {
        let mut slow = Slow::default();
        let changed = lock(beats).changed.clone();
        loop {
            let now = clock::now_ms();
            let pause = self.beat(beats, now)?;
            self.report_slowly(&mut slow, now);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(pause.clamp(1, LOOK_MS))) => {}
                () = changed.notified() => {}
            }
        }
    }

    /// Sends a heartbeat if one is due and says how long nothing else is.
    fn beat(&self, beats: &Mutex<Beats>, now: u64) -> Result<u64, SessionEnd> {
        let mut beats = lock(beats);
        let observed = beats.clock.advance(now);
        match beats.heart.poll(observed) {
            Beat::Lost => Err(SessionEnd::Silent),
            Beat::Wait(until) => Ok(until.saturating_sub(observed)),
            Beat::Send(sequence) => {
                beats.sent = (sequence, now);
                let agent_time_ms = clock::wall_ms();
                let beat = Kind::Heartbeat(Heartbeat { sequence, agent_time_ms });
                self.outbox.push(Priority::Urgent, beat);
                match beats.heart.poll(observed) {
                    Beat::Wait(until) => Ok(until.saturating_sub(observed)),
                    _ => Ok(0),
                }
            }
        }
    }

    fn report_slowly(&self, slow: &mut Slow, now: u64) {
        if due(&mut slow.status_at, now, LOOK_MS) {
            let status = slow.meter.measure((self.spool)());
            if slow.status != Some(status)
                && self.outbox.push(Priority::Report, Kind::Status(status))
            {
                slow.status = Some(status);
            }
        }
        if due(&mut slow.facts_at, now, SLOW_LOOK_MS) {
            let facts = facts::collect(&self.config, &self.listening, facts::start_ms());
            let same = slow.facts.as_ref().is_some_and(|sent| facts_equal(sent, &facts));
            if !same && self.outbox.push(Priority::Report, Kind::Facts(facts.clone())) {
                slow.facts = Some(facts);
            }
            self.renew_if_due(slow, now);
        }
    }

    fn renew_if_due(&self, slow: &mut Slow, now: u64) {
        let identity = self.dialer.identity().get();
        let server_now = self.dialer.clock().now_ms();
        let wanted = identity.validity().is_ok_and(|validity| validity.wants_renewal(server_now));
        if !wanted || !due(&mut slow.renew_at, now, RENEW_AGAIN_MS) {
            return;
        }
        match crate::identity::Identity::csr(&identity.key_der) {
            Ok(csr) => {
                let request = RenewRequest { csr_der: csr.into() };
                self.outbox.push(Priority::Report, Kind::Renew(request));
            }
            Err(error) => tracing::error!(%error, "cannot ask for a new certificate"),
        }
    }
}

/// What is reported now and then, as it was sent last.
#[derive(Default)]
struct Slow {
    status_at: u64,
    facts_at: u64,
    renew_at: u64,
    meter: SelfMeter,
    status: Option<AgentStatus>,
    facts: Option<HostFacts>,
}

/// Whether `at` has come; if so it is set `period_ms` ahead.
fn due(at: &mut u64, now: u64, period_ms: u64) -> bool {
    let due = now >= *at;
    if due {
        *at = now + period_ms;
    }
    due
}

/// The start is computed from two clocks and moves by a millisecond now and then.
fn facts_equal(sent: &HostFacts, now: &HostFacts) -> bool {
    let steady = HostFacts { agent_start_ms: sent.agent_start_ms, ..now.clone() };
    *sent == steady
}

/// The id that an unverified command claims, for the refusal.
fn claimed_id(command: &Command) -> bytes::Bytes {
    use prost::Message;
    let body = skein_wire::signal::v1::CommandBody::decode(command.body.clone());
    let id = body.map(|body| body.command_id).unwrap_or_default();
    if id.len() == 16 { id } else { bytes::Bytes::new() }
}

fn lock(beats: &Mutex<Beats>) -> MutexGuard<'_, Beats> {
    beats.lock().unwrap_or_else(|poison| poison.into_inner())
}
