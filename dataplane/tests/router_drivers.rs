//! The whole router on real files with both disk drivers: threads, queue, checkpoints, recovery.

#![allow(clippy::unwrap_used)] // helpers of tests

mod router_support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use router_support::{agent_id, parse, route, stream, table, value};
use skein_dataplane::router::{
    self, DiskChoice, Limits, RouterConfig, RouterReport, SessionRef, Started, ToRouter,
};
use skein_dataplane::shard::ShardMail;
use skein_wire::batch::{BatchBuilder, BatchHeader};
use skein_wire::compress::{Codec, Compressor};
use skein_wire::data::{HoldReason, LaneOpen, LaneReady, ServerFrame};
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::{DataId, Epoch, Sequence};

const DRIVERS: [DiskChoice; 2] = [DiskChoice::Plain, DiskChoice::Glommio];
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    router: Started,
    mail: flume::Receiver<ShardMail>,
    reports: flume::Receiver<RouterReport>,
}

impl Rig {
    fn start(state: &Path, disk: DiskChoice, workers: usize) -> Self {
        let (shard, mail) = flume::unbounded();
        let (reports_in, reports) = flume::unbounded();
        let config = RouterConfig {
            workers,
            checkpoints: state.to_owned(),
            queue_bytes: 8 << 20,
            disk,
            limits: Limits::default(),
        };
        let router = router::start(config, vec![shard], reports_in).unwrap();
        Self { router, mail, reports }
    }

    fn table(&self, table: fleet::RoutingTable) {
        let (revision, table) = (table.revision, std::sync::Arc::new(table));
        self.router.handle.broadcast(|| ToRouter::Table(table.clone()));
        loop {
            match self.reports.recv_timeout(PATIENCE).unwrap() {
                RouterReport::TableApplied(applied) if applied == revision => return,
                RouterReport::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    }

    fn send(&self, message: ToRouter, agent: usize) {
        let handle = &self.router.handle;
        let worker = handle.worker_of(&agent_id(agent));
        let mut message = Some(message);
        let deadline = Instant::now() + PATIENCE;
        while let Some(refused) = message.take() {
            message = handle.try_send(worker, refused).err();
            assert!(Instant::now() < deadline, "the queue stays full");
            std::thread::yield_now();
        }
    }

    /// The frames of `session` until `wanted` finds what it looks for.
    fn until<T>(
        &self,
        session: SessionRef,
        mut wanted: impl FnMut(&ServerFrame) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mail = self.mail.recv_deadline(deadline).expect("the frame comes");
            let ShardMail::Router(frames) = mail else { continue };
            let mut mine = frames.iter().filter(|(to, _)| *to == session);
            if let Some(found) = mine.find_map(|(_, frame)| wanted(frame)) {
                return found;
            }
        }
    }

    fn open(&self, agent: usize, session: SessionRef, first: u64, next: u64) -> LaneReady {
        let open = LaneOpen {
            data_id: DataId(7),
            epoch: Epoch(1),
            first: Sequence(first),
            next: Sequence(next),
        };
        self.send(ToRouter::Open { session, agent: agent_id(agent), open }, agent);
        self.until(session, |frame| match frame {
            ServerFrame::LaneReady(ready) => Some(*ready),
            _ => None,
        })
    }

    fn wait_for_ack(&self, session: SessionRef, position: u64) {
        self.until(session, |frame| match frame {
            ServerFrame::Ack(ack) if ack.next.0 >= position => Some(()),
            _ => None,
        });
    }

    fn stop(self) {
        self.router.handle.broadcast(|| ToRouter::Stop);
        assert!(self.router.join(PATIENCE), "workers end");
    }
}

fn session(conn: u64) -> SessionRef {
    SessionRef { shard: 0, conn }
}

fn batch(agent: usize, first: u64, count: u64) -> (BatchHeader, Vec<u8>) {
    let mut builder = BatchBuilder::new(DataId(7), 1 << 20);
    for sequence in first..first + count {
        assert!(builder.push(5, &value(agent, 7, sequence)));
    }
    let mut zstd = Compressor::new(Codec::Zstd, 1).unwrap();
    builder.seal((&agent_id(agent), Epoch(1), Sequence(first)), &mut zstd, 0).unwrap()
}

fn send_batch(rig: &Rig, agent: usize, session: SessionRef, first: u64, count: u64) {
    let (header, body) = batch(agent, first, count);
    rig.send(ToRouter::Batch { session, agent: agent_id(agent), header, body }, agent);
}

fn into(directory: &Path, change: impl FnOnce(&mut fleet::FileStream)) -> fleet::RoutingTable {
    let stream = stream(1, |file| {
        file.directory = directory.to_str().unwrap().to_owned();
        change(file);
    });
    table(1, vec![stream], vec![route(7, 1)])
}

/// Sequences by agent, over all files; each file is made of whole lines and nothing else.
fn stored(directory: &Path) -> BTreeMap<String, Vec<u64>> {
    let mut stored: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let content = std::fs::read(&path).unwrap();
            assert!(content.is_empty() || content.ends_with(b"\n"), "{path:?} ends in a line");
            for line in content.split(|byte| *byte == b'\n') {
                if let Some(((agent, _), sequence)) = parse(line) {
                    stored.entry(agent).or_default().push(sequence);
                }
            }
        }
    }
    stored.values_mut().for_each(|sequences| sequences.sort_unstable());
    stored
}

