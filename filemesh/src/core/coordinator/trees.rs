//! Who is whose parent in each stripe, and how many children a member may still take.
//!
//! Links are changed one at a time, so an event costs what it changes. The invariant is that no
//! chain of parents is a circle: [`Trees::link`] is only called with a parent whose chain does not
//! hold the child.

use super::positions::Positions;

/// No member.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Trees {
    stripes: u16,
    /// By position and stripe.
    parents: Vec<u32>,
    children: Vec<Vec<(u16, u32)>>,
    /// Children that each may have in all stripes.
    budgets: Vec<u32>,
    /// Members with fewer children than that.
    open: Positions,
}

/// Where a chain of parents ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub end: u32,
    pub depth: u32,
}

impl Trees {
    pub(super) fn new(members: u32, stripes: u16) -> Self {
        let members = members as usize;
        Self {
            stripes,
            parents: vec![NONE; members * usize::from(stripes)],
            children: vec![vec![]; members],
            budgets: vec![0; members],
            open: Positions::new(members as u32),
        }
    }

    pub(super) fn stripes(&self) -> u16 {
        self.stripes
    }

    fn cell(&self, at: u32, stripe: u16) -> usize {
        at as usize * usize::from(self.stripes) + usize::from(stripe)
    }

    pub(super) fn parent(&self, at: u32, stripe: u16) -> Option<u32> {
        Some(self.parents[self.cell(at, stripe)]).filter(|parent| *parent != NONE)
    }

    pub(super) fn children(&self, at: u32) -> &[(u16, u32)] {
        &self.children[at as usize]
    }

    pub(super) fn budget(&self, at: u32) -> u32 {
        self.budgets[at as usize]
    }

    pub(super) fn set_budget(&mut self, at: u32, children: u32) {
        self.budgets[at as usize] = children;
        self.mark(at);
    }

    fn mark(&mut self, at: u32) {
        if (self.children[at as usize].len() as u64) < u64::from(self.budgets[at as usize]) {
            self.open.insert(at);
        } else {
            self.open.remove(at);
        }
    }

    /// Members of `range` that may take another child, in order, from `start` on and round.
    pub(super) fn open(
        &self,
        range: std::ops::Range<u32>,
        start: u32,
    ) -> impl Iterator<Item = u32> + '_ {
        let start = start.clamp(range.start, range.end);
        self.open.range(start..range.end).chain(self.open.range(range.start..start))
    }

    /// Whether `at` may take another child.
    pub(super) fn has_room(&self, at: u32) -> bool {
        self.open.contains(at)
    }

    /// Makes `parent` the one that sends `stripe` to `child`; whoever did before no longer does.
    pub(super) fn link(&mut self, child: u32, stripe: u16, parent: u32) {
        self.unlink(child, stripe);
        let cell = self.cell(child, stripe);
        self.parents[cell] = parent;
        self.children[parent as usize].push((stripe, child));
        self.mark(parent);
    }

    pub(super) fn unlink(&mut self, child: u32, stripe: u16) {
        let cell = self.cell(child, stripe);
        let parent = std::mem::replace(&mut self.parents[cell], NONE);
        if parent == NONE {
            return;
        }
        let siblings = &mut self.children[parent as usize];
        if let Some(at) = siblings.iter().position(|link| *link == (stripe, child)) {
            siblings.swap_remove(at);
        }
        self.mark(parent);
    }

    /// The longest chain of parents in any stripe.
    pub(super) fn depth(&self) -> u32 {
        let members = self.budgets.len() as u32;
        let depth_of = |stripe| {
            // Each member is walked to once: up to one whose depth is known, and back.
            let mut known = vec![u32::MAX; members as usize];
            let (mut path, mut deepest) = (vec![], 0);
            for member in 0..members {
                let mut at = member;
                while known[at as usize] == u32::MAX && path.len() <= members as usize {
                    path.push(at);
                    let Some(parent) = self.parent(at, stripe) else { break };
                    at = parent;
                }
                let mut depth = known[at as usize];
                while let Some(below) = path.pop() {
                    depth = depth.wrapping_add(1);
                    known[below as usize] = depth;
                }
                deepest = deepest.max(known[member as usize]);
            }
            deepest
        };
        (0..self.stripes).map(depth_of).max().unwrap_or(0)
    }

    /// Follows the parents of `from` in `stripe` to the end; `None` if `avoid` holds of one of
    /// them or of `from`.
    pub(super) fn chain(
        &self,
        from: u32,
        stripe: u16,
        avoid: impl Fn(u32) -> bool,
    ) -> Option<Chain> {
        let mut chain = Chain { end: from, depth: 0 };
        loop {
            // A circle would be a defect; it is left rather than followed for ever.
            if avoid(chain.end) || chain.depth as usize > self.budgets.len() {
                return None;
            }
            let Some(parent) = self.parent(chain.end, stripe) else { return Some(chain) };
            chain = Chain { end: parent, depth: chain.depth + 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_count_against_the_budget() {
        let mut trees = Trees::new(4, 2);
        trees.set_budget(1, 2);
        trees.link(2, 0, 1);
        assert!(trees.has_room(1));
        trees.link(2, 1, 1);
        assert_eq!(trees.open(0..4, 3).collect::<Vec<_>>(), []);
        trees.link(2, 1, 3);
        assert_eq!(trees.open(0..4, 3).collect::<Vec<_>>(), [1]);
        assert_eq!((trees.parent(2, 0), trees.parent(2, 1)), (Some(1), Some(3)));
        assert_eq!((trees.children(1), trees.children(3)), (&[(0, 2)][..], &[(1, 2)][..]));
        trees.link(1, 0, 0);
        assert_eq!(trees.chain(2, 0, |at| at == 3), Some(Chain { end: 0, depth: 2 }));
        assert_eq!(trees.chain(2, 0, |at| at == 1), None);
        assert_eq!(trees.depth(), 2);
        trees.unlink(2, 0);
        assert_eq!(trees.depth(), 1);
        assert_eq!(trees.chain(2, 0, |at| at == 1), Some(Chain { end: 2, depth: 0 }));
    }
}
