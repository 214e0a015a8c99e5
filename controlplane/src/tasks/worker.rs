//! The one task that moves all tasks forward.
//!
//! It takes what waits (reports, output, agents that came back, orders of the API, a tick), works
//! on it as one group, and makes it durable together: output pieces with one flush per file, ends
//! with one batch in the store. Only then are states entered and agents acknowledged. So a fleet
//! that ends at the same moment costs a handful of flushes, and nothing is seen before it is kept.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use skein_observe::names;
use skein_wire::ids::{AgentId, CommandId, TaskId};
use skein_wire::signal::v1::{CancelTask, ReportAck, command_body, server_message};
use tokio::sync::mpsc;

use super::automaton::{Final, Report};
use super::output::Piece;
use super::{
    OUTPUT_DISK_BYTES_MAX, Order, TASK_HOSTS_MAX, TASK_KEEP_MS, TASKS_KEPT_MAX, TaskError, Tasks,
    record, state_word,
};
use crate::api::types::TaskHostState;
use crate::clock;
use crate::fleet::events::{QUEUE_EVENTS, TaskEvent};
use crate::fleet::{Fleet, Purpose};
use crate::store::Batch;

/// Between two looks at deadlines.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two looks at retention.
const TICKS_PER_SWEEP: u32 = 40;
/// An order's signature is good at least this long, for agents whose message waits a moment.
const ORDER_LIFE_MS: i64 = 15_000;
/// How long a cancel's signature is good; it is signed anew whenever its agent comes back.
const CANCEL_LIFE_MS: i64 = 3_600_000;
/// Commands whose refusal is still expected.
const COMMANDS_MAX: usize = 65_536;
/// Ends stored by one batch.
const ENDS_PER_BATCH: usize = 1_000;

/// Runs the tasks.
pub struct Worker {
    tasks: Arc<Tasks>,
    fleet: Arc<Fleet>,
    commands: HashMap<CommandId, TaskId>,
    commands_in_order: VecDeque<CommandId>,
    ticks: u32,
}

/// What one group of events comes to.
#[derive(Default)]
struct Group {
    pieces: Vec<(AgentId, Piece)>,
    ends: Vec<(TaskId, usize, Final)>,
    /// Hosts with an end in this group, so that a repeat within it is not a second end.
    ending: HashSet<(TaskId, usize)>,
    acks: Vec<(AgentId, ReportAck)>,
    /// Hosts that have ended, or have new output; those that are complete are told to forget.
    over: Vec<(TaskId, usize)>,
    /// Tasks whose waiting hosts are to be sent their order.
    send: HashMap<TaskId, Vec<AgentId>>,
    cancel: HashMap<TaskId, Vec<AgentId>>,
}

impl Group {
    fn end(&mut self, task: TaskId, place: usize, run: Final) {
        if self.ending.insert((task, place)) {
            self.ends.push((task, place, run));
        }
    }
}

impl Worker {
    /// For a service and the fleet.
    pub fn new(tasks: Arc<Tasks>, fleet: Arc<Fleet>) -> Self {
        let (commands, commands_in_order) = (HashMap::new(), VecDeque::new());
        Self { tasks, fleet, commands, commands_in_order, ticks: 0 }
    }

