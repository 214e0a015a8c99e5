//! Skein's wire: messages, frames, batches and the state machines of sessions and lanes.
//!
//! Everything here is sans-I/O: bytes, events and time come in, bytes and actions go out. No
//! module reads a clock, opens a file, or knows a runtime, so that server, agent, simulator and
//! fuzzers run the same code.

/// Messages of the signal channel (generated from `proto/signal.proto`).
#[allow(missing_docs)]
pub mod signal {
    /// Version 1.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/skein.signal.v1.rs"));
    }
}

/// Messages between control and data process (generated from `proto/fleet.proto`).
#[allow(missing_docs)]
pub mod fleet {
    /// Version 1.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/skein.fleet.v1.rs"));
    }
}
