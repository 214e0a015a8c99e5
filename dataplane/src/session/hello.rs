//! The decision on a HELLO: who may open which kind of channel.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use skein_wire::hello::{self, ChannelKind, Hello, HelloAck, HelloStatus};

use crate::directory::{Claim, SessionEntry};
use crate::shard::ShardMail;
use crate::tls::PeerIdentity;

use super::{CloseReason, Ctx};

/// A second instance comes back after this: a half-open first one has failed its challenge then.
const IDENTITY_RETRY_MS: u32 = 7_000;

/// Slots into which agents are spread that come while the process goes away.
const DRAIN_RETRY_MS: u64 = 4_000;

/// Decides, enters standing channels in the directory, and says what to answer.
pub fn decide(
    hello: &Hello,
    identity: Option<&PeerIdentity>,
    remote: SocketAddr,
    ctx: &Ctx<'_>,
) -> HelloAck {
    let session_id = ctx.shared.next_session_id();
    let (status, retry_after_ms) = admit(hello, identity, remote, session_id, ctx);
    let version = hello::negotiate(hello).filter(|_| status == HelloStatus::Ok).unwrap_or(0);
    HelloAck {
        version,
        status,
        retry_after_ms,
        session_id,
        server_time_ms: u64::try_from(ctx.unix_ms).unwrap_or(0),
    }
}

fn admit(
    hello: &Hello,
    identity: Option<&PeerIdentity>,
    remote: SocketAddr,
    session_id: u64,
    ctx: &Ctx<'_>,
) -> (HelloStatus, u32) {
    if hello::negotiate(hello).is_none() {
        return (HelloStatus::Version, 0);
    }
    if ctx.shared.draining.load(Ordering::Relaxed) {
        return (HelloStatus::Draining, reconnect_slot(session_id, DRAIN_RETRY_MS));
    }
    if hello.kind == ChannelKind::Enrol {
        return (HelloStatus::Ok, 0);
    }
    let Some(PeerIdentity { agent, serial }) = identity else {
        return (HelloStatus::Unauthorised, 0);
    };
    if ctx.shared.directory.revoked().contains(agent, serial) {
        return (HelloStatus::Revoked, 0);
    }
    let entry = SessionEntry {
        at: ctx.me,
        session_id,
        remote,
        connected_ms: ctx.unix_ms,
        serial: serial.clone(),
    };
    match ctx.shared.directory.claim(agent, hello.instance, hello.kind, entry) {
        Claim::Granted { replaced } => {
            if let Some(old) = replaced {
                let close = |key| ShardMail::Close(key, CloseReason::Replaced);
                ctx.shared.mail(old, close);
            }
            (HelloStatus::Ok, 0)
        }
        Claim::Refused { living } => {
            ctx.metrics.identity_conflicts.increment(1);
            ctx.shared.fleet.conflict(agent, living.remote, remote);
            ctx.shared.mail(living.at, ShardMail::Challenge);
            (HelloStatus::IdentityInUse, IDENTITY_RETRY_MS)
        }
    }
}

/// A slot in `1..=spread_ms` that differs from session to session: multiplication by the golden
/// ratio spreads consecutive numbers evenly.
pub fn reconnect_slot(session_id: u64, spread_ms: u64) -> u32 {
    let spread = session_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((spread * spread_ms) >> 32) as u32 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_spread() {
        let slots: Vec<u32> = (0..1000).map(|id| reconnect_slot(id, 4_000)).collect();
        assert!(slots.iter().all(|slot| (1..=4_000).contains(slot)));
        for quarter in 0..4 {
            let range = quarter * 1_000 + 1..=(quarter + 1) * 1_000;
            let count = slots.iter().filter(|slot| range.contains(*slot)).count();
            assert!((200..300).contains(&count), "{count} of 1000 in {range:?}");
        }
    }
}
