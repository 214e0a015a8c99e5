//! Skein's control process: store, identity, fleet registry, commands, transfers and APIs.
//!
//! It decides and remembers; it carries no bytes of records or files. Agents are reached only
//! through [`fleet`], whose sessions live in data processes; what must survive is in [`store`] or,
//! for task output and cached files, in plain files that it names. Invariants: nothing is answered
//! before it is durable, no heartbeat ever becomes a write, and only this process holds the keys
//! that certify agents and sign commands.

pub mod api;
mod clock;
mod files;
pub mod fleet;
mod host;
pub mod identity;
mod jobs;
mod random;
pub mod registry;
pub mod routes;
mod run;
pub mod store;
pub mod tasks;
pub mod transfers;

pub use run::{Control, ControlConfig, run_control};
