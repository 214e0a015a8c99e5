//! How jobs lie in the store.
//!
//! ```text
//! <kind>/spec/<id>            the record
//! <kind>/hosts/<id>/<page>    [[agent id, host name], …], at most 1,000 per page
//! <kind>/final/<id>/<agent>   how one host ended, written once
//! <kind>/gone/<id>            the job is being removed
//! ```
//! Twenty thousand hosts are a handful of pages, and no value exceeds the store's limit. A job is
//! removed in steps; the mark of the first step makes the next start finish what a crash cut off.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_wire::ids::AgentId;

use crate::store::ext::{decode, encode};
use crate::store::{Batch, Condition, Store, StoreError, StoreExt};

/// Hosts per page: with ids and names of full length 330 KiB.
const PAGE_HOSTS: usize = 1_000;

/// The part of the store in which one kind of jobs lies.
#[derive(Clone, Copy, Debug)]
pub struct Shelf {
    kind: &'static str,
}

/// A job as it was stored.
#[derive(Debug)]
pub struct Stored<Record, End> {
    /// Its record.
    pub record: Record,
    /// Its hosts with their names, in order of agent id.
    pub hosts: Vec<(AgentId, Arc<str>)>,
    /// Those that have ended.
    pub ends: HashMap<AgentId, End>,
}

impl Shelf {
    /// Of a kind: `tasks`, for example.
    pub const fn new(kind: &'static str) -> Self {
        Self { kind }
    }

    fn spec(self, id: &str) -> String {
        format!("{}/spec/{id}", self.kind)
    }

    fn hosts(self, id: &str) -> String {
        format!("{}/hosts/{id}/", self.kind)
    }

    fn ends(self, id: &str) -> String {
        format!("{}/final/{id}/", self.kind)
    }

    fn gone(self, id: &str) -> String {
        format!("{}/gone/{id}", self.kind)
    }

    /// All jobs; what is left of those that were being removed goes.
    pub async fn load<Record: DeserializeOwned, End: DeserializeOwned>(
        self,
        store: &dyn Store,
    ) -> Result<Vec<Stored<Record, End>>, StoreError> {
        let prefix = self.gone("");
        for entry in store.range_all(&prefix).await? {
            self.clear(store, &entry.key[prefix.len()..]).await?;
        }
        let mut jobs = Vec::new();
        let prefix = self.spec("");
        for entry in store.range_all(&prefix).await? {
            let id = &entry.key[prefix.len()..];
            let mut job =
                Stored { record: decode(&entry)?, hosts: Vec::new(), ends: HashMap::new() };
            for page in store.range_all(&self.hosts(id)).await? {
                let page: Vec<(String, String)> = decode(&page)?;
                job.hosts.extend(page.into_iter().filter_map(|(id, name)| {
                    Some((AgentId::parse(&id).ok()?, Arc::from(name.as_str())))
                }));
            }
            let prefix = self.ends(id);
            for entry in store.range_all(&prefix).await? {
                if let Ok(agent) = AgentId::parse(&entry.key[prefix.len()..]) {
                    job.ends.insert(agent, decode(&entry)?);
                }
            }
            jobs.push(job);
        }
        Ok(jobs)
    }

    /// Stores a new job whole.
    pub async fn store_new<'a>(
        self,
        store: &dyn Store,
        id: &str,
        record: &(impl Serialize + Sync),
        hosts: impl Iterator<Item = (&'a AgentId, &'a str)>,
    ) -> Result<(), StoreError> {
        let absent = Condition::Absent(self.spec(id));
        let mut batch = self.put_spec(Batch::new().when(absent), id, record)?;
        let hosts: Vec<(&str, &str)> = hosts.map(|(id, name)| (id.as_str(), name)).collect();
        for (page, hosts) in hosts.chunks(PAGE_HOSTS).enumerate() {
            batch = batch.put(format!("{}{page:06}", self.hosts(id)), encode(&hosts)?);
        }
        store.commit(batch).await.map(|_| ())
    }

    /// Adds a newer record to a batch.
    pub fn put_spec(
        self,
        batch: Batch,
        id: &str,
        record: &impl Serialize,
    ) -> Result<Batch, StoreError> {
        Ok(batch.put(self.spec(id), encode(record)?))
    }

    /// Adds the end of one host to a batch.
    pub fn put_end(
        self,
        batch: Batch,
        id: &str,
        agent: &AgentId,
        end: &impl Serialize,
    ) -> Result<Batch, StoreError> {
        Ok(batch.put(format!("{}{agent}", self.ends(id)), encode(end)?))
    }

    /// Removes a job: from here on no start loads it.
    pub async fn remove(self, store: &dyn Store, id: &str) -> Result<(), StoreError> {
        store.commit(Batch::new().delete(self.spec(id)).put(self.gone(id), "")).await?;
        self.clear(store, id).await
    }

    async fn clear(self, store: &dyn Store, id: &str) -> Result<(), StoreError> {
        for prefix in [self.hosts(id), self.ends(id)] {
            for part in store.range_all(&prefix).await?.chunks(PAGE_HOSTS) {
                let batch =
                    part.iter().fold(Batch::new(), |batch, entry| batch.delete(&*entry.key));
                store.commit(batch).await?;
            }
        }
        store.commit(Batch::new().delete(self.gone(id))).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{RedbConfig, RedbStore};

    #[tokio::test]
    async fn a_removal_that_was_cut_off_is_finished_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(RedbConfig::new(folder.path().join("store"))).unwrap();
        let store: &dyn Store = &store;
        let shelf = Shelf::new("jobs");
        let agents: Vec<AgentId> =
            (0..2_500).map(|n| AgentId::parse(&format!("a{n:05}")).unwrap()).collect();
        for id in ["one", "two"] {
            let hosts = agents.iter().map(|agent| (agent, "host"));
            shelf.store_new(store, id, &id, hosts).await.unwrap();
            let end = shelf.put_end(Batch::new(), id, &agents[7], &"done").unwrap();
            store.commit(end).await.unwrap();
        }
        let jobs: Vec<Stored<String, String>> = shelf.load(store).await.unwrap();
        assert_eq!(jobs.len(), 2);
        assert_eq!((jobs[1].hosts.len(), jobs[1].ends[&agents[7]].as_str()), (2_500, "done"));
        // A crash right after the first step.
        let first = Batch::new().delete(shelf.spec("one")).put(shelf.gone("one"), "");
        store.commit(first).await.unwrap();
        let jobs: Vec<Stored<String, String>> = shelf.load(store).await.unwrap();
        assert_eq!(jobs.len(), 1);
        shelf.remove(store, "two").await.unwrap();
        assert!(store.range_all("jobs/").await.unwrap().is_empty(), "nothing is left behind");
    }
}
