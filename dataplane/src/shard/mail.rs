//! What other threads tell a shard. Mails are batched by their senders: one per router round, one
//! per fan-out and shard, because a parked thread costs 20 to 35 us to wake.

use bytes::Bytes;
use skein_wire::data::ServerFrame;
use skein_wire::ids::AgentId;

use crate::files::FileMail;
use crate::router::SessionRef;
use crate::session::CloseReason;

use super::slab::ConnKey;

/// One mail.
#[derive(Debug)]
pub enum ShardMail {
    /// Acks, credits and holds of a router worker.
    Router(Vec<(SessionRef, ServerFrame)>),
    /// One message to many signal sessions of this shard.
    ToAgents(Delivery),
    /// Close a session.
    Close(ConnKey, CloseReason),
    /// A second instance wants this session's identity: close it unless it answers.
    Challenge(ConnKey),
    /// Control's answer to an enrol request.
    EnrolAnswer(ConnKey, Bytes),
    /// The set of revoked identities changed: look at every session.
    RevokedChanged,
    /// A disk job of a file channel ended.
    File(ConnKey, FileMail),
    /// Transfers were withdrawn: look at every file channel.
    TransfersChanged,
    /// The process goes away: tell every agent its slot to come back.
    GoAway,
    /// Take no more batches: the routers are about to end.
    StopData,
    /// Close everything that is left, and end the shard when all is closed.
    Shutdown,
}

/// One message for several agents: each receives `common` followed by its own part.
#[derive(Debug)]
pub struct Delivery {
    /// Control's number of the dispatch, for what cannot be delivered.
    pub dispatch_id: u64,
    /// What all receive, a prefix of `signal.v1.ServerMessage`.
    pub common: Bytes,
    /// Who, and what each receives beside.
    pub targets: Vec<(ConnKey, AgentId, Bytes)>,
}
