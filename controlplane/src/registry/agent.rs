//! One agent as the registry knows it: what is durable, and what is soft.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skein_wire::ids::{AgentId, Instance};
use skein_wire::limits::MESH_PEER_ADDRESSES_MAX;
use skein_wire::signal::v1::HostFacts;

use super::selector::Selectable;
use crate::api::types::{Agent, AgentFacts, AgentLoad, AgentState};

/// Longest text that is kept of one fact.
const FACT_BYTES_MAX: usize = 512;
/// Most addresses that are kept of one host.
const IPS_MAX: usize = 64;
/// Most labels of one agent.
pub const LABELS_MAX: usize = 64;
/// Longest value of a label.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;

/// Stored at enrolment, renewal and revocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// SHA-256 of its public key, hex: the proof that the id belongs to it.
    pub key_sha256: String,
    /// Serial of the newest certificate, hex.
    pub serial: String,
    /// End of that certificate.
    pub not_after_ms: i64,
    /// First enrolment.
    pub enrolled_ms: i64,
    /// Token of the newest enrolment.
    pub join_token_id: String,
    /// When it was revoked.
    #[serde(default)]
    pub revoked_ms: Option<i64>,
    /// Why.
    #[serde(default)]
    pub revoke_reason: String,
    /// Revision of the store at which it was written: who changes it names the one that was read,
    /// so that a renewal can never undo a revocation that came between.
    #[serde(skip)]
    pub revision: u64,
}

/// Stored when it differs from what is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Host name.
    pub hostname: String,
    /// Addresses.
    pub ips: Vec<String>,
    /// Labels from the agent's configuration.
    pub labels: BTreeMap<String, String>,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Cloud area.
    pub cloud_id: i32,
    /// The rest.
    pub host: AgentFacts,
}

impl Facts {
    /// Takes a report, cut to bounds: nothing from outside grows without limit.
    pub fn from_report(report: HostFacts) -> Self {
        let cut = |mut text: String| {
            text.truncate(text.floor_char_boundary(FACT_BYTES_MAX));
            text.retain(|character| !character.is_control());
            text
        };
        let label_is_good = |(name, value): &(String, String)| {
            super::selector::is_label_name(name) && value.len() <= LABEL_VALUE_BYTES_MAX
        };
        Self {
            hostname: cut(report.hostname),
            ips: report.ips.into_iter().take(IPS_MAX).map(cut).collect(),
            labels: report.labels.into_iter().filter(label_is_good).take(LABELS_MAX).collect(),
            region: cut(report.region),
            zone: cut(report.zone),
            cloud_id: report.cloud_id,
            host: AgentFacts {
                os: cut(report.os),
                os_version: cut(report.os_version),
                kernel: cut(report.kernel),
                arch: cut(report.arch),
                cpu_count: report.cpu_count,
                memory_bytes: report.memory_bytes,
                agent_version: cut(report.agent_version),
                boot_id: cut(report.boot_id),
                mac: cut(report.mac),
                agent_start_ms: report.agent_start_ms,
                metrics_addr: cut(report.metrics_addr),
                mesh_addresses: report
                    .mesh_addresses
                    .into_iter()
                    .take(MESH_PEER_ADDRESSES_MAX)
                    .map(cut)
                    .collect(),
            },
        }
    }
}

/// Where an agent's session lives. Never stored.
#[derive(Clone, Debug)]
pub struct Session {
    /// The data process's link.
    pub link: u64,
    /// The data process's name for it.
    pub session_id: u64,
    /// Which start of the agent's worker.
    pub instance: Option<Instance>,
    /// Peer address.
    pub remote_addr: String,
    /// Since when.
    pub connected_ms: i64,
}

/// One agent.
#[derive(Clone, Debug)]
pub struct AgentEntry {
    /// Its id.
    pub id: AgentId,
    /// Durable.
    pub identity: Identity,
    /// Durable.
    pub facts: Facts,
    /// Set by operators; durable.
    pub operator_labels: BTreeMap<String, String>,
    /// Soft.
    pub session: Option<Session>,
    /// Soft: offline or lost, when there is no session.
    pub away: AgentState,
    /// Soft: since when the state is what it is.
    pub since_ms: i64,
    /// Soft: why it is away.
    pub reason: String,
    /// Soft.
    pub load: Option<AgentLoad>,
}

impl AgentEntry {
    /// An agent that has just been read or enrolled.
    pub fn new(id: AgentId, identity: Identity, since_ms: i64) -> Self {
        Self {
            id,
            identity,
            facts: Facts::default(),
            operator_labels: BTreeMap::new(),
            session: None,
            away: AgentState::Offline,
            since_ms,
            reason: "not seen since the server started".into(),
            load: None,
        }
    }

    /// As the API shows it.
    pub fn view(&self) -> Agent {
        let mut labels = self.facts.labels.clone();
        labels.extend(self.operator_labels.clone());
        let state = Selectable::state(self);
        let revoked = self.identity.revoked_ms.is_some();
        Agent {
            agent_id: self.id.to_string(),
            state,
            state_since_ms: self.identity.revoked_ms.unwrap_or(self.since_ms),
            state_reason: match state {
                AgentState::Online => String::new(),
                _ if revoked => self.identity.revoke_reason.clone(),
                _ => self.reason.clone(),
            },
            hostname: self.facts.hostname.clone(),
            ips: self.facts.ips.clone(),
            labels,
            region: self.facts.region.clone(),
            zone: self.facts.zone.clone(),
            cloud_id: self.facts.cloud_id,
            facts: self.facts.host.clone(),
            load: self.load.clone(),
            remote_addr: self
                .session
                .as_ref()
                .map_or_else(String::new, |session| session.remote_addr.clone()),
            enrolled_ms: self.identity.enrolled_ms,
            certificate_serial: self.identity.serial.clone(),
            certificate_not_after_ms: self.identity.not_after_ms,
        }
    }
}

impl Selectable for AgentEntry {
    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn hostname(&self) -> &str {
        &self.facts.hostname
    }

    fn ips(&self) -> &[String] {
        &self.facts.ips
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.operator_labels.get(name).or_else(|| self.facts.labels.get(name)).map(String::as_str)
    }

    fn region(&self) -> &str {
        &self.facts.region
    }

    fn zone(&self) -> &str {
        &self.facts.zone
    }

    fn cloud_id(&self) -> i32 {
        self.facts.cloud_id
    }

    fn state(&self) -> AgentState {
        match (&self.identity.revoked_ms, &self.session) {
            (Some(_), _) => AgentState::Revoked,
            (None, Some(_)) => AgentState::Online,
            (None, None) => self.away,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_an_older_server_are_read() {
        let text = r#"{"hostname":"h","ips":["10.0.0.1"],"labels":{},"region":"","zone":"",
            "cloud_id":0,"host":{"os":"linux","metrics_addr":"127.0.0.1:29405"}}"#;
        let facts: Facts = serde_json::from_str(text).unwrap();
        assert_eq!(facts.host.mesh_addresses, Vec::<String>::new());
        assert_eq!(facts.host.metrics_addr, "127.0.0.1:29405");
    }

    #[test]
    fn a_report_of_many_addresses_is_cut() {
        let mesh_addresses = vec!["x".repeat(10_000); 1_000];
        let facts = Facts::from_report(HostFacts { mesh_addresses, ..HostFacts::default() });
        let lengths: Vec<usize> = facts.host.mesh_addresses.iter().map(String::len).collect();
        assert_eq!(lengths, [FACT_BYTES_MAX; MESH_PEER_ADDRESSES_MAX]);
    }
}