#[test]
fn batches_reach_their_files_and_are_acknowledged() {
    for disk in DRIVERS {
        let (state, sink) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let rig = Rig::start(state.path(), disk, 2);
        rig.table(into(sink.path(), |file| file.rotate_bytes = 3 << 20));
        let agents = 4;
        for agent in 0..agents {
            let ready = rig.open(agent, session(agent as u64), 0, 1_000);
            assert_eq!(ready.resume, Sequence(0));
        }
        // About 0.9 KiB for each record: blocks of all sizes, rotation, several flushes.
        for first in (0..4_000).step_by(200) {
            for agent in 0..agents {
                send_batch(&rig, agent, session(agent as u64), first, 200);
            }
        }
        for agent in 0..agents {
            // Replies of other sessions are skipped: ask for this lane's state anew.
            let deadline = Instant::now() + PATIENCE;
            while stored_count(sink.path(), agent) < 4_000 {
                assert!(Instant::now() < deadline, "{disk:?}: agent {agent} is not stored");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        rig.stop();
        let stored = stored(sink.path());
        let all: Vec<u64> = (0..4_000).collect();
        for agent in 0..agents {
            assert_eq!(stored[agent_id(agent).as_str()], all, "{disk:?}");
        }
    }
}

fn stored_count(directory: &Path, agent: usize) -> usize {
    // Files grow while they are read: count whole lines by their prefix.
    let prefix = format!("{}\t", agent_id(agent)).into_bytes();
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .map(|content| {
            assert!(!content.contains(&0), "no padding is ever visible");
            content.split(|byte| *byte == b'\n').filter(|line| line.starts_with(&prefix)).count()
        })
        .sum()
}

#[test]
fn a_stopped_router_goes_on_where_it_was_with_any_number_of_workers() {
    let (state, sink) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut first = 0;
    for (disk, workers) in
        [(DiskChoice::Plain, 1), (DiskChoice::Glommio, 3), (DiskChoice::Plain, 2)]
    {
        let rig = Rig::start(state.path(), disk, workers);
        rig.table(into(sink.path(), |_| ()));
        for agent in 0..3 {
            // The agent holds the last batch still: its ack may have been lost.
            let ready = rig.open(agent, session(agent as u64), first.max(10) - 10, first + 10);
            assert_eq!(ready.resume, Sequence(first), "{disk:?} x {workers}");
            send_batch(&rig, agent, session(agent as u64), first, 10);
            rig.wait_for_ack(session(agent as u64), first + 10);
        }
        rig.stop();
        first += 10;
    }
    let all: Vec<u64> = (0..first).collect();
    assert!(stored(sink.path()).values().all(|sequences| *sequences == all));
    assert_eq!(stored(sink.path()).len(), 3);
}

#[test]
fn a_second_process_on_the_same_folder_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let rig = Rig::start(state.path(), DiskChoice::Plain, 1);
    let lock = std::fs::File::open(state.path().join("LOCK")).unwrap();
    assert!(lock.try_lock().is_err());
    rig.stop();
    assert!(lock.try_lock().is_ok());
}

/// A tiny tmpfs, where this test may mount one.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "skein-test"])
            .arg(directory.path())
            .output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(directory))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_holds_the_lane_and_it_resumes_when_there_is_room() {
    for disk in DRIVERS {
        let Some(sink) = Tmpfs::mount("3m") else {
            eprintln!("not run: mounting a tmpfs is not allowed here");
            return;
        };
        let state = tempfile::tempdir().unwrap();
        let filler = sink.0.path().join("filler");
        std::fs::write(&filler, vec![1; 2 << 20]).unwrap();
        let rig = Rig::start(state.path(), disk, 1);
        rig.table(into(&sink.0.path().join("sink"), |_| ()));
        rig.open(0, session(0), 0, 2_000);
        // 2 MiB do not fit.
        for first in (0..2_000).step_by(200) {
            send_batch(&rig, 0, session(0), first, 200);
        }
        rig.until(session(0), |frame| match frame {
            ServerFrame::Hold(hold) => {
                assert_eq!(hold.reason, HoldReason::SinkUnavailable);
                Some(())
            }
            _ => None,
        });
        std::fs::remove_file(&filler).unwrap();
        let ready = rig.until(session(0), |frame| match frame {
            ServerFrame::LaneReady(ready) => Some(*ready),
            _ => None,
        });
        let mut first = ready.resume.0;
        assert_eq!(first % 200, 0);
        while first < 2_000 {
            send_batch(&rig, 0, session(0), first, 200);
            first += 200;
        }
        rig.wait_for_ack(session(0), 2_000);
        rig.stop();
        let all: Vec<u64> = (0..2_000).collect();
        assert_eq!(stored(sink.0.path().join("sink").as_path())["agent-0"], all, "{disk:?}");
    }
}

