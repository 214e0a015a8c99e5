//! The spool as inputs and the data channel see it, on real files.

#![allow(clippy::unwrap_used)] // Helpers of tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use skein_agent::spool::{Durability, Input, Peek, Place, Position, Refusal, Spool, SpoolConfig};
use skein_wire::batch::{BatchHeader, HEADER_BYTES};
use skein_wire::compress::Decompressor;
use skein_wire::data::HoldReason;
use skein_wire::ids::AgentId;
use skein_wire::records;
use tokio::task::LocalSet;

const LANE: u32 = 1001;
/// A disk that others keep busy takes seconds for a flush.
const CLOSE: Duration = Duration::from_secs(60);

fn place(dir: &Path, boot: u8) -> Place {
    Place { dir: dir.to_owned(), boot_id: [boot; 16] }
}

fn config() -> SpoolConfig {
    SpoolConfig { linger_ms: 5, ..SpoolConfig::default() }
}

fn open(dir: &Path, boot: u8, config: &SpoolConfig) -> Rc<Spool> {
    let agent = AgentId::parse("agent-1").unwrap();
    let spool = Spool::open(place(dir, boot), config, agent).unwrap();
    let driven = spool.clone();
    tokio::task::spawn_local(async move { driven.run().await });
    spool
}

fn local<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(3 * CLOSE, test).await.expect("test hangs");
    });
}

async fn push(spool: &Spool, lane: u32, text: &str) {
    spool.push(Input::Collector, lane, 1, text.as_bytes()).unwrap();
    let receipt = spool.receipt(lane);
    spool.flush(lane);
    receipt.await.unwrap();
}

fn open_frame(frame: &[u8]) -> (BatchHeader, Vec<String>) {
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
    let header = BatchHeader::decode(header).unwrap();
    header.verify_body(body).unwrap();
    let mut raw = Vec::new();
    let raw_bytes = header.raw_bytes as usize;
    Decompressor::new().decompress(header.codec, body, raw_bytes, &mut raw).unwrap();
    let values = records::iter(&raw, header.record_count)
        .map(|record| String::from_utf8_lossy(record.unwrap().value).into_owned())
        .collect();
    (header, values)
}

/// Everything that can be sent of a lane from `from`, as (epoch, sequence, text).
async fn drain(spool: &Spool, lane: u32, from: Position) -> Vec<(u64, u64, String)> {
    let mut out = Vec::new();
    spool.seek(lane, from);
    loop {
        match spool.peek(lane) {
            Peek::Batch(batch) => {
                let (header, values) = open_frame(&batch.frame);
                assert_eq!(header, batch.header);
                for (index, value) in values.into_iter().enumerate() {
                    out.push((header.epoch.0, header.first.0 + index as u64, value));
                }
                spool.pop(lane);
            }
            Peek::Loading | Peek::Busy => spool.changed().await,
            Peek::End => return out,
        }
    }
}

async fn wait_until(mut met: impl FnMut() -> bool) {
    while !met() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn segments(dir: &Path, lane: u32) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir.join(lane.to_string()))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        char::from(b'!' + (state >> 33) as u8 % 90)
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn records_come_back_in_order_from_memory_and_from_disk() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        spool.seek(LANE, Position::default());
        for number in 0..20 {
            push(&spool, LANE, &format!("line {number}")).await;
        }
        let hot = drain(&spool, LANE, Position::default()).await;
        let epoch = hot[0].0;
        let expected: Vec<_> = (0..20).map(|n| (epoch, n, format!("line {n}"))).collect();
        assert_eq!(hot, expected);
        assert_eq!(drain(&spool, LANE, Position::new(epoch, 7)).await, expected[7..]);
        assert_eq!(spool.totals().records, 20);
        spool.ack(LANE, Position::new(epoch, 20));
        assert_eq!(spool.totals().records, 0);
    });
}

