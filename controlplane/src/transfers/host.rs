//! One host of one transfer: forward only, ends once; ends are stored before they are entered.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skein_wire::ids::AgentId;
use skein_wire::limits::MESH_PEERS_MAX;
use skein_wire::signal::v1::{ReceivedFrom, TransferState, TransferUpdate};

use super::meter::Meter;
use super::pace::HostPace;
use super::rates::Span;
use crate::api::types::{TransferHost, TransferHostState};
use crate::jobs::delivery::Delivery;

/// Longest error text that is kept of one host.
const ERROR_BYTES_MAX: usize = 1_024;

/// What is known of a host's run; stored when it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    /// Where it stands.
    pub state: TransferHostState,
    /// Verified on its disk.
    #[serde(default)]
    pub verified_bytes: u64,
    /// Of those, what an earlier run had left.
    #[serde(default)]
    pub resumed_bytes: u64,
    /// Of what came over the network, what other agents sent.
    #[serde(default)]
    pub from_peers_bytes: u64,
    /// Who sent how much; counted when the host has ended and not kept.
    #[serde(skip)]
    pub received_from: Vec<(u32, u64)>,
    /// Blocks whose hash was wrong.
    #[serde(default)]
    pub refused_blocks: u64,
    /// What is wrong.
    #[serde(default)]
    pub error: String,
    /// By the agent's clock.
    #[serde(default)]
    pub started_ms: i64,
    /// By the agent's clock, or the server's where it decided.
    #[serde(default)]
    pub ended_ms: i64,
}

/// What a report means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Progress, or nothing new.
    Progress,
    /// The host has ended so; store it, then [`HostPush::end`].
    End(Final),
    /// It had ended before: the agent may forget.
    Ended,
}

/// One host of one transfer.
#[derive(Clone, Debug)]
pub struct HostPush {
    /// The agent.
    pub agent: AgentId,
    /// Its host name when the transfer began.
    pub hostname: Arc<str>,
    /// Where it stands.
    pub run: Final,
    /// What was sent to it.
    pub delivery: Delivery,
    /// How fast it receives.
    pub pace: HostPace,
    /// When this process heard its end; 0: it did not.
    pub heard_ms: i64,
    /// How fast it is.
    pub meter: Meter,
}

impl HostPush {
    /// Not yet told.
    pub fn new(agent: AgentId, hostname: Arc<str>) -> Self {
        let run = Final {
            state: TransferHostState::Pending,
            verified_bytes: 0,
            resumed_bytes: 0,
            from_peers_bytes: 0,
            received_from: Vec::new(),
            refused_blocks: 0,
            error: String::new(),
            started_ms: 0,
            ended_ms: 0,
        };
        let (delivery, pace) = (Delivery::default(), HostPace::default());
        Self { agent, hostname, run, delivery, pace, heard_ms: 0, meter: Meter::default() }
    }

    /// Where it stands.
    pub fn state(&self) -> TransferHostState {
        self.run.state
    }

    /// The order is on its way, by this dispatch of the transfer.
    pub fn sent(&mut self, dispatch: u32, now_ms: i64) {
        self.delivery.ordered(dispatch, now_ms);
        if self.run.state == TransferHostState::Pending {
            self.run.state = TransferHostState::Sent;
        }
    }

    /// The order came back: there was no session.
    pub fn unsent(&mut self) {
        if self.run.state == TransferHostState::Sent {
            self.run.state = TransferHostState::Pending;
        }
    }

    /// The order is to be given (again): it was taken back, or a pause is over.
    pub fn begin_anew(&mut self) {
        self.delivery.begin_anew();
        if !self.run.state.is_final() {
            self.run.state = TransferHostState::Pending;
        }
    }

    /// An end that the server itself decides; progress is kept.
    pub fn ended_by_server(&self, state: TransferHostState, now_ms: i64, why: &str) -> Final {
        Final { state, error: why.to_owned(), ended_ms: now_ms, ..self.run.clone() }
    }

