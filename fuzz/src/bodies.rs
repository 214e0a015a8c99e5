//! One function per decoder. Each holds more than "does not panic":
//!
//! * what decodes encodes to bytes that decode to the same value;
//! * a decoder of a stream answers "not yet" for every shorter prefix of a good frame, never
//!   another frame and never an error, so that where TCP cuts the stream cannot matter;
//! * nothing is consumed past the buffer, and stated limits hold.

use skein_agent::inputs::gse;
use skein_agent::spool::segment::{self, SegmentHeader};
use skein_dataplane::sinks::checkpoint;
use skein_filemesh::core::peer_wire;
use skein_wire::batch::{BatchHeader, HEADER_BYTES};
use skein_wire::command::Verifier;
use skein_wire::compress::{Codec, Decompressor};
use skein_wire::data::{AgentFrame, decode_agent_frame, decode_server_frame, peek_frame};
use skein_wire::fleet::v1::{FromData, ToData};
use skein_wire::frame::{FrameDecoder, encode_message};
use skein_wire::hello::{HELLO_BYTES, Hello, HelloAck};
use skein_wire::ids::AgentId;
use skein_wire::limits::{
    BATCH_RAW_BYTES_MAX, ENROL_REQUEST_BYTES_MAX, FLEET_MESSAGE_BYTES_MAX, SIGNAL_MESSAGE_BYTES_MAX,
};
use skein_wire::prost::Message;
use skein_wire::records;
use skein_wire::signal::v1::{
    AgentMessage, Command, CommandKey, EnrolReply, EnrolRequest, ServerMessage,
};
use skein_wire::token::JoinToken;

#[path = "mesh.rs"]
pub mod mesh;

/// A fuzz target.
pub type Body = fn(&[u8]);

/// All targets by name; the names are those of the files in `fuzz_targets/`.
pub const TARGETS: &[(&str, Body)] = &[
    ("wire_enrol", wire_enrol),
    ("wire_signal", wire_signal),
    ("wire_fleet", wire_fleet),
    ("wire_hello", wire_hello),
    ("wire_data_from_agent", wire_data_from_agent),
    ("wire_data_from_server", wire_data_from_server),
    ("wire_records", wire_records),
    ("wire_decompress", wire_decompress),
    ("wire_token", wire_token),
    ("wire_command", wire_command),
    ("mesh_peer_wire", mesh_peer_wire),
    ("mesh_leecher", mesh::mesh_leecher),
    ("mesh_seeder", mesh::mesh_seeder),
    ("mesh_manifest", mesh::mesh_manifest),
    ("mesh_metainfo", mesh::mesh_metainfo),
    ("mesh_sidecar", mesh::mesh_sidecar),
    ("mesh_tree", mesh::mesh_tree),
    ("mesh_membership", mesh::mesh_membership),
    ("agent_collector", agent_collector),
    ("agent_spool", agent_spool),
    ("data_checkpoint", data_checkpoint),
];

/// Prefixes are tried one by one for frames up to this size, and a few for larger ones.
const ALL_PREFIXES_BYTES_MAX: usize = 256;

/// The one message that is parsed before authentication, and its answer.
pub fn wire_enrol(input: &[u8]) {
    framed::<EnrolRequest>(input, ENROL_REQUEST_BYTES_MAX);
    framed::<EnrolReply>(input, SIGNAL_MESSAGE_BYTES_MAX);
}

/// Messages of the signal channel in both directions.
pub fn wire_signal(input: &[u8]) {
    framed::<AgentMessage>(input, SIGNAL_MESSAGE_BYTES_MAX);
    framed::<ServerMessage>(input, SIGNAL_MESSAGE_BYTES_MAX);
}

/// Messages between control and data.
pub fn wire_fleet(input: &[u8]) {
    framed::<FromData>(input, FLEET_MESSAGE_BYTES_MAX);
    framed::<ToData>(input, FLEET_MESSAGE_BYTES_MAX);
}

fn framed<M: Message + Default + PartialEq>(input: &[u8], bytes_max: usize) {
    let decoder = FrameDecoder::new(bytes_max);
    let Ok(Some((message, consumed))) = decoder.next_message::<M>(input) else { return };
    assert!(consumed <= input.len() && consumed <= bytes_max + 4);
    for end in prefixes(consumed) {
        assert!(matches!(decoder.next(&input[..end]), Ok(None)), "prefix of {end} bytes");
    }
    let mut encoded = Vec::new();
    // Encoding is canonical and so never longer than what was read, but for unknown fields, which
    // are dropped.
    if encode_message(&message, bytes_max, &mut encoded).is_err() {
        return;
    }
    let again = decoder.next_message::<M>(&encoded);
    assert!(matches!(again, Ok(Some((same, _))) if same == message));
}

