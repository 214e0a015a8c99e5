//! What is still to fetch of one file, from whom it was asked, and whether what came is true.
//!
//! One download serves any number of peers: each asks [`Download::next_want`] for its next request
//! and hands in what arrives. A block is in exactly one state: missing, requested, claimed (a state
//! file of an earlier run says that it is on disk, which is checked by hash before it counts), or
//! verified. Verified bytes become done when the caller confirms that they were written.
//!
//! Pieces are taken in order here. A coordinator's plan or rarest-first is another way to choose
//! the block in `next_want`; everything else stays.

use super::bitfield::Bitfield;
use super::geometry::{BLOCK_BYTES, Geometry};
use super::hashes::{FalseHashes, HashStore, Learned};
use super::link::Have;
use super::merkle::Hash;
use super::peer_wire::{BlockRange, HashRange, REQUEST_BYTES_MAX};
use super::piece_map::PieceMap;
use std::ops::Range;
use std::sync::Arc;

/// The caller's name for one of a download's peers.
pub type PeerKey = u32;

/// Hash requests that wait for an answer, over all peers.
pub const HASH_REQUESTS_MAX: usize = 64;

/// What to ask a peer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// These hashes. They must be sent before a later want for blocks, on the same link.
    Hashes(HashRange),
    /// These blocks of one piece.
    Blocks(BlockRange),
}

/// What became of a block that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is true and new: write it at this offset.
    Write(u64),
    /// It is here already.
    Duplicate,
    /// Its leaf is not known, though answers keep their order: the peer broke it. The block counts
    /// as missing again.
    Unprovable,
    /// It is false.
    Lie,
}

/// Counters of a download.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Size of the file.
    pub size_bytes: u64,
    /// Bytes proved, on disk or on their way to it.
    pub verified_bytes: u64,
    /// Bytes proved and confirmed written.
    pub written_bytes: u64,
    /// Of `written_bytes`, those found on disk from an earlier run.
    pub resumed_bytes: u64,
    /// Blocks that were false.
    pub refused_blocks: u64,
    /// Blocks that came twice or could not be proved.
    pub wasted_blocks: u64,
}

/// State of fetching one file.
#[derive(Debug)]
pub struct Download {
    geometry: Geometry,
    hashes: HashStore,
    verified: PieceMap,
    /// Blocks that need no request: verified, requested or claimed.
    assigned: Bitfield,
    claimed: Bitfield,
    /// No block before this one is claimed: claims only go away.
    claims_from: u32,
    checking: Option<Range<u32>>,
    /// No block before this one is unassigned.
    cursor: u32,
    pending: Vec<(PeerKey, HashRange)>,
    progress: Progress,
}

impl Download {
    /// A download of the file with `root`. `claimed` are blocks that may be on disk already.
    pub fn new(geometry: Geometry, root: Hash, claimed: Option<Bitfield>) -> Self {
        let blocks = geometry.block_count();
        let claimed = claimed.filter(|claimed| claimed.len() == blocks);
        let claimed = claimed.unwrap_or_else(|| Bitfield::new(blocks));
        Self {
            geometry,
            hashes: HashStore::new(geometry, root),
            verified: PieceMap::new(geometry),
            assigned: claimed.clone(),
            claimed,
            claims_from: 0,
            checking: None,
            cursor: 0,
            pending: Vec::new(),
            progress: Progress { size_bytes: geometry.size_bytes(), ..Progress::default() },
        }
    }

    /// The file's division.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The file's root.
    pub fn root(&self) -> &Hash {
        self.hashes.root()
    }

    /// What is proved.
    pub fn verified(&self) -> &PieceMap {
        &self.verified
    }

    /// The hashes that are known.
    pub fn hashes(&self) -> &HashStore {
        &self.hashes
    }

    /// Counters.
    pub fn progress(&self) -> Progress {
        Progress { verified_bytes: self.verified.bytes(), ..self.progress }
    }

    /// Whether everything is proved and written.
    pub fn is_done(&self) -> bool {
        self.verified.is_complete() && self.unwritten_bytes() == 0
    }

    /// Bytes that were handed out to be written and are not confirmed.
    pub fn unwritten_bytes(&self) -> u64 {
        self.verified.bytes() - self.progress.written_bytes
    }

    /// Confirms that `len` bytes of earlier [`Verdict::Write`]s are written.
    pub fn written(&mut self, len: u64) {
        let bounded = len.min(self.unwritten_bytes());
        debug_assert_eq!(len, bounded, "more was confirmed than was handed out");
        self.progress.written_bytes += bounded;
    }

