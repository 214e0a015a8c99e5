//! When to try again: decorrelated jitter, so that a fleet that lost its server together does not
//! come back together.
//!
//! The next delay is drawn evenly from `base ..= 3 × previous`, capped ("Exponential Backoff And
//! Jitter", AWS Architecture Blog, 2015). The caller brings the randomness.

/// Delays between attempts, in milliseconds.
#[derive(Debug, Clone)]
pub struct Backoff {
    base_ms: u64,
    max_ms: u64,
    previous_ms: u64,
}

impl Backoff {
    /// Delays between `base_ms` (at least 1) and `max_ms`.
    pub fn new(base_ms: u64, max_ms: u64) -> Self {
        let base_ms = base_ms.max(1);
        Self { base_ms, max_ms: max_ms.max(base_ms), previous_ms: base_ms }
    }

    /// The delay before the next attempt; `random` is any 64 random bits.
    pub fn next_delay(&mut self, random: u64) -> u64 {
        let span = self.previous_ms.saturating_mul(3).min(self.max_ms) - self.base_ms + 1;
        self.previous_ms = self.base_ms + random % span;
        self.previous_ms
    }

    /// After a success the next failure starts from the base again.
    pub fn reset(&mut self) {
        self.previous_ms = self.base_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_stay_between_base_and_maximum(
            base in 0u64..10_000, max in 0u64..100_000, draws in prop::collection::vec(any::<u64>(), 1..50)
        ) {
            let mut backoff = Backoff::new(base, max);
            for random in draws {
                let delay = backoff.next_delay(random);
                prop_assert!(delay >= base.max(1) && delay <= max.max(base.max(1)));
            }
        }
    }

    #[test]
    fn reset_returns_to_the_base() {
        let mut backoff = Backoff::new(100, 60_000);
        for _ in 0..20 {
            backoff.next_delay(u64::MAX);
        }
        backoff.reset();
        assert!(backoff.next_delay(u64::MAX) <= 300);
    }
}
