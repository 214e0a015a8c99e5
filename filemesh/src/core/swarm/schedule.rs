//! The plan as it is followed: the next piece of each stripe, and which stripes are behind.
//!
//! A piece is *open* when it may be asked of any neighbour that has it: there is no parent for it,
//! its parent is late, or its stripe fell behind the most advanced one by too much.
//! A slow parent so keeps the front of its stripe while the mesh takes what is overdue behind it.

use super::super::geometry::Geometry;
use super::super::piece_map::PieceMap;
use crate::core::plan::{HostPlan, Member, STRIPES_MAX};

#[derive(Debug)]
pub(super) struct Schedule {
    plan: HostPlan,
    pieces: u32,
    stripes: Vec<Stripe>,
    /// Pieces of a stripe before this one are open if they are missing.
    open_below: u32,
    /// Whether any piece may be open.
    any_open: bool,
}

#[derive(Debug, Clone, Copy)]
struct Stripe {
    is_late: bool,
    /// Late for so long that there is nothing to wait for.
    is_lost: bool,
    /// First piece that is not complete.
    frontier: u32,
    /// First piece that may have blocks to be asked for.
    cursor: u32,
}

impl Schedule {
    pub fn new(geometry: &Geometry) -> Self {
        Self {
            plan: HostPlan::default(),
            pieces: geometry.piece_count(),
            stripes: Vec::new(),
            open_below: 0,
            any_open: true,
        }
    }

    pub fn plan(&self) -> &HostPlan {
        &self.plan
    }

    /// Follows `plan`; stripes beyond the bound go without a parent.
    pub fn set(&mut self, mut plan: HostPlan, verified: Option<&PieceMap>) {
        plan.parents.truncate(usize::from(STRIPES_MAX));
        let first =
            |piece| Stripe { is_late: false, is_lost: false, frontier: piece, cursor: piece };
        self.stripes = (0..plan.parents.len() as u32).map(first).collect();
        self.plan = plan;
        self.open_below = 0;
        if let Some(verified) = verified {
            (0..self.stripes.len()).for_each(|stripe| self.move_frontier(stripe, verified));
        }
        self.refresh();
    }

    fn stripe_of(&self, piece: u32) -> Option<usize> {
        (!self.stripes.is_empty()).then(|| piece as usize % self.stripes.len())
    }

    fn move_frontier(&mut self, stripe: usize, verified: &PieceMap) {
        let step = self.stripes.len() as u32;
        let frontier = &mut self.stripes[stripe].frontier;
        while *frontier < self.pieces && verified.has_piece(*frontier) {
            *frontier += step;
        }
    }

    /// `piece` became complete; stripes may be `behind` pieces behind the first. Near the end, when
    /// one has nothing left to bring, whatever the others lack is overdue.
    pub fn gained(&mut self, piece: u32, verified: &PieceMap, behind: u32) {
        let Some(stripe) = self.stripe_of(piece) else { return };
        if self.stripes[stripe].frontier != piece {
            return;
        }
        self.move_frontier(stripe, verified);
        let lead = self.stripes.iter().map(|stripe| stripe.frontier).max().unwrap_or(0);
        let slack = behind.saturating_add(self.stripes.len() as u32);
        let is_end = lead >= self.pieces;
        self.open_below = if is_end { self.pieces } else { lead.saturating_sub(slack) };
        self.refresh();
    }

    fn refresh(&mut self) {
        let orphan = self.plan.parents.iter().any(Option::is_none);
        let (below, pieces) = (self.open_below, self.pieces);
        let mut stripes = self.stripes.iter();
        self.any_open = self.stripes.is_empty()
            || orphan
            || stripes.any(|stripe| {
                stripe.frontier < pieces && (stripe.is_late || stripe.frontier < below)
            });
    }

    /// Whether any missing piece may be open.
    pub fn any_open(&self) -> bool {
        self.any_open
    }

    /// Whether `piece`, if it is missing, may be asked of any neighbour.
    pub fn is_open(&self, piece: u32) -> bool {
        let Some(stripe) = self.stripe_of(piece) else { return true };
        self.plan.parents[stripe].is_none()
            || self.stripes[stripe].is_late
            || self.is_overdue(piece)
    }

    /// Whether some stripe has nothing left to bring.
    pub fn is_at_end(&self) -> bool {
        self.open_below >= self.pieces
    }

    /// Whether any stripe is behind the others by more than the patience.
    pub fn any_overdue(&self) -> bool {
        self.stripes.iter().any(|stripe| stripe.frontier < self.open_below)
    }

    /// Whether `piece` should be here by the pace of the other stripes.
    pub fn is_overdue(&self, piece: u32) -> bool {
        piece < self.open_below
    }

