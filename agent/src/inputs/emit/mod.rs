//! `skein-agent emit`: a local program's records, acknowledged when they are in the spool.
//!
//! The socket is `HOME/run/emit.sock`, open to the agent's own user. Messages have a length:
//!
//! ```text
//! message   0 payload bytes u32   4 type u8   5 ...           all integers big-endian
//! client     1 OPEN     version u8, data id u32, client 16    first, once
//!            2 RECORDS  number of the first u64, records (bytes u32, record)*
//! server    16 READY    window bytes u32, next u64            answer to OPEN
//!           17 KEPT     next u64
//!           18 REFUSED  text                                  and the connection ends
//! ```
//! A client numbers its records from 0; everything before `next` is in the spool. It has at most
//! the window of record bytes unanswered and closes when all are answered. A full spool answers
//! late and reads nothing meanwhile; it loses nothing.
//!
//! The agent may end in the middle, even by kill -9. The client, named by random bytes, waits for
//! the next one and sends again what was not answered; because its number is kept in the spool
//! together with the records themselves, the next agent knows which of them it has already.

pub mod client;
pub mod server;
mod wire;

pub use self::client::{EmitError, EmitReport, Emitter, emit_stdin};

/// Name of the socket in `HOME/run`.
pub const SOCKET_NAME: &str = "emit.sock";
