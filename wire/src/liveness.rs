//! Who is alive: heartbeats of an agent, and an observer that doubts itself.
//!
//! An observer that was itself stopped (SIGSTOP, a stalled disk, a paused machine) finds on waking
//! that everybody was silent. It must not declare them lost: the silence was its own. So all
//! deadlines here are in *observed* time, which goes on only while the observer looks: a step
//! longer than [`ObservedClock`]'s bound counts as that bound.

/// Time as an observer saw it, in milliseconds.
#[derive(Debug, Clone)]
pub struct ObservedClock {
    last_ms: u64,
    observed_ms: u64,
    step_ms_max: u64,
}

impl ObservedClock {
    /// Starts at 0 observed milliseconds. `step_ms_max` is a little more than the longest time
    /// that a healthy observer takes between two looks.
    pub fn new(now_ms: u64, step_ms_max: u64) -> Self {
        Self { last_ms: now_ms, observed_ms: 0, step_ms_max }
    }

    /// Looks at the clock; answers observed time. A clock that went back counts as no time.
    pub fn advance(&mut self, now_ms: u64) -> u64 {
        let step = now_ms.saturating_sub(self.last_ms);
        self.last_ms = now_ms;
        self.observed_ms += step.min(self.step_ms_max);
        self.observed_ms
    }

    /// Observed time at the last look.
    pub fn observed_ms(&self) -> u64 {
        self.observed_ms
    }
}

/// Judges one peer by the time since it was last heard.
#[derive(Debug, Clone, Copy)]
pub struct Observer {
    silence_ms_max: u64,
    deadline_ms: u64,
}

impl Observer {
    /// The peer is lost after `misses` intervals of silence and half an interval of grace.
    pub fn new(interval_ms: u64, misses: u64, observed_ms: u64) -> Self {
        let silence_ms_max = interval_ms * misses + interval_ms / 2;
        Self { silence_ms_max, deadline_ms: observed_ms + silence_ms_max }
    }

    /// Any bytes from the peer are a sign of life.
    pub fn heard(&mut self, observed_ms: u64) {
        self.deadline_ms = observed_ms + self.silence_ms_max;
    }

    /// Observed time at which the peer is lost if it stays silent.
    pub fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    /// Whether the peer was silent for too long.
    pub fn is_lost(&self, observed_ms: u64) -> bool {
        observed_ms >= self.deadline_ms
    }
}

/// What the agent's signal session does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Send a heartbeat with this number.
    Send(u64),
    /// Nothing before this observed time.
    Wait(u64),
    /// The server is silent: reconnect.
    Lost,
}

/// Sends heartbeats and watches the server.
#[derive(Debug, Clone)]
pub struct Heartbeater {
    interval_ms: u64,
    misses: u64,
    next_ms: u64,
    sequence: u64,
    server: Observer,
}

impl Heartbeater {
    /// First heartbeat at once, then every `interval_ms` (at least 1).
    pub fn new(interval_ms: u64, misses: u64, observed_ms: u64) -> Self {
        let interval_ms = interval_ms.max(1);
        let server = Observer::new(interval_ms, misses, observed_ms);
        Self { interval_ms, misses, next_ms: observed_ms, sequence: 0, server }
    }

    /// Any bytes from the server are a sign of life.
    pub fn heard(&mut self, observed_ms: u64) {
        self.server.heard(observed_ms);
    }

    /// The server asks for another interval; 0 changes nothing.
    pub fn set_interval(&mut self, interval_ms: u64, observed_ms: u64) {
        if interval_ms > 0 && interval_ms != self.interval_ms {
            self.interval_ms = interval_ms;
            self.next_ms = self.next_ms.min(observed_ms + interval_ms);
            self.server = Observer::new(interval_ms, self.misses, observed_ms);
        }
    }

    /// What is due now.
    pub fn poll(&mut self, observed_ms: u64) -> Beat {
        if self.server.is_lost(observed_ms) {
            return Beat::Lost;
        }
        if observed_ms < self.next_ms {
            return Beat::Wait(self.next_ms.min(self.server.deadline_ms()));
        }
        self.next_ms = observed_ms + self.interval_ms;
        self.sequence += 1;
        Beat::Send(self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_observer_loses_nobody() {
        let mut clock = ObservedClock::new(1_000, 2_000);
        let mut peer = Observer::new(10_000, 3, clock.advance(1_000));
        peer.heard(clock.advance(2_000));
        // Stopped for ten minutes: one long step counts as two seconds.
        let observed = clock.advance(602_000);
        assert!(!peer.is_lost(observed));
        // Awake and still silent for 35 s: lost.
        let mut now = 602_000;
        let mut observed = observed;
        while !peer.is_lost(observed) {
            now += 1_000;
            observed = clock.advance(now);
        }
        assert_eq!(now, 602_000 + 33_000);
    }

    #[test]
    fn a_clock_that_jumps_back_is_harmless() {
        let mut clock = ObservedClock::new(10_000, 2_000);
        assert_eq!(clock.advance(9_000), 0);
        assert_eq!(clock.advance(9_500), 500);
    }

    #[test]
    fn heartbeats_are_regular_and_a_silent_server_is_left() {
        let mut beats = Heartbeater::new(1_000, 3, 0);
        assert_eq!(beats.poll(0), Beat::Send(1));
        assert_eq!(beats.poll(400), Beat::Wait(1_000));
        assert_eq!(beats.poll(1_000), Beat::Send(2));
        beats.heard(1_100);
        for second in 2..=4 {
            assert!(matches!(beats.poll(second * 1_000), Beat::Send(_)));
        }
        assert_eq!(beats.poll(4_600), Beat::Lost);
    }

    #[test]
    fn the_server_sets_the_interval() {
        let mut beats = Heartbeater::new(60_000, 3, 0);
        beats.poll(0);
        beats.set_interval(5_000, 100);
        assert_eq!(beats.poll(5_099), Beat::Wait(5_100));
        assert_eq!(beats.poll(5_100), Beat::Send(2));
    }
}
