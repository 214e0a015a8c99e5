//! Orders are repeated until they are answered.
//!
//! A message to an agent can be lost without anybody's notice: its data process dies, its
//! connection breaks half-way. So an order counts as delivered only when the agent has answered it;
//! until then it is sent again, each time as a new signed command, after 2 s, 4 s, 8 s … 128 s, at
//! most [`ATTEMPTS_MAX`] times per session and never beyond its validity. Agents know the task or
//! transfer by its id, so a repeat makes them say again where they stand and does nothing twice.
//!
//! An answer may cross the repeat. A refusal therefore counts only when it answers the newest
//! dispatch: an older one's says nothing of what a later one has started.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use skein_observe::names;
use skein_wire::ids::CommandId;

/// Times that one order is sent within one session: for an hour with the longest pause.
const ATTEMPTS_MAX: u8 = 32;
/// Before the first repeat. An agent answers within milliseconds of its journal's flush.
const PAUSE_MS: i64 = 2_000;
/// The pause doubles so often: to 128 s.
const DOUBLINGS_MAX: u8 = 6;
/// Commands whose refusal is still expected.
const COMMANDS_MAX: usize = 65_536;

/// What was sent to one host of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Number of the newest dispatch of the order; 0: none.
    dispatch: u32,
    /// Since the session began.
    attempts: u8,
    last_ms: i64,
}

impl Delivery {
    /// The order is on its way, by this dispatch of the job.
    pub fn ordered(&mut self, dispatch: u32, now_ms: i64) {
        self.dispatch = dispatch;
        self.told(now_ms);
    }

    /// Something that has to be answered is on its way.
    pub fn told(&mut self, now_ms: i64) {
        self.attempts = self.attempts.saturating_add(1);
        self.last_ms = now_ms;
    }

    /// A new session, or a new wish: at once, and with all attempts.
    pub fn begin_anew(&mut self) {
        self.attempts = 0;
    }

    /// Whether it is time to send (again).
    pub fn is_due(&self, now_ms: i64) -> bool {
        match self.attempts {
            0 => true,
            ATTEMPTS_MAX.. => false,
            sent => now_ms - self.last_ms >= PAUSE_MS << (sent - 1).min(DOUBLINGS_MAX),
        }
    }

    /// Whether something was sent that is not answered.
    fn is_repeat(&self) -> bool {
        self.attempts > 0
    }

    /// Whether a dispatch is the newest that this host was sent.
    pub fn is_newest(&self, dispatch: u32) -> bool {
        self.dispatch == dispatch
    }
}

/// Counts what is sent now, where it was sent before and not answered.
pub fn count_repeat(delivery: &Delivery, command: &'static str) {
    if delivery.is_repeat() {
        metrics::counter!(names::CONTROL_ORDERS_REPEATED, "command" => command).increment(1);
    }
}

/// Which dispatch of which job a command was, for refusals; the oldest are forgotten.
#[derive(Debug)]
pub struct Commands<Id> {
    jobs: HashMap<CommandId, (Id, u32)>,
    in_order: VecDeque<CommandId>,
}

impl<Id> Default for Commands<Id> {
    fn default() -> Self {
        Self { jobs: HashMap::new(), in_order: VecDeque::new() }
    }
}

impl<Id: Copy + Eq + Hash> Commands<Id> {
    /// Remembers a command.
    pub fn note(&mut self, command: CommandId, job: Id, dispatch: u32) {
        self.jobs.insert(command, (job, dispatch));
        self.in_order.push_back(command);
        if self.in_order.len() > COMMANDS_MAX
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.jobs.remove(&oldest);
        }
    }

    /// The job and the number of its dispatch.
    pub fn find(&self, command: &CommandId) -> Option<(Id, u32)> {
        self.jobs.get(command).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_come_later_and_later_and_end() {
        let mut delivery = Delivery::default();
        let (mut now_ms, mut sent_at) = (0, Vec::new());
        while now_ms < 24 * 3_600_000 {
            if delivery.is_due(now_ms) {
                delivery.ordered(1, now_ms);
                sent_at.push(now_ms);
            }
            now_ms += 250;
        }
        let pauses: Vec<i64> = sent_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..4], [2_000, 4_000, 8_000, 16_000]);
        assert!(pauses.is_sorted() && pauses.last() == Some(&128_000), "{pauses:?}");
        assert_eq!(sent_at.len(), usize::from(ATTEMPTS_MAX));
        delivery.begin_anew();
        assert!(delivery.is_due(now_ms), "a new session is told at once");
    }

    #[test]
    fn only_the_newest_dispatch_may_be_refused() {
        let mut delivery = Delivery::default();
        delivery.ordered(1, 0);
        delivery.ordered(5, 2_000);
        delivery.told(3_000);
        assert!(!delivery.is_newest(1) && delivery.is_newest(5));
    }

    #[test]
    fn the_oldest_commands_are_forgotten() {
        let mut commands = Commands::default();
        let id = |n: u64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            CommandId(bytes)
        };
        for n in 0..=COMMANDS_MAX as u64 {
            commands.note(id(n), n, 1);
        }
        assert_eq!(commands.find(&id(0)), None);
        assert_eq!(commands.find(&id(1)), Some((1, 1)));
        assert_eq!(commands.jobs.len(), COMMANDS_MAX);
    }
}
