//! Conveniences over any store: typed JSON values, single puts, whole ranges, update loops.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Batch, Condition, Entry, Store, StoreError};

/// Entries read per page while a whole range is read.
const PAGE_ENTRIES: usize = 1_000;
/// Attempts of an update loop. Writers are few; losing this often means a bug, not contention.
const UPDATE_ATTEMPTS_MAX: u32 = 64;

/// Encodes a value of the store.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Engine(format!("encode: {error}")))
}

/// Decodes a value of the store.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, StoreError> {
    serde_json::from_slice(&entry.value).map_err(|error| {
        StoreError::Engine(format!("the value of {} cannot be read: {error}", entry.key))
    })
}

/// What an update decides.
pub enum Update<T, R> {
    /// Write this value and answer with the result.
    Write(T, R),
    /// Remove the key and answer with the result.
    Remove(R),
    /// Leave it and answer with the result.
    Leave(R),
}

/// Helpers for every store.
#[allow(async_fn_in_trait)] // used on concrete `dyn Store` alone, whose futures are Send
pub trait StoreExt {
    /// Writes a value whatever was there.
    fn put_json<T: Serialize + Sync>(
        &self,
        key: &str,
        value: &T,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Writes a value where there is none.
    fn create_json<T: Serialize + Sync>(
        &self,
        key: &str,
        value: &T,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Reads a value with its revision.
    fn get_json<T: DeserializeOwned + Send>(
        &self,
        key: &str,
    ) -> impl Future<Output = Result<Option<(T, u64)>, StoreError>> + Send;

    /// Reads all entries below a prefix.
    fn range_all(
        &self,
        prefix: &str,
    ) -> impl Future<Output = Result<Vec<Entry>, StoreError>> + Send;

    /// Reads, decides and writes until no other writer came between.
    fn update_json<T, R, F>(
        &self,
        key: &str,
        decide: F,
    ) -> impl Future<Output = Result<R, StoreError>> + Send
    where
        T: Serialize + DeserializeOwned + Send + Sync,
        R: Send,
        F: FnMut(Option<T>) -> Update<T, R> + Send;
}

impl StoreExt for dyn Store {
    async fn put_json<T: Serialize + Sync>(&self, key: &str, value: &T) -> Result<u64, StoreError> {
        self.commit(Batch::new().put(key, encode(value)?)).await
    }

    async fn create_json<T: Serialize + Sync>(
        &self,
        key: &str,
        value: &T,
    ) -> Result<u64, StoreError> {
        let absent = Condition::Absent(key.to_owned());
        self.commit(Batch::new().when(absent).put(key, encode(value)?)).await
    }

    async fn get_json<T: DeserializeOwned + Send>(
        &self,
        key: &str,
    ) -> Result<Option<(T, u64)>, StoreError> {
        match self.get(key).await? {
            Some(entry) => Ok(Some((decode(&entry)?, entry.revision))),
            None => Ok(None),
        }
    }

    async fn range_all(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.key.clone());
            let page = self.range(prefix, after.as_deref(), PAGE_ENTRIES).await?;
            all.extend(page.entries);
            if !page.more {
                return Ok(all);
            }
        }
    }

    async fn update_json<T, R, F>(&self, key: &str, mut decide: F) -> Result<R, StoreError>
    where
        T: Serialize + DeserializeOwned + Send + Sync,
        R: Send,
        F: FnMut(Option<T>) -> Update<T, R> + Send,
    {
        let mut attempts = 0;
        loop {
            let found: Option<(T, u64)> = self.get_json(key).await?;
            let (value, condition) = match found {
                Some((value, revision)) => (Some(value), Condition::At(key.to_owned(), revision)),
                None => (None, Condition::Absent(key.to_owned())),
            };
            let (batch, result) = match decide(value) {
                Update::Leave(result) => return Ok(result),
                Update::Write(value, result) => (Batch::new().put(key, encode(&value)?), result),
                Update::Remove(result) => (Batch::new().delete(key), result),
            };
            match self.commit(batch.when(condition)).await {
                Ok(_) => return Ok(result),
                Err(StoreError::Conflict { .. }) if attempts < UPDATE_ATTEMPTS_MAX => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }
}
