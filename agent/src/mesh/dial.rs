//! Dials members: the certificate that answers must be the one that the list names.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use skein_filemesh::core::membership::Who;
use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, Handshake, peer_id};
use skein_filemesh::core::plan::Member;
use skein_wire::hello::{ChannelKind, HELLO_BYTES, Hello, HelloAck, HelloStatus};
use skein_wire::ids::TransferId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Shared;
use super::accept::LIST_WAIT;
use super::stream::{Closer, Io, Live, PeerStream, READ_AHEAD_BYTES};
use super::table::{NotAdmitted, Wanted};
use super::tls::{ALPN, Holder};
use crate::link::{LinkError, tune};

/// For one address, which may lead nowhere.
pub(super) const CONNECT_TIME: Duration = Duration::from_secs(2);
/// TLS, HELLO and handshake; the other side allows 5 s for its part.
pub(super) const DIAL_TIME: Duration = Duration::from_secs(6);
/// Name of the server in its handshake.
const SERVER_PEER: &str = "server";

/// Why there is no stream to a member.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The endpoint is gone.
    #[error("no swarm of that transfer runs here")]
    UnknownTransfer,
    /// The signed list does not name it (any more).
    #[error("the list does not name the member")]
    NotAMember,
    /// The signed list is out of date.
    #[error("the list has expired")]
    Expired,
    /// This side's bound.
    #[error("the bound on connections is reached")]
    Full,
    /// It does not listen.
    #[error("the member has no address; it dials itself")]
    NoAddress,
    /// No TCP connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// TLS failed: one side does not trust the other.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    /// Our own key or certificate cannot be used.
    #[error("this agent's certificate cannot be used: {0}")]
    Identity(#[from] rustls::Error),
    /// Somebody else answers at the member's address.
    #[error("another agent answers at the member's address")]
    Stranger,
    /// The connection ended, or what came was neither HELLO_ACK nor handshake.
    #[error("no handshake: {0}")]
    Handshake(io::Error),
    /// The member said no.
    #[error("the member refused: {}", .status.as_str())]
    Refused {
        /// What it said.
        status: HelloStatus,
        /// When to come back; 0: as we like.
        retry_after_ms: u32,
    },
    /// It took too long.
    #[error("the member took too long")]
    Timeout,
    /// The server as a member.
    #[error(transparent)]
    Server(#[from] LinkError),
}

impl DialError {
    /// The name used in metric labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::UnknownTransfer => "unknown_transfer",
            Self::NotAMember => "not_a_member",
            Self::Expired => "expired",
            Self::Full => "connections",
            Self::NoAddress => "no_address",
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Identity(_) => "identity",
            Self::Stranger => "stranger",
            Self::Handshake(_) => "handshake",
            Self::Refused { .. } => "refused",
            Self::Timeout => "timeout",
            Self::Server(_) => "server",
        }
    }

    /// Whether the member itself has answered, so that its other addresses would say the same.
    fn is_its_answer(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Full | Self::NotAMember | Self::Expired)
    }
}

impl From<NotAdmitted> for DialError {
    fn from(why: NotAdmitted) -> Self {
        match why {
            NotAdmitted::UnknownTransfer => Self::UnknownTransfer,
            NotAdmitted::NotAMember => Self::NotAMember,
            NotAdmitted::Expired => Self::Expired,
            NotAdmitted::Full => Self::Full,
        }
    }
}

/// One attempt's subject.
struct Dial<'a> {
    shared: &'a Arc<Shared>,
    transfer: TransferId,
    member: Member,
    wanted: Wanted,
}

/// Whom the list names. A plan may come a moment before the list with its members, and whoever gives
/// up then tries again much later.
async fn wanted(
    shared: &Shared,
    transfer: &TransferId,
    member: Member,
) -> Result<Wanted, NotAdmitted> {
    let until = Instant::now() + LIST_WAIT;
    let mut changes = shared.changes.subscribe();
    loop {
        let wanted = shared.table().wanted(transfer, member, shared.now_ms());
        if !matches!(wanted, Err(NotAdmitted::NotAMember))
            || !matches!(tokio::time::timeout_at(until, changes.changed()).await, Ok(Ok(())))
        {
            return wanted;
        }
    }
}

