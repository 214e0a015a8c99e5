//! A whole shard in memory: sessions over real TLS, time given by the test.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;
use proptest::prelude::*;
use rustls::ClientConnection;
use skein_filemesh::core::peer_wire::{Handshake, peer_id};
use skein_wire::batch::{BatchHeader, HEADER_BYTES};
use skein_wire::compress::Codec;
use skein_wire::data::TYPE_BATCH;
use skein_wire::frame;
use skein_wire::hello::{ChannelKind, HELLO_BYTES, Hello, HelloAck, HelloStatus};
use skein_wire::ids::{AgentId, DataId, Epoch, Instance, Sequence};
use skein_wire::limits::{
    BATCH_BODY_BYTES_MAX, PRE_AUTH_BYTES_MAX, PRE_AUTH_TIME_MS, SIGNAL_MESSAGE_BYTES_MAX,
};
use skein_wire::prost::Message;
use skein_wire::signal::v1::{
    AgentMessage, Heartbeat, HostFacts, Ping, ServerMessage, agent_message, server_message,
};

use super::*;
use crate::directory::Directory;
use crate::files::{FilePool, FileService};
use crate::fleet::FleetLink;
use crate::limits::{ASSEMBLY_BYTES_MAX, FILE_IDLE_MS, FRAME_TIME_MS, SIGNAL_OUT_BYTES_MAX};
use crate::router::{self, DiskChoice, Limits, RouterConfig};
use crate::session::{Liveness, Shared};
use crate::tls::tests::{Pki, hear, sent};

struct World {
    shard: Shard,
    shared: Arc<Shared>,
    pki: Pki,
    now_ms: u64,
    _mailbox: flume::Receiver<ShardMail>,
    _link: FleetLink,
    _dir: tempfile::TempDir,
}

struct Peer {
    key: ConnKey,
    client: ClientConnection,
    heard: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mail, mailbox) = flume::bounded(64);
        let (link, fleet) = FleetLink::new();
        let config = RouterConfig {
            workers: 1,
            checkpoints: dir.path().to_owned(),
            queue_bytes: 1 << 20,
            disk: DiskChoice::Plain,
            limits: Limits::default(),
        };
        let router = router::start(config, vec![mail.clone()], flume::bounded(64).0).unwrap();
        let pool = FilePool::start(1).unwrap();
        let shared = Arc::new(Shared {
            directory: Arc::new(Directory::default()),
            files: FileService::new(pool, fleet.clone(), vec![mail.clone()]),
            fleet,
            router: router.handle.clone(),
            shards: vec![mail],
            liveness: Liveness::default(),
            draining: AtomicBool::new(false),
            session_ids: AtomicU64::new(1),
        });
        let pki = Pki::new();
        let shard = Shard::new(0, shared.clone(), pki.acceptor.clone(), 100, 0);
        Self { shard, shared, pki, now_ms: 0, _mailbox: mailbox, _link: link, _dir: dir }
    }

    fn connect(&mut self, agent: Option<&str>) -> Peer {
        let key = self.shard.accept(SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
        Peer { key, client: self.pki.client(agent), heard: Vec::new() }
    }

    fn open(&mut self, kind: ChannelKind, agent: &str) -> Peer {
        let mut peer = self.connect(Some(agent));
        self.exchange(&mut peer);
        let hello = Hello::new(kind, Instance([1; 16]));
        peer.client.writer().write_all(&hello.encode()).unwrap();
        self.exchange(&mut peer);
        let ack: Vec<u8> = peer.heard.drain(..HELLO_BYTES).collect();
        let ack = HelloAck::decode(ack[..].try_into().unwrap()).unwrap();
        assert_eq!(ack.status, HelloStatus::Ok);
        peer
    }

    /// Gives the shard bytes as a socket would; the answer is how many it took.
    fn give(&mut self, key: ConnKey, bytes: &[u8]) -> usize {
        let mut given = 0;
        while given < bytes.len()
            && let Some(room) = self.shard.lend(key)
        {
            let now = room.len().min(bytes.len() - given);
            room[..now].copy_from_slice(&bytes[given..given + now]);
            self.shard.received(key, now);
            given += now;
        }
        given
    }

    /// Moves bytes both ways until both are silent.
    fn exchange(&mut self, peer: &mut Peer) {
        loop {
            let up = sent(&mut peer.client);
            self.give(peer.key, &up);
            let down = self.shard.output(peer.key).to_vec();
            if up.is_empty() && down.is_empty() {
                return;
            }
            self.shard.sent(peer.key, down.len());
            peer.heard.extend(hear(&mut peer.client, &down));
        }
    }

    /// Time passes in ticks, as a healthy driver gives it.
    fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += TICK_MS.min(end - self.now_ms);
            self.shard.turn(self.now_ms, 0);
        }
    }

    fn is_up(&self, agent: &str) -> bool {
        self.shared.directory.signal(&AgentId::parse(agent).unwrap()).is_some()
    }
}

