//! A bound on memory that many sessions share. Whoever needs memory reserves all of it before it
//! starts, so that what was begun can always be finished and nobody waits for each other.

/// Bytes that may be reserved, and how many are.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, used: 0 }
    }

    /// Takes `bytes`, or nothing.
    #[must_use]
    pub fn reserve(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.limit - self.used;
        if fits {
            self.used += bytes;
        }
        fits
    }

    /// Gives back what was reserved.
    pub fn release(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.used, "released more than was reserved");
        self.used = self.used.saturating_sub(bytes);
    }

    /// Bytes reserved now.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether so little is left that reads should be small.
    pub fn is_tight(&self) -> bool {
        self.used > self.limit / 4 * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserves_all_or_nothing() {
        let mut budget = Budget::new(100);
        assert!(budget.reserve(60) && !budget.reserve(41) && budget.reserve(40));
        assert!(budget.is_tight());
        budget.release(60);
        assert_eq!((budget.used(), budget.is_tight()), (40, false));
    }
}
