//! A worker without its disk: the core, its queue and its ways out to shards and control.
//!
//! Both loops ([`super::calls`] and [`super::executor`]) do the same with it: take what the disk has
//! finished, take a bounded number of messages, let the core do what is due, begin the disk
//! operations, deliver, and wait for the next of these. Nothing is timed while nothing is due.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skein_wire::data::ServerFrame;

use crate::shard::ShardMail;
use crate::sinks::recover::WorkerStart;

use super::core::{Now, RouterCore};
use super::queue::QueueReceiver;
use super::table::Applied;
use super::{RouterReport, SessionRef};

/// Messages that are taken before the disk and the shards get their turn.
pub(super) const ROUND_MESSAGES: usize = 64;

/// Replies that wait for full mailboxes; beyond it no batch is taken.
const REPLIES_MAX: usize = 65_536;

/// Reports that wait for a full channel. Lanes come once a second; taps are dropped first.
const REPORTS_MAX: usize = 256;

/// Between tries of a full mailbox or report channel.
const RESEND_MS: u64 = 5;

/// How long a worker may take to end when its disk does not answer.
const STOP_MS: u64 = 15_000;

/// Longest wait when nothing is due.
const IDLE: Duration = Duration::from_secs(3_600);

/// What a worker thread is given.
pub(super) struct Seat {
    pub worker: usize,
    pub workers: usize,
    pub limits: super::Limits,
    pub start: WorkerStart,
    pub queue: QueueReceiver,
    pub shards: Vec<flume::Sender<ShardMail>>,
    pub applied: Applied,
}

/// A worker's core and its ways out.
pub(super) struct Shell {
    pub core: RouterCore,
    pub queue: QueueReceiver,
    shards: Vec<flume::Sender<ShardMail>>,
    mail: Vec<Vec<(SessionRef, ServerFrame)>>,
    unsent: usize,
    reports: flume::Sender<RouterReport>,
    waiting_reports: Vec<RouterReport>,
    applied: Applied,
    workers: usize,
    origin: Instant,
    stop_at_ms: Option<u64>,
}

impl Shell {
    pub fn new(seat: Seat, reports: flume::Sender<RouterReport>) -> Self {
        let origin = Instant::now();
        let now = now_since(origin);
        Self {
            core: RouterCore::new(seat.worker, seat.workers, seat.limits, seat.start, now),
            queue: seat.queue,
            mail: seat.shards.iter().map(|_| Vec::new()).collect(),
            shards: seat.shards,
            unsent: 0,
            reports,
            waiting_reports: Vec::new(),
            applied: seat.applied,
            workers: seat.workers,
            origin,
            stop_at_ms: None,
        }
    }

    pub fn now(&self) -> Now {
        now_since(self.origin)
    }

    pub fn accepts(&self) -> bool {
        self.core.accepts() && self.unsent < REPLIES_MAX
    }

    /// Takes waiting messages, at most a round of them.
    pub fn take_messages(&mut self) -> usize {
        let now = self.now();
        for taken in 0..ROUND_MESSAGES {
            if !self.accepts() {
                return taken;
            }
            let Some(message) = self.queue.try_next() else { return taken };
            self.core.handle(now, message);
        }
        ROUND_MESSAGES
    }

    /// Hands over replies and reports, as far as their takers have room.
    pub fn deliver(&mut self) {
        for (session, frame) in self.core.take_replies() {
            if let Some(mail) = self.mail.get_mut(usize::from(session.shard)) {
                mail.push((session, frame));
            }
        }
        self.unsent = 0;
        for (shard, mail) in self.shards.iter().zip(&mut self.mail) {
            if mail.is_empty() {
                continue;
            }
            // A shard that is gone has no sessions to answer.
            if let Err(flume::TrySendError::Full(ShardMail::Router(back))) =
                shard.try_send(ShardMail::Router(std::mem::take(mail)))
            {
                self.unsent += back.len();
                *mail = back;
            }
        }
        self.deliver_reports();
    }

    fn deliver_reports(&mut self) {
        let complete = |report: &RouterReport| match report {
            RouterReport::TableApplied(revision) => self.applied.count(*revision, self.workers),
            _ => true,
        };
        let new: Vec<_> = self.core.take_reports().into_iter().filter(complete).collect();
        self.waiting_reports.extend(new);
        let mut kept = Vec::new();
        for report in self.waiting_reports.drain(..) {
            match self.reports.try_send(report) {
                Err(flume::TrySendError::Full(RouterReport::Tap(_))) => {}
                Err(flume::TrySendError::Full(report)) if kept.len() < REPORTS_MAX => {
                    kept.push(report);
                }
                _ => {}
            }
        }
        self.waiting_reports = kept;
    }

    /// How long nothing is due.
    pub fn idle_time(&self) -> Duration {
        let now_ms = self.now().mono_ms;
        let resend = self.unsent > 0 || !self.waiting_reports.is_empty();
        let due = [self.core.deadline_ms(), resend.then_some(now_ms + RESEND_MS), self.stop_at_ms];
        let due = due.into_iter().flatten().min();
        due.map_or(IDLE, |due| Duration::from_millis(due.saturating_sub(now_ms)))
    }

    /// Whether the worker is done, or has waited long enough for its disk.
    pub fn has_ended(&mut self) -> bool {
        if self.core.is_stopped() {
            return true;
        }
        let now_ms = self.now().mono_ms;
        if self.core.is_stopping() {
            return now_ms >= *self.stop_at_ms.get_or_insert(now_ms + STOP_MS);
        }
        false
    }
}

fn now_since(origin: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono_ms: origin.elapsed().as_millis() as u64, wall_ms: wall.as_millis() as u64 }
}
