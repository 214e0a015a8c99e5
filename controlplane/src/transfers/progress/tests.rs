//! Predictions from reports at given times.

use std::sync::Arc;

use skein_wire::ids::AgentId;

use super::*;
use crate::api::types::{TransferRequest, TransferSource, Upload};
use crate::transfers::record::TransferRecord;

const SIZE: u64 = 10_000;

/// A transfer of 10,000 bytes that runs since second 1, to hosts in these states.
fn running(states: &[Host]) -> Entry {
    let request =
        TransferRequest::new(TransferSource::Upload { upload_id: "x".into() }, "all", "/opt");
    let mut record = TransferRecord::from_request(request, 500).unwrap();
    let file = Upload {
        tree: false,
        upload_id: "x".into(),
        name: "f".into(),
        size_bytes: SIZE,
        root: String::new(),
        piece_bytes: 16_384,
        mode: 0o644,
        mtime_ms: 0,
        created_ms: 0,
        expires_ms: 0,
    };
    record.run(file, 1_000);
    let host = |(number, state): (usize, &Host)| {
        let name = format!("h{number}");
        let mut host = HostPush::new(AgentId::parse(&name).unwrap(), Arc::from(name));
        host.run.state = *state;
        host
    };
    Entry::new(record, states.iter().enumerate().map(host).collect())
}

/// Host `at` reports `bytes` at this time.
fn report(entry: &mut Entry, at: usize, bytes: u64, now_ms: i64) {
    let host = &mut entry.hosts[at];
    host.run.verified_bytes = bytes;
    host.meter.note(bytes, 0, now_ms);
}

#[test]
fn the_end_is_that_of_the_slowest_host() {
    let mut entry = running(&[Host::Running, Host::Running, Host::Done]);
    for at in [0, 1] {
        report(&mut entry, at, 0, 1_000);
    }
    entry.hosts[2].run.verified_bytes = SIZE;
    report(&mut entry, 0, 4_000, 2_000);
    report(&mut entry, 1, 1_000, 2_000);
    let progress = progress(&entry, 2_000);
    // 9,000 bytes at 1,000 a second.
    assert_eq!((progress.predicted_end_ms, &*progress.note), (Some(11_000), ""));
    assert_eq!((progress.percent, progress.elapsed_ms), (50, Some(1_000)));
    assert_eq!(progress.delivered_bytes, 15_000);
    let slowest: Vec<_> = progress.slowest.iter().map(|slow| &*slow.agent_id).collect();
    assert_eq!(slowest, ["h1", "h0"]);
    assert_eq!(progress.slowest[1].predicted_end_ms, Some(3_500));
}

#[test]
fn nothing_is_predicted_that_was_not_measured() {
    let mut entry = running(&[Host::Running, Host::Running, Host::Waiting, Host::Sent]);
    let known = |entry: &Entry, now_ms| {
        let progress = progress(entry, now_ms);
        (progress.predicted_end_ms.is_some(), progress.note)
    };
    let note = "1 waiting for a turn on the host, 2 not measured yet, 1 not reached";
    assert_eq!(known(&entry, 1_000), (false, note.into()));
    for at in [0, 1] {
        report(&mut entry, at, 0, 1_000);
        report(&mut entry, at, 5_000, 2_000);
    }
    let note = "1 waiting for a turn on the host, 1 not reached";
    assert_eq!(known(&entry, 2_000), (false, note.into()));
    // Hosts that are not reached are named and left out.
    entry.hosts[2].run.state = Host::Done;
    assert_eq!(known(&entry, 2_000), (true, "1 not reached".into()));
    report(&mut entry, 0, 9_000, 12_000);
    assert_eq!(known(&entry, 12_500).1, "1 without progress for 10 s, 1 not reached");
    assert_eq!(progress(&entry, 12_500).slowest[0].agent_id, "h1");
    // What is only flushed still is as good as done.
    report(&mut entry, 1, SIZE, 12_500);
    assert!(known(&entry, 30_000) == (false, "1 without progress for 10 s, 1 not reached".into()));
    report(&mut entry, 0, SIZE, 30_000);
    assert_eq!(progress(&entry, 60_000).predicted_end_ms, Some(60_000));
}

#[test]
fn of_many_hosts_the_slowest_five_are_named() {
    let mut entry = running(&[Host::Running; 40]);
    for at in 0..40 {
        report(&mut entry, at, 0, 1_000);
        report(&mut entry, at, 100 + (at as u64 * 7) % 40, 2_000);
    }
    let progress = progress(&entry, 2_000);
    let rates: Vec<_> = progress.slowest.iter().map(|slow| slow.bytes_per_s).collect();
    assert_eq!(rates, (100..105).map(Some).collect::<Vec<_>>());
    assert_eq!(progress.predicted_end_ms, progress.slowest[0].predicted_end_ms);
}

#[test]
fn an_ended_transfer_says_who_was_slow_and_predicts_nothing() {
    let mut entry = running(&[Host::Done, Host::Done, Host::Failed]);
    for (host, ended_ms) in entry.hosts.iter_mut().zip([2_000, 5_000, 3_000]) {
        (host.run.verified_bytes, host.run.started_ms, host.run.ended_ms) = (SIZE, 1_000, ended_ms);
    }
    entry.record.ended_ms = Some(5_000);
    let progress = progress(&entry, 99_000);
    assert_eq!((progress.predicted_end_ms, progress.elapsed_ms), (None, Some(4_000)));
    let slowest: Vec<_> = progress.slowest.iter().map(|slow| &*slow.agent_id).collect();
    assert_eq!(slowest, ["h1", "h0"]);
    assert_eq!(progress.slowest[0].bytes_per_s, Some(2_500));
}

#[test]
fn an_empty_file_has_a_percentage_too() {
    let mut entry = running(&[Host::Done, Host::Running]);
    entry.record.file.as_mut().unwrap().size_bytes = 0;
    assert_eq!(progress(&entry, 2_000).percent, 50);
}

#[test]
fn what_the_source_sent_adds_up_over_restarts_of_the_data_process() {
    let mut sent = SourceSent::default();
    assert_eq!([sent.take(10), sent.take(30), sent.take(30)], [10, 20, 0]);
    // A new process counts from 0, and one that knows nothing answers 0.
    assert_eq!([sent.take(5), sent.take(0)], [5, 0]);
    assert_eq!(sent.bytes(), 35);
}

#[test]
fn batches_that_wait_and_pauses_leave_the_end_unknown() {
    let mut entry = running(&[Host::Running, Host::Pending, Host::Pending]);
    report(&mut entry, 0, 0, 1_000);
    report(&mut entry, 0, 5_000, 2_000);
    let says = |entry: &Entry| {
        let progress = progress(entry, 2_000);
        (progress.predicted_end_ms, progress.note)
    };
    assert_eq!(says(&entry), (Some(3_000), "2 not reached".into()));
    entry.record.rollout.batches = vec![1, 3];
    entry.record.rollout.started = 1;
    assert_eq!(says(&entry), (None, "2 in batches that were not started".into()));
    entry.record.rollout.queued = true;
    entry.queue_note = "others come first".into();
    assert_eq!(says(&entry), (None, "others come first".into()));
    entry.record.rollout.paused_ms = Some(1_500);
    assert_eq!(says(&entry), (None, "paused by an operator".into()));
}
