//! Turns, batches, pause and resume: each is stored before anything follows from it, so that a new
//! control process finds every transfer where it was.

use skein_wire::ids::{AgentId, TransferId};

use super::super::host::HostPush;
use super::super::rollout::{HELD_MS_MAX, Step, errors, kind, open, queue_order};
use super::super::{Entry, TransferError, TransferRecord, taken};
use super::{Group, Worker, begin};
use crate::api::types::{Priority, TransferHostState as Host, TransferPhase};
use crate::clock;

/// A host that stopped for a pause that is over meanwhile is ordered again.
pub(super) fn look_at_paused(entry: &mut Entry, place: usize) {
    let stays = entry.record.rollout.is_stopped() || entry.record.cancel_ms.is_some();
    if entry.hosts[place].state() == Host::Paused && !stays {
        entry.hosts[place].begin_anew();
    }
}

impl Worker {
    /// Stops everything that moves; what is verified stays where it is.
    pub(super) async fn pause(
        &mut self,
        id: TransferId,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let now_ms = clock::now_ms();
        let mut record = self.changeable(&id)?;
        if record.rollout.paused_ms.is_some() {
            return Ok(());
        }
        record.rollout.paused_ms = Some(now_ms);
        self.store_record(&id, &record).await?;
        // Soft: it is made anew from what everybody then holds.
        self.meshes.end(&id);
        if !record.gear.is_inline() {
            group.unseed.insert(id);
        }
        let mut entries = self.transfers.lock();
        let Some(entry) = entries.get_mut(&id) else { return Ok(()) };
        let mut reach: Vec<AgentId> = Vec::new();
        for host in &mut entry.hosts {
            if host.state() > Host::Pending && !host.state().is_final() {
                host.delivery.begin_anew();
                reach.push(host.agent.clone());
            }
        }
        if record.phase != TransferPhase::Running {
            reach.extend(record.source_ids());
        }
        group.pause.insert(id, reach);
        Ok(())
    }

    /// Goes on after a pause, as soon as it has a turn, or in spite of what halted it.
    pub(super) async fn resume(
        &mut self,
        id: TransferId,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let mut record = self.changeable(&id)?;
        if record.rollout.held_ms().is_none() {
            let why = format!("transfer {id} is neither paused nor halted");
            return Err(TransferError::Conflict(why));
        }
        {
            let entries = self.transfers.lock();
            let Some(entry) = entries.get(&id) else { return Ok(()) };
            let started = &entry.hosts[..entry.started()];
            let rollout = &mut record.rollout;
            if rollout.halted.take().is_some() {
                rollout.forgiven = errors(started);
                // The turn was given back with the end of the last host.
                rollout.queued |= open(started) == 0;
            }
            rollout.queued |= rollout.paused_ms.take().is_some();
        }
        self.store_record(&id, &record).await?;
        self.look_at_queue(group).await;
        Ok(())
    }

    /// Starts what waits and may: by priority, then by age.
    pub(super) async fn look_at_queue(&mut self, group: &mut Group) {
        let mut waiting: Vec<(Priority, i64, TransferId)> = {
            let entries = self.transfers.lock();
            let waits = |entry: &&Entry| {
                let rollout = &entry.record.rollout;
                let is_free = rollout.paused_ms.is_none() && entry.record.cancel_ms.is_none();
                entry.is_open() && rollout.queued && is_free
            };
            let key = |entry: &Entry| {
                let record = &entry.record;
                Some((record.rollout.priority, record.created_ms, record.id()?))
            };
            entries.values().filter(waits).filter_map(key).collect()
        };
        queue_order(&mut waiting);
        for (place, (priority, _, id)) in waiting.into_iter().enumerate() {
            let most = self.transfers.turns_max;
            let refused = {
                let mut entries = self.transfers.lock();
                let storing = *super::super::lock(&self.transfers.storing);
                let refused = taken(&entries).with(storing).ask(kind(priority), most).err();
                if let (Some(why), Some(entry)) = (refused, entries.get_mut(&id)) {
                    entry.queue_note =
                        format!("place {} in the queue: {why} (transfers_running_max)", place + 1);
                }
                refused
            };
            if refused.is_none()
                && let Err(error) = self.admit(id, group).await
            {
                tracing::error!(transfer = %id, %error, "a queued transfer is not started");
            }
        }
    }

