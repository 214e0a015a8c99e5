//! Pings from the place of the control process to many agents, and their echoes back.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use skein_wire::fleet::v1::{FromAgent, Target, ToAgents, from_data, to_data};
use skein_wire::prost::Message;
use skein_wire::signal::v1::{AgentMessage, Ping, ServerMessage, agent_message, server_message};

use crate::agents;
use crate::lab::{FleetWriter, Lab};

/// Longest silence while answers are missing.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// A message between the processes is at most 4 MiB: 20,000 short names fit.
const TARGETS_MAX: usize = 20_000;

/// What came back.
#[derive(Debug, Default)]
pub struct Echoes {
    /// When each answer came, in milliseconds since the ping was sent, in order.
    pub times_ms: Vec<f64>,
    /// Sessions that the server said were gone meanwhile.
    pub downs: usize,
}

/// Sends a ping with this payload to agents of these numbers.
pub async fn ping(
    outbox: &mut FleetWriter,
    agents: Range<usize>,
    nonce: u64,
    payload_bytes: usize,
) -> anyhow::Result<()> {
    let ping = Ping { nonce, payload: Bytes::from(vec![b'x'; payload_bytes]) };
    let common = ServerMessage { kind: Some(server_message::Kind::Ping(ping)) }.encode_to_vec();
    let common = Bytes::from(common);
    for chunk in agents.collect::<Vec<_>>().chunks(TARGETS_MAX) {
        let targets = chunk.iter().map(|index| Target {
            agent_id: agents::name(*index).to_string(),
            extra: Bytes::new(),
        });
        let message =
            ToAgents { dispatch_id: nonce, common: common.clone(), targets: targets.collect() };
        outbox.send(to_data::Kind::ToAgents(message)).await?;
    }
    Ok(())
}

/// Whether this is an agent's answer to the ping of this nonce.
pub fn answers(from: &FromAgent, nonce: u64) -> bool {
    let message = AgentMessage::decode(&from.message[..]);
    matches!(
        message.ok().and_then(|message| message.kind),
        Some(agent_message::Kind::Echo(echo)) if echo.nonce == nonce
    )
}

/// Pings these agents and waits until all have answered.
pub async fn all(
    lab: &mut Lab,
    agents: Range<usize>,
    nonce: u64,
    payload_bytes: usize,
) -> anyhow::Result<Echoes> {
    let (count, started) = (agents.len(), Instant::now());
    ping(&mut lab.outbox, agents, nonce, payload_bytes).await?;
    let mut echoes = Echoes::default();
    let mut seen = Vec::new();
    while echoes.times_ms.len() < count {
        seen.clear();
        let read = tokio::time::timeout(SILENCE_MAX, lab.inbox.burst(&mut seen)).await;
        ensure!(read.is_ok(), "only {} of {count} agents answered", echoes.times_ms.len());
        read??;
        for kind in &seen {
            match kind {
                from_data::Kind::FromAgent(from) if answers(from, nonce) => {
                    echoes.times_ms.push(started.elapsed().as_secs_f64() * 1e3);
                }
                from_data::Kind::SessionDown(_) => echoes.downs += 1,
                _ => {}
            }
        }
    }
    Ok(echoes)
}
