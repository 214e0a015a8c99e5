//! A client's end of one channel: TCP, TLS with a client certificate, HELLO. Small enough that
//! tens of thousands fit one process.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use skein_wire::hello::{ChannelKind, HELLO_BYTES, Hello, HelloAck, HelloStatus};
use skein_wire::ids::Instance;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::authority::SERVER_NAME;

/// Opens a channel of `kind` at `address`.
pub async fn open(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    kind: ChannelKind,
    instance: Instance,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await.context("connect")?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(SERVER_NAME)?;
    let mut stream = TlsConnector::from(config).connect(name, tcp).await.context("handshake")?;
    stream.write_all(&Hello::new(kind, instance).encode()).await?;
    stream.flush().await?;
    let mut answer = [0; HELLO_BYTES];
    stream.read_exact(&mut answer).await.context("no HELLO_ACK")?;
    let ack = HelloAck::decode(&answer)?;
    ensure!(ack.status == HelloStatus::Ok, "refused: {}", ack.status.as_str());
    Ok(stream)
}

/// Ends a connection with a TCP reset instead of a good-bye.
pub fn reset(stream: TlsStream<TcpStream>) {
    let (tcp, _) = stream.get_ref();
    // A lingering time of zero makes close send RST; without it the peer would see an orderly end.
    let _ = socket2::SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO));
    drop(stream);
}
