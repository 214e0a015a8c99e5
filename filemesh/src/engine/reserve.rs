//! Space and turns of concurrent transfers: what was promised and is not used yet.
//!
//! Two transfers that each find 10 GiB free do not both find 10 GiB: between the question and the
//! allocation, and on file systems that cannot allocate up front for as long as a transfer runs,
//! the first one's claim must count against the second. [`Reservations`] is that account, one per
//! file system; it asks nobody anything, the caller says what is free. It also bounds how many
//! transfers run at a time, so that each has its share of memory.
//!
//! ```text
//!   free (as the file system says)  │ kept │ promised to others, not written yet │ left to promise │
//! ```

use std::collections::BTreeMap;

/// A promise; give it back with [`Reservations::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Why nothing was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// All turns are taken: wait for one.
    #[error("{running} transfers are running, and no more may")]
    Busy {
        /// Transfers that run.
        running: usize,
    },
    /// There is no room even without others.
    #[error(
        "{needed_bytes} bytes do not fit: {free_bytes} are free and {kept_bytes} must stay free"
    )]
    NoSpace {
        /// Bytes that were asked for.
        needed_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
        /// Bytes that must stay free.
        kept_bytes: u64,
    },
    /// There would be room if others had not been promised it: wait until they end, for they may
    /// fail.
    #[error(
        "{needed_bytes} bytes do not fit beside {promised_bytes} that other transfers will use"
    )]
    Promised {
        /// Bytes that were asked for.
        needed_bytes: u64,
        /// Bytes that others were promised and have not used.
        promised_bytes: u64,
    },
}

/// What a transfer will take of a file system, and what that has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The file system, as `stat` numbers it.
    pub device: u64,
    /// Bytes that the transfer still has to allocate.
    pub needed_bytes: u64,
    /// Bytes that are free now.
    pub free_bytes: u64,
    /// Bytes that must stay free.
    pub kept_bytes: u64,
}

/// A transfer's promise.
#[derive(Debug)]
struct Promise {
    /// The file system, as `stat` numbers it.
    device: u64,
    /// Bytes that it will still allocate.
    open_bytes: u64,
}

/// What was promised to transfers that run.
#[derive(Debug)]
pub struct Reservations {
    running_max: usize,
    next: u64,
    promises: BTreeMap<Ticket, Promise>,
}

impl Reservations {
    /// An account that lets `running_max` transfers run at a time, at least one.
    pub fn new(running_max: usize) -> Self {
        Self { running_max: running_max.max(1), next: 0, promises: BTreeMap::new() }
    }

