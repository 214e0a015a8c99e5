//! Swarms on links of given rates in virtual time: each member's uplink goes round its connections,
//! its downlink takes bytes in order of arrival, and every connection has the same latency.

use super::super::{Action, CloseReason, Config, Dial, Pull, Start, Swarm};
use crate::core::merkle::Hash;
use crate::core::peer_wire::{HANDSHAKE_BYTES, Handshake};
use crate::core::plan::{HostPlan, Member};
use crate::core::transfer_tests::Source;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::rc::Rc;

/// Bytes that go out before the next connection has its turn.
const QUANTUM: usize = 17 * 1024;

/// Bytes on the way in one direction of a connection.
const FLIGHT_MAX: usize = 256 * 1024;

/// A member.
pub struct Node {
    pub swarm: Swarm,
    pub disk: Vec<u8>,
    pub done_us: Option<u64>,
    /// Sends nothing any more; its connections stay.
    pub is_mute: bool,
    /// Inverts the first byte of all data that it sends.
    pub lies: bool,
    pub up_bytes_per_s: u64,
    pub down_bytes_per_s: u64,
    /// Members that it closed connections with, and why.
    pub closed: Vec<(Member, CloseReason)>,
    pub late: Vec<Member>,
    leaves: Vec<Option<Hash>>,
    turns: VecDeque<usize>,
    up_free_us: u64,
    down_free_us: u64,
    tick_us: u64,
}

struct Connection {
    nodes: [usize; 2],
    open: bool,
    accepted: bool,
    /// Received by each side and not used up.
    buf: [Vec<u8>; 2],
    /// Sent by each side and on the way.
    flight: [usize; 2],
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Uplink(usize),
    Deliver { connection: usize, to: usize, bytes: Vec<u8> },
    Gone { connection: usize, side: usize },
    Dialled { from: usize, to: Member },
    Tick(usize),
}

pub struct Net {
    pub now_us: u64,
    pub nodes: Vec<Node>,
    pub latency_us: u64,
    /// Of members that are added from now on: bytes per second up and down, 0 for none.
    pub limits: (u64, u64),
    seed: u64,
    source: Rc<Source>,
    connections: Vec<Connection>,
    /// Bytes that left one member for another.
    pub sent: BTreeMap<(usize, usize), u64>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
}

