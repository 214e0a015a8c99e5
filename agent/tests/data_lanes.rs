//! The data channel against a server that keeps the rules of `skein_wire::lane`: whatever happens
//! to connections and to the server, each record is stored once and in order, or was dropped,
//! counted, and missed by the server.

#![allow(clippy::unwrap_used)] // Helpers of tests.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use skein_agent::lanes::core::{Core, Over};
use skein_agent::lanes::session::{self, Ended};
use skein_agent::spool::{Input, Place, Spool, SpoolConfig};
use skein_wire::compress::Decompressor;
use skein_wire::data::{AgentFrame, Hold, HoldReason, LaneStat, ServerFrame, decode_agent_frame};
use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};
use skein_wire::lane::{LaneReceiver, Offer, Opened};
use skein_wire::records;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::LocalSet;

const LANE: u32 = 1001;

fn config() -> SpoolConfig {
    SpoolConfig { linger_ms: 2, batch_bytes: 16 << 10, ..SpoolConfig::default() }
}

fn open(dir: &Path, boot: u8, config: &SpoolConfig) -> Rc<Spool> {
    let agent = AgentId::parse("agent-1").unwrap();
    let place = Place { dir: dir.to_owned(), boot_id: [boot; 16] };
    let spool = Spool::open(place, config, agent).unwrap();
    let driven = spool.clone();
    tokio::task::spawn_local(async move { driven.run().await });
    spool
}

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

struct Random(u64);

