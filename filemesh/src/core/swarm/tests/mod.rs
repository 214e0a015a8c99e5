//! Whole swarms over a small network in virtual time. Everything is decided by seeds that the
//! assertions print.

mod borders;
mod faults;
mod fuzz;
mod net;
mod runs;
