//! The task thread: takes verified commands, journals them, starts and watches runners, reports.
//!
//! It is the one place that waits for the journal's flushes, so it is a plain thread beside the
//! link. Many commands that came together share one flush:
//!
//! ```text
//!   letters ─► checks ─► journal buffer ─► one flush ─► accepted, started, forwarded
//! ```
//! Everything reported is read from the task's own state, so a lost report is sent again by the
//! next session, and a report that finds no room waits for nothing else.

mod book;
mod intake;
mod running;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skein_observe::names;
use skein_wire::ids::TaskId;
use skein_wire::signal::v1::{
    CancelTransfer, CommandBody, CommandRefused, JoinTransfer, OfferFile, RemovePeers, ReportAck,
    TransferPeers, agent_message,
};
use tokio::sync::oneshot;

use super::journal::Journal;
use super::mailbox::{Inbox, Mailbox, mailbox};
use super::records::{self, Exit, Started};
use super::replay::Replay;
use super::task::{Phase, Task};
use crate::clock::{self, ServerClock};
use crate::config::TasksConfig;
use crate::home::private_dir;
use crate::link::{LinkEvent, Outbox, Priority};
use crate::sys::process::wait_readable;

/// Tasks known at the same time, running, queued and not yet acknowledged: their folders and
/// journal entries are what a server that never acknowledges can make us keep.
const TASKS_MAX: usize = 10_000;
/// Ids of finished and cancelled tasks remembered, so that a second order with one is not run.
const SETTLED_MAX: usize = 65_536;
/// How long such an id is remembered beyond its latest start.
const SETTLED_MS: i64 = 24 * 3600 * 1000;
/// The thread calls nothing deep.
const STACK_BYTES: usize = 256 * 1024;
/// Looks at unacknowledged reports while a session is up.
const LOOK_MS: u64 = 5_000;

/// A file order that passed the same checks as a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TransferOrder {
    /// Fetch a file.
    Join(JoinTransfer),
    /// Hash a file and offer it.
    Offer(OfferFile),
    /// End a transfer.
    Cancel(CancelTransfer),
    /// Exchange pieces with these.
    Peers(TransferPeers),
    /// And no longer with these.
    RemovePeers(RemovePeers),
}

/// A command whose signature, target and deadline were verified.
#[derive(Clone, Debug)]
pub struct Order {
    /// What to do.
    pub body: CommandBody,
    /// Server time.
    pub not_after_ms: i64,
}

enum Letter {
    Order(Box<Order>),
    Ack(ReportAck),
    Link(LinkEvent),
    Swept(TaskId, usize),
    Stop,
}

/// What the service needs to know.
pub struct Settings {
    /// `HOME/tasks`.
    pub dir: PathBuf,
    /// Limits.
    pub limits: TasksConfig,
    /// The binary that has the `runner` subcommand.
    pub runner: PathBuf,
    /// Where reports go.
    pub outbox: Outbox,
    /// Server time.
    pub clock: Arc<ServerClock>,
    /// Takes file orders.
    pub transfers: Box<dyn Fn(TransferOrder) + Send>,
}

/// The running service; cheap to clone.
#[derive(Clone)]
pub struct TaskHandle {
    mailbox: Mailbox<Letter>,
}

impl TaskHandle {
    /// Hands over a verified command. When the service is behind, the command is refused.
    pub fn order(&self, order: Order) -> Result<(), &'static str> {
        self.mailbox.send(Letter::Order(Box::new(order))).map_err(|_| "busy")
    }

    /// The server has stored something of a task.
    pub fn acknowledged(&self, ack: ReportAck) {
        // A lost acknowledgement is asked for again by the resend.
        let _ = self.mailbox.send(Letter::Ack(ack));
    }

    /// Ends the thread; runners go on.
    pub fn stop(&self) {
        let _ = self.mailbox.send(Letter::Stop);
    }
}