#[test]
fn a_batch_waits_for_its_time_or_its_size() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &SpoolConfig { linger_ms: 20, ..config() });
        for _ in 0..10 {
            spool.push(Input::Emit, LANE, 1, b"small").unwrap();
        }
        let started = std::time::Instant::now();
        spool.receipt(LANE).await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(15), "ten small records wait");
        assert_eq!(spool.range_of(LANE, spool.epoch_to_send(LANE).unwrap()), Some((0, 10)));
        // 300 KiB cannot wait in a batch of 256 KiB.
        let kib = noise(1, 1024);
        for _ in 0..300 {
            spool.push(Input::Emit, LANE, 1, kib.as_bytes()).unwrap();
        }
        wait_until(|| spool.totals().records > 200).await;
    });
}

/// kill -9 at any moment: a copy of the files at that moment is what the next start finds.
#[test]
fn a_copy_at_any_moment_recovers_what_was_durable_and_its_marks() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(&dir.path().join("live"), 1, &config());
        for number in 0..30u32 {
            spool.push(Input::Tail, LANE, 1, format!("line {number}").as_bytes()).unwrap();
            spool.mark(LANE, b"file", &number.to_be_bytes()).unwrap();
            let receipt = spool.receipt(LANE);
            spool.flush(LANE);
            receipt.await.unwrap();
            if number == 11 {
                spool.ack(LANE, Position::new(spool.epoch_to_send(LANE).unwrap(), 5));
            }
            if number % 7 != 3 {
                continue;
            }
            let copy = dir.path().join(format!("killed-{number}"));
            copy_dir(&dir.path().join("live"), &copy);
            let revived = open(&copy, 1, &config());
            let marks = revived.recovered_marks();
            assert_eq!(marks[&LANE][&b"file"[..]], number.to_be_bytes());
            let epoch = revived.epoch_to_send(LANE).unwrap();
            let lines = drain(&revived, LANE, Position::new(epoch, 0)).await;
            let texts: Vec<_> =
                (0..=number).map(|n| (epoch, n.into(), format!("line {n}"))).collect();
            assert_eq!(lines, texts);
            push(&revived, LANE, "after").await;
            let after = drain(&revived, LANE, Position::new(epoch, u64::from(number))).await;
            assert_eq!(after.last().unwrap(), &(epoch, u64::from(number) + 1, "after".into()));
            revived.close(CLOSE).await;
        }
    });
}

/// The tail of the newest segment is cut or damaged at every byte: what starts again has a prefix
/// of the lines, and its marks agree with exactly that prefix.
#[test]
fn a_tail_torn_at_any_byte_keeps_records_and_marks_together() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let spool = open(&live, 1, &config());
        for number in 0..4u32 {
            spool.push(Input::Tail, LANE, 1, format!("line {number}").as_bytes()).unwrap();
            spool.mark(LANE, b"file", &number.to_be_bytes()).unwrap();
            let receipt = spool.receipt(LANE);
            spool.flush(LANE);
            receipt.await.unwrap();
        }
        let file = segments(&live, LANE).pop().unwrap();
        let whole = std::fs::read(&file).unwrap();
        for cut in (0..whole.len()).step_by(3) {
            for garbage in [false, true] {
                let copy = dir.path().join(format!("cut-{cut}-{garbage}"));
                let lane = copy.join(LANE.to_string());
                std::fs::create_dir_all(&lane).unwrap();
                let mut bytes = whole[..cut].to_vec();
                if garbage {
                    bytes.extend_from_slice(noise(cut as u64, 50).as_bytes());
                }
                std::fs::write(lane.join(file.file_name().unwrap()), bytes).unwrap();
                let revived = open(&copy, 1, &config());
                let marks = revived.recovered_marks();
                let lines = match revived.epoch_to_send(LANE) {
                    Some(epoch) => drain(&revived, LANE, Position::new(epoch, 0)).await,
                    None => Vec::new(),
                };
                let marked = marks.get(&LANE).and_then(|marks| marks.get(&b"file"[..]));
                let expected = marked.map_or(0, |mark| mark[3] as usize + 1);
                assert_eq!(lines.len(), expected, "cut at {cut}");
                push(&revived, LANE, "more").await;
                assert_eq!(revived.totals().records as usize, expected + 1);
            }
        }
    });
}

