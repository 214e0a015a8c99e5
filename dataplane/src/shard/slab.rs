//! Slots with generations: a key that outlived its session finds nothing, never a stranger.

/// Names a session of one shard: slot and generation.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ConnKey(pub u64);

impl ConnKey {
    fn new(slot: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | slot as u64)
    }

    /// The slot; at most the number of sessions that ever lived at once.
    pub fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

enum Slot<T> {
    /// Generation that the next owner gets, and the next free slot.
    Free(u32, Option<usize>),
    Used(u32, T),
}

/// A slab of at most `limit` values.
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Option<usize>,
    used: usize,
    limit: usize,
}

impl<T> Slab<T> {
    /// An empty slab.
    pub fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), free: None, used: 0, limit: limit.min(u32::MAX as usize) }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Puts a value in; gives it back when the slab is full.
    pub fn insert(&mut self, value: T) -> Result<ConnKey, T> {
        let (slot, generation) = match self.free {
            Some(slot) => {
                let Slot::Free(generation, next) = self.slots[slot] else {
                    unreachable!("the free list holds free slots only");
                };
                self.free = next;
                (slot, generation)
            }
            None if self.slots.len() < self.limit => {
                self.slots.push(Slot::Free(1, None));
                (self.slots.len() - 1, 1)
            }
            None => return Err(value),
        };
        self.slots[slot] = Slot::Used(generation, value);
        self.used += 1;
        Ok(ConnKey::new(slot, generation))
    }

    /// The value of a key that still lives.
    pub fn get(&self, key: ConnKey) -> Option<&T> {
        match self.slots.get(key.slot()) {
            Some(Slot::Used(generation, value)) if *generation == key.generation() => Some(value),
            _ => None,
        }
    }

    /// The value of a key that still lives.
    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut T> {
        match self.slots.get_mut(key.slot()) {
            Some(Slot::Used(generation, value)) if *generation == key.generation() => Some(value),
            _ => None,
        }
    }

    /// Takes a value out; its key never finds anything again.
    pub fn remove(&mut self, key: ConnKey) -> Option<T> {
        self.get(key)?;
        let free = Slot::Free(key.generation().wrapping_add(1), self.free);
        let Slot::Used(_, value) = std::mem::replace(&mut self.slots[key.slot()], free) else {
            unreachable!("get has just found it");
        };
        self.free = Some(key.slot());
        self.used -= 1;
        Some(value)
    }

    /// All values with their keys.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ConnKey, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(slot, entry)| match entry {
            Slot::Used(generation, value) => Some((ConnKey::new(slot, *generation), value)),
            Slot::Free(..) => None,
        })
    }

    /// All keys.
    pub fn keys(&self) -> Vec<ConnKey> {
        let key = |(slot, entry): (usize, &Slot<T>)| match entry {
            Slot::Used(generation, _) => Some(ConnKey::new(slot, *generation)),
            Slot::Free(..) => None,
        };
        self.slots.iter().enumerate().filter_map(key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn an_old_key_finds_nothing() {
        let mut slab = Slab::new(1);
        let first = slab.insert("a").unwrap();
        assert_eq!(slab.insert("b"), Err("b"));
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("c").unwrap();
        assert_eq!(first.slot(), second.slot());
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&"c")));
        assert_eq!(slab.remove(first), None);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((any::<bool>(), any::<u16>()), 0..300)) {
            let mut slab = Slab::new(64);
            let mut model: HashMap<u64, u16> = HashMap::new();
            let mut keys = Vec::new();
            for (insert, value) in steps {
                if insert {
                    match slab.insert(value) {
                        Ok(key) => {
                            prop_assert!(model.insert(key.0, value).is_none());
                            keys.push(key);
                        }
                        Err(_) => prop_assert_eq!(model.len(), 64),
                    }
                } else if !keys.is_empty() {
                    let key = keys[value as usize % keys.len()];
                    prop_assert_eq!(slab.remove(key), model.remove(&key.0));
                }
                prop_assert_eq!(slab.len(), model.len());
                prop_assert_eq!(slab.keys().len(), model.len());
            }
        }
    }
}
