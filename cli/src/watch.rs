//! A transfer's progress in words: one line while it runs, a few when it is shown.

use skein_controlplane::api::types::{SlowHost, SourceState, Transfer, TransferPhase};

use crate::quantity::{bytes, duration};
use crate::show;

/// States in the order in which a host passes through them, then how it may end.
const STATES: [&str; 12] = [
    "not_started",
    "pending",
    "sent",
    "waiting",
    "running",
    "paused",
    "done",
    "failed",
    "refused",
    "undeliverable",
    "cancelled",
    "expired",
];

/// Hosts by state: `2 running, 14 done`.
pub fn states(transfer: &Transfer) -> String {
    let order = |state: &str| STATES.iter().position(|known| *known == state);
    let mut states: Vec<_> = transfer.hosts_by_state.iter().collect();
    states.sort_by_key(|(state, _)| order(state).unwrap_or(STATES.len()));
    states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

/// One line while it runs: `2 running, 14 done, 96 MB/s, ends in 12.0 s`.
pub fn line(transfer: &Transfer) -> String {
    use TransferPhase::{Fetching, Offering, Paused, Queued};
    if matches!(transfer.phase, Queued | Offering | Fetching | Paused) {
        return transfer.progress.note.clone();
    }
    let mut parts = vec![states(transfer)];
    if transfer.bytes_per_s > 0 {
        parts.push(format!("{}/s", bytes(transfer.bytes_per_s)));
    }
    let rollout = &transfer.rollout;
    if !rollout.batches.is_empty() {
        parts.push(format!("batch {} of {}", rollout.batches_started, rollout.batches.len()));
    }
    parts.push(end(transfer));
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

/// `ends in 12.0 s`, or why that is not known.
fn end(transfer: &Transfer) -> String {
    let progress = &transfer.progress;
    let left = progress.predicted_end_ms.map(|end_ms| remaining(end_ms, progress.at_ms));
    match (left, progress.note.as_str()) {
        (Some(left), "") => format!("ends in {left}"),
        (Some(left), note) => format!("ends in {left} but for {note}"),
        (None, "") => String::new(),
        (None, note) => format!("end unknown: {note}"),
    }
}

fn remaining(end_ms: i64, at_ms: i64) -> String {
    duration(u64::try_from(end_ms.saturating_sub(at_ms)).unwrap_or(0))
}

/// What `skein transfer show` says beside the hosts.
pub fn summary(transfer: &Transfer) -> Vec<String> {
    let progress = &transfer.progress;
    let mut lines = vec![format!("gear   {}", show::printable(why(transfer)))];
    if !transfer.sources.is_empty() {
        let source = |one: &SourceState| match one.error.is_empty() {
            true => format!("{}:{}", one.agent_id, one.path),
            false => format!("{}:{} (lost: {})", one.agent_id, one.path, one.error),
        };
        let all: Vec<String> = transfer.sources.iter().map(source).collect();
        lines.push(format!("from   {}", show::printable(all.join(", "))));
    }
    lines.push(format!("hosts  {} of {}", states(transfer), transfer.hosts_total));
    let rate = format!("{} % verified, {}/s in all", progress.percent, bytes(transfer.bytes_per_s));
    lines.push(match end(transfer) {
        end if end.is_empty() => format!("far    {rate}"),
        end => format!("far    {rate}, {end}"),
    });
    lines.push(format!("bytes  {}", traffic(transfer)));
    lines.extend(
        progress.elapsed_ms.map(|elapsed_ms| format!("time   {}", time(transfer, elapsed_ms))),
    );
    if !progress.slowest.is_empty() {
        let slowest: Vec<_> = progress.slowest.iter().map(|host| slow(transfer, host)).collect();
        lines.push(format!("slow   {}", slowest.join("; ")));
    }
    lines
}

/// The planner's sentence, which mostly begins with the gear.
fn why(transfer: &Transfer) -> String {
    match transfer.why.as_str() {
        "" => "not decided before the file is on the server".into(),
        why if why.starts_with(&transfer.gear) => why.into(),
        why => format!("{}: {why}", transfer.gear),
    }
}

/// Who sent how much.
fn traffic(transfer: &Transfer) -> String {
    let progress = &transfer.progress;
    let refused = show::plural(progress.refused_blocks, "block");
    if transfer.gear == "inline" {
        // Orders go by the signal channel, where no file content is counted.
        let each = bytes(transfer.size_bytes);
        return format!("{each} inside the order of each host; {refused} refused");
    }
    let mut text = format!("the server sent {}", bytes(progress.source_sent_bytes));
    if transfer.size_bytes > 0 {
        let copies = progress.source_sent_bytes as f64 / transfer.size_bytes as f64;
        text += &format!(", {copies:.2} of the file");
    }
    if transfer.phase == TransferPhase::Ended && !progress.source_is_final {
        text += " at least";
    }
    if progress.delivered_bytes > 0 {
        let share = progress.from_peers_bytes as f64 * 100.0 / progress.delivered_bytes as f64;
        text += &format!("; {share:.0} % came from other hosts");
    }
    format!("{text}; {refused} refused")
}

fn time(transfer: &Transfer, elapsed_ms: u64) -> String {
    let mut text = duration(elapsed_ms);
    if transfer.bound_ms > 0 {
        if transfer.phase == TransferPhase::Ended {
            let ratio = elapsed_ms as f64 / transfer.bound_ms as f64;
            text += &format!(", {ratio:.2} of the bound {}", duration(transfer.bound_ms));
        } else {
            text += &format!(" so far, bound {}", duration(transfer.bound_ms));
        }
    }
    if transfer.predicted_ms > 0 {
        text += &format!(", planned {}", duration(transfer.predicted_ms));
    }
    text
}

fn slow(transfer: &Transfer, host: &SlowHost) -> String {
    let name = if host.hostname.is_empty() { &host.agent_id } else { &host.hostname };
    let rate = match host.bytes_per_s {
        None => "not measured".to_owned(),
        Some(0) => "no progress for 10 s".to_owned(),
        Some(rate) => format!("{}/s", bytes(rate)),
    };
    let percent = host.verified_bytes * 100 / transfer.size_bytes.max(1);
    let mut text = format!("{} {percent} %, {rate}", show::printable(name.clone()));
    if let Some(end_ms) = host.predicted_end_ms {
        text += &format!(", ends in {}", remaining(end_ms, transfer.progress.at_ms));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transfer of 1 GB to 16 hosts, as the API says it, with these fields changed.
    fn transfer(changed: serde_json::Value) -> Transfer {
        let mut fields = serde_json::json!({
            "transfer_id": "00", "phase": "running", "source": {"upload": {"upload_id": "x"}},
            "targets": "all", "directory": "/opt", "file_name": "f", "gear": "planned",
            "why": "planned: 16 hosts x 954 MiB at 800 Mbit/s; predicted 11.0 s of 10.0 s bound", "predicted_ms": 11_000, "bound_ms": 10_000,
            "size_bytes": 1_000_000_000u64, "root": "", "error": "", "created_ms": 0,
            "ended_ms": null, "hosts_by_state": {"done": 13, "running": 2, "failed": 1},
            "hosts_total": 16, "hosts_done": 13, "verified_bytes": 0, "resumed_bytes": 0,
            "bytes_per_s": 96_000_000,
        });
        for (key, value) in changed.as_object().unwrap() {
            fields[key] = value.clone();
        }
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn a_line_says_states_rate_and_end() {
        let line_of = |progress| line(&transfer(serde_json::json!({ "progress": progress })));
        assert_eq!(
            line_of(serde_json::json!({"at_ms": 5_000, "predicted_end_ms": 17_000})),
            "2 running, 13 done, 1 failed, 96 MB/s, ends in 12.0 s"
        );
        let note = "1 not reached";
        assert!(
            line_of(serde_json::json!({"at_ms": 5, "predicted_end_ms": 5, "note": note}))
                .ends_with("ends in 0 ms but for 1 not reached")
        );
        assert!(line_of(serde_json::json!({"note": note})).ends_with("end unknown: 1 not reached"));
        for phase in ["queued", "offering", "fetching", "paused"] {
            let stands = serde_json::json!({"phase": phase, "progress": {"note": "because"}});
            assert_eq!(line(&transfer(stands)), "because");
        }
        let batches = serde_json::json!({
            "hosts_by_state": {"not_started": 14, "running": 2}, "bytes_per_s": 0,
            "rollout": {
                "priority": "normal", "batches": [2, 16], "batches_started": 1,
                "max_errors": "0", "reason": "",
            },
        });
        assert_eq!(line(&transfer(batches)), "14 not_started, 2 running, batch 1 of 2");
    }

    #[test]
    fn what_is_shown_names_traffic_time_and_the_slow() {
        let ended = transfer(serde_json::json!({
            "phase": "ended", "ended_ms": 12_000, "hosts_by_state": {"done": 16},
            "progress": {
                "percent": 100, "elapsed_ms": 10_800, "delivered_bytes": 16_000_000_000u64,
                "from_peers_bytes": 15_000_000_000u64, "source_sent_bytes": 1_020_000_000,
                "source_is_final": true, "refused_blocks": 1,
                "slowest": [{"hostname": "web-7", "verified_bytes": 1_000_000_000, "bytes_per_s": 93_000_000}],
            },
        }));
        assert_eq!(
            summary(&ended),
            [
                "gear   planned: 16 hosts x 954 MiB at 800 Mbit/s; predicted 11.0 s of 10.0 s bound",
                "hosts  16 done of 16",
                "far    100 % verified, 96 MB/s in all",
                "bytes  the server sent 1.0 GB, 1.02 of the file; 94 % came from other hosts; 1 block refused",
                "time   10.8 s, 1.08 of the bound 10.0 s, planned 11.0 s",
                "slow   web-7 100 %, 93 MB/s",
            ]
        );
        for line in summary(&ended) {
            assert!(GUIDE.contains(&line), "the guide shows {line}");
        }
        let mut early = ended.clone();
        early.progress.source_is_final = false;
        assert!(summary(&early)[3].contains("1.02 of the file at least;"));
        let mut inline = early.clone();
        (inline.gear, inline.size_bytes) = ("inline".into(), 10_240);
        inline.progress = Default::default();
        assert_eq!(
            summary(&inline)[3],
            "bytes  10 kB inside the order of each host; 0 blocks refused"
        );
    }

    #[test]
    fn hosts_that_stand_still_are_named() {
        let running = transfer(serde_json::json!({ "progress": {
            "at_ms": 1_000, "elapsed_ms": 900, "note": "1 without progress for 10 s",
            "slowest": [
                {"agent_id": "a-1", "verified_bytes": 250_000_000, "bytes_per_s": 0},
                {"hostname": "b", "bytes_per_s": 1_000_000, "predicted_end_ms": 4_000},
                {"hostname": "c"},
            ],
        }}));
        let lines = summary(&running);
        assert_eq!(
            lines[2],
            "far    0 % verified, 96 MB/s in all, end unknown: 1 without progress for 10 s"
        );
        assert_eq!(lines[4], "time   900 ms so far, bound 10.0 s, planned 11.0 s");
        assert_eq!(
            lines[5],
            "slow   a-1 25 %, no progress for 10 s; b 0 %, 1.0 MB/s, ends in 3.0 s; c 0 %, not measured"
        );
    }

    const GUIDE: &str = include_str!("../../docs/bulk-distribution.md");

    #[test]
    fn the_guide_explains_every_state_and_phase() {
        use skein_controlplane::api::types::TransferHostState as Host;
        let hosts = [
            Host::NotStarted,
            Host::Pending,
            Host::Sent,
            Host::Waiting,
            Host::Running,
            Host::Paused,
            Host::Done,
            Host::Failed,
            Host::Refused,
            Host::Undeliverable,
            Host::Cancelled,
            Host::Expired,
        ];
        let hosts = hosts.map(|state| crate::client::word(&state));
        assert_eq!(hosts, STATES, "the order of the line");
        let phases = [
            TransferPhase::Queued,
            TransferPhase::Offering,
            TransferPhase::Fetching,
            TransferPhase::Running,
            TransferPhase::Paused,
            TransferPhase::Halted,
            TransferPhase::Ended,
        ];
        let phases = phases.map(|phase| crate::client::word(&phase));
        for word in hosts.iter().chain(&phases) {
            assert!(GUIDE.contains(&format!("| `{word}` |")), "{word}");
        }
    }
}
