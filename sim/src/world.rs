//! The network, the faults and the clock that every way of distributing runs in.

use crate::network::{Arrival, LinkId, Network};
use crate::queue::{Alarms, EventQueue, Nanos};
use crate::scenario::{Kind, Planned};
use crate::topology::{HostId, LinkKind, Topology, Wiring};

/// Samples of what links carried: then every second one is dropped and the interval doubled.
const SAMPLES_MAX: usize = 600;

/// A rate that is never the limit, for links that exist only to be cut.
const ENDLESS: f64 = 1e13;

/// What a way of distributing has to react to.
#[derive(Debug)]
pub enum Event<T> {
    /// The network delivered or has room.
    Network(Arrival<T>),
    /// A fault that the world cannot bring about alone (kill, and what hosts do) begins or ends.
    Fault {
        /// Which.
        kind: Kind,
        /// Whose.
        host: HostId,
        /// Whether it begins.
        begins: bool,
        /// Whether it will end.
        returns: bool,
    },
    /// An alarm of [`World::alarms`].
    Alarm(u32),
}

/// What some links had carried at a time.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When.
    pub at: Nanos,
    /// Bytes so far, by position in [`World::watched`].
    pub carried: Vec<u64>,
}

/// A fleet in virtual time.
pub struct World<T> {
    /// The fleet.
    pub topology: Topology,
    /// Its links.
    pub wiring: Wiring,
    /// Its connections.
    pub network: Network<T>,
    /// Alarms of whoever distributes.
    pub alarms: Alarms,
    /// Links of which samples are taken: the source's and all that hosts share.
    pub watched: Vec<LinkId>,
    /// The samples.
    pub samples: Vec<Sample>,
    faults: Vec<Planned>,
    fault_times: EventQueue<(usize, bool)>,
    /// Whether a fault concerned this host.
    pub is_hurt: Vec<bool>,
    /// What is left of each host's rates from the start and for good.
    pub lasting_share: Vec<f64>,
    interval: Nanos,
    sample_at: Nanos,
    now: Nanos,
    arrivals: Vec<Arrival<T>>,
}

impl<T> World<T> {
    /// A fleet at time 0. `interval` is the first distance of samples.
    pub fn new(
        mut topology: Topology,
        faults: Vec<Planned>,
        quantum: Nanos,
        interval: Nanos,
        seed: u64,
    ) -> Self {
        for fault in faults.iter().filter(|fault| fault.kind == Kind::Cut) {
            let rack = fault.rack.map(|rack| &mut topology.racks[rack as usize]);
            let region = fault.region.map(|region| &mut topology.regions[region as usize]);
            for group in [rack, region].into_iter().flatten() {
                (group.up, group.down) = (group.up.min(ENDLESS), group.down.min(ENDLESS));
            }
        }
        let mut network = Network::new(topology.socket_buffer_bytes, quantum, seed);
        let wiring = Wiring::new(&topology, &mut network);
        let shared = (0u32..).zip(&wiring.names).filter(|(_, (kind, whose))| match kind {
            LinkKind::HostUp => *whose == topology.source,
            kind => *kind != LinkKind::HostDown,
        });
        let watched = shared.map(|(link, _)| link).collect();
        let mut fault_times = EventQueue::default();
        let mut is_hurt = vec![false; topology.hosts.len()];
        let mut lasting_share = vec![1.0; topology.hosts.len()];
        for (at, fault) in faults.iter().enumerate() {
            fault_times.push(fault.at, (at, true));
            fault.until.into_iter().for_each(|until| fault_times.push(until, (at, false)));
            fault.hosts.iter().for_each(|host| is_hurt[*host as usize] = true);
            if fault.kind == Kind::Slow && fault.at == 0 && fault.until.is_none() {
                fault.hosts.iter().for_each(|host| lasting_share[*host as usize] = fault.factor);
            }
        }
        Self {
            topology,
            wiring,
            network,
            alarms: Alarms::default(),
            watched,
            samples: vec![],
            faults,
            fault_times,
            is_hurt,
            lasting_share,
            interval: interval.max(1),
            sample_at: 0,
            now: 0,
            arrivals: vec![],
        }
    }

    /// Virtual time.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Moves to the next instant at which something happens, and adds what; false: nothing ever
    /// will, or not by `end`.
    pub fn next(&mut self, end: Nanos, events: &mut Vec<Event<T>>) -> bool {
        let times = [self.network.next_at(), self.fault_times.next_at(), self.alarms.next_at()];
        let Some(now) = times.into_iter().flatten().min().filter(|now| *now <= end) else {
            return false;
        };
        let now = now.max(self.now);
        self.sample_until(now);
        self.now = now;
        self.network.advance(now, &mut self.arrivals);
        events.extend(self.arrivals.drain(..).map(Event::Network));
        while let Some((fault, begins)) = self.fault_times.pop_due(now) {
            self.bring_about(fault, begins, events);
        }
        while let Some(alarm) = self.alarms.pop_due(now) {
            events.push(Event::Alarm(alarm));
        }
        true
    }

    fn bring_about(&mut self, fault: usize, begins: bool, events: &mut Vec<Event<T>>) {
        let fault = &self.faults[fault];
        let factor = match (fault.kind, begins) {
            (Kind::Kill | Kind::Corrupt | Kind::Silent | Kind::Flood | Kind::Jump, _) => {
                let (kind, returns) = (fault.kind, fault.until.is_some());
                let event = |&host: &HostId| Event::Fault { kind, host, begins, returns };
                events.extend(fault.hosts.iter().map(event));
                return;
            }
            (Kind::Slow, true) => fault.factor,
            (Kind::Cut, true) => 0.0,
            (_, false) => 1.0,
        };
        let (topology, wiring) = (&self.topology, &self.wiring);
        let shared = [
            fault.rack.map(|at| (wiring.rack(at), &topology.racks[at as usize])),
            fault.region.map(|at| (wiring.region(at), &topology.regions[at as usize])),
        ];
        let mut changes = vec![];
        // What is cut off is a rack or region as a whole: inside it goes on.
        match shared.into_iter().flatten().next().filter(|_| fault.kind == Kind::Cut) {
            Some((links, group)) => {
                changes.extend(links.into_iter().flatten().zip([group.up, group.down]));
            }
            None => fault.hosts.iter().for_each(|host| {
                let rates = &topology.hosts[*host as usize];
                changes.extend(wiring.host(*host).into_iter().zip([rates.up, rates.down]));
            }),
        }
        for (link, rate) in changes {
            self.network.set_capacity(link, rate * factor);
        }
    }

    fn sample_until(&mut self, now: Nanos) {
        while self.sample_at <= now {
            let carried = self.watched.iter().map(|link| self.network.carried(*link)).collect();
            self.samples.push(Sample { at: self.sample_at, carried });
            self.sample_at += self.interval;
            if self.samples.len() >= SAMPLES_MAX {
                let mut keep = false;
                self.samples.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.interval *= 2;
                self.sample_at = self.samples.len() as Nanos * self.interval;
            }
        }
    }
}
