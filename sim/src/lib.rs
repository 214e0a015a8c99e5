//! Simulator of file distribution: a fleet's network as fluid flows, in virtual time.
//!
//! From the bottom up: [`queue`] (virtual time), [`random`], [`network`] (who gets how much of which
//! link, and what arrives when), [`inventory`] and [`topology`] (a user's fleet), [`scenario`] (what
//! goes wrong), [`world`] (all of these under one clock), [`relay`] (distribution along a fixed
//! schedule), [`mesh`] (the shipping swarm and coordinator), [`bound`] (what no schedule can beat), [`report`] and [`plot`] (what came of it).

pub mod bound;
pub mod inventory;
pub mod mesh;
pub mod network;
pub mod outcome;
pub mod plot;
pub mod queue;
pub mod random;
pub mod relay;
pub mod report;
pub mod scenario;
pub mod topology;
pub mod units;
pub mod world;