    /// Until the process ends.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<TaskEvent>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = Vec::new();
        loop {
            let mut group = Group::default();
            tokio::select! {
                count = events.recv_many(&mut taken, QUEUE_EVENTS) => {
                    if count == 0 {
                        return;
                    }
                    taken.drain(..).for_each(|event| self.event(event, &mut group));
                }
                Some(order) = orders.recv() => self.order(order, &mut group).await,
                _ = tick.tick() => self.tick(&mut group).await,
            }
            self.settle(group).await;
        }
    }

    fn event(&mut self, event: TaskEvent, group: &mut Group) {
        let now_ms = clock::now_ms();
        let mut entries = self.tasks.lock();
        match event {
            TaskEvent::Update(agent, update) => {
                let Ok(id) = TaskId::from_slice(&update.task_id) else { return };
                let found = entries.get_mut(&id).and_then(|entry| {
                    let place = entry.place(&agent)?;
                    Some((place, entry.hosts[place].report(&update, now_ms)))
                });
                match found {
                    Some((_, Report::Repeat | Report::Progress)) => {}
                    Some((place, Report::End(run))) => group.end(id, place, run),
                    // Known to be over: the agent may forget, once its output is here.
                    Some((place, Report::Ended)) => group.over.push((id, place)),
                    // Of a task that left the history.
                    None => group.acks.push((agent, ack(&id, 0, true))),
                }
            }
            TaskEvent::Output(agent, output) => {
                let Ok(id) = TaskId::from_slice(&output.task_id) else { return };
                let length = output.data.len() as u64;
                let Some(entry) = entries.get(&id) else {
                    group.acks.push((agent, ack(&id, output.offset + length, false)));
                    return;
                };
                let Some(place) = entry.place(&agent) else { return };
                let piece = Piece {
                    task: id,
                    host: place as u32,
                    offset: output.offset,
                    data: output.data,
                    bytes_max: entry.record.output_bytes_max,
                };
                group.pieces.push((agent, piece));
            }
            TaskEvent::Refused(agent, command, reason) => {
                let Some(id) = self.commands.get(&command) else { return };
                let Some(entry) = entries.get(id) else { return };
                let Some(place) = entry.place(&agent) else { return };
                if entry.hosts[place].state == TaskHostState::Sent {
                    let end = Final::by_server(TaskHostState::Refused, now_ms, &reason);
                    group.end(*id, place, end);
                }
            }
            TaskEvent::AgentUp(agent) => {
                for (id, entry) in entries.iter_mut().filter(|(_, e)| e.record.ended_ms.is_none()) {
                    let Some(place) = entry.place(&agent) else { continue };
                    let host = &mut entry.hosts[place];
                    if host.state.is_final() {
                        continue;
                    }
                    if entry.record.cancel_ms.is_some() {
                        group.cancel.entry(*id).or_default().push(agent.clone());
                    } else if host.state <= TaskHostState::Sent {
                        host.unsent();
                        group.send.entry(*id).or_default().push(agent.clone());
                    }
                }
            }
            TaskEvent::Undeliverable(id, agents) => {
                let Some(entry) = entries.get_mut(&id) else { return };
                for agent in agents {
                    if let Some(place) = entry.place(&agent) {
                        entry.hosts[place].unsent();
                    }
                }
            }
        }
    }

    async fn order(&mut self, order: Order, group: &mut Group) {
        match order {
            Order::Start(id) => {
                let entries = self.tasks.lock();
                let Some(entry) = entries.get(&id) else { return };
                let all = entry.hosts.iter().map(|host| host.agent.clone()).collect();
                group.send.insert(id, all);
            }
            Order::Cancel(id, answer) => {
                let outcome = self.begin_cancel(id, group).await;
                // Who asked may be gone; the wish stands.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn begin_cancel(&mut self, id: TaskId, group: &mut Group) -> Result<(), TaskError> {
        let now_ms = clock::now_ms();
        let record = {
            let entries = self.tasks.lock();
            let entry = entries.get(&id).ok_or(TaskError::Unknown(id))?;
            if entry.record.cancel_ms.is_some() || entry.record.ended_ms.is_some() {
                return Ok(());
            }
            let mut record = entry.record.clone();
            record.cancel_ms = Some(now_ms);
            record
        };
        self.tasks.store.commit(record::put_spec(Batch::new(), &record)?).await?;
        let mut entries = self.tasks.lock();
        let Some(entry) = entries.get_mut(&id) else { return Ok(()) };
        entry.record = record;
        let mut reach = Vec::new();
        for (place, host) in entry.hosts.iter().enumerate() {
            match host.state {
                state if state.is_final() => {}
                TaskHostState::Pending => {
                    let end = Final::by_server(TaskHostState::Cancelled, now_ms, "never sent");
                    group.end(id, place, end);
                }
                _ => reach.push(host.agent.clone()),
            }
        }
        group.cancel.insert(id, reach);
        Ok(())
    }

    async fn tick(&mut self, group: &mut Group) {
        self.ticks = self.ticks.wrapping_add(1);
        self.look_at_deadlines(group);
        if self.ticks.is_multiple_of(TICKS_PER_SWEEP) {
            self.sweep().await;
        }
    }

    fn look_at_deadlines(&self, group: &mut Group) {
        let now_ms = clock::now_ms();
        let mut open = 0;
        let entries = self.tasks.lock();
        for (id, entry) in entries.iter().filter(|(_, entry)| entry.record.ended_ms.is_none()) {
            open += 1;
            let record = &entry.record;
            // An order that was signed at the last moment may still be accepted until then.
            let answer_by_ms = record.deliver_by_ms + 2 * ORDER_LIFE_MS;
            for (place, host) in entry.hosts.iter().enumerate() {
                let end = match host.state {
                    TaskHostState::Pending if record.cancel_ms.is_some() => {
                        Final::by_server(TaskHostState::Cancelled, now_ms, "never delivered")
                    }
                    TaskHostState::Pending if now_ms > record.deliver_by_ms => {
                        let why = "no session until the delivery deadline; nothing was started";
                        Final::by_server(TaskHostState::Undeliverable, now_ms, why)
                    }
                    TaskHostState::Sent if now_ms > answer_by_ms => {
                        let state = match record.cancel_ms {
                            Some(_) => TaskHostState::Cancelled,
                            None => TaskHostState::Undeliverable,
                        };
                        let why = "the order was sent and never answered; it may have started";
                        Final::by_server(state, now_ms, why)
                    }
                    TaskHostState::Accepted | TaskHostState::Running
                        if now_ms > record.report_by_ms(host.since_ms) =>
                    {
                        let why = "the agent took the order and did not report its end in time";
                        Final {
                            started_ms: host.run.started_ms,
                            ..Final::by_server(TaskHostState::Expired, now_ms, why)
                        }
                    }
                    _ => continue,
                };
                group.end(*id, place, end);
            }
            // A task that was stored by a process which died before it sent anything.
            let waiting = entry.hosts.iter().filter(|host| host.state == TaskHostState::Pending);
            let reachable = waiting.filter(|host| self.fleet.link_of(&host.agent).is_some());
            let reachable: Vec<AgentId> = reachable.map(|host| host.agent.clone()).collect();
            if !reachable.is_empty() && record.cancel_ms.is_none() {
                group.send.insert(*id, reachable);
            }
        }
        metrics::gauge!(names::CONTROL_TASKS_OPEN).set(f64::from(open));
    }

    /// Makes a group durable, then visible, then acknowledged; then sends what is to be sent.
    async fn settle(&mut self, mut group: Group) {
        self.store_output(&mut group).await;
        self.store_ends(&mut group).await;
        self.acknowledge_complete(&mut group);
        if !group.acks.is_empty() {
            let acks = group.acks.drain(..);
            let acks = acks.map(|(agent, ack)| (agent, server_message::Kind::ReportAck(ack)));
            self.fleet.tell(acks.collect()).await;
        }
        for (id, agents) in std::mem::take(&mut group.send) {
            self.send(id, agents).await;
        }
        for (id, agents) in std::mem::take(&mut group.cancel) {
            let kind = command_body::Kind::CancelTask(CancelTask { task_id: id.to_bytes() });
            let until_ms = clock::now_ms() + CANCEL_LIFE_MS;
            let sent = self.fleet.command(Purpose::Other, kind, until_ms, &agents, |_, _| {}).await;
            if let Err(error) = sent {
                tracing::error!(task = %id, %error, "cancel is not sent");
            }
        }
    }

    async fn store_output(&self, group: &mut Group) {
        if group.pieces.is_empty() {
            return;
        }
        let (agents, pieces): (Vec<_>, Vec<_>) = group.pieces.drain(..).unzip();
        let output = self.tasks.output.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let results = output.append(&pieces);
            (pieces, results)
        });
        // A panic there is a bug; the agents repeat what was not acknowledged.
        let Ok((pieces, results)) = stored.await else { return };
        let mut newest: HashMap<(TaskId, u32), (AgentId, u64)> = HashMap::new();
        for ((agent, piece), result) in agents.into_iter().zip(pieces).zip(results) {
            match result {
                Ok(stored) => {
                    let bytes = piece.data.len() as u64;
                    metrics::counter!(names::CONTROL_TASK_OUTPUT_BYTES).increment(bytes);
                    newest.insert((piece.task, piece.host), (agent, stored));
                }
                Err(error) => {
                    tracing::error!(task = %piece.task, %error, "output is not stored; is the disk full?");
                }
            }
        }
        for ((task, host), (agent, stored)) in newest {
            group.acks.push((agent, ack(&task, stored, false)));
            group.over.push((task, host as usize));
        }
    }

    async fn store_ends(&self, group: &mut Group) {
        let ends = std::mem::take(&mut group.ends);
        for part in ends.chunks(ENDS_PER_BATCH) {
            match self.store_some_ends(part).await {
                Ok(()) => group.over.extend(part.iter().map(|(id, place, _)| (*id, *place))),
                // Nothing was entered or acknowledged: agents and deadlines come again.
                Err(error) => tracing::error!(%error, "ends of tasks are not stored"),
            }
        }
    }

    async fn store_some_ends(&self, ends: &[(TaskId, usize, Final)]) -> Result<(), TaskError> {
        let mut batch = Batch::new();
        let mut ended_tasks: HashMap<TaskId, usize> = HashMap::new();
        {
            let entries = self.tasks.lock();
            for (id, place, run) in ends {
                let Some(entry) = entries.get(id) else { continue };
                batch = record::put_final(batch, id, &entry.hosts[*place].agent, run)?;
                *ended_tasks.entry(*id).or_default() += 1;
            }
            let now_ms = clock::now_ms();
            for (id, count) in &ended_tasks {
                let Some(entry) = entries.get(id) else { continue };
                let open = entry.hosts.iter().filter(|host| !host.state.is_final()).count();
                if open == *count {
                    let mut record = entry.record.clone();
                    record.ended_ms = Some(now_ms);
                    batch = record::put_spec(batch, &record)?;
                }
            }
        }
        self.tasks.store.commit(batch).await?;
        let mut entries = self.tasks.lock();
        for (id, place, run) in ends {
            let Some(entry) = entries.get_mut(id) else { continue };
            let host = &mut entry.hosts[*place];
            let word = state_word(&run.state);
            metrics::counter!(names::CONTROL_TASKS, "state" => word).increment(1);
            let seconds = (clock::now_ms() - entry.record.created_ms) as f64 / 1_000.0;
            metrics::histogram!(names::CONTROL_TASK_SECONDS).record(seconds);
            host.end(run.clone());
        }
        let now_ms = clock::now_ms();
        for id in ended_tasks.keys() {
            if let Some(entry) = entries.get_mut(id)
                && entry.hosts.iter().all(|host| host.state.is_final())
            {
                entry.record.ended_ms.get_or_insert(now_ms);
            }
        }
        Ok(())
    }

    /// An agent forgets a task when its end is acknowledged, and its output with it: so that comes
    /// last, when all output that it announced (and that is kept) is stored.
    fn acknowledge_complete(&self, group: &mut Group) {
        let over: HashSet<_> = group.over.drain(..).collect();
        let entries = self.tasks.lock();
        for (id, place) in over {
            let Some(entry) = entries.get(&id) else { continue };
            let host = &entry.hosts[place];
            let announced = host.run.output_bytes.min(entry.record.output_bytes_max);
            let complete = || match self.tasks.output.stored(&id, place as u32) {
                Ok(stored) => stored >= announced,
                Err(_) => false,
            };
            if host.state.is_final() && (announced == 0 || complete()) {
                group.acks.push((host.agent.clone(), ack(&id, 0, true)));
            }
        }
    }

    async fn send(&mut self, id: TaskId, agents: Vec<AgentId>) {
        let (order, deliver_by_ms) = {
            let entries = self.tasks.lock();
            let Some(entry) = entries.get(&id) else { return };
            if entry.record.cancel_ms.is_some() {
                return;
            }
            (entry.record.order(&id), entry.record.deliver_by_ms)
        };
        let until_ms = deliver_by_ms.max(clock::now_ms()) + ORDER_LIFE_MS;
        let kind = command_body::Kind::RunTask(order);
        let tasks = self.tasks.clone();
        let mut command = None;
        let note = |command_id, online: &[AgentId]| {
            command = Some(command_id);
            // Before it is sent: the answer may come before the call returns.
            let mut entries = tasks.lock();
            let Some(entry) = entries.get_mut(&id) else { return };
            for agent in online {
                if let Some(place) = entry.place(agent) {
                    entry.hosts[place].sent();
                }
            }
        };
        let sent = self.fleet.command(Purpose::Task(id), kind, until_ms, &agents, note).await;
        if let Err(error) = sent {
            tracing::error!(task = %id, %error, "order is not sent");
        }
        if let Some(command) = command {
            self.commands.insert(command, id);
            self.commands_in_order.push_back(command);
            if self.commands_in_order.len() > COMMANDS_MAX
                && let Some(oldest) = self.commands_in_order.pop_front()
            {
                self.commands.remove(&oldest);
            }
        }
    }

    /// Removes ended tasks beyond the history's bounds, oldest first.
    async fn sweep(&self) {
        let now_ms = clock::now_ms();
        let doomed: Vec<TaskId> = {
            let entries = self.tasks.lock();
            let mut ended: Vec<(i64, TaskId, usize)> = entries
                .iter()
                .filter_map(|(id, e)| Some((e.record.ended_ms?, *id, e.hosts.len())))
                .collect();
            ended.sort_unstable();
            let mut hosts: usize = entries.values().map(|entry| entry.hosts.len()).sum();
            let mut count = ended.len();
            let sizes = entries.keys().map(|id| self.tasks.output.disk_bytes(id));
            let mut bytes: u64 = sizes.sum();
            let mut doomed = Vec::new();
            for (ended_ms, id, its_hosts) in ended {
                let too_old = ended_ms + TASK_KEEP_MS < now_ms;
                let too_many = count > TASKS_KEPT_MAX
                    || hosts > TASK_HOSTS_MAX / 2
                    || bytes > OUTPUT_DISK_BYTES_MAX;
                if !too_old && !too_many {
                    break;
                }
                count -= 1;
                hosts -= its_hosts;
                bytes -= self.tasks.output.disk_bytes(&id).min(bytes);
                doomed.push(id);
            }
            doomed
        };
        for id in doomed {
            if let Err(error) = record::remove(&*self.tasks.store, &id).await {
                tracing::warn!(task = %id, %error, "an old task is not removed");
                return;
            }
            self.tasks.lock().remove(&id);
            self.tasks.output.remove(&id);
        }
    }
}

fn ack(task: &TaskId, output_offset: u64, final_state: bool) -> ReportAck {
    let task_id = task.to_bytes();
    ReportAck { task_id, output_offset, final_state, transfer_id: bytes::Bytes::new() }
}
