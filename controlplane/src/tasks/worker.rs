//! What moves tasks forward: reports and output in, orders and acknowledgements out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use skein_observe::names;
use skein_wire::ids::{AgentId, TaskId};
use skein_wire::signal::v1::{CancelTask, ReportAck, command_body, server_message};

use super::automaton::{Final, HostRun, Report};
use super::output::Piece;
use super::{HISTORY, Order, TaskError, Tasks, record, state_word};
use crate::api::types::TaskHostState;
use crate::clock;
use crate::fleet::events::TaskEvent;
use crate::fleet::{Fleet, Purpose};
use crate::jobs::delivery::{Commands, count_repeat};
use crate::jobs::history::{self, Ended};
use crate::jobs::worker::{
    CANCEL_LIFE_MS, ENDS_PER_BATCH, Ends, ORDER_LIFE_MS, TICKS_PER_SWEEP, Work,
};
use crate::store::Batch;

/// Runs the tasks.
pub struct Worker {
    tasks: Arc<Tasks>,
    fleet: Arc<Fleet>,
    commands: Commands<TaskId>,
    ticks: u32,
}

/// What one group of events comes to.
#[derive(Default)]
pub struct Group {
    pieces: Vec<(AgentId, Piece)>,
    ends: Ends<TaskId, Final>,
    acks: Vec<(AgentId, ReportAck)>,
    /// Hosts that have ended, or have new output; those that are complete are told to forget.
    over: Vec<(TaskId, usize)>,
    /// Tasks whose waiting hosts are to be sent their order.
    send: HashMap<TaskId, Vec<AgentId>>,
    cancel: HashMap<TaskId, Vec<AgentId>>,
}

impl Worker {
    /// For a service and the fleet.
    pub fn new(tasks: Arc<Tasks>, fleet: Arc<Fleet>) -> Self {
        Self { tasks, fleet, commands: Commands::default(), ticks: 0 }
    }
}

impl Work for Worker {
    type Event = TaskEvent;
    type Order = Order;
    type Group = Group;

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
                    Some((place, Report::End(run))) => group.ends.add(id, place, run),
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
                let Some((id, dispatch)) = self.commands.find(&command) else { return };
                let Some(entry) = entries.get(&id) else { return };
                let Some(place) = entry.place(&agent) else { return };
                let host = &entry.hosts[place];
                if host.state == TaskHostState::Sent && host.delivery.is_newest(dispatch) {
                    let end = Final::by_server(TaskHostState::Refused, now_ms, &reason);
                    group.ends.add(id, place, end);
                }
            }
            TaskEvent::AgentUp(agent) => {
                for (id, entry) in entries.iter_mut().filter(|(_, e)| e.record.ended_ms.is_none()) {
                    let Some(place) = entry.place(&agent) else { continue };
                    let host = &mut entry.hosts[place];
                    if host.state.is_final() {
                        continue;
                    }
                    host.delivery.begin_anew();
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

    async fn tick(&mut self, group: &mut Group) {
        self.ticks = self.ticks.wrapping_add(1);
        self.look_at_deadlines(group);
        if self.ticks.is_multiple_of(TICKS_PER_SWEEP) {
            self.sweep().await;
        }
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
            self.send_cancel(id, agents).await;
        }
    }
}