/// HELLO and HELLO_ACK.
pub fn wire_hello(input: &[u8]) {
    let Some(bytes) = input.first_chunk::<HELLO_BYTES>() else { return };
    if let Ok(hello) = Hello::decode(bytes) {
        let again = Hello::decode(&hello.encode());
        assert!(matches!(again, Ok(same) if same.encode() == hello.encode()));
        let _ = skein_wire::hello::negotiate(&hello);
    }
    if let Ok(ack) = HelloAck::decode(bytes) {
        let again = HelloAck::decode(&ack.encode());
        assert!(matches!(again, Ok(same) if same.encode() == ack.encode()));
    }
}

/// Frames that an agent sends on the data channel, a batch with its body opened and walked.
pub fn wire_data_from_agent(input: &[u8]) {
    let Ok(Some((frame, consumed))) = decode_agent_frame(input) else { return };
    assert!(consumed <= input.len());
    for end in prefixes(consumed) {
        assert!(matches!(decode_agent_frame(&input[..end]), Ok(None)), "prefix of {end} bytes");
    }
    assert!(matches!(peek_frame(input), Ok(Some((_, payload))) if payload + 4 == consumed));
    let mut encoded = Vec::new();
    frame.encode(&mut encoded);
    let again = decode_agent_frame(&encoded);
    assert!(matches!(again, Ok(Some((same, _))) if same == frame));
    if let AgentFrame::Batch { header, body } = frame {
        open_batch(&header, body);
    }
}

fn open_batch(header: &BatchHeader, body: &[u8]) {
    assert!(matches!(BatchHeader::decode(&header.encode()), Ok(same) if same == *header));
    assert!(header.end().0 > header.first.0);
    if header.verify_body(body).is_err() {
        return;
    }
    let mut raw = Vec::new();
    let opened =
        Decompressor::new().decompress(header.codec, body, header.raw_bytes as usize, &mut raw);
    if opened.is_ok() {
        assert_eq!(raw.len(), header.raw_bytes as usize);
        walk(&raw, header.record_count);
    }
}

/// Frames that a server sends on the data channel.
pub fn wire_data_from_server(input: &[u8]) {
    let Ok(Some((frame, consumed))) = decode_server_frame(input) else { return };
    assert!(consumed <= input.len());
    for end in prefixes(consumed) {
        assert!(matches!(decode_server_frame(&input[..end]), Ok(None)), "prefix of {end} bytes");
    }
    let mut encoded = Vec::new();
    frame.encode(&mut encoded);
    assert_eq!(encoded, &input[..consumed], "these frames have one encoding");
}

/// The records of an opened body: two bytes of count, then the body.
pub fn wire_records(input: &[u8]) {
    let Some((count, raw)) = input.split_first_chunk::<2>() else { return };
    walk(raw, u32::from(u16::from_be_bytes(*count)));
}

fn walk(raw: &[u8], count: u32) {
    let mut values = 0;
    let mut good = 0;
    let mut failed = false;
    for record in records::iter(raw, count) {
        assert!(!failed, "iteration ends at the first error");
        match record {
            Ok(record) => {
                assert_eq!(record.offset_delta, good);
                good += 1;
                values += record.value.len() + record.key.map_or(0, <[u8]>::len);
                values +=
                    record.headers().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            }
            Err(_) => failed = true,
        }
    }
    assert!(values <= raw.len(), "records are parts of the body");
    assert!(failed || good == count);
}

/// Bodies of any codec: codec, three bytes of stated length, body.
pub fn wire_decompress(input: &[u8]) {
    let Some(([codec, high, middle, low], body)) = input.split_first_chunk::<4>() else { return };
    let Some(codec) = Codec::from_u8(*codec) else { return };
    let stated = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    let mut out = Vec::new();
    if Decompressor::new().decompress(codec, body, stated, &mut out).is_ok() {
        assert_eq!(out.len(), stated);
    }
    assert!(out.capacity() <= 2 * BATCH_RAW_BYTES_MAX, "memory is bounded by the stated length");
    let mut header = [0; HEADER_BYTES];
    let length = input.len().min(HEADER_BYTES);
    header[..length].copy_from_slice(&input[..length]);
    let _ = BatchHeader::decode(&header);
}

/// Join tokens and agent ids, which people type.
pub fn wire_token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert!(token.to_string().parse::<JoinToken>().is_ok_and(|same| same == token));
        assert!(!format!("{token:?}").contains(&token.to_string()), "Debug hides the secret");
    }
    if let Ok(id) = AgentId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert!((1..=64).contains(&text.len()));
    }
}

