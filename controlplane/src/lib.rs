//! Skein's control process: store, identity, fleet registry, commands, transfers and APIs.

pub mod api;
mod clock;
mod files;
pub mod fleet;
pub mod identity;
mod random;
pub mod registry;
pub mod store;
pub mod tasks;
