//! The signal channel: heartbeats are answered here and now; everything else that an agent says is
//! checked to be a message and passed to control as it came.

use bytes::Bytes;
use skein_wire::frame::{self, FrameDecoder, FrameError};
use skein_wire::ids::AgentId;
use skein_wire::limits::SIGNAL_MESSAGE_BYTES_MAX;
use skein_wire::prost::Message;
use skein_wire::signal::v1::{
    AgentMessage, GoAway, HeartbeatAck, Ping, ServerMessage, agent_message, server_message,
};

use super::{CloseReason, Ctx};

/// State of a signal channel.
#[derive(Debug)]
pub struct SignalState {
    /// The authenticated agent.
    pub agent: AgentId,
    /// Number of this session.
    pub session_id: u64,
    /// A message that is not whole.
    partial: Vec<u8>,
    /// When `partial` began, observed time.
    partial_since_ms: u64,
}

impl SignalState {
    /// A channel whose HELLO was accepted.
    pub fn new(agent: AgentId, session_id: u64) -> Self {
        Self { agent, session_id, partial: Vec::new(), partial_since_ms: 0 }
    }

    /// When the message that began must be whole; `None` when none has begun.
    pub fn partial_since_ms(&self) -> Option<u64> {
        (!self.partial.is_empty()).then_some(self.partial_since_ms)
    }

    /// Memory of the message that is not whole.
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Takes plaintext.
    pub fn receive(
        &mut self,
        input: &[u8],
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        if self.partial.is_empty() {
            let consumed = self.messages(input, plain, ctx)?;
            if consumed < input.len() {
                self.partial = input[consumed..].to_vec();
                self.partial_since_ms = ctx.now_ms;
            }
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.partial);
        buffer.extend_from_slice(input);
        let consumed = self.messages(&buffer, plain, ctx)?;
        if consumed == buffer.len() {
            return Ok(());
        }
        if consumed > 0 {
            buffer = buffer.split_off(consumed);
            self.partial_since_ms = ctx.now_ms;
        }
        self.partial = buffer;
        Ok(())
    }

    /// Handles the whole messages of `buffer`; returns the bytes that they took.
    fn messages(
        &self,
        buffer: &[u8],
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<usize, CloseReason> {
        let decoder = FrameDecoder::new(SIGNAL_MESSAGE_BYTES_MAX);
        let mut consumed = 0;
        while let Some((range, length)) = decoder.next(&buffer[consumed..]).map_err(reason)? {
            let message = &buffer[consumed..][range];
            self.message(message, plain, ctx)?;
            consumed += length;
        }
        Ok(consumed)
    }

    fn message(
        &self,
        bytes: &[u8],
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        let message = AgentMessage::decode(bytes).map_err(|_| CloseReason::Malformed)?;
        let Some(agent_message::Kind::Heartbeat(heartbeat)) = message.kind else {
            let message = Bytes::copy_from_slice(bytes);
            ctx.shared.fleet.from_agent(&self.agent, self.session_id, message);
            return Ok(());
        };
        ctx.metrics.heartbeats.increment(1);
        let ack = HeartbeatAck {
            sequence: heartbeat.sequence,
            server_time_ms: ctx.unix_ms,
            interval_ms: ctx.shared.liveness.interval_ms(),
        };
        send(server_message::Kind::HeartbeatAck(ack), plain)
    }

    /// A ping that a living agent answers at once.
    pub fn challenge(&self, plain: &mut Vec<u8>) -> Result<(), CloseReason> {
        send(server_message::Kind::Ping(Ping { nonce: 0, payload: Bytes::new() }), plain)
    }

    /// Tells the agent to reconnect after its own slot.
    pub fn go_away(&self, reconnect_after_ms: u32, plain: &mut Vec<u8>) -> Result<(), CloseReason> {
        let reason = "the server goes away".to_owned();
        send(server_message::Kind::GoAway(GoAway { reason, reconnect_after_ms }), plain)
    }
}

fn send(kind: server_message::Kind, plain: &mut Vec<u8>) -> Result<(), CloseReason> {
    let message = ServerMessage { kind: Some(kind) };
    frame::encode_message(&message, SIGNAL_MESSAGE_BYTES_MAX, plain)
        .map_err(|_| CloseReason::Internal)
}

/// Appends a message of control for this agent: what all receive, then its own part.
pub fn deliver(common: &[u8], extra: &[u8], plain: &mut Vec<u8>) -> Result<(), FrameError> {
    frame::encode_bytes(&[common, extra], SIGNAL_MESSAGE_BYTES_MAX, plain)
}

fn reason(error: FrameError) -> CloseReason {
    match error {
        FrameError::TooLong { .. } => CloseReason::Oversize,
        FrameError::Malformed(_) => CloseReason::Malformed,
    }
}
