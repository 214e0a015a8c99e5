//! Valid inputs of every target, made by the encoders: what the seeds in `fuzz/seeds` are written
//! from, and what the mutations of plain `cargo test` start at.

use skein_agent::spool::segment::{self, Entry, SegmentHeader};
use skein_dataplane::sinks::checkpoint;
use skein_dataplane::sinks::disk::FileId;
use skein_filemesh::core::leecher::Action;
use skein_filemesh::core::link::Have;
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::merkle;
use skein_filemesh::core::metainfo::{Metainfo, PieceHasher};
use skein_filemesh::core::peer_wire::{
    BlockRange, HANDSHAKE_BYTES, Handshake, HashRange, Message as PeerMessage,
};
use skein_filemesh::core::seeder::{Pull, Seeder};
use skein_filemesh::core::tree::codec;
use skein_filemesh::core::tree::listing::{Kind, ListingBuilder, Meta, OwnerNames};
use skein_wire::batch::{BatchBuilder, BatchHeader};
use skein_wire::compress::{Codec, Compressor};
use skein_wire::data::{
    Ack, AgentFrame, Credit, Hold, HoldReason, LaneOpen, LaneReady, LaneStat, ServerFrame,
};
use skein_wire::fleet::v1::{self as fleet, FromData, ToData, from_data, to_data};
use skein_wire::frame::encode_message;
use skein_wire::hello::{ChannelKind, Hello, HelloAck, HelloStatus};
use skein_wire::ids::{AgentId, DataId, Epoch, Instance, Sequence};
use skein_wire::prost::Message;
use skein_wire::signal::v1::{
    self as signal, AgentMessage, Command, EnrolRequest, ServerMessage, agent_message,
    server_message,
};
use skein_wire::token::JoinToken;

use super::bodies::mesh;

/// One input: target, name, bytes.
pub type Sample = (&'static str, &'static str, Vec<u8>);

/// All of them.
pub fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    samples.extend(messages());
    samples.extend(hellos());
    samples.extend(data_frames());
    samples.extend(bodies());
    samples.extend(peer_messages());
    samples.extend(transcripts());
    samples.push(("mesh_manifest", "manifest", manifest()));
    samples.extend(metainfo());
    samples.push(("mesh_sidecar", "leaves", leaves_sidecar()));
    samples.push(("mesh_tree", "listing", tree_listing()));
    samples.extend(membership());
    let log = checkpoint_log();
    samples.push(("data_checkpoint", "entries", log[16..].to_vec()));
    samples.push(("data_checkpoint", "log", log));
    samples.push(("agent_collector", "frames", collector_frames()));
    samples.push(("agent_spool", "segment", spool_segment()));
    let token = JoinToken { id: [1; 8], secret: [2; 16], ca_sha256: [3; 32] };
    samples.push(("wire_token", "token", token.to_string().into_bytes()));
    samples.push(("wire_token", "agent_id", b"0:10.0.0.1".to_vec()));
    samples
}

fn frame<M: Message>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_message(message, 1 << 20, &mut bytes).expect("samples are small");
    bytes
}

