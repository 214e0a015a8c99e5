//! The router: lanes, routes, taps and the file sinks behind them.
//!
//! There is one worker per core, a thread that owns all lanes of the agents that hash to it,
//! whatever shard their sessions are on, so that a lane's batches pass one place in order. Shards
//! hand batches over through a bounded queue and receive acks, credits and holds in their mailbox.
//!
//! ```text
//! shards ──► queue ──► RouterCore ──► DiskOps ──► glommio or plain driver ──► files, checkpoint log
//!    ▲                 (no I/O)   ◄── DiskDones ◄─┘
//!    └── replies ──────┘
//! ```
//! Invariant: a batch is acknowledged only after its bytes and the checkpoint that names them are
//! stored; after a crash files are cut to their checkpoints, so nothing acknowledged is lost and
//! nothing is repeated.

mod calls;
mod core;
mod executor;
mod files;
mod flush;
mod ingest;
mod lanes;
mod meter;
mod queue;
mod shell;
mod streams;
mod table;
mod tap;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use skein_wire::batch::BatchHeader;
use skein_wire::data::{LaneOpen, LaneStat};
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::AgentId;

pub use self::core::{Limits, Now, RouterCore};
pub use queue::RouterHandle;
pub use worker::{DiskDriver, StartError, Started, start};

/// A session, wherever it lives.
#[derive(Clone, Copy, Eq, PartialEq, Hash, Debug)]
pub struct SessionRef {
    /// The shard that owns it.
    pub shard: u16,
    /// Its number there; never used twice.
    pub conn: u64,
}

/// What a worker is told.
#[derive(Debug)]
pub enum ToRouter {
    /// An agent opens a lane; its last session to do so has it.
    Open {
        /// Where answers go.
        session: SessionRef,
        /// The authenticated agent.
        agent: AgentId,
        /// What it holds.
        open: LaneOpen,
    },
    /// Records.
    Batch {
        /// Where they came from.
        session: SessionRef,
        /// The authenticated agent.
        agent: AgentId,
        /// Checked by the wire.
        header: BatchHeader,
        /// Not yet checked against its CRC.
        body: Vec<u8>,
    },
    /// The depth of a lane's spool.
    Stat {
        /// Where it came from.
        session: SessionRef,
        /// The authenticated agent.
        agent: AgentId,
        /// Numbers for reports.
        stat: LaneStat,
    },
    /// A session ended.
    Gone {
        /// Which.
        session: SessionRef,
        /// Whose.
        agent: AgentId,
    },
    /// The newest streams and routes.
    Table(Arc<fleet::RoutingTable>),
    /// Copy some records of a data id.
    TapStart(fleet::TapStart),
    /// End a tap.
    TapStop(u64),
    /// Flush, acknowledge and end.
    Stop,
}

/// What the workers report, for control.
#[derive(Debug)]
pub enum RouterReport {
    /// Lanes that changed, at most each second.
    Lanes(Vec<fleet::LaneState>),
    /// Records for a tap.
    Tap(fleet::TapRecords),
    /// All workers use the table of this revision.
    TableApplied(u64),
    /// A worker died of a fault in its runtime. Its lanes are stuck: end the process; the
    /// supervisor starts another, which recovers.
    Failed {
        /// Which.
        worker: usize,
        /// What it said.
        error: String,
    },
}

/// How sink files are written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DiskChoice {
    /// Ordinary calls on a thread beside each worker.
    #[default]
    Plain,
    /// A glommio executor for each worker; plain where the kernel refuses io_uring.
    Glommio,
}

/// What the router is started with.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Worker threads.
    pub workers: usize,
    /// Folder of the checkpoints.
    pub checkpoints: PathBuf,
    /// Bytes of batches that may wait for one worker.
    pub queue_bytes: usize,
    /// The disk driver.
    pub disk: DiskChoice,
    /// Bounds of each worker.
    pub limits: Limits,
}
