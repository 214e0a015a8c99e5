//! Followed files: rotation, truncation, deletion and kills neither lose nor repeat a line.

#![allow(clippy::unwrap_used)] // Helpers of tests.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use skein_agent::inputs::tail;
use skein_agent::inputs::{From, TailConfig};
use skein_agent::spool::{Peek, Place, Position, Spool, SpoolConfig};
use skein_wire::compress::Decompressor;
use skein_wire::ids::AgentId;
use skein_wire::records;
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

fn config() -> SpoolConfig {
    SpoolConfig { linger_ms: 5, ..SpoolConfig::default() }
}

/// An agent's spool and its followed files; `kill` leaves everything as kill -9 would.
struct Agent {
    spool: Rc<Spool>,
    driven: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(dir: &Path, pattern: &str, from: From, config: &SpoolConfig) -> Agent {
        let place = Place { dir: dir.to_owned(), boot_id: [1; 16] };
        let spool = Spool::open(place, config, AgentId::parse("agent-1").unwrap()).unwrap();
        let driving = spool.clone();
        let driven = tokio::task::spawn_local(async move { driving.run().await });
        let tails = [TailConfig { path: pattern.into(), data_id: LANE, from }];
        tail::start(
            &tails,
            &spool,
            spool.recovered_marks(),
            Box::new(|path: &Path| File::open(path)),
        );
        Agent { spool, driven }
    }

    /// What the spool holds, taken from a copy of its files.
    async fn kill(self, from: &Path, to: &Path) {
        copy_dir(from, to);
        self.driven.abort();
    }

    fn records(&self) -> u64 {
        self.spool.depth(LANE).map_or(0, |depth| depth.records)
    }

