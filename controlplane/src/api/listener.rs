//! Where the API listens: plain on loopback; elsewhere only with TLS, by the server's certificate.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections at one time; further ones wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 256;
/// A handshake that takes longer is given up.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Why the API does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address would show tokens to the network.
    #[error(
        "the API must not listen on {0} without TLS: set `api_tls = true` in server.toml, or \
         listen on 127.0.0.1 and use a tunnel"
    )]
    Exposed(SocketAddr),
    /// The address is taken, or not this host's.
    #[error("the API cannot listen on {0}: {1}")]
    Bind(SocketAddr, io::Error),
    /// The certificate or its key.
    #[error("the API's certificate: {0}")]
    Certificate(String),
}

/// Accepts connections, with handshakes off the accepting path.
pub struct ApiListener {
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
    local: SocketAddr,
}

/// One connection, plain or TLS, with its place among [`CONNECTIONS_MAX`].
pub struct Connection {
    stream: Stream,
    _place: OwnedSemaphorePermit,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ApiListener {
    /// Binds. `tls`: the folder that holds `server.crt` and `server.key`.
    pub async fn bind(address: SocketAddr, tls: Option<&Path>) -> Result<Self, ListenError> {
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

fn acceptor(folder: &Path) -> Result<TlsAcceptor, ListenError> {
    let failed = |error: &dyn std::fmt::Display| ListenError::Certificate(error.to_string());
    let chain = CertificateDer::pem_file_iter(folder.join("server.crt"));
    let chain = chain.and_then(Iterator::collect).map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key"));
    let key = key.map_err(|error| failed(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| failed(&error))?;
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
            let stream = match acceptor {
                None => Stream::Plain(stream),
                Some(acceptor) => {
                    let handshake = tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream));
                    match handshake.await {
                        Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
                        _ => return,
                    }
                }
            };
            // The receiver goes when the process stops.
            let _ = ready.send((Connection { stream, _place: place }, peer)).await;
        });
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
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
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
