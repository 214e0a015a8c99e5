//! A laboratory: one real data process in a folder of its own, and this process in the place of
//! the control process, speaking the fleet protocol over the real socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use skein_dataplane::router::DiskChoice;
use skein_wire::fleet::v1::{
    FileStream, FromData, Register, Route, RoutingTable, Stream, ToData, Welcome, from_data,
    stream, to_data,
};
use skein_wire::frame::{FrameDecoder, encode_message};
use skein_wire::limits::FLEET_MESSAGE_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use crate::authority::Authority;

/// How the data process of a laboratory is started.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Shards and router workers.
    pub cores: usize,
    /// Format of the one file stream: `lines`, `tagged` or `json`.
    pub format: String,
    /// Data ids that are routed to it.
    pub data_ids: Vec<u32>,
    /// Where sink files go; on the disk that is to be measured.
    pub folder: PathBuf,
    /// Heartbeat interval that agents are told.
    pub heartbeat_interval_ms: u32,
    /// How sink files are written.
    pub disk: Disk,
    /// Size at which the stream begins a new file; 0: never.
    pub rotate_bytes: u64,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            cores: 1,
            format: "lines".to_owned(),
            data_ids: vec![1],
            folder: PathBuf::from("target/perf"),
            heartbeat_interval_ms: 10_000,
            disk: Disk::Plain,
            rotate_bytes: 0,
        }
    }
}

/// The disk driver of a data process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Disk {
    /// DMA writes through io_uring.
    Glommio,
    /// Ordinary calls.
    Plain,
}

impl From<Disk> for DiskChoice {
    fn from(disk: Disk) -> Self {
        match disk {
            Disk::Glommio => Self::Glommio,
            Disk::Plain => Self::Plain,
        }
    }
}

impl Disk {
    fn name(self) -> &'static str {
        match self {
            Self::Glommio => "glommio",
            Self::Plain => "plain",
        }
    }
}

/// A running laboratory; the data process ends with it.
pub struct Lab {
    /// Signs agents' certificates.
    pub authority: Authority,
    /// What the data process said of itself.
    pub register: Register,
    /// From the data process.
    pub inbox: FleetReader,
    /// To the data process.
    pub outbox: FleetWriter,
    config: LabConfig,
    listener: UnixListener,
    child: Child,
    folder: tempfile::TempDir,
}

impl Lab {
    /// Starts the data process and waits until it has registered and routes.
    pub async fn start(config: &LabConfig) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&config.folder)?;
        let folder = tempfile::Builder::new().prefix("skein-lab-").tempdir_in(&config.folder)?;
        let authority = Authority::new()?;
        authority.write_server(&folder.path().join("data"))?;
        std::fs::create_dir_all(folder.path().join("run"))?;
        let listener = UnixListener::bind(folder.path().join("run/fleet.sock"))?;
        let started = Self::launch(config, folder.path(), &listener).await?;
        let (child, register, inbox, outbox) = started;
        let config = config.clone();
        Ok(Self { authority, register, inbox, outbox, config, listener, child, folder })
    }

    /// A data process that has registered and routes.
    async fn launch(
        config: &LabConfig,
        folder: &Path,
        listener: &UnixListener,
    ) -> anyhow::Result<(Child, Register, FleetReader, FleetWriter)> {
        let child = Command::new(std::env::current_exe()?)
            .arg("data-process")
            .args([format!("--cores={}", config.cores), format!("--disk={}", config.disk.name())])
            .arg(folder)
            .stdin(Stdio::null())
            .spawn()
            .context("data process")?;
        let accepted = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await;
        let (stream, _) = accepted.context("the data process did not connect within 20 s")??;
        let (mut inbox, mut outbox) = split(stream);
        let register = loop {
            if let from_data::Kind::Register(register) = inbox.next().await? {
                break register;
            }
        };
        outbox
            .send(to_data::Kind::Welcome(Welcome {
                heartbeat_interval_ms: config.heartbeat_interval_ms,
                heartbeat_misses: 3,
            }))
            .await?;
        outbox.send(to_data::Kind::Table(table(config, folder))).await?;
        loop {
            if let from_data::Kind::TableApplied(_) = inbox.next().await? {
                break;
            }
        }
        Ok((child, register, inbox, outbox))
    }

    /// kill -9 of the data process and a new one in its place, on other ports.
    pub async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let launched = Self::launch(&self.config, self.folder.path(), &self.listener).await?;
        (self.child, self.register, self.inbox, self.outbox) = launched;
        Ok(())
    }

    /// Where its listeners are.
    pub fn addresses(&self) -> anyhow::Result<Addresses> {
        let port = |address: &str| -> anyhow::Result<u16> {
            Ok(address.parse::<SocketAddr>().context("listener address")?.port())
        };
        Ok(Addresses {
            signal_port: port(&self.register.signal_addr)?,
            data_port: port(&self.register.data_addr)?,
        })
    }

    /// Bytes of all sink files.
    pub fn sink_bytes(&self) -> u64 {
        fn walk(folder: &Path) -> u64 {
            let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
            let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => walk(&entry.path()),
                Ok(meta) => meta.len(),
                Err(_) => 0,
            };
            entries.flatten().map(bytes).sum()
        }
        walk(&self.sinks())
    }

    /// Where sink files are.
    pub fn sinks(&self) -> PathBuf {
        self.folder.path().join("data/sinks")
    }

    /// The process id of the data process.
    pub fn pid(&self) -> u32 {
        self.register.pid
    }

    /// What the data process says of itself now.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        use std::io::{Read, Write};
        let mut socket = std::net::TcpStream::connect(&self.register.metrics_addr)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(Metrics(text))
    }
}