    /// Takes a report of the agent.
    pub fn report(&mut self, update: &TransferUpdate) -> Report {
        if self.run.state.is_final() {
            return Report::Ended;
        }
        let state = match TransferState::try_from(update.state) {
            Ok(TransferState::Waiting) => TransferHostState::Waiting,
            Ok(TransferState::Running) => TransferHostState::Running,
            Ok(TransferState::Done) => TransferHostState::Done,
            Ok(TransferState::Failed) => TransferHostState::Failed,
            Ok(TransferState::Cancelled) => TransferHostState::Cancelled,
            Ok(TransferState::Paused) => TransferHostState::Paused,
            Ok(TransferState::Unspecified) | Err(_) => return Report::Progress,
        };
        let mut error = update.error.clone();
        error.truncate(error.floor_char_boundary(ERROR_BYTES_MAX));
        let before = match self.run.state {
            TransferHostState::Paused => TransferHostState::Pending,
            before => before,
        };
        let run = Final {
            // An agent that restarts queues again; that is no step back of the push.
            state: state.max(before),
            verified_bytes: update.verified_bytes,
            resumed_bytes: update.resumed_bytes,
            from_peers_bytes: update.from_peers_bytes,
            received_from: received_from(&update.received_from),
            refused_blocks: update.refused_blocks,
            error,
            started_ms: update.started_ms,
            ended_ms: update.ended_ms,
        };
        if state.is_final() {
            return Report::End(run);
        }
        self.run = run;
        Report::Progress
    }

    /// Enters a final state that is stored.
    pub fn end(&mut self, run: Final) {
        debug_assert!(run.state.is_final() && !self.run.state.is_final());
        self.run = run;
    }

    /// What came over the network until then.
    pub fn received_until(&self, until_ms: i64) -> Span {
        let bytes = self.run.verified_bytes.saturating_sub(self.run.resumed_bytes);
        Span { bytes, time_ms: until_ms - self.run.started_ms }
    }

    /// As the API shows it.
    pub fn view(&self, now_ms: i64) -> TransferHost {
        let run = &self.run;
        let until_ms = if run.ended_ms > 0 { run.ended_ms } else { now_ms };
        let seconds = (until_ms - run.started_ms).max(1) as f64 / 1_000.0;
        let moved = run.verified_bytes.saturating_sub(run.resumed_bytes);
        TransferHost {
            agent_id: self.agent.to_string(),
            hostname: self.hostname.to_string(),
            state: run.state,
            verified_bytes: run.verified_bytes,
            resumed_bytes: run.resumed_bytes,
            from_peers_bytes: run.from_peers_bytes,
            refused_blocks: run.refused_blocks,
            bytes_per_s: if run.started_ms > 0 { (moved as f64 / seconds) as u64 } else { 0 },
            error: run.error.clone(),
            started_ms: run.started_ms,
            ended_ms: run.ended_ms,
            batch: 0,
        }
    }
}

fn received_from(senders: &[ReceivedFrom]) -> Vec<(u32, u64)> {
    senders.iter().take(MESH_PEERS_MAX).map(|from| (from.member, from.bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_goes_forward_and_ends_once() {
        let mut host = HostPush::new(AgentId::parse("a").unwrap(), "a".into());
        let update = |state: TransferState, verified_bytes| TransferUpdate {
            state: state.into(),
            verified_bytes,
            ..TransferUpdate::default()
        };
        host.sent(1, 0);
        assert_eq!(host.report(&update(TransferState::Running, 5)), Report::Progress);
        assert_eq!(host.report(&update(TransferState::Waiting, 5)), Report::Progress);
        assert_eq!(host.state(), TransferHostState::Running, "queued anew is no step back");
        let Report::End(end) = host.report(&update(TransferState::Done, 9)) else { panic!() };
        assert_eq!(host.state(), TransferHostState::Running, "not before it is stored");
        host.end(end);
        assert_eq!(host.report(&update(TransferState::Failed, 0)), Report::Ended);
        assert_eq!((host.state(), host.run.verified_bytes), (TransferHostState::Done, 9));
    }
}