fn heartbeat(peer: &mut Peer) {
    let kind = agent_message::Kind::Heartbeat(Heartbeat { sequence: 1, agent_time_ms: 0 });
    let mut out = Vec::new();
    let message = AgentMessage { kind: Some(kind) };
    frame::encode_message(&message, SIGNAL_MESSAGE_BYTES_MAX, &mut out).unwrap();
    peer.client.writer().write_all(&out).unwrap();
}

#[test]
fn a_stopped_shard_loses_nobody_and_silence_while_it_listens_does() {
    let mut world = World::new();
    let mut peer = world.open(ChannelKind::Signal, "a");
    let lost_after = world.shared.liveness.lost_after_ms();
    world.pass(lost_after - 1_500);
    assert!(world.is_up("a"));
    // Stopped for ten minutes.
    world.now_ms += 600_000;
    assert!(world.shard.turn(world.now_ms, 0).is_some(), "it knows");
    assert!(world.is_up("a"));
    heartbeat(&mut peer);
    world.exchange(&mut peer);
    world.pass(lost_after - 500);
    assert!(world.is_up("a"));
    world.pass(500 + 2 * TICK_MS);
    assert!(!world.is_up("a"));
    assert!(world.shard.is_finished(peer.key));
    assert_eq!(world.shard.connections(), 0);
}

#[test]
fn before_authentication_little_is_held_and_not_for_long() {
    let mut world = World::new();
    let peer = world.connect(None);
    let mut record = vec![0x16, 3, 1, 0x40, 0];
    record.resize(5 + 0x4000, 1);
    let taken = world.give(peer.key, &record[..PRE_AUTH_BYTES_MAX - 1]);
    assert_eq!(taken, PRE_AUTH_BYTES_MAX - 1, "not yet too much");
    let more = world.give(peer.key, &record[PRE_AUTH_BYTES_MAX - 1..]);
    assert!(more <= 1, "{more}");
    assert!(world.shard.is_finished(peer.key));

    let silent = world.connect(None);
    world.pass(PRE_AUTH_TIME_MS - 200);
    assert!(!world.shard.is_finished(silent.key));
    world.pass(200 + 2 * TICK_MS);
    assert!(world.shard.is_finished(silent.key));
}

#[test]
fn who_does_not_read_is_closed_when_its_output_is_over_its_bound() {
    let mut world = World::new();
    let peer = world.open(ChannelKind::Signal, "a");
    let agent = AgentId::parse("a").unwrap();
    let payload = Bytes::from(vec![7; 200 * 1024]);
    let ping = server_message::Kind::Ping(Ping { nonce: 1, payload });
    let common = Bytes::from(ServerMessage { kind: Some(ping) }.encode_to_vec());
    let mut delivered = 0;
    while world.is_up("a") {
        let targets = vec![(peer.key, agent.clone(), Bytes::new())];
        let common = common.clone();
        world.shard.mail(ShardMail::ToAgents(Delivery { dispatch_id: 1, common, targets }));
        assert!(world.shard.take_dirty().contains(&peer.key));
        delivered += 1;
        assert!(delivered <= SIGNAL_OUT_BYTES_MAX / (200 * 1024) + 1);
    }
    assert!(delivered > 3);
}

