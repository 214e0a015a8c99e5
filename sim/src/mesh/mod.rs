//! The shipping swarm and coordinator on the modelled network: one
//! [`Swarm`](skein_filemesh::core::swarm::Swarm) per host and one
//! [`Coordinator`](skein_filemesh::core::coordinator::Coordinator), every byte between them real.
//!
//! Modelled around them: connections take two round trips (TCP and TLS 1.3), data is charged with
//! TLS's 22 bytes per record of 16 KiB, a killed process resets its connections and comes back with
//! what it had on disk as claims that it proves again. A host is ideal otherwise: proving, disk and
//! page cache take no time.
//!
//! *Scale.* Hashing every block of 10,000 hosts is not affordable, so one byte may stand for
//! `scale` bytes: the file and its pieces are that much smaller, file data is charged `scale` times
//! to the network, and protocol bytes once. A block of 16 KiB at scale 64 is a block of 1 MiB.

mod content;
mod control;
mod links;
mod member;
mod misbehaviour;
mod traffic;

pub use content::Content;
pub use control::Costs;

use crate::network::Arrival;
use crate::outcome::{HostEnd, Outcome};
use crate::queue::{EventQueue, MILLISECOND, Nanos};
use crate::scenario::Kind;
use crate::topology::HostId;
use crate::world::{Event, World};
use control::{Control, News, Work};
use links::{Chunk, Links};
use member::Host;
use skein_filemesh::core::bitfield::Bitfield;
use skein_filemesh::core::coordinator::{Coordinator, Output, Participant, Settings, Spec};
use skein_filemesh::core::link::Have;
use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, Handshake};
use skein_filemesh::core::place::{Place, Rates};
use skein_filemesh::core::plan::HostPlan;
use skein_filemesh::core::planner::Gear;
use skein_filemesh::core::swarm::{Action, Dial};
use std::ops::Range;
use traffic::Traffic;

/// What is sent outside the modelled network, or happens at a time of its own.
enum Step {
    /// The order reaches a host, or its process is started again.
    Start(HostId),
    /// A plan reaches a host.
    Plan(HostId, HostPlan),
    /// News reach control, or its clock ticks.
    Arrived(Work),
    /// The coordinator is done with what it was busy with.
    Free,
    /// A host reports.
    Report(HostId, u32),
    /// A host that floods sends its next requests.
    Burst(HostId),
    /// Dialling came to its end.
    Dialled { from: HostId, to: HostId, life: u32 },
    /// This end of a connection learns that the other closed it.
    Closed(u32, usize),
}

/// A run of the shipping core.
pub struct Mesh<'a> {
    world: &'a mut World<Chunk>,
    content: &'a Content,
    hosts: Vec<Host>,
    links: Links,
    steps: EventQueue<Step>,
    control: Control,
    traffic: Traffic,
    outcome: Outcome,
    /// Targets that may still finish.
    open: usize,
    /// Writes that are not the file's bytes. Must stay 0.
    false_writes: u64,
    actions: Vec<Action>,
    seed: u64,
}

/// What a run of the shipping core says beside how hosts ended.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshOutcome {
    /// How hosts ended.
    pub outcome: Outcome,
    /// Accepted writes that are not the file's bytes. Anything but 0 is a defect of the core.
    pub false_writes: u64,
    /// Plans that control sent.
    pub plans: u64,
    /// Time that the coordinator worked.
    pub coordinator_worked: Nanos,
    /// Connections that were made.
    pub connections: u64,
    /// Bytes per host and piece between control and hosts: of reports, plans, and signed lists.
    pub control_bytes: [f64; 3],
    /// Pieces for want of which control gave the transfer up.
    pub missing: Vec<Range<u32>>,
    /// Pieces that no host had at the end.
    pub unheld: Vec<Range<u32>>,
}

/// Distributes `content` by `gear`, until `end` at most.
pub fn run(
    world: &mut World<Chunk>,
    content: &Content,
    gear: Gear,
    costs: Costs,
    seed: u64,
    end: Nanos,
) -> MeshOutcome {
    let coordinator = coordinator(world, content, gear, costs.knows_rates, seed);
    let targets = world.topology.targets().count();
    let hosts = (0..world.topology.hosts.len() as HostId).map(|_| Host::default()).collect();
    let mesh = Mesh {
        traffic: Traffic::new(world.topology.source, targets),
        control: Control::new(coordinator, costs),
        outcome: Outcome::new(world.topology.hosts.len()),
        open: targets,
        world,
        content,
        hosts,
        links: Links::default(),
        steps: EventQueue::default(),
        false_writes: 0,
        actions: vec![],
        seed,
    };
    mesh.run(end)
}

