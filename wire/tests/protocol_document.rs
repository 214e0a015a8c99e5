//! `docs/protocol.md` describes what the code does: this fails when the schema or a limit changes
//! and the page does not.

use skein_wire::ids::hex_encode;
use skein_wire::limits::*;
use skein_wire::merkle::sha256;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");
const SCHEMA: [(&str, &str); 2] = [
    ("signal.proto", include_str!("../proto/signal.proto")),
    ("fleet.proto", include_str!("../proto/fleet.proto")),
];

#[test]
fn the_document_names_the_schema_it_describes() {
    for (name, text) in SCHEMA {
        let line = format!("- `{name}` SHA-256 {}", hex_encode(&sha256(text.as_bytes())));
        assert!(
            DOCUMENT.contains(&line),
            "{name} changed: bring docs/protocol.md up to date, then write there:\n{line}"
        );
    }
}

#[test]
fn the_document_names_every_message() {
    for (name, text) in SCHEMA {
        for message in text.lines().filter_map(|line| line.strip_prefix("message ")) {
            let message = message.trim_end_matches([' ', '{', '}']);
            assert!(DOCUMENT.contains(&format!("`{message}`")), "{name}: {message}");
        }
    }
}

#[test]
fn the_document_states_the_limits() {
    let limits = [
        ("SIGNAL_MESSAGE_BYTES_MAX", SIGNAL_MESSAGE_BYTES_MAX),
        ("FLEET_MESSAGE_BYTES_MAX", FLEET_MESSAGE_BYTES_MAX),
        ("ENROL_REQUEST_BYTES_MAX", ENROL_REQUEST_BYTES_MAX),
        ("PRE_AUTH_BYTES_MAX", PRE_AUTH_BYTES_MAX),
        ("PRE_AUTH_TIME_MS", PRE_AUTH_TIME_MS as usize),
        ("BATCH_BODY_BYTES_MAX", BATCH_BODY_BYTES_MAX),
        ("BATCH_RAW_BYTES_MAX", BATCH_RAW_BYTES_MAX),
        ("BATCH_RECORDS_MAX", BATCH_RECORDS_MAX),
        ("RECORD_BYTES_MAX", RECORD_BYTES_MAX),
        ("DATA_FRAME_BYTES_MAX", DATA_FRAME_BYTES_MAX),
        ("TASK_OUTPUT_CHUNK_BYTES_MAX", TASK_OUTPUT_CHUNK_BYTES_MAX),
        ("TASK_SCRIPT_BYTES_MAX", TASK_SCRIPT_BYTES_MAX),
        ("COMMAND_PATH_MAX", COMMAND_PATH_MAX),
        ("DISPATCH_AGENTS_MAX", DISPATCH_AGENTS_MAX),
        ("LANES_PER_AGENT_MAX", LANES_PER_AGENT_MAX),
        ("HEARTBEAT_INTERVAL_MS_MAX", HEARTBEAT_INTERVAL_MS_MAX as usize),
        ("MESH_PEERS_MAX", MESH_PEERS_MAX),
        ("MESH_PEER_ADDRESSES_MAX", MESH_PEER_ADDRESSES_MAX),
        ("MESH_ADDRESS_BYTES_MAX", MESH_ADDRESS_BYTES_MAX),
        ("MESH_MEMBER_MAX", MESH_MEMBER_MAX as usize),
        ("MESH_REMOVED_MAX", MESH_REMOVED_MAX),
        ("MESH_RANGES_MAX", MESH_RANGES_MAX),
    ];
    for (name, value) in limits {
        assert!(DOCUMENT.contains(&format!("| `{name}` | {value} |")), "{name} is {value}");
    }
}
