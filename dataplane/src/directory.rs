//! Which agent is connected where: the one table that all shards of a process share.
//!
//! It is touched when a session opens or ends and when a message is addressed to an agent, never
//! on the way of a byte. An identity belongs to one *instance* (one start of an agent's worker) as
//! long as one of its standing channels lives: the same instance replaces its own half-open
//! session, another one is refused.
//!
//! Changes for the control process are kept as a set of agents, not as a list of events: whoever
//! drains it reads the newest state. So the set is bounded by the number of agents and nothing is
//! lost while control is away.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use skein_wire::hello::ChannelKind;
use skein_wire::ids::{AgentId, Instance};
use tokio::sync::Notify;

use crate::router::SessionRef;

/// A session as others see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionEntry {
    /// Shard and key.
    pub at: SessionRef,
    /// Unique in this process's life and, by its upper bits, among its lives.
    pub session_id: u64,
    /// The agent's address.
    pub remote: SocketAddr,
    /// When HELLO was accepted, ms since 1970.
    pub connected_ms: i64,
    /// Serial of the certificate.
    pub serial: String,
}

#[derive(Debug)]
struct Owner {
    instance: Instance,
    signal: Option<SessionEntry>,
    data: Option<SessionEntry>,
}

impl Owner {
    fn slot(&mut self, kind: ChannelKind) -> Option<&mut Option<SessionEntry>> {
        match kind {
            ChannelKind::Signal => Some(&mut self.signal),
            ChannelKind::Data => Some(&mut self.data),
            ChannelKind::Enrol | ChannelKind::File => None,
        }
    }

    fn any(&self) -> Option<&SessionEntry> {
        self.signal.as_ref().or(self.data.as_ref())
    }
}

/// Answer to [`Directory::claim`].
#[derive(Debug, Eq, PartialEq)]
pub enum Claim {
    /// The session is entered. Close the one that it replaced.
    Granted {
        /// Earlier session of the same instance, now known to be dead.
        replaced: Option<SessionRef>,
    },
    /// Another instance of this identity lives.
    Refused {
        /// A session of it; challenge it, it may be half-open.
        living: SessionEntry,
    },
}

/// What changed for an agent's signal session.
#[derive(Debug, Eq, PartialEq)]
pub enum Change {
    /// This session is the agent's now.
    Up(AgentId, Instance, SessionEntry),
    /// The agent has none.
    Down {
        /// Who.
        agent: AgentId,
        /// The last session that it had.
        session_id: u64,
        /// Why it ended.
        reason: &'static str,
    },
}

#[derive(Default)]
struct Table {
    owners: HashMap<AgentId, Owner>,
    /// Agents whose signal session changed since the last drain; with the end of the last one.
    changed: HashMap<AgentId, (u64, &'static str)>,
}

/// The table. Share it in an `Arc`.
#[derive(Default)]
pub struct Directory {
    table: Mutex<Table>,
    notify: Notify,
    revoked: RwLock<Arc<RevokedSet>>,
}

/// Identities that must not be served.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RevokedSet {
    /// By agent.
    pub agents: HashSet<String>,
    /// By certificate, hex as in [`crate::tls::PeerIdentity`].
    pub serials: HashSet<String>,
}

impl RevokedSet {
    /// Whether this identity is revoked.
    pub fn contains(&self, agent: &AgentId, serial: &str) -> bool {
        self.agents.contains(agent.as_str()) || self.serials.contains(serial)
    }
}

impl Directory {
    /// Enters a session of a standing channel (signal or data). Other kinds are only checked
    /// against a living instance.
    pub fn claim(
        &self,
        agent: &AgentId,
        instance: Instance,
        kind: ChannelKind,
        session: SessionEntry,
    ) -> Claim {
        let mut table = self.lock();
        if let Some(owner) = table.owners.get(agent)
            && owner.instance != instance
            && let Some(living) = owner.any()
        {
            return Claim::Refused { living: living.clone() };
        }
        let fresh = Owner { instance, signal: None, data: None };
        let owner = table.owners.entry(agent.clone()).or_insert(fresh);
        owner.instance = instance;
        let session_id = session.session_id;
        let replaced = owner.slot(kind).and_then(|slot| slot.replace(session));
        if owner.any().is_none() {
            table.owners.remove(agent);
        }
        if kind == ChannelKind::Signal {
            table.changed.insert(agent.clone(), (session_id, "replaced"));
            self.notify.notify_one();
        }
        Claim::Granted { replaced: replaced.map(|entry| entry.at) }
    }

    /// Takes a session out, unless it was replaced in the meantime. Returns the instance's other
    /// standing session.
    pub fn release(
        &self,
        agent: &AgentId,
        kind: ChannelKind,
        at: SessionRef,
        reason: &'static str,
    ) -> Option<SessionRef> {
        let mut table = self.lock();
        let owner = table.owners.get_mut(agent)?;
        let ended = owner.slot(kind)?.take_if(|entry| entry.at == at)?;
        let other = owner.any().map(|entry| entry.at);
        if other.is_none() {
            table.owners.remove(agent);
        }
        if kind == ChannelKind::Signal {
            table.changed.insert(agent.clone(), (ended.session_id, reason));
            self.notify.notify_one();
        }
        other
    }

    /// An agent's standing sessions.
    pub fn sessions(&self, agent: &AgentId) -> Vec<SessionRef> {
        let table = self.lock();
        let Some(owner) = table.owners.get(agent) else { return Vec::new() };
        owner.signal.iter().chain(&owner.data).map(|entry| entry.at).collect()
    }

    /// Where an agent's signal session is.
    pub fn signal(&self, agent: &AgentId) -> Option<SessionEntry> {
        self.lock().owners.get(agent).and_then(|owner| owner.signal.clone())
    }

