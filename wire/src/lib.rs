//! Skein's wire: messages, frames, batches and the state machines of sessions and lanes.
//!
//! Everything here is sans-I/O: bytes, events and time come in, bytes and actions go out. No
//! module reads a clock, opens a file, draws a random number or knows a runtime, so that server,
//! agent, simulator and fuzzers run the same code. The byte layouts are described in
//! `docs/protocol.md`; tests there and here hold the two together.

pub mod backoff;
pub mod batch;
pub mod command;
pub mod compress;
pub mod data;
pub mod frame;
pub mod hello;
pub mod ids;
pub mod lane;
pub mod limits;
pub mod liveness;
pub mod merkle;
pub mod records;
pub mod token;

/// Messages of the signal channel (generated from `proto/signal.proto`).
#[allow(missing_docs, clippy::all)]
pub mod signal {
    /// Version 1.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/skein.signal.v1.rs"));
    }
}

/// Messages between control and data process (generated from `proto/fleet.proto`).
#[allow(missing_docs, clippy::all)]
pub mod fleet {
    /// Version 1.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/skein.fleet.v1.rs"));
    }
}

pub use bytes::Bytes;
pub use prost;
