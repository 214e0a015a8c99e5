//! When a channel is dialled again: decorrelated jitter, unless the server gave this agent a slot
//! of its own, which is then kept exactly.

use std::time::Duration;

use skein_wire::backoff::Backoff;

use super::LinkError;
use crate::clock;

const BASE_MS: u64 = 500;
/// A server that was away for hours gets its agents back within a minute.
const MAX_MS: u64 = 30_000;
/// No server may send an agent away for longer than this.
const SLOT_MS_MAX: u64 = 600_000;
/// A duplicate identity, a revoked one or a version that nobody speaks is for people to repair.
const PATIENT_MS: (u64, u64) = (5_000, 120_000);

/// The waits of one channel between its attempts.
#[derive(Debug)]
pub struct Redial {
    quick: Backoff,
    patient: Backoff,
}

impl Default for Redial {
    fn default() -> Redial {
        Redial {
            quick: Backoff::new(BASE_MS, MAX_MS),
            patient: Backoff::new(PATIENT_MS.0, PATIENT_MS.1),
        }
    }
}

impl Redial {
    /// How long to wait after `error`.
    pub fn after(&mut self, error: &LinkError) -> Duration {
        let delay = match (error.slot_ms(), error.needs_people()) {
            (Some(slot), _) => slot.min(SLOT_MS_MAX),
            (None, true) => self.patient.next_delay(clock::jitter()),
            (None, false) => self.quick.next_delay(clock::jitter()),
        };
        Duration::from_millis(delay)
    }

    /// How long to wait after a session ended in good order; `slot_ms` is what the server's GoAway
    /// said, 0 when it said nothing.
    pub fn after_session(&mut self, slot_ms: u32) -> Duration {
        let delay = match slot_ms {
            0 => self.quick.next_delay(clock::jitter()),
            slot => u64::from(slot).min(SLOT_MS_MAX),
        };
        Duration::from_millis(delay)
    }

    /// The session lived long enough to count as a success.
    pub fn reset(&mut self) {
        self.quick.reset();
        self.patient.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_wire::hello::HelloStatus;

    #[test]
    fn a_slot_is_kept_and_bounded() {
        let mut redial = Redial::default();
        let refused = |retry_after_ms| LinkError::Refused {
            status: HelloStatus::RetryLater,
            retry_after_ms,
            server: "s".into(),
        };
        assert_eq!(redial.after(&refused(1234)), Duration::from_millis(1234));
        assert_eq!(redial.after(&refused(u32::MAX)), Duration::from_millis(SLOT_MS_MAX));
        assert_eq!(redial.after_session(77), Duration::from_millis(77));
        assert!(redial.after(&refused(0)) <= Duration::from_millis(MAX_MS));
    }

    #[test]
    fn a_second_holder_of_the_identity_waits_patiently() {
        let mut redial = Redial::default();
        let error = LinkError::Refused {
            status: HelloStatus::IdentityInUse,
            retry_after_ms: 0,
            server: "s".into(),
        };
        assert!(redial.after(&error) >= Duration::from_millis(PATIENT_MS.0));
    }
}
