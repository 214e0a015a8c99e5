//! What a lane holds on disk, without I/O: its segments, what is acknowledged of them, what to
//! give up when space is short.
//!
//! Only segments are remembered, not batches: a spool of 512 MiB full of tiny batches costs no
//! more memory than one of large ones. Invariants: segments are in order of (epoch, first); a
//! segment before the acknowledged position is removed unless it is the newest, which carries the
//! lane's history (epoch, sequence, marks) across restarts, or entries are on their way into it: a
//! disk that stands still may be behind a server that acknowledges all it was sent.

use std::collections::VecDeque;

/// A place in a lane's life: every record of older epochs, and of this one every record before
/// `next`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Position {
    /// The lane's history.
    pub epoch: u64,
    /// Exclusive end within it.
    pub next: u64,
}

impl Position {
    /// Shorthand.
    pub fn new(epoch: u64, next: u64) -> Position {
        Position { epoch, next }
    }
}

/// Names a segment of a lane; no record of it is before.
pub type SegmentId = Position;

/// One segment file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Epoch and lower bound of its records.
    pub id: SegmentId,
    /// Sequence after its last durable record.
    pub end: u64,
    /// Durable records; fewer than `end - first` where records were dropped.
    pub records: u64,
    /// Durable bytes of the file.
    pub bytes: u64,
    /// Entries on their way to the disk.
    pub writing: u32,
}

impl Segment {
    fn end(&self) -> Position {
        Position::new(self.id.epoch, self.end)
    }

    /// Records that no server has acknowledged.
    fn unacked(&self, acked: Position) -> u64 {
        if acked >= self.end() {
            0
        } else if acked <= self.id {
            self.records
        } else {
            self.records.min(self.end - acked.next)
        }
    }
}

/// What was given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dropped {
    /// The file to remove.
    pub segment: SegmentId,
    /// Records that no server had acknowledged.
    pub records: u64,
    /// Bytes that become free.
    pub bytes: u64,
}

/// The segments of one lane.
#[derive(Debug, Default)]
pub struct Index {
    segments: VecDeque<Segment>,
    acked: Position,
    bytes: u64,
}

