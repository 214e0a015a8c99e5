//! Skein's control process: store, identity, fleet registry, commands, transfers and APIs.

pub mod api;
pub mod store;
