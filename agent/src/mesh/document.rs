//! `docs/protocol.md` says what the code does between agents.

use super::accept::{LIST_WAIT, PENDING_MAX, PENDING_PER_ADDRESS_MAX, RETRY_AFTER_MS};
use super::dial::{CONNECT_TIME, DIAL_TIME};
use super::table::TRANSFERS_MAX;
use super::{ALPN, INCOMING_MAX};

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");

#[test]
fn the_page_states_the_limits_between_agents() {
    for (name, value) in [
        ("PENDING_MAX", PENDING_MAX as u64),
        ("PENDING_PER_ADDRESS_MAX", PENDING_PER_ADDRESS_MAX.into()),
        ("RETRY_AFTER_MS", RETRY_AFTER_MS.into()),
        ("INCOMING_MAX", INCOMING_MAX as u64),
        ("TRANSFERS_MAX", TRANSFERS_MAX as u64),
    ] {
        assert!(DOCUMENT.contains(&format!("| `{name}` | {value} |")), "{name} is {value}");
    }
    for (name, time) in
        [("LIST_WAIT", LIST_WAIT), ("CONNECT_TIME", CONNECT_TIME), ("DIAL_TIME", DIAL_TIME)]
    {
        let millis = time.as_millis();
        assert!(DOCUMENT.contains(&format!("| `{name}` | {millis} ms |")), "{name} is {millis} ms");
    }
    let alpn = format!("ALPN is `{}`", std::str::from_utf8(ALPN).unwrap());
    assert!(DOCUMENT.contains(&alpn), "{alpn}");
}