impl Random {
    fn draw(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

type Record = (u64, u64, String);

/// A server: its memory of lanes, and what it has stored for good.
#[derive(Default)]
struct Server {
    lanes: BTreeMap<u32, LaneReceiver>,
    received: BTreeMap<u32, Vec<Record>>,
    stored: BTreeMap<u32, Vec<Record>>,
    held: BTreeMap<u32, HoldReason>,
    missing: u64,
    opens: Vec<u32>,
    order: Vec<u32>,
    stats: BTreeMap<u32, LaneStat>,
    /// Nothing is stored, and so nothing acknowledged, while this is set.
    sink_stands: bool,
    window_bytes: u64,
}

impl Server {
    fn new(window_bytes: u64) -> Rc<RefCell<Server>> {
        Rc::new(RefCell::new(Server { window_bytes, ..Server::default() }))
    }

    /// kill -9: what was received and not stored is gone.
    fn die(&mut self) {
        self.lanes.clear();
        self.received.clear();
    }

    fn on_frame(&mut self, frame: AgentFrame<'_>, out: &mut Vec<u8>) {
        match frame {
            AgentFrame::LaneOpen(open) => {
                let id = open.data_id.0;
                self.opens.push(id);
                let stored = self.stored.get(&id).and_then(|records| records.last());
                let stored = stored.map(|(epoch, seq, _)| (Epoch(*epoch), Sequence(seq + 1)));
                let window = self.window_bytes;
                let lane = self
                    .lanes
                    .entry(id)
                    .or_insert_with(|| LaneReceiver::new(open.data_id, window, stored));
                let answer = match (lane.open(&open), self.held.get(&id)) {
                    (Opened::Stale, _) => ServerFrame::Hold(Hold {
                        data_id: open.data_id,
                        reason: HoldReason::StaleEpoch,
                    }),
                    (Opened::Ready { .. }, Some(reason)) => {
                        ServerFrame::Hold(Hold { data_id: open.data_id, reason: *reason })
                    }
                    (Opened::Ready { ready, missing }, None) => {
                        self.missing += missing;
                        ServerFrame::LaneReady(ready)
                    }
                };
                answer.encode(out);
            }
            AgentFrame::Batch { header, body } => {
                header.verify_body(body).unwrap();
                let id = header.data_id.0;
                self.order.push(id);
                match self.lanes.get_mut(&id).unwrap().offer(&header) {
                    Offer::Accept { missing } => {
                        self.missing += missing;
                        let mut raw = Vec::new();
                        let bytes = header.raw_bytes as usize;
                        Decompressor::new()
                            .decompress(header.codec, body, bytes, &mut raw)
                            .unwrap();
                        let received = self.received.entry(id).or_default();
                        for (at, record) in records::iter(&raw, header.record_count).enumerate() {
                            let text = String::from_utf8(record.unwrap().value.to_vec()).unwrap();
                            received.push((header.epoch.0, header.first.0 + at as u64, text));
                        }
                    }
                    Offer::Duplicate => panic!("a living server is never sent a repeat"),
                    // Sent before the hold was heard.
                    Offer::Stray => {}
                    Offer::Violation(violation) => panic!("{violation}"),
                }
            }
            AgentFrame::LaneStat(stat) => {
                self.stats.insert(stat.data_id.0, stat);
            }
            AgentFrame::KeepAlive => ServerFrame::KeepAlive.encode(out),
        }
    }

    /// The sinks store everything received; acknowledgements and credit follow.
    fn store(&mut self, out: &mut Vec<u8>) {
        for (id, lane) in self.lanes.iter_mut().filter(|_| !self.sink_stands) {
            self.stored.entry(*id).or_default().append(self.received.entry(*id).or_default());
            if let Some(epoch) = lane.epoch() {
                lane.stored(epoch, lane.position_received());
            }
            let ack = lane.take_ack().map(ServerFrame::Ack);
            let credit = lane.take_credit().map(ServerFrame::Credit);
            ack.into_iter().chain(credit).for_each(|frame| frame.encode(out));
        }
    }

    fn hold(&mut self, id: u32, reason: HoldReason) -> Vec<u8> {
        self.held.insert(id, reason);
        let mut out = Vec::new();
        ServerFrame::Hold(Hold { data_id: DataId(id), reason }).encode(&mut out);
        out
    }

    fn unhold(&mut self, id: u32) -> Vec<u8> {
        self.held.remove(&id);
        let mut out = Vec::new();
        let ready = self.lanes.get_mut(&id).and_then(LaneReceiver::resume);
        if let Some(ready) = ready {
            ServerFrame::LaneReady(ready).encode(&mut out);
        }
        out
    }

    fn texts(&self, id: u32) -> Vec<&str> {
        self.stored.get(&id).into_iter().flatten().map(|(_, _, text)| &text[..]).collect()
    }
}

/// A connection between the spool and the server; dropping it is a broken connection.
struct Link {
    client: tokio::task::JoinHandle<Ended>,
    server: tokio::task::JoinHandle<()>,
    say: tokio::sync::mpsc::UnboundedSender<Vec<u8>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.client.abort();
        self.server.abort();
    }
}

fn connect(spool: &Rc<Spool>, server: &Rc<RefCell<Server>>) -> Link {
    let (ours, theirs) = tokio::io::duplex(32 * 1024);
    let (spool, server) = (spool.clone(), server.clone());
    let (say, said) = tokio::sync::mpsc::unbounded_channel();
    Link {
        client: tokio::task::spawn_local(async move { session::run(&spool, ours).await }),
        server: tokio::task::spawn_local(serve(theirs, server, said)),
        say,
    }
}

async fn serve(
    mut io: DuplexStream,
    server: Rc<RefCell<Server>>,
    mut said: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
) {
    let mut buffer = Vec::new();
    loop {
        let mut out = Vec::new();
        tokio::select! {
            got = io.read_buf(&mut buffer) => if got.unwrap_or(0) == 0 { return },
            more = said.recv() => match more { Some(more) => out = more, None => return },
            () = tokio::time::sleep(Duration::from_millis(3)) => server.borrow_mut().store(&mut out),
        }
        let mut at = 0;
        while let Some((frame, bytes)) = decode_agent_frame(&buffer[at..]).unwrap() {
            server.borrow_mut().on_frame(frame, &mut out);
            at += bytes;
        }
        buffer.drain(..at);
        if io.write_all(&out).await.is_err() {
            return;
        }
    }
}

fn push(spool: &Spool, lane: u32, text: &str) {
    spool.push(Input::Collector, lane, 1, text.as_bytes()).unwrap();
}

#[test]
fn records_flow_and_the_spool_empties() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let server = Server::new(1 << 20);
        push(&spool, LANE, "before the connection");
        let _link = connect(&spool, &server);
        for number in 0..2000 {
            push(&spool, LANE, &format!("line {number}"));
            if number % 100 == 0 {
                // New data ids open lanes on the fly.
                push(&spool, LANE + 1 + number % 3, "other");
                tokio::task::yield_now().await;
            }
        }
        wait_until(|| spool.totals().records == 0 && server.borrow().texts(LANE).len() == 2001)
            .await;
        let server = server.borrow();
        assert_eq!(server.texts(LANE)[2000], "line 1999");
        assert_eq!(server.missing, 0);
        let numbers: Vec<u64> = server.stored[&LANE].iter().map(|record| record.1).collect();
        assert_eq!(numbers, (0..2001).collect::<Vec<_>>());
        assert_eq!(server.opens.iter().filter(|id| **id == LANE).count(), 1);
    });
}

