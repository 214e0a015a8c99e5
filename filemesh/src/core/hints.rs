//! What coordinator and member tell each other while a transfer runs, as messages.
//!
//! Hints are not signed. They only choose among the members that the signed list names, and a
//! report only says what its sender claims to have; neither can make anybody exchange a byte with
//! a stranger.

use std::ops::Range;

use skein_wire::ids::TransferId;
use skein_wire::limits::{MESH_MEMBER_MAX, MESH_RANGES_MAX};
use skein_wire::signal::v1::{MeshReport, PieceRange, TransferPlan};

use super::geometry::PIECES_MAX;
use super::membership::{MembershipError, at_most, member, transfer_id};
use super::plan::{HostPlan, Member, NEIGHBOURS_MAX, STRIPES_MAX};

impl HostPlan {
    /// The plan that a message carries and its transfer, if every field is within bounds.
    pub fn from_message(message: &TransferPlan) -> Result<(TransferId, Self), MembershipError> {
        at_most("stripes", message.parents.len(), STRIPES_MAX.into())?;
        at_most("neighbours", message.neighbours.len(), NEIGHBOURS_MAX)?;
        let parent = |number: &u32| number.checked_sub(1).map(member).transpose();
        let parents = message.parents.iter().map(parent).collect::<Result<_, _>>()?;
        let neighbours = message.neighbours.iter().map(|number| member(*number));
        let neighbours = neighbours.collect::<Result<_, _>>()?;
        at_most("far neighbours", message.far.len(), NEIGHBOURS_MAX)?;
        let far = message.far.iter().map(|number| member(*number)).collect::<Result<_, _>>()?;
        let transfer = transfer_id(&message.transfer_id)?;
        Ok((transfer, Self { number: message.number, parents, neighbours, far }))
    }

    /// The message that carries this plan of `transfer`. Its members are at most
    /// [`MESH_MEMBER_MAX`].
    pub fn to_message(&self, transfer: &TransferId) -> TransferPlan {
        let parent = |parent: &Option<Member>| parent.map_or(0, |member| member + 1);
        debug_assert!(self.parents.iter().flatten().all(|member| *member <= MESH_MEMBER_MAX));
        TransferPlan {
            transfer_id: transfer.to_bytes(),
            number: self.number,
            parents: self.parents.iter().map(parent).collect(),
            neighbours: self.neighbours.clone(),
            far: self.far.clone(),
        }
    }
}

/// What a member has gained since its last report.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Number of the plan that it follows; 0: none.
    pub plan_number: u32,
    /// Pieces that became whole since the last report, in order and with a gap between ranges. At
    /// most [`MESH_RANGES_MAX`] ranges.
    pub gained: Vec<Range<u32>>,
    /// Bytes received since the run began.
    pub bytes_down: u64,
    /// Bytes sent since the run began.
    pub bytes_up: u64,
    /// Parents of the plan that brought nothing in time.
    pub late_parents: Vec<Member>,
}

impl Progress {
    /// The report that a message carries and its transfer, if every field is within bounds.
    pub fn from_message(message: &MeshReport) -> Result<(TransferId, Self), MembershipError> {
        at_most("ranges of pieces", message.gained.len(), MESH_RANGES_MAX)?;
        at_most("late parents", message.late_parents.len(), STRIPES_MAX.into())?;
        let mut gained: Vec<Range<u32>> = Vec::with_capacity(message.gained.len());
        for range in &message.gained {
            let end = range.first.checked_add(range.count).filter(|end| *end <= PIECES_MAX);
            let apart = gained.last().is_none_or(|before| before.end < range.first);
            match end {
                Some(end) if range.count > 0 && apart => gained.push(range.first..end),
                _ => return Err(MembershipError::Range),
            }
        }
        let late_parents = message.late_parents.iter().map(|number| member(*number));
        let progress = Self {
            plan_number: message.plan_number,
            gained,
            bytes_down: message.bytes_down,
            bytes_up: message.bytes_up,
            late_parents: late_parents.collect::<Result<_, _>>()?,
        };
        Ok((transfer_id(&message.transfer_id)?, progress))
    }

