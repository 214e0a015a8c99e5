//! One TLS session, without a socket and without standing buffers.
//!
//! The caller reads into a large buffer that it lends (`held` bytes first, see
//! [`TlsSession::lend`]) and calls [`TlsSession::receive`]. Whole records are decrypted there and
//! given to a closure; what is left, a part of a record or records that the closure did not want
//! yet, is kept in `held`, a vector of exactly that size and usually empty.
//!
//! Invariant: `held` is never longer than what the caller lent, and after a turn that was not
//! paused it is shorter than one record.

use std::sync::Arc;

use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};

use super::identity::{IdentityError, PeerIdentity};

/// Header, 2^14 bytes of plaintext and the expansion that TLS 1.3 allows (RFC 8446, 5.2).
pub const TLS_RECORD_BYTES_MAX: usize = 5 + (1 << 14) + 256;

/// What a record costs beside its plaintext: header, content type and AEAD tag.
const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;

/// Plaintext that fits one record.
const RECORD_PLAIN_BYTES_MAX: usize = 1 << 14;

/// A session after (or in) its handshake.
pub struct TlsSession {
    connection: Box<UnbufferedServerConnection>,
    held: Vec<u8>,
    established: bool,
    failed: bool,
    close_notify_sent: bool,
}

/// What the consumer of plaintext wants next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flow {
    /// The next record.
    Continue,
    /// Nothing more for now: keep the rest of the ciphertext.
    Pause,
}

