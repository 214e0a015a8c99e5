//! A set of positions: one bit each, walked in order. A plan of the whole puts every member into
//! several of these many times over, which in a tree costs more than all the rest.

use super::super::bitfield::Bitfield;
use std::ops::Range;

/// Positions below a fixed number.
#[derive(Clone, Debug)]
pub(super) struct Positions {
    bits: Bitfield,
    count: usize,
}

impl Positions {
    /// None of the positions below `end`.
    pub fn new(end: u32) -> Self {
        Self { bits: Bitfield::new(end), count: 0 }
    }

    pub fn insert(&mut self, at: u32) {
        self.count += usize::from(self.bits.set(at));
    }

    pub fn remove(&mut self, at: u32) {
        self.count -= usize::from(self.bits.clear(at));
    }

    pub fn contains(&self, at: u32) -> bool {
        self.bits.get(at)
    }

    /// Those of `range`, in order.
    pub fn range(&self, range: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let mut from = range.start;
        std::iter::from_fn(move || {
            let next = self.bits.next_one(from).filter(|next| *next < range.end)?;
            from = next + 1;
            Some(next)
        })
    }

    /// The first at or after `from`, or else the first of all.
    pub fn next_round(&self, from: u32) -> Option<u32> {
        self.bits.next_one(from).or_else(|| self.bits.next_one(0))
    }

    /// The last before `end`, or else the last of all.
    pub fn last_round(&self, end: u32) -> Option<u32> {
        self.bits.last_one(end).or_else(|| self.bits.last_one(self.bits.len()))
    }

    /// Empties the set.
    pub fn take(&mut self) -> Vec<u32> {
        if self.count == 0 {
            return vec![];
        }
        let end = self.bits.len();
        let taken = std::mem::replace(self, Self::new(end));
        taken.range(0..end).collect()
    }
}

impl Extend<u32> for Positions {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, all: I) {
        all.into_iter().for_each(|at| self.insert(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_is_a_sorted_set() {
        let (mut random, end) = (super::super::layout::Random(1), 200);
        let (mut ours, mut model) = (Positions::new(end), BTreeSet::new());
        for step in 0..2_000 {
            let at = random.below(end);
            if random.below(3) == 0 {
                ours.remove(at);
                model.remove(&at);
            } else {
                ours.extend([at]);
                model.insert(at);
            }
            let (from, to) = (random.below(end), random.below(end + 1));
            let found: Vec<u32> = ours.range(from..to).collect();
            let is_in = |at: &&u32| (from..to).contains(*at);
            let expected: Vec<u32> = model.iter().filter(is_in).copied().collect();
            assert_eq!((found, ours.contains(at)), (expected, model.contains(&at)));
            let next = model.range(from..).next().or(model.first()).copied();
            let last = model.range(..to).next_back().or(model.last()).copied();
            assert_eq!((ours.next_round(from), ours.last_round(to)), (next, last));
            if step % 500 == 0 {
                assert!(ours.take().into_iter().eq(std::mem::take(&mut model)));
                assert_eq!((ours.take(), ours.next_round(0)), (vec![], None));
            }
        }
    }
}
