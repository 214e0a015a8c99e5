//! Scripts: taken at most once, run by a process that outlives us, reported until acknowledged.
//!
//! [`service`] is the thread that owns the [`journal`] and the tasks; [`runner`] is the process
//! that runs one script; [`records`] is what the two leave each other; [`recovery`] decides what a
//! restarted worker does.

pub mod journal;
mod mailbox;
pub mod records;
pub mod recovery;
pub mod replay;
pub mod runner;
pub mod service;
mod task;

pub use service::{Order, Settings, TaskHandle, TaskThread, TransferOrder, refuse, start};