/// One look at `/metrics`.
pub struct Metrics(String);

impl Metrics {
    /// Sum of a metric over its labels; 0 when there is none yet.
    pub fn sum(&self, name: &str) -> f64 {
        let value = |line: &str| -> Option<f64> {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse().ok())?
        };
        self.0.lines().filter_map(value).sum()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The listeners of a laboratory, on every address of the loopback network: one destination
/// address allows only some 28,000 connections.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    signal_port: u16,
    data_port: u16,
}

impl Addresses {
    /// The signal listener on `127.0.0.host`.
    pub fn signal(self, host: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, host], self.signal_port))
    }

    /// The data listener on `127.0.0.host`.
    pub fn data(self, host: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, host], self.data_port))
    }
}

fn table(config: &LabConfig, folder: &Path) -> RoutingTable {
    let file = FileStream {
        directory: folder.join("data/sinks").to_string_lossy().into_owned(),
        path_template: "{data_id}/{writer}.log".to_owned(),
        format: config.format.clone(),
        rotate_bytes: config.rotate_bytes,
        rotate_seconds: 0,
        flush_interval_ms: 50,
        durability: "power".to_owned(),
    };
    let route =
        |data_id: &u32| Route { name: format!("route-{data_id}"), data_id: *data_id, stream_id: 1 };
    RoutingTable {
        revision: 1,
        streams: vec![Stream {
            stream_id: 1,
            name: "lab".to_owned(),
            sink: Some(stream::Sink::File(file)),
        }],
        routes: config.data_ids.iter().map(route).collect(),
    }
}

/// Messages from the data process.
pub struct FleetReader {
    half: OwnedReadHalf,
    buffer: Vec<u8>,
}

/// Messages to the data process.
pub struct FleetWriter {
    half: OwnedWriteHalf,
    buffer: Vec<u8>,
}

fn split(stream: UnixStream) -> (FleetReader, FleetWriter) {
    let (read, write) = stream.into_split();
    let reader = FleetReader { half: read, buffer: Vec::new() };
    (reader, FleetWriter { half: write, buffer: Vec::new() })
}

impl FleetReader {
    /// The next message.
    pub async fn next(&mut self) -> anyhow::Result<from_data::Kind> {
        let decoder = FrameDecoder::new(FLEET_MESSAGE_BYTES_MAX);
        loop {
            if let Some((message, used)) = decoder.next_message::<FromData>(&self.buffer)? {
                self.buffer.drain(..used);
                match message.kind {
                    Some(kind) => return Ok(kind),
                    None => continue,
                }
            }
            self.buffer.reserve(64 * 1024);
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                bail!("the data process closed its fleet connection");
            }
        }
    }

    /// All messages of what one read brings, for loops that must keep up with thousands a second.
    pub async fn burst(&mut self, into: &mut Vec<from_data::Kind>) -> anyhow::Result<()> {
        into.push(self.next().await?);
        let decoder = FrameDecoder::new(FLEET_MESSAGE_BYTES_MAX);
        let mut used_in_all = 0;
        while let Some((message, used)) =
            decoder.next_message::<FromData>(&self.buffer[used_in_all..])?
        {
            used_in_all += used;
            into.extend(message.kind);
        }
        self.buffer.drain(..used_in_all);
        Ok(())
    }
}

impl FleetWriter {
    /// Sends one message.
    pub async fn send(&mut self, kind: to_data::Kind) -> anyhow::Result<()> {
        self.buffer.clear();
        let message = ToData { kind: Some(kind) };
        encode_message(&message, FLEET_MESSAGE_BYTES_MAX, &mut self.buffer)?;
        self.half.write_all(&self.buffer).await?;
        Ok(())
    }
}
