//! Members in the order of their places, so that a rack, a zone and a region are each a range of
//! positions. Everything else in the coordinator speaks of positions.

use crate::core::place::Place;
use crate::core::plan::Member;
use std::collections::HashMap;
use std::ops::Range;

/// How near two members are, from far to near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    All,
    Region,
    Zone,
    Rack,
}

/// From near to far: the order in which a parent is looked for.
pub(super) const SCOPES: [Scope; 4] = [Scope::Rack, Scope::Zone, Scope::Region, Scope::All];

#[derive(Debug)]
pub(super) struct Layout {
    members: Vec<Member>,
    places: Vec<Place>,
    positions: HashMap<Member, u32>,
}

impl Layout {
    /// The members in order of place and number; of a number that comes twice the first counts.
    pub(super) fn new(all: impl Iterator<Item = (Member, Place)>) -> Self {
        let mut sorted: Vec<_> = all.map(|(member, place)| (place, member)).collect();
        let mut seen = std::collections::HashSet::new();
        sorted.retain(|(_, member)| seen.insert(*member));
        sorted.sort_unstable();
        Self {
            members: sorted.iter().map(|(_, member)| *member).collect(),
            places: sorted.iter().map(|(place, _)| *place).collect(),
            positions: (0..).zip(&sorted).map(|(at, (_, member))| (*member, at)).collect(),
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.members.len() as u32
    }

    pub(super) fn member(&self, at: u32) -> Member {
        self.members[at as usize]
    }

    pub(super) fn place(&self, at: u32) -> Place {
        self.places[at as usize]
    }

    pub(super) fn position(&self, member: Member) -> Option<u32> {
        self.positions.get(&member).copied()
    }

    /// The positions within `scope` around `at`.
    pub(super) fn around(&self, at: u32, scope: Scope) -> Range<u32> {
        let key = |place: &Place| match scope {
            Scope::All => (0, 0, 0),
            Scope::Region => (place.region, 0, 0),
            Scope::Zone => (place.region, place.zone, 0),
            Scope::Rack => (place.region, place.zone, place.rack),
        };
        let mine = key(&self.places[at as usize]);
        let start = self.places.partition_point(|place| key(place) < mine);
        let end = self.places.partition_point(|place| key(place) <= mine);
        start as u32..end as u32
    }

    pub(super) fn same_region(&self, one: u32, other: u32) -> bool {
        self.place(one).region == self.place(other).region
    }
}

/// Numbers that look random and depend on the seed alone (Steele, Lea, Flood: SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub u64);

impl Random {
    /// A number below `end`; 0 if `end` is 0.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (((mixed >> 32) * u64::from(end)) >> 32) as u32
    }

    /// A position of `range`, which is not empty.
    pub(super) fn within(&mut self, range: &Range<u32>) -> u32 {
        range.start + self.below(range.end - range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_ranges_of_positions() {
        let place = |region, zone, rack| Place { region, zone, rack };
        let hosts =
            [(7, place(1, 0, 0)), (3, place(0, 1, 0)), (5, place(0, 0, 9)), (9, place(0, 0, 9))];
        let layout = Layout::new(hosts.into_iter().chain([(7, place(0, 0, 0))]));
        assert_eq!((0..4).map(|at| layout.member(at)).collect::<Vec<_>>(), [5, 9, 3, 7]);
        let ranges = SCOPES.map(|scope| layout.around(1, scope));
        assert_eq!(ranges, [0..2, 0..2, 0..3, 0..4]);
        assert_eq!((layout.position(3), layout.position(4)), (Some(2), None));
    }

    #[test]
    fn random_numbers_stay_below_their_end() {
        let mut random = Random(1);
        let mut seen = [0; 5];
        (0..1_000).for_each(|_| seen[random.below(5) as usize] += 1);
        assert!(seen.iter().all(|count| *count > 150), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }
}