    /// Promises `needed_bytes` on `device`, of which `free_bytes` are free now and `kept_bytes` must
    /// stay so, and a turn.
    pub fn reserve(
        &mut self,
        device: u64,
        needed_bytes: u64,
        free_bytes: u64,
        kept_bytes: u64,
    ) -> Result<Ticket, ReserveError> {
        let running = self.promises.len();
        if running >= self.running_max {
            return Err(ReserveError::Busy { running });
        }
        let room = free_bytes.saturating_sub(kept_bytes);
        if needed_bytes > room {
            return Err(ReserveError::NoSpace { needed_bytes, free_bytes, kept_bytes });
        }
        let promised_bytes = self.promised_bytes(device);
        // A file of no bytes needs no room, whatever others will use.
        if needed_bytes > 0 && needed_bytes > room.saturating_sub(promised_bytes) {
            return Err(ReserveError::Promised { needed_bytes, promised_bytes });
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.promises.insert(ticket, Promise { device, open_bytes: needed_bytes });
        Ok(ticket)
    }

    /// `bytes` of a promise are allocated: the file system itself counts them from now on.
    pub fn used(&mut self, ticket: Ticket, bytes: u64) {
        if let Some(promise) = self.promises.get_mut(&ticket) {
            promise.open_bytes = promise.open_bytes.saturating_sub(bytes);
        }
    }

    /// The transfer is over: its turn and what it did not use are free.
    pub fn release(&mut self, ticket: Ticket) {
        self.promises.remove(&ticket);
    }

    /// Bytes that transfers on `device` were promised and have not allocated.
    pub fn promised_bytes(&self, device: u64) -> u64 {
        let promises = self.promises.values().filter(|promise| promise.device == device);
        promises.fold(0, |sum, promise| sum.saturating_add(promise.open_bytes))
    }

    /// Transfers that run.
    pub fn running(&self) -> usize {
        self.promises.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_one_was_promised_the_other_does_not_get() {
        let mut account = Reservations::new(8);
        let first = account.reserve(1, 6 * GIB, 10 * GIB, GIB).unwrap();
        let refused = ReserveError::Promised { needed_bytes: 4 * GIB, promised_bytes: 6 * GIB };
        assert_eq!(account.reserve(1, 4 * GIB, 10 * GIB, GIB), Err(refused));
        let other_disk = account.reserve(2, 4 * GIB, 5 * GIB, GIB).unwrap();
        let second = account.reserve(1, 3 * GIB, 10 * GIB, GIB).unwrap();
        // Once allocated it is missing from what is free, and counts there alone.
        account.used(first, 6 * GIB);
        assert_eq!(account.promised_bytes(1), 3 * GIB);
        assert!(account.reserve(1, 1, 4 * GIB, GIB).is_err());
        account.release(second);
        assert!(account.reserve(1, 3 * GIB, 4 * GIB, GIB).is_ok());
        account.release(other_disk);
        account.release(other_disk);
        assert_eq!((account.running(), account.promised_bytes(2)), (2, 0));
    }

    #[test]
    fn reasons_tell_waiting_from_giving_up() {
        let mut account = Reservations::new(2);
        let none = ReserveError::NoSpace { needed_bytes: 5, free_bytes: 9, kept_bytes: 5 };
        assert_eq!(account.reserve(1, 5, 9, 5), Err(none));
        account.reserve(1, 4, 9, 5).unwrap();
        let empty = account.reserve(1, 0, 0, 5).unwrap();
        assert_eq!(account.reserve(1, 0, 9, 0), Err(ReserveError::Busy { running: 2 }));
        account.release(empty);
        let refused = ReserveError::Promised { needed_bytes: u64::MAX, promised_bytes: 4 };
        assert_eq!(account.reserve(1, u64::MAX, u64::MAX, 0), Err(refused));
        account.used(Ticket(99), 1);
    }

    proptest! {
        /// A disk that only these transfers use is never promised twice.
        #[test]
        fn promises_can_be_kept(
            steps in proptest::collection::vec((0u8..4, 0usize..8, 0u64..60), 0..200),
        ) {
            let (mut account, mut free) = (Reservations::new(5), 100u64);
            let mut open: Vec<(Ticket, u64)> = vec![];
            for (step, which, bytes) in steps {
                match step {
                    0 | 1 => if let Ok(ticket) = account.reserve(7, bytes, free, 10) {
                        open.push((ticket, bytes));
                    },
                    2 if !open.is_empty() => {
                        let at = which % open.len();
                        let (ticket, left) = &mut open[at];
                        let now = bytes.min(*left);
                        prop_assert!(free >= now + 10, "the promise was kept");
                        free -= now;
                        *left -= now;
                        account.used(*ticket, now);
                    }
                    3 if !open.is_empty() => {
                        let (ticket, left) = open.swap_remove(which % open.len());
                        account.release(ticket);
                        // What was written may be deleted with a transfer that failed.
                        free = (free + bytes % 3).min(100);
                        let _ = left;
                    }
                    _ => {}
                }
                prop_assert!(account.running() <= 5);
                prop_assert_eq!(account.promised_bytes(7), open.iter().map(|(_, left)| left).sum());
            }
        }
    }
}
