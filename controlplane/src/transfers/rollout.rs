//! How a transfer goes out over time: whose turn it is, which hosts have been started, and what
//! stops it. Everything here is stored with the transfer, so that a new control process goes on
//! where this one was; nothing here does I/O.
//!
//! ```text
//! queued ─► batch 1 ─► batch 2 ─► … ─► all hosts have ended
//!             │  ▲        too many failures: halted ── resume ─► next batch
//!             ▼  │        at any time: paused ── resume ─► queued ─► goes on
//!           paused
//! ```

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};
use skein_filemesh::core::turns;
use skein_wire::ids::TransferId;

use super::TransferError;
use super::host::HostPush;
use crate::api::types::{self, Priority, RolloutRequest, TransferHostState};

/// Batches of one transfer.
const BATCHES_MAX: usize = 64;
/// A transfer that is paused or halted is cancelled after this time: it keeps a file in the cache.
pub const HELD_MS_MAX: i64 = 7 * 24 * 3_600_000;

/// Order, extent and stops of one transfer, as they are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rollout {
    /// When it is its turn.
    pub priority: Priority,
    /// As it was asked; empty: none.
    pub batches_wanted: String,
    /// Hosts started with each batch, in all; empty: all hosts are one batch.
    pub batches: Vec<u64>,
    /// Batches that were started, from 1 on.
    pub started: usize,
    /// As it was asked; empty: failures halt nothing.
    pub max_errors: String,
    /// It waits for a turn.
    pub queued: bool,
    /// An operator paused it then.
    pub paused_ms: Option<i64>,
    /// No further batch starts, since then and for this reason.
    pub halted: Option<(i64, String)>,
    /// Failed hosts that an operator has accepted by resuming.
    pub forgiven: u64,
    /// When its hosts were last told to begin: out of the queue, a batch, a pause.
    pub begun_ms: i64,
    /// How long hosts may take from there.
    pub timeout_ms: i64,
}

/// What the hosts that were started mean for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing changes.
    Wait,
    /// The next batch begins.
    Next,
    /// No further batch, for this reason.
    Halt(String),
}

impl Rollout {
    /// Checks what was asked for.
    pub fn from_request(request: &RolloutRequest, timeout_ms: i64) -> Result<Self, TransferError> {
        let wanted = request.batches.clone().unwrap_or_default();
        let max_errors = match (&request.max_errors, wanted.is_empty()) {
            (Some(_), true) => {
                let why = "max_errors halts further batches; ask for batches too";
                return Err(TransferError::Invalid(why.into()));
            }
            (Some(text), false) => text.clone(),
            (None, true) => String::new(),
            (None, false) => "0".to_owned(),
        };
        if !wanted.is_empty() {
            batches(&wanted, 1)?;
            Amount::parse(&max_errors, 0.0)?;
        }
        Ok(Self {
            priority: request.priority,
            batches_wanted: wanted,
            max_errors,
            timeout_ms,
            ..Self::default()
        })
    }

    /// Divides `hosts` into the batches that were asked for; the first counts as started.
    pub fn divide(&mut self, hosts: usize) -> Result<(), TransferError> {
        if !self.batches_wanted.is_empty() {
            self.batches = batches(&self.batches_wanted, hosts as u64)?;
        }
        self.started = 1;
        Ok(())
    }

    /// Hosts of `hosts`, from the first on, that have been started.
    pub fn started_hosts(&self, hosts: usize) -> usize {
        match self.batches.get(self.started.saturating_sub(1)) {
            Some(count) => hosts.min(*count as usize),
            None => hosts,
        }
    }

    /// The batch of the host at `place`, from 1; 0: there are none.
    pub fn batch_of(&self, place: usize) -> u64 {
        let before = self.batches.iter().filter(|count| **count <= place as u64).count() as u64;
        if self.batches.is_empty() { 0 } else { before + 1 }
    }

    /// Whether nothing may run: it waits for its turn or for an operator.
    pub fn is_stopped(&self) -> bool {
        self.queued || self.paused_ms.is_some()
    }

    /// Since when it waits for an operator.
    pub fn held_ms(&self) -> Option<i64> {
        self.paused_ms.or_else(|| self.halted.as_ref().map(|(since_ms, _)| *since_ms))
    }

    /// What follows from how the started hosts stand.
    pub fn step(&self, hosts: &[HostPush]) -> Step {
        if self.is_stopped() || self.halted.is_some() || self.started >= self.batches.len() {
            return Step::Wait;
        }
        let started = &hosts[..self.started_hosts(hosts.len())];
        let (open, errors) = (open(started), errors(started));
        let allowed =
            Amount::parse(&self.max_errors, 0.0).map_or(0, |most| most.down(started.len()));
        if errors.saturating_sub(self.forgiven) > allowed {
            let accepted = match self.forgiven {
                0 => String::new(),
                count => format!(" beside {count} that were accepted"),
            };
            return Step::Halt(format!(
                "halted in batch {} of {}: {errors} of {} started hosts ended without the file and \
                 {allowed} may{accepted} (max_errors {}); {} hosts were never started",
                self.started,
                self.batches.len(),
                started.len(),
                self.max_errors,
                hosts.len() - started.len(),
            ));
        }
        if open == 0 { Step::Next } else { Step::Wait }
    }

