//! Rates over a restart of the control process: one small value for each host of which something
//! is known. What has expired is neither read nor kept.

use serde::{Deserialize, Serialize};
use skein_wire::ids::AgentId;

use super::{Book, Known, RateBook};
use crate::registry::AGENTS_MAX;
use crate::store::ext::{decode, encode};
use crate::store::{Batch, Store, StoreError, StoreExt};

const HOSTS: &str = "rates/host/";
const SERVER: &str = "rates/server";
/// Values of one batch.
const BATCH_HOSTS: usize = 1_000;

/// As it lies in the store.
#[derive(Serialize, Deserialize)]
struct Kept {
    down: Known,
    up: Known,
}

impl RateBook {
    /// What an earlier process knew, as far as it has not expired, and what the operator says of
    /// the server, bytes per second (0: nothing).
    pub async fn load(
        store: &dyn Store,
        server_up_bytes_s: u64,
        now_ms: i64,
    ) -> Result<Self, StoreError> {
        let this = Self::new(server_up_bytes_s);
        let mut read = Vec::new();
        for entry in store.range_all(HOSTS).await? {
            let agent = entry.key.strip_prefix(HOSTS).and_then(|id| AgentId::parse(id).ok());
            // What an other version wrote is measured again.
            read.push((entry.key.clone(), agent.zip(decode::<Kept>(&entry).ok())));
        }
        let server: Option<Known> = match store.get(SERVER).await? {
            Some(entry) => decode(&entry).ok(),
            None => None,
        };
        let mut expired = Vec::new();
        {
            let mut book = this.lock();
            book.server_up = server.unwrap_or_default().until(now_ms);
            for (key, kept) in read {
                let known = kept.map(|(agent, kept)| (agent, [kept.down, kept.up]));
                let known = known.map(|(agent, known)| (agent, known.map(|one| one.until(now_ms))));
                let is_fresh =
                    |known: &[Known; 2]| known.iter().any(|one| one.now(now_ms).is_some());
                match known.filter(|(_, known)| is_fresh(known)) {
                    Some((agent, known)) if book.hosts.len() < AGENTS_MAX => {
                        book.hosts.insert(agent, known);
                    }
                    _ => expired.push(key),
                }
            }
        }
        for keys in expired.chunks(BATCH_HOSTS) {
            let batch = keys.iter().fold(Batch::new(), |batch, key| batch.delete(key.as_str()));
            store.commit(batch).await?;
        }
        Ok(this)
    }

    /// Stores what has changed since the last call, and forgets what has expired.
    pub async fn keep(&self, store: &dyn Store, now_ms: i64) -> Result<(), StoreError> {
        loop {
            let (batch, taken, with_server) = {
                let mut book = self.lock();
                book.forget(now_ms);
                let taken: Vec<AgentId> = book.changed.iter().take(BATCH_HOSTS).cloned().collect();
                let mut batch = Batch::new();
                for agent in &taken {
                    book.changed.remove(agent);
                    let key = format!("{HOSTS}{agent}");
                    batch = match book.hosts.get(agent) {
                        Some([down, up]) => batch.put(key, encode(&Kept { down: *down, up: *up })?),
                        None => batch.delete(key),
                    };
                }
                let with_server = std::mem::take(&mut book.server_changed);
                if with_server {
                    batch = batch.put(SERVER, encode(&book.server_up)?);
                }
                (batch, taken, with_server)
            };
            if batch.ops.is_empty() {
                return Ok(());
            }
            if let Err(error) = store.commit(batch).await {
                let mut book = self.lock();
                book.changed.extend(taken);
                book.server_changed |= with_server;
                return Err(error);
            }
        }
    }
}

impl Book {
    /// Drops hosts of which nothing is known any more.
    pub(super) fn forget(&mut self, now_ms: i64) {
        let changed = &mut self.changed;
        self.hosts.retain(|agent, known| {
            let is_fresh = known.iter().any(|one| one.now(now_ms).is_some());
            if !is_fresh {
                changed.insert(agent.clone());
            }
            is_fresh
        });
    }
}

impl Known {
    /// A clock that was set back makes nothing last longer.
    fn until(self, now_ms: i64) -> Self {
        Self { at_ms: self.at_ms.min(now_ms), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KEEP_MS, Sample, Span};
    use super::*;
    use crate::store::{RedbConfig, RedbStore};

    fn sample(name: &str, mbytes_s: u64) -> Sample {
        let whole = Span { bytes: mbytes_s << 23, time_ms: 8_000 };
        Sample { agent: AgentId::parse(name).unwrap(), whole, last: whole }
    }

    #[tokio::test]
    async fn rates_outlive_the_process_and_expire_in_the_store_too() {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(RedbConfig::new(folder.path().join("store.redb"))).unwrap();
        let store: &dyn Store = &store;
        let book = RateBook::load(store, 0, 5).await.unwrap();
        book.learn(&[sample("a", 20), sample("b", 20), sample("c", 2)], false, false, 10);
        book.keep(store, 11).await.unwrap();
        let kept = async || store.range_all("rates/").await.unwrap().len();
        assert_eq!(kept().await, 4, "three hosts and the server");

        let next = RateBook::load(store, 0, 20).await.unwrap();
        for name in ["a", "b", "c"] {
            let agent = AgentId::parse(name).unwrap();
            assert_eq!(next.of(&agent, 20), book.of(&agent, 20), "{name}");
        }
        assert_eq!(next.of_server(20), book.of_server(20));
        let agent = AgentId::parse("c").unwrap();
        assert_eq!(next.of(&agent, 20).down_bytes_s, Some(2 << 20));
        assert_eq!(next.of(&agent, 10 + KEEP_MS).down_bytes_s, None, "not younger by a restart");

        // One is shown again; the others expire, in the store as well.
        next.learn(&[sample("c", 3)], true, false, KEEP_MS);
        next.keep(store, 10 + KEEP_MS).await.unwrap();
        assert_eq!(kept().await, 2);
        let after = RateBook::load(store, 0, 2 * KEEP_MS).await.unwrap();
        assert_eq!(after.of(&agent, 2 * KEEP_MS).down_bytes_s, None);
        assert_eq!(kept().await, 1, "expired while nobody ran");
        // The clock is set back by a day: what is from the future lasts as long as anything.
        let early = RateBook::load(store, 0, 0).await.unwrap();
        assert_eq!(early.of_server(KEEP_MS).up_bytes_s, None);
    }
}