/// Opens the journal, decides about every task in it, and starts the thread.
pub fn start(settings: Settings) -> io::Result<(TaskHandle, TaskThread)> {
    private_dir(&settings.dir)?;
    let (mailbox, inbox) = mailbox()?;
    let to_self = mailbox.clone();
    settings.outbox.subscribe(move |event| {
        let _ = to_self.send(Letter::Link(event));
    });
    let (journal, facts, torn) = Journal::open(&settings.dir.join("journal"))?;
    if torn > 0 {
        tracing::warn!(bytes = torn, "cut the torn end of the task journal");
    }
    let mut service = Service {
        settings,
        journal,
        inbox,
        mailbox: mailbox.clone(),
        tasks: HashMap::new(),
        queue: VecDeque::new(),
        settled: HashMap::new(),
        replay: Replay::default(),
        children: Vec::new(),
    };
    service.restore(facts);
    let (alive, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("tasks".into()).stack_size(STACK_BYTES).spawn(
        move || {
            service.run();
            drop(alive);
        },
    )?;
    Ok((TaskHandle { mailbox }, TaskThread { thread, ended }))
}

/// The service's thread.
#[derive(Debug)]
pub struct TaskThread {
    thread: std::thread::JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl TaskThread {
    /// Resolves when the thread is over; before [`TaskHandle::stop`] that is a fault that only a
    /// new worker mends.
    pub async fn ended(&mut self) {
        // Nothing is ever sent: the other end is dropped.
        let _ = (&mut self.ended).await;
    }

    /// Waits for the end.
    pub fn join(self) {
        // A panic was reported when it happened.
        let _ = self.thread.join();
    }
}

/// An id that must not run again.
struct Settled {
    until_ms: i64,
    digest: Vec<u8>,
    tombstone: bool,
}

struct Service {
    settings: Settings,
    journal: Journal,
    inbox: Inbox<Letter>,
    mailbox: Mailbox<Letter>,
    tasks: HashMap<TaskId, Task>,
    queue: VecDeque<TaskId>,
    settled: HashMap<TaskId, Settled>,
    replay: Replay,
    children: Vec<Child>,
}

impl Service {
    fn run(mut self) {
        loop {
            self.start_waiting();
            self.report();
            metrics::gauge!(names::AGENT_TASKS_RUNNING).set(self.running() as f64);
            let woken = match self.wait() {
                Ok(woken) => woken,
                Err(error) => {
                    tracing::error!(%error, "the task thread cannot wait for its descriptors");
                    std::thread::sleep(Duration::from_secs(1));
                    Vec::new()
                }
            };
            for id in woken {
                self.hear(&id);
            }
            if self.read_letters() {
                return;
            }
            self.decide_unsure();
            self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            self.tidy();
        }
    }

    fn dir(&self, id: &TaskId) -> PathBuf {
        self.settings.dir.join(id.to_string())
    }

    /// Waits for letters, runners and the next time something is due; says whose runner spoke.
    fn wait(&self) -> io::Result<Vec<TaskId>> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.inbox.fd()];
        let mut ids = Vec::new();
        for task in self.tasks.values() {
            if let Phase::Running(stream) = &task.phase {
                fds.push(stream.as_fd());
                ids.push(task.id);
            }
        }
        let ready = wait_readable(&fds, self.next_look())?;
        let spoke = ids.into_iter().zip(&ready[1..]).filter(|(_, ready)| **ready);
        Ok(spoke.map(|(id, _)| id).collect())
    }

    fn next_look(&self) -> Option<u64> {
        let now = clock::now_ms();
        let unsure = self.tasks.values().filter_map(|task| match task.phase {
            Phase::Unsure { at_ms, .. } => Some(at_ms.saturating_sub(now)),
            _ => None,
        });
        let reports = self.settings.outbox.is_up() && !self.tasks.is_empty();
        // A task that waits for its turn may run out of time.
        let patient = (reports || !self.queue.is_empty()).then_some(LOOK_MS);
        unsure.chain(patient).min()
    }

    fn hear(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let Phase::Running(stream) = &mut task.phase else { return };
        let mut buffer = [0; 256];
        let gone = match stream.read(&mut buffer) {
            Ok(length) => length == 0,
            Err(error) => {
                !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
            }
        };
        self.refresh(id, gone);
    }

    /// Looks at what the runner wrote.
    fn refresh(&mut self, id: &TaskId, gone: bool) {
        let dir = self.dir(id);
        match records::read::<Exit>(&dir, "exit") {
            Ok(Some(exit)) => return self.ended(id, &exit),
            Ok(None) => {}
            Err(error) => tracing::error!(task = %id, %error, "exit record"),
        }
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.update.pid == 0
            && let Ok(Some(started)) = records::read::<Started>(&dir, "started")
        {
            task.set_started(&started);
        }
        if gone {
            task.phase = Phase::Unsure { at_ms: clock::now_ms(), run_task: Bytes::new() };
        }
    }

    fn read_letters(&mut self) -> bool {
        let mut accepted = Vec::new();
        let mut stop = false;
        for letter in self.inbox.take() {
            match letter {
                Letter::Order(order) => self.take_order(*order, &mut accepted),
                Letter::Ack(ack) => self.acknowledged(&ack),
                Letter::Link(LinkEvent::Up) => {
                    self.tasks.values_mut().for_each(Task::forget_sent);
                }
                Letter::Link(_) => {}
                Letter::Swept(id, alive) => self.swept(&id, alive),
                Letter::Stop => stop = true,
            }
        }
        if !accepted.is_empty() {
            self.commit(accepted);
        }
        stop
    }

    fn report(&mut self) {
        if !self.settings.outbox.is_up() {
            return;
        }
        let now = clock::now_ms();
        for task in self.tasks.values_mut() {
            let dir = self.settings.dir.join(task.id.to_string());
            // Output is read only when there is room for it.
            if self.settings.outbox.has_room(Priority::Bulk) {
                match task.due_output(&dir, now) {
                    Ok(Some(chunk)) => {
                        let sent = agent_message::Kind::TaskOutput(chunk);
                        if self.settings.outbox.push(Priority::Bulk, sent) {
                            task.in_flight = Some(now);
                        }
                    }
                    Ok(None) => {}
                    Err(error) => tracing::error!(task = %task.id, %error, "cannot read output"),
                }
            }
            if task.due_update(now) {
                let update = agent_message::Kind::TaskUpdate(task.update.clone());
                if self.settings.outbox.push(Priority::Report, update) {
                    task.sent = Some((task.update.state, now));
                }
            }
        }
    }
}

/// Says that a command is not obeyed, and counts it.
pub fn refuse(outbox: &Outbox, command_id: Bytes, reason: &str) {
    // Text from outside must not become label values.
    let known = reason.len() <= 40 && reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let label = if known { reason.to_owned() } else { "malformed".to_owned() };
    metrics::counter!(names::AGENT_COMMANDS_REFUSED, "reason" => label).increment(1);
    tracing::warn!(reason, "command refused");
    let refused = CommandRefused { command_id, reason: reason.to_owned() };
    outbox.push(Priority::Report, agent_message::Kind::CommandRefused(refused));
}
