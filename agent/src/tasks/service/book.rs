//! What the journal says at start, and what is written back.

use std::collections::HashSet;

use bytes::Bytes;
use skein_wire::ids::{CommandId, TaskId};

use super::{Service, Settled};
use crate::clock;
use crate::tasks::journal::{CommandTaken, Done, Fact, Final, Intent};
use crate::tasks::task::{Phase, Task};

impl Service {
    pub(super) fn restore(&mut self, facts: Vec<Fact>) {
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

    pub(super) fn restore_fact(&mut self, fact: Fact) {
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

    pub(super) fn restore_settled(&mut self, done: Done, tombstone: bool) {
        let Ok(id) = TaskId::from_slice(&done.task_id) else { return };
        if !tombstone {
            self.tasks.remove(&id);
        }
        let (until_ms, digest) = (done.until_ms, done.digest);
        self.settled.insert(id, Settled { until_ms, digest, tombstone });
    }

    /// Writes what needs no flush, and rewrites the journal when it has grown.
    pub(super) fn tidy(&mut self) {
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

    pub(super) fn live_facts(&self) -> Vec<Fact> {
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

pub(super) fn settled_fact(id: &TaskId, settled: &Settled) -> Fact {
    let done =
        Done { task_id: id.0.to_vec(), until_ms: settled.until_ms, digest: settled.digest.clone() };
    if settled.tombstone { Fact::Tombstone(done) } else { Fact::Done(done) }
}
