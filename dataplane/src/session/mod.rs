//! Sessions without I/O: TLS, HELLO and one channel protocol, as state machines.
//!
//! A [`Conn`] is given bytes, mails and time; it answers into its own bounded output. Until HELLO
//! has accepted a client certificate, the only message that its type can hold is an enrol request.
//! What all sessions share is [`Shared`], what a session may touch of its shard is [`Ctx`].

mod close;
mod conn;
mod data;
mod enrol;
mod file;
mod hello;
mod shared;
mod signal;

pub use close::CloseReason;
pub use conn::Conn;
pub use data::Blocked;
pub use shared::{Ctx, Liveness, Shared};
