//! Runtime drivers: what moves bytes between sockets and a [`crate::shard::Shard`].
//!
//! The seam is the shard's own interface (accept, lend and received, output and sent, mail, turn);
//! a driver adds sockets, a clock and a wake. There is one driver now, tokio's current-thread
//! runtime per shard; a bare io_uring loop fits behind the same calls.

mod clock;
mod listen;
mod tokio_shard;

pub use clock::{monotonic_ms, unix_ms, unix_nanos};
pub use listen::{Addresses, Listeners, bind_all};
pub use tokio_shard::{ShardParts, run};
