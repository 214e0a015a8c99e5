//! The modelled network: connections as ordered byte streams over shared links.
//!
//! A connection's direction is a *flow*: chunks queue in a finite socket buffer, are served at the
//! flow's max-min fair rate, and arrive whole and in order one latency after their last byte left.
//! What a chunk holds is the caller's; the network counts bytes. A chunk of at most one segment on
//! an idle flow goes between the packets of others without a share of its own.
//!
//! Loss is modelled by what it costs: goodput (the capacity of a lossy host or border is reduced by
//! the lost share), a ceiling per connection (1.22 × segment / (round trip × √loss), Mathis et al.
//! 1997), and one round trip more for a chunk of which a segment was lost, in order. Acknowledgements,
//! slow start and queueing delay inside the network are not modelled.

mod sharing;

pub use sharing::{FlowId, LinkId, PATH_MAX, Sharing, TOLERANCE};

use crate::queue::{Alarms, EventQueue, Nanos, SECOND};
use crate::random::Random;
use std::collections::VecDeque;

/// Payload of one TCP segment on Ethernet with an MTU of 1500.
pub const SEGMENT_BYTES: f64 = 1448.0;

/// What a connection runs over.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// Its links, at most [`PATH_MAX`].
    pub links: Vec<LinkId>,
    /// One way.
    pub latency: Nanos,
    /// Share of segments that are lost.
    pub loss: f64,
}

/// What happened at an instant.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<T> {
    /// This chunk reached the other end.
    Chunk(FlowId, T),
    /// The socket buffer has room again.
    Room(FlowId),
}

#[derive(Debug)]
struct Flow<T> {
    queue: VecDeque<(u64, T)>,
    queued_bytes: u64,
    /// Of the first chunk; below 0 by what the flow had served beyond the chunk before it.
    left: f64,
    served_at: Nanos,
    rate: f64,
    latency: Nanos,
    loss: f64,
    delivered_at: Nanos,
    is_open: bool,
    is_changed: bool,
    wants_room: bool,
}

/// Links and flows in virtual time.
pub struct Network<T> {
    sharing: Sharing,
    flows: Vec<Flow<T>>,
    finish: Alarms,
    arrivals: EventQueue<(FlowId, T)>,
    /// Flows whose part in the sharing may have changed since the last settling.
    changed: Vec<FlowId>,
    is_unsettled: bool,
    now: Nanos,
    quantum: Nanos,
    buffer_bytes: u64,
    carried: Vec<u64>,
    random: Random,
}

impl<T> Network<T> {
    /// A network whose sockets hold `buffer_bytes` and which recomputes shares at most every
    /// `quantum` (0: at each change).
    pub fn new(buffer_bytes: u64, quantum: Nanos, seed: u64) -> Self {
        Self {
            sharing: Sharing::new(TOLERANCE),
            flows: vec![],
            finish: Alarms::default(),
            arrivals: EventQueue::default(),
            changed: vec![],
            is_unsettled: false,
            now: 0,
            quantum,
            buffer_bytes: buffer_bytes.max(1),
            carried: vec![],
            random: Random::new(seed),
        }
    }

    /// Adds a link of `capacity` bytes per second.
    pub fn add_link(&mut self, capacity: f64) -> LinkId {
        self.carried.push(0);
        self.sharing.add_link(capacity)
    }

    /// Changes a link's capacity from now on; 0 cuts it.
    pub fn set_capacity(&mut self, link: LinkId, capacity: f64) {
        self.sharing.set_capacity(link, capacity);
        self.is_unsettled = true;
    }

    /// Capacity of `link` in bytes per second.
    pub fn capacity(&self, link: LinkId) -> f64 {
        self.sharing.capacity(link)
    }

    /// Bytes that `link` has carried in whole chunks.
    pub fn carried(&self, link: LinkId) -> u64 {
        self.carried[link as usize]
    }

