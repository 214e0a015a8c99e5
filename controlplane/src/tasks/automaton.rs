//! One host of one task: a state machine that only goes forward and ends once.
//!
//! ```text
//! pending ─► sent ─► accepted ─► running ─► succeeded │ failed │ timed_out │ cancelled │ aborted
//!    │         │                     └─ no report in time ─► expired
//!    │         └─ refused by the agent ─► refused
//!    └─ not reached in time ─► undeliverable
//! ```
//! A final state is proposed here, stored by the caller, and only then entered: what an operator
//! has seen can never change, whatever dies in between.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skein_wire::ids::AgentId;
use skein_wire::signal::v1::{TaskState, TaskUpdate};

use crate::api::types::{TaskHost, TaskHostState};
use crate::jobs::delivery::Delivery;

/// Longest error text that is kept of one host.
const ERROR_BYTES_MAX: usize = 1_024;

/// How one host ended; stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    /// A final state.
    pub state: TaskHostState,
    /// Exit code of the script.
    #[serde(default)]
    pub exit_code: i32,
    /// Signal that ended it.
    #[serde(default)]
    pub signal: i32,
    /// When it began; 0: never.
    #[serde(default)]
    pub started_ms: i64,
    /// When it ended.
    #[serde(default)]
    pub ended_ms: i64,
    /// Output that the agent announced.
    #[serde(default)]
    pub output_bytes: u64,
    /// Whether there was more.
    #[serde(default)]
    pub output_truncated: bool,
    /// What is wrong.
    #[serde(default)]
    pub error: String,
}

impl Final {
    /// An end that the server itself decides.
    pub fn by_server(state: TaskHostState, now_ms: i64, error: &str) -> Self {
        Self {
            state,
            exit_code: 0,
            signal: 0,
            started_ms: 0,
            ended_ms: now_ms,
            output_bytes: 0,
            output_truncated: false,
            error: error.to_owned(),
        }
    }
}

/// What a report means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Nothing new.
    Repeat,
    /// The state went forward.
    Progress,
    /// The host has ended so; store it, then [`HostRun::end`].
    End(Final),
    /// The host had ended before; tell the agent that it need not repeat itself.
    Ended,
}

/// One host of one task.
#[derive(Clone, Debug)]
pub struct HostRun {
    /// The agent.
    pub agent: AgentId,
    /// Its host name when the task began.
    pub hostname: Arc<str>,
    /// Where it stands.
    pub state: TaskHostState,
    /// When it entered `accepted` or `running`, for the deadline.
    pub since_ms: i64,
    /// What is known of the run.
    pub run: Final,
    /// What was sent to it.
    pub delivery: Delivery,
}

impl HostRun {
    /// Not yet sent.
    pub fn new(agent: AgentId, hostname: Arc<str>) -> Self {
        let state = TaskHostState::Pending;
        let run = Final::by_server(state, 0, "");
        Self { agent, hostname, state, since_ms: 0, run, delivery: Delivery::default() }
    }

    /// The order is on its way, by this dispatch of the task.
    pub fn sent(&mut self, dispatch: u32, now_ms: i64) {
        self.delivery.ordered(dispatch, now_ms);
        if self.state == TaskHostState::Pending {
            self.state = TaskHostState::Sent;
        }
    }

    /// The order came back: there was no session.
    pub fn unsent(&mut self) {
        if self.state == TaskHostState::Sent {
            self.state = TaskHostState::Pending;
        }
    }

    /// Takes a report of the agent.
    pub fn report(&mut self, update: &TaskUpdate, now_ms: i64) -> Report {
        if self.state.is_final() {
            return Report::Ended;
        }
        let state = match TaskState::try_from(update.state) {
            Ok(TaskState::Accepted) => TaskHostState::Accepted,
            Ok(TaskState::Running) => TaskHostState::Running,
            Ok(TaskState::Succeeded) => TaskHostState::Succeeded,
            Ok(TaskState::Failed) => TaskHostState::Failed,
            Ok(TaskState::TimedOut) => TaskHostState::TimedOut,
            Ok(TaskState::Cancelled) => TaskHostState::Cancelled,
            Ok(TaskState::Aborted) => TaskHostState::Aborted,
            Ok(TaskState::Refused) => TaskHostState::Refused,
            Ok(TaskState::Unspecified) | Err(_) => return Report::Repeat,
        };
        let mut error = update.error.clone();
        error.truncate(error.floor_char_boundary(ERROR_BYTES_MAX));
        let run = Final {
            state,
            exit_code: update.exit_code,
            signal: update.signal,
            started_ms: update.started_ms,
            ended_ms: if state.is_final() { update.ended_ms.max(1) } else { 0 },
            output_bytes: update.output_bytes,
            output_truncated: update.output_truncated,
            error,
        };
        if state.is_final() {
            return Report::End(run);
        }
        if state <= self.state {
            return Report::Repeat;
        }
        self.state = state;
        self.since_ms = now_ms;
        self.run = run;
        Report::Progress
    }

    /// Enters a final state that is stored.
    pub fn end(&mut self, run: Final) {
        debug_assert!(run.state.is_final() && !self.state.is_final());
        self.state = run.state;
        self.run = run;
    }

    /// As the API shows it.
    pub fn view(&self, output_stored_bytes: u64) -> TaskHost {
        TaskHost {
            agent_id: self.agent.to_string(),
            hostname: self.hostname.to_string(),
            state: self.state,
            exit_code: self.run.exit_code,
            signal: self.run.signal,
            started_ms: self.run.started_ms,
            ended_ms: self.run.ended_ms,
            output_stored_bytes,
            output_bytes: self.run.output_bytes.max(output_stored_bytes),
            output_truncated: self.run.output_truncated,
            error: self.run.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn update(state: TaskState) -> TaskUpdate {
        TaskUpdate { state: state.into(), ..TaskUpdate::default() }
    }

    fn host() -> HostRun {
        HostRun::new(AgentId::parse("a").unwrap(), "a".into())
    }

    #[test]
    fn reports_out_of_order_never_go_back() {
        let mut host = host();
        host.sent(1, 0);
        assert_eq!(host.report(&update(TaskState::Running), 5), Report::Progress);
        assert_eq!(host.report(&update(TaskState::Accepted), 6), Report::Repeat);
        host.unsent();
        assert_eq!((host.state, host.since_ms), (TaskHostState::Running, 5));
        let Report::End(run) = host.report(&update(TaskState::Failed), 7) else { panic!() };
        assert_eq!(host.state, TaskHostState::Running, "not before it is stored");
        host.end(run);
        assert_eq!(host.report(&update(TaskState::Succeeded), 8), Report::Ended);
        assert_eq!(host.state, TaskHostState::Failed);
    }

    proptest! {
        #[test]
        fn any_reports_end_in_the_first_final_state(states in prop::collection::vec(-1..12, 0..20)) {
            let mut host = host();
            let mut ended = None;
            for state in states {
                let before = host.state;
                let update = TaskUpdate { state, ..TaskUpdate::default() };
                match host.report(&update, 1) {
                    Report::End(run) => {
                        prop_assert!(ended.is_none());
                        ended = Some(run.state);
                        host.end(run);
                    }
                    Report::Ended => prop_assert!(ended.is_some()),
                    Report::Repeat => prop_assert_eq!(host.state, before),
                    Report::Progress => prop_assert!(host.state > before),
                }
            }
            prop_assert_eq!(ended.unwrap_or(host.state), host.state);
        }
    }
}
