//! One host's process: its swarm while it runs, and what its disk keeps when it does not.

use super::content::Content;
use super::misbehaviour::Misbehaviour;
use crate::topology::HostId;
use skein_filemesh::core::bitfield::Bitfield;
use skein_filemesh::core::download::Download;
use skein_filemesh::core::peer_wire::{Handshake, info_hash, peer_id};
use skein_filemesh::core::swarm::{Config, Start, Swarm};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Connections that one host keeps at most; those of a plan and of repair are far fewer.
const LINKS_MAX: usize = 256;

/// A host.
#[derive(Default)]
pub struct Host {
    /// The transfer on it, while its process runs.
    pub swarm: Option<Swarm>,
    /// How often the process was started; what was meant for an earlier one is dropped.
    pub life: u32,
    /// Its connections.
    pub keys: BTreeSet<u32>,
    /// What is wrong with it.
    pub wrong: Misbehaviour,
    /// Parents that were late and are not reported.
    pub late: Vec<HostId>,
    /// Blocks on its disk when it was killed.
    held: Option<Bitfield>,
}

impl Host {
    /// Starts the process with what the disk has.
    pub fn start(
        &mut self,
        content: &Content,
        host: HostId,
        is_source: bool,
        seed: u64,
        now_ms: u64,
    ) {
        let tree = &content.tree;
        let info = info_hash(&[7; 16], &tree.root());
        let handshake = Handshake::new(info, peer_id(&host.to_string()));
        let start = if is_source {
            Start::Complete(Arc::clone(tree))
        } else {
            let held = self.held.take();
            Start::Download(Box::new(Download::new(tree.geometry(), tree.root(), held)))
        };
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(host));
        let config = Config { links_max: LINKS_MAX, ..Config::new(handshake, seed) };
        self.swarm = Some(Swarm::new(start, host, config, now_ms));
        self.life += 1;
    }

    /// Kills the process; the connections that this ends.
    pub fn stop(&mut self) -> BTreeSet<u32> {
        let swarm = self.swarm.take();
        self.held = swarm.as_ref().and_then(Swarm::download).map(|download| {
            let blocks = download.geometry().block_count();
            let mut held = Bitfield::new(blocks);
            for block in (0..blocks).filter(|block| download.verified().has_block(*block)) {
                held.set(block);
            }
            held
        });
        self.life += 1;
        self.late.clear();
        std::mem::take(&mut self.keys)
    }
}
