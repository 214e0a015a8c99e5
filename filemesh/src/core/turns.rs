//! How many transfers may run beside each other, by priority: control bounds all of them so, each
//! agent its own.
//!
//! Of `n` turns, high priority may take all, low and normal together all but a quarter, low a
//! quarter (at least one): so what is urgent always finds room, and what is not goes on slowly.

use std::fmt;

/// When it is a transfer's turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// When there is nothing else to do.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        })
    }
}

/// Why a transfer has to wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// There is no turn for anybody.
    #[error("{taken} of {most} turns are taken")]
    All {
        /// Turns that are taken.
        taken: usize,
        /// Turns that there are.
        most: usize,
    },
    /// What is left is kept for what is more urgent.
    #[error("all {share} of {most} turns that {priority} priority may take are taken")]
    Share {
        /// Whose share.
        priority: Priority,
        /// Turns that it and those below it may take together.
        share: usize,
        /// Turns that there are.
        most: usize,
    },
}

/// Who has a turn, by priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    taken: [usize; 3],
}

/// Turns of `most` that transfers of `priority` and those below it may take together.
pub fn share(priority: Priority, most: usize) -> usize {
    match priority {
        Priority::High => most.max(1),
        Priority::Normal => (most - most / 4).max(1),
        Priority::Low => (most / 4).max(1),
    }
}

impl Turns {
    /// One more has a turn.
    pub fn take(&mut self, priority: Priority) {
        self.taken[priority as usize] += 1;
    }

    /// One fewer.
    pub fn give_back(&mut self, priority: Priority) {
        let taken = &mut self.taken[priority as usize];
        *taken = taken.saturating_sub(1);
    }

    /// Those of both together.
    pub fn with(mut self, other: Self) -> Self {
        for (one, two) in self.taken.iter_mut().zip(other.taken) {
            *one += two;
        }
        self
    }

    /// Whether one more of `priority` may run when there are `most` turns (at least one).
    pub fn ask(&self, priority: Priority, most: usize) -> Result<(), Busy> {
        let (most, taken) = (most.max(1), self.taken.iter().sum());
        if taken >= most {
            return Err(Busy::All { taken, most });
        }
        let share = share(priority, most);
        let below: usize = self.taken[..=priority as usize].iter().sum();
        if below >= share {
            return Err(Busy::Share { priority, share, most });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_leave_room_for_what_is_urgent() {
        let mut turns = Turns::default();
        let mut fill = |priority, count| {
            for _ in 0..count {
                assert_eq!(turns.ask(priority, 8), Ok(()));
                turns.take(priority);
            }
            turns.ask(priority, 8).unwrap_err().to_string()
        };
        let low = fill(Priority::Low, 2);
        assert_eq!(low, "all 2 of 8 turns that low priority may take are taken");
        let normal = fill(Priority::Normal, 4);
        assert_eq!(normal, "all 6 of 8 turns that normal priority may take are taken");
        assert_eq!(fill(Priority::High, 2), "8 of 8 turns are taken");
        turns.give_back(Priority::High);
        assert!(turns.ask(Priority::Normal, 8).is_err());
        assert_eq!(turns.ask(Priority::High, 8), Ok(()));
    }

    #[test]
    fn a_single_turn_is_everybodys() {
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            for most in 0..4 {
                assert_eq!(Turns::default().ask(priority, most), Ok(()), "{priority} of {most}");
            }
        }
        let mut one = Turns::default();
        one.take(Priority::Low);
        let busy = Turns::default().with(one).ask(Priority::High, 1);
        assert_eq!(busy, Err(Busy::All { taken: 1, most: 1 }));
    }
}
