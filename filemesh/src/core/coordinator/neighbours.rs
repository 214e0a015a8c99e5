//! Who may ask whom for what the plan does not bring in time.
//!
//! The living members form a ring in the order of their places, which keeps the graph connected
//! whatever happens and crosses each border once or twice. On it lie links by chance: some within
//! the rack, some in other racks and zones of the region, one or two in other regions, so that
//! pieces need few hops and a rack that loses its links to the ring is still reached. Sources
//! have their two neighbours on the ring and no others, because what they send is scarce; while
//! trees bring the pieces, they are nobody's neighbours: what is late is late because links are
//! full, and a source that is asked for it too only sends less of what nobody has yet.

use super::layout::{Layout, Random, Scope};
use super::positions::Positions;
use crate::core::plan::NEIGHBOURS_MAX;
use std::collections::BTreeSet;
use std::ops::Range;

/// Links beside the ring's two.
const LINKS_MAX: usize = NEIGHBOURS_MAX - 2;

/// Links by chance that a member asks for, from near to far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourSettings {
    /// In its own rack.
    pub rack_links: usize,
    /// In its region outside the rack.
    pub region_links: usize,
    /// In other regions.
    pub beyond_links: usize,
    /// Links by chance at most, its own and the others' together; two more are the ring's.
    pub links_max: usize,
}

impl Default for NeighbourSettings {
    fn default() -> Self {
        Self { rack_links: 3, region_links: 3, beyond_links: 1, links_max: 14 }
    }
}

/// Members from which on the links by chance are fewer: beyond, the signed lists that name each
/// link's other end are most of what control sends. With the ring's two about ten are left, more
/// than the logarithm of any fleet.
const MANY: u32 = 100;

impl NeighbourSettings {
    /// For so many members.
    fn among(self, members: u32) -> Self {
        let links_max = self.links_max.min(LINKS_MAX);
        if members < MANY {
            return Self { links_max, ..self };
        }
        Self {
            rack_links: self.rack_links.min(1),
            region_links: self.region_links.min(2),
            links_max: links_max.min(10),
            ..self
        }
    }
}

#[derive(Debug)]
pub(super) struct Neighbours {
    settings: NeighbourSettings,
    ring: Positions,
    links: Vec<Vec<u32>>,
    sources: BTreeSet<u32>,
}

impl Neighbours {
    pub(super) fn new(settings: NeighbourSettings, members: u32, sources: BTreeSet<u32>) -> Self {
        let links = vec![vec![]; members as usize];
        let settings = settings.among(members);
        Self { settings, ring: Positions::new(members), links, sources }
    }

    /// The two beside `at` on the ring, which it need not be on.
    fn beside(&self, at: u32) -> impl Iterator<Item = u32> {
        let before = self.ring.last_round(at).filter(|other| *other != at);
        let after = self.ring.next_round(at + 1);
        let after = after.filter(|other| *other != at && Some(*other) != before);
        before.into_iter().chain(after)
    }

    /// All neighbours of `at`, in order; sources among them if `with_sources`.
    pub(super) fn of(&self, at: u32, with_sources: bool) -> Vec<u32> {
        let ring = self.ring.contains(at).then(|| self.beside(at));
        let links = self.links[at as usize].iter().copied();
        let all = ring.into_iter().flatten().chain(links);
        let mut all: Vec<u32> =
            all.filter(|other| with_sources || !self.sources.contains(other)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Puts a living member on the ring; whose neighbours changed goes to `changed`.
    pub(super) fn enter(&mut self, at: u32, changed: &mut Positions) {
        changed.extend(self.beside(at));
        changed.insert(at);
        self.ring.insert(at);
    }

    /// Takes a member out; those that lose a link by it get another.
    pub(super) fn leave(
        &mut self,
        at: u32,
        layout: &Layout,
        random: &mut Random,
        changed: &mut Positions,
    ) {
        self.ring.remove(at);
        changed.extend(self.beside(at));
        for other in std::mem::take(&mut self.links[at as usize]) {
            self.links[other as usize].retain(|link| *link != at);
            changed.insert(other);
            self.fill(other, layout, random, changed);
        }
    }

    /// Draws the links by chance of `at`, which is on the ring, as far as it lacks any.
    pub(super) fn fill(
        &mut self,
        at: u32,
        layout: &Layout,
        random: &mut Random,
        changed: &mut Positions,
    ) {
        if self.sources.contains(&at) {
            return;
        }
        let (rack, region) = (layout.around(at, Scope::Rack), layout.around(at, Scope::Region));
        let links = &self.links[at as usize];
        let near = links.iter().filter(|link| rack.contains(link)).count();
        let middle = links.iter().filter(|link| region.contains(link)).count() - near;
        let far = links.len() - near - middle;
        let NeighbourSettings { mut rack_links, mut region_links, mut beyond_links, .. } =
            self.settings;
        // Where there is nobody to link to, the links go one step nearer or farther.
        if region.len() == layout.len() as usize {
            region_links += std::mem::take(&mut beyond_links);
        }
        if rack.len() == region.len() {
            rack_links += std::mem::take(&mut region_links);
        } else if rack.len() == 1 {
            region_links += std::mem::take(&mut rack_links);
        }
        for (range, except, count) in [
            (rack.clone(), 0..0, rack_links.saturating_sub(near)),
            (region.clone(), rack, region_links.saturating_sub(middle)),
            (0..layout.len(), region, beyond_links.saturating_sub(far)),
        ] {
            for _ in 0..count {
                if let Some(other) = self.draw(at, &range, &except, random) {
                    self.links[at as usize].push(other);
                    self.links[other as usize].push(at);
                    changed.extend([at, other]);
                }
            }
        }
    }

    fn draw(
        &self,
        at: u32,
        range: &Range<u32>,
        except: &Range<u32>,
        random: &mut Random,
    ) -> Option<u32> {
        let is_full = |at: u32| self.links[at as usize].len() >= self.settings.links_max;
        if is_full(at) {
            return None;
        }
        // A few tries: where most are gone or full, fewer links do.
        (0..8).find_map(|_| {
            let start = random.within(range);
            let found = self.ring.range(start..range.end).next()?;
            let fits = found != at
                && !except.contains(&found)
                && !is_full(found)
                && !self.sources.contains(&found)
                && !self.links[at as usize].contains(&found);
            fits.then_some(found)
        })
    }

    /// Links two members whatever their number of links is, up to the ring's reserve.
    pub(super) fn introduce(&mut self, at: u32, other: u32, changed: &mut Positions) -> bool {
        let room = |at: u32| self.links[at as usize].len() < LINKS_MAX;
        if at == other || !room(at) || !room(other) || self.links[at as usize].contains(&other) {
            return false;
        }
        self.links[at as usize].push(other);
        self.links[other as usize].push(at);
        changed.extend([at, other]);
        true
    }
}
