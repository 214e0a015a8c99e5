//! Connections between hosts: two flows, what waits at each end, and chunks of real bytes.

use super::content::Content;
use crate::network::{FlowId, Network, Path};
use crate::queue::{Nanos, SECOND};
use crate::topology::HostId;
use skein_filemesh::core::geometry::BLOCK_BYTES;
use skein_filemesh::core::peer_wire::{Handshake, WireError};
use skein_filemesh::core::swarm::{Pull, Swarm};
use std::borrow::Cow;

/// How long a host waits for a connection that nobody answers.
pub const DIAL_TIMEOUT: Nanos = 3 * SECOND;

/// What a chunk may hold: a block and what goes before it.
const CHUNK_BYTES: usize = BLOCK_BYTES as usize + 256;

/// What TLS 1.3 adds to a record of 16 KiB.
const TLS_BYTES: u64 = 22;

/// What one connection carries at once: protocol bytes, and file data behind them.
#[derive(Debug)]
pub struct Chunk {
    protocol: Vec<u8>,
    offset: u64,
    len: u32,
    is_false: bool,
}

impl Chunk {
    /// What `swarm` has for this peer; `None` if it has nothing.
    pub fn pull(
        swarm: &mut Swarm,
        key: u32,
        content: &Content,
        is_false: bool,
        now_ms: u64,
    ) -> Option<Self> {
        let mut chunk = Self { protocol: vec![], offset: 0, len: 0, is_false };
        match swarm.next(key, CHUNK_BYTES, &mut chunk.protocol, now_ms) {
            Some(Pull::Data { offset, len }) => (chunk.offset, chunk.len) = (offset, len),
            Some(Pull::Leaves { first, count }) => {
                let leaves = content.leaves(first, count);
                swarm.leaves(key, leaves, &mut chunk.protocol, now_ms);
            }
            None => {}
        }
        (chunk.len > 0 || !chunk.protocol.is_empty()).then_some(chunk)
    }

    /// Protocol bytes that no swarm wrote.
    pub fn of(protocol: Vec<u8>) -> Self {
        Self { protocol, offset: 0, len: 0, is_false: false }
    }

    /// What it costs on the wire, where each byte of file data stands for `scale`.
    pub fn wire_bytes(&self, scale: u32) -> u64 {
        let data = u64::from(self.len) * u64::from(scale);
        let records = 1 + data / u64::from(BLOCK_BYTES);
        self.protocol.len() as u64 + data + records * TLS_BYTES
    }

    /// Its bytes: protocol first, then file data, which is not copied unless it is false.
    pub fn parts<'a>(&'a self, content: &'a Content) -> (&'a [u8], Cow<'a, [u8]>) {
        let data = content.range(self.offset, u64::from(self.len));
        if !self.is_false || data.is_empty() {
            return (&self.protocol, Cow::Borrowed(data));
        }
        let mut data = data.to_vec();
        data[0] ^= 1;
        (&self.protocol, Cow::Owned(data))
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    /// Whose.
    pub host: HostId,
    /// What it sends.
    pub flow: FlowId,
    /// What it received and did not use up.
    pub inbox: Vec<u8>,
    /// Whether it is there.
    pub is_open: bool,
    /// Whether its swarm knows the connection.
    pub is_greeted: bool,
}

/// All connections there ever were, by key.
#[derive(Default)]
pub struct Links {
    ends: Vec<[End; 2]>,
    latencies: Vec<Nanos>,
    /// By flow: key and side of its sender.
    owners: Vec<(u32, usize)>,
}

impl Links {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.ends.len() as u64
    }

    /// The key and the sending side of a flow.
    pub fn of(&self, flow: FlowId) -> (u32, usize) {
        self.owners[flow as usize]
    }

    /// One end.
    pub fn end(&self, key: u32, side: usize) -> &End {
        &self.ends[key as usize][side]
    }

    /// One end.
    pub fn end_mut(&mut self, key: u32, side: usize) -> &mut End {
        &mut self.ends[key as usize][side]
    }

    /// Which side of a connection `host` is.
    pub fn side(&self, key: u32, host: HostId) -> Option<usize> {
        self.ends.get(key as usize)?.iter().position(|end| end.host == host)
    }

    /// One way.
    pub fn latency(&self, key: u32) -> Nanos {
        self.latencies[key as usize]
    }

    /// A connection that the first of `hosts` opened over these paths, there and back.
    pub fn open<T>(
        &mut self,
        network: &mut Network<T>,
        hosts: [HostId; 2],
        ways: &[Path; 2],
    ) -> u32 {
        let key = self.ends.len() as u32;
        let end = |side: usize, network: &mut Network<T>| End {
            host: hosts[side],
            flow: network.open(&ways[side]),
            inbox: vec![],
            is_open: true,
            is_greeted: side == 0,
        };
        let ends = [end(0, network), end(1, network)];
        for (side, end) in ends.iter().enumerate() {
            debug_assert_eq!(end.flow as usize, self.owners.len());
            self.owners.push((key, side));
        }
        self.ends.push(ends);
        self.latencies.push(ways[0].latency);
        key
    }

    /// Reads the handshake that opens what the accepting side receives; the swarm gets to know the
    /// connection with it. `Ok(None)`: not all of it is here.
    pub fn greet(
        &mut self,
        key: u32,
        side: usize,
        inbox: &[u8],
    ) -> Result<Option<Handshake>, WireError> {
        let handshake = Handshake::decode(inbox)?;
        self.end_mut(key, side).is_greeted = handshake.is_some();
        Ok(handshake)
    }

    /// Closes one end: what it sent and has not arrived is lost. False: it was closed before.
    pub fn shut<T>(&mut self, network: &mut Network<T>, key: u32, side: usize) -> bool {
        let end = self.end_mut(key, side);
        if !std::mem::replace(&mut end.is_open, false) {
            return false;
        }
        end.inbox = vec![];
        network.close(end.flow);
        true
    }
}