impl Net {
    /// Member 0 has the file; members are added by [`Net::add`].
    pub fn new(source: Source, rate: u64, seed: u64) -> Self {
        let mut net = Self {
            now_us: 0,
            nodes: vec![],
            latency_us: 300 + seed * 100 % 1_000,
            limits: (0, 0),
            seed,
            source: Rc::new(source),
            connections: vec![],
            sent: BTreeMap::new(),
            events: BinaryHeap::new(),
            count: 0,
        };
        let start = Start::Complete(net.source.tree.clone());
        let (disk, leaves) = (net.source.data.clone(), net.source.leaves.clone());
        net.add(start, disk, leaves.into_iter().map(Some).collect(), rate);
        net
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    fn add(&mut self, start: Start, disk: Vec<u8>, leaves: Vec<Option<Hash>>, rate: u64) -> usize {
        let me = self.nodes.len();
        let handshake = self.source.handshake(&format!("host-{me}"));
        let mut config = Config::new(handshake, self.seed * 1_000 + me as u64);
        (config.up_bytes_per_s, config.down_bytes_per_s) = self.limits;
        self.nodes.push(Node {
            swarm: Swarm::new(start, me as Member, config, self.now_us / 1000),
            disk,
            leaves,
            done_us: None,
            is_mute: false,
            lies: false,
            up_bytes_per_s: rate,
            down_bytes_per_s: rate,
            closed: vec![],
            late: vec![],
            turns: VecDeque::new(),
            up_free_us: 0,
            down_free_us: 0,
            tick_us: u64::MAX,
        });
        self.at(self.now_us, Event::Tick(me));
        me
    }

    /// Adds a member with an empty disk.
    pub fn join(&mut self, rate: u64) -> usize {
        let download = self.source.download(None);
        let geometry = self.source.geometry();
        let disk = vec![0; geometry.size_bytes() as usize];
        let leaves = vec![None; geometry.block_count() as usize];
        self.add(Start::Download(Box::new(download)), disk, leaves, rate)
    }

    /// Adds a member whose disk holds `disk` of an earlier run that claims all of it.
    pub fn resume(&mut self, disk: Vec<u8>, rate: u64) -> usize {
        let blocks = self.source.geometry().block_count();
        let claimed = crate::core::bitfield::Bitfield::full(blocks);
        let download = self.source.download(Some(claimed));
        self.add(Start::Download(Box::new(download)), disk, vec![None; blocks as usize], rate)
    }

    fn at(&mut self, time_us: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time_us, self.count, event)));
    }

    pub fn plan(&mut self, node: usize, plan: HostPlan) {
        let mut actions = vec![];
        self.nodes[node].swarm.set_plan(plan, self.now_us / 1000, &mut actions);
        self.act(node, actions, &[]);
    }

    /// The member falls silent; nobody is told.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].is_mute = true;
    }

    /// Runs until `until` holds or `limit_us` passed; true if it holds.
    pub fn run(&mut self, limit_us: u64, until: impl Fn(&Net) -> bool) -> bool {
        while !until(self) {
            let Some(Reverse((time_us, _, event))) = self.events.pop() else { return false };
            if time_us > limit_us {
                self.at(time_us, event);
                self.now_us = limit_us;
                return until(self);
            }
            self.now_us = time_us;
            self.handle(event);
        }
        true
    }

    /// Whether all that still speak have everything.
    pub fn all_done(&self) -> bool {
        self.nodes.iter().all(|node| node.is_mute || node.swarm.is_done())
    }

    fn handle(&mut self, event: Event) {
        let now_ms = self.now_us / 1000;
        let mut actions = vec![];
        match event {
            Event::Uplink(node) => self.turn(node),
            Event::Tick(node) => {
                self.nodes[node].tick_us = u64::MAX;
                self.nodes[node].swarm.tick(now_ms, &mut actions);
                self.act(node, actions, &[]);
            }
            Event::Gone { connection, side } => {
                let node = self.connections[connection].nodes[side];
                self.nodes[node].swarm.disconnected(connection as u32, now_ms);
                self.act(node, actions, &[]);
            }
            Event::Dialled { from, to } => self.dialled(from, to),
            Event::Deliver { connection, to, bytes } => self.deliver(connection, to, &bytes),
        }
    }

    fn dialled(&mut self, from: usize, to: Member) {
        let now_ms = self.now_us / 1000;
        let to = to as usize;
        let mut actions = vec![];
        if to >= self.nodes.len() || self.nodes[to].is_mute {
            self.nodes[from].swarm.connect_failed(to as Member, now_ms);
            return self.act(from, actions, &[]);
        }
        let key = self.connections.len();
        self.connections.push(Connection {
            nodes: [from, to],
            open: true,
            accepted: false,
            buf: [vec![], vec![]],
            flight: [0, 0],
        });
        let swarm = &mut self.nodes[from].swarm;
        swarm.connected(key as u32, to as Member, Dial::Opened, now_ms, &mut actions);
        self.act(from, actions, &[]);
    }

    fn deliver(&mut self, key: usize, to: usize, bytes: &[u8]) {
        let now_ms = self.now_us / 1000;
        let connection = &mut self.connections[key];
        connection.flight[1 - to] -= bytes.len();
        let [sender, node] = [connection.nodes[1 - to], connection.nodes[to]];
        if !connection.open {
            return;
        }
        connection.buf[to].extend_from_slice(bytes);
        self.wake(sender, key);
        if self.nodes[node].is_mute {
            return self.connections[key].buf[to].clear();
        }
        let mut actions = vec![];
        if to == 1 && !self.connections[key].accepted {
            let buf = &mut self.connections[key].buf[1];
            let Some(theirs) = Handshake::decode(buf).unwrap() else { return };
            buf.drain(..HANDSHAKE_BYTES);
            self.connections[key].accepted = true;
            let dial = Dial::Accepted(theirs);
            let swarm = &mut self.nodes[node].swarm;
            swarm.connected(key as u32, sender as Member, dial, now_ms, &mut actions);
            self.act(node, std::mem::take(&mut actions), &[]);
        }
        let mut buf = std::mem::take(&mut self.connections[key].buf[to]);
        let used = self.nodes[node].swarm.receive(key as u32, &buf, now_ms, &mut actions);
        self.act(node, actions, &buf);
        buf.drain(..used);
        self.connections[key].buf[to] = buf;
    }

    /// Does what a member asks for; writes are on disk at once.
    fn act(&mut self, node: usize, actions: Vec<Action>, buf: &[u8]) {
        let now_ms = self.now_us / 1000;
        let mut more = vec![];
        for action in actions {
            let this = &mut self.nodes[node];
            match action {
                Action::Write { offset, data } => {
                    let at = offset as usize;
                    let truth = &self.source.data[at..at + data.len()];
                    assert!(buf[data.clone()] == *truth, "member {node} would write a lie");
                    this.disk[at..at + data.len()].copy_from_slice(&buf[data.clone()]);
                    this.swarm.written(data.len() as u64, now_ms, &mut more);
                }
                Action::Leaves { piece, leaves } => {
                    let blocks = self.source.geometry().blocks_of(piece);
                    for (block, leaf) in blocks.zip(leaves.iter()) {
                        let kept = this.leaves[block as usize].replace(*leaf);
                        assert_eq!(kept, None, "leaves come once");
                    }
                }
                Action::Connect(to) => {
                    let time_us = self.now_us + 2 * self.latency_us;
                    self.at(time_us, Event::Dialled { from: node, to });
                }
                Action::Close { key, member, why } => {
                    this.closed.push((member, why));
                    let connection = &mut self.connections[key as usize];
                    connection.open = false;
                    let side = usize::from(connection.nodes[0] == node);
                    let time_us = self.now_us + self.latency_us;
                    self.at(time_us, Event::Gone { connection: key as usize, side });
                }
                Action::ParentLate(member) => this.late.push(member),
                Action::Done => this.done_us = Some(self.now_us),
            }
        }
        while let Some(range) = self.nodes[node].swarm.next_check() {
            let this = &mut self.nodes[node];
            let bytes = this.disk[range.start as usize..range.end as usize].to_vec();
            this.swarm.checked(Some(&bytes), now_ms, &mut more);
        }
        if !more.is_empty() {
            return self.act(node, more, buf);
        }
        for key in self.nodes[node].swarm.take_ready() {
            self.wake(node, key as usize);
        }
        let this = &mut self.nodes[node];
        if let Some(deadline_ms) = this.swarm.deadline_ms().filter(|_| !this.is_mute) {
            let time_us = (deadline_ms * 1000).max(self.now_us + 1);
            if time_us < this.tick_us {
                this.tick_us = time_us;
                self.at(time_us, Event::Tick(node));
            }
        }
    }

    fn wake(&mut self, node: usize, key: usize) {
        let this = &mut self.nodes[node];
        if !this.turns.contains(&key) {
            this.turns.push_back(key);
            let time_us = this.up_free_us.max(self.now_us);
            self.at(time_us, Event::Uplink(node));
        }
    }

    /// Sends from the next connection that has something.
    fn turn(&mut self, node: usize) {
        if self.nodes[node].up_free_us > self.now_us || self.nodes[node].is_mute {
            return;
        }
        while let Some(key) = self.nodes[node].turns.pop_front() {
            let side = usize::from(self.connections[key].nodes[1] == node);
            if !self.connections[key].open || self.connections[key].flight[side] > FLIGHT_MAX {
                continue;
            }
            let out = self.pull(node, key as u32);
            if out.is_empty() {
                continue;
            }
            let to = self.connections[key].nodes[1 - side];
            let len = out.len() as u64;
            *self.sent.entry((node, to)).or_default() += len;
            self.connections[key].flight[side] += out.len();
            let sent_us = self.now_us + (len * 1_000_000).div_ceil(self.nodes[node].up_bytes_per_s);
            self.nodes[node].up_free_us = sent_us;
            self.nodes[node].turns.push_back(key);
            let taken_us = (len * 1_000_000).div_ceil(self.nodes[to].down_bytes_per_s);
            let free_us = self.nodes[to].down_free_us + taken_us;
            let arrived_us = free_us.max(sent_us + self.latency_us);
            self.nodes[to].down_free_us = arrived_us;
            self.at(arrived_us, Event::Deliver { connection: key, to: 1 - side, bytes: out });
            return self.at(sent_us, Event::Uplink(node));
        }
    }

    fn pull(&mut self, node: usize, key: u32) -> Vec<u8> {
        let (now_ms, geometry) = (self.now_us / 1000, self.source.geometry());
        let this = &mut self.nodes[node];
        let mut out = vec![];
        while out.len() + 64 < QUANTUM {
            match this.swarm.next(key, QUANTUM - out.len(), &mut out, now_ms) {
                Some(Pull::Data { offset, len }) => {
                    let start = out.len();
                    let end = offset as usize + len as usize;
                    out.extend_from_slice(&this.disk[offset as usize..end]);
                    if this.lies {
                        out[start] ^= 1;
                    }
                }
                Some(Pull::Leaves { first, count }) => {
                    let end = (first + count).min(geometry.block_count());
                    let leaves = &this.leaves[first as usize..end as usize];
                    let leaves: Vec<Hash> = leaves.iter().map(|leaf| leaf.unwrap()).collect();
                    this.swarm.leaves(key, Some(leaves.as_flattened()), &mut out, now_ms);
                }
                None => break,
            }
        }
        let next = this.swarm.deadline_ms().map(|deadline_ms| deadline_ms * 1000);
        if let Some(time_us) = next.filter(|time_us| *time_us < this.tick_us) {
            this.tick_us = time_us.max(self.now_us + 1);
            self.at(self.nodes[node].tick_us, Event::Tick(node));
        }
        out
    }
}

/// Interleaved trees of `stripes` over `members`, the source being member 0: in tree `s` every
/// `stripes`-th member is an inner node. Neighbours stand on a ring.
pub fn trees(number: u32, members: &[Member], stripes: usize) -> Vec<HostPlan> {
    let mut plans: Vec<HostPlan> = members
        .iter()
        .enumerate()
        .map(|(at, _)| {
            let near = [1, 3, members.len() - 1, members.len() - 3];
            let mut neighbours: Vec<Member> =
                near.iter().map(|step| members[(at + step) % members.len()]).collect();
            neighbours.retain(|member| *member != members[at]);
            HostPlan { number, parents: vec![None; stripes], neighbours, far: vec![] }
        })
        .collect();
    for stripe in 0..stripes {
        let (inner, leaves): (Vec<usize>, Vec<usize>) =
            (0..members.len()).partition(|at| at % stripes == stripe);
        let order = [inner, leaves].concat();
        for (position, at) in order.iter().enumerate() {
            let parent = position.checked_sub(1).map_or(0, |above| members[order[above / stripes]]);
            plans[*at].parents[stripe] = Some(parent);
        }
    }
    plans
}
