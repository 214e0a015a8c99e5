//! One timer wheel per shard.
//!
//! Entries are lazy: a deadline that moves later (every sign of life does that) does not touch the wheel; when
//! the entry fires, the session's true deadline is asked and the entry is put in again. The cost of
//! a heartbeat is therefore nothing here.

/// Width of a slot. Deadlines are met this late at most.
pub const TICK_MS: u64 = 128;

/// Slots in the wheel: deadlines up to 131 s away have their own slot, later ones are looked at
/// every 131 s.
const SLOTS: usize = 1024;

/// A wheel of keys.
pub struct TimerWheel<K> {
    slots: Vec<Vec<K>>,
    /// Tick that was handled last.
    tick: u64,
    entries: usize,
}

impl<K> TimerWheel<K> {
    /// A wheel whose time starts at `now_ms`.
    pub fn new(now_ms: u64) -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), tick: now_ms / TICK_MS, entries: 0 }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether nothing is scheduled.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Schedules `key`; it fires in the first tick at or after `deadline_ms`, or earlier when the
    /// deadline lies beyond the wheel. Returns the time of that tick.
    pub fn schedule(&mut self, deadline_ms: u64, key: K) -> u64 {
        let earliest = self.tick + 1;
        let latest = self.tick + SLOTS as u64 - 1;
        let tick = deadline_ms.div_ceil(TICK_MS).clamp(earliest, latest);
        self.slots[(tick % SLOTS as u64) as usize].push(key);
        self.entries += 1;
        tick * TICK_MS
    }

    /// Moves time on and gives every entry that is due to `fire`.
    pub fn advance(&mut self, now_ms: u64, mut fire: impl FnMut(K)) {
        let target = now_ms / TICK_MS;
        // After a long stall every slot is due once; more turns would find them empty.
        let first = (self.tick + 1).max(target.saturating_sub(SLOTS as u64 - 1));
        for tick in first..=target {
            let slot = &mut self.slots[(tick % SLOTS as u64) as usize];
            self.entries -= slot.len();
            slot.drain(..).for_each(&mut fire);
            if slot.capacity() > 1024 {
                slot.shrink_to(0);
            }
        }
        self.tick = self.tick.max(target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fired(wheel: &mut TimerWheel<u32>, now_ms: u64) -> Vec<u32> {
        let mut keys = Vec::new();
        wheel.advance(now_ms, |key| keys.push(key));
        keys
    }

    #[test]
    fn fires_once_and_not_early() {
        let mut wheel = TimerWheel::new(1_000);
        wheel.schedule(2_000, 7);
        assert!(fired(&mut wheel, 1_900).is_empty());
        assert_eq!(fired(&mut wheel, 2_000 + TICK_MS), [7]);
        assert!(fired(&mut wheel, 900_000).is_empty());
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_stall_longer_than_the_wheel_fires_everything() {
        let mut wheel = TimerWheel::new(0);
        for i in 0..2_000 {
            wheel.schedule(u64::from(i) * 60, i);
        }
        let mut keys = fired(&mut wheel, 10_000_000);
        keys.sort_unstable();
        assert_eq!(keys, (0..2_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_deadline_beyond_the_wheel_fires_early_to_be_asked_again() {
        let mut wheel = TimerWheel::new(0);
        wheel.schedule(1_000_000, 1);
        assert_eq!(fired(&mut wheel, SLOTS as u64 * TICK_MS), [1]);
    }

    proptest! {
        #[test]
        fn every_entry_fires_within_a_tick(
            deadlines in prop::collection::vec(0u64..100_000, 1..100),
            step in 1u64..3_000,
        ) {
            let mut wheel = TimerWheel::new(0);
            for (i, deadline) in deadlines.iter().enumerate() {
                wheel.schedule(*deadline, i as u32);
            }
            let (mut now, mut seen) = (0, 0);
            while !wheel.is_empty() {
                now += step;
                prop_assert!(now < 110_000 + step);
                for key in fired(&mut wheel, now) {
                    seen += 1;
                    let deadline = deadlines[key as usize];
                    prop_assert!(now + TICK_MS > deadline, "early: {now} < {deadline}");
                    prop_assert!(now <= deadline + 2 * TICK_MS + step, "late: {now} > {deadline}");
                }
            }
            prop_assert_eq!(seen, deadlines.len());
        }
    }
}