    /// The shares as they are.
    pub fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// Opens one direction of a connection.
    pub fn open(&mut self, path: &Path) -> FlowId {
        let round_trip = (2 * path.latency).max(1) as f64 / SECOND as f64;
        let ceiling = 1.22 * SEGMENT_BYTES / (round_trip * path.loss.sqrt());
        let ceiling = if path.loss > 0.0 { ceiling } else { f64::INFINITY };
        self.flows.push(Flow {
            queue: VecDeque::new(),
            queued_bytes: 0,
            left: 0.0,
            served_at: self.now,
            rate: 0.0,
            latency: path.latency,
            loss: path.loss,
            delivered_at: self.now,
            is_open: true,
            is_changed: false,
            wants_room: false,
        });
        self.sharing.add_flow(&path.links, ceiling)
    }

    /// Ends a flow at once: what is queued or under way is lost.
    pub fn close(&mut self, flow: FlowId) {
        let state = &mut self.flows[flow as usize];
        state.is_open = false;
        state.queue = VecDeque::new();
        state.queued_bytes = 0;
        self.finish.set(flow, None);
        self.note(flow);
    }

    /// Whether the socket takes another chunk. A buffer with any room takes a whole one.
    pub fn has_room(&self, flow: FlowId) -> bool {
        let state = &self.flows[flow as usize];
        state.is_open && state.queued_bytes < self.buffer_bytes
    }

    /// Bytes in the socket buffer.
    pub fn queued_bytes(&self, flow: FlowId) -> u64 {
        self.flows[flow as usize].queued_bytes
    }

    /// Asks for one [`Arrival::Room`] when the buffer is at most half full.
    pub fn want_room(&mut self, flow: FlowId) {
        self.flows[flow as usize].wants_room = true;
    }

    /// Puts a chunk of `bytes` (at least 1) on the wire into the socket buffer; it is dropped if the
    /// flow was closed.
    pub fn send(&mut self, flow: FlowId, bytes: u64, what: T) {
        let state = &mut self.flows[flow as usize];
        if !state.is_open {
            return;
        }
        let bytes = bytes.max(1);
        if state.queue.is_empty() && bytes <= SEGMENT_BYTES as u64 {
            let links = self.sharing.path(flow).iter().map(|link| self.sharing.capacity(*link));
            let narrowest = links.fold(f64::INFINITY, f64::min);
            if narrowest > 0.0 {
                return self.slip_in(flow, bytes, narrowest, what);
            }
        }
        let state = &mut self.flows[flow as usize];
        state.queue.push_back((bytes, what));
        state.queued_bytes += bytes;
        if state.queue.len() == 1 {
            (state.left, state.served_at) = (bytes as f64, self.now);
            self.plan_finish(flow);
            self.note(flow);
        }
    }

    /// Sends what fits a segment on an idle flow: such a packet goes between those of others, at the
    /// speed of the narrowest link, and is too short to change their shares.
    fn slip_in(&mut self, flow: FlowId, bytes: u64, narrowest: f64, what: T) {
        let wait = (bytes as f64 / narrowest * SECOND as f64).ceil() as Nanos;
        self.deliver(flow, bytes, self.now + wait, what);
    }

    /// The last byte of a chunk has left at `left_at`: it arrives one latency later, or more.
    fn deliver(&mut self, flow: FlowId, bytes: u64, left_at: Nanos, what: T) {
        let state = &mut self.flows[flow as usize];
        let again = if is_hit(state.loss, bytes, &mut self.random) { 2 * state.latency } else { 0 };
        state.delivered_at = state.delivered_at.max(left_at + state.latency + again);
        self.arrivals.push(state.delivered_at, (flow, what));
        for link in self.sharing.path(flow) {
            self.carried[*link as usize] += bytes;
        }
    }

    fn note(&mut self, flow: FlowId) {
        let state = &mut self.flows[flow as usize];
        if !state.is_changed {
            state.is_changed = true;
            self.changed.push(flow);
            self.is_unsettled = true;
        }
    }

