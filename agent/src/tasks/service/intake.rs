//! Taking commands: checks, the journal's buffer, one flush, and only then the deeds.

use bytes::Bytes;
use prost::Message;
use skein_wire::ids::{CommandId, TaskId};
use skein_wire::merkle::sha256;
use skein_wire::signal::v1::{RunTask, TaskState, command_body};

use super::book::settled_fact;
use super::{Order, SETTLED_MAX, SETTLED_MS, Service, Settled, TASKS_MAX, TransferOrder, refuse};
use crate::tasks::journal::{CommandTaken, Fact, Intent};
use crate::tasks::runner::CANCEL;
use crate::tasks::task::{self, Phase, Task};
use std::io::Write;

impl Service {
    pub(super) fn take_order(
        &mut self,
        order: Order,
        accepted: &mut Vec<(CommandId, command_body::Kind)>,
    ) {
        let raw_id = order.body.command_id.clone();
        let result = self.check_order(order);
        match result {
            Ok(taken) => accepted.push(taken),
            Err(reason) => refuse(&self.settings.outbox, raw_id, &reason),
        }
    }

    pub(super) fn check_order(
        &mut self,
        order: Order,
    ) -> Result<(CommandId, command_body::Kind), String> {
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
    pub(super) fn check_task(&mut self, run: &RunTask, not_after_ms: i64) -> Result<(), String> {
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
    pub(super) fn bury(&mut self, task_id: &[u8], not_after_ms: i64) -> Result<(), String> {
        let id = TaskId::from_slice(task_id).map_err(|error| error.to_string())?;
        if self.tasks.contains_key(&id) || self.settled.contains_key(&id) {
            return Ok(());
        }
        let skew = self.settings.clock.skew_ms();
        let until_ms = not_after_ms.saturating_sub(skew).saturating_add(SETTLED_MS);
        self.settle(id, Settled { until_ms, digest: Vec::new(), tombstone: true });
        Ok(())
    }

    pub(super) fn settle(&mut self, id: TaskId, settled: Settled) {
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
    pub(super) fn commit(&mut self, accepted: Vec<(CommandId, command_body::Kind)>) {
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
                command_body::Kind::TransferPeers(peers) => {
                    (self.settings.transfers)(TransferOrder::Peers(peers));
                }
                command_body::Kind::RemovePeers(removed) => {
                    (self.settings.transfers)(TransferOrder::RemovePeers(removed));
                }
            }
        }
    }

    pub(super) fn enqueue(&mut self, id: TaskId) {
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

    pub(super) fn cancel(&mut self, id: &TaskId) {
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
}