impl Index {
    /// An index over recovered segments, in any order.
    pub fn recovered(mut segments: Vec<Segment>, acked: Position) -> Index {
        segments.sort_by_key(|segment| segment.id);
        let bytes = segments.iter().map(|segment| segment.bytes).sum();
        Index { segments: segments.into(), acked, bytes }
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What a server stored.
    pub fn acked(&self) -> Position {
        self.acked
    }

    /// The position after the newest durable record.
    pub fn end(&self) -> Position {
        let newest = self.segments.iter().rev().find(|segment| segment.records > 0);
        newest.map_or(self.acked, |segment| segment.end().max(self.acked))
    }

    /// Records and (about) bytes that no server has acknowledged.
    pub fn depth(&self) -> (u64, u64) {
        let mut depth = (0, 0);
        for segment in &self.segments {
            let records = segment.unacked(self.acked);
            depth.0 += records;
            if records > 0 {
                let share = u128::from(segment.bytes) * u128::from(records);
                depth.1 += (share / u128::from(segment.records.max(1))) as u64;
            }
        }
        depth
    }

    /// The range that is left of `epoch`: oldest record held, end.
    pub fn range_of(&self, epoch: u64) -> Option<(u64, u64)> {
        let mut of_epoch = self.segments.iter().filter(|segment| segment.id.epoch == epoch);
        let first = of_epoch.next()?;
        let end = of_epoch.next_back().unwrap_or(first).end;
        let acked = if self.acked.epoch == epoch { self.acked.next } else { 0 };
        Some((first.id.next.max(acked).min(end.max(acked)), end.max(acked)))
    }

    /// The oldest segment.
    pub fn oldest(&self) -> Option<SegmentId> {
        self.segments.front().map(|segment| segment.id)
    }

    /// Whether `id` is known.
    pub fn contains(&self, id: SegmentId) -> bool {
        self.segments.iter().rev().any(|segment| segment.id == id)
    }

    /// Adds an empty newest segment.
    pub fn open(&mut self, id: SegmentId) {
        debug_assert!(self.segments.back().is_none_or(|newest| newest.id < id));
        self.segments.push_back(Segment { id, end: id.next, records: 0, bytes: 0, writing: 0 });
    }

    /// Notes that an entry is on its way into a segment; [`Index::appended`] follows.
    pub fn writing(&mut self, id: SegmentId) {
        if let Some(segment) = self.segments.iter_mut().rev().find(|segment| segment.id == id) {
            segment.writing += 1;
        }
    }

    /// Notes that a batch is durable; false if its segment was given up meanwhile.
    pub fn appended(&mut self, id: SegmentId, end: u64, records: u64, bytes: u64) -> bool {
        let found = self.segments.iter_mut().rev().find(|segment| segment.id == id);
        let Some(segment) = found else { return false };
        segment.writing = segment.writing.saturating_sub(1);
        segment.end = segment.end.max(end);
        segment.records += records;
        self.bytes = self.bytes + bytes - segment.bytes.min(bytes);
        segment.bytes = segment.bytes.max(bytes);
        true
    }

    /// A server stored everything before `position`; answers with the files to remove.
    pub fn ack(&mut self, position: Position) -> Vec<SegmentId> {
        self.acked = self.acked.max(position);
        let mut removed = Vec::new();
        let over = |segment: &Segment| segment.end() <= self.acked && segment.writing == 0;
        let over = self.segments.iter().take_while(|segment| over(segment)).count();
        for _ in 0..over.min(self.segments.len().saturating_sub(1)) {
            removed.extend(self.pop());
        }
        removed
    }

    /// Gives up the oldest segment.
    pub fn drop_oldest(&mut self) -> Option<Dropped> {
        let oldest = self.segments.front()?;
        let records = oldest.unacked(self.acked);
        let bytes = oldest.bytes;
        let end = oldest.end();
        let segment = self.pop()?;
        if records > 0 && self.acked < end {
            // What is gone can be neither sent nor acknowledged any more.
            self.acked = end;
        }
        Some(Dropped { segment, records, bytes })
    }

    fn pop(&mut self) -> Option<SegmentId> {
        let segment = self.segments.pop_front()?;
        self.bytes -= segment.bytes;
        Some(segment.id)
    }

    /// The segment that holds the first record at or after `position`.
    pub fn find(&self, position: Position) -> Option<Segment> {
        let at = self.segments.partition_point(|segment| segment.end() <= position);
        self.segments.range(at..).find(|segment| segment.records > 0).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn p(next: u64) -> Position {
        Position::new(1, next)
    }

    fn three() -> Index {
        let mut index = Index::default();
        for (first, end) in [(0, 100), (100, 150), (150, 180)] {
            index.open(p(first));
            assert!(index.appended(p(first), end, end - first, (end - first) * 10));
        }
        index
    }

    #[test]
    fn acknowledged_segments_go_but_the_newest_stays() {
        let mut index = three();
        assert_eq!((index.depth(), index.bytes()), ((180, 1800), 1800));
        assert_eq!(index.ack(p(99)), []);
        assert_eq!(index.depth(), (81, 810));
        assert_eq!(index.ack(p(100)), [p(0)]);
        assert_eq!(index.ack(p(180)), [p(100)]);
        assert_eq!((index.depth(), index.bytes()), ((0, 0), 300));
        assert_eq!(index.ack(p(50)), [], "acknowledgements never go back");
        assert_eq!(index.acked(), p(180));
        assert_eq!(index.end(), p(180));
    }

    /// The disk is behind: a server acknowledged all that is durable of a segment, and more is on
    /// its way into it, though a newer segment is open already.
    #[test]
    fn a_segment_that_is_being_written_stays() {
        let mut index = Index::default();
        index.open(p(0));
        index.writing(p(0));
        index.writing(p(0));
        index.open(p(100));
        index.writing(p(100));
        assert!(index.appended(p(0), 50, 50, 500));
        assert!(index.ack(p(50)).is_empty());
        assert!(index.appended(p(0), 100, 50, 1_000));
        assert_eq!(index.depth().0, 50);
        assert_eq!(index.ack(p(100)), [p(0)]);
    }

    #[test]
    fn dropping_counts_only_what_no_server_has() {
        let mut index = three();
        index.ack(p(30));
        assert_eq!(index.drop_oldest(), Some(Dropped { segment: p(0), records: 70, bytes: 1000 }));
        assert_eq!(index.range_of(1), Some((100, 180)));
        assert!(!index.appended(p(0), 101, 1, 1010), "an append to a dropped segment is noticed");
    }

    #[test]
    fn reading_goes_on_after_gaps_and_epochs() {
        let mut index = three();
        index.open(Position::new(2, 0));
        assert_eq!(index.find(p(180)), None, "an empty segment holds nothing");
        index.appended(Position::new(2, 0), 5, 5, 100);
        assert_eq!(index.find(p(120)).unwrap().id, p(100));
        assert_eq!(index.find(p(180)).unwrap().id, Position::new(2, 0));
        assert_eq!(index.find(Position::new(2, 5)), None);
        assert_eq!((index.range_of(1), index.range_of(2)), (Some((0, 180)), Some((0, 5))));
        assert_eq!(index.ack(Position::new(2, 5)).len(), 3);
        assert_eq!(index.range_of(1), None);
    }

    proptest! {
        /// Whatever the order of events: bytes are the sum of segments, nothing acknowledged is
        /// counted as dropped, and every record ends as held, acknowledged or dropped.
        #[test]
        fn every_record_is_accounted_for(events in prop::collection::vec((0u8..4, 1u64..50), 1..200)) {
            let mut index = Index::default();
            let (mut next, mut dropped, mut acked) = (0u64, 0u64, 0u64);
            index.open(p(0));
            for (kind, amount) in events {
                match kind {
                    0 => {
                        if index.segments.is_empty() { index.open(p(next)); }
                        let newest = *index.segments.back().unwrap();
                        prop_assert!(index.appended(newest.id, next + amount, amount, newest.bytes + amount));
                        next += amount;
                    }
                    1 if index.segments.back().is_none_or(|newest| newest.id < p(next)) => index.open(p(next)),
                    2 => {
                        let before = index.depth().0;
                        index.ack(p((index.acked().next + amount).min(next)));
                        acked += before - index.depth().0;
                    }
                    _ => dropped += index.drop_oldest().map_or(0, |dropped| dropped.records),
                }
                prop_assert_eq!(index.bytes(), index.segments.iter().map(|segment| segment.bytes).sum::<u64>());
                prop_assert_eq!(index.depth().0 + acked + dropped, next);
            }
        }
    }
}
