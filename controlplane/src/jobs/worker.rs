//! The one task that moves all jobs of a kind forward.
//!
//! It takes what waits (events of the fleet, orders of the API, a tick), works on it as one group,
//! and settles that: first everything is made durable, then seen, then acknowledged. So a fleet
//! that reports at the same moment costs a handful of flushes, and nothing is seen before it is
//! kept.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::fleet::events::QUEUE_EVENTS;

/// Between two looks at deadlines.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two looks at retention.
pub const TICKS_PER_SWEEP: u32 = 40;
/// An order's signature is good at least this long, for agents whose message waits a moment.
pub const ORDER_LIFE_MS: i64 = 15_000;
/// How long a cancel's signature is good; a repeat is signed anew.
pub const CANCEL_LIFE_MS: i64 = 3_600_000;
/// Ends stored by one batch.
pub const ENDS_PER_BATCH: usize = 1_000;

/// What differs between the kinds of jobs.
pub trait Work: Send + 'static {
    /// What the fleet tells.
    type Event: Send;
    /// What the API asks.
    type Order: Send;
    /// What a group of both comes to.
    type Group: Default + Send;

    /// Takes an event into a group.
    fn event(&mut self, event: Self::Event, group: &mut Self::Group);
    /// Takes an order into a group.
    fn order(
        &mut self,
        order: Self::Order,
        group: &mut Self::Group,
    ) -> impl Future<Output = ()> + Send;
    /// Looks at deadlines.
    fn tick(&mut self, group: &mut Self::Group) -> impl Future<Output = ()> + Send;
    /// Makes a group durable, then visible, then acknowledged; then sends what is to be sent.
    fn settle(&mut self, group: Self::Group) -> impl Future<Output = ()> + Send;
}

/// Works until the process ends.
pub async fn run<W: Work>(
    mut work: W,
    mut events: mpsc::Receiver<W::Event>,
    mut orders: mpsc::Receiver<W::Order>,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut taken = Vec::new();
    loop {
        let mut group = W::Group::default();
        tokio::select! {
            count = events.recv_many(&mut taken, QUEUE_EVENTS) => {
                if count == 0 {
                    return;
                }
                taken.drain(..).for_each(|event| work.event(event, &mut group));
            }
            Some(order) = orders.recv() => work.order(order, &mut group).await,
            _ = tick.tick() => work.tick(&mut group).await,
        }
        work.settle(group).await;
    }
}

/// Ends that are to be stored. A repeat within one group is no second end.
#[derive(Debug)]
pub struct Ends<Id, End> {
    list: Vec<(Id, usize, End)>,
    known: HashSet<(Id, usize)>,
}

impl<Id, End> Default for Ends<Id, End> {
    fn default() -> Self {
        Self { list: Vec::new(), known: HashSet::new() }
    }
}

impl<Id: Copy + Eq + Hash, End> Ends<Id, End> {
    /// The host at this place of the job ends so, unless it has an end already.
    pub fn add(&mut self, job: Id, place: usize, end: End) {
        if self.known.insert((job, place)) {
            self.list.push((job, place, end));
        }
    }

    /// All of them.
    pub fn take(&mut self) -> Vec<(Id, usize, End)> {
        std::mem::take(&mut self.list)
    }
}