    /// The message that carries this report about `transfer`.
    pub fn to_message(&self, transfer: &TransferId) -> MeshReport {
        let range = |range: &Range<u32>| PieceRange {
            first: range.start,
            count: range.end.saturating_sub(range.start),
        };
        MeshReport {
            transfer_id: transfer.to_bytes(),
            plan_number: self.plan_number,
            gained: self.gained.iter().map(range).collect(),
            bytes_down: self.bytes_down,
            bytes_up: self.bytes_up,
            late_parents: self.late_parents.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: TransferId = TransferId([3; 16]);

    #[test]
    fn a_plan_is_its_message() {
        let parents = vec![Some(0), None, Some(MESH_MEMBER_MAX)];
        let plan = HostPlan { number: 9, parents, neighbours: vec![4, 0], far: vec![4] };
        assert_eq!(HostPlan::from_message(&plan.to_message(&ID)), Ok((ID, plan)));
    }

    #[test]
    fn plans_out_of_bounds_are_refused() {
        let good = TransferPlan { transfer_id: ID.to_bytes(), ..TransferPlan::default() };
        assert_eq!(HostPlan::from_message(&good), Ok((ID, HostPlan::default())));
        let bad: [fn(&mut TransferPlan); 5] = [
            |plan| plan.transfer_id = vec![1; 17].into(),
            |plan| plan.parents = vec![0; usize::from(STRIPES_MAX) + 1],
            |plan| plan.parents = vec![MESH_MEMBER_MAX + 2],
            |plan| plan.neighbours = vec![1; NEIGHBOURS_MAX + 1],
            |plan| plan.far = vec![MESH_MEMBER_MAX + 1],
        ];
        for spoil in bad {
            let mut plan = good.clone();
            spoil(&mut plan);
            assert!(HostPlan::from_message(&plan).is_err());
        }
    }

    #[test]
    fn ranges_are_in_order_and_apart() {
        let report = |ranges: &[(u32, u32)]| {
            let range = |(first, count): &(u32, u32)| PieceRange { first: *first, count: *count };
            let gained = ranges.iter().map(range).collect();
            let transfer_id = ID.to_bytes();
            Progress::from_message(&MeshReport { transfer_id, gained, ..MeshReport::default() })
        };
        assert_eq!(report(&[(0, 2), (3, 1)]).unwrap().1.gained, [0..2, 3..4]);
        assert!(report(&[(0, PIECES_MAX)]).is_ok());
        for bad in [&[(0, 0)][..], &[(0, 2), (2, 1)], &[(5, 1), (3, 1)], &[(u32::MAX, 2)]] {
            assert_eq!(report(bad), Err(MembershipError::Range), "{bad:?}");
        }
        assert_eq!(report(&[(1, PIECES_MAX)]), Err(MembershipError::Range));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_canonical(
            ranges in prop::collection::vec((0..70_000u32, 0..5u32), 0..4),
            late_parents in prop::collection::vec(0..=MESH_MEMBER_MAX + 1, 0..4),
            parents in prop::collection::vec(0..=MESH_MEMBER_MAX + 2, 0..4),
        ) {
            let gained = ranges.into_iter().map(|(first, count)| PieceRange { first, count });
            let report = MeshReport {
                transfer_id: ID.to_bytes(),
                gained: gained.collect(),
                late_parents,
                ..MeshReport::default()
            };
            if let Ok((id, progress)) = Progress::from_message(&report) {
                prop_assert_eq!(progress.to_message(&id), report);
            }
            let plan = TransferPlan { transfer_id: ID.to_bytes(), parents, ..TransferPlan::default() };
            if let Ok((id, host)) = HostPlan::from_message(&plan) {
                prop_assert_eq!(host.to_message(&id), plan);
            }
        }
    }
}
