//! `skein-agent emit`: a local program's records, acknowledged when they are in the spool.
//!
//! The socket is `HOME/run/emit.sock`, open to the agent's own user. Messages have a length:
//!
//! ```text
//! message   0 payload bytes u32   4 type u8   5 ...           all integers big-endian
//! client     1 OPEN     version u8, data id u32               first, once
//!            2 RECORDS  request u64, records (bytes u32, record)*
//!            3 END      nothing follows; the server answers what is open and closes
//! server    16 READY    window bytes u32                      answer to OPEN
//!           17 KEPT     request u64                           it and all before are in the spool
//!           18 REFUSED  text                                  and the connection ends
//! ```
//! A client has at most the window of record bytes unanswered. A full spool answers late and reads
//! nothing meanwhile; it loses nothing.

pub mod client;
pub mod server;
mod wire;

pub use self::client::{EmitError, EmitReport, emit, emit_stdin};

/// Name of the socket in `HOME/run`.
pub const SOCKET_NAME: &str = "emit.sock";
