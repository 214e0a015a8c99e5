//! The coordinator's side: its messages take time, and so does its work.
//!
//! Control is not part of the modelled network: a message between it and a host takes a fixed time.
//! The coordinator handles one message at a time; each costs what [`Costs`] says, and what arrives
//! meanwhile waits. So a coordinator that is too slow for a fleet shows.

use crate::queue::{MILLISECOND, Nanos};
use crate::topology::HostId;
use skein_filemesh::core::coordinator::{Coordinator, Held, Output};
use skein_filemesh::core::swarm::Report;

/// What control's work and messages cost in virtual time.
#[derive(Debug, Clone)]
pub struct Costs {
    /// A message between control and a host, one way.
    pub latency: Nanos,
    /// Taking a message.
    pub message: Nanos,
    /// Making and sending one host's plan.
    pub plan: Nanos,
    /// Between two ticks.
    pub tick_every: Nanos,
    /// Between two reports of a host.
    pub report_every: Nanos,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            latency: 500_000,
            message: 5_000,
            plan: 20_000,
            tick_every: 50 * MILLISECOND,
            report_every: 100 * MILLISECOND,
        }
    }
}

/// What a host, or its session's end, tells control.
#[derive(Debug)]
pub enum News {
    /// It takes part.
    Joined(HostId),
    /// What it gained, and its rate in bytes per second.
    Report(HostId, Report, Option<u64>),
    /// A parent is late.
    Late(HostId, HostId),
    /// Its session ended.
    Gone(HostId),
}

/// The coordinator and its time.
pub struct Control {
    coordinator: Coordinator,
    /// Its costs.
    pub costs: Costs,
    busy_until: Nanos,
    waiting: usize,
    /// Time that it worked.
    pub worked: Nanos,
    /// Plans that were sent.
    pub plans: u64,
    /// Whether it gave the transfer up.
    pub has_failed: bool,
}

impl Control {
    /// Control for a transfer to `targets` hosts.
    pub fn new(coordinator: Coordinator, costs: Costs, targets: usize) -> Self {
        let (busy_until, worked, plans) = (0, 0, 0);
        Self { coordinator, costs, busy_until, waiting: targets, worked, plans, has_failed: false }
    }

    /// When the coordinator is free, if it is not at `now`.
    pub fn busy(&self, now: Nanos) -> Option<Nanos> {
        (self.busy_until > now).then_some(self.busy_until)
    }

    fn charge(&mut self, now: Nanos, cost: Nanos) {
        self.busy_until = self.busy_until.max(now) + cost;
        self.worked += cost;
    }

    /// Takes a message; true if a tick should follow at once because the last target joined.
    pub fn take(&mut self, news: News, now: Nanos) -> bool {
        let now_ms = now / MILLISECOND;
        self.charge(now, self.costs.message);
        match news {
            News::Joined(host) => {
                self.coordinator.joined(host, &Held::Nothing, now_ms);
                self.waiting = self.waiting.saturating_sub(1);
                return self.waiting == 0;
            }
            News::Report(host, report, rate) => {
                // `report.late` also names parents whose stripes are merely behind the others; taken
                // for late they make the coordinator move child after child to the source.
                self.coordinator.progress(host, &report.gained, rate, now_ms);
            }
            News::Late(host, parent) => self.coordinator.late(host, parent, now_ms),
            News::Gone(host) => self.coordinator.gone(host, now_ms),
        }
        false
    }

    /// Lets the coordinator work; what it sends leaves at the time that goes with it.
    pub fn tick(&mut self, now: Nanos) -> Vec<(Nanos, Output)> {
        let outputs = self.coordinator.tick(now / MILLISECOND);
        let sent = outputs.into_iter().map(|output| {
            match &output {
                Output::Plan { .. } => {
                    self.plans += 1;
                    let cost = self.costs.plan;
                    self.busy_until = self.busy_until.max(now) + cost;
                    self.worked += cost;
                }
                Output::Failed { .. } => self.has_failed = true,
                Output::Missing { .. } | Output::Recovered => {}
            }
            (self.busy_until.max(now), output)
        });
        sent.collect()
    }
}
