//! Records from agents into files: stored once, in order, and acknowledged after that.
#![allow(clippy::unwrap_used)] // in helpers of tests

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Client, Control, Server};
use skein_wire::batch::BatchBuilder;
use skein_wire::compress::{Codec, Compressor};
use skein_wire::data::{AgentFrame, HoldReason, LaneStat, ServerFrame, decode_server_frame};
use skein_wire::fleet::v1 as fleet;
use skein_wire::fleet::v1::{from_data, to_data};
use skein_wire::hello::{ChannelKind, HelloStatus};
use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};
use skein_wire::lane::LaneSender;

const DATA_ID: DataId = DataId(1001);

fn table(server: &Server, revision: u64, data_ids: &[u32]) -> to_data::Kind {
    let sink = fleet::stream::Sink::File(fleet::FileStream {
        directory: server.dir.join("sinks").to_str().unwrap().to_owned(),
        path_template: "{data_id}.{writer}.log".to_owned(),
        format: "tagged".to_owned(),
        flush_interval_ms: 20,
        durability: "process".to_owned(),
        ..Default::default()
    });
    let stream = fleet::Stream { stream_id: 1, name: "s".to_owned(), sink: Some(sink) };
    let route = |data_id: &u32| fleet::Route {
        name: format!("r{data_id}"),
        data_id: *data_id,
        stream_id: 1,
    };
    let routes = data_ids.iter().map(route).collect();
    to_data::Kind::Table(fleet::RoutingTable { revision, streams: vec![stream], routes })
}

fn routed(server: &Server, data_ids: &[u32]) -> Control {
    let mut control = server.registered();
    control.send(table(server, 1, data_ids));
    control.expect(|kind| matches!(kind, from_data::Kind::TableApplied(t) if t.revision == 1));
    control
}

/// One lane of an agent, its records known by their number.
struct Source {
    agent: AgentId,
    client: Client,
    lane: LaneSender,
    compressor: Compressor,
    produced: u64,
}

impl Source {
    fn open(server: &Server, name: &str, data_id: DataId, produced: u64) -> Self {
        let lane = LaneSender::new(data_id, Epoch(1), Sequence(0));
        let mut source = Self {
            agent: AgentId::parse(name).unwrap(),
            client: connect(server, name),
            lane,
            compressor: Compressor::new(Codec::Zstd, 1).unwrap(),
            produced,
        };
        source.hail();
        source
    }

    fn hail(&mut self) {
        let open = self.lane.connected(Sequence(0), Sequence(self.produced));
        self.say(&AgentFrame::LaneOpen(open));
    }

    fn reconnect(&mut self, server: &Server) {
        self.lane.disconnected();
        self.client = connect(server, self.agent.as_str());
        self.hail();
    }

    fn say(&mut self, frame: &AgentFrame<'_>) {
        let mut out = Vec::new();
        frame.encode(&mut out);
        self.client.send(&out);
    }

    /// The batch that begins at `first`: always the same records for the same number.
    fn batch(&mut self, first: u64, count: u64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(self.lane.data_id(), 800 * 1024);
        for number in first..first + count {
            assert!(builder.push(number as i64, value(number).as_bytes()));
        }
        let identity = (&self.agent, Epoch(1), Sequence(first));
        let (header, body) = builder.seal(identity, &mut self.compressor, 0).unwrap();
        self.lane.sent(&header);
        let mut out = Vec::new();
        AgentFrame::Batch { header, body: &body }.encode(&mut out);
        out
    }

    fn hear(&mut self) -> ServerFrame {
        self.hear_or_end().expect("the server closed")
    }

    fn hear_or_end(&mut self) -> Option<ServerFrame> {
        loop {
            if let Some((frame, used)) = decode_server_frame(&self.client.buffer).unwrap() {
                self.client.buffer.drain(..used);
                match &frame {
                    ServerFrame::LaneReady(ready) => self.lane.on_ready(ready),
                    ServerFrame::Ack(ack) => drop(self.lane.on_ack(ack)),
                    ServerFrame::Credit(credit) => self.lane.on_credit(credit),
                    ServerFrame::Hold(hold) => self.lane.on_hold(hold),
                    ServerFrame::GoAway { .. } | ServerFrame::KeepAlive => {}
                }
                return Some(frame);
            }
            if !self.client.read_more() {
                return None;
            }
        }
    }

    /// Sends as credit allows until everything is acknowledged.
    fn drain(&mut self, batch: u64) {
        const WIRE_BYTES_MAX: u64 = 900 * 1024;
        while self.lane.acked().0 < self.produced {
            let next = self.lane.next_to_send().0;
            if next < self.produced && self.lane.may_send(WIRE_BYTES_MAX) {
                let bytes = self.batch(next, batch.min(self.produced - next));
                self.client.send(&bytes);
            } else {
                self.hear();
            }
        }
    }
}

fn connect(server: &Server, name: &str) -> Client {
    let identity = Some(server.pki.agent(name, 7));
    let (client, ack) = server.open(ChannelKind::Data, identity, 1);
    assert_eq!(ack.status, HelloStatus::Ok);
    client
}

