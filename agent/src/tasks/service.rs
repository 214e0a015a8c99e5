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

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use skein_observe::names;
use skein_wire::ids::{CommandId, TaskId};
use skein_wire::merkle::sha256;
use skein_wire::signal::v1::{
    CancelTransfer, CommandBody, CommandRefused, JoinTransfer, OfferFile, ReportAck, RunTask,
    TaskState, agent_message, command_body,
};

use super::journal::{CommandTaken, Done, Fact, Final, Intent, Journal};
use super::mailbox::{Inbox, Mailbox, mailbox};
use super::records::{self, Exit, Started};
use super::recovery::{Evidence, Recovery, decide};
use super::replay::Replay;
use super::runner::cgroup::Cgroup;
use super::runner::{CANCEL, TASK_VARIABLE, tree};
use super::task::{self, Phase, Task};
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
/// Attempts to start a runner that does not come up.
const ATTEMPTS_MAX: u32 = 20;
/// Between two of them.
const ATTEMPT_MS: u64 = 100;
/// Time for killing what a dead runner left.
const SWEEP: Duration = Duration::from_secs(5);
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
    Order(Order),
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
        self.mailbox.send(Letter::Order(order)).map_err(|_| "busy")
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
pub fn start(settings: Settings) -> io::Result<(TaskHandle, std::thread::JoinHandle<()>)> {
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
    let thread = std::thread::Builder::new()
        .name("tasks".into())
        .stack_size(256 * 1024)
        .spawn(move || service.run())?;
    Ok((TaskHandle { mailbox }, thread))
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

    // ------------------------------------------------------------------ waiting

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
                Letter::Order(order) => self.take_order(order, &mut accepted),
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

    // ------------------------------------------------------------------ commands

    fn take_order(&mut self, order: Order, accepted: &mut Vec<(CommandId, command_body::Kind)>) {
        let raw_id = order.body.command_id.clone();
        let result = self.check_order(order);
        match result {
            Ok(taken) => accepted.push(taken),
            Err(reason) => refuse(&self.settings.outbox, raw_id, &reason),
        }
    }

    fn check_order(&mut self, order: Order) -> Result<(CommandId, command_body::Kind), String> {
        let now = self.settings.clock.now_ms();
        let id =
            CommandId::from_slice(&order.body.command_id).map_err(|error| error.to_string())?;
        let kind = order.body.kind.ok_or("unknown_command")?;
        let taken = self.replay.take(id, order.not_after_ms, now);
        taken.map_err(|reason| reason.as_str().to_owned())?;
        if let command_body::Kind::RunTask(run) = &kind
            && let Err(reason) = self.check_task(run, order.not_after_ms)
        {
            self.replay.untake(&id);
            return Err(reason);
        }
        if let command_body::Kind::CancelTask(cancel) = &kind {
            self.bury(&cancel.task_id, order.not_after_ms)?;
        }
        let command_id = id.0.to_vec();
        let not_after_ms = order.not_after_ms;
        self.journal.append(Fact::Command(CommandTaken { command_id, not_after_ms }));
        Ok((id, kind))
    }

    /// A task that is new is put into the book and the journal's buffer.
    fn check_task(&mut self, run: &RunTask, not_after_ms: i64) -> Result<(), String> {
        let id = task::check(run)?;
        let encoded = Bytes::from(run.encode_to_vec());
        let digest = sha256(&encoded);
        let start_by_ms = not_after_ms.saturating_sub(self.settings.clock.skew_ms());
        if let Some(task) = self.tasks.get_mut(&id) {
            // The same order again, in another dispatch: its state is the answer.
            task.forget_sent();
            return if task.digest == digest { Ok(()) } else { Err("task_id_reused".into()) };
        }
        let tombstone = match self.settled.get(&id) {
            Some(settled) if settled.tombstone => true,
            Some(settled) if settled.digest == digest => return Err("already_done".into()),
            Some(_) => return Err("task_id_reused".into()),
            None => false,
        };
        if self.tasks.len() >= TASKS_MAX {
            return Err("too_many_unacknowledged_tasks".into());
        }
        if !tombstone && self.queue.len() >= self.settings.limits.queue_max as usize {
            return Err("task_queue_full".into());
        }
        let (task_id, run_task) = (id.0.to_vec(), encoded.clone());
        let intent = Intent { task_id, digest: digest.to_vec(), start_by_ms, run_task };
        self.journal.append(Fact::Intent(intent));
        let mut task = Task::new(id, digest, start_by_ms, encoded);
        task.cancelled = tombstone;
        self.tasks.insert(id, task);
        Ok(())
    }

    /// A cancel for a task that is not here wins over its later arrival.
    fn bury(&mut self, task_id: &[u8], not_after_ms: i64) -> Result<(), String> {
        let id = TaskId::from_slice(task_id).map_err(|error| error.to_string())?;
        if self.tasks.contains_key(&id) || self.settled.contains_key(&id) {
            return Ok(());
        }
        let skew = self.settings.clock.skew_ms();
        let until_ms = not_after_ms.saturating_sub(skew).saturating_add(SETTLED_MS);
        self.settle(id, Settled { until_ms, digest: Vec::new(), tombstone: true });
        Ok(())
    }

    fn settle(&mut self, id: TaskId, settled: Settled) {
        if self.settled.len() >= SETTLED_MAX {
            let oldest = self.settled.iter().min_by_key(|(_, settled)| settled.until_ms);
            if let Some(id) = oldest.map(|(id, _)| *id) {
                self.settled.remove(&id);
            }
        }
        self.journal.append(settled_fact(&id, &settled));
        self.settled.insert(id, settled);
    }

    /// Flushes the journal; only then anything of the commands happens.
    fn commit(&mut self, accepted: Vec<(CommandId, command_body::Kind)>) {
        if let Err(error) = self.journal.flush() {
            tracing::error!(%error, "the task journal cannot be written; commands are refused");
            for (id, kind) in accepted {
                self.replay.untake(&id);
                if let command_body::Kind::RunTask(run) = &kind
                    && let Ok(id) = TaskId::from_slice(&run.task_id)
                    && !self.queue.contains(&id)
                    && matches!(self.tasks.get(&id), Some(Task { phase: Phase::Waiting(_), .. }))
                {
                    self.tasks.remove(&id);
                }
                refuse(&self.settings.outbox, id.to_bytes(), "journal_unwritable");
            }
            return;
        }
        for (_, kind) in accepted {
            match kind {
                command_body::Kind::RunTask(run) => {
                    if let Ok(id) = TaskId::from_slice(&run.task_id) {
                        self.enqueue(id);
                    }
                }
                command_body::Kind::CancelTask(cancel) => {
                    if let Ok(id) = TaskId::from_slice(&cancel.task_id) {
                        self.cancel(&id);
                    }
                }
                command_body::Kind::JoinTransfer(join) => {
                    (self.settings.transfers)(TransferOrder::Join(join));
                }
                command_body::Kind::OfferFile(offer) => {
                    (self.settings.transfers)(TransferOrder::Offer(offer));
                }
                command_body::Kind::CancelTransfer(cancel) => {
                    (self.settings.transfers)(TransferOrder::Cancel(cancel));
                }
            }
        }
    }

    fn enqueue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if !matches!(task.phase, Phase::Waiting(_)) || self.queue.contains(&id) {
            return;
        }
        if task.cancelled {
            self.over(&id, TaskState::Cancelled, "cancelled before it started");
        } else {
            self.queue.push_back(id);
        }
    }

    fn cancel(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.cancelled = true;
        match &mut task.phase {
            Phase::Waiting(_) => {
                self.queue.retain(|queued| queued != id);
                self.over(id, TaskState::Cancelled, "cancelled before it started");
            }
            // A runner that is just ending reports that end.
            Phase::Running(stream) => {
                let _ = stream.write(&[CANCEL]);
            }
            // The server has not heard that it is over.
            Phase::Final { .. } => task.forget_sent(),
            Phase::Unsure { .. } | Phase::Sweeping => {}
        }
    }

    // ------------------------------------------------------------------ running

    fn running(&self) -> usize {
        let active = |task: &&Task| !matches!(task.phase, Phase::Waiting(_) | Phase::Final { .. });
        self.tasks.values().filter(active).count()
    }

    fn start_waiting(&mut self) {
        let wall = clock::wall_ms();
        let late = |task: &Task| task.start_by_ms < wall;
        let overdue: Vec<TaskId> =
            self.queue.iter().filter(|id| self.tasks.get(id).is_some_and(late)).copied().collect();
        for id in overdue {
            self.queue.retain(|queued| *queued != id);
            self.over(&id, TaskState::Refused, "its latest start passed while it was queued");
        }
        let mut free =
            (self.settings.limits.concurrent_max as usize).saturating_sub(self.running());
        while free > 0
            && let Some(id) = self.queue.pop_front()
        {
            self.launch(&id);
            free -= 1;
        }
    }

    fn launch(&mut self, id: &TaskId) {
        let dir = self.dir(id);
        let limits = &self.settings.limits;
        let Some(task) = self.tasks.get_mut(id) else { return };
        let run_task = match &task.phase {
            Phase::Waiting(run_task) | Phase::Unsure { run_task, .. } => run_task.clone(),
            _ => return,
        };
        task.attempts += 1;
        let prepared = task::prepare(&dir, &run_task, limits.output_bytes_max, limits.cgroup);
        let started = prepared.and_then(|()| spawn_runner(&self.settings.runner, &dir));
        match started {
            Ok((stream, child)) => {
                self.children.push(child);
                // The body is kept until `started` shows that it is not needed again.
                task.phase = Phase::Running(stream);
            }
            Err(error) => {
                let text = format!("the task could not be prepared: {error}");
                self.over(id, TaskState::Refused, &text);
            }
        }
    }

    /// Decides about tasks whose runner is gone, or was left by an earlier worker.
    fn decide_unsure(&mut self) {
        let now = clock::now_ms();
        let due = |task: &&Task| matches!(task.phase, Phase::Unsure { at_ms, .. } if at_ms <= now);
        let ids: Vec<TaskId> = self.tasks.values().filter(due).map(|task| task.id).collect();
        for id in ids {
            self.decide(&id);
        }
    }

    fn decide(&mut self, id: &TaskId) {
        let dir = self.dir(id);
        let exit = records::read::<Exit>(&dir, "exit");
        let started = records::read::<Started>(&dir, "started").unwrap_or_default();
        // A runner holds its socket before it writes `started`, so a connection is life itself.
        let stream = connect(&dir);
        let Some(task) = self.tasks.get_mut(id) else { return };
        let evidence = Evidence {
            exit: matches!(exit, Ok(Some(_))),
            started: started.is_some() || dir.join("started").exists(),
            runner_alive: started.as_ref().is_some_and(|s| s.runner().is_alive()) && stream.is_ok(),
            late: task.start_by_ms < clock::wall_ms(),
            cancelled: task.cancelled,
        };
        match (decide(evidence), stream) {
            (Recovery::Report, _) => {
                if let Ok(Some(exit)) = exit {
                    self.ended(id, &exit);
                }
            }
            (Recovery::Attach, Ok(mut stream)) => {
                if let Some(started) = &started {
                    task.set_started(started);
                }
                if task.cancelled {
                    let _ = stream.write(&[CANCEL]);
                }
                task.phase = Phase::Running(stream);
                // It may have written its exit between our look and our connection.
                self.refresh(id, false);
            }
            (Recovery::Abort | Recovery::Attach, _) => self.sweep(id, started.as_ref()),
            // Another runner is coming up: it has the socket and will write `started`.
            (_, Ok(mut stream)) => {
                if task.cancelled {
                    let _ = stream.write(&[CANCEL]);
                }
                task.phase = Phase::Running(stream);
            }
            (Recovery::Run, _) => self.run_again(id),
            (Recovery::Refuse, _) => {
                self.over(
                    id,
                    TaskState::Refused,
                    "its latest start passed while the agent was down",
                );
            }
            (Recovery::Cancel, _) => {
                self.over(id, TaskState::Cancelled, "cancelled before it started");
            }
        }
    }

    /// No runner came up, or this worker is new: at most once is kept by the runner's lock.
    fn run_again(&mut self, id: &TaskId) {
        let body = self.body(id);
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.attempts >= ATTEMPTS_MAX {
            return self.over(id, TaskState::Refused, "its runner did not come up");
        }
        let Some(body) = body else {
            return self.over(id, TaskState::Aborted, "its order was lost with the agent");
        };
        if task.attempts > 0 {
            std::thread::sleep(Duration::from_millis(ATTEMPT_MS));
        }
        task.phase = Phase::Unsure { at_ms: clock::now_ms(), run_task: body };
        self.launch(id);
    }

    /// The order of a task, from memory or rebuilt from its folder.
    fn body(&self, id: &TaskId) -> Option<Bytes> {
        match &self.tasks.get(id)?.phase {
            Phase::Waiting(body) | Phase::Unsure { run_task: body, .. } if !body.is_empty() => {
                Some(body.clone())
            }
            _ => rebuild(&self.dir(id)),
        }
    }

    /// Kills what a dead runner left, off this thread: looking through every process takes time.
    fn sweep(&mut self, id: &TaskId, started: Option<&Started>) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.phase = Phase::Sweeping;
        let same_boot = started.is_some_and(|s| s.boot_id == crate::sys::procfs::boot_id());
        if !same_boot {
            return self.swept(id, 0);
        }
        let cgroup = started.and_then(|started| Cgroup::existing(&started.cgroup));
        let (mailbox, id, mark) = (self.mailbox.clone(), *id, format!("{TASK_VARIABLE}={id}"));
        let sweep = move || {
            let alive = tree::kill_leftovers(cgroup, &mark, SWEEP);
            let _ = mailbox.send(Letter::Swept(id, alive));
        };
        if std::thread::Builder::new().name("sweep".into()).spawn(sweep).is_err() {
            self.swept(&id, 0);
        }
    }

    fn swept(&mut self, id: &TaskId, alive: usize) {
        let text = match alive {
            0 => "its runner was killed, or the host was restarted, in mid-script".to_owned(),
            count => format!("its runner was killed; {count} of its processes could not be"),
        };
        self.over(id, TaskState::Aborted, &text);
    }

    // ------------------------------------------------------------------ the end

    fn ended(&mut self, id: &TaskId, exit: &Exit) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.set_exit(exit);
            let seconds = (exit.ended_ms - exit.started_ms).max(0) as f64 / 1000.0;
            metrics::histogram!(names::AGENT_TASK_SECONDS).record(seconds);
            self.finalize(id);
        }
    }

    fn over(&mut self, id: &TaskId, state: TaskState, error: &str) {
        let dir = self.dir(id);
        if let Some(task) = self.tasks.get_mut(id) {
            task.set_over(state, error, &dir, clock::wall_ms());
            self.finalize(id);
        }
    }

    fn finalize(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let state = task.update.state().as_str_name().trim_start_matches("TASK_STATE_");
        metrics::counter!(names::AGENT_TASKS, "state" => state.to_ascii_lowercase()).increment(1);
        task.phase = Phase::Final { since_ms: clock::now_ms() };
        self.journal.append(Fact::Final(Final { update: Some(task.update.clone()) }));
    }

    fn acknowledged(&mut self, ack: &ReportAck) {
        let Ok(id) = TaskId::from_slice(&ack.task_id) else { return };
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if !ack.final_state {
            task.acked = ack.output_offset;
            task.in_flight = None;
            return;
        }
        if !task.is_final() {
            return;
        }
        let until_ms = task.start_by_ms.saturating_add(SETTLED_MS);
        let digest = task.digest.to_vec();
        self.tasks.remove(&id);
        self.settle(id, Settled { until_ms, digest, tombstone: false });
        let _ = std::fs::remove_dir_all(self.dir(&id));
    }

    // ------------------------------------------------------------------ reports

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

    // ------------------------------------------------------------------ the book

    fn restore(&mut self, facts: Vec<Fact>) {
        for fact in facts {
            self.restore_fact(fact);
        }
        let now = self.settings.clock.now_ms();
        self.replay.forget(now);
        let mut known = HashSet::new();
        let mut waiting = Vec::new();
        for task in self.tasks.values_mut() {
            known.insert(task.id.to_string());
            if let Phase::Waiting(run_task) = &task.phase {
                task.phase = Phase::Unsure { at_ms: 0, run_task: run_task.clone() };
                waiting.push(task.id);
            }
        }
        for id in waiting {
            // Those that wait for their turn must not all start at once.
            let dir = self.dir(&id);
            let begun = ["started", "exit", "spec"].iter().any(|name| dir.join(name).exists());
            if let Some(task) = self.tasks.get_mut(&id)
                && !begun
                && let Phase::Unsure { run_task, .. } = &task.phase
            {
                task.phase = Phase::Waiting(run_task.clone());
                self.queue.push_back(id);
            }
        }
        self.decide_unsure();
        for entry in std::fs::read_dir(&self.settings.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<TaskId>().is_ok() && !known.contains(&name) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    fn restore_fact(&mut self, fact: Fact) {
        match fact {
            Fact::Command(taken) => {
                if let Ok(id) = CommandId::from_slice(&taken.command_id) {
                    self.replay.restore(id, taken.not_after_ms);
                }
            }
            Fact::Intent(intent) => {
                let digest = <[u8; 32]>::try_from(intent.digest.as_slice());
                if let (Ok(id), Ok(digest)) = (TaskId::from_slice(&intent.task_id), digest) {
                    let mut task = Task::new(id, digest, intent.start_by_ms, intent.run_task);
                    task.cancelled = self.settled.get(&id).is_some_and(|settled| settled.tombstone);
                    self.tasks.insert(id, task);
                }
            }
            Fact::Final(Final { update: Some(update) }) => {
                let id = TaskId::from_slice(&update.task_id).ok();
                if let Some(task) = id.and_then(|id| self.tasks.get_mut(&id)) {
                    task.update = update;
                    task.phase = Phase::Final { since_ms: 0 };
                }
            }
            Fact::Final(_) => {}
            Fact::Done(done) => self.restore_settled(done, false),
            Fact::Tombstone(done) => self.restore_settled(done, true),
        }
    }

    fn restore_settled(&mut self, done: Done, tombstone: bool) {
        let Ok(id) = TaskId::from_slice(&done.task_id) else { return };
        if !tombstone {
            self.tasks.remove(&id);
        }
        let (until_ms, digest) = (done.until_ms, done.digest);
        self.settled.insert(id, Settled { until_ms, digest, tombstone });
    }

    /// Writes what needs no flush, and rewrites the journal when it has grown.
    fn tidy(&mut self) {
        let written = self.journal.write();
        if let Err(error) = written {
            tracing::error!(%error, "the task journal cannot be written");
        }
        if !self.journal.wants_compaction() {
            return;
        }
        self.replay.forget(self.settings.clock.now_ms());
        let wall = clock::wall_ms();
        self.settled.retain(|_, settled| settled.until_ms > wall);
        let facts: Vec<Fact> = self.live_facts();
        if let Err(error) = self.journal.compact(facts.into_iter()) {
            tracing::error!(%error, "the task journal cannot be rewritten");
        }
    }

    fn live_facts(&self) -> Vec<Fact> {
        let taken = self.replay.iter().map(|(id, not_after_ms)| {
            Fact::Command(CommandTaken { command_id: id.0.to_vec(), not_after_ms })
        });
        let settled = self.settled.iter().map(|(id, settled)| settled_fact(id, settled));
        let tasks = self.tasks.values().flat_map(|task| {
            let run_task = match &task.phase {
                Phase::Waiting(body) | Phase::Unsure { run_task: body, .. } => body.clone(),
                _ => Bytes::new(),
            };
            let intent = Fact::Intent(Intent {
                task_id: task.id.0.to_vec(),
                digest: task.digest.to_vec(),
                start_by_ms: task.start_by_ms,
                run_task,
            });
            let update = task.is_final().then(|| Final { update: Some(task.update.clone()) });
            std::iter::once(intent).chain(update.map(Fact::Final))
        });
        taken.chain(settled).chain(tasks).collect()
    }
}

fn settled_fact(id: &TaskId, settled: &Settled) -> Fact {
    let done =
        Done { task_id: id.0.to_vec(), until_ms: settled.until_ms, digest: settled.digest.clone() };
    if settled.tombstone { Fact::Tombstone(done) } else { Fact::Done(done) }
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

/// Starts a runner whose standard input is a socket to us.
fn spawn_runner(
    binary: &std::path::Path,
    dir: &std::path::Path,
) -> io::Result<(UnixStream, Child)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(binary)
        .arg0("skein-agent")
        .arg("runner")
        .arg("--dir")
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((ours, child))
}

/// Connects to the runner of a folder. Its socket is reached through the open folder, because a
/// socket's address is limited to 108 bytes.
fn connect(dir: &std::path::Path) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let folder = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/ctl.sock", folder.as_raw_fd());
    let stream = UnixStream::connect(path)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The order as its folder has it.
fn rebuild(dir: &std::path::Path) -> Option<Bytes> {
    let spec = records::read::<records::Spec>(dir, "spec").ok()??;
    let run = RunTask {
        task_id: spec.task_id.into(),
        script: std::fs::read(dir.join("script")).ok()?.into(),
        interpreter: spec.interpreter,
        args: spec.args,
        user: spec.user,
        timeout_ms: u32::try_from(spec.timeout_ms).unwrap_or(u32::MAX),
        kill_grace_ms: u32::try_from(spec.kill_grace_ms).unwrap_or(u32::MAX),
        output_bytes_max: spec.output_bytes_max,
    };
    Some(run.encode_to_vec().into())
}