#[test]
fn a_held_lane_costs_the_others_nothing() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let server = Server::new(1 << 20);
        server.borrow_mut().held.insert(7, HoldReason::UnknownDataId);
        let link = connect(&spool, &server);
        for number in 0..500 {
            push(&spool, 7, &format!("held {number}"));
            push(&spool, 8, &format!("flows {number}"));
            tokio::task::yield_now().await;
        }
        wait_until(|| server.borrow().texts(8).len() == 500).await;
        assert!(server.borrow().texts(7).is_empty());
        assert_eq!(spool.totals().records, 500);
        // Held in the middle, too.
        let hold = server.borrow_mut().hold(8, HoldReason::Paused);
        link.say.send(hold).unwrap();
        let ready = server.borrow_mut().unhold(7);
        link.say.send(ready).unwrap();
        wait_until(|| server.borrow().texts(7).len() == 500).await;
        push(&spool, 8, "waits");
        push(&spool, 7, "flows");
        wait_until(|| server.borrow().texts(7).len() == 501).await;
        assert_eq!(server.borrow().texts(8).len(), 500);
        let ready = server.borrow_mut().unhold(8);
        link.say.send(ready).unwrap();
        wait_until(|| server.borrow().texts(8).len() == 501).await;
    });
}

#[test]
fn lanes_take_turns() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let mut random = Random(5);
        for lane in [1, 2, 3] {
            for _ in 0..200 {
                let noise: String =
                    (0..12_000).map(|_| char::from(b'!' + random.draw(90) as u8)).collect();
                wait_until(|| spool.has_room(lane)).await;
                push(&spool, lane, &noise);
            }
        }
        wait_until(|| spool.totals().records == 600).await;
        let server = Server::new(8 << 20);
        let _link = connect(&spool, &server);
        wait_until(|| spool.totals().records == 0).await;
        let order = server.borrow().order.clone();
        // Reads from disk come in when they come, so turns are not exact; but nobody starves.
        for lane in [1, 2, 3] {
            let turns = order[..300].iter().filter(|id| **id == lane).count();
            assert!(turns >= 25, "lane {lane} has {turns} of the first 300: {order:?}");
        }
    });
}

/// A dead sink: credit ends after the window, nothing more is sent, other lanes flow, memory of
/// what was read ahead stays bounded.
#[test]
fn credit_is_kept() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let server = Server::new(64 << 10);
        server.borrow_mut().sink_stands = true;
        let _link = connect(&spool, &server);
        let mut random = Random(9);
        for _ in 0..100 {
            let noise: String =
                (0..10_000).map(|_| char::from(b'!' + random.draw(90) as u8)).collect();
            push(&spool, LANE, &noise);
            tokio::task::yield_now().await;
        }
        wait_until(|| spool.totals().records == 100 && !server.borrow().order.is_empty()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        // A violation of credit would panic in the server.
        assert!(server.borrow().order.len() < 12);
        server.borrow_mut().sink_stands = false;
        wait_until(|| spool.totals().records == 0).await;
        assert_eq!(server.borrow().texts(LANE).len(), 100);
    });
}

/// Records dropped while the lane is open are announced: the server counts as many as missing.
#[test]
fn dropped_records_are_missed_by_the_server() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let config = SpoolConfig {
            max_bytes: 4 << 20,
            lane_max_bytes: 512 << 10,
            held_lane_max_bytes: 256 << 10,
            ..config()
        };
        let spool = open(dir.path(), 1, &config);
        let server = Server::new(32 << 10);
        server.borrow_mut().sink_stands = true;
        let link = connect(&spool, &server);
        let mut random = Random(11);
        for number in 0..200 {
            let noise: String =
                (0..9_000).map(|_| char::from(b'!' + random.draw(90) as u8)).collect();
            push(&spool, LANE, &format!("{number} {noise}"));
            spool.flush(LANE);
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        assert!(spool.totals().dropped > 50);
        server.borrow_mut().sink_stands = false;
        push(&spool, LANE, "last");
        wait_until(|| server.borrow().texts(LANE).last() == Some(&"last")).await;
        wait_until(|| spool.totals().records == 0).await;
        drop(link);
        let server = server.borrow();
        // Some of what was dropped as unacknowledged had been sent before.
        let stored = server.texts(LANE).len() as u64;
        assert_eq!(stored + server.missing, 201);
        assert!(server.missing > 0 && server.missing <= spool.totals().dropped);
        let numbers: Vec<u64> = server.stored[&LANE].iter().map(|record| record.1).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b));
    });
}