fn messages() -> Vec<Sample> {
    let facts = signal::HostFacts {
        hostname: "web-1".into(),
        ips: vec!["10.0.0.1".into(), "fe80::1".into()],
        labels: [("role".to_owned(), "web".to_owned())].into(),
        cloud_id: -1,
        memory_bytes: 1 << 34,
        ..signal::HostFacts::default()
    };
    let enrol = EnrolRequest {
        token_id: "0101".into(),
        token_secret: vec![2; 16].into(),
        csr_der: vec![0x30; 120].into(),
        agent_id: String::new(),
        facts: Some(facts.clone()),
    };
    let update =
        signal::TaskUpdate { task_id: vec![5; 16].into(), exit_code: -1, ..Default::default() };
    let agent = |kind| frame(&AgentMessage { kind: Some(kind) });
    let command = Command {
        body: vec![1; 40].into(),
        not_after_ms: i64::MAX,
        key_id: 1,
        signature: vec![9; 64].into(),
        leaf_count: 2,
        leaf_index: 1,
        nonce: vec![4; 16].into(),
        path: vec![vec![8; 32].into()],
    };
    let server = server_message::Kind::Command(command.clone());
    let lanes = fleet::LaneReport { lanes: vec![fleet::LaneState::default(); 2] };
    let stream = fleet::Stream {
        stream_id: 1,
        name: "s".into(),
        sink: Some(fleet::stream::Sink::File(fleet::FileStream::default())),
    };
    let table = fleet::RoutingTable { revision: 2, streams: vec![stream], routes: Vec::new() };
    vec![
        ("wire_enrol", "request", frame(&enrol)),
        ("wire_signal", "facts", agent(agent_message::Kind::Facts(facts))),
        ("wire_signal", "task_update", agent(agent_message::Kind::TaskUpdate(update))),
        ("wire_signal", "command", frame(&ServerMessage { kind: Some(server) })),
        ("wire_command", "command", command.encode_to_vec()),
        ("wire_fleet", "lanes", frame(&FromData { kind: Some(from_data::Kind::Lanes(lanes)) })),
        ("wire_fleet", "table", frame(&ToData { kind: Some(to_data::Kind::Table(table)) })),
    ]
}

fn hellos() -> Vec<Sample> {
    let hello = Hello::new(ChannelKind::Data, Instance([6; 16]));
    let ack = HelloAck {
        version: 1,
        status: HelloStatus::RetryLater,
        retry_after_ms: 1500,
        session_id: 77,
        server_time_ms: 1_767_225_600_000,
    };
    vec![
        ("wire_hello", "hello", hello.encode().to_vec()),
        ("wire_hello", "ack", ack.encode().to_vec()),
    ]
}

fn data_frames() -> Vec<Sample> {
    let (data_id, epoch) = (DataId(1001), Epoch(3));
    let (first, next) = (Sequence(10), Sequence(20));
    let agent = |frame: AgentFrame<'_>| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes
    };
    let server = |frame: ServerFrame| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes
    };
    let from_agent = "wire_data_from_agent";
    let from_server = "wire_data_from_server";
    let mut samples = vec![
        (from_agent, "open", agent(AgentFrame::LaneOpen(LaneOpen { data_id, epoch, first, next }))),
        (from_agent, "keep_alive", agent(AgentFrame::KeepAlive)),
        (
            from_agent,
            "stat",
            agent(AgentFrame::LaneStat(LaneStat {
                data_id,
                epoch,
                spool_records: 1,
                spool_bytes: 2,
                dropped_records: 3,
            })),
        ),
        (
            from_server,
            "ready",
            server(ServerFrame::LaneReady(LaneReady {
                data_id,
                epoch,
                resume: first,
                credit_bytes: 9,
            })),
        ),
        (from_server, "ack", server(ServerFrame::Ack(Ack { data_id, epoch, next }))),
        (
            from_server,
            "credit",
            server(ServerFrame::Credit(Credit { data_id, limit_bytes: 1 << 20 })),
        ),
        (
            from_server,
            "hold",
            server(ServerFrame::Hold(Hold { data_id, reason: HoldReason::Quota })),
        ),
        (from_server, "go_away", server(ServerFrame::GoAway { reconnect_after_ms: 5 })),
    ];
    for (name, codec) in [("none", Codec::None), ("lz4", Codec::Lz4), ("zstd", Codec::Zstd)] {
        let (header, body) = batch(codec);
        samples.push((from_agent, name, agent(AgentFrame::Batch { header, body: &body })));
    }
    samples
}

fn batch(codec: Codec) -> (BatchHeader, Vec<u8>) {
    let mut builder = BatchBuilder::new(DataId(1001), 4096);
    for line in 0..8 {
        builder.push(1_767_225_600_000 + line, format!("line {line} of a log, {line}").as_bytes());
    }
    let agent = AgentId::parse("agent-1").expect("a valid id");
    let mut compressor = Compressor::new(codec, 1).expect("the codec is known");
    builder.seal((&agent, Epoch(3), Sequence(10)), &mut compressor, 0).expect("it is small")
}