    /// Splits targets by where their signal session is; `found` is called under the table's lock,
    /// so a fan-out to 20,000 agents takes it once.
    pub fn locate<T>(
        &self,
        targets: impl IntoIterator<Item = (AgentId, T)>,
        mut found: impl FnMut(SessionRef, T),
        mut missing: impl FnMut(AgentId),
    ) {
        let table = self.lock();
        for (agent, item) in targets {
            match table.owners.get(&agent).and_then(|owner| owner.signal.as_ref()) {
                Some(entry) => found(entry.at, item),
                None => missing(agent),
            }
        }
    }

    /// Signal sessions now, and forgets the changes before: a snapshot for a new link to control.
    pub fn snapshot(&self) -> Vec<Change> {
        let mut table = self.lock();
        table.changed.clear();
        let up = |(agent, owner): (&AgentId, &Owner)| {
            owner.signal.clone().map(|entry| Change::Up(agent.clone(), owner.instance, entry))
        };
        table.owners.iter().filter_map(up).collect()
    }

    /// Waits until something changed since the last call.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// What changed since the last drain or snapshot.
    pub fn drain_changes(&self) -> Vec<Change> {
        let mut table = self.lock();
        let changed = std::mem::take(&mut table.changed);
        let current = |(agent, (session_id, reason))| match table.owners.get(&agent) {
            Some(Owner { instance, signal: Some(entry), .. }) => {
                Change::Up(agent, *instance, entry.clone())
            }
            _ => Change::Down { agent, session_id, reason },
        };
        changed.into_iter().map(current).collect()
    }

    /// Replaces the set of revoked identities. Sessions that exist are closed by the caller.
    pub fn set_revoked(&self, set: RevokedSet) {
        *self.revoked.write().unwrap_or_else(|poison| poison.into_inner()) = Arc::new(set);
    }

    /// The set of revoked identities.
    pub fn revoked(&self) -> Arc<RevokedSet> {
        self.revoked.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// The table stays consistent between any two statements, so a panic elsewhere does not
    /// make it unusable.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(conn: u64) -> SessionEntry {
        SessionEntry {
            at: SessionRef { shard: 0, conn },
            session_id: conn,
            remote: SocketAddr::from(([127, 0, 0, 1], 9)),
            connected_ms: 0,
            serial: "01".to_owned(),
        }
    }

    fn agent(name: &str) -> AgentId {
        AgentId::parse(name).unwrap()
    }

    const ONE: Instance = Instance([1; 16]);
    const TWO: Instance = Instance([2; 16]);

    #[test]
    fn the_same_instance_takes_over_and_the_old_end_changes_nothing() {
        let (directory, a) = (Directory::default(), agent("a"));
        let first = directory.claim(&a, ONE, ChannelKind::Signal, entry(1));
        assert_eq!(first, Claim::Granted { replaced: None });
        let second = directory.claim(&a, ONE, ChannelKind::Signal, entry(2));
        assert_eq!(second, Claim::Granted { replaced: Some(entry(1).at) });
        directory.release(&a, ChannelKind::Signal, entry(1).at, "replaced");
        assert_eq!(directory.signal(&a), Some(entry(2)));
        assert_eq!(directory.drain_changes(), [Change::Up(a, ONE, entry(2))]);
    }

    #[test]
    fn another_instance_waits_until_every_standing_channel_is_gone() {
        let (directory, a) = (Directory::default(), agent("a"));
        directory.claim(&a, ONE, ChannelKind::Signal, entry(1));
        directory.claim(&a, ONE, ChannelKind::Data, entry(2));
        let refused =
            |kind| matches!(directory.claim(&a, TWO, kind, entry(3)), Claim::Refused { .. });
        assert!(refused(ChannelKind::Signal) && refused(ChannelKind::File));
        directory.release(&a, ChannelKind::Signal, entry(1).at, "closed");
        assert!(refused(ChannelKind::Data));
        directory.release(&a, ChannelKind::Data, entry(2).at, "closed");
        assert!(!refused(ChannelKind::Signal));
        assert_eq!(directory.signal(&a), Some(entry(3)));
    }

    #[test]
    fn file_channels_leave_no_entry() {
        let (directory, a) = (Directory::default(), agent("a"));
        directory.claim(&a, ONE, ChannelKind::File, entry(1));
        let granted = directory.claim(&a, TWO, ChannelKind::Signal, entry(2));
        assert_eq!(granted, Claim::Granted { replaced: None });
    }

    #[test]
    fn changes_are_the_newest_state() {
        let (directory, a, b) = (Directory::default(), agent("a"), agent("b"));
        directory.claim(&a, ONE, ChannelKind::Signal, entry(1));
        directory.claim(&b, ONE, ChannelKind::Signal, entry(2));
        directory.release(&a, ChannelKind::Signal, entry(1).at, "lost");
        let mut changes = directory.drain_changes();
        changes.sort_by_key(|change| matches!(change, Change::Up(..)));
        let down = Change::Down { agent: a, session_id: 1, reason: "lost" };
        assert_eq!(changes, [down, Change::Up(b.clone(), ONE, entry(2))]);
        assert_eq!(directory.drain_changes(), []);
        assert_eq!(directory.snapshot(), [Change::Up(b, ONE, entry(2))]);
    }

    #[test]
    fn revocation_is_by_agent_or_by_serial() {
        let set = RevokedSet { agents: ["a".to_owned()].into(), serials: ["0f".to_owned()].into() };
        assert!(set.contains(&agent("a"), "01") && set.contains(&agent("b"), "0f"));
        assert!(!set.contains(&agent("b"), "01"));
    }
}