fn coordinator(
    world: &World<Chunk>,
    content: &Content,
    gear: Gear,
    knows_rates: bool,
    seed: u64,
) -> Coordinator {
    let topology = &world.topology;
    let participant = |member: HostId| {
        let host = &topology.hosts[member as usize];
        let share = world.lasting_share[member as usize] / f64::from(content.scale);
        let number = |group: Option<u32>| group.map_or(0, |group| group + 1);
        let place = Place { region: number(host.region) as u16, zone: 0, rack: number(host.rack) };
        let rate = |rate: f64| knows_rates.then_some((rate * share) as u64);
        let rates = Rates { up_bytes_s: rate(host.up), down_bytes_s: rate(host.down) };
        Participant { member, place, rates }
    };
    let spec = Spec {
        geometry: content.tree.geometry(),
        sources: vec![participant(topology.source)],
        targets: topology.targets().map(participant).collect(),
        gear,
    };
    let latencies = topology.hosts.iter().map(|host| host.latency);
    let hop = 2 * latencies.max().unwrap_or_default();
    let rtt_ms = (2 * hop) as f64 / MILLISECOND as f64;
    let settings = Settings::default();
    let default_bytes_s = settings.default_bytes_s / u64::from(content.scale);
    Coordinator::new(spec, Settings { rtt_ms, default_bytes_s, ..settings }, seed, 0)
}

