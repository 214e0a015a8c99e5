//! TLS 1.3 over rustls's unbuffered API.
//!
//! rustls keeps no socket buffers in this mode: the shard lends one large buffer while bytes flow,
//! records are decrypted in it, and between two turns a session owns only the bytes of a record
//! that has not arrived whole. [`TlsSession`] is the adapter, [`TlsAcceptor`] what all sessions of
//! a process share, [`PeerIdentity`] what a client certificate says.

mod acceptor;
mod identity;
mod session;

pub use acceptor::{TlsAcceptor, TlsConfigError};
pub use identity::{IdentityError, PeerIdentity};
pub use session::{Flow, Received, TLS_RECORD_BYTES_MAX, TlsError, TlsSession};

#[cfg(test)]
pub(crate) mod tests;
