//! The rate at which one transfer is served to all of its members together, over all shards.
//!
//! Sessions book chunks one after the other; each chunk has its time, so that every session gets
//! its turn and wakes once for it, however many there are.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Smallest and largest chunk, bytes.
const CHUNK_BYTES: (u64, u64) = (16 * 1024, 256 * 1024);
/// Chunks in a second, where that is within the bounds: a turn of many sessions stays short.
const CHUNKS_PER_S: u64 = 64;

/// A rate that sessions share.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    born: Instant,
    /// When the next chunk may go, microseconds since `born`.
    free_us: Mutex<u64>,
}

/// What one session may send of a [`Pace`], and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// Booked and not sent; below zero: sent and not booked.
    credit_bytes: i64,
    due_us: u64,
}

impl Pace {
    /// A rate, which must not be 0.
    pub fn new(bytes_per_s: u64) -> Self {
        let bytes_per_s = bytes_per_s.clamp(1, 1 << 40);
        Self { bytes_per_s, born: Instant::now(), free_us: Mutex::new(0) }
    }

    /// The rate.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// Milliseconds that a session has to wait before it sends more; 0: it may.
    pub fn wait_ms(&self, share: &mut Share) -> u64 {
        let now_us = u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.wait_us(share, now_us).div_ceil(1_000)
    }

    fn wait_us(&self, share: &mut Share, now_us: u64) -> u64 {
        if share.due_us > now_us {
            return share.due_us - now_us;
        }
        if share.credit_bytes <= 0 {
            let chunk = (self.bytes_per_s / CHUNKS_PER_S).clamp(CHUNK_BYTES.0, CHUNK_BYTES.1);
            // All of its debt at once: a request that was answered whole is paid for whole.
            let debt = share.credit_bytes.unsigned_abs();
            let bytes = debt + chunk;
            let mut free_us = self.free_us.lock().unwrap_or_else(PoisonError::into_inner);
            share.due_us = (*free_us).max(now_us) + debt * 1_000_000 / self.bytes_per_s;
            *free_us = (*free_us).max(now_us) + bytes * 1_000_000 / self.bytes_per_s;
            share.credit_bytes += bytes as i64;
        }
        share.due_us.saturating_sub(now_us)
    }
}

impl Share {
    /// So much was sent.
    pub fn sent(&mut self, bytes: u32) {
        self.credit_bytes -= i64::from(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions that send `request` whenever they may; what each got after `until_us`.
    fn sent(pace: &Pace, sessions: usize, request: u32, until_us: u64) -> Vec<u64> {
        let mut shares = vec![(Share::default(), 0u64); sessions];
        for now_us in (0..until_us).step_by(1_000) {
            for (share, bytes) in &mut shares {
                while pace.wait_us(share, now_us) == 0 {
                    share.sent(request);
                    *bytes += u64::from(request);
                }
            }
        }
        shares.into_iter().map(|(_, bytes)| bytes).collect()
    }

    #[test]
    fn all_sessions_together_keep_the_rate_and_share_it() {
        for (sessions, request) in [(1, 262_144), (7, 16_384), (40, 262_144)] {
            let pace = Pace::new(10_000_000);
            let sent = sent(&pace, sessions, request, 20_000_000);
            let all: u64 = sent.iter().sum();
            let (low, high) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
            // What was let go and what a second's rounding is.
            let slack = (sessions as u64 + 1) * (u64::from(request) + 262_144);
            assert!(all <= 200_000_000 + slack, "{sessions}: {all}");
            assert!(all >= 190_000_000 - slack, "{sessions}: {all}");
            assert!(high - low <= 3 * u64::from(request).max(262_144), "{low} to {high}");
        }
    }
}
