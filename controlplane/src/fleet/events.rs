//! What comes from the fleet, sorted by who has to know. Each subject has a bounded queue of its
//! own, so that a flood of one (task output, say) does not delay another.

use skein_wire::fleet::v1::{FetchResult, SeedSent};
use skein_wire::ids::{AgentId, CommandId, TaskId, TransferId};
use skein_wire::signal::v1::{FileOffer, MeshReport, TaskOutput, TaskUpdate, TransferUpdate};
use tokio::sync::mpsc;

use crate::registry::Facts;

/// Events of one subject that wait for its worker. An output is at most 64 KiB, so tasks hold at
/// most 32 MiB here; the worker takes hundreds at a time.
pub const QUEUE_EVENTS: usize = 512;

/// Which work a dispatch serves, so that what cannot be delivered finds its way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A task's order.
    Task(TaskId),
    /// A transfer's order.
    Transfer(TransferId),
    /// Nobody waits for it.
    Other,
}

/// For the task service.
#[derive(Debug)]
pub enum TaskEvent {
    /// A report.
    Update(AgentId, TaskUpdate),
    /// A piece of output.
    Output(AgentId, TaskOutput),
    /// The agent did not accept an order.
    Refused(AgentId, CommandId, String),
    /// An agent has a session now.
    AgentUp(AgentId),
    /// These agents had no session; the order was dropped.
    Undeliverable(TaskId, Vec<AgentId>),
}

/// For the transfer service.
#[derive(Debug)]
pub enum TransferEvent {
    /// A report.
    Update(AgentId, TransferUpdate),
    /// A source agent has hashed its file, or cannot.
    Offer(AgentId, FileOffer),
    /// The agent did not accept an order.
    Refused(AgentId, CommandId, String),
    /// An agent has a session now.
    AgentUp(AgentId),
    /// These agents had no session; the order was dropped.
    Undeliverable(TransferId, Vec<AgentId>),
    /// A data process has registered and knows nothing of earlier orders.
    LinkUp(u64),
    /// What a member of a meshed transfer has gained.
    Mesh(AgentId, MeshReport),
    /// A file was taken from an agent, or could not be.
    Fetched(FetchResult),
    /// What a data process has sent of a file.
    Sent(SeedSent),
}

/// The sending ends of the subjects' queues.
#[derive(Clone, Debug)]
pub struct Inboxes {
    /// To the task service.
    pub tasks: mpsc::Sender<TaskEvent>,
    /// To the transfer service.
    pub transfers: mpsc::Sender<TransferEvent>,
    /// To the writer of facts.
    pub facts: mpsc::Sender<(AgentId, Facts)>,
}

/// The receiving ends.
#[derive(Debug)]
pub struct Outlets {
    /// Of the task service.
    pub tasks: mpsc::Receiver<TaskEvent>,
    /// Of the transfer service.
    pub transfers: mpsc::Receiver<TransferEvent>,
    /// Of the writer of facts.
    pub facts: mpsc::Receiver<(AgentId, Facts)>,
}

/// The queues.
pub fn queues() -> (Inboxes, Outlets) {
    let (tasks, tasks_out) = mpsc::channel(QUEUE_EVENTS);
    let (transfers, transfers_out) = mpsc::channel(QUEUE_EVENTS);
    let (facts, facts_out) = mpsc::channel(QUEUE_EVENTS);
    (
        Inboxes { tasks, transfers, facts },
        Outlets { tasks: tasks_out, transfers: transfers_out, facts: facts_out },
    )
}