/// Inputs of the two targets below a batch: its opened body with a count, its body with a codec.
fn bodies() -> Vec<Sample> {
    let (header, raw) = batch(Codec::None);
    let mut records = u16::try_from(header.record_count).expect("eight").to_be_bytes().to_vec();
    records.extend_from_slice(&raw);
    let mut samples = vec![("wire_records", "records", records)];
    for (name, codec) in [("none", Codec::None), ("lz4", Codec::Lz4), ("zstd", Codec::Zstd)] {
        let (header, body) = batch(codec);
        let mut input = vec![codec as u8];
        input.extend_from_slice(&header.raw_bytes.to_be_bytes()[1..]);
        input.extend_from_slice(&body);
        samples.push(("wire_decompress", name, input));
    }
    samples
}

fn peer_messages() -> Vec<Sample> {
    let range = BlockRange { piece: 1, begin: 16384, len: 16384 };
    let hashes = HashRange { root: [1; 32], base_layer: 0, index: 0, length: 2, proof_layers: 0 };
    let messages = [
        PeerMessage::KeepAlive,
        PeerMessage::HaveAll,
        PeerMessage::Interested,
        PeerMessage::Unchoke,
        PeerMessage::Bitfield(&[0xf0]),
        PeerMessage::Have(3),
        PeerMessage::Request(range),
        PeerMessage::Reject(range),
        PeerMessage::HashRequest(hashes),
        PeerMessage::Hashes(hashes, &[7; 64]),
        PeerMessage::Extended(0, b"d1:md2:aai1eee"),
    ];
    let mut stream = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut stream));
    let handshake = Handshake::new([1; 20], [2; 20]).encode().to_vec();
    vec![("mesh_peer_wire", "handshake", handshake), ("mesh_peer_wire", "stream", stream)]
}

/// Both directions of a whole transfer between an honest seed and an honest leecher, as each side
/// receives it; the first byte cuts it into small reads.
fn transcripts() -> Vec<Sample> {
    let mesh::File { data, leaves, tree } = mesh::file();
    let mut leecher = mesh::leecher();
    let (mut up, mut down, mut actions) = (vec![], vec![], vec![]);
    leecher.tick(0, &mut actions);
    leecher.take_output(&mut up, 0);
    let seeder = Seeder::accept(tree.clone(), Have::All, mesh::shake(2), &mesh::shake(1), 0);
    let mut seeder = seeder.expect("a member's handshake");
    let up_start = HANDSHAKE_BYTES;
    let (mut seen_up, mut seen_down) = (up_start, 0);
    while !leecher.download().is_done() {
        seen_up += seeder.receive(&up[seen_up..], 0).expect("an honest leecher");
        loop {
            let before = down.len();
            match seeder.next(1 << 20, &mut down, 0) {
                Some(Pull::Data { offset, len }) => {
                    down.extend_from_slice(&data[offset as usize..][..len as usize]);
                }
                Some(Pull::Leaves { first, count }) => {
                    let range = first as usize..(first + count) as usize;
                    seeder.leaves(Some(leaves[range].as_flattened()), &mut down, 0);
                }
                None if down.len() == before => break,
                None => {}
            }
        }
        seen_down += leecher.receive(&down[seen_down..], 0, &mut actions);
        for action in std::mem::take(&mut actions) {
            if let Action::Write { data, .. } = action {
                leecher.written(data.len() as u64, 0, &mut actions);
            }
        }
        leecher.take_output(&mut up, 0);
    }
    let of = |stream: &[u8]| [&[2], stream].concat();
    vec![("mesh_leecher", "honest", of(&down)), ("mesh_seeder", "honest", of(&up[up_start..]))]
}

fn manifest() -> Vec<u8> {
    let info = signal::FileInfo {
        size_bytes: 3 * 65_536 + 1,
        piece_bytes: 65_536,
        root: vec![7; 32].into(),
        name: "libexample.so".into(),
        mode: 0o755,
        mtime_ms: 1_767_225_600_000,
        ..signal::FileInfo::default()
    };
    info.encode_to_vec()
}

