//! Distribution along a fixed schedule: every host passes each block on to the same children, as
//! soon as it has it, and nothing is repaired. What a plan is worth before anything goes wrong, and
//! the known answers against which the network is tested.
//!
//! A host is ideal here: it takes no time to prove a block and never waits for its disk.

use crate::network::{Arrival, FlowId};
use crate::outcome::{HostEnd, Outcome};
use crate::queue::Nanos;
use crate::scenario::Kind;
use crate::topology::{HostId, Topology};
use crate::world::{Event, World};

/// Who passes what to whom.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Edges from a host to a child.
    pub edges: Vec<(HostId, HostId)>,
}

impl Schedule {
    /// The source sends a copy to each target.
    pub fn direct(topology: &Topology) -> Self {
        Self { edges: topology.targets().map(|target| (topology.source, target)).collect() }
    }

    /// A line over all targets, region by region and rack by rack, the source's own first and slow
    /// hosts at its end: each border is crossed once.
    pub fn chain(topology: &Topology) -> Self {
        let source = &topology.hosts[topology.source as usize];
        let mut order: Vec<HostId> = topology.targets().collect();
        order.sort_by_key(|target| {
            let host = &topology.hosts[*target as usize];
            let away = (host.region != source.region, host.region, host.rack != source.rack);
            (away, host.rack, u64::MAX - host.up.min(host.down) as u64, *target)
        });
        let from = std::iter::once(topology.source).chain(order.iter().copied());
        Self { edges: from.zip(order.iter().copied()).collect() }
    }
}

struct Edge {
    from: HostId,
    to: HostId,
    flow: FlowId,
    /// How much of what the parent has was put on the wire.
    sent: u32,
}

/// Runs `schedule` for a file of `size_bytes` in blocks of `block_bytes`, until `end` at most.
pub fn run(
    world: &mut World<u32>,
    schedule: &Schedule,
    size_bytes: u64,
    block_bytes: u64,
    end: Nanos,
) -> Outcome {
    let hosts = world.topology.hosts.len();
    let blocks = size_bytes.div_ceil(block_bytes) as u32;
    let mut outcome = Outcome::new(hosts);
    let mut children = vec![vec![]; hosts];
    let mut edges: Vec<Edge> = vec![];
    for (from, to) in &schedule.edges {
        let path = world.wiring.path(&world.topology, *from, *to);
        let flow = world.network.open(&path);
        children[*from as usize].push(flow as usize);
        edges.push(Edge { from: *from, to: *to, flow, sent: 0 });
    }
    // One parent each and order on every connection: what a host has is a prefix of the file.
    let mut held = vec![0u32; hosts];
    held[world.topology.source as usize] = blocks;
    let pass_on = |world: &mut World<u32>, edge: &mut Edge, held: u32| {
        while edge.sent < held && world.network.has_room(edge.flow) {
            let begin = u64::from(edge.sent) * block_bytes;
            world.network.send(edge.flow, block_bytes.min(size_bytes - begin), edge.sent);
            edge.sent += 1;
        }
        if edge.sent < held {
            world.network.want_room(edge.flow);
        }
    };
    for edge in &children[world.topology.source as usize] {
        pass_on(world, &mut edges[*edge], blocks);
    }
    let mut events = vec![];
    while world.next(end, &mut events) {
        for event in events.drain(..) {
            match event {
                Event::Network(Arrival::Chunk(flow, block)) => {
                    let to = edges[flow as usize].to;
                    held[to as usize] = block + 1;
                    if block + 1 == blocks {
                        outcome.ends[to as usize] = HostEnd::Finished(world.now());
                    }
                    for edge in &children[to as usize] {
                        pass_on(world, &mut edges[*edge], block + 1);
                    }
                }
                Event::Network(Arrival::Room(flow)) => {
                    let edge = &mut edges[flow as usize];
                    let held = held[edge.from as usize];
                    pass_on(world, edge, held);
                }
                // Nobody reconnects on a fixed schedule, so a restart changes nothing.
                Event::Fault { kind: Kind::Kill, host, begins: true, .. } => {
                    if !matches!(outcome.ends[host as usize], HostEnd::Finished(_)) {
                        outcome.ends[host as usize] = HostEnd::Killed;
                    }
                    for edge in edges.iter().filter(|edge| edge.from == host || edge.to == host) {
                        world.network.close(edge.flow);
                    }
                }
                Event::Fault { .. } | Event::Alarm(_) => {}
            }
        }
    }
    outcome.ended_at = world.now();
    outcome
}
