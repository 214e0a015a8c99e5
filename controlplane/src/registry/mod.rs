//! The registry of agents.
//!
//! Durable are enrolment, revocation, facts (written only when they changed) and operators'
//! labels. Liveness is soft: it comes from the data processes' session messages and is never
//! written, so that a fleet's heartbeats cost the store nothing.

mod agent;
mod revocation;
mod selector;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use skein_observe::names;
use skein_wire::ids::AgentId;

pub use agent::{AgentEntry, Facts, Identity, LABEL_VALUE_BYTES_MAX, LABELS_MAX, Session};
pub use revocation::{REVOKED_AGENTS_MAX, REVOKED_SERIALS_MAX, SERIAL_DIGITS_MAX};
pub use selector::{Selectable, Selector, SelectorError, is_label_name};

use self::revocation::RevokedSerial;
use crate::api::types::{Agent, AgentCounts, AgentList, AgentLoad, AgentState};
use crate::clock;
use crate::store::ext::{decode, encode};
use crate::store::{Batch, Condition, Store, StoreError, StoreExt};

const IDENTITY: &str = "agents/identity/";
const BY_KEY: &str = "agents/by-key/";
const FACTS: &str = "agents/facts/";
/// The label by which hosts say in which rack they stand.
pub const RACK_LABEL: &str = "rack";
const LABELS: &str = "agents/labels/";
const REVOKED_SERIAL: &str = "agents/revoked-serial/";

/// Most agents of one server.
pub const AGENTS_MAX: usize = 200_000;
/// Most agents of one page of a list.
pub const LIST_AGENTS_MAX: usize = 10_000;
/// Facts written per batch.
const FACTS_PER_BATCH: usize = 500;

#[derive(Debug, Default)]
struct State {
    agents: BTreeMap<AgentId, AgentEntry>,
    revoked_serials: HashMap<String, RevokedSerial>,
}

impl State {
    fn trusted(&self, id: &AgentId) -> Option<&AgentEntry> {
        let is_trusted = |agent: &&AgentEntry| {
            let Identity { revoked_ms, serial, .. } = &agent.identity;
            revoked_ms.is_none() && !self.revoked_serials.contains_key(serial)
        };
        self.agents.get(id).filter(is_trusted)
    }
}

/// All agents.
#[derive(Debug)]
pub struct Registry {
    store: Arc<dyn Store>,
    state: RwLock<State>,
    /// How often agents or certificates were revoked or forgotten since this process began.
    revocations: AtomicU64,
}

/// An agent as tasks and transfers address it.
#[derive(Clone, Debug)]
pub struct Addressee {
    /// Its id.
    pub id: AgentId,
    /// Its host name.
    pub hostname: Arc<str>,
    /// Whether it has a session.
    pub online: bool,
}

/// Where an agent stands, as it says; empty where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Cloud area.
    pub cloud_id: i32,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// The label [`RACK_LABEL`].
    pub rack: String,
}

/// An agent as others meet it in a transfer.
#[derive(Clone, Debug)]
pub struct MeshAgent {
    /// SHA-256 of its public key, hex.
    pub key_sha256: String,
    /// Where it listens, as it reported.
    pub addresses: Vec<String>,
    /// From where its session comes; empty without one.
    pub remote_addr: String,
}

