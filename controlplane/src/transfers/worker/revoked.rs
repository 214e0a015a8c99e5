//! Agents that nobody trusts any more: revoked or forgotten while transfers run. Control tells the
//! other members at once, so that no byte goes to them or is taken from them; lists that expire
//! would only do so hours later. Their part of each transfer ends with that reason.

use std::collections::BTreeSet;

use skein_wire::ids::AgentId;

use super::{Group, Worker};
use crate::api::types::{TransferHostState as Host, TransferPhase};
use crate::clock;

const WHY: &str = "the agent was revoked";

impl Worker {
    /// Takes expelled agents out of all transfers, when there are new ones; also those of which a
    /// process before this one did not tell everybody.
    pub(super) async fn look_at_revoked(&mut self, group: &mut Group) {
        let registry = &self.transfers.registry;
        let count = registry.revocations();
        if self.revocations.replace(count) == Some(count) {
            return;
        }
        let now_ms = clock::now_ms();
        let (mut expelled, mut lost): (BTreeSet<AgentId>, Vec<_>) = Default::default();
        for (id, entry) in self.transfers.lock().iter().filter(|(_, entry)| entry.is_open()) {
            for (place, host) in entry.hosts.iter().enumerate() {
                if registry.is_trusted(&host.agent) {
                    continue;
                }
                expelled.insert(host.agent.clone());
                if !host.state().is_final() {
                    group.ends.add(*id, place, host.ended_by_server(Host::Failed, now_ms, WHY));
                }
            }
            let record = &entry.record;
            if record.phase != TransferPhase::Running {
                let gone = record.source_ids().filter(|source| !registry.is_trusted(source));
                let gone = gone.filter(|source| record.has_source(source));
                lost.extend(gone.map(|source| (*id, source)));
            }
        }
        self.meshes.expel(&self.fleet, &expelled).await;
        for (id, source) in lost {
            let Some(record) = self.record(&id) else { continue };
            let why = "the source agent was revoked";
            if let Err(error) = self.lose_source(id, record, &source, why, group).await {
                self.fail(id, &error.to_string(), group).await;
            }
        }
    }
}
