//! The coordinator's side: its messages take time, and so does its work.
//!
//! Control is not part of the modelled network: a message between it and a host takes a fixed time.
//! The coordinator handles one message at a time; each costs what [`Costs`] says, and what arrives
//! meanwhile waits. So a coordinator that is too slow for a fleet shows.
//!
//! The rest is as in the product: a host reports what it gained every 250 ms, and at once when a
//! parent is late; control learns rates from the bytes that reports name, and knows none before;
//! it decides at once when a member is late, lost or back. In the product any report makes it
//! decide, here the next tick does.

use crate::queue::{MILLISECOND, Nanos, SECOND};
use crate::topology::HostId;
use skein_filemesh::core::coordinator::{Coordinator, Held, Output};
use skein_filemesh::core::swarm::Report;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// A rate is taken over at least this time.
const RATE_EVERY: Nanos = 200 * MILLISECOND;

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
    /// Whether control knows the rates of all hosts from the start, also of those that are slow
    /// from then on and for good.
    pub knows_rates: bool,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            latency: 500_000,
            message: 5_000,
            plan: 20_000,
            tick_every: 50 * MILLISECOND,
            report_every: 250 * MILLISECOND,
            knows_rates: false,
        }
    }
}

/// What a host, or its session's end, tells control.
#[derive(Debug)]
pub enum News {
    /// It takes part.
    Joined(HostId),
    /// What it gained, all that it received so far, and parents that made no progress in time.
    Report(HostId, Report, u64, Vec<HostId>),
    /// Its session ended.
    Gone(HostId),
}

/// What the coordinator has to do.
#[derive(Debug)]
pub enum Work {
    /// Take a message.
    News(News),
    /// Look at the time.
    Tick,
}

/// The coordinator and its time.
pub struct Control {
    coordinator: Coordinator,
    /// What arrived and was not taken.
    pub waiting: VecDeque<Work>,
    /// Whether it will be woken when it is free.
    pub is_woken: bool,
    /// Its costs.
    pub costs: Costs,
    busy_until: Nanos,
    /// By host: what it had received, and when it said so.
    received: HashMap<HostId, (u64, Nanos)>,
    /// Time that it worked.
    pub worked: Nanos,
    /// Plans that were sent.
    pub plans: u64,
    /// The pieces for want of which it gave the transfer up.
    pub missing: Option<Vec<Range<u32>>>,
}

impl Control {
    /// Control for a transfer.
    pub fn new(coordinator: Coordinator, costs: Costs) -> Self {
        let (busy_until, worked, plans) = (0, 0, 0);
        let received = HashMap::new();
        let (waiting, is_woken, missing) = (VecDeque::new(), false, None);
        Self { coordinator, waiting, is_woken, costs, busy_until, received, worked, plans, missing }
    }

    /// When the coordinator is free, if it is not at `now`.
    pub fn busy(&self, now: Nanos) -> Option<Nanos> {
        (self.busy_until > now).then_some(self.busy_until)
    }

    fn charge(&mut self, now: Nanos, cost: Nanos) {
        self.busy_until = self.busy_until.max(now) + cost;
        self.worked += cost;
    }

    /// Takes a message; true if the coordinator is to decide at once.
    pub fn take(&mut self, news: News, now: Nanos) -> bool {
        let now_ms = now / MILLISECOND;
        self.charge(now, self.costs.message);
        match news {
            News::Joined(host) => {
                self.received.remove(&host);
                self.coordinator.joined(host, &Held::Nothing, now_ms);
                true
            }
            News::Report(host, report, received, late) => {
                let rate = self.rate(host, received, now);
                self.coordinator.progress(host, &report.gained, rate, now_ms);
                // `report.late` also names parents whose stripes are merely behind the others;
                // taken for late they make the coordinator move child after child to the source.
                late.iter().for_each(|parent| self.coordinator.late(host, *parent, now_ms));
                !late.is_empty()
            }
            News::Gone(host) => {
                self.coordinator.gone(host, now_ms);
                true
            }
        }
    }

    /// Bytes per second since the last report that was used for it.
    fn rate(&mut self, host: HostId, received: u64, now: Nanos) -> Option<u64> {
        let last = self.received.get(&host).copied();
        if last.is_some_and(|(_, at)| now < at + RATE_EVERY) {
            return None;
        }
        self.received.insert(host, (received, now));
        let (before, at) = last?;
        let bytes = u128::from(received.saturating_sub(before));
        Some((bytes * u128::from(SECOND) / u128::from(now - at)) as u64)
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
                Output::Failed { pieces } => self.missing = Some(pieces.clone()),
                Output::Missing { .. } | Output::Recovered => {}
            }
            (self.busy_until.max(now), output)
        });
        sent.collect()
    }
}
