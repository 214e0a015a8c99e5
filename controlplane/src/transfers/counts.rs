//! The metrics of transfers by gear and region. Labels are bounded: gears are the planner's, and
//! of regions, which hosts name themselves, the first [`REGIONS_MAX`] have labels of their own.

use std::collections::BTreeSet;

use skein_filemesh::core::plan::Member;
use skein_observe::names;
use skein_wire::ids::AgentId;

use super::host::Final;
use super::meter::Gained;
use super::{Entry, TransferRecord};
use crate::api::types::TransferHostState as Host;
use crate::registry::Registry;

/// Regions with a label of their own.
const REGIONS_MAX: usize = 32;
/// Label of hosts that name no region.
const NO_REGION: &str = "none";
/// Label of all regions beyond [`REGIONS_MAX`].
const OTHER_REGION: &str = "other";
/// Label of what the server itself sent.
const SERVER: &str = "server";

/// Counts what transfers do.
#[derive(Default)]
pub(super) struct Counts {
    regions: BTreeSet<String>,
}

impl Counts {
    /// A host has verified more.
    pub fn gained(&mut self, gear: &str, registry: &Registry, agent: &AgentId, gained: Gained) {
        if gained == Gained::default() {
            return;
        }
        let (gear, region) = (gear.to_owned(), self.region(registry, agent));
        let delivered = names::CONTROL_TRANSFER_DELIVERED_BYTES;
        metrics::counter!(delivered, "gear" => gear.clone(), "region" => region.clone())
            .increment(gained.bytes);
        metrics::counter!(names::CONTROL_TRANSFER_PEER_BYTES, "gear" => gear, "region" => region)
            .increment(gained.from_peers);
    }

    /// The server has sent more of a file.
    pub fn sent(&self, gear: &str, bytes: u64) {
        metrics::counter!(names::CONTROL_TRANSFER_SOURCE_BYTES, "gear" => gear.to_owned())
            .increment(bytes);
    }

    /// A host has ended. `from` names who sent it how much, where it said so: the server if there
    /// is no agent.
    pub fn host_ended<'a>(
        &mut self,
        gear: &str,
        registry: &Registry,
        agent: &AgentId,
        run: &Final,
        from: impl Iterator<Item = (Option<&'a AgentId>, u64)>,
    ) {
        if run.refused_blocks > 0 {
            let refused = names::CONTROL_TRANSFER_REFUSED_BLOCKS;
            metrics::counter!(refused, "gear" => gear.to_owned()).increment(run.refused_blocks);
        }
        let to = self.region(registry, agent);
        for (sender, bytes) in from {
            let from = sender.map_or_else(|| SERVER.to_owned(), |a| self.region(registry, a));
            if from != to {
                let border = names::CONTROL_TRANSFER_BORDER_BYTES;
                metrics::counter!(border, "from" => from, "to" => to.clone()).increment(bytes);
            }
        }
    }

    /// A transfer has ended.
    pub fn ended(&self, entry: &Entry) {
        let record = &entry.record;
        let gear = record.gear.gear.clone();
        let outcome = outcome(entry);
        let ended = names::CONTROL_TRANSFERS_ENDED;
        metrics::counter!(ended, "gear" => gear.clone(), "outcome" => outcome).increment(1);
        let Some(elapsed_ms) = elapsed_ms(record).filter(|_| outcome == "done") else { return };
        metrics::histogram!(names::CONTROL_TRANSFER_SECONDS, "gear" => gear.clone())
            .record(elapsed_ms / 1_000.0);
        if record.gear.bound_ms > 0 {
            metrics::histogram!(names::CONTROL_TRANSFER_BOUND_RATIO, "gear" => gear)
                .record(elapsed_ms / record.gear.bound_ms as f64);
        }
    }

    /// All that the server sent for an ended transfer is known. Of one that did not reach every
    /// host it would say little.
    pub fn source_known(&self, entry: &Entry, sent_bytes: u64) {
        let record = &entry.record;
        let size_bytes = record.file.as_ref().map_or(0, |file| file.size_bytes);
        if size_bytes > 0 && outcome(entry) == "done" {
            let ratio = sent_bytes as f64 / size_bytes as f64;
            let gear = record.gear.gear.clone();
            metrics::histogram!(names::CONTROL_TRANSFER_SOURCE_RATIO, "gear" => gear).record(ratio);
        }
    }

    fn region(&mut self, registry: &Registry, agent: &AgentId) -> String {
        let region = registry.place_of(agent).map(|(region, _)| region).unwrap_or_default();
        self.label(region)
    }

    fn label(&mut self, region: String) -> String {
        if region.is_empty() {
            return NO_REGION.to_owned();
        }
        if self.regions.len() < REGIONS_MAX {
            self.regions.insert(region.clone());
        }
        if self.regions.contains(&region) { region } else { OTHER_REGION.to_owned() }
    }
}

/// Who sent, where the number is of a host of this transfer: none for the server.
pub(super) fn sender(agents: &[AgentId], member: Member) -> Option<Option<&AgentId>> {
    match member.checked_sub(1) {
        None => Some(None),
        Some(at) => agents.get(at as usize).map(Some),
    }
}

fn elapsed_ms(record: &TransferRecord) -> Option<f64> {
    Some((record.ended_ms? - record.running_ms?).max(0) as f64)
}

fn outcome(entry: &Entry) -> &'static str {
    let done = entry.hosts.iter().filter(|host| host.state() == Host::Done).count();
    match done {
        _ if done == entry.hosts.len() => "done",
        _ if entry.record.cancel_ms.is_some() => "cancelled",
        0 => "failed",
        _ => "partial",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_cannot_make_labels_without_end() {
        let mut counts = Counts::default();
        assert_eq!(counts.label(String::new()), "none");
        for number in 0..REGIONS_MAX {
            assert_eq!(counts.label(format!("r{number}")), format!("r{number}"));
        }
        assert_eq!(counts.label("one more".into()), "other");
        assert_eq!(counts.label("r7".into()), "r7");
    }

    #[test]
    fn members_are_the_server_and_then_the_hosts() {
        let agents = [AgentId::parse("a").unwrap(), AgentId::parse("b").unwrap()];
        assert_eq!(sender(&agents, 0), Some(None));
        assert_eq!(sender(&agents, 2), Some(Some(&agents[1])));
        assert_eq!(sender(&agents, 3), None);
    }
}