    /// The next thing to ask `peer` for, of at most `bytes_max` bytes; it counts as asked for.
    pub fn next_want(&mut self, peer: PeerKey, have: &Have, bytes_max: u32) -> Option<Want> {
        if let Some(range) = self.hashes_for_claims(peer, have) {
            return Some(Want::Hashes(range));
        }
        self.cursor = self.assigned.next_zero(self.cursor).unwrap_or(self.assigned.len());
        let mut from = self.cursor;
        loop {
            let block = self.assigned.next_zero(from)?;
            let piece = self.geometry.piece_of(block);
            from = self.geometry.blocks_of(piece).end;
            if !have.has(piece) {
                continue;
            }
            match self.leaves_from(piece, peer, have) {
                Source::Here => return Some(Want::Blocks(self.assign(block, bytes_max))),
                Source::Ask(range) => return Some(Want::Hashes(range)),
                Source::Elsewhere => {}
            }
        }
    }

    /// The first block of `piece` that is neither here nor asked for.
    pub(super) fn unassigned_in(&self, piece: u32) -> Option<u32> {
        let blocks = self.geometry.blocks_of(piece);
        self.assigned.next_zero(blocks.start).filter(|block| *block < blocks.end)
    }

    /// Whether every block is here or asked for.
    pub(super) fn is_all_assigned(&mut self) -> bool {
        self.cursor = self.assigned.next_zero(self.cursor).unwrap_or(self.assigned.len());
        self.cursor == self.assigned.len()
    }

    /// The pieces of the next claims, `count` of them at most.
    pub(super) fn claimed_pieces(&mut self, count: usize) -> Vec<u32> {
        let mut next = self.first_claim();
        let pieces = std::iter::from_fn(|| {
            let piece = self.geometry.piece_of(next?);
            next = self.claimed.next_one(self.geometry.blocks_of(piece).end);
            Some(piece)
        });
        pieces.take(count).collect()
    }

    /// Proves and keeps hashes for a caller that knows itself what it asked for.
    pub(super) fn learn_asked(
        &mut self,
        range: &HashRange,
        bytes: &[u8],
    ) -> Result<Learned, FalseHashes> {
        let verified = &self.verified;
        self.hashes.learn(range, bytes, |piece| !verified.has_piece(piece))
    }

    /// Marks a run of unassigned blocks from `block` on as requested.
    pub(super) fn assign(&mut self, block: u32, bytes_max: u32) -> BlockRange {
        let piece = self.geometry.piece_of(block);
        let blocks_max = (bytes_max.min(REQUEST_BYTES_MAX) / BLOCK_BYTES).max(1);
        let last = self.geometry.blocks_of(piece).end.min(block + blocks_max);
        let end = (block..last).find(|at| self.assigned.get(*at)).unwrap_or(last);
        self.assigned.set_range(block..end);
        let bytes = self.geometry.bytes_of(block..end);
        let begin = (bytes.start - self.geometry.piece_offset(piece)) as u32;
        BlockRange { piece, begin, len: (bytes.end - bytes.start) as u32 }
    }

    /// Where the leaves of `piece` come from if its blocks are requested from `peer` now.
    fn leaves_from(&mut self, piece: u32, peer: PeerKey, have: &Have) -> Source {
        let layer = self.hashes.missing_layer(piece);
        let leaves = self.hashes.missing_leaves(piece, have.is_complete());
        for range in [layer, leaves].into_iter().flatten() {
            match self.pending.iter().find(|(_, pending)| *pending == range) {
                // Answers of one link keep their order: the hashes come before the blocks.
                Some((owner, _)) if *owner == peer => {}
                Some(_) => return Source::Elsewhere,
                None if self.pending.len() >= HASH_REQUESTS_MAX || !self.hashes.has_room() => {
                    return Source::Elsewhere;
                }
                None => {
                    self.pending.push((peer, range));
                    return Source::Ask(range);
                }
            }
        }
        Source::Here
    }

    /// Hashes without which the next claim cannot be checked.
    fn hashes_for_claims(&mut self, peer: PeerKey, have: &Have) -> Option<HashRange> {
        let claim = self.first_claim()?;
        let piece = self.geometry.piece_of(claim);
        if !have.has(piece) {
            return None;
        }
        match self.leaves_from(piece, peer, have) {
            Source::Ask(range) => Some(range),
            _ => None,
        }
    }

    /// A block that `peer` sent.
    pub fn block(&mut self, block: u32, data: &[u8]) -> Verdict {
        if self.verified.has_block(block) {
            self.progress.wasted_blocks += 1;
            return Verdict::Duplicate;
        }
        match self.hashes.proves(block, data) {
            Some(true) => {
                self.add(block);
                Verdict::Write(self.geometry.block_offset(block))
            }
            Some(false) => {
                self.progress.refused_blocks += 1;
                self.unassign(block..block + 1);
                Verdict::Lie
            }
            None => {
                self.progress.wasted_blocks += 1;
                self.unassign(block..block + 1);
                Verdict::Unprovable
            }
        }
    }

