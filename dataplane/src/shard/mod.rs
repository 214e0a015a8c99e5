//! A shard without I/O: its sessions, timers, memory and mail.
//!
//! A shard is owned by one thread and driven through this narrow seam, so that the socket driver
//! can be tokio now and a bare io_uring loop later:
//!
//! * `accept` a connection, `lend` a buffer and say what was `received`, ask for `output` and say
//!   what was `sent`, tell that a socket was `closed`; `is_finished` says when to drop it;
//! * `mail` what other threads sent, `turn` the clock at every tick;
//! * after each of these, `take_dirty` names the sessions whose sockets have something to do and
//!   `take_waits` the router workers to wait for (then call `router_ready`).
//!
//! No byte passes a lock; nothing here blocks.

mod budget;
mod core;
mod mail;
mod slab;
mod wheel;

#[cfg(test)]
mod tests;

pub use budget::Budget;
pub use core::{AcceptRefused, STALL_MS, Shard};
pub use mail::{Delivery, ShardMail};
pub use slab::{ConnKey, Slab};
pub use wheel::{TICK_MS, TimerWheel};
