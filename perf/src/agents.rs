//! Agents that are nothing but their sessions: they heartbeat, answer pings and hold data channels
//! open, as real agents do when nothing happens.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skein_wire::data::AgentFrame;
use skein_wire::frame::{FrameDecoder, encode_message};
use skein_wire::hello::ChannelKind;
use skein_wire::ids::{AgentId, Instance};
use skein_wire::limits::SIGNAL_MESSAGE_BYTES_MAX;
use skein_wire::signal::v1::{
    AgentMessage, Echo, Heartbeat, ServerMessage, agent_message, server_message,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::authority::Authority;
use crate::channel;
use crate::lab::Addresses;

/// What happened to a fleet's sessions.
#[derive(Debug, Default)]
pub struct Tally {
    /// Sessions open now.
    pub open: usize,
    /// Sessions that ended, by the server's or the network's doing.
    pub ended: usize,
    /// Connections or handshakes that failed.
    pub failed: usize,
    /// First few reasons.
    pub reasons: Vec<String>,
}

impl Tally {
    fn note(&mut self, error: &anyhow::Error) {
        if self.reasons.len() < 5 {
            self.reasons.push(format!("{error:#}"));
        }
    }
}

/// Name of laboratory agent `index`.
pub fn name(index: usize) -> AgentId {
    AgentId::parse(&format!("lab-{index:06}")).expect("letters and digits")
}

/// Which sessions each agent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Signal only.
    Signal,
    /// Signal and data: a whole agent.
    Whole,
}

/// Opens sessions of agents `0..count`, at most `parallel` handshakes at a time, and keeps them.
/// Must run in a `LocalSet`; returns when all are open or have failed.
pub async fn hold(
    authority: &Authority,
    addresses: Addresses,
    count: usize,
    shape: Shape,
    heartbeat: Duration,
    parallel: usize,
) -> anyhow::Result<Rc<RefCell<Tally>>> {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let gate = Arc::new(Semaphore::new(parallel));
    let mut opening = Vec::with_capacity(count);
    for index in 0..count {
        let config = authority.client(&name(index))?;
        let host = (index / 4000) as u8 + 1;
        let (signal, data) = (addresses.signal(host), addresses.data(host));
        let mut instance = Instance([0; 16]);
        instance.0[..8].copy_from_slice(&(index as u64).to_be_bytes());
        let permit = gate.clone().acquire_owned().await?;
        let tally = tally.clone();
        opening.push(tokio::task::spawn_local(async move {
            let opened = async {
                let signal =
                    channel::open(signal, config.clone(), ChannelKind::Signal, instance).await?;
                let data = match shape {
                    Shape::Signal => None,
                    Shape::Whole => {
                        Some(channel::open(data, config, ChannelKind::Data, instance).await?)
                    }
                };
                anyhow::Ok((signal, data))
            };
            let opened = opened.await;
            drop(permit);
            match opened {
                Ok((signal, data)) => {
                    tally.borrow_mut().open += 1;
                    tokio::task::spawn_local(live(signal, data, index, heartbeat, tally));
                }
                Err(error) => {
                    let mut tally = tally.borrow_mut();
                    tally.failed += 1;
                    tally.note(&error);
                }
            }
        }));
    }
    for task in opening {
        task.await?;
    }
    Ok(tally)
}

/// A signal session.
pub type Stream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn live(
    mut signal: Stream,
    data: Option<Stream>,
    index: usize,
    heartbeat: Duration,
    tally: Rc<RefCell<Tally>>,
) {
    let ended = match data {
        None => beat(&mut signal, index, heartbeat).await,
        Some(data) => tokio::select! {
            ended = beat(&mut signal, index, heartbeat) => ended,
            ended = keep(data) => ended,
        },
    };
    let mut tally = tally.borrow_mut();
    tally.open -= 1;
    tally.ended += 1;
    if let Err(error) = ended {
        tally.note(&error);
    }
}

/// A signal session: heartbeats spread over the interval, pings answered at once.
pub async fn beat(stream: &mut Stream, index: usize, heartbeat: Duration) -> anyhow::Result<()> {
    let spread = heartbeat.mul_f64((index % 1000) as f64 / 1000.0);
    let mut due = Instant::now() + spread;
    let mut sequence = 0;
    let mut buffer = Vec::new();
    let mut out = Vec::new();
    let decoder = FrameDecoder::new(SIGNAL_MESSAGE_BYTES_MAX);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(due) => {
                due += heartbeat;
                sequence += 1;
                let beat = Heartbeat { sequence, agent_time_ms: 0 };
                put(&mut out, agent_message::Kind::Heartbeat(beat))?;
            }
            read = stream.read_buf(&mut buffer) => {
                anyhow::ensure!(read? > 0, "server closed the signal session");
                let mut used = 0;
                while let Some((message, bytes)) =
                    decoder.next_message::<ServerMessage>(&buffer[used..])?
                {
                    used += bytes;
                    if let Some(server_message::Kind::Ping(ping)) = message.kind {
                        let echo = Echo { nonce: ping.nonce, payload: ping.payload };
                        put(&mut out, agent_message::Kind::Echo(echo))?;
                    }
                }
                buffer.drain(..used);
                if buffer.is_empty() {
                    buffer = Vec::new();
                }
            }
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out = Vec::new();
        }
    }
}

fn put(out: &mut Vec<u8>, kind: agent_message::Kind) -> anyhow::Result<()> {
    let message = AgentMessage { kind: Some(kind) };
    Ok(encode_message(&message, SIGNAL_MESSAGE_BYTES_MAX, out)?)
}

/// A data session with nothing to send: a keep-alive every 15 s.
async fn keep(mut stream: Stream) -> anyhow::Result<()> {
    let mut alive = Vec::new();
    AgentFrame::KeepAlive.encode(&mut alive);
    let mut buffer = [0; 256];
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(15)) => {
                stream.write_all(&alive).await?;
                stream.flush().await?;
            }
            read = stream.read(&mut buffer) => {
                anyhow::ensure!(read? > 0, "server closed the data session");
            }
        }
    }
}
