//! Skein's data process: shards, sessions, routing and sinks.
//!
//! One thread per core runs a [`shard`] with its own listeners, sessions and memory; a [`driver`]
//! moves bytes between its sockets and it. [`session`]s speak [`tls`] and one channel protocol.
//! Batches go to [`router`] workers, which own the agents' lanes and write [`sinks`]; [`files`]
//! serves transfers; [`fleet`] is the link to the control process; [`directory`] knows which agent
//! is where. [`process`] puts them together.

pub mod config;
pub mod directory;
pub mod driver;
pub mod files;
pub mod fleet;
pub mod limits;
pub mod metrics;
pub mod ports;
pub mod process;
pub mod router;
pub mod session;
pub mod shard;
pub mod sinks;
pub mod tls;