    /// As the API shows it; `reason` is why it is queued.
    pub fn view(&self, reason: &str) -> types::Rollout {
        let reason = match (&self.paused_ms, self.queued, &self.halted) {
            (Some(_), _, Some((_, why))) => format!("paused by an operator; {why}"),
            (Some(_), _, None) => "paused by an operator".to_owned(),
            (None, true, _) => reason.to_owned(),
            (None, false, Some((_, why))) => why.clone(),
            (None, false, None) => String::new(),
        };
        types::Rollout {
            priority: self.priority,
            batches: self.batches.clone(),
            batches_started: if self.batches.is_empty() { 0 } else { self.started as u64 },
            max_errors: self.max_errors.clone(),
            reason,
        }
    }
}

/// Hosts that have not ended.
pub fn open(hosts: &[HostPush]) -> usize {
    hosts.iter().filter(|host| !host.state().is_final()).count()
}

/// Hosts that ended without the file.
pub fn errors(hosts: &[HostPush]) -> u64 {
    let failed =
        |host: &&HostPush| host.state().is_final() && host.state() != TransferHostState::Done;
    hosts.iter().filter(failed).count() as u64
}

/// A number of hosts, or a share of them in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    Hosts(u64),
    Share(f64),
}

impl Amount {
    fn parse(text: &str, least: f64) -> Result<Self, TransferError> {
        let text = text.trim();
        let invalid = || {
            TransferError::Invalid(format!(
                "{text:?} is neither a number of hosts nor a share as 10%"
            ))
        };
        match text.strip_suffix('%') {
            Some(share) => {
                let share: f64 = share.trim().parse().map_err(|_| invalid())?;
                let fits = (least..=100.0).contains(&share) && share.is_finite();
                fits.then_some(Self::Share(share)).ok_or_else(invalid)
            }
            None => {
                let hosts: u64 = text.parse().map_err(|_| invalid())?;
                (hosts as f64 >= least).then_some(Self::Hosts(hosts)).ok_or_else(invalid)
            }
        }
    }

    fn share_of(self, hosts: usize) -> f64 {
        match self {
            Self::Hosts(count) => count as f64,
            Self::Share(share) => share * hosts as f64 / 100.0,
        }
    }

    fn down(self, hosts: usize) -> u64 {
        self.share_of(hosts).floor() as u64
    }

    fn up(self, hosts: u64) -> u64 {
        (self.share_of(hosts as usize).ceil() as u64).clamp(1, hosts.max(1))
    }
}

/// Hosts started with each batch, in all, out of `hosts`; shares are rounded up, and batches that
/// add nobody are left out.
fn batches(text: &str, hosts: u64) -> Result<Vec<u64>, TransferError> {
    let amounts: Vec<Amount> = text
        .split(',')
        .map(|part| Amount::parse(part, f64::MIN_POSITIVE))
        .collect::<Result<_, _>>()?;
    if amounts.len() > BATCHES_MAX {
        return Err(TransferError::Invalid(format!("more than {BATCHES_MAX} batches")));
    }
    let grows = amounts.windows(2).all(|pair| match (pair[0], pair[1]) {
        (Amount::Hosts(one), Amount::Hosts(two)) => one < two,
        (Amount::Share(one), Amount::Share(two)) => one < two,
        _ => true,
    });
    if !grows {
        return Err(TransferError::Invalid(format!(
            "batches {text:?} must grow: each says how many hosts are started in all"
        )));
    }
    let mut counts: Vec<u64> = Vec::new();
    for count in amounts.iter().map(|amount| amount.up(hosts)).chain([hosts]) {
        if counts.last().is_none_or(|last| *last < count) {
            counts.push(count);
        }
    }
    Ok(counts)
}

/// As the file mesh names it.
pub fn kind(priority: Priority) -> turns::Priority {
    match priority {
        Priority::Low => turns::Priority::Low,
        Priority::Normal => turns::Priority::Normal,
        Priority::High => turns::Priority::High,
    }
}

