//! What one member of a transfer is told about the others: who sends it which pieces first, and
//! whom it may ask for whatever is late.
//!
//! The coordinator makes plans and a swarm follows them; both use these types and nothing else of
//! each other. The scheme is interleaved trees: piece `p` belongs to stripe `p % stripes`, and each
//! stripe has a tree of its own over all members, rooted at the source. A member is an inner node
//! in few trees and a leaf in the others, so that all upload about as much as they receive, the
//! source sends every piece once, and a member that dies or is slow holds up one stripe of others.
//!
//! ```text
//!   stripe 0:  source ─► a ─┬► b        stripe 1:  source ─► c ─┬► d
//!                           └► c ─► d                           └► a ─► b
//! ```

use super::geometry::Geometry;

/// A member's number within one transfer, given by control. Numbers are never used again.
pub type Member = u32;

/// Stripes of a plan at most.
pub const STRIPES_MAX: u16 = 64;

/// Neighbours of one member at most: more cost connections and gain nothing (measured in
/// simulation: 30 bring 3 to 5 points over 10).
pub const NEIGHBOURS_MAX: usize = 32;

/// What one member is to do until a newer plan comes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPlan {
    /// Plans with a lower or equal number are old.
    pub number: u32,
    /// Who sends the pieces of each stripe; its length is the number of stripes. Empty: there is
    /// no plan, and pieces come from whoever has them, rarest first.
    pub parents: Vec<Option<Member>>,
    /// Members that may be asked for what the plan does not bring in time, and may ask.
    pub neighbours: Vec<Member>,
    /// Of the neighbours, those beyond the border of the member's region: they are asked only for
    /// what no parent will bring any more, and never twice.
    pub far: Vec<Member>,
}

impl HostPlan {
    /// Who is to send `piece`.
    pub fn parent_of(&self, piece: u32) -> Option<Member> {
        let stripes = u32::try_from(self.parents.len()).ok().filter(|stripes| *stripes > 0)?;
        self.parents[(piece % stripes) as usize]
    }

    /// The stripes whose pieces `member` sends.
    pub fn stripes_from(&self, member: Member) -> impl Iterator<Item = u16> + '_ {
        let parents = (0u16..).zip(&self.parents);
        parents.filter(move |(_, parent)| **parent == Some(member)).map(|(stripe, _)| stripe)
    }
}

/// Pieces of `stripe` out of `stripes`, in order.
pub fn pieces_of(geometry: &Geometry, stripe: u16, stripes: u16) -> impl Iterator<Item = u32> {
    (u32::from(stripe)..geometry.piece_count()).step_by(usize::from(stripes.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_round_the_stripes() {
        let plan = HostPlan { parents: vec![Some(7), None, Some(9)], ..HostPlan::default() };
        let parents: Vec<_> = (0..6).map(|piece| plan.parent_of(piece)).collect();
        assert_eq!(parents, [Some(7), None, Some(9), Some(7), None, Some(9)]);
        assert_eq!(plan.stripes_from(9).collect::<Vec<_>>(), [2]);
        assert_eq!(HostPlan::default().parent_of(3), None);
        let geometry = Geometry::new(7 * 16_384, 16_384).unwrap();
        assert_eq!(pieces_of(&geometry, 1, 3).collect::<Vec<_>>(), [1, 4]);
    }
}