impl Worker {
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
        self.tasks
            .store
            .commit(record::SHELF.put_spec(Batch::new(), &record.task_id, &record)?)
            .await?;
        let mut entries = self.tasks.lock();
        let Some(entry) = entries.get_mut(&id) else { return Ok(()) };
        entry.record = record;
        let mut reach = Vec::new();
        for (place, host) in entry.hosts.iter_mut().enumerate() {
            match host.state {
                state if state.is_final() => {}
                TaskHostState::Pending => {
                    let end = Final::by_server(TaskHostState::Cancelled, now_ms, "never sent");
                    group.ends.add(id, place, end);
                }
                _ => {
                    host.delivery.begin_anew();
                    reach.push(host.agent.clone());
                }
            }
        }
        group.cancel.insert(id, reach);
        Ok(())
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
                group.ends.add(*id, place, end);
            }
            // Hosts that were never told (who stored the task died before), or do not answer.
            let cancelled = record.cancel_ms.is_some();
            let in_time = now_ms <= record.deliver_by_ms + ORDER_LIFE_MS;
            let waits = |host: &&HostRun| match cancelled {
                true => !host.state.is_final() && host.state > TaskHostState::Pending,
                false => host.state <= TaskHostState::Sent && in_time,
            };
            let due = entry.hosts.iter().filter(waits).filter(|host| {
                host.delivery.is_due(now_ms) && self.fleet.link_of(&host.agent).is_some()
            });
            let due: Vec<AgentId> = due.map(|host| host.agent.clone()).collect();
            if !due.is_empty() {
                let orders = if cancelled { &mut group.cancel } else { &mut group.send };
                orders.insert(*id, due);
            }
        }
        metrics::gauge!(names::CONTROL_TASKS_OPEN).set(f64::from(open));
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
        let ends = group.ends.take();
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
                let agent = &entry.hosts[*place].agent;
                batch = record::SHELF.put_end(batch, &id.to_string(), agent, run)?;
                *ended_tasks.entry(*id).or_default() += 1;
            }
            let now_ms = clock::now_ms();
            for (id, count) in &ended_tasks {
                let Some(entry) = entries.get(id) else { continue };
                let open = entry.hosts.iter().filter(|host| !host.state.is_final()).count();
                if open == *count {
                    let mut record = entry.record.clone();
                    record.ended_ms = Some(now_ms);
                    batch = record::SHELF.put_spec(batch, &record.task_id, &record)?;
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
        let now_ms = clock::now_ms();
        let kind = command_body::Kind::RunTask(order);
        let until_ms = deliver_by_ms.max(now_ms) + ORDER_LIFE_MS;
        // Before it is sent: the answer may come before the call returns.
        let note = |command_id, online: &[AgentId]| {
            let mut entries = self.tasks.lock();
            let Some(entry) = entries.get_mut(&id) else { return };
            entry.dispatches += 1;
            let dispatch = entry.dispatches;
            self.commands.note(command_id, id, dispatch);
            for agent in online {
                if let Some(place) = entry.place(agent) {
                    let host = &mut entry.hosts[place];
                    count_repeat(&host.delivery, "run_task");
                    host.sent(dispatch, now_ms);
                }
            }
        };
        let sent = self.fleet.command(Purpose::Task(id), kind, until_ms, &agents, note).await;
        if let Err(error) = sent {
            tracing::error!(task = %id, %error, "order is not sent");
        }
    }

    async fn send_cancel(&mut self, id: TaskId, agents: Vec<AgentId>) {
        let now_ms = clock::now_ms();
        let kind = command_body::Kind::CancelTask(CancelTask { task_id: id.to_bytes() });
        let note = |_, online: &[AgentId]| {
            let mut entries = self.tasks.lock();
            let Some(entry) = entries.get_mut(&id) else { return };
            for agent in online {
                if let Some(place) = entry.place(agent) {
                    let delivery = &mut entry.hosts[place].delivery;
                    count_repeat(delivery, "cancel_task");
                    delivery.told(now_ms);
                }
            }
        };
        let until_ms = now_ms + CANCEL_LIFE_MS;
        let sent = self.fleet.command(Purpose::Other, kind, until_ms, &agents, note).await;
        if let Err(error) = sent {
            tracing::error!(task = %id, %error, "cancel is not sent");
        }
    }

    /// Removes ended tasks beyond the history's bounds, oldest first.
    async fn sweep(&self) {
        let doomed = {
            let entries = self.tasks.lock();
            let hosts = entries.values().map(|entry| entry.hosts.len()).sum();
            let bytes = entries.keys().map(|id| self.tasks.output.disk_bytes(id)).sum();
            let ended = entries.iter().filter_map(|(id, entry)| {
                let bytes = self.tasks.output.disk_bytes(id);
                let ended_ms = entry.record.ended_ms?;
                Some(Ended { ended_ms, id: *id, hosts: entry.hosts.len(), bytes })
            });
            let gauge = |kind: &'static str, count: usize| {
                metrics::gauge!(names::CONTROL_KEPT, "kind" => kind).set(count as f64);
            };
            gauge("task", entries.len());
            gauge("task_host", hosts);
            metrics::gauge!(names::CONTROL_TASK_OUTPUT_DISK_BYTES).set(bytes as f64);
            history::beyond(ended.collect(), hosts, bytes, &HISTORY, clock::now_ms())
        };
        for id in doomed {
            if let Err(error) = record::SHELF.remove(&*self.tasks.store, &id.to_string()).await {
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