#[test]
fn after_a_loss_of_power_both_epochs_arrive() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(&dir.path().join("a"), 1, &config());
        push(&spool, LANE, "old 0");
        spool.receipt(LANE).await.unwrap();
        push(&spool, LANE, "old 1");
        spool.receipt(LANE).await.unwrap();
        let lane = dir.path().join("b").join(LANE.to_string());
        std::fs::create_dir_all(&lane).unwrap();
        for entry in std::fs::read_dir(dir.path().join("a").join(LANE.to_string())).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), lane.join(entry.file_name())).unwrap();
        }
        let spool = open(&dir.path().join("b"), 2, &config());
        push(&spool, LANE, "new 0");
        spool.receipt(LANE).await.unwrap();
        let server = Server::new(1 << 20);
        let _link = connect(&spool, &server);
        wait_until(|| server.borrow().texts(LANE) == ["old 0", "old 1", "new 0"]).await;
        wait_until(|| spool.totals().records == 0).await;
        let server = server.borrow();
        let records = &server.stored[&LANE];
        assert!(records[0].0 == records[1].0 && records[1].0 < records[2].0);
        assert_eq!((records[1].1, records[2].1), (1, 0));
    });
}

/// An agent restored from an old image: the server knows a later life of the lane.
#[test]
fn a_stale_lane_starts_again() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let server = Server::new(1 << 20);
        // Of a clock that is five years ahead.
        let future = Epoch(skein_agent::clock::wall_ms() as u64 + 5 * 365 * 86_400_000);
        let known = LaneReceiver::new(DataId(LANE), 1 << 20, Some((future, Sequence(50))));
        server.borrow_mut().lanes.insert(LANE, known);
        push(&spool, LANE, "stale");
        spool.receipt(LANE).await.unwrap();
        let _link = connect(&spool, &server);
        wait_until(|| spool.totals().dropped == 1).await;
        push(&spool, LANE, "fresh");
        wait_until(|| spool.totals().records == 0 && server.borrow().texts(LANE) == ["fresh"])
            .await;
    });
}

#[test]
fn go_away_ends_the_session_after_the_last_acknowledgement() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let server = Server::new(1 << 20);
        let mut link = connect(&spool, &server);
        server.borrow_mut().sink_stands = true;
        push(&spool, LANE, "sent");
        wait_until(|| !server.borrow().order.is_empty()).await;
        let mut away = Vec::new();
        ServerFrame::GoAway { reconnect_after_ms: 77 }.encode(&mut away);
        link.say.send(away).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        push(&spool, LANE, "not sent any more");
        spool.receipt(LANE).await.unwrap();
        assert!(!link.client.is_finished());
        server.borrow_mut().sink_stands = false;
        let ended = (&mut link.client).await.unwrap();
        assert!(matches!(ended, Ended::GoAway { reconnect_after_ms: 77 }), "{ended}");
        assert_eq!((spool.totals().records, server.borrow().order.len()), (1, 1));
    });
}

#[test]
fn garbage_from_the_server_ends_the_session() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let (ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        assert!(matches!(session::run(&spool, ours).await, Ended::Protocol(_)));
        let (ours, theirs) = tokio::io::duplex(1024);
        drop(theirs);
        assert!(matches!(session::run(&spool, ours).await, Ended::Closed | Ended::Io(_)));
    });
}

/// A half-open connection: silence, a question, silence.
#[test]
fn a_silent_server_is_given_up() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let mut core = Core::new(spool, 1_000);
        let mut now_ms = 1_000;
        let mut asked_at = None;
        let over = loop {
            now_ms = core.tick_at_ms(now_ms);
            if let Err(over) = core.on_time(now_ms) {
                break over;
            }
            let mut out = Vec::new();
            core.fill(&mut out);
            if !out.is_empty() {
                assert_eq!(decode_agent_frame(&out), Ok(Some((AgentFrame::KeepAlive, 4))));
                assert_eq!(asked_at.replace(now_ms), None, "asked once");
            }
        };
        assert_eq!((over, asked_at, now_ms), (Over::Silent, Some(21_000), 51_000));
    });
}

