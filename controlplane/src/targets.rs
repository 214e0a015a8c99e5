//! How the targets of a task or transfer are stored: pages of (agent id, host name), so that
//! twenty thousand hosts are a handful of entries and no value exceeds the store's limit.

use std::sync::Arc;

use skein_wire::ids::AgentId;

use crate::store::ext::{decode, encode};
use crate::store::{Batch, Store, StoreError, StoreExt};

/// Targets per page: with ids and names of full length 330 KiB.
const PAGE_TARGETS: usize = 1_000;

/// Adds the pages below `prefix` to a batch.
pub fn put<'a>(
    mut batch: Batch,
    prefix: &str,
    targets: impl Iterator<Item = (&'a AgentId, &'a str)>,
) -> Result<Batch, StoreError> {
    let targets: Vec<(&str, &str)> = targets.map(|(id, name)| (id.as_str(), name)).collect();
    for (page, targets) in targets.chunks(PAGE_TARGETS).enumerate() {
        batch = batch.put(format!("{prefix}{page:06}"), encode(&targets)?);
    }
    Ok(batch)
}

/// Reads the pages below `prefix`, in order of agent id.
pub async fn load(store: &dyn Store, prefix: &str) -> Result<Vec<(AgentId, Arc<str>)>, StoreError> {
    let mut targets = Vec::new();
    for page in store.range_all(prefix).await? {
        let page: Vec<(String, String)> = decode(&page)?;
        targets.extend(
            page.into_iter().filter_map(|(id, name)| {
                Some((AgentId::parse(&id).ok()?, Arc::from(name.as_str())))
            }),
        );
    }
    Ok(targets)
}

/// Removes everything below the prefixes, in batches.
pub async fn remove_below(store: &dyn Store, prefixes: &[String]) -> Result<(), StoreError> {
    for prefix in prefixes {
        for part in store.range_all(prefix).await?.chunks(PAGE_TARGETS) {
            let batch = part.iter().fold(Batch::new(), |batch, entry| batch.delete(&*entry.key));
            store.commit(batch).await?;
        }
    }
    Ok(())
}
