//! Who is to blame when a member is late: not everybody behind a slow place, but the place.
//!
//! A member complains when its parent brought nothing for its patience. Behind one that stopped
//! everybody complains, and to move them all would only bring disorder: a chain of parents is
//! followed upwards instead, as long as a parent has nothing that its child lacks. The first link
//! over which something could go and does not is the bad one. If the complaint is about that link,
//! its child gets another parent; if it is farther up, those who stand there have
//! [`Settings::late_window_ms`](super::Settings::late_window_ms) to complain themselves, after
//! which the complainer is moved away from them.

use super::complaints::Complaint;
use super::{Coordinator, State};

/// Pieces of a stripe that are compared, from the first that a member lacks.
const COMPARED: u32 = 64;

/// How many times longer a slow member waits.
const SLOW_WINDOWS: u64 = 10;

impl Coordinator {
    /// `at` had nothing from `parent` in time.
    pub(super) fn complain(&mut self, at: u32, parent: u32) {
        let of_parent = |(stripe, child): &(u16, u32)| (*child == at).then_some(*stripe);
        let stripes: Vec<u16> = self.trees.children(parent).iter().filter_map(of_parent).collect();
        for stripe in stripes {
            let first = self.first_lacking(at, stripe);
            let since_ms = self.now_ms;
            let complaint = Complaint { child: at, stripe, parent, since_ms, first };
            if self.complaints.has(&complaint) {
                continue;
            }
            match self.decide(&complaint) {
                true => self.complaints.settled(),
                false => self.complaints.keep(complaint),
            }
        }
    }

    /// Settles what can be decided now.
    pub(super) fn decide_complaints(&mut self) {
        for complaint in self.complaints.due(self.now_ms) {
            if !self.decide(&complaint) {
                self.complaints.put_back(complaint);
            }
        }
    }

    /// Decides a complaint, or finds it void; false: it has to wait.
    fn decide(&mut self, complaint: &Complaint) -> bool {
        let Complaint { child, stripe, parent, since_ms, first } = *complaint;
        let is_open = self.entries[child as usize].state == State::Active
            && self.trees.parent(child, stripe) == Some(parent)
            && first.is_some_and(|piece| !self.holdings.has(child, piece));
        if !is_open {
            return true;
        }
        let waited_ms = self.now_ms.saturating_sub(since_ms);
        // To a slow member every parent looks late.
        let is_slow = self.entries[child as usize].is_slow;
        let window_ms = self.settings.late_window_ms * if is_slow { SLOW_WINDOWS } else { 1 };
        if waited_ms < window_ms && (is_slow || self.bad_link(child, stripe, first) != Some(child))
        {
            return false;
        }
        self.move_from(child, parent);
        true
    }

    /// The child of the first link above `at`, which lacks the piece `first`, over which something
    /// could go. `None`: nobody above has anything that `at` lacks, as far as is known.
    fn bad_link(&self, at: u32, stripe: u16, first: Option<u32>) -> Option<u32> {
        let (mut child, first) = (at, first?);
        // A chain is never longer than there are members.
        for _ in 0..self.layout.len() {
            let parent = self.trees.parent(child, stripe)?;
            if self.could_send(parent, child, first) {
                return Some(child);
            }
            child = parent;
        }
        None
    }

    /// Whether `parent` has pieces that `child` lacks, of those that follow `first` in its stripe.
    fn could_send(&self, parent: u32, child: u32, first: u32) -> bool {
        let step = u32::from(self.trees.stripes());
        (0..COMPARED)
            .map_while(|nth| first.checked_add(nth * step))
            .take_while(|piece| *piece < self.geometry.piece_count())
            .any(|piece| self.holdings.has(parent, piece) && !self.holdings.has(child, piece))
    }

    fn first_lacking(&self, at: u32, stripe: u16) -> Option<u32> {
        let step = usize::from(self.trees.stripes().max(1));
        (u32::from(stripe)..self.geometry.piece_count())
            .step_by(step)
            .find(|piece| !self.holdings.has(at, *piece))
    }

    /// Whether what `at` lacks is there at its parents in most stripes: then it is itself what is
    /// slow, and not somebody before it.
    pub(super) fn is_fed(&self, at: u32) -> bool {
        let stripes = self.trees.stripes();
        let fed = (0..stripes).filter(|stripe| {
            let (parent, first) = (self.trees.parent(at, *stripe), self.first_lacking(at, *stripe));
            let (Some(parent), Some(first)) = (parent, first) else { return false };
            self.could_send(parent, at, first)
        });
        2 * fed.count() > usize::from(stripes)
    }
}