#[test]
fn an_answer_or_our_own_stop_keeps_the_connection() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        let mut core = Core::new(spool, 0);
        assert_eq!(core.tick_at_ms(0), 10_000);
        core.on_time(20_000).unwrap();
        core.on_frame(ServerFrame::KeepAlive, 20_500);
        assert_eq!(core.tick_at_ms(30_600), 40_500);
        core.on_time(40_500).unwrap();
        // The process is stopped for a minute in which the answer came.
        core.tick_at_ms(40_500);
        assert_eq!(core.on_time(100_500), Ok(()), "the server is not judged by our own stop");
        core.on_frame(ServerFrame::KeepAlive, 100_501);
        core.tick_at_ms(100_501);
        assert_eq!(core.on_time(110_501), Ok(()));
    });
}

/// Depths are reported when they changed.
#[test]
fn depths_are_reported() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path(), 1, &config());
        push(&spool, LANE, "one");
        spool.receipt(LANE).await.unwrap();
        let mut core = Core::new(spool, 0);
        let frames = |core: &mut Core, now_ms| {
            core.on_time(now_ms).unwrap();
            let mut out = Vec::new();
            core.fill(&mut out);
            let mut at = 0;
            let mut stats = Vec::new();
            while let Some((frame, bytes)) = decode_agent_frame(&out[at..]).unwrap() {
                at += bytes;
                if let AgentFrame::LaneStat(stat) = frame {
                    stats.push((stat.data_id.0, stat.spool_records));
                }
            }
            stats
        };
        assert_eq!(core.tick_at_ms(0), 10_000);
        assert_eq!(frames(&mut core, 10_000), [(LANE, 1)]);
        assert_eq!(frames(&mut core, 20_000), []);
    });
}

/// Connections break, the server is killed, lanes are held, the agent is killed, at random: in the
/// end every record is stored once, in order.
#[test]
fn every_record_is_stored_once_whatever_breaks() {
    for seed in 0..8u64 {
        local(async {
            let dir = tempfile::tempdir().unwrap();
            let mut random = Random(seed * 31 + 7);
            let mut spool = open(dir.path(), 1, &config());
            let server = Server::new(48 << 10);
            let mut link = connect(&spool, &server);
            let mut pushed: BTreeMap<u32, u64> = BTreeMap::new();
            for _ in 0..250 {
                let lane = LANE + random.draw(3) as u32;
                match random.draw(14) {
                    0 => link = connect(&spool, &server),
                    1 if random.draw(2) == 0 => {
                        drop(link);
                        server.borrow_mut().die();
                        link = connect(&spool, &server);
                    }
                    2 if random.draw(4) == 0 => {
                        drop(link);
                        spool.close(Duration::from_secs(60)).await;
                        spool = open(dir.path(), 1, &config());
                        link = connect(&spool, &server);
                    }
                    3 => {
                        let hold = server.borrow_mut().hold(lane, HoldReason::SinkUnavailable);
                        let _ = link.say.send(hold);
                    }
                    4 => {
                        let ready = server.borrow_mut().unhold(lane);
                        let _ = link.say.send(ready);
                    }
                    5 => {
                        let stands = server.borrow().sink_stands;
                        server.borrow_mut().sink_stands = !stands;
                    }
                    6..9 => tokio::time::sleep(Duration::from_millis(random.draw(8))).await,
                    _ => {
                        for _ in 0..random.draw(40) {
                            let number = pushed.entry(lane).or_default();
                            let noise: String = (0..random.draw(2_000))
                                .map(|_| char::from(b'!' + random.draw(90) as u8))
                                .collect();
                            push(&spool, lane, &format!("{number} {noise}"));
                            *number += 1;
                        }
                    }
                }
            }
            server.borrow_mut().sink_stands = false;
            server.borrow_mut().held.clear();
            drop(link);
            let _link = connect(&spool, &server);
            let total: u64 = pushed.values().sum();
            wait_until(|| {
                let server = server.borrow();
                server.stored.values().map(|records| records.len() as u64).sum::<u64>() >= total
            })
            .await;
            wait_until(|| spool.totals().records == 0).await;
            let server = server.borrow();
            assert_eq!((server.missing, spool.totals().dropped), (0, 0), "seed {seed}");
            for (lane, count) in pushed {
                let records = &server.stored[&lane];
                assert_eq!(records.len() as u64, count, "seed {seed}, lane {lane}");
                for (at, (_, sequence, text)) in records.iter().enumerate() {
                    assert_eq!(*sequence, at as u64, "seed {seed}, lane {lane}");
                    assert!(text.starts_with(&format!("{at} ")), "seed {seed}, lane {lane}");
                }
            }
        });
    }
}