/// What a turn ended with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Received {
    /// All whole records were consumed.
    All,
    /// The consumer paused; ciphertext is held.
    Paused,
    /// The peer sent close_notify: nothing more will come.
    Closed,
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer broke the protocol, or its certificate was refused.
    #[error("TLS: {0}")]
    Protocol(#[from] rustls::Error),
    /// Keys are used up; rustls refreshes them long before.
    #[error("TLS: the session's keys are used up")]
    Exhausted,
    /// 0-RTT data, which this server never offers.
    #[error("TLS: early data was never offered")]
    EarlyData,
    /// Plaintext was to be sent before the handshake had ended.
    #[error("TLS: the handshake has not ended")]
    NotEstablished,
    /// A part of a handshake message after the handshake. The one message allowed there has five
    /// bytes and no client splits it; rustls would remember positions in a buffer that is gone.
    #[error("TLS: fragmented message after the handshake")]
    FragmentedHandshake,
    /// The certificate names no agent.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl TlsSession {
    /// A session that waits for a ClientHello.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let connection = Box::new(UnbufferedServerConnection::new(config)?);
        Ok(Self {
            connection,
            held: Vec::new(),
            established: false,
            failed: false,
            close_notify_sent: false,
        })
    }

    /// Whether application data may be sent.
    pub fn is_established(&self) -> bool {
        self.established && !self.failed
    }

    /// Bytes of ciphertext kept between turns.
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Moves the held bytes to the front of the lent buffer and says how many they are; the next
    /// bytes of the socket belong behind them. [`Self::receive`] must follow with the same buffer.
    pub fn lend(&mut self, buffer: &mut [u8]) -> usize {
        let held = std::mem::take(&mut self.held);
        buffer[..held.len()].copy_from_slice(&held);
        held.len()
    }

    /// Nothing more will be received: forgets what is held.
    pub fn forget_held(&mut self) {
        self.held = Vec::new();
    }

    /// Takes back the held bytes of a buffer in which nothing new arrived.
    pub fn give_back(&mut self, held: &[u8]) {
        debug_assert!(self.held.is_empty());
        self.held = held.to_vec();
    }

    /// Processes what was received. Handshake bytes and alerts to send are appended to `out`, also
    /// when an error is returned: the peer should learn the reason.
    pub fn receive(
        &mut self,
        buffer: &mut [u8],
        out: &mut Vec<u8>,
        plaintext: impl FnMut(&[u8]) -> Flow,
    ) -> Result<Received, TlsError> {
        debug_assert!(self.held.is_empty());
        if self.failed {
            return Err(TlsError::NotEstablished);
        }
        let mut consumed = 0;
        let result = self.process(buffer, &mut consumed, out, plaintext);
        match result {
            Err(_) => self.flush_alert(&mut buffer[consumed..], out),
            Ok(Received::Closed) => {}
            Ok(_) => self.held = buffer[consumed..].to_vec(),
        }
        if self.established && matches!(result, Ok(Received::All)) && starts_whole(&self.held) {
            self.failed = true;
            return Err(TlsError::FragmentedHandshake);
        }
        result
    }

    fn process(
        &mut self,
        buffer: &mut [u8],
        consumed: &mut usize,
        out: &mut Vec<u8>,
        mut plaintext: impl FnMut(&[u8]) -> Flow,
    ) -> Result<Received, TlsError> {
        loop {
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut buffer[*consumed..]);
            let mut end = None;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    // 0-RTT is off, so the client's part of the handshake has ended.
                    self.established = true;
                    while let Some(record) = traffic.next_record() {
                        if plaintext(record?.payload) == Flow::Pause {
                            end = Some(Received::Paused);
                        }
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => append(out, |room| data.encode(room))?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(_) => {
                    self.established = true;
                    end = Some(Received::All);
                }
                ConnectionState::BlockedHandshake => end = Some(Received::All),
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    end = Some(Received::Closed)
                }
                ConnectionState::ReadEarlyData(_) => return Err(TlsError::EarlyData),
                _ => return Err(TlsError::NotEstablished),
            }
            *consumed += discard;
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    /// After an error rustls may hold an alert for the peer. It is asked once, with the same bytes
    /// because it may remember positions in them; the session is never touched again.
    fn flush_alert(&mut self, rest: &mut [u8], out: &mut Vec<u8>) {
        self.failed = true;
        let status = self.connection.process_tls_records(rest);
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state {
            let _ = append(out, |room| data.encode(room));
        }
    }

    /// Encrypts application data and appends the records to `out`.
    pub fn encrypt(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        if plaintext.is_empty() {
            return Ok(());
        }
        if !self.is_established() {
            return Err(TlsError::NotEstablished);
        }
        let records = plaintext.len().div_ceil(RECORD_PLAIN_BYTES_MAX);
        let mut room = plaintext.len() + records * RECORD_OVERHEAD_BYTES;
        loop {
            match self.connection.process_tls_records(&mut []).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let start = out.len();
                    out.resize(start + room, 0);
                    match traffic.encrypt(plaintext, &mut out[start..]) {
                        Ok(written) => {
                            out.truncate(start + written);
                            return Ok(());
                        }
                        Err(EncryptError::InsufficientSize(need)) => {
                            out.truncate(start);
                            room = need.required_size;
                        }
                        Err(EncryptError::EncryptExhausted) => {
                            out.truncate(start);
                            return Err(TlsError::Exhausted);
                        }
                    }
                }
                // A key update that rustls wants sent first.
                ConnectionState::EncodeTlsData(mut data) => append(out, |room| data.encode(room))?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                _ => return Err(TlsError::NotEstablished),
            }
        }
    }

    /// Tells the peer that nothing more will be sent. Does nothing before the handshake's end.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if !self.is_established() || self.close_notify_sent {
            return;
        }
        self.close_notify_sent = true;
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.connection.process_tls_records(&mut []).state
        {
            let mut alert = [0; 64];
            if let Ok(written) = traffic.queue_close_notify(&mut alert) {
                out.extend_from_slice(&alert[..written]);
            }
        }
    }

    /// The verified client certificate's owner; `None` when the client showed no certificate.
    pub fn peer(&self) -> Result<Option<PeerIdentity>, TlsError> {
        match self.connection.peer_certificates() {
            Some([leaf, ..]) => Ok(Some(PeerIdentity::from_der(leaf)?)),
            _ => Ok(None),
        }
    }
}

/// Whether the bytes start with a whole record: one that rustls has read and not let go.
fn starts_whole(held: &[u8]) -> bool {
    held.get(3..5).is_some_and(|length| {
        held.len() >= 5 + usize::from(u16::from_be_bytes([length[0], length[1]]))
    })
}

/// Appends what `encode` writes, asking it for the size first.
fn append(
    out: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), TlsError> {
    let start = out.len();
    let mut room = 0;
    loop {
        out.resize(start + room, 0);
        match encode(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                room = required_size;
            }
            Err(EncodeError::AlreadyEncoded) => {
                out.truncate(start);
                return Ok(());
            }
        }
    }
}