    fn plan_finish(&mut self, flow: FlowId) {
        let state = &self.flows[flow as usize];
        let at = (!state.queue.is_empty() && state.rate > 0.0).then(|| {
            let wait = state.left.max(0.0) / state.rate * SECOND as f64;
            state.served_at.saturating_add(wait.ceil() as Nanos).max(self.now)
        });
        self.finish.set(flow, at);
    }

    /// Brings the shares up to date.
    fn settle(&mut self) {
        self.is_unsettled = false;
        for flow in std::mem::take(&mut self.changed) {
            let state = &mut self.flows[flow as usize];
            state.is_changed = false;
            let active = !state.queue.is_empty();
            if self.sharing.is_active(flow) && !active {
                state.rate = 0.0;
            }
            self.sharing.set_active(flow, active);
        }
        let mut sharing = std::mem::replace(&mut self.sharing, Sharing::new(0.0));
        sharing.settle(|flow, rate| self.set_rate(flow, rate));
        self.sharing = sharing;
    }

    fn set_rate(&mut self, flow: FlowId, rate: f64) {
        let state = &mut self.flows[flow as usize];
        let elapsed = (self.now - state.served_at) as f64 / SECOND as f64;
        state.left -= state.rate * elapsed;
        (state.rate, state.served_at) = (rate, self.now);
        self.plan_finish(flow);
    }

    /// When something happens next; [`Network::advance`] must be called then.
    pub fn next_at(&mut self) -> Option<Nanos> {
        let mut settle_at = None;
        if self.is_unsettled {
            match self.quantum {
                0 => self.settle(),
                quantum => settle_at = Some(self.now.next_multiple_of(quantum)),
            }
            if settle_at == Some(self.now) {
                self.settle();
                settle_at = None;
            }
        }
        [self.finish.next_at(), self.arrivals.next_at(), settle_at].into_iter().flatten().min()
    }

    /// Moves to `now`, which must not be later than [`Network::next_at`], and adds what happened.
    pub fn advance(&mut self, now: Nanos, happened: &mut Vec<Arrival<T>>) {
        self.now = now;
        while let Some(flow) = self.finish.pop_due(now) {
            self.finish_chunk(flow, happened);
        }
        while let Some((flow, what)) = self.arrivals.pop_due(now) {
            if self.flows[flow as usize].is_open {
                happened.push(Arrival::Chunk(flow, what));
            }
        }
    }

    fn finish_chunk(&mut self, flow: FlowId, happened: &mut Vec<Arrival<T>>) {
        let now = self.now;
        let state = &mut self.flows[flow as usize];
        let Some((bytes, what)) = state.queue.pop_front() else { return };
        state.queued_bytes -= bytes;
        state.left -= state.rate * ((now - state.served_at) as f64 / SECOND as f64);
        state.served_at = now;
        // What was served beyond this chunk within the last nanosecond belongs to the next one.
        match state.queue.front() {
            Some((next, _)) => {
                state.left = state.left.min(0.0) + *next as f64;
                self.plan_finish(flow);
            }
            None => self.note(flow),
        }
        self.deliver(flow, bytes, now, what);
        let state = &mut self.flows[flow as usize];
        if state.wants_room && state.queued_bytes <= self.buffer_bytes / 2 {
            state.wants_room = false;
            happened.push(Arrival::Room(flow));
        }
    }
}

/// Whether at least one segment of a chunk is lost.
fn is_hit(loss: f64, bytes: u64, random: &mut Random) -> bool {
    if loss <= 0.0 {
        return false;
    }
    let segments = (bytes as f64 / SEGMENT_BYTES).ceil() as u32;
    let spared = (0..segments).fold(1.0, |spared, _| spared * (1.0 - loss));
    random.unit() >= spared
}

#[cfg(test)]
mod tests;
