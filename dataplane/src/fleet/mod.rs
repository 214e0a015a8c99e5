//! The link to the control process: a Unix socket on which it listens.
//!
//! Sessions and data go on while control is away. Up: [`FleetSender`] is a queue bounded in
//! messages and bytes; who is connected is not queued at all but read from the directory, whole
//! after a reconnect and by changes then. Down: [`receiver`] turns control's messages into mails to
//! shards and calls to routers and files. What a data process needs to work without control (the
//! routing table, the revoked identities) is kept in files by [`persist`].

mod lanes;
mod link;
pub mod persist;
mod receiver;
mod sender;

pub use lanes::LaneBoard;
pub use link::{FleetLink, RegisterInfo};
pub use sender::FleetSender;