#[test]
fn an_acknowledged_lane_keeps_its_sequence_across_restarts() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let mut epoch = 0;
        for round in 0..4u64 {
            // Another boot each time: in order, so nothing is uncertain.
            let spool = open(dir.path(), round as u8, &config());
            push(&spool, LANE, "x").await;
            let now = spool.epoch_to_send(LANE).unwrap();
            assert!(round == 0 || now == epoch, "the epoch stays");
            epoch = now;
            assert_eq!(spool.range_of(LANE, epoch).unwrap(), (round, round + 1));
            spool.ack(LANE, Position::new(epoch, round + 1));
            spool.close(CLOSE).await;
        }
    });
}

/// After a loss of power the page cache may have lost records that a server has: their numbers are
/// not given again. What is left of the old epoch is sent first.
#[test]
fn after_a_loss_of_power_a_new_epoch_begins_behind_the_old_one() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(&dir.path().join("a"), 1, &config());
        push(&spool, LANE, "before").await;
        copy_dir(&dir.path().join("a"), &dir.path().join("b"));
        copy_dir(&dir.path().join("a"), &dir.path().join("c"));
        let old = spool.epoch_to_send(LANE).unwrap();

        let revived = open(&dir.path().join("b"), 2, &config());
        push(&revived, LANE, "after").await;
        assert_eq!(revived.epoch_to_send(LANE), Some(old), "the old epoch is due first");
        let all = drain(&revived, LANE, Position::new(old, 0)).await;
        assert_eq!((all[0].0, all[0].1, &all[0].2[..]), (old, 0, "before"));
        assert!(all[1].0 > old);
        assert_eq!((all[1].1, &all[1].2[..]), (0, "after"));
        revived.ack(LANE, Position::new(old, 1));
        assert_eq!(revived.epoch_to_send(LANE), Some(all[1].0));

        // With durability "power" nothing was sent that is not on disk: the epoch goes on.
        let power = SpoolConfig { durability: Durability::Power, flush_ms: 1, ..config() };
        let revived = open(&dir.path().join("c"), 2, &power);
        push(&revived, LANE, "after").await;
        assert_eq!(drain(&revived, LANE, Position::new(old, 1)).await, [(old, 1, "after".into())]);
    });
}

#[test]
fn a_full_lane_drops_its_oldest_and_counts_them() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let config = SpoolConfig {
            max_bytes: 8 << 20,
            lane_max_bytes: 1 << 20,
            held_lane_max_bytes: 512 << 10,
            ..config()
        };
        let spool = open(dir.path(), 1, &config);
        let total = 60u64;
        for number in 0..total {
            push(&spool, LANE, &format!("{number} {}", noise(number, 60_000))).await;
        }
        let totals = spool.totals();
        assert!(totals.dropped > 0 && totals.records + totals.dropped == total, "{totals:?}");
        let size = |file: &std::path::PathBuf| file.metadata().map_or(0, |meta| meta.len());
        wait_until(|| segments(dir.path(), LANE).iter().map(size).sum::<u64>() <= 1 << 20).await;
        let epoch = spool.epoch_to_send(LANE).unwrap();
        let left = drain(&spool, LANE, Position::default()).await;
        assert_eq!(left[0].1, totals.dropped, "the oldest went");
        assert_eq!(spool.range_of(LANE, epoch), Some((totals.dropped, total)));
        for (at, line) in left.iter().enumerate() {
            assert!(line.2.starts_with(&format!("{} ", totals.dropped + at as u64)));
        }
    });
}