    /// Marks the stripes of `member` late or in time; true if that changed any.
    pub fn set_late(&mut self, member: Member, is_late: bool) -> bool {
        let parents = self.plan.parents.iter().zip(&mut self.stripes);
        let mut changed = false;
        for (_, stripe) in parents.filter(|(parent, _)| **parent == Some(member)) {
            changed |= stripe.is_late != is_late;
            stripe.is_late = is_late;
            stripe.is_lost &= is_late;
        }
        self.refresh();
        changed
    }

    /// Marks the stripes of `member` lost: it will not bring what it owes.
    pub fn set_lost(&mut self, member: Member) {
        let parents = self.plan.parents.iter().zip(&mut self.stripes);
        let ours = parents.filter(|(parent, _)| **parent == Some(member));
        ours.for_each(|(_, stripe)| stripe.is_lost = true);
    }

    /// Whether `piece` has a parent that may still bring it.
    pub fn is_expected(&self, piece: u32) -> bool {
        self.stripe_of(piece).is_some_and(|stripe| {
            self.plan.parents[stripe].is_some() && !self.stripes[stripe].is_lost
        })
    }

    /// Blocks of `piece` are to be asked for again.
    pub fn released(&mut self, piece: u32) {
        if let Some(stripe) = self.stripe_of(piece) {
            let cursor = &mut self.stripes[stripe].cursor;
            *cursor = piece.min(*cursor);
        }
    }

    /// The first piece of `member`'s stripes for which `has_work` holds and which it can be asked
    /// for. What has no work is not looked at again until it is released.
    pub fn next_from(
        &mut self,
        member: Member,
        has_work: impl Fn(u32) -> bool,
        can_ask: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let (step, pieces) = (self.stripes.len() as u32, self.pieces);
        let parents = self.plan.parents.iter().zip(&mut self.stripes);
        let ours = parents.filter(|(parent, _)| **parent == Some(member));
        let next = ours.filter_map(|(_, stripe)| {
            while stripe.cursor < pieces && !has_work(stripe.cursor) {
                stripe.cursor += step;
            }
            let mut rest = (stripe.cursor..pieces).step_by(step as usize);
            rest.find(|piece| can_ask(*piece) && has_work(*piece))
        });
        next.min()
    }

    /// The parents that are late, or behind the others.
    pub fn late(&self) -> Vec<Member> {
        let parents = self.plan.parents.iter().zip(&self.stripes);
        let late = parents.filter(|(_, stripe)| {
            let behind = stripe.frontier < self.open_below;
            stripe.frontier < self.pieces && (stripe.is_late || behind)
        });
        let mut late: Vec<Member> = late.filter_map(|(parent, _)| *parent).collect();
        late.sort_unstable();
        late.dedup();
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(parents: &[Option<Member>]) -> (Schedule, PieceMap) {
        let geometry = Geometry::new(12 * 16_384, 16_384).unwrap();
        let mut schedule = Schedule::new(&geometry);
        let plan =
            HostPlan { number: 1, parents: parents.to_vec(), neighbours: vec![], far: vec![] };
        schedule.set(plan, None);
        (schedule, PieceMap::new(geometry))
    }

    #[test]
    fn pieces_come_in_order_from_their_parents() {
        let (mut schedule, _) = schedule(&[Some(7), Some(8), Some(7)]);
        assert_eq!(schedule.next_from(7, |_| true, |_| true), Some(0));
        assert_eq!(schedule.next_from(7, |piece| piece > 1, |_| true), Some(2));
        assert_eq!(schedule.next_from(7, |_| true, |_| true), Some(2), "0 is behind the cursor");
        schedule.released(0);
        assert_eq!(schedule.next_from(7, |_| true, |_| true), Some(0));
        assert_eq!(schedule.next_from(8, |_| true, |piece| piece == 4), Some(4));
        assert_eq!(schedule.next_from(9, |_| true, |_| true), None);
        assert!(!schedule.any_open());
    }

    #[test]
    fn what_is_late_or_behind_is_open() {
        let (mut schedule, mut map) = schedule(&[Some(7), Some(8)]);
        assert!(schedule.set_late(7, true) && !schedule.set_late(7, true));
        assert!(schedule.is_open(0) && !schedule.is_open(1) && schedule.any_open());
        assert!(schedule.set_late(7, false) && !schedule.any_open());
        for piece in [0, 2, 4, 6, 8] {
            map.add(piece);
            schedule.gained(piece, &map, 4);
        }
        // Stripe 0 is at piece 10: more than 4 pieces and a round behind it is overdue.
        assert!(schedule.is_open(1) && schedule.is_open(3) && !schedule.is_open(5));
        assert_eq!((schedule.late(), schedule.any_open()), (vec![8], true));
        let (orphan, _) = self::schedule(&[None, Some(8)]);
        assert!(orphan.is_open(0) && !orphan.is_open(1) && orphan.any_open());
    }
}
