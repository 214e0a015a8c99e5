//! What an operator sees of a transfer's progress: computed from the hosts' reports when asked for.
//!
//! The end is predicted from measured rates alone and is that of the slowest host on its way. Where
//! nothing was measured, or a host stands still, nothing is predicted and the reason is said.

use std::cmp::Reverse;

use super::Entry;
use super::host::HostPush;
use crate::api::types::{SlowHost, TransferHostState as Host, TransferPhase, TransferProgress};

/// Slowest hosts that are named.
const SLOWEST_MAX: usize = 5;

/// Content that data processes sent of one transfer. Each counts from its own start, so a lower
/// number than before is of another one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SourceSent {
    earlier_bytes: u64,
    last_bytes: u64,
}

impl SourceSent {
    /// Takes a report; the answer is what it adds.
    pub fn take(&mut self, bytes: u64) -> u64 {
        if bytes < self.last_bytes {
            self.earlier_bytes += self.last_bytes;
            self.last_bytes = 0;
        }
        let gained = bytes - self.last_bytes;
        self.last_bytes = bytes;
        gained
    }

    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.earlier_bytes + self.last_bytes
    }
}

/// A host that is not done, as the prediction sees it.
struct Pending<'a> {
    host: &'a HostPush,
    bytes_per_s: Option<u64>,
    /// Until it is done; `None` while that is not known.
    remaining_ms: Option<u64>,
}

/// How far `entry` is.
pub(super) fn progress(entry: &Entry, now_ms: i64) -> TransferProgress {
    let record = &entry.record;
    let size_bytes = record.file.as_ref().map_or(0, |file| file.size_bytes);
    let mut progress = TransferProgress {
        at_ms: now_ms,
        elapsed_ms: record.running_ms.map(|running_ms| {
            (record.ended_ms.unwrap_or(now_ms) - running_ms).max(0).unsigned_abs()
        }),
        source_sent_bytes: record.source_sent_bytes.max(entry.sent.bytes()),
        source_is_final: record.source_is_final,
        ..TransferProgress::default()
    };
    let mut verified_bytes = 0;
    let mut hosts_done = 0;
    for host in &entry.hosts {
        let run = &host.run;
        verified_bytes += run.verified_bytes;
        hosts_done += u64::from(host.state() == Host::Done);
        progress.delivered_bytes += run.verified_bytes.saturating_sub(run.resumed_bytes);
        progress.from_peers_bytes += run.from_peers_bytes;
        progress.refused_blocks += run.refused_blocks;
    }
    let all_bytes = size_bytes * entry.hosts.len() as u64;
    progress.percent = match all_bytes {
        0 => percent(hosts_done, entry.hosts.len() as u64),
        _ => percent(verified_bytes, all_bytes),
    };
    if record.ended_ms.is_some() {
        progress.slowest = slowest_done(entry, now_ms);
        return progress;
    }
    match record.phase {
        TransferPhase::Offering => progress.note = "the source hashes the file".into(),
        TransferPhase::Fetching => {
            progress.note = "the server takes the file from its source".into();
        }
        _ => predict(entry, size_bytes, now_ms, &mut progress),
    }
    progress
}

fn percent(part: u64, whole: u64) -> u8 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    percent.min(100) as u8
}

fn predict(entry: &Entry, size_bytes: u64, now_ms: i64, progress: &mut TransferProgress) {
    let mut pending = Vec::new();
    let (mut unreached, mut queued) = (0u64, 0u64);
    for host in &entry.hosts {
        match host.state() {
            Host::Pending | Host::Sent => unreached += 1,
            Host::Waiting => queued += 1,
            Host::Running => pending.push(Pending::of(host, size_bytes, now_ms)),
            _ => {}
        }
    }
    let still = pending.iter().filter(|pending| pending.bytes_per_s == Some(0)).count() as u64;
    let unmeasured = pending.iter().filter(|pending| pending.remaining_ms.is_none()).count() as u64;
    let last_ms = pending.iter().map(|pending| pending.remaining_ms).max().flatten();
    let known = still == 0 && unmeasured == 0 && queued == 0;
    progress.predicted_end_ms = last_ms.filter(|_| known).map(|left_ms| end_ms(now_ms, left_ms));
    let mut notes = Vec::new();
    let mut say = |count: u64, what: &str| {
        if count > 0 {
            notes.push(format!("{count} {what}"));
        }
    };
    say(still, "without progress for 10 s");
    say(queued, "waiting for a turn on the host");
    say(unmeasured - still.min(unmeasured), "not measured yet");
    say(unreached, "not reached");
    progress.note = notes.join(", ");
    // Whoever stands still is first, then those that are not measured, then the last to end.
    let order = |pending: &Pending<'_>| {
        let unknown = (pending.remaining_ms.is_none(), pending.bytes_per_s == Some(0));
        (Reverse(unknown), Reverse(pending.remaining_ms), pending.host.agent.clone())
    };
    if pending.len() > SLOWEST_MAX {
        pending.select_nth_unstable_by_key(SLOWEST_MAX, order);
        pending.truncate(SLOWEST_MAX);
    }
    pending.sort_by_key(order);
    progress.slowest =
        pending.iter().take(SLOWEST_MAX).map(|pending| pending.view(now_ms)).collect();
}

/// A moment that is so far away is no prediction but no overflow either.
fn end_ms(now_ms: i64, left_ms: u64) -> i64 {
    now_ms.saturating_add(i64::try_from(left_ms).unwrap_or(i64::MAX))
}

impl<'a> Pending<'a> {
    fn of(host: &'a HostPush, size_bytes: u64, now_ms: i64) -> Self {
        let left_bytes = size_bytes.saturating_sub(host.run.verified_bytes);
        let bytes_per_s = host.meter.bytes_per_s(now_ms);
        let remaining_ms = match (left_bytes, bytes_per_s) {
            // Everything is verified: what is left is flush and rename.
            (0, _) => Some(0),
            (_, None | Some(0)) => None,
            (left, Some(rate)) => Some((left as f64 * 1_000.0 / rate as f64) as u64),
        };
        let bytes_per_s =
            if left_bytes == 0 { bytes_per_s.filter(|rate| *rate > 0) } else { bytes_per_s };
        Self { host, bytes_per_s, remaining_ms }
    }

    fn view(&self, now_ms: i64) -> SlowHost {
        SlowHost {
            agent_id: self.host.agent.to_string(),
            hostname: self.host.hostname.to_string(),
            verified_bytes: self.host.run.verified_bytes,
            bytes_per_s: self.bytes_per_s,
            predicted_end_ms: self.remaining_ms.map(|left_ms| end_ms(now_ms, left_ms)),
        }
    }
}

fn slowest_done(entry: &Entry, now_ms: i64) -> Vec<SlowHost> {
    let done = entry.hosts.iter().filter(|host| host.state() == Host::Done);
    let mut views: Vec<_> = done.map(|host| host.view(now_ms)).collect();
    views.sort_by(|a, b| (a.bytes_per_s, &a.agent_id).cmp(&(b.bytes_per_s, &b.agent_id)));
    views.truncate(SLOWEST_MAX);
    let slow = |host: crate::api::types::TransferHost| SlowHost {
        agent_id: host.agent_id,
        hostname: host.hostname,
        verified_bytes: host.verified_bytes,
        bytes_per_s: Some(host.bytes_per_s),
        predicted_end_ms: None,
    };
    views.into_iter().map(slow).collect()
}

#[cfg(test)]
mod tests;
