//! How much one peer is asked for at a time: a window that follows the link, and a rate limit.
//!
//! The window holds what keeps the link busy: measured rate × (2 × least latency + 120 ms). It can
//! double per measurement while the link delivers more, and it cannot run away into queues,
//! because the latency it uses is the least one seen, not the one that its own requests cause.

use super::geometry::BLOCK_BYTES;
use super::peer_wire::REQUEST_BYTES_MAX;

/// Smallest window: 250 ms at 2 Mbit/s. Many flows share a narrow link evenly, and without losses, when
/// each has no more than this on its way.
pub const WINDOW_BYTES_MIN: u64 = 64 * 1024;

/// First window: what a connection of 10 ms carries at 800 Mbit/s.
pub const WINDOW_BYTES_START: u64 = 1024 * 1024;

/// First window of a link that is one of many.
pub const WINDOW_BYTES_SHARED: u64 = 128 * 1024;

/// Largest window: 10 Gbit/s over 6 ms. Also bounds what waits to be written.
pub const WINDOW_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Time over which a rate is measured.
const SLICE_MS: u64 = 50;

/// Data that is kept ahead of the link beside its own delay.
const AHEAD_MS: u64 = 120;

/// What a request for blocks that are still on their way to the peer may take of the link, in
/// microseconds: a hop costs this, or one block where a block takes longer.
const RELAY_US: u64 = 1_000;

const _: () = assert!(WINDOW_BYTES_MAX / REQUEST_BYTES_MAX as u64 <= 256, "REQUESTS_MAX of a link");

/// Bytes to keep requested from one peer.
#[derive(Debug, Clone)]
pub struct Window {
    bytes: u64,
    least_latency_ms: u64,
    slice_start_ms: u64,
    slice_bytes: u64,
    bytes_per_s: u64,
}

impl Window {
    /// A window for a link that starts now.
    pub fn new(now_ms: u64) -> Self {
        Self {
            bytes: WINDOW_BYTES_START,
            least_latency_ms: u64::MAX,
            slice_start_ms: now_ms,
            slice_bytes: 0,
            bytes_per_s: 0,
        }
    }

    /// A window for one of many links that share this host's: it starts smaller.
    pub fn shared(now_ms: u64) -> Self {
        Self { bytes: WINDOW_BYTES_SHARED, ..Self::new(now_ms) }
    }

    /// The rate of the last slice that was measured; 0 before the first.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// Bytes that may be in flight.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Size of one request: an eighth of the window, in whole blocks, so that slow links are asked
    /// in small steps and fast ones with few messages.
    pub fn request_bytes(&self) -> u32 {
        let eighth = (self.bytes / 8).min(u64::from(REQUEST_BYTES_MAX)) as u32;
        (eighth / BLOCK_BYTES).max(1) * BLOCK_BYTES
    }

    /// Size of a request for blocks that the peer is about to get itself, and answers when it has
    /// all of them: about a millisecond of the link, so that a hop costs little more than one block.
    pub fn relay_bytes(&self) -> u32 {
        let part = (self.bytes_per_s * RELAY_US / 1_000_000).min(u64::from(REQUEST_BYTES_MAX));
        (part as u32 / BLOCK_BYTES).max(1) * BLOCK_BYTES
    }

    /// Time in which what is in flight should come: less the window is not made for.
    pub fn hold_ms(&self) -> u64 {
        match self.least_latency_ms {
            u64::MAX => AHEAD_MS,
            least => 2 * least + AHEAD_MS,
        }
    }

    /// A request was answered after `latency_ms`.
    pub fn latency(&mut self, latency_ms: u64) {
        self.least_latency_ms = self.least_latency_ms.min(latency_ms);
    }

    /// `len` bytes arrived.
    pub fn arrived(&mut self, len: u64, now_ms: u64) {
        self.slice_bytes += len;
        let elapsed_ms = now_ms.saturating_sub(self.slice_start_ms);
        if elapsed_ms < SLICE_MS || self.least_latency_ms == u64::MAX {
            return;
        }
        // A slice that was idle for long says nothing about the link.
        if elapsed_ms < 20 * SLICE_MS {
            let aim = self.slice_bytes.saturating_mul(self.hold_ms()) / elapsed_ms;
            // Falls by halves at most, so that one late slice does not starve the link.
            let aim = aim.max(self.bytes / 2).min(self.bytes * 2);
            self.bytes = aim.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
            self.bytes_per_s = self.slice_bytes.saturating_mul(1000) / elapsed_ms;
        }
        self.slice_start_ms = now_ms;
        self.slice_bytes = 0;
    }
}