    async fn lines(&self, count: u64) -> Vec<String> {
        wait_until(|| self.records() >= count).await;
        let mut out = Vec::new();
        self.spool.seek(LANE, Position::default());
        loop {
            match self.spool.peek(LANE) {
                Peek::Batch(batch) => {
                    let mut raw = Vec::new();
                    let bytes = batch.header.raw_bytes as usize;
                    let (codec, body) = (batch.header.codec, &batch.frame[64..]);
                    Decompressor::new().decompress(codec, body, bytes, &mut raw).unwrap();
                    for record in records::iter(&raw, batch.header.record_count) {
                        out.push(String::from_utf8_lossy(record.unwrap().value).into_owned());
                    }
                    self.spool.pop(LANE);
                }
                Peek::Loading | Peek::Busy => self.spool.changed().await,
                Peek::End => return out,
            }
        }
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

struct Log {
    dir: tempfile::TempDir,
    path: PathBuf,
    spools: usize,
}

impl Log {
    fn new() -> Log {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/app.log");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        Log { dir, path, spools: 0 }
    }

    fn append(&self, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rotated(&self, number: u32) -> PathBuf {
        self.path.with_extension(format!("log.{number}"))
    }

    fn spool(&self) -> PathBuf {
        self.dir.path().join(format!("spool-{}", self.spools))
    }

    fn start(&self, from: From) -> Agent {
        Agent::start(&self.spool(), self.path.to_str().unwrap(), from, &config())
    }

    async fn kill(&mut self, agent: Agent) {
        let from = self.spool();
        self.spools += 1;
        agent.kill(&from, &self.spool()).await;
    }
}

#[test]
fn lines_are_followed_from_the_end_or_the_start() {
    local(async {
        let log = Log::new();
        log.append("old 1\nold 2\nold, not en");
        let all = Agent::start(
            &log.dir.path().join("s"),
            log.path.to_str().unwrap(),
            From::Start,
            &config(),
        );
        assert_eq!(all.lines(2).await, ["old 1", "old 2"]);
        let new = log.start(From::End);
        wait_until(|| new.spool.totals().bytes > 0 || new.records() == 0).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        log.append("ded yet\nnew 1\n\nnew 3\n");
        assert_eq!(new.lines(4).await, ["old, not ended yet", "new 1", "", "new 3"]);
        assert_eq!(all.lines(6).await.len(), 6);
    });
}

#[test]
fn a_renamed_file_is_read_to_its_end_and_its_successor_from_its_start() {
    local(async {
        let log = Log::new();
        log.append("one\n");
        let agent = log.start(From::Start);
        agent.lines(1).await;
        let mut writer = OpenOptions::new().append(true).open(&log.path).unwrap();
        std::fs::rename(&log.path, log.rotated(1)).unwrap();
        log.append("three\n");
        agent.lines(2).await;
        // The writer still has the old file.
        writer.write_all(b"two\n").unwrap();
        assert_eq!(agent.lines(3).await, ["one", "three", "two"]);
        // Twice more, quickly.
        std::fs::rename(&log.path, log.rotated(2)).unwrap();
        log.append("four\n");
        agent.lines(4).await;
        std::fs::rename(&log.path, log.rotated(3)).unwrap();
        log.append("five\n");
        assert_eq!(agent.lines(5).await.last().unwrap(), "five");
    });
}

#[test]
fn a_truncated_file_is_read_again_from_its_start() {
    local(async {
        let log = Log::new();
        log.append("one\ntwo\nthree\n");
        let agent = log.start(From::Start);
        agent.lines(3).await;
        // logrotate's copytruncate.
        OpenOptions::new().write(true).open(&log.path).unwrap().set_len(0).unwrap();
        log.append("four\n");
        assert_eq!(agent.lines(4).await[3], "four");
        // Truncated and grown past the old place between two looks.
        std::fs::write(&log.path, "five\nsix\nseven\neight\nnine\nten\n").unwrap();
        assert_eq!(agent.lines(10).await[4..], ["five", "six", "seven", "eight", "nine", "ten"]);
    });
}

#[test]
fn a_deleted_file_gives_its_last_line_and_may_come_again() {
    local(async {
        let log = Log::new();
        log.append("one\nlast without end");
        let agent = log.start(From::Start);
        agent.lines(1).await;
        std::fs::remove_file(&log.path).unwrap();
        assert_eq!(agent.lines(2).await, ["one", "last without end"]);
        log.append("again\n");
        assert_eq!(agent.lines(3).await[2], "again");
    });
}

#[test]
fn a_kill_neither_loses_nor_repeats_lines() {
    local(async {
        let mut log = Log::new();
        let mut number = 0;
        let mut write = |log: &Log, lines: usize| {
            let text: String = (0..lines).map(|at| format!("line {}\n", number + at)).collect();
            number += lines;
            log.append(&text);
            number as u64
        };
        write(&log, 5);
        let mut agent = log.start(From::Start);
        for round in 0..8u32 {
            // Enough for several batches; the kill comes at any place among them.
            let total = write(&log, 20_000);
            wait_until(|| agent.records() > total - 20_000 + u64::from(round) * 2_000).await;
            log.kill(agent).await;
            if round % 3 == 2 {
                // Rotated while the agent is away.
                std::fs::rename(&log.path, log.rotated(round)).unwrap();
            }
            write(&log, 3);
            agent = log.start(From::End);
        }
        let total = write(&log, 1);
        let mut lines = agent.lines(total).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(agent.records(), total, "nothing is repeated");
        lines.sort_by_key(|line| line[5..].parse::<u64>().unwrap());
        let expected: Vec<String> = (0..total).map(|n| format!("line {n}")).collect();
        assert!(lines == expected);
    });
}

/// An inode that another file has now: the place of the old one means nothing.
#[test]
fn another_file_with_the_same_inode_is_new() {
    local(async {
        let mut log = Log::new();
        log.append("first file, first line\nfirst file, second line\n");
        let agent = log.start(From::Start);
        agent.lines(2).await;
        log.kill(agent).await;
        std::fs::write(&log.path, "second file, first line\nsecond file, second line\nthird\n")
            .unwrap();
        let agent = log.start(From::End);
        assert_eq!(agent.lines(5).await[2], "second file, first line");
    });
}

#[test]
fn patterns_find_files_that_appear_and_rotate_within_them() {
    local(async {
        let log = Log::new();
        let pattern = log.path.with_file_name("*.log*");
        let agent = Agent::start(&log.spool(), pattern.to_str().unwrap(), From::End, &config());
        tokio::time::sleep(Duration::from_millis(100)).await;
        log.append("new file, from its start\n");
        agent.lines(1).await;
        std::fs::rename(&log.path, log.rotated(1)).unwrap();
        log.append("second\n");
        agent.lines(2).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(agent.lines(2).await, ["new file, from its start", "second"]);
    });
}

#[test]
fn a_giant_line_is_cut_and_the_rest_goes_on() {
    local(async {
        let log = Log::new();
        let most = tail::LINE_BYTES_MAX;
        log.append(&format!("{}\nnext\n", "x".repeat(3 * most)));
        let agent = log.start(From::Start);
        let lines = agent.lines(2).await;
        assert_eq!((lines[0].len(), &lines[1][..]), (most, "next"));
        log.append(&format!("{}\n", "y".repeat(300_000)));
        assert_eq!(agent.lines(3).await[2].len(), 300_000);
    });
}

/// A full spool: reading stops, nothing is lost, reading goes on when there is room.
#[test]
fn a_full_spool_stops_reading() {
    local(async {
        let log = Log::new();
        let mut state = 1u64;
        let mut text = String::new();
        for number in 0..6_000 {
            let noise: String = (0..500)
                .map(|_| {
                    state =
                        state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    char::from(b'!' + (state >> 33) as u8 % 90)
                })
                .collect();
            text.push_str(&format!("{number} {noise}\n"));
        }
        log.append(&text);
        let small = SpoolConfig { max_bytes: 4 << 20, lane_max_bytes: 1 << 20, ..config() };
        let agent = Agent::start(&log.spool(), log.path.to_str().unwrap(), From::Start, &small);
        wait_until(|| !agent.spool.has_room(LANE)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let held = agent.records();
        assert!(held < 6_000 && agent.spool.totals().dropped == 0);
        let mut seen = 0;
        while seen < 6_000 {
            wait_until(|| agent.records() > 0).await;
            let epoch = agent.spool.epoch_to_send(LANE).unwrap();
            let (first, end) = agent.spool.range_of(LANE, epoch).unwrap();
            assert_eq!(first, seen);
            seen = end;
            agent.spool.ack(LANE, Position::new(epoch, end));
        }
        assert_eq!(agent.spool.totals().dropped, 0);
    });
}

/// A lane that is held for ever stops its own files and no others.
#[test]
fn a_full_lane_stops_its_own_files_only() {
    local(async {
        let log = Log::new();
        let other = log.path.with_file_name("other.log");
        std::fs::write(&other, "").unwrap();
        let place = Place { dir: log.spool(), boot_id: [1; 16] };
        let small = SpoolConfig { max_bytes: 4 << 20, held_lane_max_bytes: 256 << 10, ..config() };
        let spool = Spool::open(place, &small, AgentId::parse("agent-1").unwrap()).unwrap();
        let driving = spool.clone();
        let driven = tokio::task::spawn_local(async move { driving.run().await });
        let tail = |path: &Path, data_id| {
            let path = path.to_str().unwrap().into();
            TailConfig { path, data_id, from: From::Start }
        };
        // The lane must exist to be held.
        spool.mark(7, b"key", b"value").unwrap();
        spool.set_held(7, Some(skein_wire::data::HoldReason::UnknownDataId));
        let tails = [tail(&other, 7), tail(&log.path, LANE)];
        tail::start(
            &tails,
            &spool,
            spool.recovered_marks(),
            Box::new(|path: &Path| File::open(path)),
        );
        let mut state = 1u64;
        let noise: String = (0..2_000_000)
            .map(|at| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                if at % 500 == 0 { '\n' } else { char::from(b'!' + (state >> 33) as u8 % 90) }
            })
            .collect();
        std::fs::write(&other, noise).unwrap();
        wait_until(|| !spool.has_room(7)).await;
        let agent = Agent { spool, driven };
        log.append("flows\n");
        assert_eq!(agent.lines(1).await, ["flows"]);
        let held = agent.spool.depth(7).unwrap();
        assert!(held.records > 300 && held.bytes < 256 << 10 && held.dropped == 0, "{held:?}");
        // The hold ends and a server takes everything.
        agent.spool.set_held(7, None);
        let mut seen = 0;
        while seen < 3_999 {
            wait_until(|| agent.spool.depth(7).unwrap().records > 0).await;
            let epoch = agent.spool.epoch_to_send(7).unwrap();
            seen = agent.spool.range_of(7, epoch).unwrap().1;
            agent.spool.ack(7, Position::new(epoch, seen));
        }
        assert_eq!(agent.spool.totals().dropped, 0);
    });
}

/// What the path rules refuse is not followed; a pattern may name what is no file.
#[test]
fn what_may_not_be_read_is_left_alone() {
    local(async {
        let log = Log::new();
        log.append("allowed\n");
        std::fs::create_dir(log.path.with_file_name("folder.log")).unwrap();
        std::fs::write(log.path.with_file_name("secret.log"), "secret\n").unwrap();
        let place = Place { dir: log.spool(), boot_id: [1; 16] };
        let spool = Spool::open(place, &config(), AgentId::parse("agent-1").unwrap()).unwrap();
        let driving = spool.clone();
        let driven = tokio::task::spawn_local(async move { driving.run().await });
        let pattern = log.path.with_file_name("*.log");
        let config =
            TailConfig { path: pattern.to_str().unwrap().into(), data_id: LANE, from: From::Start };
        let rules = |path: &Path| {
            if path.ends_with("secret.log") {
                return Err(std::io::Error::other("denied by the path rules"));
            }
            File::open(path)
        };
        tail::start(&[config], &spool, spool.recovered_marks(), Box::new(rules));
        let agent = Agent { spool, driven };
        assert_eq!(agent.lines(1).await, ["allowed"]);
        log.append("more\n");
        assert_eq!(agent.lines(2).await, ["allowed", "more"]);
    });
}

/// A path that becomes a symbolic link leads to another file; the one before is read to its end.
#[test]
fn a_file_replaced_by_a_symlink_is_followed_to_where_it_leads() {
    local(async {
        let log = Log::new();
        log.append("one\n");
        let agent = log.start(From::Start);
        assert_eq!(agent.lines(1).await, ["one"]);
        let elsewhere = log.dir.path().join("elsewhere.txt");
        std::fs::write(&elsewhere, "three\n").unwrap();
        let link = log.path.with_file_name("link.tmp");
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        log.append("two\n");
        std::fs::rename(&link, &log.path).unwrap();
        let mut lines = agent.lines(3).await;
        lines.sort();
        assert_eq!(lines, ["one", "three", "two"]);
        log.append("four\n");
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "three\nfour\n");
        assert_eq!(agent.lines(4).await[3], "four");
    });
}

/// A successor that may not be read for a while loses nothing, and its predecessor neither.
#[test]
fn a_file_that_cannot_be_read_for_a_while_is_read_later() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    local(async {
        let log = Log::new();
        log.append("one\n");
        let place = Place { dir: log.spool(), boot_id: [1; 16] };
        let spool = Spool::open(place, &config(), AgentId::parse("agent-1").unwrap()).unwrap();
        let driving = spool.clone();
        let driven = tokio::task::spawn_local(async move { driving.run().await });
        let (denied, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let rules = {
            let (denied, seen) = (denied.clone(), seen.clone());
            move |path: &Path| {
                if denied.load(Ordering::SeqCst) {
                    seen.store(true, Ordering::SeqCst);
                    return Err(std::io::ErrorKind::PermissionDenied.into());
                }
                File::open(path)
            }
        };
        let path = log.path.to_str().unwrap().to_owned();
        let tails = [TailConfig { path, data_id: LANE, from: From::Start }];
        tail::start(&tails, &spool, spool.recovered_marks(), Box::new(rules));
        let agent = Agent { spool, driven };
        assert_eq!(agent.lines(1).await, ["one"]);
        denied.store(true, Ordering::SeqCst);
        std::fs::rename(&log.path, log.rotated(1)).unwrap();
        log.append("two\n");
        wait_until(|| seen.load(Ordering::SeqCst)).await;
        let mut old = OpenOptions::new().append(true).open(log.rotated(1)).unwrap();
        old.write_all(b"last of the old one\n").unwrap();
        assert_eq!(agent.lines(2).await[1], "last of the old one");
        denied.store(false, Ordering::SeqCst);
        assert_eq!(agent.lines(3).await[2], "two");
    });
}
