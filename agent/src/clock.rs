//! The agent's clocks: milliseconds since start for intervals, the host's wall clock for records,
//! and the server's clock, which deadlines of commands are in.
//!
//! The host's clock may be wrong by years and may jump. The server's is therefore kept as an offset
//! to the host's *monotonic* clock, learned from each HELLO_ACK and heartbeat answer.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since this process first asked; never goes back.
pub fn now_ms() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// The host's wall clock, milliseconds since 1970.
pub fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

/// 64 bits for jitter; not for secrets.
pub fn jitter() -> u64 {
    let mut bytes = [0; 8];
    random(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// Fills `bytes` from the system's generator.
pub fn random(bytes: &mut [u8]) {
    use ring::rand::SecureRandom;
    // ring falls back to /dev/urandom; a host that has neither cannot make keys or TLS either.
    if ring::rand::SystemRandom::new().fill(bytes).is_err() {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mixed = clock ^ u128::from(std::process::id()).rotate_left(64);
        bytes.iter_mut().zip(mixed.to_ne_bytes().iter().cycle()).for_each(|(to, from)| *to = *from);
    }
}

/// The server's clock as this agent knows it. Before the first answer it is the host's.
#[derive(Debug)]
pub struct ServerClock {
    /// Server time minus [`now_ms`]; `i64::MIN` until known.
    offset_ms: AtomicI64,
}

impl Default for ServerClock {
    fn default() -> ServerClock {
        ServerClock { offset_ms: AtomicI64::new(i64::MIN) }
    }
}

impl ServerClock {
    /// The server said that it was `server_time_ms`, in an answer to what was sent at `sent_ms`
    /// (of [`now_ms`]). Half of the round trip is assumed for the way back.
    pub fn learn(&self, server_time_ms: i64, sent_ms: u64) {
        let now = now_ms();
        let half_way = now.saturating_sub(sent_ms) / 2;
        let offset = server_time_ms.saturating_add(half_way as i64).saturating_sub(now as i64);
        self.offset_ms.store(offset, Ordering::Relaxed);
    }

    /// Server time now.
    pub fn now_ms(&self) -> i64 {
        match self.offset_ms.load(Ordering::Relaxed) {
            i64::MIN => wall_ms(),
            offset => (now_ms() as i64).saturating_add(offset),
        }
    }

    /// Server time minus the host's wall clock: what the journal keeps across restarts.
    pub fn skew_ms(&self) -> i64 {
        self.now_ms().saturating_sub(wall_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_clock_follows_what_was_learned() {
        let clock = ServerClock::default();
        assert!((clock.now_ms() - wall_ms()).abs() < 1000);
        clock.learn(5_000_000, now_ms());
        assert!((clock.now_ms() - 5_000_000).abs() < 1000);
        assert!(clock.skew_ms() < 0);
    }
}
