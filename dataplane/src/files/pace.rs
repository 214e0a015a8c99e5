//! The rate at which one transfer is served to all of its members together, over all shards.
//!
//! Sessions draw from one account that fills with time. Who finds it empty waits in its shard's
//! line and looks again at the next tick, in turn, so that no session needs a timer of its own.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What the account holds at most: shards look at it every 128 ms, and a late tick loses nothing.
const BURST_US: u64 = 512_000;

/// A rate that sessions share.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    born: Instant,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// Below zero: a request was answered whole, and is paid for before the next.
    credit_bytes: i64,
    /// Filled up to this time, microseconds since `born`.
    filled_us: u64,
}

impl Pace {
    /// A rate, bytes per second, from 1 to 2^40.
    pub fn new(bytes_per_s: u64) -> Self {
        let bytes_per_s = bytes_per_s.clamp(1, 1 << 40);
        Self { bytes_per_s, born: Instant::now(), account: Mutex::default() }
    }

    /// The rate.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// Whether a session may send now. The caller then says how much that was.
    pub fn is_free(&self) -> bool {
        self.is_free_at(self.now_us())
    }

    /// So much was sent.
    pub fn sent(&self, bytes: u32) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.credit_bytes -= i64::from(bytes);
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn is_free_at(&self, now_us: u64) -> bool {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes_in = |us: u64| (u128::from(us) * u128::from(self.bytes_per_s) / 1_000_000) as i64;
        let most = bytes_in(BURST_US).max(1);
        let passed_us = now_us.saturating_sub(account.filled_us);
        let gained = bytes_in(passed_us.min(i64::MAX as u64 >> 41));
        // What is less than a byte is not lost: it stays in the time that is not counted yet.
        if gained > 0 {
            account.credit_bytes = (account.credit_bytes.saturating_add(gained)).min(most);
            account.filled_us = now_us;
        }
        account.credit_bytes > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What sessions that send `request` whenever they may got until `until_us`. They look every
    /// 128 ms, those that got something behind the others, as a shard lets them.
    fn sent(pace: &Pace, sessions: usize, request: u32, until_us: u64) -> Vec<u64> {
        let mut line: std::collections::VecDeque<usize> = (0..sessions).collect();
        let mut sent = vec![0; sessions];
        for now_us in (0..until_us).step_by(128_000) {
            while pace.is_free_at(now_us) {
                let session = line.pop_front().unwrap();
                pace.sent(request);
                sent[session] += u64::from(request);
                line.push_back(session);
            }
        }
        sent
    }

    #[test]
    fn all_sessions_together_keep_the_rate_and_share_it() {
        for (sessions, request) in [(1, 262_144), (7, 16_384), (40, 262_144)] {
            let pace = Pace::new(10_000_000);
            let sent = sent(&pace, sessions, request, 20_000_000);
            let all: u64 = sent.iter().sum();
            let (low, high) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
            assert!(all <= 200_000_000 + u64::from(request), "{sessions}: {all}");
            assert!(all >= 198_000_000 - u64::from(request), "{sessions}: {all}");
            assert!(high - low <= u64::from(request), "{low} to {high}");
        }
    }

    #[test]
    fn a_pause_earns_half_a_second_and_slow_rates_lose_nothing() {
        let pace = Pace::new(1_000_000);
        assert!(pace.is_free_at(60_000_000));
        pace.sent(512_000);
        assert!(!pace.is_free_at(60_000_000), "a minute of silence is not caught up with");
        let slow = Pace::new(10);
        assert!((0..99).all(|ms| !slow.is_free_at(ms * 1_000)), "less than a byte");
        assert!(slow.is_free_at(100_000));
        slow.sent(1);
        assert!(!slow.is_free_at(100_000));
    }
}