/// Run by [`killed_processes_neither_lose_nor_repeat`] in a process of its own: stores batches
/// for ever and prints each acknowledged position.
#[test]
#[ignore = "the victim of another test"]
fn victim() {
    let Ok(folder) = std::env::var("SKEIN_ROUTER_VICTIM") else { return };
    let disk = match std::env::var("SKEIN_ROUTER_DISK").as_deref() {
        Ok("plain") => DiskChoice::Plain,
        _ => DiskChoice::Glommio,
    };
    let folder = Path::new(&folder);
    let rig = Rig::start(&folder.join("state"), disk, 1);
    rig.table(into(&folder.join("sink"), |file| file.rotate_bytes = 2 << 20));
    let held: u64 = std::fs::read_to_string(folder.join("acked"))
        .map_or(0, |text| text.trim().parse().unwrap());
    let mut first = rig.open(0, session(0), held, u64::MAX / 2).resume.0;
    assert!(first >= held, "what was acknowledged is stored: {first} < {held}");
    let mut sent = 0u64;
    loop {
        send_batch(&rig, 0, session(0), first, 100);
        first += 100;
        sent += 1;
        let acked = rig.mail.drain().fold(None, |last, mail| match mail {
            ShardMail::Router(frames) => frames.iter().fold(last, |last, frame| match frame {
                (_, ServerFrame::Ack(ack)) => Some(ack.next.0),
                _ => last,
            }),
            _ => last,
        });
        if let Some(acked) = acked {
            std::fs::write(folder.join("acked.new"), acked.to_string()).unwrap();
            std::fs::rename(folder.join("acked.new"), folder.join("acked")).unwrap();
        }
        // Stay within a lane's credit without keeping its books: about 2 MiB under way.
        let acked = std::fs::read_to_string(folder.join("acked"))
            .map_or(held, |text| text.trim().parse().unwrap());
        if sent > 10 && first - acked > 2_000 {
            std::thread::sleep(Duration::from_millis(2));
        }
        if first - acked > 4_000 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn killed_processes_neither_lose_nor_repeat() {
    for disk in ["plain", "glommio"] {
        let folder = tempfile::tempdir().unwrap();
        let mut seed = 0x5eed_u64;
        for kill in 0..8 {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "victim", "--ignored", "--nocapture"])
                .env("SKEIN_ROUTER_VICTIM", folder.path())
                .env("SKEIN_ROUTER_DISK", disk)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let acked = || std::fs::read_to_string(folder.path().join("acked")).ok();
            let (before, deadline) = (acked(), Instant::now() + PATIENCE);
            while acked() == before {
                assert!(Instant::now() < deadline, "{disk} {kill}: no ack");
                assert!(child.try_wait().unwrap().is_none(), "{disk} {kill}: victim ended");
                std::thread::sleep(Duration::from_millis(2));
            }
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            std::thread::sleep(Duration::from_millis((seed >> 33) % 150));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // One more start cuts what the last life had not yet checkpointed.
        let rig = {
            let choice = if disk == "plain" { DiskChoice::Plain } else { DiskChoice::Glommio };
            let rig = Rig::start(&folder.path().join("state"), choice, 1);
            rig.table(into(&folder.path().join("sink"), |file| file.rotate_bytes = 2 << 20));
            rig
        };
        let acked: u64 =
            std::fs::read_to_string(folder.path().join("acked")).unwrap().parse().unwrap();
        let resume = rig.open(0, session(0), acked, u64::MAX / 2).resume.0;
        assert!(resume >= acked, "{disk}");
        rig.stop();
        let stored = &stored(&folder.path().join("sink"))["agent-0"];
        let all: Vec<u64> = (0..resume).collect();
        assert!(*stored == all, "{disk}: {} stored, {resume} expected", stored.len());
    }
}
