//! Pings to agents: the cheapest measure of the whole signal path.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skein_wire::ids::AgentId;
use tokio::sync::Notify;

/// Pings that may wait at one time.
const PINGS_MAX: usize = 64;

/// How a ping went.
#[derive(Clone, Debug, Default)]
pub struct PingOutcome {
    /// Round trips in microseconds, ascending.
    pub round_trips_us: Vec<u64>,
    /// Who did not answer.
    pub silent: Vec<AgentId>,
}

/// Pings that wait for echoes.
#[derive(Debug, Default)]
pub(super) struct Pings(Mutex<HashMap<u64, Arc<Run>>>);

#[derive(Debug)]
pub(super) struct Run {
    wanted: usize,
    answers: Mutex<(Instant, HashMap<AgentId, u64>)>,
    complete: Notify,
}

impl Run {
    pub(super) fn mark_start(&self) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).0 = Instant::now();
    }

    pub(super) async fn wait(&self, timeout: Duration) {
        if self.wanted > 0 {
            let _ = tokio::time::timeout(timeout, self.complete.notified()).await;
        }
    }
}

impl Pings {
    pub(super) fn begin(&self, nonce: u64, wanted: usize) -> Arc<Run> {
        let answers = Mutex::new((Instant::now(), HashMap::with_capacity(wanted)));
        let run = Arc::new(Run { wanted, answers, complete: Notify::new() });
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.len() < PINGS_MAX {
            runs.insert(nonce, run.clone());
        }
        run
    }

    pub(super) fn echo(&self, nonce: u64, agent: AgentId) {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(run) = runs.get(&nonce) else { return };
        let mut answers = run.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let round_trip_us = answers.0.elapsed().as_micros() as u64;
        if answers.1.len() < run.wanted {
            answers.1.entry(agent).or_insert(round_trip_us);
        }
        if answers.1.len() == run.wanted {
            run.complete.notify_one();
        }
    }

    pub(super) fn end(&self, nonce: u64, agents: &[AgentId]) -> PingOutcome {
        let run = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&nonce);
        let Some(run) = run else {
            return PingOutcome { silent: agents.to_vec(), ..PingOutcome::default() };
        };
        let answers = run.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut round_trips_us: Vec<u64> = answers.1.values().copied().collect();
        round_trips_us.sort_unstable();
        let silent = agents.iter().filter(|agent| !answers.1.contains_key(*agent));
        PingOutcome { round_trips_us, silent: silent.cloned().collect() }
    }
}
