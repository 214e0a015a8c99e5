//! Hosts that take part and do not behave: one that says nothing, one that floods, one whose clock
//! jumps. What such a host does is not the shipping core; what the others make of it is.

use super::{Mesh, Step};
use crate::queue::{MILLISECOND, Nanos, SECOND};
use crate::scenario::Kind;
use crate::topology::HostId;
use skein_filemesh::core::geometry::BLOCK_BYTES;
use skein_filemesh::core::link::REQUESTS_MAX;
use skein_filemesh::core::peer_wire::{BlockRange, Message};

/// How far a clock jumps ahead, in milliseconds: longer than any time that the core knows.
const JUMP_MS: u64 = 3_600_000;

/// Between two bursts of a flood.
const BURST_EVERY: Nanos = SECOND / 50;

/// What is wrong with a host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Misbehaviour {
    /// What it sends is false.
    pub lies: bool,
    /// It sends nothing to other hosts; connections stay.
    pub is_silent: bool,
    /// It asks everybody for everything, again and again, and takes no notice of what comes.
    pub floods: bool,
    /// How far its clock is ahead.
    pub ahead_ms: u64,
}

impl Mesh<'_> {
    /// A host begins or ends to misbehave.
    pub(super) fn misbehave(&mut self, kind: Kind, host: HostId, begins: bool) {
        let how = &mut self.hosts[host as usize].wrong;
        match kind {
            Kind::Corrupt => how.lies = begins,
            Kind::Silent => how.is_silent = begins,
            Kind::Flood => how.floods = begins,
            // Clocks do not go back: the operating system promises that.
            Kind::Jump => how.ahead_ms += if begins { JUMP_MS } else { 0 },
            Kind::Kill | Kind::Slow | Kind::Cut => {}
        }
        match (kind, begins) {
            (Kind::Flood, true) => self.burst(host),
            // Whatever came meanwhile is lost to it: a new process takes its place.
            (Kind::Flood, false) => {
                self.kill(host, true);
                self.start_again(host);
            }
            (Kind::Silent, false) => {
                let keys: Vec<u32> = self.hosts[host as usize].keys.iter().copied().collect();
                keys.into_iter().for_each(|key| self.pump(host, key));
                self.rest(host);
            }
            (Kind::Jump, _) => self.tick(host),
            _ => {}
        }
    }

    /// Time on the clock of a host.
    pub(super) fn host_ms(&self, host: HostId) -> u64 {
        self.now_ms() + self.hosts[host as usize].wrong.ahead_ms
    }

    /// As many requests as a link may carry, to everybody whom the host is connected with.
    pub(super) fn burst(&mut self, host: HostId) {
        let state = &self.hosts[host as usize];
        if !state.wrong.floods || state.swarm.is_none() {
            return;
        }
        let geometry = self.content.tree.geometry();
        let per_piece = geometry.piece_bytes() / BLOCK_BYTES;
        let whole = (geometry.size_bytes() / u64::from(BLOCK_BYTES)) as u32;
        let mut bytes = vec![];
        for block in (0..whole).take(REQUESTS_MAX) {
            let begin = block % per_piece * BLOCK_BYTES;
            let range = BlockRange { piece: block / per_piece, begin, len: BLOCK_BYTES };
            Message::Request(range).encode(&mut bytes);
        }
        for key in state.keys.iter().copied().collect::<Vec<_>>() {
            let Some(side) = self.links.side(key, host) else { continue };
            let end = self.links.end(key, side);
            // The handshakes come first.
            let is_ready = [0, 1].iter().all(|side| self.links.end(key, *side).is_greeted);
            if is_ready && end.is_open && self.world.network.has_room(end.flow) {
                let chunk = super::links::Chunk::of(bytes.clone());
                self.world.network.send(end.flow, chunk.wire_bytes(1), chunk);
            }
        }
        self.steps.push(self.world.now() + BURST_EVERY, Step::Burst(host));
    }

    /// When a host's deadline is, in virtual time.
    pub(super) fn deadline(&self, host: HostId) -> Option<Nanos> {
        let state = &self.hosts[host as usize];
        let deadline_ms = state.swarm.as_ref().and_then(|swarm| swarm.deadline_ms());
        deadline_ms.map(|at_ms| at_ms.saturating_sub(state.wrong.ahead_ms) * MILLISECOND)
    }
}
