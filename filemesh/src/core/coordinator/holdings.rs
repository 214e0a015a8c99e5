//! What each member holds and how many living members hold each piece: one bit per host and piece
//! while a member is incomplete, none before it has anything and after it has everything.

use crate::core::bitfield::Bitfield;
use crate::core::geometry::Geometry;
use std::ops::Range;

/// What a member holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// No piece.
    Nothing,
    /// Some pieces.
    Pieces(Bitfield),
    /// The whole file.
    All,
}

#[derive(Debug)]
pub(super) struct Holdings {
    geometry: Geometry,
    held: Vec<Held>,
    bytes: Vec<u64>,
    /// Living members that hold each piece without holding all.
    holders: Vec<u32>,
    /// Living members that hold everything.
    complete: u32,
    /// Pieces that no incomplete living member holds.
    unheld: u32,
}

impl Holdings {
    pub(super) fn new(geometry: Geometry, members: u32) -> Self {
        let pieces = geometry.piece_count();
        Self {
            geometry,
            held: vec![Held::Nothing; members as usize],
            bytes: vec![0; members as usize],
            holders: vec![0; pieces as usize],
            complete: 0,
            unheld: pieces,
        }
    }

    pub(super) fn bytes(&self, at: u32) -> u64 {
        self.bytes[at as usize]
    }

    pub(super) fn is_complete(&self, at: u32) -> bool {
        self.held[at as usize] == Held::All
    }

    pub(super) fn has(&self, at: u32, piece: u32) -> bool {
        match &self.held[at as usize] {
            Held::Nothing => false,
            Held::Pieces(pieces) => pieces.get(piece),
            Held::All => true,
        }
    }

    /// Living members that hold everything.
    #[cfg(test)]
    pub(super) fn complete(&self) -> u32 {
        self.complete
    }

    /// Takes in a member that holds `held`; one whose bits are of another length holds nothing.
    pub(super) fn enter(&mut self, at: u32, held: &Held) {
        self.leave(at);
        match held {
            Held::Nothing => self.gain(at, &[]),
            Held::All => {
                let all = 0..self.geometry.piece_count();
                self.gain(at, std::slice::from_ref(&all));
            }
            Held::Pieces(pieces) if pieces.len() == self.geometry.piece_count() => {
                let ranges: Vec<_> = pieces.ranges().collect();
                self.gain(at, &ranges);
            }
            Held::Pieces(_) => {}
        }
    }

    /// Forgets what a member holds, because it is gone.
    pub(super) fn leave(&mut self, at: u32) {
        self.bytes[at as usize] = 0;
        match std::mem::replace(&mut self.held[at as usize], Held::Nothing) {
            Held::Nothing => {}
            Held::All => self.complete -= 1,
            Held::Pieces(pieces) => self.uncount(&pieces),
        }
    }

    fn uncount(&mut self, pieces: &Bitfield) {
        for piece in pieces.ranges().flatten() {
            let holders = &mut self.holders[piece as usize];
            *holders -= 1;
            self.unheld += u32::from(*holders == 0);
        }
    }

    /// Adds pieces; what is past the end or held already changes nothing. An empty file is
    /// complete at once.
    pub(super) fn gain(&mut self, at: u32, ranges: &[Range<u32>]) {
        let count = self.geometry.piece_count();
        let held = &mut self.held[at as usize];
        if *held == Held::All {
            return;
        }
        if *held == Held::Nothing {
            *held = Held::Pieces(Bitfield::new(count));
        }
        let Held::Pieces(pieces) = held else { return };
        for piece in ranges.iter().flat_map(|range| range.start..range.end.min(count)) {
            if pieces.set(piece) {
                self.bytes[at as usize] += u64::from(self.geometry.piece_len(piece));
                let holders = &mut self.holders[piece as usize];
                self.unheld -= u32::from(*holders == 0);
                *holders += 1;
            }
        }
        if self.bytes[at as usize] == self.geometry.size_bytes() {
            if let Held::Pieces(pieces) = std::mem::replace(held, Held::All) {
                self.uncount(&pieces);
            }
            self.complete += 1;
        }
    }

    /// Whether every piece has a living holder.
    pub(super) fn is_covered(&self) -> bool {
        self.complete > 0 || self.unheld == 0
    }

    /// The pieces that no living member holds.
    pub(super) fn missing(&self) -> Vec<Range<u32>> {
        let mut missing: Vec<Range<u32>> = vec![];
        if self.is_covered() {
            return missing;
        }
        for piece in
            (0..).zip(&self.holders).filter(|(_, holders)| **holders == 0).map(|(at, _)| at)
        {
            match missing.last_mut() {
                Some(last) if last.end == piece => last.end += 1,
                _ => missing.push(piece..piece + 1),
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::single_range_in_vec_init, reason = "runs of pieces, not their numbers")]

    use super::*;

    #[test]
    fn pieces_without_a_living_holder_are_named() {
        let mut holdings = Holdings::new(Geometry::new(4 * 16_384 + 1, 16_384).unwrap(), 3);
        holdings.enter(0, &Held::All);
        holdings.enter(1, &Held::Nothing);
        assert!(holdings.is_covered());
        holdings.leave(0);
        assert_eq!(holdings.missing(), [0..5]);
        holdings.gain(1, &[0..1, 3..9, 0..1]);
        assert_eq!((holdings.missing(), holdings.bytes(1)), (vec![1..3], 2 * 16_384 + 1));
        let mut rest = Bitfield::new(5);
        rest.set_range(1..3);
        holdings.enter(2, &Held::Pieces(rest));
        assert!(holdings.is_covered() && holdings.complete() == 0);
        holdings.gain(1, &[0..5]);
        assert!(holdings.is_complete(1) && holdings.has(1, 4) && !holdings.has(2, 0));
        holdings.leave(1);
        assert_eq!(holdings.missing(), [0..1, 3..5]);
        holdings.enter(0, &Held::Pieces(Bitfield::full(4)));
        assert_eq!(holdings.bytes(0), 0);
    }

    #[test]
    fn an_empty_file_is_complete_at_once() {
        let mut holdings = Holdings::new(Geometry::new(0, 16_384).unwrap(), 1);
        assert!(holdings.is_covered());
        holdings.enter(0, &Held::Nothing);
        assert!(holdings.is_complete(0) && holdings.missing().is_empty());
    }
}
