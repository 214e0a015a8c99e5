//! Lets members in: TLS, HELLO and handshake within a few seconds, then the list decides.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, Handshake, peer_id};
use skein_observe::names;
use skein_wire::hello::{
    ChannelKind, HELLO_BYTES, Hello, HelloAck, HelloStatus, VERSION, negotiate,
};
use skein_wire::limits::PRE_AUTH_TIME_MS;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsStream;

use super::stream::{Closer, Io, Live, PeerStream, READ_AHEAD_BYTES};
use super::table::{Admitted, NotAdmitted};
use super::tls::{ALPN, Holder};
use super::{Mesh, Shared};
use crate::link::tune;

/// From the connection to the end of the handshake.
const SHAKE_TIME: Duration = Duration::from_millis(PRE_AUTH_TIME_MS);
/// Connections that are not yet streams; further ones wait in the kernel's queue. Each may hold
/// what TLS buffers, some 40 KiB.
pub(super) const PENDING_MAX: usize = 64;
/// Those from one address, so that one stranger cannot keep all others out.
pub(super) const PENDING_PER_ADDRESS_MAX: u32 = 8;
/// A list may come a moment after the peer that it names.
pub(super) const LIST_WAIT: Duration = Duration::from_secs(1);
/// When the bound on connections is reached.
pub(super) const RETRY_AFTER_MS: u32 = 1_000;
/// After an error of the listener, which is out of descriptors.
const LISTENER_PAUSE: Duration = Duration::from_millis(100);

/// Why nobody was let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Refused {
    AddressBusy,
    Timeout,
    Tls,
    Certificate,
    Broken,
    Hello,
    Version,
    Handshake,
    List(NotAdmitted),
    SwarmBusy,
}

impl Refused {
    fn as_str(self) -> &'static str {
        match self {
            Self::AddressBusy => "address_busy",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Certificate => "certificate",
            Self::Broken => "broken",
            Self::Hello => "hello",
            Self::Version => "version",
            Self::Handshake => "handshake",
            Self::List(why) => why.as_str(),
            Self::SwarmBusy => "swarm_busy",
        }
    }

    /// What the other side is told, if anything.
    fn status(self) -> Option<(HelloStatus, u32)> {
        match self {
            Self::AddressBusy | Self::Timeout | Self::Tls | Self::Broken | Self::Hello => None,
            Self::Version => Some((HelloStatus::Version, 0)),
            Self::Certificate | Self::Handshake => Some((HelloStatus::Unauthorised, 0)),
            Self::List(NotAdmitted::Full) | Self::SwarmBusy => {
                Some((HelloStatus::RetryLater, RETRY_AFTER_MS))
            }
            // Which of the reasons it is, is nobody's business.
            Self::List(_) => Some((HelloStatus::Unauthorised, 0)),
        }
    }
}

/// Connections that are not yet streams, by address.
#[derive(Default)]
struct Pending(Mutex<HashMap<IpAddr, u32>>);

impl Pending {
    fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Turn> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = pending.entry(ip).or_default();
        if *count >= PENDING_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Turn { pending: self.clone(), ip })
    }
}

struct Turn {
    pending: Arc<Pending>,
    ip: IpAddr,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut pending = self.pending.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pending.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.ip);
            }
        }
    }
}

/// Accepts connections for as long as the runtime lives.
pub(super) async fn run(mesh: Mesh, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(PENDING_MAX));
    let pending = Arc::new(Pending::default());
    // The semaphore is never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the mesh cannot accept a connection");
                tokio::time::sleep(LISTENER_PAUSE).await;
                continue;
            }
        };
        let Some(turn) = pending.enter(from.ip().to_canonical()) else {
            count(from, Refused::AddressBusy);
            continue;
        };
        let shared = mesh.shared.clone();
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(SHAKE_TIME, shake(&shared, stream)).await;
            drop((turn, place));
            if let Err(refused) = shaken.unwrap_or(Err(Refused::Timeout)) {
                count(from, refused);
            }
        });
    }
}

fn count(from: SocketAddr, refused: Refused) {
    tracing::debug!(%from, reason = refused.as_str(), "a peer is refused");
    metrics::counter!(names::AGENT_MESH_REFUSED, "reason" => refused.as_str()).increment(1);
}

