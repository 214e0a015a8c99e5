//! The few things of the kernel that std does not offer, wrapped so that the rest of the agent is
//! safe code. Only calls that Linux 3.10 has are used: no openat2, statx, pidfd, clone3,
//! close_range or memfd_create.

pub mod dir;
pub mod memory;
pub mod net;
pub mod process;
pub mod procfs;
pub mod user;
