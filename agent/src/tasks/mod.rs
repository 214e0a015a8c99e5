//! Scripts: taken at most once, run by a process that outlives us, reported until acknowledged.

pub mod records;
pub mod runner;
