//! Where the API listens: plain on loopback; elsewhere only with TLS. Who speaks plain HTTP to a
//! listener with TLS is told so in plain HTTP, because a broken connection would not say why.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admission::{Admission, Allowance, refused};
use super::certificate::{ApiCertificate, CertificateError};

/// Connections at one time; further ones wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 256;
/// Code of the answer to plain HTTP where TLS is spoken.
pub const TLS_REQUIRED: &str = "tls_required";
/// First byte of a TLS connection: the record type of a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// What is read of a plain request and thrown away, so that the answer arrives before a reset.
const PLAIN_BYTES_MAX: u64 = 64 * 1024;
/// For how long.
const PLAIN_TIME: Duration = Duration::from_secs(1);

/// Why the API does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address would show tokens to the network.
    #[error(
        "the API must not listen on {0} without TLS: set `api_tls = true` below [control] in \
         server.toml (or give --api-tls), or listen on 127.0.0.1 and use a tunnel"
    )]
    Exposed(SocketAddr),
    /// The address is taken, or not this host's.
    #[error("the API cannot listen on {0}: {1}")]
    Bind(SocketAddr, io::Error),
    /// The certificate or its key.
    #[error("the API's certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// The TLS library refuses its configuration.
    #[error("the API's TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Accepts connections, with handshakes off the accepting path.
pub struct ApiListener {
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
    local: SocketAddr,
}

/// One connection, plain or TLS, with its place among [`CONNECTIONS_MAX`].
pub struct Connection {
    stream: Stream,
    /// `None` once a request on it had a valid token.
    allowance: Option<Allowance>,
    admission: Admission,
    _place: OwnedSemaphorePermit,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ApiListener {
    /// Binds; without a certificate the API is plain HTTP, which only loopback may have.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<Arc<ApiCertificate>>,
    ) -> Result<Self, ListenError> {
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(ListenError::Exposed(address));
        }
        let acceptor = tls.map(acceptor).transpose()?;
        let failed = |error| ListenError::Bind(address, error);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let (sender, ready) = mpsc::channel(1);
        tokio::spawn(accept(listener, acceptor, sender));
        Ok(Self { ready, local })
    }

    /// The bound address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }
}

fn acceptor(certificate: Arc<ApiCertificate>) -> Result<TlsAcceptor, ListenError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    ready: mpsc::Sender<(Connection, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The service has ended.
            () = ready.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the API cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            let allowance = Allowance::new();
            let Some(stream) = handshake(stream, acceptor, &allowance).await else { return };
            let admission = allowance.admission();
            let connection =
                Connection { stream, allowance: Some(allowance), admission, _place: place };
            // The receiver goes when the process stops.
            let _ = ready.send((connection, peer)).await;
        });
    }
}

/// TLS where it is configured, within the time of the connection's allowance.
async fn handshake(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    allowance: &Allowance,
) -> Option<Stream> {
    let Some(acceptor) = acceptor else { return Some(Stream::Plain(stream)) };
    let reason = match tokio::time::timeout_at(allowance.deadline(), secure(stream, acceptor)).await
    {
        Ok(Ok(stream)) => return Some(Stream::Tls(Box::new(stream))),
        Ok(Err(reason)) => reason,
        Err(_) => "time",
    };
    refused(reason, io::ErrorKind::InvalidData);
    None
}

/// The handshake, or a word for why there is none.
async fn secure(
    stream: TcpStream,
    acceptor: TlsAcceptor,
) -> Result<TlsStream<TcpStream>, &'static str> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first[0] == TLS_HANDSHAKE => {
            acceptor.accept(stream).await.map_err(|_| "handshake")
        }
        // Methods are written in capitals.
        Ok(1) if first[0].is_ascii_uppercase() => {
            let _ = tokio::time::timeout(PLAIN_TIME, refuse_plain(stream)).await;
            Err("plain_http")
        }
        _ => Err("handshake"),
    }
}

/// Tells who speaks HTTP that this is not the way.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    let message = "this address speaks https, not http";
    let body = format!(r#"{{"error":{{"code":"{TLS_REQUIRED}","message":"{message}"}}}}"#);
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    // A socket that is closed with unread bytes resets, and the answer may be lost.
    tokio::io::copy(&mut stream.take(PLAIN_BYTES_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}

impl Connection {
    /// What a request with a valid token calls.
    pub fn admission(&self) -> Admission {
        self.admission.clone()
    }

    /// Bytes that may be read now; see [`Allowance::poll`].
    fn allowed(&mut self, context: &mut Context<'_>) -> io::Result<Option<usize>> {
        let Some(allowance) = &mut self.allowance else { return Ok(None) };
        let allowed = allowance.poll(context)?;
        if allowed.is_none() {
            self.allowance = None;
        }
        Ok(allowed)
    }
}

impl Stream {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl axum::serve::Listener for ApiListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task lives as long as the runtime.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(allowed) = self.allowed(context)? else {
            return self.stream.poll_read(context, buffer);
        };
        let bytes = allowed.min(buffer.remaining());
        let mut limited = ReadBuf::new(buffer.initialize_unfilled_to(bytes));
        ready!(self.stream.poll_read(context, &mut limited))?;
        let read = limited.filled().len();
        buffer.advance(read);
        if let Some(allowance) = &mut self.allowance {
            allowance.spend(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.allowed(context)?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
