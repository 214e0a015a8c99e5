//! What has just arrived, kept in memory for peers that ask for it next.
//!
//! In a swarm a block is asked for moments after it was proved. It is then still in the slab where
//! it landed, and is sent from there: no read, no page cache, no matter whether it is on the disk
//! yet. What was pushed out by newer blocks is read back from the file.

use super::memory::View;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are kept of one transfer unless something else is set.
pub const RECENT_BYTES: usize = 16 * 1024 * 1024;

/// The newest blocks of one file, in a bounded ring.
///
/// The bound is on bytes of blocks. A block keeps the slab it is in, so that beside these a part of
/// one slab per link stays in use.
#[derive(Debug, Default)]
pub struct RecentBlocks {
    bytes_max: usize,
    bytes: usize,
    /// Where views start in the file, oldest first.
    order: VecDeque<u64>,
    views: BTreeMap<u64, View>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl RecentBlocks {
    /// A ring of at most `bytes_max`; 0 keeps nothing.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// Keeps proved bytes that belong at `offset`, until newer ones need the room.
    pub fn keep(&mut self, offset: u64, view: View) {
        if view.is_empty() || view.len() > self.bytes_max || self.views.contains_key(&offset) {
            return;
        }
        self.bytes += view.len();
        self.order.push_back(offset);
        self.views.insert(offset, view);
        self.shrink(self.bytes_max);
    }

    /// Appends the `len` bytes at `offset` to `out` if all of them are here, and says whether.
    pub fn append_at(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let all = self.each_at(offset, len, |view, part| out.extend_from_slice(&view[part]));
        if !all {
            out.truncate(before);
        }
        all
    }

    /// The same without a copy: appends views of the bytes, in their order.
    pub fn views_at(&self, offset: u64, len: usize, out: &mut Vec<View>) -> bool {
        let before = out.len();
        let all = self.each_at(offset, len, |view, part| out.push(view.slice(part)));
        if !all {
            out.truncate(before);
        }
        all
    }

    /// Shows the views that the `len` bytes at `offset` are in, and which part of each they are; false
    /// where some are not here.
    fn each_at(&self, offset: u64, len: usize, mut show: impl FnMut(&View, Range<usize>)) -> bool {
        let end = offset + len as u64;
        let mut at = offset;
        while at < end {
            let last = self.views.range(..=at).next_back();
            let Some((start, view)) = last.filter(|(start, view)| at - **start < view.len() as u64)
            else {
                self.misses.fetch_add(1, Ordering::Relaxed);
                return false;
            };
            let from = (at - start) as usize;
            let to = view.len().min((end - start) as usize);
            show(view, from..to);
            at += (to - from) as u64;
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Lets go of the oldest until at most `bytes` are held.
    pub fn shrink(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let Some(oldest) = self.order.pop_front() else { return };
            self.bytes -= self.views.remove(&oldest).map_or(0, |view| view.len());
        }
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many reads were answered from memory, and how many were not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::memory::BlockMemory;

    #[test]
    fn the_newest_are_served_and_the_oldest_go() {
        let memory = BlockMemory::new(1 << 20);
        let mut room = memory.take().unwrap();
        let mut block = |fill: u8| {
            room[..100].fill(fill);
            room.cut(100)
        };
        let mut recent = RecentBlocks::new(300);
        let mut out = vec![9];
        for (at, fill) in [(0, 1), (100, 2), (400, 3)] {
            recent.keep(at, block(fill));
        }
        assert!(recent.append_at(50, 100, &mut out));
        assert_eq!(out[0..3], [9, 1, 1]);
        assert_eq!(out[50..52], [1, 2]);
        assert_eq!(out.len(), 101);
        assert!(!recent.append_at(150, 100, &mut out), "the bytes between are not here");
        assert!(recent.append_at(499, 1, &mut out) && !recent.append_at(499, 2, &mut out));
        assert_eq!(out.len(), 102, "a miss appends nothing");
        recent.keep(100, block(7));
        recent.keep(200, block(4));
        assert_eq!(recent.bytes(), 300);
        assert!(!recent.append_at(0, 1, &mut out), "the oldest was pushed out");
        assert!(recent.append_at(100, 1, &mut out) && out[102] == 2, "the first of two stays");
        assert_eq!(recent.hits_and_misses(), (3, 3));
        let mut views = vec![];
        assert!(recent.views_at(150, 100, &mut views));
        assert_eq!(
            views.iter().map(|view| (view[0], view.len())).collect::<Vec<_>>(),
            [(2, 50), (4, 50)]
        );
        assert!(!recent.views_at(250, 100, &mut views) && views.len() == 2);
        recent.shrink(150);
        assert_eq!(recent.bytes(), 100);
        assert!(recent.append_at(200, 100, &mut out), "the newest are left");
        recent.shrink(0);
        assert_eq!((recent.bytes(), recent.append_at(200, 100, &mut out)), (0, false));
        drop(views);
        drop((recent, room));
        assert_eq!(memory.counters().in_use, 0);
    }

    #[test]
    fn a_ring_of_nothing_keeps_nothing() {
        let memory = BlockMemory::new(1);
        let mut recent = RecentBlocks::default();
        recent.keep(0, memory.take().unwrap().cut(1));
        assert!(!recent.append_at(0, 1, &mut vec![]));
        assert_eq!(memory.counters().in_use, 0);
    }
}