fn value(number: u64) -> String {
    format!("record {number} {:x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Recounts the sink: per agent and data id the sequences in file order, values checked.
fn recount(dir: &Path) -> BTreeMap<(String, u32), Vec<u64>> {
    let mut found: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        for line in fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
            let line = line.trim_matches('\0');
            if line.is_empty() {
                continue; // space that was allocated ahead
            }
            let fields: Vec<_> = line.splitn(6, '\t').collect();
            let sequence: u64 = fields[3].parse().unwrap();
            assert_eq!(fields[5], value(sequence));
            let lane = (fields[0].to_owned(), fields[1].parse().unwrap());
            found.entry(lane).or_default().push(sequence);
        }
    }
    found
}

#[test]
fn records_are_stored_once_in_order_and_acknowledged() {
    let server = Server::start();
    let mut control = routed(&server, &[DATA_ID.0]);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let server = &server;
            scope.spawn(move || {
                let mut source = Source::open(server, &format!("a{number}"), DATA_ID, 20_000);
                source.drain(700 + number * 311);
                source.say(&AgentFrame::KeepAlive);
                while source.hear() != ServerFrame::KeepAlive {}
            });
        }
    });
    let report = control.expect(|kind| {
        matches!(kind, from_data::Kind::Lanes(report)
            if report.lanes.iter().any(|lane| lane.next_sequence == 20_000))
    });
    drop(report);
    let dir = server.dir.join("sinks");
    server.process.stop().unwrap();
    let found = recount(&dir);
    assert_eq!(found.len(), 6);
    for (lane, sequences) in found {
        assert!(sequences.iter().copied().eq(0..20_000), "{lane:?}: {}", sequences.len());
    }
}

#[test]
fn a_reconnect_and_a_restart_without_control_repeat_nothing() {
    let mut server = Server::start();
    drop(routed(&server, &[DATA_ID.0]));
    let mut source = Source::open(&server, "a", DATA_ID, 3_000);
    source.drain(100);
    for round in 1..=3 {
        // More is sent than is acknowledged, then the connection is gone.
        source.produced += 5_000;
        source.reconnect(&server);
        while !source.lane.is_ready() {
            source.hear();
        }
        for _ in 0..10 {
            let next = source.lane.next_to_send().0;
            let bytes = source.batch(next, 200);
            source.client.send(&bytes);
        }
        let half = source.batch(source.lane.next_to_send().0, 200);
        source.client.send(&half[..half.len() / 2]);
        if round == 2 {
            server = server.restart();
        }
        source.reconnect(&server);
        source.drain(333);
    }
    let dir = server.dir.join("sinks");
    server.process.stop().unwrap();
    let found = recount(&dir);
    assert!(found[&("a".to_owned(), DATA_ID.0)].iter().copied().eq(0..18_000));
}

#[test]
fn an_unknown_data_id_is_held_until_it_has_a_route_and_others_flow() {
    let server = Server::start();
    let mut control = routed(&server, &[DATA_ID.0]);
    let mut held = Source::open(&server, "a", DataId(7), 500);
    while held.lane.held().is_none() {
        held.hear();
    }
    assert_eq!(held.lane.held(), Some(HoldReason::UnknownDataId));
    held.say(&AgentFrame::LaneStat(LaneStat {
        data_id: DataId(7),
        epoch: Epoch(1),
        spool_records: 500,
        spool_bytes: 9_000,
        dropped_records: 3,
    }));
    Source::open(&server, "b", DATA_ID, 2_000).drain(150);
    let report = control.expect(|kind| {
        matches!(kind, from_data::Kind::Lanes(report)
            if report.lanes.iter().any(|lane| lane.data_id == 7 && lane.dropped_records == 3))
    });
    let from_data::Kind::Lanes(report) = report else { unreachable!() };
    let lane = report.lanes.iter().find(|lane| lane.data_id == 7).unwrap();
    assert_eq!((lane.held.as_str(), lane.spool_records), ("unknown_data_id", 500));
    control.send(table(&server, 2, &[DATA_ID.0, 7]));
    held.drain(100);
    let dir = server.dir.join("sinks");
    server.process.stop().unwrap();
    let found = recount(&dir);
    assert!(found[&("a".to_owned(), 7)].iter().copied().eq(0..500));
    assert!(found[&("b".to_owned(), DATA_ID.0)].iter().copied().eq(0..2_000));
}

#[test]
fn a_clean_stop_says_farewell_and_acknowledges_exactly_what_it_took() {
    let server = Server::start();
    drop(routed(&server, &[DATA_ID.0]));
    let mut source = Source::open(&server, "a", DATA_ID, 2_000);
    while !source.lane.is_ready() {
        source.hear();
    }
    let (first, second) = (source.batch(0, 1_000), source.batch(1_000, 1_000));
    source.client.send(&first);
    while source.lane.acked().0 < 1_000 {
        source.hear();
    }
    source.client.send(&second);
    let dir = server.dir.join("sinks");
    let stopping = std::thread::spawn(move || server.process.stop().unwrap());
    let mut farewell = false;
    while let Some(frame) = source.hear_or_end() {
        farewell |= matches!(frame, ServerFrame::GoAway { .. });
    }
    stopping.join().unwrap();
    assert!(farewell);
    let stored = &recount(&dir)[&("a".to_owned(), DATA_ID.0)];
    assert!(stored.iter().copied().eq(0..source.lane.acked().0), "{}", stored.len());
}
