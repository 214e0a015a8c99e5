//! How fast one host is: what it verified, over the last few seconds of this server's clock.
//!
//! ```text
//!   base ──────── mid ──────── now        the rate is taken from base to now
//!    └── 2.5 to 5 s ──────────┘           and falls by itself when nothing comes
//! ```

/// The rate is taken over this time, or twice this time.
const HALF_WINDOW_MS: i64 = 2_500;
/// Shorter than this nothing is said.
const MEASURED_MS_MIN: i64 = 500;
/// A host that gained nothing for this long stands still.
const STILL_MS: i64 = 10_000;

/// What a host has verified and when; counts are of its present run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    base: Sample,
    mid: Sample,
    bytes: u64,
    from_peers: u64,
    gained_ms: i64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    at_ms: i64,
    bytes: u64,
}

/// What a report has added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gained {
    /// Verified bytes that came over the network.
    pub bytes: u64,
    /// Of those, from other hosts.
    pub from_peers: u64,
}

impl Meter {
    /// Takes what a run of the host has verified so far, without what it found on its disk. A
    /// number below the one before is of a new run.
    pub fn note(&mut self, bytes: u64, from_peers: u64, now_ms: i64) -> Gained {
        let sample = Sample { at_ms: now_ms, bytes };
        let is_new = self.base.at_ms == 0 || bytes < self.bytes;
        if is_new {
            *self = Self { base: sample, mid: sample, gained_ms: now_ms, ..Self::default() };
        } else if now_ms - self.mid.at_ms >= HALF_WINDOW_MS {
            (self.base, self.mid) = (self.mid, sample);
        }
        let gained = Gained {
            bytes: bytes - self.bytes,
            from_peers: from_peers.saturating_sub(self.from_peers),
        };
        if gained.bytes > 0 {
            self.gained_ms = now_ms;
        }
        (self.bytes, self.from_peers) = (bytes, from_peers);
        gained
    }

    /// Bytes per second; `None` while it is not measured, 0 when the host stands still.
    pub fn bytes_per_s(&self, now_ms: i64) -> Option<u64> {
        let elapsed_ms = now_ms - self.base.at_ms;
        if self.base.at_ms == 0 || elapsed_ms < MEASURED_MS_MIN {
            return None;
        }
        if now_ms - self.gained_ms > STILL_MS {
            return Some(0);
        }
        let gained = self.bytes - self.base.bytes;
        // Nothing yet is no measurement: connections are being made.
        (gained > 0).then(|| (gained as f64 * 1_000.0 / elapsed_ms as f64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_known_after_half_a_second_and_follows_the_host() {
        let mut meter = Meter::default();
        assert_eq!(meter.bytes_per_s(1_000), None);
        meter.note(0, 0, 1_000);
        assert_eq!(meter.bytes_per_s(1_499), None);
        assert_eq!(meter.bytes_per_s(1_500), None, "nothing came yet");
        for step in 1..=20 {
            meter.note(step * 500, 0, 1_000 + step as i64 * 500);
        }
        assert_eq!(meter.bytes_per_s(11_000), Some(1_000));
        // Ten times as fast: after two windows nothing of the past is left.
        for step in 1..=12 {
            meter.note(10_000 + step * 5_000, 0, 11_000 + step as i64 * 500);
        }
        assert_eq!(meter.bytes_per_s(17_000), Some(10_000));
    }

    #[test]
    fn a_host_that_stands_still_has_no_rate_left() {
        let mut meter = Meter::default();
        meter.note(0, 0, 1_000);
        meter.note(10_000, 0, 2_000);
        assert_eq!(meter.bytes_per_s(6_000), Some(2_000), "it falls while nothing comes");
        meter.note(10_000, 0, 11_000);
        assert_eq!(meter.bytes_per_s(12_001), Some(0));
        // One that never got anything as well.
        let mut silent = Meter::default();
        silent.note(0, 0, 1_000);
        assert_eq!(silent.bytes_per_s(11_001), Some(0));
    }

    #[test]
    fn what_is_gained_is_counted_once_over_restarts() {
        let mut meter = Meter::default();
        assert_eq!(meter.note(5, 3, 1), Gained { bytes: 5, from_peers: 3 });
        assert_eq!(meter.note(5, 3, 2), Gained::default());
        assert_eq!(meter.note(9, 4, 3), Gained { bytes: 4, from_peers: 1 });
        // The agent began anew; what it had is on its disk.
        assert_eq!(meter.note(2, 2, 4), Gained { bytes: 2, from_peers: 2 });
    }
}