#[test]
fn a_held_lane_keeps_a_small_share_and_gives_way_first() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let config = SpoolConfig {
            max_bytes: 4 << 20,
            lane_max_bytes: 3 << 20,
            held_lane_max_bytes: 512 << 10,
            ..config()
        };
        let spool = open(dir.path(), 1, &config);
        push(&spool, 7, "x").await;
        spool.set_held(7, Some(HoldReason::UnknownDataId));
        for number in 0..30 {
            push(&spool, 7, &noise(number, 60_000)).await;
        }
        assert!(spool.depth(7).unwrap().bytes <= 512 << 10);
        assert!(!spool.has_room(7), "inputs that can wait would wait");

        // A lane that was full when it was held keeps that, until others need the room.
        for number in 0..50 {
            push(&spool, 8, &noise(number, 60_000)).await;
        }
        spool.set_held(8, Some(HoldReason::SinkUnavailable));
        let before = spool.depth(8).unwrap();
        assert!(before.bytes > 2 << 20 && before.dropped == 0);
        for number in 0..40 {
            push(&spool, LANE, &noise(number, 60_000)).await;
        }
        assert_eq!(spool.depth(LANE).unwrap().dropped, 0);
        assert!(spool.depth(8).unwrap().dropped > 0);
    });
}

/// A lane whose last segment had to go still knows its epoch, its sequence and its marks.
#[test]
fn a_lane_that_gave_everything_keeps_its_history() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let config = SpoolConfig { max_bytes: 4 << 20, lane_max_bytes: 4 << 20, ..config() };
        let spool = open(dir.path(), 1, &config);
        push(&spool, 7, &noise(1, 62_000)).await;
        spool.mark(7, b"key", b"value").unwrap();
        spool.flush(7);
        let epoch = spool.epoch_to_send(7).unwrap();
        // Many lanes of one batch each; lane 7 is the largest by a little.
        let mut lane = 8;
        while spool.depth(7).unwrap().records > 0 {
            lane += 1;
            push(&spool, lane, &noise(lane.into(), 60_000)).await;
            assert!(lane < 500);
        }
        spool.close(CLOSE).await;
        let spool = open(dir.path(), 1, &config);
        assert_eq!(spool.recovered_marks()[&7][&b"key"[..]], b"value");
        push(&spool, 7, "next").await;
        assert_eq!(spool.epoch_to_send(7), Some(epoch));
        assert_eq!(spool.range_of(7, epoch), Some((1, 2)));
    });
}

#[test]
fn a_stale_epoch_is_left_behind() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        push(&spool, LANE, "stale").await;
        let old = spool.epoch_to_send(LANE).unwrap();
        spool.push(Input::Collector, LANE, 1, b"in the batch").unwrap();
        spool.restart_lane(LANE, old, old);
        push(&spool, LANE, "fresh").await;
        let epoch = spool.epoch_to_send(LANE).unwrap();
        assert!(epoch > old);
        let left = drain(&spool, LANE, Position::new(epoch, 0)).await;
        assert_eq!(left, [(epoch, 0, "in the batch".into()), (epoch, 1, "fresh".into())]);
        assert_eq!(spool.totals().dropped, 1);
    });
}

#[test]
fn a_refused_record_leaves_its_number_out() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        push(&spool, LANE, "first").await;
        let giant = vec![b'x'; skein_wire::limits::RECORD_BYTES_MAX + 1];
        let refused = spool.push(Input::Collector, LANE, 1, &giant);
        assert_eq!(refused, Err(Refusal::TooLarge));
        push(&spool, LANE, "third").await;
        let epoch = spool.epoch_to_send(LANE).unwrap();
        let left = drain(&spool, LANE, Position::new(epoch, 0)).await;
        assert_eq!(left, [(epoch, 0, "first".into()), (epoch, 2, "third".into())]);
        assert_eq!(spool.totals().dropped, 1);
        // A record that does not compress below the largest body ends the same way.
        let stubborn = noise(5, 3_000_000);
        spool.push(Input::Collector, LANE, 1, stubborn.as_bytes()).unwrap();
        push(&spool, LANE, "fifth").await;
        assert_eq!(
            drain(&spool, LANE, Position::new(epoch, 3)).await,
            [(epoch, 4, "fifth".into())]
        );
        assert_eq!(spool.totals().dropped, 2);
    });
}

#[test]
fn a_spool_has_one_owner() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let agent = AgentId::parse("agent-1").unwrap();
        let second = Spool::open(place(dir.path(), 1), &config(), agent);
        assert!(second.unwrap_err().to_string().contains("in use"));
        spool.close(CLOSE).await;
        drop(open(dir.path(), 1, &config()));
    });
}