#[test]
fn a_session_that_is_replaced_or_revoked_leaves_nothing_behind() {
    let mut world = World::new();
    let mut peer = world.open(ChannelKind::Data, "a");
    world.shard.mail(ShardMail::Close(peer.key, crate::session::CloseReason::Revoked));
    world.exchange(&mut peer);
    assert!(!world.shard.is_finished(peer.key), "the peer may still read why");
    world.pass(crate::limits::LINGER_MS + 2 * TICK_MS);
    assert!(world.shard.is_finished(peer.key));
    assert_eq!(world.shard.connections(), 0);
    assert!(world.shared.directory.sessions(&AgentId::parse("a").unwrap()).is_empty());
    assert!(world.shard.lend(peer.key).is_none() && world.shard.output(peer.key).is_empty());
}

fn data_sessions(world: &World, agent: &str) -> usize {
    world.shared.directory.sessions(&AgentId::parse(agent).unwrap()).len()
}

/// Prefix and header of a batch with a body of this size.
fn batch_head(body_bytes: u32) -> Vec<u8> {
    let header = BatchHeader {
        codec: Codec::None,
        flags: 0,
        data_id: DataId(1001),
        record_count: 1,
        body_bytes,
        raw_bytes: body_bytes,
        epoch: Epoch(1),
        first: Sequence(0),
        base_timestamp_ms: 0,
        max_timestamp_ms: 0,
        body_crc: 0,
    };
    let length = u32::try_from(HEADER_BYTES).unwrap() + body_bytes;
    let mut head = length.to_be_bytes().to_vec();
    head[0] = TYPE_BATCH;
    head.extend_from_slice(&header.encode());
    head
}

/// After traffic in pieces of every size a session that is idle holds no receive buffer; while a
/// message is under way it holds that message.
#[test]
fn an_idle_session_holds_at_most_1_kib_of_receive_buffer() {
    const IDLE_BYTES_MAX: usize = 1024;
    let mut world = World::new();
    let mut signal = world.open(ChannelKind::Signal, "a");
    let mut data = world.open(ChannelKind::Data, "a");
    let file = world.open(ChannelKind::File, "a");
    let enrol = world.connect(None);
    let sessions = [&signal, &data, &file, &enrol].len();
    assert!(world.shard.held_bytes() <= sessions * IDLE_BYTES_MAX);

    let facts = HostFacts { hostname: "h".repeat(50_000), ..HostFacts::default() };
    let message = AgentMessage { kind: Some(agent_message::Kind::Facts(facts)) };
    let mut long = Vec::new();
    frame::encode_message(&message, SIGNAL_MESSAGE_BYTES_MAX, &mut long).unwrap();
    let batch = [batch_head(50_000), vec![7; 50_000]].concat();
    for cut in [1, 2, 3, 5, 16_383, 16_384, 40_000] {
        for (peer, bytes, counted) in [(&mut signal, &long, true), (&mut data, &batch, false)] {
            peer.client.writer().write_all(&bytes[..cut]).unwrap();
            world.exchange(peer);
            // A batch under way is counted where its memory was reserved.
            if counted {
                assert!(world.shard.held_bytes() >= cut, "what is under way is counted");
            }
            // The rest comes in one stream of TLS records, cut at odd places.
            peer.client.writer().write_all(&bytes[cut..]).unwrap();
            let records = sent(&mut peer.client);
            for piece in records.chunks(10_007) {
                assert_eq!(world.give(peer.key, piece), piece.len());
            }
            world.exchange(peer);
        }
        heartbeat(&mut signal);
        world.exchange(&mut signal);
        assert!(world.shard.held_bytes() <= sessions * IDLE_BYTES_MAX, "after a cut at {cut}");
        assert_eq!(world.shard.held_bytes(), 0, "none at all, in fact");
    }
    assert!(world.is_up("a") && data_sessions(&world, "a") == 2);
}

#[test]
fn a_record_that_trickles_in_is_as_bad_as_a_message_that_does() {
    for kind in [ChannelKind::Signal, ChannelKind::Data, ChannelKind::File] {
        let mut world = World::new();
        let mut peer = world.open(kind, "a");
        peer.client.writer().write_all(&[0; 10_000]).unwrap();
        let record = sent(&mut peer.client);
        // Bytes come far more often than the liveness of the session asks for.
        let mut bytes = record.iter();
        let mut passed_ms = 0;
        while !world.shard.is_finished(peer.key) {
            world.give(peer.key, &[*bytes.next().unwrap()]);
            world.pass(5_000);
            passed_ms += 5_000;
            assert!(passed_ms <= 2 * FRAME_TIME_MS, "{kind:?} is served for ever");
        }
        assert!(passed_ms >= FRAME_TIME_MS, "{kind:?} ended after {passed_ms} ms");
        assert_eq!(world.shard.held_bytes(), 0);
    }
}