impl Mesh<'_> {
    fn run(mut self, end: Nanos) -> MeshOutcome {
        let latency = self.control.costs.latency;
        self.start(self.world.topology.source);
        for target in self.world.topology.targets().collect::<Vec<_>>() {
            self.steps.push(latency, Step::Start(target));
        }
        self.steps.push(self.control.costs.tick_every, Step::Arrived(Work::Tick));
        let mut events = vec![];
        let own = self.hosts.len() as u32;
        while self.open > 0 && self.control.missing.is_none() {
            self.world.alarms.set(own, self.steps.next_at());
            if !self.world.next(end, &mut events) {
                break;
            }
            for event in events.drain(..) {
                match event {
                    Event::Network(Arrival::Chunk(flow, chunk)) => self.arrived(flow, chunk),
                    Event::Network(Arrival::Room(flow)) => {
                        let (key, side) = self.links.of(flow);
                        let host = self.links.end(key, side).host;
                        self.pump(host, key);
                        self.rest(host);
                    }
                    Event::Alarm(host) if host == own => {}
                    Event::Alarm(host) => self.tick(host),
                    Event::Fault { kind: Kind::Kill, host, begins: true, returns } => {
                        self.kill(host, returns);
                    }
                    Event::Fault { kind: Kind::Kill, host, .. } => self.start_again(host),
                    Event::Fault { kind, host, begins, .. } => self.misbehave(kind, host, begins),
                }
            }
            let now = self.world.now();
            while let Some(step) = self.steps.pop_due(now) {
                self.step(step);
            }
        }
        self.outcome.ended_at = self.world.now();
        let pieces = self.content.tree.geometry().piece_count();
        for host in &self.hosts {
            let progress = host.swarm.as_ref().and_then(|swarm| swarm.progress());
            let Some(progress) = progress else { continue };
            let block = u64::from(skein_filemesh::core::geometry::BLOCK_BYTES);
            self.outcome.refused_blocks += progress.refused_blocks;
            self.outcome.wasted_bytes +=
                progress.wasted_blocks * block * u64::from(self.content.scale);
        }
        let unheld = self.unheld(pieces);
        MeshOutcome {
            unheld,
            missing: self.control.missing.take().unwrap_or_default(),
            outcome: self.outcome,
            false_writes: self.false_writes,
            plans: self.control.plans,
            coordinator_worked: self.control.worked,
            connections: self.links.count(),
            control_bytes: self.traffic.per_host_and_piece(pieces),
        }
    }

    fn unheld(&self, pieces: u32) -> Vec<Range<u32>> {
        let mut all = Bitfield::new(pieces);
        for swarm in self.hosts.iter().filter_map(|host| host.swarm.as_ref()) {
            match swarm.have() {
                Have::All => all.set_range(0..pieces),
                Have::Some(held) => held.ranges().for_each(|range| all.set_range(range)),
            }
        }
        let mut unheld = Bitfield::new(pieces);
        for piece in (0..pieces).filter(|piece| !all.get(*piece)) {
            unheld.set(piece);
        }
        unheld.ranges().collect()
    }

    fn now_ms(&self) -> u64 {
        self.world.now() / MILLISECOND
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Start(host) => self.start(host),
            Step::Plan(host, plan) => {
                let now_ms = self.host_ms(host);
                if let Some(swarm) = &mut self.hosts[host as usize].swarm {
                    swarm.set_plan(plan, now_ms, &mut self.actions);
                    self.act(host, &[]);
                    self.tick(host);
                }
            }
            Step::Arrived(work) => {
                self.control.waiting.push_back(work);
                self.work();
            }
            Step::Free => {
                self.control.is_woken = false;
                self.work();
            }
            Step::Report(host, life) => self.report(host, life),
            Step::Burst(host) => self.burst(host),
            Step::Dialled { from, to, life } => self.dialled(from, to, life),
            Step::Closed(key, side) => {
                let host = self.links.end(key, side).host;
                let now_ms = self.host_ms(host);
                self.hosts[host as usize].keys.remove(&key);
                if self.links.shut(&mut self.world.network, key, side)
                    && let Some(swarm) = &mut self.hosts[host as usize].swarm
                {
                    swarm.disconnected(key, now_ms);
                    self.tick(host);
                }
            }
        }
    }

    /// Lets the coordinator take what arrived, one after the other, until it is busy.
    fn work(&mut self) {
        let now = self.world.now();
        while !self.control.waiting.is_empty() {
            if let Some(later) = self.control.busy(now) {
                if !std::mem::replace(&mut self.control.is_woken, true) {
                    self.steps.push(later, Step::Free);
                }
                return;
            }
            let decides = match self.control.waiting.pop_front() {
                Some(Work::News(news)) => self.control.take(news, now),
                Some(Work::Tick) => {
                    let next = now + self.control.costs.tick_every;
                    self.steps.push(next, Step::Arrived(Work::Tick));
                    true
                }
                None => false,
            };
            if decides {
                self.coordinate();
            }
        }
    }

    /// Lets the coordinator decide and sends what it says.
    fn coordinate(&mut self) {
        let outputs = self.control.tick(self.world.now());
        self.traffic.plans(outputs.iter().filter_map(|(_, output)| match output {
            Output::Plan { member, plan } => Some((*member, plan)),
            _ => None,
        }));
        for (at, output) in outputs {
            if let Output::Plan { member, plan } = output {
                self.steps.push(at + self.control.costs.latency, Step::Plan(member, plan));
            }
        }
    }

    fn tell(&mut self, news: News) {
        let at = self.world.now() + self.control.costs.latency;
        self.steps.push(at, Step::Arrived(Work::News(news)));
    }

    /// The regular report of a host.
    fn report(&mut self, host: HostId, life: u32) {
        if self.hosts[host as usize].life != life {
            return;
        }
        self.say(host);
        let swarm = self.hosts[host as usize].swarm.as_ref();
        if swarm.is_some_and(|swarm| !swarm.is_done()) {
            let next = self.world.now() + self.control.costs.report_every;
            self.steps.push(next, Step::Report(host, life));
        }
    }

    /// Says what there is to say, if anything.
    fn say(&mut self, host: HostId) {
        let state = &mut self.hosts[host as usize];
        let Some(swarm) = state.swarm.as_mut() else { return };
        let (report, traffic) = (swarm.take_report(), swarm.traffic());
        let late = std::mem::take(&mut state.late);
        if report.down_bytes > 0 || !report.gained.is_empty() || !late.is_empty() {
            self.traffic.report(&report, &late, traffic);
            self.tell(News::Report(host, report, traffic.1, late));
        }
    }

    fn start(&mut self, host: HostId) {
        let now_ms = self.host_ms(host);
        let is_source = host == self.world.topology.source;
        let state = &mut self.hosts[host as usize];
        state.start(self.content, host, is_source, self.seed, now_ms);
        let life = state.life;
        if !is_source {
            self.traffic.began(host);
            self.tell(News::Joined(host));
            let interval = self.control.costs.report_every;
            // Hosts do not all report at the same moment.
            let first = interval * (1 + u64::from(host % 16)) / 16;
            self.steps.push(self.world.now() + first, Step::Report(host, life));
        }
        self.tick(host);
    }

    fn kill(&mut self, host: HostId, returns: bool) {
        let is_finished = matches!(self.outcome.ends[host as usize], HostEnd::Finished(_));
        let is_target = host != self.world.topology.source;
        if self.hosts[host as usize].swarm.is_none() {
            return;
        }
        for key in self.hosts[host as usize].stop() {
            self.hang_up(host, key);
        }
        self.world.alarms.set(host, None);
        self.tell(News::Gone(host));
        if is_target && !is_finished {
            self.outcome.ends[host as usize] = HostEnd::Killed;
            self.open -= usize::from(!returns);
        }
    }

    fn start_again(&mut self, host: HostId) {
        let end = &mut self.outcome.ends[host as usize];
        if *end == HostEnd::Killed {
            *end = HostEnd::Unfinished;
        }
        if self.hosts[host as usize].swarm.is_none() && !matches!(end, HostEnd::Finished(_)) {
            self.start(host);
        }
    }

    /// Closes a connection from this host's side; the other learns it one latency later.
    fn hang_up(&mut self, host: HostId, key: u32) {
        let Some(side) = self.links.side(key, host) else { return };
        self.hosts[host as usize].keys.remove(&key);
        if self.links.shut(&mut self.world.network, key, side) {
            let latency = self.links.latency(key);
            self.steps.push(self.world.now() + latency, Step::Closed(key, 1 - side));
        }
    }

    fn tick(&mut self, host: HostId) {
        let now_ms = self.host_ms(host);
        if let Some(swarm) = &mut self.hosts[host as usize].swarm {
            swarm.tick(now_ms, &mut self.actions);
            self.act(host, &[]);
            self.pump_all(host);
        }
        self.rest(host);
    }

    /// Sets the alarm of a host that has nothing to do now.
    fn rest(&mut self, host: HostId) {
        let now = self.world.now();
        // A deadline that stays in the past must not stop time.
        let at = self.deadline(host).map(|at| at.max(now + MILLISECOND / 10));
        self.world.alarms.set(host, at);
    }

    fn arrived(&mut self, flow: u32, chunk: Chunk) {
        let (key, side) = self.links.of(flow);
        let end = self.links.end(key, 1 - side);
        let host = end.host;
        if !end.is_open {
            return;
        }
        let content = self.content;
        let (protocol, data) = chunk.parts(content);
        for bytes in [protocol, &data] {
            if !bytes.is_empty() && self.links.end(key, 1 - side).is_open {
                self.received(host, key, 1 - side, bytes);
            }
        }
        self.check_claims(host);
        self.pump_all(host);
        self.rest(host);
    }

    /// Hands `bytes` that came next to the swarm of `host`; what it does not use up stays in the
    /// inbox.
    fn received(&mut self, host: HostId, key: u32, side: usize, bytes: &[u8]) {
        // Nearly always nothing is left over, and then nothing is copied.
        let mut inbox = std::mem::take(&mut self.links.end_mut(key, side).inbox);
        let bytes = match inbox.is_empty() {
            true => bytes,
            false => {
                inbox.extend_from_slice(bytes);
                &inbox
            }
        };
        let mut used = 0;
        if !self.links.end(key, side).is_greeted {
            match self.links.greet(key, side, bytes) {
                Ok(Some(theirs)) => {
                    used = HANDSHAKE_BYTES;
                    self.accept(host, key, self.links.end(key, 1 - side).host, theirs);
                }
                Ok(None) => {
                    self.links.end_mut(key, side).inbox = bytes.to_vec();
                    return;
                }
                Err(_) => return self.hang_up(host, key),
            }
        }
        if self.hosts[host as usize].wrong.floods {
            return;
        }
        let buf = &bytes[used..];
        let now_ms = self.host_ms(host);
        if let Some(swarm) = &mut self.hosts[host as usize].swarm {
            used += swarm.receive(key, buf, now_ms, &mut self.actions);
        }
        self.act(host, buf);
        let end = self.links.end_mut(key, side);
        if used < bytes.len() && end.is_open {
            end.inbox = bytes[used..].to_vec();
        }
    }

    /// Proves what an earlier life of this host left on disk, as far as its hashes are known.
    fn check_claims(&mut self, host: HostId) {
        let now_ms = self.host_ms(host);
        while let Some(swarm) = &mut self.hosts[host as usize].swarm {
            let Some(range) = swarm.next_check() else { break };
            let data = self.content.range(range.start, range.end - range.start);
            swarm.checked(Some(data), now_ms, &mut self.actions);
            self.act(host, &[]);
        }
    }

    fn accept(&mut self, host: HostId, key: u32, from: HostId, theirs: Handshake) {
        let now_ms = self.host_ms(host);
        if let Some(swarm) = &mut self.hosts[host as usize].swarm {
            swarm.connected(key, from, Dial::Accepted(theirs), now_ms, &mut self.actions);
        }
        self.act(host, &[]);
    }

    /// Does what the swarm of `host` asked for; writes refer to `buf`.
    fn act(&mut self, host: HostId, buf: &[u8]) {
        let now_ms = self.host_ms(host);
        let mut actions = std::mem::take(&mut self.actions);
        let mut written = 0;
        while !actions.is_empty() {
            for action in actions.drain(..) {
                match action {
                    Action::Write { offset, data } => {
                        written += data.len() as u64;
                        let is_true = buf.get(data).is_some_and(|bytes| {
                            let ours = self.content.range(offset, bytes.len() as u64);
                            std::ptr::eq(bytes, ours) || bytes == ours
                        });
                        self.false_writes += u64::from(!is_true);
                    }
                    Action::Leaves { .. } => {}
                    Action::Connect(member) => self.dial(host, member),
                    Action::Close { key, .. } => self.hang_up(host, key),
                    Action::ParentLate(parent) => self.hosts[host as usize].late.push(parent),
                    Action::Done => {
                        self.outcome.ends[host as usize] = HostEnd::Finished(self.world.now());
                        self.open -= 1;
                    }
                }
            }
            if let Some(swarm) = self.hosts[host as usize].swarm.as_mut().filter(|_| written > 0) {
                swarm.written(std::mem::take(&mut written), now_ms, &mut actions);
            }
        }
        self.actions = actions;
        if !self.hosts[host as usize].late.is_empty() {
            self.say(host);
        }
    }

    fn dial(&mut self, from: HostId, to: HostId) {
        let path = self.world.wiring.path(&self.world.topology, from, to);
        let life = self.hosts[from as usize].life;
        let is_cut = path.links.iter().any(|link| self.world.network.capacity(*link) <= 0.0);
        let takes = if is_cut { links::DIAL_TIMEOUT } else { 4 * path.latency };
        self.steps.push(self.world.now() + takes, Step::Dialled { from, to, life });
    }

    fn dialled(&mut self, from: HostId, to: HostId, life: u32) {
        let now_ms = self.host_ms(from);
        if self.hosts[from as usize].life != life {
            return;
        }
        let ways = [(from, to), (to, from)]
            .map(|(from, to)| self.world.wiring.path(&self.world.topology, from, to));
        let capacity = |link: &u32| self.world.network.capacity(*link);
        let is_cut = ways.iter().flat_map(|way| &way.links).any(|link| capacity(link) <= 0.0);
        let is_there = self.hosts[to as usize].swarm.is_some() && !is_cut;
        let key = is_there.then(|| {
            let key = self.links.open(&mut self.world.network, [from, to], &ways);
            for host in [from, to] {
                self.hosts[host as usize].keys.insert(key);
            }
            key
        });
        let Some(swarm) = &mut self.hosts[from as usize].swarm else { return };
        match key {
            Some(key) => swarm.connected(key, to, Dial::Opened, now_ms, &mut self.actions),
            None => swarm.connect_failed(to, now_ms),
        }
        self.act(from, &[]);
        self.tick(from);
    }

    fn pump_all(&mut self, host: HostId) {
        loop {
            let Some(swarm) = &mut self.hosts[host as usize].swarm else { return };
            let ready = swarm.take_ready();
            if ready.is_empty() {
                return;
            }
            for key in ready {
                self.pump(host, key);
            }
        }
    }

    /// Puts on the wire what the swarm has for one peer, as far as the socket takes it.
    fn pump(&mut self, host: HostId, key: u32) {
        let Some(side) = self.links.side(key, host) else { return };
        let now_ms = self.host_ms(host);
        let state = &mut self.hosts[host as usize];
        let Some(swarm) = state.swarm.as_mut().filter(|_| !state.wrong.is_silent) else { return };
        let end = self.links.end(key, side);
        while end.is_open && swarm.has_output(key) {
            if !self.world.network.has_room(end.flow) {
                self.world.network.want_room(end.flow);
                return;
            }
            let Some(chunk) = Chunk::pull(swarm, key, self.content, state.wrong.lies, now_ms)
            else {
                return;
            };
            let bytes = chunk.wire_bytes(self.content.scale);
            self.world.network.send(end.flow, bytes, chunk);
        }
    }
}