/// A rate limit: a bucket that holds 100 ms of the rate, at least one block.
#[derive(Debug, Clone)]
pub struct RateLimit {
    bytes_per_s: u64,
    /// Thousandths of a byte, so that whole milliseconds lose nothing.
    millibytes: u64,
    filled_ms: u64,
}

impl RateLimit {
    /// A limit of `bytes_per_s`, which must not be 0, with an empty bucket.
    pub fn new(bytes_per_s: u64, now_ms: u64) -> Self {
        // A terabyte per second is no limit and keeps the arithmetic in bounds.
        let bytes_per_s = bytes_per_s.clamp(1, 1 << 40);
        Self { bytes_per_s, millibytes: 0, filled_ms: now_ms }
    }

    fn capacity(&self) -> u64 {
        (self.bytes_per_s / 10).max(u64::from(BLOCK_BYTES)) * 1000
    }

    /// Bytes that may go now.
    pub fn available(&mut self, now_ms: u64) -> u64 {
        let elapsed_ms = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = self.filled_ms.max(now_ms);
        let gain = elapsed_ms.saturating_mul(self.bytes_per_s);
        self.millibytes = self.millibytes.saturating_add(gain).min(self.capacity());
        self.millibytes / 1000
    }

    /// Takes `len` bytes, which [`RateLimit::available`] allowed.
    pub fn take(&mut self, len: u64) {
        self.millibytes = self.millibytes.saturating_sub(len * 1000);
    }

    /// When `len` bytes (at most a block) may go.
    pub fn ready_at(&self, len: u64) -> u64 {
        let lacking = (len * 1000).saturating_sub(self.millibytes);
        self.filled_ms + lacking.div_ceil(self.bytes_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_settles_above_the_delay_product() {
        // 100 Mbit/s with 20 ms: 12.5 MB/s * 160 ms = 2 MB.
        let mut window = Window::new(0);
        window.latency(20);
        for now_ms in 1..5_000 {
            let rate = (window.bytes() / 21).min(12_500);
            window.arrived(rate, now_ms);
        }
        assert!((1_950_000..2_050_000).contains(&window.bytes()), "{}", window.bytes());
        assert_eq!(window.request_bytes() % BLOCK_BYTES, 0);
    }

    #[test]
    fn the_window_keeps_its_bounds() {
        let mut window = Window::new(0);
        window.latency(0);
        (1..100).for_each(|step| window.arrived(100 << 20, step * 50));
        assert_eq!((window.bytes(), window.request_bytes()), (WINDOW_BYTES_MAX, REQUEST_BYTES_MAX));
        assert_eq!(window.relay_bytes(), REQUEST_BYTES_MAX);
        (100..200).for_each(|step| window.arrived(1, step * 50));
        assert_eq!((window.bytes(), window.request_bytes()), (WINDOW_BYTES_MIN, BLOCK_BYTES));
        assert_eq!(window.relay_bytes(), BLOCK_BYTES);
        // 1 Gbit/s for a millisecond, in whole blocks, however large the window is.
        (200..300).for_each(|step| window.arrived(6_250_000, step * 50));
        assert_eq!(window.relay_bytes(), 7 * BLOCK_BYTES);
    }

    #[test]
    fn the_limit_holds_over_ten_seconds() {
        for rate in [10_000, 1_000_000, 300_000_000] {
            let (mut limit, mut sent) = (RateLimit::new(rate, 5), 0);
            for now_ms in 5..10_005 {
                while limit.available(now_ms) >= u64::from(BLOCK_BYTES) {
                    limit.take(u64::from(BLOCK_BYTES));
                    sent += u64::from(BLOCK_BYTES);
                }
            }
            let slack = rate / 1000 + u64::from(BLOCK_BYTES);
            assert!(sent <= 10 * rate && sent + slack >= 10 * rate, "{sent} at {rate}");
        }
    }

    #[test]
    fn ready_at_is_when_available_allows() {
        let mut limit = RateLimit::new(16_384, 0);
        let at = limit.ready_at(16_384);
        assert_eq!(at, 1_000);
        assert!(limit.available(at - 1) < 16_384);
        assert_eq!(limit.available(at), 16_384);
    }
}
