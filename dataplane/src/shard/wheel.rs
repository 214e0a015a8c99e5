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

/// End of a list.
const NONE: u32 = u32::MAX;

/// A wheel of keys. A slot is a list through one table, so the memory is that of the most entries
/// there ever were at a time, wherever on the wheel they were.
pub struct TimerWheel<K> {
    /// First entry of each slot.
    slots: Box<[u32]>,
    table: Vec<Entry<K>>,
    /// First unused place of the table.
    free: u32,
    /// Tick that was handled last.
    tick: u64,
    entries: usize,
}

struct Entry<K> {
    key: K,
    /// The next one in the same slot, or the next unused place.
    next: u32,
}

impl<K: Copy> TimerWheel<K> {
    /// A wheel whose time starts at `now_ms`.
    pub fn new(now_ms: u64) -> Self {
        Self {
            slots: vec![NONE; SLOTS].into(),
            table: Vec::new(),
            free: NONE,
            tick: now_ms / TICK_MS,
            entries: 0,
        }
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
        let slot = (tick % SLOTS as u64) as usize;
        let entry = Entry { key, next: self.slots[slot] };
        self.slots[slot] = match self.free {
            NONE => {
                self.table.push(entry);
                self.table.len() as u32 - 1
            }
            place => {
                self.free = self.table[place as usize].next;
                self.table[place as usize] = entry;
                place
            }
        };
        self.entries += 1;
        tick * TICK_MS
    }

    /// Moves time on and gives every entry that is due to `fire`.
    pub fn advance(&mut self, now_ms: u64, mut fire: impl FnMut(K)) {
        let target = now_ms / TICK_MS;
        // After a long stall every slot is due once; more turns would find them empty.
        let first = (self.tick + 1).max(target.saturating_sub(SLOTS as u64 - 1));
        for tick in first..=target {
            let slot = (tick % SLOTS as u64) as usize;
            let mut place = std::mem::replace(&mut self.slots[slot], NONE);
            while place != NONE {
                let entry = &mut self.table[place as usize];
                let next = std::mem::replace(&mut entry.next, self.free);
                self.free = place;
                self.entries -= 1;
                fire(entry.key);
                place = next;
            }
        }
        self.tick = self.tick.max(target);
        if self.entries == 0 {
            (self.table, self.free) = (Vec::new(), NONE);
        }
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

    /// Wherever entries go round, the table stays as large as the most there were.
    #[test]
    fn memory_follows_the_entries_and_not_the_slots() {
        let mut wheel = TimerWheel::new(0);
        for key in 0..1_000u32 {
            wheel.schedule(u64::from(key) * 7_919 % 100_000, key);
        }
        for turn in 1..5_000u64 {
            for key in fired(&mut wheel, turn * 100) {
                wheel.schedule(turn * 100 + u64::from(key) * turn % 100_000, key);
            }
            assert_eq!((wheel.len(), wheel.table.len()), (1_000, 1_000));
        }
        fired(&mut wheel, 10_000_000);
        assert_eq!((wheel.len(), wheel.table.capacity()), (0, 0));
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
