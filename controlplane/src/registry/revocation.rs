//! Revocation: of agents, of single certificates, and of both when an agent is forgotten.
//!
//! Data processes hold the whole revoked set, which comes in one message; its bounds keep it within
//! that. Each change names the revision of what it changes, so that a renewal which comes between
//! is revoked too instead of undoing the revocation.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use skein_observe::names;
use skein_wire::ids::AgentId;
use skein_wire::limits::FLEET_MESSAGE_BYTES_MAX;

use super::{BY_KEY, FACTS, FACTS_PER_BATCH, IDENTITY, Identity, LABELS, REVOKED_SERIAL, Registry};
use crate::clock;
use crate::store::ext::encode;
use crate::store::{Batch, Condition, StoreError, StoreExt};

/// Revoked agents: data processes hold the whole revoked set, which comes in one message.
pub const REVOKED_AGENTS_MAX: usize = 40_000;
/// Revoked certificates, see [`REVOKED_AGENTS_MAX`]. They leave when the certificate would end.
pub const REVOKED_SERIALS_MAX: usize = 36_000;
/// Longest serial, hex: the 20 bytes that X.509 allows.
pub const SERIAL_DIGITS_MAX: usize = 40;
const _: () = assert!(
    REVOKED_AGENTS_MAX * (ID_BYTES_MAX + 2) + REVOKED_SERIALS_MAX * (SERIAL_DIGITS_MAX + 2)
        < FLEET_MESSAGE_BYTES_MAX - 1_024
);
/// Longest agent id.
const ID_BYTES_MAX: usize = 64;
/// Attempts when another change of the same agent came between.
const ATTEMPTS_MAX: u32 = 8;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RevokedSerial {
    revoked_ms: i64,
    /// After this the certificate is worth nothing anyway and the entry is dropped.
    pub(super) not_after_ms: i64,
}

impl Registry {
    /// Revokes agents and single certificates; answers with those that were not before.
    pub async fn revoke(
        &self,
        ids: &[AgentId],
        serials: &[String],
        reason: &str,
    ) -> Result<(Vec<AgentId>, Vec<String>), StoreError> {
        let now_ms = clock::now_ms();
        let new_serials: Vec<String> = {
            let state = self.read();
            let revoked = state.agents.values().filter(|a| a.identity.revoked_ms.is_some());
            let new = serials.iter().filter(|serial| !state.revoked_serials.contains_key(*serial));
            let new: BTreeSet<&String> = new.collect();
            check_room("revoked agents", revoked.count() + ids.len(), REVOKED_AGENTS_MAX)?;
            check_serials(state.revoked_serials.len() + new.len())?;
            new.into_iter().cloned().collect()
        };
        let mut changed = Vec::new();
        for part in ids.chunks(FACTS_PER_BATCH) {
            changed.extend(self.revoke_some(part, reason, now_ms).await?);
        }
        let not_after_ms = now_ms + crate::identity::AGENT_LIFE_MS;
        let revoked = RevokedSerial { revoked_ms: now_ms, not_after_ms };
        for serial in &new_serials {
            self.store.put_json(&format!("{REVOKED_SERIAL}{serial}"), &revoked).await?;
            self.write().revoked_serials.insert(serial.clone(), revoked.clone());
        }
        self.revocations.fetch_add(1, Ordering::SeqCst);
        Ok((changed, new_serials))
    }

