//! Stories of the whole system: real binaries, real sockets, real kills. One file per behaviour.
//!
//! `SKEIN_SEED` chooses other moments for the kills, `SKEIN_KILLS` how many per role (20).

#![allow(clippy::unwrap_used)]

mod cancelling;
mod crashes;
mod disks;
mod failing_disks;
mod gears;
mod identity;
mod joining;
mod metrics;
mod network;
mod pushing;
mod refusing;
mod revoking;
mod rollouts;
mod routing;
mod running;
mod selecting;
mod sources;
mod spread;
mod spreading;
mod spreading_crashes;
mod stalls;
mod strangers;
mod supervising;
mod tls;
mod trees;
mod watching;
mod world;