async fn shake(shared: &Arc<Shared>, stream: TcpStream) -> Result<(), Refused> {
    tune(&stream);
    let closer = Closer::of(&stream).map_err(|_| Refused::Broken)?;
    let identity = shared.dialer.identity().get();
    let own_id = peer_id(identity.agent_id.as_str());
    let (_, acceptor) = shared.tls.get(identity).map_err(|_| Refused::Tls)?;
    let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
    let mut io = TlsStream::from(acceptor.accept(stream).await.map_err(|_| Refused::Tls)?);
    match enter(shared, &mut io, &closer).await {
        Ok((admitted, theirs)) => {
            let streams = admitted.streams.clone();
            let live = Live::new(shared, admitted, closer);
            // A place is kept before the other side is told that it is in.
            let slot = match streams.try_reserve() {
                Ok(slot) => slot,
                Err(_) => return refuse(&mut io, Refused::SwarmBusy).await,
            };
            let ours = Handshake::new(theirs.info_hash, own_id);
            let ack = answer(HelloStatus::Ok, 0).encode();
            let first = [&ack[..], &ours.encode()].concat();
            write(&mut io, &first).await.map_err(|_| Refused::Broken)?;
            slot.send(PeerStream::new(io, live, ours, theirs));
            Ok(())
        }
        Err(refused) => refuse(&mut io, refused).await,
    }
}

/// Reads who comes for what and enters it, if the list names it.
async fn enter(
    shared: &Shared,
    io: &mut Io,
    closer: &Closer,
) -> Result<(Admitted, Handshake), Refused> {
    let (_, session) = io.get_ref();
    if session.alpn_protocol() != Some(ALPN) {
        return Err(Refused::Hello);
    }
    let holder = Holder::of(session.peer_certificates()).ok_or(Refused::Certificate)?;
    let mut hello = [0; HELLO_BYTES];
    io.read_exact(&mut hello).await.map_err(|_| Refused::Broken)?;
    let hello = Hello::decode(&hello).map_err(|_| Refused::Hello)?;
    if hello.kind != ChannelKind::File {
        return Err(Refused::Hello);
    }
    if negotiate(&hello).is_none() {
        return Err(Refused::Version);
    }
    let mut bytes = [0; HANDSHAKE_BYTES];
    io.read_exact(&mut bytes).await.map_err(|_| Refused::Broken)?;
    let theirs = Handshake::decode(&bytes).ok().flatten().ok_or(Refused::Handshake)?;
    let ours = Handshake::new(theirs.info_hash, theirs.peer_id);
    if !theirs.suffices_for(&ours) || theirs.peer_id != peer_id(holder.agent.as_str()) {
        return Err(Refused::Handshake);
    }
    let until = Instant::now() + LIST_WAIT;
    let mut changes = shared.changes.subscribe();
    loop {
        let admitted = shared.table().admit(&theirs.info_hash, &holder, shared.now_ms(), closer);
        let why = match admitted {
            Ok(admitted) => return Ok((admitted, theirs)),
            Err(why) => why,
        };
        let changed = tokio::time::timeout_at(until, changes.changed());
        if why == NotAdmitted::Full || !matches!(changed.await, Ok(Ok(()))) {
            return Err(Refused::List(why));
        }
    }
}

async fn refuse(io: &mut Io, refused: Refused) -> Result<(), Refused> {
    if let Some((status, retry_after_ms)) = refused.status() {
        // Whether it hears that does not matter.
        let _ = write(io, &answer(status, retry_after_ms).encode()).await;
        let _ = io.shutdown().await;
    }
    Err(refused)
}

/// Session and server time are a server's to give.
fn answer(status: HelloStatus, retry_after_ms: u32) -> HelloAck {
    let version = if status == HelloStatus::Ok { VERSION } else { 0 };
    HelloAck { version, status, retry_after_ms, session_id: 0, server_time_ms: 0 }
}

async fn write(io: &mut Io, bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place() {
        let pending = Arc::new(Pending::default());
        let [one, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let turns: Vec<_> = (0..PENDING_PER_ADDRESS_MAX).map(|_| pending.enter(one)).collect();
        assert!(turns.iter().all(Option::is_some));
        assert!(pending.enter(one).is_none());
        assert!(pending.enter(other).is_some());
        drop(turns);
        assert!(pending.enter(one).is_some());
        assert!(pending.0.lock().unwrap().is_empty(), "nothing is kept of those who left");
    }
}
