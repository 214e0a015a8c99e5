//! The enrol channel: one request, one reply. The only protocol that a client without a
//! certificate can speak, and the only message type that can be parsed for it.

use bytes::Bytes;
use skein_wire::frame::{self, FrameDecoder, FrameError};
use skein_wire::limits::{ENROL_REQUEST_BYTES_MAX, SIGNAL_MESSAGE_BYTES_MAX};
use skein_wire::prost::Message;
use skein_wire::signal::v1::{EnrolReply, EnrolRequest};

use super::{CloseReason, Ctx};

/// State of an enrol channel.
#[derive(Debug)]
pub enum EnrolState {
    /// The request is not whole.
    Reading(Vec<u8>),
    /// Control has it.
    Waiting,
}

impl EnrolState {
    /// Before the first byte.
    pub fn new() -> Self {
        Self::Reading(Vec::new())
    }

    /// Bytes kept for the peer.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Reading(partial) => partial.len(),
            Self::Waiting => 0,
        }
    }

    /// Takes plaintext; the request goes to control as soon as it is whole. Returns true then.
    pub fn receive(
        &mut self,
        input: &[u8],
        remote: &str,
        ctx: &Ctx<'_>,
    ) -> Result<bool, CloseReason> {
        let Self::Reading(partial) = self else {
            return Err(CloseReason::Malformed); // a second message
        };
        partial.extend_from_slice(input);
        let decoder = FrameDecoder::new(ENROL_REQUEST_BYTES_MAX);
        let found = decoder.next(partial).map_err(|error| match error {
            FrameError::TooLong { .. } => CloseReason::Oversize,
            FrameError::Malformed(_) => CloseReason::Malformed,
        })?;
        let Some((range, consumed)) = found else { return Ok(false) };
        if consumed != partial.len() {
            return Err(CloseReason::Malformed);
        }
        let request = Bytes::copy_from_slice(&partial[range]);
        if EnrolRequest::decode(request.clone()).is_err() {
            return Err(CloseReason::Malformed);
        }
        *self = Self::Waiting;
        if !ctx.shared.fleet.enrol(ctx.me, request, remote) {
            return Err(CloseReason::EnrolTimeout);
        }
        Ok(true)
    }
}

/// Control's reply as a frame, appended to `plain`.
pub fn answer(reply: &[u8], plain: &mut Vec<u8>) -> Result<(), CloseReason> {
    frame::encode_bytes(&[reply], SIGNAL_MESSAGE_BYTES_MAX, plain)
        .map_err(|_| CloseReason::Internal)
}

/// The reply when control cannot be asked.
pub fn unavailable() -> Vec<u8> {
    let error = "the control process is away; try again in a few seconds".to_owned();
    EnrolReply { error, ..Default::default() }.encode_to_vec()
}
