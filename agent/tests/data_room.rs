//! Room: what lanes may take of a spool that others need, and of a disk that is full.

#![allow(clippy::unwrap_used)] // Helpers of tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use skein_agent::spool::{Input, Peek, Place, Position, Refusal, Spool, SpoolConfig};
use skein_wire::data::HoldReason;
use skein_wire::ids::AgentId;
use tokio::task::LocalSet;

const LANE: u32 = 1001;

fn local<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("test hangs");
    });
}

async fn wait_until(mut met: impl FnMut() -> bool) {
    while !met() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn open(dir: &Path, max_bytes: u64) -> Rc<Spool> {
    let place = Place { dir: dir.to_owned(), boot_id: [1; 16] };
    let config = SpoolConfig { linger_ms: 5, max_bytes, ..SpoolConfig::default() };
    let spool = Spool::open(place, &config, AgentId::parse("agent-1").unwrap()).unwrap();
    let driven = spool.clone();
    tokio::task::spawn_local(async move { driven.run().await });
    spool
}

/// Bytes that do not compress.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Pushes until the spool says no, or `bytes` are in it; answers how many records it took.
async fn fill(spool: &Spool, input: Input, lane: u32, bytes: usize) -> u64 {
    let record = noise(lane.into(), 20_000);
    let mut taken = 0;
    for _ in 0..bytes / record.len() {
        if spool.push(input, lane, 1, &record).is_err() {
            break;
        }
        taken += 1;
        spool.flush(lane);
        let _ = spool.receipt(lane).await;
    }
    taken
}

/// More lanes than the cap has shares are held for ever, with as much as they may have. Inputs
/// of a lane that flows still find room, and it loses nothing.
async fn held_lanes_starve_nobody(input: Input) {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), 4 << 20);
    for lane in 1..=20 {
        fill(&spool, input, lane, 20_000).await;
        spool.set_held(lane, Some(HoldReason::UnknownDataId));
    }
    for lane in 1..=20 {
        fill(&spool, input, lane, 1 << 20).await;
    }
    assert!(spool.totals().bytes <= 4 << 20);
    let taken = fill(&spool, Input::Tail, LANE, 1 << 20).await;
    assert!(taken > 40, "{input:?}: only {taken} records of a lane that flows found room");
    let depth = spool.depth(LANE).unwrap();
    assert_eq!((depth.records, depth.dropped), (taken, 0));
    assert!(spool.totals().bytes <= 4 << 20);
}

#[test]
fn lanes_held_for_ever_leave_room_to_those_that_flow() {
    local(async {
        held_lanes_starve_nobody(Input::Tail).await;
        held_lanes_starve_nobody(Input::Collector).await;
    });
}

/// A file system of this many MiB; none where that needs a right that we have not.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Option<SmallDisk> {
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        let mounted = mounted.is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("not tested: this user may not mount a small file system");
        }
        mounted.then(|| SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the spool's thread may still have files of it open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// ENOSPC: inputs that can wait are told to, those that cannot lose counted records, nothing that
/// was taken is lost, and when an acknowledgement makes room all goes on.
#[test]
fn a_full_disk_keeps_what_it_took_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(dir.path(), 3) else { return };
    local(async {
        let spool = open(dir.path(), 64 << 20);
        let record = noise(3, 20_000);
        let mut taken = 0;
        while spool.has_room(LANE) {
            match spool.push(Input::Emit, LANE, 1, &record) {
                Ok(()) => taken += 1,
                Err(refusal) => assert!(matches!(refusal, Refusal::Disk | Refusal::Full)),
            }
            spool.flush(LANE);
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        assert!(taken > 100, "{taken}");
        // What waits for the disk is bounded; a collector's record beyond is counted.
        let mut dropped = 0;
        for _ in 0..400 {
            match spool.push(Input::Collector, LANE, 1, &record) {
                Ok(()) => taken += 1,
                Err(_) => dropped += 1,
            }
            spool.flush(LANE);
        }
        assert!(dropped > 100, "{dropped}");
        assert_eq!(spool.totals().dropped, dropped);

        // A server takes it bit by bit: everything taken comes out once, and in order.
        let mut seen = 0;
        while seen < taken {
            wait_until(|| spool.epoch_to_send(LANE).is_some()).await;
            let epoch = spool.epoch_to_send(LANE).unwrap();
            let (mut next, _) = spool.range_of(LANE, epoch).unwrap();
            spool.seek(LANE, Position::new(epoch, next));
            loop {
                match spool.peek(LANE) {
                    Peek::Batch(batch) => {
                        assert_eq!(batch.header.first.0, next, "a gap among what was taken");
                        seen += u64::from(batch.header.record_count);
                        next = batch.header.end().0;
                        spool.pop(LANE);
                    }
                    Peek::Loading | Peek::Busy => spool.changed().await,
                    Peek::End => break,
                }
            }
            spool.ack(LANE, Position::new(epoch, next));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((seen, spool.totals().dropped), (taken, dropped));
        wait_until(|| spool.has_room(LANE)).await;
        assert_eq!(fill(&spool, Input::Emit, LANE, 200_000).await, 10);
    });
}