/// Commands: nothing that the fuzzer can make verifies against a key that it does not have.
pub fn wire_command(input: &[u8]) {
    let Ok(command) = Command::decode(input) else { return };
    let key = CommandKey { key_id: command.key_id, public_key: vec![7; 32].into() };
    let agent = AgentId::parse("agent-1").expect("a valid id");
    assert!(Verifier::new(vec![key]).verify(&agent, &command, 0).is_err());
}

/// A peer's stream: a handshake or messages, one after the other.
pub fn mesh_peer_wire(input: &[u8]) {
    if let Ok(Some(handshake)) = peer_wire::Handshake::decode(input) {
        assert_eq!(handshake.encode(), input[..peer_wire::HANDSHAKE_BYTES]);
    }
    let mut rest = input;
    while let Ok(Some((message, consumed))) = peer_wire::decode(rest) {
        assert!(consumed > 0 && consumed <= rest.len());
        for end in prefixes(consumed) {
            assert!(matches!(peer_wire::decode(&rest[..end]), Ok(None)), "prefix of {end} bytes");
        }
        // A type that is not known has no encoding of its own.
        if !matches!(message, peer_wire::Message::Unknown(_)) {
            let mut encoded = Vec::new();
            message.encode(&mut encoded);
            let again = peer_wire::decode(&encoded);
            assert!(matches!(again, Ok(Some((same, _))) if same == message), "{message:?}");
        }
        rest = &rest[consumed..];
    }
}

/// Frames of BlueKing's collectors: how the stream is cut into reads does not matter.
pub fn agent_collector(input: &[u8]) {
    let frames = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = gse::Decoder::default();
        let mut seen: Vec<(Option<u32>, Vec<u8>)> = Vec::new();
        let mut take = |frame: gse::Frame<'_>| {
            seen.push(match frame {
                gse::Frame::Data { data_id, payload, .. } => (Some(data_id), payload.to_vec()),
                gse::Frame::AskInfo => (None, Vec::new()),
            });
        };
        let mut error = None;
        for piece in pieces {
            if let Err(found) = decoder.feed(piece, &mut take) {
                error = Some(found);
                break;
            }
        }
        (seen, error)
    };
    let whole = frames(&mut std::iter::once(input));
    assert_eq!(frames(&mut input.chunks(1)), whole, "cut into bytes");
    assert_eq!(frames(&mut input.chunks(29)), whole, "cut into small reads");
}

/// A spool segment as a crash or a bad disk may leave it.
pub fn agent_spool(input: &[u8]) {
    let Some(header) = SegmentHeader::decode(input) else { return };
    assert_eq!(SegmentHeader::decode(&header.encode()), Some(header));
    let range_of = |frame: &[u8]| {
        let header = BatchHeader::decode(frame.first_chunk()?).ok()?;
        Some(header.first.0..header.end().0)
    };
    let scan = segment::scan(&header, input, range_of);
    assert!(scan.good_bytes <= input.len());
    assert!(scan.damaged_bytes <= scan.good_bytes);
    // What recovery keeps is found again, in the same way, by the next recovery.
    let again = segment::scan(&header, &input[..scan.good_bytes], range_of);
    assert_eq!((again.good_bytes, again.end), (scan.good_bytes, scan.end));
    assert_eq!((again.records, again.marks), (scan.records, scan.marks));
}

/// A checkpoint log as a crash or a bad disk may leave it: what is kept of it is found again. The
/// input is a log, and once more the entries of a frame whose checksum is right.
pub fn data_checkpoint(input: &[u8]) {
    let length = (input.len() as u32).to_le_bytes();
    let crc = mesh::crc32c(input).to_le_bytes();
    let framed = [checkpoint::MAGIC.as_slice(), &length, &crc, input].concat();
    for log in [input, &framed] {
        let state = checkpoint::State::replay(log);
        assert!(state.whole_bytes <= log.len());
        let again = checkpoint::State::replay(&log[..state.whole_bytes]);
        assert_eq!(again.whole_bytes, state.whole_bytes);
        assert_eq!((again.files, again.lanes), (state.files, state.lanes));
    }
    assert_eq!(checkpoint::State::replay(&framed).whole_bytes, framed.len());
}

/// Lengths of the shorter prefixes that are tried.
fn prefixes(length: usize) -> impl Iterator<Item = usize> {
    let step = if length <= ALL_PREFIXES_BYTES_MAX { 1 } else { length / 64 };
    (0..length).step_by(step)
}
