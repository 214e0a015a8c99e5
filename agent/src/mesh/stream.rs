//! A stream with one member, and how it is ended from outside.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use skein_filemesh::core::peer_wire::Handshake;
use skein_filemesh::core::plan::Member;
use skein_observe::names;
use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::table::{Direction, Place};
use super::{Ended, Shared, table::Admitted};

/// Ciphertext that one read takes: four of TLS's records, bought from the kernel in one call. Pages of
/// it that nothing was ever read into take no memory.
pub(super) const READ_AHEAD_BYTES: usize = 64 * 1024;

/// The bytes of a stream.
pub(super) type Io = TlsStream<BufReader<TcpStream>>;

/// Ends a stream from outside; cheap to clone.
#[derive(Clone)]
pub(super) struct Closer(Arc<Inner>);

struct Inner {
    closed: AtomicBool,
    /// A second descriptor of the stream's socket.
    socket: Socket,
}

impl Closer {
    pub fn of(stream: &TcpStream) -> io::Result<Self> {
        let socket = Socket::from(stream.as_fd().try_clone_to_owned()?);
        Ok(Self(Arc::new(Inner { closed: AtomicBool::new(false), socket })))
    }

    /// From now on nothing is read or written; who waits for either is woken. What the kernel still
    /// holds is thrown away when the swarm drops the stream.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        let _ = self.0.socket.set_linger(Some(Duration::ZERO));
        // Fails when the connection has broken already.
        let _ = self.0.socket.shutdown(Shutdown::Both);
    }

    fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }
}

/// A stream's entry in the table, for as long as it lives.
pub(super) struct Live {
    shared: Arc<Shared>,
    place: Place,
    closer: Closer,
}

impl Live {
    pub fn new(shared: &Arc<Shared>, admitted: Admitted, closer: Closer) -> Self {
        let place = admitted.place;
        admitted.replaced.into_iter().for_each(Ended::close);
        let label = place.direction.as_str();
        metrics::gauge!(names::AGENT_MESH_STREAMS, "direction" => label).increment(1.0);
        Self { shared: shared.clone(), place, closer }
    }

    pub fn member(&self) -> Member {
        self.place.member
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.shared.table().leave(&self.place);
        let label = self.place.direction.as_str();
        metrics::gauge!(names::AGENT_MESH_STREAMS, "direction" => label).decrement(1.0);
    }
}

/// An authenticated and authorised stream with one member, behind both handshakes: what comes next
/// in either direction is the first message of the peer wire
/// ([`PeerLink::shaken`](skein_filemesh::core::link::PeerLink::shaken)). Reads and writes fail with
/// [`io::ErrorKind::ConnectionAborted`] once the member is removed, the list has expired, or a newer
/// stream with it has taken this one's place.
pub struct PeerStream {
    io: Io,
    live: Live,
    ours: Handshake,
    theirs: Handshake,
}

impl PeerStream {
    pub(super) fn new(io: Io, live: Live, ours: Handshake, theirs: Handshake) -> Self {
        let label = live.place.direction.as_str();
        metrics::counter!(names::AGENT_MESH_OPENED, "direction" => label).increment(1);
        Self { io, live, ours, theirs }
    }

    /// Who is at the other end.
    pub fn member(&self) -> Member {
        self.live.member()
    }

    /// Who opened it.
    pub fn direction(&self) -> Direction {
        self.live.place.direction
    }

    /// What this side said.
    pub fn ours(&self) -> &Handshake {
        &self.ours
    }

    /// What the other side said; it is of this transfer and of that member.
    pub fn theirs(&self) -> &Handshake {
        &self.theirs
    }

    fn check(&self) -> io::Result<()> {
        match self.live.closer.is_closed() {
            true => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the member's place in the transfer has ended",
            )),
            false => Ok(()),
        }
    }

    /// What came of a read or write that was ended in the midst is its end, not what it looks like.
    fn explain<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        polled.map(|result| self.check().and(result))
    }
}

impl std::fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerStream({:?})", self.live.place)
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.explain(polled)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.explain(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.explain(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.explain(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
