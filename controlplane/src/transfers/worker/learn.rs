//! What a transfer that has ended says of rates and starts.

use super::super::Entry;
use super::super::rates::{RateBook, Sample, Span};
use super::super::starts::{Ended, SIZE_MAX};
use crate::api::types::TransferHostState as Host;
use crate::clock;

/// Enters what the planner is to know of it.
pub fn from_end(rates: &RateBook, entry: &Entry) {
    rates_of(rates, entry);
    start_of(rates, entry);
}

/// Enters what the start of a small transfer took that went to all its hosts at once.
fn start_of(rates: &RateBook, entry: &Entry) {
    let record = &entry.record;
    let small = record.file.as_ref().is_some_and(|file| !file.tree && file.size_bytes <= SIZE_MAX);
    let plain = record.gear.replans == 0
        && !record.is_limited()
        && entry.hosts.iter().all(|host| host.state() == Host::Done);
    let running_ms = record.running_ms.filter(|at_ms| record.rollout.begun_ms <= *at_ms);
    let (Some(running_ms), true) = (running_ms, small && plain) else { return };
    let heard = entry.hosts.iter().map(|host| host.heard_ms - running_ms);
    let mut done: Vec<i64> = heard.filter(|at_ms| *at_ms >= 0).collect();
    done.sort_unstable();
    let Some(median) = done.get(done.len() / 2).copied() else { return };
    // Hosts that were away or are slow took what they took for other reasons.
    let took_ms = done.into_iter().rev().find(|at_ms| *at_ms <= 2 * median.max(1));
    let ended = Ended {
        gear: record.gear.kind(),
        hosts: entry.hosts.len(),
        took_ms: took_ms.unwrap_or(median) as f64,
        moving_ms: record.gear.moving_ms,
        guess_ms: record.gear.guess_ms,
    };
    rates.starts.learn(&ended, clock::now_ms());
}

/// Enters how fast the hosts of a transfer that has ended were.
fn rates_of(rates: &RateBook, entry: &Entry) {
    if entry.record.gear.is_inline() {
        return;
    }
    let done = entry.hosts.iter().filter(|host| host.state() == Host::Done);
    let samples = done.map(|host| {
        let whole = host.received_until(host.run.ended_ms);
        let last = host.pace.since_first(whole.bytes, host.heard_ms);
        let last = last.filter(Span::is_enough).unwrap_or(whole);
        Sample { agent: host.agent.clone(), whole, last }
    });
    let samples: Vec<Sample> = samples.collect();
    let (is_limited, now_ms) = (entry.record.is_limited(), clock::now_ms());
    match entry.record.gear.replans {
        0 => rates.learn(&samples, !entry.record.gear.is_meshed(), is_limited, now_ms),
        _ => rates.correct(&samples, is_limited, now_ms),
    }
}
