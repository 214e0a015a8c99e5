//! Stories of the whole system: real binaries, real sockets, real kills. One file per behaviour.
//!
//! `SKEIN_SEED` chooses other moments for the kills, `SKEIN_KILLS` how many per role (20).

#![allow(clippy::unwrap_used)]

mod crashes;
mod disks;
mod identity;
mod joining;
mod metrics;
mod network;
mod pushing;
mod routing;
mod running;
mod selecting;
mod stalls;
mod strangers;
mod supervising;
mod tls;
mod watching;
mod world;