/// Puts transfers that wait in the order in which they start: by priority, then by age.
pub fn queue_order(waiting: &mut [(Priority, i64, TransferId)]) {
    waiting.sort_by_key(|(priority, created_ms, id)| (Reverse(*priority), *created_ms, *id));
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_wire::ids::AgentId;

    fn hosts(states: &[TransferHostState]) -> Vec<HostPush> {
        let host = |(at, state): (usize, &TransferHostState)| {
            let mut host = HostPush::new(AgentId::parse(&format!("a{at}")).unwrap(), "h".into());
            host.run.state = *state;
            host
        };
        states.iter().enumerate().map(host).collect()
    }

    fn rollout(batches: &str, max_errors: Option<&str>, hosts: usize) -> Rollout {
        let request = RolloutRequest {
            batches: Some(batches.into()),
            max_errors: max_errors.map(str::to_owned),
            ..RolloutRequest::default()
        };
        let mut rollout = Rollout::from_request(&request, 1_000).unwrap();
        rollout.divide(hosts).unwrap();
        rollout
    }

    #[test]
    fn batches_are_cumulative_and_end_with_everybody() {
        let cases: [(&str, u64, &[u64]); 8] = [
            ("1,10%,100%", 200, &[1, 20, 200]),
            ("1,10%,100%", 5, &[1, 5]),
            ("1, 10%, 100%", 11, &[1, 2, 11]),
            ("5%", 10, &[1, 10]),
            ("0.5%,50%", 1_000, &[5, 500, 1_000]),
            ("3,7", 5, &[3, 5]),
            ("10", 10, &[10]),
            ("1", 1, &[1]),
        ];
        for (text, hosts, expected) in cases {
            assert_eq!(batches(text, hosts).unwrap(), expected, "{text} of {hosts}");
        }
        for wrong in ["", "x", "0", "0%", "101%", "-1", "5,5", "20%,10%", "1,,2", "NaN%", "inf%"] {
            assert!(batches(wrong, 10).is_err(), "{wrong:?} was accepted");
        }
        assert!(batches(&["1"; 65].join(","), 10).is_err());
    }

    #[test]
    fn a_batch_follows_when_the_ones_before_have_ended_well() {
        use TransferHostState::{Done, Pending, Running};
        let mut rollout = rollout("1,50%,100%", None, 4);
        assert_eq!((rollout.started_hosts(4), rollout.batch_of(0), rollout.batch_of(3)), (1, 1, 3));
        assert_eq!(rollout.step(&hosts(&[Running, Pending, Pending, Pending])), Step::Wait);
        assert_eq!(rollout.step(&hosts(&[Done, Pending, Pending, Pending])), Step::Next);
        rollout.started = 2;
        assert_eq!(rollout.step(&hosts(&[Done, Running, Pending, Pending])), Step::Wait);
        rollout.paused_ms = Some(1);
        assert_eq!(rollout.step(&hosts(&[Done, Done, Pending, Pending])), Step::Wait);
        rollout.paused_ms = None;
        rollout.started = 3;
        assert_eq!(rollout.step(&hosts(&[Done, Done, Done, Done])), Step::Wait, "it was the last");
    }

    #[test]
    fn too_many_failures_halt_before_the_batch_has_ended() {
        use TransferHostState::{Done, Failed, Pending, Running, Undeliverable};
        let strict = rollout("2,100%", None, 4);
        let Step::Halt(why) = strict.step(&hosts(&[Failed, Running, Pending, Pending])) else {
            panic!("it went on");
        };
        assert!(why.contains("batch 1 of 2") && why.contains("1 of 2 started"), "{why}");
        assert!(why.contains("2 hosts were never started"), "{why}");
        let lenient = rollout("2,100%", Some("1"), 4);
        assert_eq!(lenient.step(&hosts(&[Failed, Done, Pending, Pending])), Step::Next);
        let both = hosts(&[Failed, Undeliverable, Pending, Pending]);
        assert!(matches!(lenient.step(&both), Step::Halt(_)));
        // Half of one host is none.
        let share = rollout("1,100%", Some("50%"), 4);
        assert!(matches!(share.step(&hosts(&[Failed, Pending, Pending, Pending])), Step::Halt(_)));
        let forgiving = Rollout { forgiven: 2, ..lenient };
        assert_eq!(forgiving.step(&both), Step::Next, "an operator has accepted these");
    }

    #[test]
    fn errors_without_batches_are_refused() {
        let request = RolloutRequest { max_errors: Some("1".into()), ..RolloutRequest::default() };
        assert!(Rollout::from_request(&request, 1).is_err());
        let mut plain = Rollout::from_request(&RolloutRequest::default(), 1).unwrap();
        plain.divide(3).unwrap();
        assert_eq!((plain.started_hosts(3), plain.batch_of(2)), (3, 0));
        assert_eq!(plain.step(&hosts(&[TransferHostState::Failed; 3])), Step::Wait);
    }

    #[test]
    fn the_queue_goes_by_priority_then_by_age() {
        let entry = |priority, created_ms, n| (priority, created_ms, TransferId([n; 16]));
        let mut waiting = [
            entry(Priority::Normal, 5, 1),
            entry(Priority::Low, 1, 2),
            entry(Priority::High, 9, 3),
            entry(Priority::Normal, 4, 4),
        ];
        queue_order(&mut waiting);
        assert_eq!(waiting.map(|(_, _, id)| id.0[0]), [3, 4, 1, 2]);
    }
}
