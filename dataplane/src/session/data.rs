//! The data channel: finds batches in the stream, gathers each body once in a vector of its exact
//! size, and hands it to the router worker that owns the agent's lanes.
//!
//! Two things stop the reading of one session and of no other: the shard's memory for bodies is
//! reserved, or the worker's queue is full. In both cases what has already been decrypted (at most
//! one record) is kept, and the ciphertext behind it stays with TLS.

use std::collections::VecDeque;

use skein_wire::batch::{BatchHeader, HEADER_BYTES};
use skein_wire::data::{self, AgentFrame, DataError, PREFIX_BYTES, ServerFrame, TYPE_BATCH};
use skein_wire::ids::AgentId;

use crate::router::ToRouter;
use crate::tls::Flow;

use super::{CloseReason, Ctx};

/// Prefix and header of a batch, or the largest other frame.
const HEAD_BYTES_MAX: usize = PREFIX_BYTES + HEADER_BYTES;

/// State of a data channel.
pub struct DataState {
    /// The authenticated agent.
    pub agent: AgentId,
    /// The router worker that owns its lanes.
    pub worker: usize,
    /// A small frame or a batch's head that is not whole.
    head: Vec<u8>,
    body: Option<Assembly>,
    /// What the full router did not take, in order.
    stuck: VecDeque<ToRouter>,
    /// Bytes of `assembly` reserved for `body` and `stuck`.
    reserved: usize,
    /// When the frame that is not whole began, observed time.
    frame_since_ms: u64,
    /// The process goes away: nothing is taken any more.
    leaving: bool,
}

struct Assembly {
    header: BatchHeader,
    body: Vec<u8>,
    /// The body's bytes are reserved; until then nothing more is read.
    reserved: bool,
}

/// What keeps a data channel from being read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blocked {
    /// The shard's memory for bodies.
    Memory,
    /// The worker's queue.
    Router,
}

impl DataState {
    /// A channel whose HELLO was accepted.
    pub fn new(agent: AgentId, worker: usize) -> Self {
        Self {
            agent,
            worker,
            head: Vec::new(),
            body: None,
            stuck: VecDeque::new(),
            reserved: 0,
            frame_since_ms: 0,
            leaving: false,
        }
    }

    /// Whether more input is welcome.
    pub fn wants_read(&self) -> bool {
        !self.leaving && self.blocked().is_none()
    }

    /// Takes nothing more. What the router has not taken is not acknowledged; the agent sends it
    /// to whoever it goes to.
    pub fn leave(&mut self, ctx: &mut Ctx<'_>) {
        self.leaving = true;
        self.head = Vec::new();
        self.end(ctx);
    }

    /// What it waits for.
    pub fn blocked(&self) -> Option<Blocked> {
        if !self.stuck.is_empty() {
            return Some(Blocked::Router);
        }
        self.body.as_ref().is_some_and(|body| !body.reserved).then_some(Blocked::Memory)
    }

    /// When the frame that is not whole began. Waiting for us is not the peer's fault.
    pub fn partial_since_ms(&self) -> Option<u64> {
        let partial = self.body.is_some() || !self.head.is_empty();
        (partial && self.blocked().is_none()).then_some(self.frame_since_ms)
    }

    /// Memory of what is not whole or has no reservation; bodies that have one are counted there.
    pub fn held_bytes(&self) -> usize {
        let body = self.body.as_ref().filter(|body| !body.reserved);
        self.head.capacity() + body.map_or(0, |body| body.body.capacity())
    }

    /// Takes plaintext.
    pub fn receive(
        &mut self,
        mut input: &[u8],
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Flow, CloseReason> {
        while !input.is_empty() {
            input = match &mut self.body {
                Some(assembly) => {
                    let missing = assembly.header.body_bytes as usize - assembly.body.len();
                    let (now, rest) = input.split_at(missing.min(input.len()));
                    assembly.body.extend_from_slice(now);
                    rest
                }
                None => self.head(input, plain, ctx)?,
            };
            self.pass_whole_batch(ctx);
        }
        Ok(if self.wants_read() { Flow::Continue } else { Flow::Pause })
    }

    /// Reads a frame's head (or a whole small frame); returns what comes behind it.
    fn head<'a>(
        &mut self,
        input: &'a [u8],
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<&'a [u8], CloseReason> {
        if self.head.is_empty() {
            self.frame_since_ms = ctx.now_ms;
        }
        let taken_before = self.head.len();
        let window = &input[..input.len().min(HEAD_BYTES_MAX - taken_before)];
        // Frames that arrive whole, as nearly all do, are read where they lie.
        let mut joined = std::mem::take(&mut self.head);
        let bytes = if joined.is_empty() {
            window
        } else {
            joined.extend_from_slice(window);
            &joined[..]
        };
        let used = match data::peek_frame(bytes).map_err(reason)? {
            Some((TYPE_BATCH, length)) if length < HEADER_BYTES => {
                return Err(CloseReason::Malformed);
            }
            Some((TYPE_BATCH, length)) => match bytes[PREFIX_BYTES..].first_chunk() {
                Some(header) => {
                    self.begin_batch(header, length, ctx)?;
                    Some(HEAD_BYTES_MAX)
                }
                None => None,
            },
            Some(_) => match data::decode_agent_frame(bytes).map_err(reason)? {
                Some((frame, length)) => {
                    self.small_frame(frame, plain, ctx)?;
                    Some(length)
                }
                None => None,
            },
            None => None,
        };
        match used {
            Some(used) => Ok(&input[used - taken_before..]),
            None => {
                self.head = bytes.to_vec();
                Ok(&input[window.len()..])
            }
        }
    }

