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

/// The byte tables of the peer wire are on another page: every link must lead to one of its headings.
#[test]
fn links_to_the_peer_wire_lead_to_its_headings() {
    const PAGE: &str = include_str!("../../docs/filemesh.md");
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c));
        kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
    };
    let headings: Vec<String> =
        PAGE.lines().filter(|line| line.starts_with('#')).map(|line| anchor(&line[1..])).collect();
    let links: Vec<&str> = DOCUMENT
        .split("](filemesh.md#")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect();
    assert!(links.len() >= 5, "{links:?}");
    for link in links {
        assert!(headings.iter().any(|heading| heading == link), "{link} is none of {headings:?}");
    }
}

/// Every field of the membership list has its line.
#[test]
fn the_document_describes_the_membership_list() {
    let schema = SCHEMA[0].1;
    for message in ["TransferPeers", "Peer"] {
        let body = schema.split(&format!("message {message} {{\n")).nth(1).unwrap();
        let fields = body.split("\n}").next().unwrap().lines();
        for field in fields.filter_map(|line| line.split_once(" = ")?.0.split(' ').next_back()) {
            assert!(DOCUMENT.contains(&format!("| `{field}` |")), "{message}.{field}");
        }
    }
}