pub(super) async fn dial(
    shared: &Arc<Shared>,
    transfer: TransferId,
    member: Member,
) -> Result<PeerStream, DialError> {
    let wanted = wanted(shared, &transfer, member).await?;
    let dial = Dial { shared, transfer, member, wanted };
    let Who::Agent { addresses, .. } = &dial.wanted.who else { return dial.server().await };
    let mut last = DialError::NoAddress;
    for address in addresses {
        match dial.agent(*address).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.is_its_answer() => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Dial<'_> {
    async fn agent(&self, address: SocketAddr) -> Result<PeerStream, DialError> {
        let stream = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await;
        let stream = stream.map_err(|_| DialError::Timeout)?.map_err(DialError::Connect)?;
        let shaken = tokio::time::timeout(DIAL_TIME, self.shake(stream, address)).await;
        shaken.map_err(|_| DialError::Timeout)?
    }

    async fn shake(&self, stream: TcpStream, address: SocketAddr) -> Result<PeerStream, DialError> {
        tune(&stream);
        let closer = Closer::of(&stream).map_err(DialError::Connect)?;
        let (connector, _) = self.shared.tls.get(self.shared.dialer.identity().get())?;
        let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
        // Not sent, and not compared: the certificate is compared with the list.
        let name = ServerName::from(address.ip());
        let io = connector.connect(name, stream).await.map_err(DialError::Tls)?;
        let (_, session) = io.get_ref();
        let holder = Holder::of(session.peer_certificates()).ok_or(DialError::Stranger)?;
        let is_wanted = matches!(&self.wanted.who, Who::Agent { id, key_hash, .. }
            if *id == holder.agent && *key_hash == holder.key_hash);
        if !is_wanted || session.alpn_protocol() != Some(ALPN) {
            return Err(DialError::Stranger);
        }
        let hello = Hello::new(ChannelKind::File, self.shared.instance).encode();
        self.greet(io.into(), closer, &hello, holder.agent.as_str()).await
    }

    /// The server, on a file channel, on which HELLO is already answered.
    async fn server(&self) -> Result<PeerStream, DialError> {
        let link = self.shared.dialer.connect(ChannelKind::File).await?;
        let closer = Closer::of(link.io.get_ref().0.get_ref()).map_err(DialError::Connect)?;
        let greeted = self.greet(link.io.into(), closer, &[], SERVER_PEER);
        tokio::time::timeout(DIAL_TIME, greeted).await.map_err(|_| DialError::Timeout)?
    }

    /// `hello`, when there is one, and both handshakes.
    async fn greet(
        &self,
        mut io: Io,
        closer: Closer,
        hello: &[u8],
        name: &str,
    ) -> Result<PeerStream, DialError> {
        let Self { shared, transfer, member, wanted } = self;
        // The list may have changed since; with this the stream is in it, or does not come to be.
        let now_ms = shared.now_ms();
        let admitted = shared.table().admit_dialled(transfer, *member, wanted, now_ms, &closer)?;
        let live = Live::new(shared, admitted, closer);
        let own_id = peer_id(shared.dialer.identity().get().agent_id.as_str());
        let ours = Handshake::new(wanted.info_hash, own_id);
        let exchanged = exchange(&mut io, hello, &ours).await;
        let theirs = exchanged?;
        let fits = theirs.info_hash == wanted.info_hash
            && theirs.peer_id == peer_id(name)
            && theirs.suffices_for(&ours);
        match fits {
            true => Ok(PeerStream::new(io, live, ours, theirs)),
            false => Err(wrong("its handshake is of another transfer or member")),
        }
    }
}

fn wrong(what: &'static str) -> DialError {
    DialError::Handshake(io::Error::new(io::ErrorKind::InvalidData, what))
}

async fn exchange(io: &mut Io, hello: &[u8], ours: &Handshake) -> Result<Handshake, DialError> {
    // With TLS 1.3 the other side refuses our certificate only after our handshake is complete,
    // so that refusal shows here.
    let failed = |error: io::Error| match error.get_ref() {
        Some(inner) if inner.is::<rustls::Error>() => DialError::Tls(error),
        _ => DialError::Handshake(error),
    };
    let first = [hello, &ours.encode()].concat();
    io.write_all(&first).await.map_err(failed)?;
    io.flush().await.map_err(failed)?;
    if !hello.is_empty() {
        let mut ack = [0; HELLO_BYTES];
        io.read_exact(&mut ack).await.map_err(failed)?;
        let ack = HelloAck::decode(&ack).map_err(|_| wrong("it answered HELLO wrongly"))?;
        if ack.status != HelloStatus::Ok {
            let (status, retry_after_ms) = (ack.status, ack.retry_after_ms);
            return Err(DialError::Refused { status, retry_after_ms });
        }
    }
    let mut theirs = [0; HANDSHAKE_BYTES];
    io.read_exact(&mut theirs).await.map_err(failed)?;
    let theirs = Handshake::decode(&theirs).ok().flatten();
    theirs.ok_or_else(|| wrong("it sent no handshake"))
}