    fn begin_batch(
        &mut self,
        header: &[u8; HEADER_BYTES],
        length: usize,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        let header = BatchHeader::decode(header).map_err(|_| CloseReason::Malformed)?;
        let bytes = header.body_bytes as usize;
        if length != HEADER_BYTES + bytes {
            return Err(CloseReason::Malformed);
        }
        let reserved = ctx.assembly.reserve(bytes);
        if reserved {
            self.reserved += bytes;
        }
        let body = if reserved { Vec::with_capacity(bytes) } else { Vec::new() };
        self.body = Some(Assembly { header, body, reserved });
        Ok(())
    }

    fn small_frame(
        &mut self,
        frame: AgentFrame<'_>,
        plain: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), CloseReason> {
        let (session, agent) = (ctx.me, self.agent.clone());
        match frame {
            AgentFrame::LaneOpen(open) => self.pass(ToRouter::Open { session, agent, open }, ctx),
            AgentFrame::LaneStat(stat) => self.pass(ToRouter::Stat { session, agent, stat }, ctx),
            AgentFrame::KeepAlive => ServerFrame::KeepAlive.encode(plain),
            AgentFrame::Batch { .. } => return Err(CloseReason::Internal),
        }
        Ok(())
    }

    fn pass_whole_batch(&mut self, ctx: &mut Ctx<'_>) {
        let whole = |a: &mut Assembly| a.body.len() == a.header.body_bytes as usize;
        let Some(Assembly { header, body, reserved }) = self.body.take_if(whole) else { return };
        if !reserved {
            // Small enough to have come with the record that was being read.
            self.reserved += if ctx.assembly.reserve(body.len()) { body.len() } else { 0 };
        }
        let agent = self.agent.clone();
        self.pass(ToRouter::Batch { session: ctx.me, agent, header, body }, ctx);
    }

    fn pass(&mut self, message: ToRouter, ctx: &mut Ctx<'_>) {
        if self.stuck.is_empty() {
            if let Err(message) = ctx.shared.router.try_send(self.worker, message) {
                self.stuck.push_back(message);
            }
        } else {
            self.stuck.push_back(message);
        }
        self.settle(ctx);
    }

    /// Tries again what was blocked; true when the channel can be read again.
    pub fn retry(&mut self, ctx: &mut Ctx<'_>) -> bool {
        while let Some(message) = self.stuck.pop_front() {
            if let Err(message) = ctx.shared.router.try_send(self.worker, message) {
                self.stuck.push_front(message);
                break;
            }
        }
        self.settle(ctx);
        if let Some(assembly) = self.body.as_mut().filter(|assembly| !assembly.reserved) {
            let bytes = assembly.header.body_bytes as usize;
            if ctx.assembly.reserve(bytes) {
                assembly.body.reserve_exact(bytes - assembly.body.len());
                assembly.reserved = true;
                self.reserved += bytes;
            }
        }
        self.frame_since_ms = ctx.now_ms; // what was waited for was ours
        self.wants_read()
    }

    /// Gives back the reservation of what the router has taken.
    fn settle(&mut self, ctx: &mut Ctx<'_>) {
        if !self.stuck.is_empty() {
            return;
        }
        let open = self.body.as_ref().filter(|body| body.reserved);
        let needed = open.map_or(0, |body| body.header.body_bytes as usize);
        ctx.assembly.release(self.reserved - needed);
        self.reserved = needed;
    }

    /// Gives back everything; what the router has not taken will be sent again by the agent.
    pub fn end(&mut self, ctx: &mut Ctx<'_>) {
        ctx.assembly.release(std::mem::take(&mut self.reserved));
        self.stuck.clear();
        self.body = None;
    }
}

fn reason(error: DataError) -> CloseReason {
    match error {
        DataError::Length { .. } => CloseReason::Oversize,
        _ => CloseReason::Malformed,
    }
}