    /// Revokes what one batch holds. A renewal that comes between is read and revoked with it.
    async fn revoke_some(
        &self,
        ids: &[AgentId],
        reason: &str,
        now_ms: i64,
    ) -> Result<Vec<AgentId>, StoreError> {
        let mut attempts = 0;
        loop {
            let mut changed = Vec::new();
            let mut batch = Batch::new();
            for id in ids {
                let Some(before) = self.identity(id).filter(|one| one.revoked_ms.is_none()) else {
                    continue;
                };
                let key = format!("{IDENTITY}{id}");
                let at = Condition::At(key.clone(), before.revision);
                let revoke_reason = reason.to_owned();
                let identity = Identity { revoked_ms: Some(now_ms), revoke_reason, ..before };
                batch = batch.when(at).put(key, encode(&identity)?);
                changed.push((id.clone(), identity));
            }
            match self.store.commit(batch).await {
                Ok(revision) => {
                    let mut state = self.write();
                    for (id, identity) in &changed {
                        if let Some(agent) = state.agents.get_mut(id) {
                            agent.identity = Identity { revision, ..identity.clone() };
                        }
                    }
                    return Ok(changed.into_iter().map(|(id, _)| id).collect());
                }
                Err(StoreError::Conflict { .. }) if attempts < ATTEMPTS_MAX => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets an agent for good; its certificate stays revoked. False: there is none.
    pub async fn forget(&self, id: &AgentId) -> Result<bool, StoreError> {
        let mut attempts = 0;
        loop {
            let Some(identity) = self.identity(id) else { return Ok(false) };
            check_serials(self.read().revoked_serials.len() + 1)?;
            let not_after_ms = identity.not_after_ms;
            let revoked = RevokedSerial { revoked_ms: clock::now_ms(), not_after_ms };
            let key = format!("{IDENTITY}{id}");
            let batch = Batch::new()
                .when(Condition::At(key.clone(), identity.revision))
                .delete(key)
                .delete(format!("{FACTS}{id}"))
                .delete(format!("{LABELS}{id}"))
                .delete(format!("{BY_KEY}{}", identity.key_sha256))
                .put(format!("{REVOKED_SERIAL}{}", identity.serial), encode(&revoked)?);
            match self.store.commit(batch).await {
                Ok(_) => {
                    let mut state = self.write();
                    state.agents.remove(id);
                    state.revoked_serials.insert(identity.serial, revoked);
                    drop(state);
                    self.revocations.fetch_add(1, Ordering::SeqCst);
                    return Ok(true);
                }
                // It was renewed at the same moment: its newer certificate is meant as well.
                Err(StoreError::Conflict { .. }) if attempts < ATTEMPTS_MAX => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets serials of certificates that have ended.
    pub async fn upkeep(&self) -> Result<(), StoreError> {
        let now_ms = clock::now_ms();
        let ended: Vec<String> = {
            let state = self.read();
            let ended = state.revoked_serials.iter().filter(|(_, one)| one.not_after_ms <= now_ms);
            ended.map(|(serial, _)| serial.clone()).collect()
        };
        for part in ended.chunks(FACTS_PER_BATCH) {
            let delete = |batch: Batch, serial| batch.delete(format!("{REVOKED_SERIAL}{serial}"));
            self.store.commit(part.iter().fold(Batch::new(), delete)).await?;
            let mut state = self.write();
            for serial in part {
                state.revoked_serials.remove(serial);
            }
        }
        let kept = self.read().revoked_serials.len();
        metrics::gauge!(names::CONTROL_KEPT, "kind" => "revoked_serial").set(kept as f64);
        Ok(())
    }
}

fn check_room(what: &str, wanted: usize, max: usize) -> Result<(), StoreError> {
    match wanted <= max {
        true => Ok(()),
        false => Err(StoreError::TooLarge { what: format!("a set of {wanted} {what}"), max }),
    }
}

fn check_serials(wanted: usize) -> Result<(), StoreError> {
    check_room("revoked certificates", wanted, REVOKED_SERIALS_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{RedbConfig, RedbStore, Store};

    #[tokio::test]
    async fn a_renewal_never_undoes_a_revocation_that_came_between() {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(RedbConfig::new(folder.path().join("store"))).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let registry = Registry::load(store.clone()).await.unwrap();
        let id = AgentId::parse("a").unwrap();
        let first = Identity { key_sha256: "k".into(), serial: "1".into(), ..Identity::default() };
        registry.keep_identity(&id, None, first, None, Batch::new()).await.unwrap();
        let read = registry.identity(&id).unwrap();
        registry.revoke(std::slice::from_ref(&id), &[], "stolen").await.unwrap();
        let renewed = Identity { serial: "2".into(), ..read.clone() };
        let late = registry.keep_identity(&id, Some(&read), renewed, None, Batch::new()).await;
        assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
        assert!(registry.identity(&id).unwrap().revoked_ms.is_some());
        // The other way round: the revocation names what the renewal left.
        let again = Registry::load(store).await.unwrap();
        assert_eq!(again.identity(&id), registry.identity(&id), "revisions outlive a restart");
        assert!(again.forget(&id).await.unwrap());
        assert!(!again.forget(&id).await.unwrap());
        assert_eq!(again.revoked().1, ["1"]);
    }

    #[tokio::test]
    async fn the_revoked_set_always_fits_the_message_that_carries_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(RedbConfig::new(folder.path().join("store"))).unwrap();
        let registry = Registry::load(Arc::new(store)).await.unwrap();
        let serials: Vec<String> = (0..=REVOKED_SERIALS_MAX).map(|n| format!("{n:x}")).collect();
        let refused = registry.revoke(&[], &serials, "").await;
        assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
        assert!(registry.revoked().1.is_empty(), "whole or not at all");
    }
}