    fn add(&mut self, block: u32) {
        self.assigned.set(block);
        self.claimed.clear(block);
        if let Some(piece) = self.verified.add(block) {
            self.hashes.drop_leaves(piece);
        }
    }

    /// Hashes that `peer` sent. `None`: nobody asked this peer for them.
    pub fn learn(
        &mut self,
        peer: PeerKey,
        range: &HashRange,
        bytes: &[u8],
    ) -> Option<Result<Learned, FalseHashes>> {
        self.settle(peer, range)?;
        let verified = &self.verified;
        Some(self.hashes.learn(range, bytes, |piece| !verified.has_piece(piece)))
    }

    /// `peer` will not send these hashes. `None`: nobody asked it for them.
    pub fn hashes_rejected(&mut self, peer: PeerKey, range: &HashRange) -> Option<()> {
        self.settle(peer, range)
    }

    fn settle(&mut self, peer: PeerKey, range: &HashRange) -> Option<()> {
        let at = self.pending.iter().position(|pending| *pending == (peer, *range))?;
        self.pending.swap_remove(at);
        Some(())
    }

    /// Whether `peer` owes hashes.
    pub fn owes_hashes(&self, peer: PeerKey) -> bool {
        self.pending.iter().any(|(owner, _)| *owner == peer)
    }

    /// The leaves of `piece`, for a caller that keeps them in a sidecar.
    pub fn leaves(&self, piece: u32) -> Option<Arc<[Hash]>> {
        self.hashes.leaves(piece)
    }

    /// Takes back `range`, which a peer was asked for and will not send.
    pub fn release(&mut self, range: BlockRange) {
        let offset = self.geometry.piece_offset(range.piece) + u64::from(range.begin);
        let end = offset + u64::from(range.len);
        let block = |at: u64| at.div_ceil(u64::from(BLOCK_BYTES)) as u32;
        self.unassign(block(offset)..block(end).min(self.geometry.block_count()));
    }

    /// Forgets what `peer` owes: the `unanswered` ranges and all hashes.
    pub fn release_peer(&mut self, peer: PeerKey, unanswered: impl Iterator<Item = BlockRange>) {
        unanswered.for_each(|range| self.release(range));
        self.pending.retain(|(owner, _)| *owner != peer);
    }

    fn unassign(&mut self, blocks: Range<u32>) {
        self.cursor = self.cursor.min(blocks.start);
        for block in blocks.filter(|block| !self.verified.has_block(*block)) {
            self.assigned.clear(block);
        }
    }

    /// The next range of the file that is claimed and can be checked now: read it and hand it to
    /// [`Download::checked`]. One is out at a time, of at most 256 KiB.
    pub fn next_check(&mut self) -> Option<Range<u64>> {
        if self.checking.is_some() {
            return None;
        }
        let first = self.first_claim()?;
        let piece = self.geometry.piece_of(first);
        self.hashes.proves(first, &[])?; // its leaf is not known yet
        let last =
            (first + REQUEST_BYTES_MAX / BLOCK_BYTES).min(self.geometry.blocks_of(piece).end);
        let end = (first..last).find(|block| !self.claimed.get(*block)).unwrap_or(last);
        self.checking = Some(first..end);
        Some(self.geometry.bytes_of(first..end))
    }

    /// What the disk holds in the range of the last [`Download::next_check`]; `None` if it could
    /// not be read. True blocks count as written, the others will be fetched. The answer is the
    /// range of blocks that was checked.
    pub fn checked(&mut self, data: Option<&[u8]>) -> Range<u32> {
        let Some(blocks) = self.checking.take() else { return 0..0 };
        self.claimed.clear_range(blocks.clone());
        let mut rest = data.unwrap_or_default();
        for block in blocks.clone() {
            let len = (self.geometry.block_len(block) as usize).min(rest.len());
            let (bytes, after) = rest.split_at(len);
            rest = after;
            let fresh = !self.verified.has_block(block);
            if fresh && self.hashes.proves(block, bytes) == Some(true) {
                self.add(block);
                self.progress.written_bytes += len as u64;
                self.progress.resumed_bytes += len as u64;
            } else {
                self.unassign(block..block + 1);
            }
        }
        blocks
    }

    /// Whether claims of an earlier run are still to be checked.
    pub fn has_claims(&self) -> bool {
        self.checking.is_some() || self.claimed.next_one(self.claims_from).is_some()
    }

    fn first_claim(&mut self) -> Option<u32> {
        self.claims_from = self.claimed.next_one(self.claims_from).unwrap_or(self.claimed.len());
        (self.claims_from < self.claimed.len()).then_some(self.claims_from)
    }
}

enum Source {
    /// Known, or on its way from the same peer.
    Here,
    /// To be asked for now.
    Ask(HashRange),
    /// Not now, or somebody else was asked.
    Elsewhere,
}