/// A disk that refuses writes (here: the lane's folder cannot be made): inputs that cannot wait
/// lose counted records, the others are told to wait, and all goes on when the disk is back.
#[test]
fn a_disk_that_refuses_writes_stalls_nobody() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let blocker = dir.path().join(LANE.to_string());
        std::fs::write(&blocker, "a file where a folder should be").unwrap();
        let record = noise(3, 60_000);
        let mut refused = 0u64;
        for _ in 0..200 {
            match spool.push(Input::Collector, LANE, 1, record.as_bytes()) {
                Ok(()) => spool.flush(LANE),
                Err(error) => {
                    assert_eq!(error, Refusal::Disk);
                    refused += 1;
                }
            }
            tokio::task::yield_now().await;
        }
        assert!(refused > 50, "memory is bounded: {refused}");
        wait_until(|| !spool.has_room(LANE)).await;
        assert_eq!(spool.totals().dropped, refused);
        std::fs::remove_file(&blocker).unwrap();
        wait_until(|| spool.has_room(LANE)).await;
        push(&spool, LANE, "last").await;
        wait_until(|| spool.totals().records == 201 - refused).await;
        let epoch = spool.epoch_to_send(LANE).unwrap();
        let left = drain(&spool, LANE, Position::new(epoch, 0)).await;
        assert_eq!(left.last().unwrap(), &(epoch, 200, "last".into()), "numbers of all are used");
    });
}

/// A model of the lane's promise: each record is either handed out once, in order, or counted.
#[test]
fn every_record_is_delivered_or_counted_under_random_events() {
    local(async {
        for seed in 0..12u64 {
            let dir = tempfile::tempdir().unwrap();
            let config = SpoolConfig {
                max_bytes: 4 << 20,
                lane_max_bytes: 2 << 20,
                batch_bytes: 64 << 10,
                ..config()
            };
            let mut spool = open(dir.path(), 1, &config);
            let mut random = seed * 77 + 1;
            let mut draw = |bound: u64| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (random >> 33) % bound
            };
            let mut pushed: BTreeMap<u32, u64> = BTreeMap::new();
            let mut dropped = 0;
            for _ in 0..300 {
                let lane = LANE + draw(3) as u32;
                match draw(10) {
                    0 => {
                        if let Some((epoch, (first, end))) = spool
                            .epoch_to_send(lane)
                            .and_then(|epoch| Some((epoch, spool.range_of(lane, epoch)?)))
                        {
                            spool.ack(lane, Position::new(epoch, first + draw(end - first + 1)));
                        }
                    }
                    1 if draw(4) == 0 => {
                        dropped += spool.totals().dropped;
                        spool.close(CLOSE).await;
                        spool = open(dir.path(), 1, &config);
                    }
                    2 => spool.flush(lane),
                    _ => {
                        let number = pushed.entry(lane).or_default();
                        let text = format!("{number} {}", noise(draw(1000), 20_000));
                        spool.push(Input::Collector, lane, 1, text.as_bytes()).unwrap();
                        *number += 1;
                    }
                }
                if draw(3) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            for (lane, count) in pushed {
                spool.push(Input::Collector, lane, 1, b"end").unwrap();
                let receipt = spool.receipt(lane);
                spool.flush(lane);
                receipt.await.unwrap();
                let epoch = spool.epoch_to_send(lane).unwrap();
                let (first, end) = spool.range_of(lane, epoch).unwrap();
                assert_eq!(end, count + 1, "seed {seed}: every record has a number");
                let left = drain(&spool, lane, Position::new(epoch, first)).await;
                let numbers: Vec<u64> = left.iter().map(|line| line.1).collect();
                let expected: Vec<u64> = (numbers[0]..end).collect();
                assert_eq!(numbers, expected, "seed {seed}");
                assert!(numbers[0] <= first, "seed {seed}: batches are not cut");
                for (_, number, text) in &left[..left.len() - 1] {
                    assert!(text.starts_with(&format!("{number} ")), "seed {seed}");
                }
            }
            let _ = dropped;
        }
    });
}
