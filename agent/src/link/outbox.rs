//! What waits to be sent on the signal session, by urgency.
//!
//! Three bounded queues: heartbeats and echoes before reports, reports before task output. A queue
//! that is full refuses, and its owner, who keeps the truth elsewhere (journal, output file,
//! transfer state), tries again when it hears [`LinkEvent::Room`]. While no session is up
//! everything is refused and nothing waits: a new session starts from the owners' present state.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use skein_wire::signal::v1::{AgentMessage, agent_message::Kind};
use tokio::sync::Notify;

/// Urgency of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    /// Heartbeats, echoes: tiny, and somebody measures them.
    Urgent = 0,
    /// States of tasks and transfers, facts, refusals.
    Report = 1,
    /// Output of tasks.
    Bulk = 2,
}

/// Messages per queue. Urgent ones have tens of bytes; reports below 1 KiB (1 MiB in all); output
/// chunks 64 KiB (1 MiB in all).
pub const QUEUE_MAX: [usize; 3] = [64, 1024, 16];

/// What owners of reports are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkEvent {
    /// A session is up: report everything that was not acknowledged.
    Up,
    /// It is gone; what was sent may be lost.
    Down,
    /// A queue that refused has room again.
    Room,
}

type Listener = Box<dyn Fn(LinkEvent) + Send + Sync>;

/// The queues; cheap to clone.
#[derive(Clone, Default)]
pub struct Outbox {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    filled: Notify,
    listeners: Mutex<Vec<Listener>>,
}

#[derive(Default)]
struct State {
    up: bool,
    refused: bool,
    queues: [VecDeque<AgentMessage>; 3],
}

impl Outbox {
    /// Has `listener` called on every event, from the link's thread: it must not block.
    pub fn subscribe(&self, listener: impl Fn(LinkEvent) + Send + Sync + 'static) {
        let mut listeners =
            self.inner.listeners.lock().unwrap_or_else(|poison| poison.into_inner());
        listeners.push(Box::new(listener));
    }

    /// Queues a message; false when its queue is full or no session is up.
    pub fn push(&self, priority: Priority, kind: Kind) -> bool {
        let mut state = self.state();
        let place = priority as usize;
        if !state.up {
            return false;
        }
        if state.queues[place].len() >= QUEUE_MAX[place] {
            state.refused = true;
            return false;
        }
        state.queues[place].push_back(AgentMessage { kind: Some(kind) });
        drop(state);
        self.inner.filled.notify_one();
        true
    }

    /// Whether [`Outbox::push`] would take a message now; if not, [`LinkEvent::Room`] follows.
    pub fn has_room(&self, priority: Priority) -> bool {
        let mut state = self.state();
        let room = state.queues[priority as usize].len() < QUEUE_MAX[priority as usize];
        state.refused |= !room;
        state.up && room
    }

    /// Whether a session is up.
    pub fn is_up(&self) -> bool {
        self.state().up
    }

    /// The session's next message, most urgent first.
    pub async fn next(&self) -> AgentMessage {
        loop {
            if let Some(message) = self.take() {
                return message;
            }
            self.inner.filled.notified().await;
        }
    }

    /// The next message, if there is one.
    pub fn take(&self) -> Option<AgentMessage> {
        let mut state = self.state();
        let message = state.queues.iter_mut().find_map(VecDeque::pop_front)?;
        let room = std::mem::take(&mut state.refused);
        drop(state);
        if room {
            self.tell(LinkEvent::Room);
        }
        Some(message)
    }

    /// A session begins.
    pub fn open(&self) {
        *self.state() = State { up: true, ..State::default() };
        self.tell(LinkEvent::Up);
    }

    /// The session is over; what waits is forgotten, as its owners still have it.
    pub fn close(&self) {
        *self.state() = State::default();
        self.tell(LinkEvent::Down);
    }

    fn tell(&self, event: LinkEvent) {
        let listeners = self.inner.listeners.lock().unwrap_or_else(|poison| poison.into_inner());
        listeners.iter().for_each(|listener| listener(event));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        let lengths = state.queues.each_ref().map(VecDeque::len);
        f.debug_struct("Outbox").field("up", &state.up).field("queued", &lengths).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_wire::signal::v1::{Echo, Heartbeat, TaskOutput};

    #[test]
    fn a_heartbeat_overtakes_output() {
        let outbox = Outbox::default();
        assert!(!outbox.push(Priority::Bulk, Kind::TaskOutput(TaskOutput::default())));
        outbox.open();
        assert!(outbox.push(Priority::Bulk, Kind::TaskOutput(TaskOutput::default())));
        assert!(outbox.push(Priority::Urgent, Kind::Heartbeat(Heartbeat::default())));
        assert!(matches!(outbox.take().unwrap().kind, Some(Kind::Heartbeat(_))));
        assert!(matches!(outbox.take().unwrap().kind, Some(Kind::TaskOutput(_))));
        assert!(outbox.take().is_none());
    }

    #[test]
    fn a_full_queue_refuses_and_says_when_it_has_room() {
        let outbox = Outbox::default();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        outbox.subscribe(move |event| seen.lock().unwrap().push(event));
        outbox.open();
        let echo = || Kind::Echo(Echo::default());
        for _ in 0..QUEUE_MAX[0] {
            assert!(outbox.push(Priority::Urgent, echo()));
        }
        assert!(!outbox.push(Priority::Urgent, echo()));
        assert!(outbox.push(Priority::Report, echo()));
        outbox.take();
        outbox.take();
        outbox.close();
        assert!(outbox.take().is_none());
        assert_eq!(*events.lock().unwrap(), [LinkEvent::Up, LinkEvent::Room, LinkEvent::Down]);
    }
}