#[test]
fn a_file_channel_must_name_its_transfer_in_time() {
    let mut world = World::new();
    let mut peer = world.open(ChannelKind::File, "a");
    let handshake = Handshake::new([7; 20], peer_id("agent")).encode();
    let mut passed_ms = 0;
    for byte in handshake {
        peer.client.writer().write_all(&[byte]).unwrap();
        world.exchange(&mut peer);
        world.pass(2_000);
        passed_ms += 2_000;
        if world.shard.is_finished(peer.key) {
            break;
        }
    }
    assert!(world.shard.is_finished(peer.key), "after {passed_ms} ms");
    assert!((FILE_IDLE_MS..FILE_IDLE_MS + 5_000).contains(&passed_ms), "{passed_ms}");
}

/// Seventy-two batches are under way and the shard's memory is reserved: the next one is not read,
/// so its silence is ours. When the others are given up as slow, it goes on.
#[test]
fn who_waits_for_our_memory_is_not_lost() {
    let mut world = World::new();
    let body_bytes = u32::try_from(BATCH_BODY_BYTES_MAX).unwrap();
    let mut greedy = Vec::new();
    for number in 0..ASSEMBLY_BYTES_MAX / BATCH_BODY_BYTES_MAX {
        let mut peer = world.open(ChannelKind::Data, &format!("greedy-{number}"));
        peer.client.writer().write_all(&batch_head(body_bytes)).unwrap();
        world.exchange(&mut peer);
        greedy.push(peer);
    }
    let mut waiter = world.open(ChannelKind::Data, "waiter");
    waiter.client.writer().write_all(&batch_head(body_bytes)).unwrap();
    world.exchange(&mut waiter);
    assert!(world.shard.lend(waiter.key).is_none(), "it is not read");
    let lost_after_ms = world.shared.liveness.lost_after_ms();
    // The others come one after the other, so the waiter is due while the last still live.
    for _ in 0..3 {
        world.pass(lost_after_ms / 2);
        greedy.iter_mut().for_each(|peer| {
            peer.client.writer().write_all(&[7]).unwrap();
            world.exchange(peer);
        });
    }
    assert_eq!(data_sessions(&world, "waiter"), 1, "lost while we did not read it");
    for peer in &greedy {
        assert!(world.shard.is_finished(peer.key), "a batch that trickles in is given up");
    }
    assert!(world.shard.lend(waiter.key).is_some(), "it is read now");
    world.shard.received(waiter.key, 0);
    world.pass(lost_after_ms + 2 * TICK_MS);
    assert_eq!(data_sessions(&world, "waiter"), 0, "and now its silence is its own");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn garbage_inside_tls_ends_sessions_and_nothing_else(
        kind in 0usize..4,
        frames in prop::collection::vec(
            (any::<[u8; 4]>(), 0usize..3, prop::collection::vec(any::<u8>(), 0..300)),
            1..12,
        ),
    ) {
        thread_local!(static WORLD: std::cell::RefCell<World> = World::new().into());
        WORLD.with_borrow_mut(|world| {
            let kinds =
                [ChannelKind::Enrol, ChannelKind::Signal, ChannelKind::Data, ChannelKind::File];
            let mut peer = world.open(kinds[kind], "g");
            for (head, shape, body) in &frames {
                let length = (body.len() as u32).to_be_bytes();
                // Wild, a frame of a true length, or a data frame of a true length.
                let head = match shape {
                    0 => *head,
                    1 => length,
                    _ => [head[0] % 4, 0, length[2], length[3]],
                };
                if peer.client.writer().write_all(&[&head[..], body].concat()).is_ok() {
                    world.exchange(&mut peer);
                }
            }
            world.shard.closed(peer.key, true);
            prop_assert!(world.shard.is_finished(peer.key));
            prop_assert_eq!(world.shard.connections(), 0);
            world.shard.take_dirty();
            Ok(())
        })?;
    }
}