impl Registry {
    /// Loads what is stored.
    pub async fn load(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut state = State::default();
        let now_ms = clock::now_ms();
        let id_of = |key: &str, prefix: &str| AgentId::parse(&key[prefix.len()..]).ok();
        for entry in store.range_all(IDENTITY).await? {
            if let Some(id) = id_of(&entry.key, IDENTITY) {
                let identity = Identity { revision: entry.revision, ..decode(&entry)? };
                state.agents.insert(id.clone(), AgentEntry::new(id, identity, now_ms));
            }
        }
        for entry in store.range_all(FACTS).await? {
            if let Some(agent) = id_of(&entry.key, FACTS).and_then(|id| state.agents.get_mut(&id)) {
                agent.facts = decode(&entry)?;
            }
        }
        for entry in store.range_all(LABELS).await? {
            if let Some(agent) = id_of(&entry.key, LABELS).and_then(|id| state.agents.get_mut(&id))
            {
                agent.operator_labels = decode(&entry)?;
            }
        }
        for entry in store.range_all(REVOKED_SERIAL).await? {
            let revoked: RevokedSerial = decode(&entry)?;
            if revoked.not_after_ms > now_ms {
                let serial = entry.key[REVOKED_SERIAL.len()..].to_owned();
                state.revoked_serials.insert(serial, revoked);
            } else {
                store.commit(Batch::new().delete(entry.key)).await?;
            }
        }
        Ok(Self { store, state: RwLock::new(state), revocations: AtomicU64::new(0) })
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    // ------------------------------------------------------------------------- reading

    /// Number of agents.
    pub fn len(&self) -> usize {
        self.read().agents.len()
    }

    /// Whether nobody has enrolled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The durable identity of an agent.
    pub fn identity(&self, id: &AgentId) -> Option<Identity> {
        self.read().agents.get(id).map(|agent| agent.identity.clone())
    }

    /// Its host name; empty when unknown.
    pub fn hostname(&self, id: &str) -> String {
        let Ok(id) = AgentId::parse(id) else { return String::new() };
        self.read().agents.get(&id).map_or_else(String::new, |agent| agent.facts.hostname.clone())
    }

    /// A page of the agents that a selector matches.
    pub fn list(&self, selector: &Selector, after: Option<&str>, limit: usize) -> AgentList {
        let limit = limit.clamp(1, LIST_AGENTS_MAX);
        let state = self.read();
        let mut list = AgentList::default();
        for agent in state.agents.values().filter(|agent| selector.matches(*agent)) {
            list.total += 1;
            if after.is_some_and(|after| agent.id.as_str() <= after) {
                continue;
            }
            if list.agents.len() < limit {
                list.agents.push(agent.view());
            } else if list.next.is_none() {
                list.next = list.agents.last().map(|last: &Agent| last.agent_id.clone());
            }
        }
        list
    }

    /// The agents that a selector matches, revoked ones never, in order of id.
    pub fn select(&self, selector: &Selector) -> Vec<Addressee> {
        let state = self.read();
        let meant = state
            .agents
            .values()
            .filter(|agent| agent.identity.revoked_ms.is_none() && selector.matches(*agent));
        meant
            .map(|agent| Addressee {
                id: agent.id.clone(),
                hostname: agent.facts.hostname.as_str().into(),
                online: agent.session.is_some(),
            })
            .collect()
    }

    /// Where an agent that is known stands.
    pub fn standing(&self, id: &AgentId) -> Option<Standing> {
        let state = self.read();
        let facts = &state.agents.get(id)?.facts;
        Some(Standing {
            cloud_id: facts.cloud_id,
            region: facts.region.clone(),
            zone: facts.zone.clone(),
            rack: facts.labels.get(RACK_LABEL).cloned().unwrap_or_default(),
        })
    }

    /// Region and zone of an agent that is known.
    pub fn place_of(&self, id: &AgentId) -> Option<(String, String)> {
        let state = self.read();
        let facts = &state.agents.get(id)?.facts;
        Some((facts.region.clone(), facts.zone.clone()))
    }

    /// Whether an agent is known, and neither it nor its certificate was revoked.
    pub fn is_trusted(&self, id: &AgentId) -> bool {
        self.read().trusted(id).is_some()
    }

    /// Changes whenever agents or certificates are revoked or forgotten: whoever goes by
    /// [`Self::is_trusted`] looks again.
    pub fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::SeqCst)
    }

    /// How others meet an agent; none when it is not known or revoked.
    pub fn mesh_agent(&self, id: &AgentId) -> Option<MeshAgent> {
        let state = self.read();
        let agent = state.trusted(id)?;
        let session = agent.session.as_ref();
        Some(MeshAgent {
            key_sha256: agent.identity.key_sha256.clone(),
            addresses: agent.facts.host.mesh_addresses.clone(),
            remote_addr: session.map_or_else(String::new, |session| session.remote_addr.clone()),
        })
    }

    /// The link that carries an agent's session.
    pub fn link_of(&self, id: &AgentId) -> Option<u64> {
        let state = self.read();
        let agent = state.agents.get(id).filter(|agent| agent.identity.revoked_ms.is_none())?;
        agent.session.as_ref().map(|session| session.link)
    }

    /// How many sessions a link carries.
    pub fn sessions_of(&self, link: u64) -> u64 {
        let state = self.read();
        let on_link = |agent: &&AgentEntry| {
            agent.session.as_ref().is_some_and(|session| session.link == link)
        };
        state.agents.values().filter(on_link).count() as u64
    }

    /// Agents by state.
    pub fn counts(&self) -> AgentCounts {
        let mut counts = AgentCounts::default();
        for agent in self.read().agents.values() {
            match Selectable::state(agent) {
                AgentState::Online => counts.online += 1,
                AgentState::Offline => counts.offline += 1,
                AgentState::Lost => counts.lost += 1,
                AgentState::Revoked => counts.revoked += 1,
            }
        }
        for (state, count) in [
            ("online", counts.online),
            ("offline", counts.offline),
            ("lost", counts.lost),
            ("revoked", counts.revoked),
        ] {
            metrics::gauge!(names::CONTROL_AGENTS, "state" => state).set(count as f64);
        }
        counts
    }

    /// Everybody who must not be served: agent ids and certificate serials.
    pub fn revoked(&self) -> (Vec<String>, Vec<String>) {
        let state = self.read();
        let revoked = state.agents.values().filter(|agent| agent.identity.revoked_ms.is_some());
        let ids = revoked.map(|agent| agent.id.to_string()).collect();
        (ids, state.revoked_serials.keys().cloned().collect())
    }

    // ------------------------------------------------------------------------- enrolment

    /// The agent that a key is certified for.
    pub async fn owner_of_key(&self, key_sha256: &str) -> Result<Option<AgentId>, StoreError> {
        let found = self.store.get(&format!("{BY_KEY}{key_sha256}")).await?;
        Ok(found.and_then(|entry| {
            AgentId::parse(std::str::from_utf8(&entry.value).unwrap_or_default()).ok()
        }))
    }

    /// Stores an identity: a new one, or a newer certificate (and key) of one that exists.
    /// `more` is committed with it.
    pub async fn keep_identity(
        &self,
        id: &AgentId,
        before: Option<&Identity>,
        mut identity: Identity,
        facts: Option<Facts>,
        more: Batch,
    ) -> Result<(), StoreError> {
        let key = format!("{IDENTITY}{id}");
        let condition = match before {
            None => Condition::Absent(key.clone()),
            Some(before) => Condition::At(key.clone(), before.revision),
        };
        let mut batch = more.when(condition).put(key, encode(&identity)?);
        let by_key = format!("{BY_KEY}{}", identity.key_sha256);
        if let Some(before) = before.filter(|before| before.key_sha256 != identity.key_sha256) {
            batch = batch.delete(format!("{BY_KEY}{}", before.key_sha256));
        }
        if before.is_none_or(|before| before.key_sha256 != identity.key_sha256) {
            batch = batch.when(Condition::Absent(by_key.clone()));
        }
        batch = batch.put(by_key, id.to_string());
        if let Some(facts) = &facts {
            batch = batch.put(format!("{FACTS}{id}"), encode(facts)?);
        }
        identity.revision = self.store.commit(batch).await?;
        let mut state = self.write();
        let agent = state
            .agents
            .entry(id.clone())
            .or_insert_with(|| AgentEntry::new(id.clone(), Identity::default(), clock::now_ms()));
        if before.is_none() {
            agent.reason = "enrolled, not yet connected".into();
        }
        agent.identity = identity;
        if let Some(facts) = facts {
            agent.facts = facts;
        }
        Ok(())
    }

    // ------------------------------------------------------------------------- facts, labels

    /// Stores facts that differ from what is known; answers with how many did.
    pub async fn report_facts(&self, reports: Vec<(AgentId, Facts)>) -> Result<usize, StoreError> {
        let mut changed: BTreeMap<AgentId, Facts> = BTreeMap::new();
        {
            let state = self.read();
            for (id, facts) in reports {
                let differs = state.agents.get(&id).is_some_and(|agent| agent.facts != facts);
                if differs {
                    changed.insert(id, facts);
                }
            }
        }
        let changed: Vec<_> = changed.into_iter().collect();
        for part in changed.chunks(FACTS_PER_BATCH) {
            let mut batch = Batch::new();
            for (id, facts) in part {
                batch = batch.put(format!("{FACTS}{id}"), encode(facts)?);
            }
            self.store.commit(batch).await?;
            let mut state = self.write();
            for (id, facts) in part {
                if let Some(agent) = state.agents.get_mut(id) {
                    agent.facts = facts.clone();
                }
            }
        }
        Ok(changed.len())
    }

    /// Newest load of an agent; soft.
    pub fn report_load(&self, id: &AgentId, load: AgentLoad) {
        if let Some(agent) = self.write().agents.get_mut(id) {
            agent.load = Some(load);
        }
    }

    /// Sets and removes operators' labels; answers with (matched, changed).
    pub async fn set_labels(
        &self,
        selector: &Selector,
        set: &BTreeMap<String, String>,
        remove: &[String],
    ) -> Result<(u64, u64), StoreError> {
        let mut matched = 0;
        let mut changed = Vec::new();
        for agent in self.read().agents.values().filter(|agent| selector.matches(*agent)) {
            matched += 1;
            let mut labels = agent.operator_labels.clone();
            remove.iter().for_each(|name| drop(labels.remove(name)));
            labels.extend(set.clone());
            if labels.len() > LABELS_MAX {
                let what = format!("agent {} with {} labels", agent.id, labels.len());
                return Err(StoreError::TooLarge { what, max: LABELS_MAX });
            }
            if labels != agent.operator_labels {
                changed.push((agent.id.clone(), labels));
            }
        }
        for part in changed.chunks(FACTS_PER_BATCH) {
            let mut batch = Batch::new();
            for (id, labels) in part {
                batch = batch.put(format!("{LABELS}{id}"), encode(labels)?);
            }
            self.store.commit(batch).await?;
            let mut state = self.write();
            for (id, labels) in part {
                if let Some(agent) = state.agents.get_mut(id) {
                    agent.operator_labels = labels.clone();
                }
            }
        }
        Ok((matched, changed.len() as u64))
    }

    // ------------------------------------------------------------------------- sessions (soft)

    /// A session began. False: the agent is not known here.
    pub fn session_up(&self, id: &AgentId, session: Session) -> bool {
        let mut state = self.write();
        let Some(agent) = state.agents.get_mut(id) else { return false };
        if agent.session.is_none() {
            agent.since_ms = session.connected_ms;
        }
        agent.session = Some(session);
        true
    }

    /// A session ended; a message about an older one than the present changes nothing.
    pub fn session_down(&self, link: u64, id: &AgentId, session_id: u64, reason: &str) -> bool {
        let mut state = self.write();
        let Some(agent) = state.agents.get_mut(id) else { return false };
        let current = agent.session.as_ref();
        if !current.is_some_and(|one| one.link == link && one.session_id == session_id) {
            return false;
        }
        let now_ms = clock::now_ms();
        agent.session = None;
        agent.since_ms = now_ms;
        agent.away = away_state(reason);
        agent.reason = explained(reason);
        true
    }

    /// A data process went: its sessions are gone until they come back.
    pub fn link_down(&self, link: u64) -> usize {
        let now_ms = clock::now_ms();
        let mut ended = 0;
        for agent in self.write().agents.values_mut() {
            if agent.session.as_ref().is_some_and(|session| session.link == link) {
                agent.session = None;
                agent.since_ms = now_ms;
                agent.away = AgentState::Offline;
                agent.reason = "its data process is away".into();
                ended += 1;
            }
        }
        ended
    }
}

/// Agents that say goodbye are offline; those that fall silent or break off are lost. The words
/// are the data process's reasons for the end of a session.
fn away_state(reason: &str) -> AgentState {
    match reason {
        "lost" | "disconnected" | "challenged" | "slow_reader" | "slow_sender" => AgentState::Lost,
        _ => AgentState::Offline,
    }
}

/// A reason as operators read it.
fn explained(reason: &str) -> String {
    let text = match reason {
        "lost" => "its heartbeats stopped",
        "disconnected" => "its connection broke",
        "peer_closed" => "it closed its session",
        "draining" => "its data process is stopping",
        "replaced" => "a newer session of it took over",
        "revoked" => "its certificate was revoked",
        other => other,
    };
    text.to_owned()
}