    /// Gives a transfer its turn.
    async fn admit(&mut self, id: TransferId, group: &mut Group) -> Result<(), TransferError> {
        let Some(mut record) = self.record(&id) else { return Ok(()) };
        let now_ms = clock::now_ms();
        record.rollout.queued = false;
        record.begin(now_ms);
        let is_new = |host: &HostPush| host.state() <= Host::Sent && host.run.verified_bytes == 0;
        if self.transfers.lock().get(&id).is_some_and(|entry| entry.hosts.iter().all(is_new)) {
            // What it waited in the queue is no time of its own.
            record.running_ms = record.running_ms.map(|_| now_ms);
        }
        self.store_record(&id, &record).await?;
        let mut entries = self.transfers.lock();
        let Some(entry) = entries.get_mut(&id) else { return Ok(()) };
        entry.queue_note.clear();
        // What was predicted had no pause in it: it is planned anew.
        entry.course = None;
        entry.asked_ms = 0;
        entry.hosts.iter_mut().for_each(|host| host.begin_anew());
        begin(&id, entry, group);
        Ok(())
    }

    /// Starts batches whose turn it is, and halts transfers that fail too often.
    pub(super) async fn look_at_batches(&mut self, group: &mut Group) {
        let steps: Vec<(TransferId, Step)> = {
            let entries = self.transfers.lock();
            let runs = |entry: &Entry| {
                let record = &entry.record;
                entry.is_open()
                    && record.phase == TransferPhase::Running
                    && record.cancel_ms.is_none()
            };
            let steps = entries.iter().filter(|(_, entry)| runs(entry));
            let steps = steps.map(|(id, entry)| (*id, entry.record.rollout.step(&entry.hosts)));
            steps.filter(|(_, step)| *step != Step::Wait).collect()
        };
        for (id, step) in steps {
            if let Err(error) = self.take_step(id, step, group).await {
                tracing::error!(transfer = %id, %error, "a batch is not started");
            }
        }
    }

    async fn take_step(
        &mut self,
        id: TransferId,
        step: Step,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let Some(mut record) = self.record(&id) else { return Ok(()) };
        let now_ms = clock::now_ms();
        match step {
            Step::Wait => return Ok(()),
            Step::Halt(why) => {
                tracing::warn!(transfer = %id, why, "transfer halts");
                record.rollout.halted = Some((now_ms, why));
                return self.store_record(&id, &record).await;
            }
            Step::Next => {
                record.rollout.started += 1;
                record.begin(now_ms);
            }
        }
        self.store_record(&id, &record).await?;
        tracing::info!(transfer = %id, batch = record.rollout.started, "a batch begins");
        let mut entries = self.transfers.lock();
        if let Some(entry) = entries.get_mut(&id) {
            entry.course = None;
            self.meshes.start(&id, entry.started(), record.expire_ms);
            begin(&id, entry, group);
        }
        Ok(())
    }

    /// A transfer that stands still: hosts that move all the same are told again, and one that
    /// nobody resumes is cancelled.
    pub(super) fn look_at_pause(
        &self,
        id: TransferId,
        entry: &Entry,
        now_ms: i64,
        group: &mut Group,
    ) {
        if entry.record.phase != TransferPhase::Running {
            return;
        }
        let moves =
            |state: Host| state > Host::Pending && state != Host::Paused && !state.is_final();
        let due = entry.hosts.iter().filter(|host| {
            let is_there = self.fleet.link_of(&host.agent).is_some();
            moves(host.state()) && host.delivery.is_due(now_ms) && is_there
        });
        let due: Vec<AgentId> = due.map(|host| host.agent.clone()).collect();
        if !due.is_empty() {
            group.pause.entry(id).or_default().extend(due);
        }
    }

    /// Cancels what nobody has resumed for too long.
    pub(super) async fn look_at_held(&mut self, group: &mut Group) {
        let now_ms = clock::now_ms();
        let forgotten: Vec<TransferId> = {
            let entries = self.transfers.lock();
            let is_forgotten = |entry: &Entry| {
                let held_ms = entry.record.rollout.held_ms();
                entry.is_open() && held_ms.is_some_and(|since_ms| now_ms - since_ms > HELD_MS_MAX)
            };
            let forgotten = entries.iter().filter(|(_, entry)| is_forgotten(entry));
            forgotten.map(|(id, _)| *id).collect()
        };
        for id in forgotten {
            tracing::warn!(transfer = %id, "paused or halted for too long; it is cancelled");
            if let Err(error) = self.begin_cancel(id, group).await {
                tracing::error!(transfer = %id, %error, "it is not cancelled");
            }
        }
    }

    /// The record of a transfer that has neither ended nor is about to.
    fn changeable(&self, id: &TransferId) -> Result<TransferRecord, TransferError> {
        let entries = self.transfers.lock();
        let record = &entries.get(id).ok_or(TransferError::Unknown(*id))?.record;
        let stands = match (record.ended_ms, record.cancel_ms) {
            (Some(_), _) => "has ended",
            (None, Some(_)) => "is being cancelled",
            (None, None) => return Ok(record.clone()),
        };
        Err(TransferError::Conflict(format!("transfer {id} {stands}")))
    }
}
