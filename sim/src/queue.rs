//! Virtual time: what happens next, in an order that never depends on anything but the program.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Virtual time since the start, in nanoseconds: a 16 KiB block lasts 13 µs at 10 Gbit/s, so that
/// whole microseconds would be off by several per cent.
pub type Nanos = u64;

/// Nanoseconds of a second.
pub const SECOND: Nanos = 1_000_000_000;

/// Nanoseconds of a millisecond.
pub const MILLISECOND: Nanos = 1_000_000;

struct Entry<T> {
    at: Nanos,
    number: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Events by time; those of one instant in the order in which they were added.
pub struct EventQueue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    added: u64,
}

impl<T> Default for EventQueue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), added: 0 }
    }
}

impl<T> EventQueue<T> {
    /// Adds an event.
    pub fn push(&mut self, at: Nanos, what: T) {
        self.heap.push(Reverse(Entry { at, number: self.added, what }));
        self.added += 1;
    }

    /// When the next event is.
    pub fn next_at(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// The next event that is due at `now`.
    pub fn pop_due(&mut self, now: Nanos) -> Option<T> {
        if self.next_at()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.what)
    }
}

const ABSENT: u32 = u32::MAX;

/// One time per number (of a flow, a host), which may be moved; ties go by number.
#[derive(Default)]
pub struct Alarms {
    heap: Vec<(Nanos, u32)>,
    place: Vec<u32>,
}

impl Alarms {
    /// Sets or clears the time of `id`.
    pub fn set(&mut self, id: u32, at: Option<Nanos>) {
        if self.place.len() <= id as usize {
            self.place.resize(id as usize + 1, ABSENT);
        }
        let place = self.place[id as usize];
        match (place, at) {
            (ABSENT, None) => {}
            (ABSENT, Some(at)) => {
                self.heap.push((at, id));
                self.place[id as usize] = (self.heap.len() - 1) as u32;
                self.rise(self.heap.len() - 1);
            }
            (place, Some(at)) => {
                self.heap[place as usize].0 = at;
                self.restore(place as usize);
            }
            (place, None) => {
                self.heap.swap_remove(place as usize);
                self.place[id as usize] = ABSENT;
                if let Some((_, moved)) = self.heap.get(place as usize) {
                    self.place[*moved as usize] = place;
                    self.restore(place as usize);
                }
            }
        }
    }

    /// When the next one is.
    pub fn next_at(&self) -> Option<Nanos> {
        self.heap.first().map(|(at, _)| *at)
    }

    /// Takes the next one that is due at `now`.
    pub fn pop_due(&mut self, now: Nanos) -> Option<u32> {
        let (at, id) = *self.heap.first()?;
        (at <= now).then(|| {
            self.set(id, None);
            id
        })
    }

    fn restore(&mut self, at: usize) {
        let at = self.rise(at);
        self.sink(at);
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.place[self.heap[a].1 as usize] = a as u32;
        self.place[self.heap[b].1 as usize] = b as u32;
    }

    fn rise(&mut self, mut at: usize) -> usize {
        while at > 0 && self.heap[at] < self.heap[(at - 1) / 2] {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        at
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let below = 2 * at + 1..(2 * at + 3).min(self.heap.len());
            let Some(least) = below.min_by_key(|child| self.heap[*child]) else { return };
            if self.heap[at] <= self.heap[least] {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use std::collections::BTreeMap;

    #[test]
    fn events_of_one_instant_keep_their_order() {
        let mut queue = EventQueue::default();
        for (at, what) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b')] {
            queue.push(at, what);
        }
        assert_eq!(queue.pop_due(2), None);
        let order: String = std::iter::from_fn(|| queue.pop_due(9)).collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn alarms_agree_with_a_sorted_map() {
        let (mut random, mut alarms) = (Random::new(1), Alarms::default());
        let mut model: BTreeMap<u32, Nanos> = BTreeMap::new();
        for step in 0..20_000 {
            let (id, at) = (random.below(50) as u32, random.below(1000));
            match random.below(3) {
                0 => {
                    model.remove(&id);
                    alarms.set(id, None);
                }
                1 => {
                    model.insert(id, at);
                    alarms.set(id, Some(at));
                }
                _ => {
                    let first = model.iter().map(|(id, at)| (*at, *id)).min();
                    let due = first.filter(|(when, _)| *when <= at).map(|(_, id)| id);
                    assert_eq!(alarms.pop_due(at), due, "step {step}");
                    due.map(|id| model.remove(&id));
                }
            }
            assert_eq!(alarms.next_at(), model.values().min().copied());
        }
    }
}