/// A listing with one of everything.
fn tree_listing() -> Vec<u8> {
    let mut builder = ListingBuilder::default();
    let user = OwnerNames { user: b"www".to_vec(), group: b"adm".to_vec() };
    let owner = builder.push_owner(user).expect("a small table");
    let meta = Meta { mode: 0o644, owner, mtime_ns: 1_000_000_007 };
    let extents = [65_536..131_072, 1 << 30..(1 << 30) + 1];
    let entries: [(u8, &[u8], Kind<'_>); 8] = [
        (0, b"", Kind::Directory),
        (1, b"a", Kind::Directory),
        (2, b"b\n", Kind::Directory),
        (3, b"small", Kind::File { size_bytes: 100 }),
        (2, b"\xff", Kind::Sparse { size_bytes: 1 << 31, extents: &extents }),
        (1, b"large", Kind::File { size_bytes: 1 << 20 }),
        (1, b"link", Kind::Symlink(b"./a/small")),
        (1, b"other", Kind::HardLink(3)),
    ];
    for (depth, name, kind) in entries {
        builder.push(depth, name, meta, kind).expect("a legal entry");
    }
    codec::encode(&builder.finish().expect("it has a root"))
}

/// The fuzzed file as torrents of version 1, of version 2, and of both as others write them.
fn metainfo() -> Vec<Sample> {
    let mesh::File { data, leaves, tree } = mesh::file();
    let (geometry, root) = (tree.geometry(), tree.root());
    let manifest = Manifest { geometry, root, name: "x".into(), mode: 0o644, mtime_ms: 1 };
    let layer = tree.layer().to_vec();
    let v2 = Metainfo::of_manifest(&manifest, layer, Some(leaves.clone())).expect("its own layer");
    let mut hasher = PieceHasher::new(geometry.piece_bytes());
    hasher.update(data);
    let pieces = hasher.finish();
    let trackers = vec!["http://a/announce".to_owned(), "udp://b:1".to_owned()];
    let v1 = Metainfo::of_pieces("x", geometry, pieces.clone(), trackers).expect("its own pieces");
    let head = format!("d7:comment0:4:infod9:file treed1:xd0:d6:lengthi{}e11:", data.len());
    let info = format!("eee6:lengthi{}e12:meta versioni2e4:name1:x", data.len());
    let hybrid = [
        head.as_bytes(),
        b"pieces root32:",
        &root,
        info.as_bytes(),
        b"12:piece lengthi32768e6:pieces40:",
        pieces.as_flattened(),
        b"7:privatei0ee12:piece layersd32:",
        &root,
        b"64:",
        tree.layer().as_flattened(),
        b"ee",
    ];
    let hybrid = hybrid.concat();
    Metainfo::decode(&hybrid).expect("written by the book");
    vec![
        ("mesh_metainfo", "v1", v1.encode()),
        ("mesh_metainfo", "v2", v2.encode()),
        ("mesh_metainfo", "hybrid", hybrid),
    ]
}

/// A list, a removal, a plan and a report, each behind the byte that says which it is.
fn membership() -> Vec<Sample> {
    let transfer_id = || vec![5; 16].into();
    let peer = |member: u32, agent_id: &str, address: &str| signal::Peer {
        member,
        agent_id: agent_id.into(),
        key_hash: vec![member as u8; 32].into(),
        addresses: vec![address.into()],
    };
    let peers = signal::TransferPeers {
        transfer_id: transfer_id(),
        root: vec![7; 32].into(),
        me: 4,
        number: 3,
        not_after_ms: 1_767_225_600_000,
        peers: vec![
            signal::Peer::default(),
            peer(1, "0:10.0.0.1", "10.0.0.1:60020"),
            peer(9, "web-9", "[fd00::9]:60030"),
        ],
    };
    let removal = signal::RemovePeers {
        transfer_id: transfer_id(),
        number: 4,
        not_after_ms: 1_767_225_600_000,
        members: vec![1, 9],
    };
    let plan = signal::TransferPlan {
        transfer_id: transfer_id(),
        number: 2,
        parents: vec![1, 0, 10],
        neighbours: vec![1, 9],
        far: vec![9],
    };
    let report = signal::MeshReport {
        transfer_id: transfer_id(),
        plan_number: 2,
        gained: vec![
            signal::PieceRange { first: 0, count: 3 },
            signal::PieceRange { first: 5, count: 1 },
        ],
        bytes_down: 1 << 20,
        bytes_up: 1 << 30,
        late_parents: vec![9],
    };
    let tagged = |kind: u8, message: Vec<u8>| [&[kind][..], &message].concat();
    vec![
        ("mesh_membership", "peers", tagged(0, peers.encode_to_vec())),
        ("mesh_membership", "removal", tagged(1, removal.encode_to_vec())),
        ("mesh_membership", "plan", tagged(2, plan.encode_to_vec())),
        ("mesh_membership", "report", tagged(3, report.encode_to_vec())),
    ]
}

/// A sidecar of two blocks in one piece; its body makes the checksums right.
fn leaves_sidecar() -> Vec<u8> {
    let (blocks, root) = ([[1; 32], [2; 32]], merkle::node(&[1; 32], &[2; 32]));
    let mut bytes = b"SKNLEAF\0\0\0\0\x01\0\0\x80\0".to_vec();
    bytes.extend_from_slice(&32_768u64.to_be_bytes());
    bytes.extend_from_slice(&root);
    bytes.extend_from_slice(b"\0\0\0\x02\0\0\0\x01");
    bytes.resize(128, 0);
    bytes.extend_from_slice(blocks.as_flattened());
    bytes.extend_from_slice(&root);
    bytes
}

/// A file that grew and one that was closed, and a lane with two streams.
fn checkpoint_log() -> Vec<u8> {
    let entry = |file| checkpoint::FileEntry {
        file: FileId(file),
        stream: 1,
        device: 2,
        inode: 3,
        length: 4096,
        opened_ms: 1_767_225_600_000,
        number: 0,
        root: "/data/sinks".into(),
        base: "logs/1001.log".into(),
        path: "logs/1001.log".into(),
    };
    let mut frame = checkpoint::Frame::default();
    frame.file(&entry(1));
    frame.file(&entry(2));
    frame.length(FileId(1), 8192);
    frame.closed(FileId(2));
    let agent = AgentId::parse("agent-1").expect("a valid id");
    let streams = [(1, Sequence(20)), (2, Sequence(25))].into_iter();
    frame.lane(&agent, DataId(1001), Epoch(3), Sequence(20), streams);
    [checkpoint::MAGIC.as_slice(), &frame.finish()].concat()
}

/// A question, a plain record, an event and a DYNAMIC record with metas, as collectors send them.
fn collector_frames() -> Vec<u8> {
    let header = |kind: u32, body: usize| {
        let fields = [kind, 1001, 1_682_477_366, body as u32, 0, 0];
        fields.iter().flat_map(|field| field.to_be_bytes()).collect::<Vec<u8>>()
    };
    let mut bytes = header(0x0a, 0);
    for kind in [0xc01, 0xc0c, 0x02] {
        bytes.extend(header(kind, 5));
        bytes.extend_from_slice(b"hello");
    }
    bytes.extend(header(0x09, 24 + 8 + 5));
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend([4u32, 8, 1].iter().flat_map(|field| field.to_be_bytes()));
    bytes.extend_from_slice(b"meta\0\0\0\0hello");
    bytes
}

fn spool_segment() -> Vec<u8> {
    let header = SegmentHeader { data_id: 1001, epoch: 3, first: 10, boot_id: [7; 16], salt: 99 };
    let mut bytes = header.encode().to_vec();
    let mut marks = Vec::new();
    segment::encode_marks([(&b"file"[..], &b"place"[..])].into_iter(), &mut marks);
    let (batch, body) = batch(Codec::Zstd);
    let frame = [&batch.encode()[..], &body].concat();
    for entry in [
        Entry::Marks(&marks),
        Entry::Batch { marks: &marks, frame: &frame },
        Entry::Acked { epoch: 3, next: 18 },
        Entry::Clean,
    ] {
        segment::encode_entry(header.salt, &entry, &mut bytes);
    }
    bytes
}
