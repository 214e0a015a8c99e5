//! Why a session ends. Every end has exactly one reason; it is a metric label and stands in the
//! log and in the report to control.

use skein_wire::hello::HelloStatus;

/// Why a session ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloseReason {
    /// The peer closed the connection in order.
    PeerClosed,
    /// The connection broke.
    Disconnected,
    /// Not authenticated in time.
    PreAuthTimeout,
    /// More bytes than an unauthenticated peer may make us hold.
    PreAuthOversize,
    /// The TLS handshake or a record was bad.
    Tls,
    /// The client certificate names no agent.
    Identity,
    /// The first bytes inside TLS are not a HELLO.
    BadHello,
    /// HELLO was answered with a refusal.
    Refused(HelloStatus),
    /// A message announced more bytes than its channel allows.
    Oversize,
    /// A message that cannot be parsed or is not allowed here.
    Malformed,
    /// No sign of life.
    Lost,
    /// A message or batch that began did not arrive in time.
    SlowSender,
    /// The peer does not take its output.
    SlowReader,
    /// A file channel without traffic.
    Idle,
    /// The enrolment was answered.
    Enrolled,
    /// Control did not answer an enrolment.
    EnrolTimeout,
    /// Another session of the same instance took over.
    Replaced,
    /// A living second instance asked for the identity, and this session did not answer.
    Challenged,
    /// The identity was revoked.
    Revoked,
    /// Control asked for it.
    ByControl,
    /// The transfer broke off or was withdrawn, or this agent is no member of it.
    Transfer,
    /// The file was taken whole.
    TransferDone,
    /// The shard has no memory for this session's messages.
    Memory,
    /// The process goes away.
    Draining,
    /// A state that must not exist; the session is dropped, the process goes on.
    Internal,
}

impl CloseReason {
    /// Metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::Disconnected => "disconnected",
            Self::PreAuthTimeout => "pre_auth_timeout",
            Self::PreAuthOversize => "pre_auth_oversize",
            Self::Tls => "tls",
            Self::Identity => "identity",
            Self::BadHello => "bad_hello",
            Self::Refused(status) => status.as_str(),
            Self::Oversize => "oversize",
            Self::Malformed => "malformed",
            Self::Lost => "lost",
            Self::SlowSender => "slow_sender",
            Self::SlowReader => "slow_reader",
            Self::Idle => "idle",
            Self::Enrolled => "enrolled",
            Self::EnrolTimeout => "enrol_timeout",
            Self::Replaced => "replaced",
            Self::Challenged => "challenged",
            Self::Revoked => "revoked",
            Self::ByControl => "by_control",
            Self::Transfer => "transfer",
            Self::TransferDone => "transfer_done",
            Self::Memory => "memory",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }

    /// Whether the peer broke the protocol or one of its limits.
    pub fn is_protocol_error(self) -> bool {
        matches!(
            self,
            Self::PreAuthTimeout
                | Self::PreAuthOversize
                | Self::Tls
                | Self::Identity
                | Self::BadHello
                | Self::Oversize
                | Self::Malformed
                | Self::SlowSender
                | Self::SlowReader
        )
    }
}
