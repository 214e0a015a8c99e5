//! Join tokens (for agents) and admin tokens (for operators).
//!
//! A secret is shown once and stored as SHA-256; it has 128 bits or more, so a slow hash would
//! add nothing. Every use of a join token is a key of its own in the store, `…/<use number>`,
//! which must be absent: two enrolments can never share a use, and ten thousand that run at the
//! same time on one unlimited token do not wait for each other.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use skein_observe::names;
use skein_wire::ids::hex_encode;
use skein_wire::merkle::sha256;
use skein_wire::token::JoinToken;

use crate::api::types::{AdminTokenCreated, AdminTokenInfo, JoinTokenInfo};
use crate::files::write_atomic;
use crate::store::ext::decode;
use crate::store::{Batch, Condition, Store, StoreError, StoreExt};
use crate::{clock, random};

const JOIN: &str = "identity/join-token/";
const JOIN_USE: &str = "identity/join-use/";
const ADMIN: &str = "identity/admin-token/";
/// Default life of a join token.
pub const JOIN_TTL_MS: u64 = 3_600_000;
/// Longest life of a join token.
pub const JOIN_TTL_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// Most tokens of each kind.
pub const TOKENS_MAX: usize = 10_000;
/// Ended tokens are listed this long before they are forgotten.
const KEEP_ENDED_MS: i64 = 24 * 3_600_000;
const ADMIN_PREFIX: &str = "skadm1";

/// Why a join token opens nothing. The texts go to the agent's operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// Never existed, deleted, or the secret is wrong: one answer, so that nobody can probe.
    #[error(
        "the join token is not known to this server; make one with `skein token create` and \
         enrol with it"
    )]
    Unknown,
    /// Its time is over.
    #[error("join token {0} has expired; make a new one with `skein token create`")]
    Expired(String),
    /// Its uses are used.
    #[error(
        "join token {0} has been used as often as it may be; make a new one with \
         `skein token create` (--uses N for several hosts)"
    )]
    UsedUp(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct JoinRecord {
    sha256: String,
    created_ms: i64,
    expires_ms: i64,
    uses_max: u32,
    note: String,
}

#[derive(Debug)]
struct JoinState {
    record: JoinRecord,
    /// Use numbers from here on were never given out.
    next_use: u32,
    /// Given out and given back.
    free: Vec<u32>,
    used: u32,
}

/// The join tokens. The store is the truth; this process is its only writer of them.
#[derive(Debug)]
pub struct JoinTokens {
    store: Arc<dyn Store>,
    ca_sha256: [u8; 32],
    tokens: Mutex<HashMap<String, JoinState>>,
}

impl std::fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store(revision {})", self.revision())
    }
}

/// One use of a token, reserved until it is kept or given back.
#[derive(Debug)]
pub struct Reserved {
    /// The token.
    pub token_id: String,
    use_number: u32,
}

impl Reserved {
    /// Adds the use to the batch that enrols, so that both happen or neither.
    pub fn add_to(&self, batch: Batch, agent_id: &str) -> Batch {
        let key = format!("{JOIN_USE}{}/{:010}", self.token_id, self.use_number);
        batch
            .when(Condition::Present(format!("{JOIN}{}", self.token_id)))
            .when(Condition::Absent(key.clone()))
            .put(key, agent_id.to_owned())
    }
}

impl JoinTokens {
    /// Loads what is stored.
    pub async fn load(store: Arc<dyn Store>, ca_sha256: [u8; 32]) -> Result<Self, StoreError> {
        let mut uses: HashMap<String, BTreeSet<u32>> = HashMap::new();
        for entry in store.range_all(JOIN_USE).await? {
            let one = entry.key[JOIN_USE.len()..].split_once('/');
            if let Some((id, Ok(number))) = one.map(|(id, number)| (id, number.parse())) {
                uses.entry(id.to_owned()).or_default().insert(number);
            }
        }
        let mut tokens = HashMap::new();
        for entry in store.range_all(JOIN).await? {
            let record: JoinRecord = decode(&entry)?;
            let id = entry.key[JOIN.len()..].to_owned();
            let taken = uses.remove(&id).unwrap_or_default();
            let next_use = taken.last().map_or(0, |last| last + 1);
            let free = (0..next_use).filter(|number| !taken.contains(number)).collect();
            let used = taken.len() as u32;
            tokens.insert(id, JoinState { record, next_use, free, used });
        }
        let this = Self { store, ca_sha256, tokens: Mutex::new(tokens) };
        // What is left belongs to tokens whose removal was cut off.
        for id in uses.keys() {
            this.remove(id).await?;
        }
        Ok(this)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, JoinState>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a token; the answer holds the only copy of its secret.
    pub async fn create(
        &self,
        ttl_ms: u64,
        uses_max: u32,
        note: String,
    ) -> Result<(JoinToken, JoinTokenInfo), StoreError> {
        self.forget_ended().await?;
        if self.lock().len() >= TOKENS_MAX {
            let what = "another join token".into();
            return Err(StoreError::TooLarge { what, max: TOKENS_MAX });
        }
        let failed = |error: std::io::Error| StoreError::Engine(error.to_string());
        let token = JoinToken {
            id: random::bytes().map_err(failed)?,
            secret: random::bytes().map_err(failed)?,
            ca_sha256: self.ca_sha256,
        };
        let now_ms = clock::now_ms();
        let record = JoinRecord {
            sha256: hex_encode(&sha256(&token.secret)),
            created_ms: now_ms,
            expires_ms: now_ms.saturating_add(ttl_ms as i64),
            uses_max,
            note,
        };
        let id = token.id_text();
        self.store.create_json(&format!("{JOIN}{id}"), &record).await?;
        let state = JoinState { record, next_use: 0, free: Vec::new(), used: 0 };
        let info = info_of(&id, &state);
        self.lock().insert(id, state);
        Ok((token, info))
    }

    /// All tokens, oldest first.
    pub fn list(&self) -> Vec<JoinTokenInfo> {
        let tokens = self.lock();
        let mut list: Vec<_> = tokens.iter().map(|(id, state)| info_of(id, state)).collect();
        list.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        list
    }

    /// Withdraws a token. False: there is none of that id.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        if self.lock().remove(id).is_none() {
            return Ok(false);
        }
        self.remove(id).await?;
        Ok(true)
    }

    async fn remove(&self, id: &str) -> Result<(), StoreError> {
        self.store.commit(Batch::new().delete(format!("{JOIN}{id}"))).await?;
        let uses = self.store.range_all(&format!("{JOIN_USE}{id}/")).await?;
        for part in uses.chunks(1_000) {
            let delete = |batch: Batch, entry: &crate::store::Entry| batch.delete(&*entry.key);
            self.store.commit(part.iter().fold(Batch::new(), delete)).await?;
        }
        Ok(())
    }

    /// Forgets tokens that ended a while ago.
    pub async fn upkeep(&self) -> Result<(), StoreError> {
        self.forget_ended().await?;
        let kept = self.lock().len();
        metrics::gauge!(names::CONTROL_KEPT, "kind" => "join_token").set(kept as f64);
        Ok(())
    }

    async fn forget_ended(&self) -> Result<(), StoreError> {
        let before = clock::now_ms() - KEEP_ENDED_MS;
        let ended: Vec<String> = {
            let mut tokens = self.lock();
            let is_old = |state: &JoinState| state.record.expires_ms < before;
            let ended = tokens.iter().filter(|(_, state)| is_old(state));
            let ended: Vec<String> = ended.map(|(id, _)| id.clone()).collect();
            ended.iter().for_each(|id| drop(tokens.remove(id)));
            ended
        };
        for id in ended {
            self.remove(&id).await?;
        }
        Ok(())
    }

    fn check<'a>(
        tokens: &'a mut HashMap<String, JoinState>,
        id: &str,
        secret: &[u8],
    ) -> Result<&'a mut JoinState, TokenRefusal> {
        // Hashed first, so that an id that exists takes no longer than one that does not.
        let hash = hex_encode(&sha256(secret));
        let state = tokens.get_mut(id).ok_or(TokenRefusal::Unknown)?;
        if !same(&state.record.sha256, &hash) {
            return Err(TokenRefusal::Unknown);
        }
        if clock::now_ms() > state.record.expires_ms {
            return Err(TokenRefusal::Expired(id.to_owned()));
        }
        Ok(state)
    }

    /// Whether the token is good, without using it.
    pub fn verify(&self, id: &str, secret: &[u8]) -> Result<(), TokenRefusal> {
        Self::check(&mut self.lock(), id, secret).map(|_| ())
    }

    /// Reserves one use.
    pub fn reserve(&self, id: &str, secret: &[u8]) -> Result<Reserved, TokenRefusal> {
        let mut tokens = self.lock();
        let state = Self::check(&mut tokens, id, secret)?;
        let use_number = match state.free.pop() {
            Some(number) => number,
            None if state.record.uses_max != 0 && state.next_use >= state.record.uses_max => {
                return Err(TokenRefusal::UsedUp(id.to_owned()));
            }
            None => {
                state.next_use += 1;
                state.next_use - 1
            }
        };
        state.used += 1;
        Ok(Reserved { token_id: id.to_owned(), use_number })
    }

    /// Gives a use back that was not stored.
    pub fn give_back(&self, reserved: Reserved) {
        if let Some(state) = self.lock().get_mut(&reserved.token_id) {
            state.free.push(reserved.use_number);
            state.used = state.used.saturating_sub(1);
        }
    }
}

fn info_of(id: &str, state: &JoinState) -> JoinTokenInfo {
    JoinTokenInfo {
        id: id.to_owned(),
        created_ms: state.record.created_ms,
        expires_ms: state.record.expires_ms,
        uses_max: state.record.uses_max,
        used: state.used,
        note: state.record.note.clone(),
    }
}

/// Compares in a time that does not depend on where the texts differ.
fn same(a: &str, b: &str) -> bool {
    let difference = a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && difference == 0
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct AdminRecord {
    sha256: String,
    created_ms: i64,
    expires_ms: Option<i64>,
    note: String,
}

/// The admin tokens.
#[derive(Debug)]
pub struct AdminTokens {
    store: Arc<dyn Store>,
    tokens: Mutex<HashMap<String, AdminRecord>>,
    /// Held while one is withdrawn, so that two cannot each leave the other as the last.
    withdrawing: tokio::sync::Mutex<()>,
}

/// What became of a wish to withdraw an admin token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// It opens nothing any more.
    Done,
    /// There is none of that id.
    Unknown,
    /// It is the last that is valid.
    Last,
}

impl AdminTokens {
    /// Loads what is stored. Where none is valid, at first start above all, makes one and writes
    /// it to `first_token_path`: whoever can read that folder owns the server anyway.
    pub async fn load(
        store: Arc<dyn Store>,
        first_token_path: &std::path::Path,
    ) -> Result<Self, StoreError> {
        let mut tokens = HashMap::new();
        for entry in store.range_all(ADMIN).await? {
            tokens.insert(entry.key[ADMIN.len()..].to_owned(), decode(&entry)?);
        }
        let (tokens, withdrawing) = (Mutex::new(tokens), tokio::sync::Mutex::new(()));
        let this = Self { store, tokens, withdrawing };
        if this.valid_besides("") == 0 {
            let (id, token, record) = this.make(None, "made at first start".into())?;
            // The file first: a token that nobody can read would lock the operator out.
            write_atomic(first_token_path, format!("{token}\n").as_bytes(), 0o600).map_err(
                |error| StoreError::Engine(format!("{}: {error}", first_token_path.display())),
            )?;
            this.keep(id, record).await?;
        }
        Ok(this)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, AdminRecord>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(
        &self,
        ttl_ms: Option<u64>,
        note: String,
    ) -> Result<(String, String, AdminRecord), StoreError> {
        let failed = |error: std::io::Error| StoreError::Engine(error.to_string());
        let id = hex_encode(&random::bytes::<8>().map_err(failed)?);
        let secret = hex_encode(&random::bytes::<32>().map_err(failed)?);
        let created_ms = clock::now_ms();
        let ttl_ms = ttl_ms.map(|ttl_ms| i64::try_from(ttl_ms).unwrap_or(i64::MAX));
        let record = AdminRecord {
            sha256: hex_encode(&sha256(secret.as_bytes())),
            created_ms,
            expires_ms: ttl_ms.map(|ttl_ms| created_ms.saturating_add(ttl_ms)),
            note,
        };
        let token = format!("{ADMIN_PREFIX}.{id}.{secret}");
        Ok((id, token, record))
    }

    async fn keep(&self, id: String, record: AdminRecord) -> Result<(), StoreError> {
        self.store.create_json(&format!("{ADMIN}{id}"), &record).await?;
        self.lock().insert(id, record);
        Ok(())
    }

    /// Makes a token; the answer holds its only copy.
    pub async fn create(
        &self,
        ttl_ms: Option<u64>,
        note: String,
    ) -> Result<AdminTokenCreated, StoreError> {
        self.forget_ended().await?;
        if self.lock().len() >= TOKENS_MAX {
            let what = "another admin token".into();
            return Err(StoreError::TooLarge { what, max: TOKENS_MAX });
        }
        let (id, token, record) = self.make(ttl_ms, note)?;
        let expires_ms = record.expires_ms;
        self.keep(id.clone(), record).await?;
        Ok(AdminTokenCreated { id, token, expires_ms })
    }

    /// All tokens, oldest first.
    pub fn list(&self) -> Vec<AdminTokenInfo> {
        let tokens = self.lock();
        let info = |(id, record): (&String, &AdminRecord)| AdminTokenInfo {
            id: id.clone(),
            created_ms: record.created_ms,
            expires_ms: record.expires_ms,
            note: record.note.clone(),
        };
        let mut list: Vec<_> = tokens.iter().map(info).collect();
        list.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        list
    }

    /// Withdraws a token, unless nobody could come in after that.
    pub async fn withdraw(&self, id: &str) -> Result<Withdrawn, StoreError> {
        let _withdrawing = self.withdrawing.lock().await;
        if !self.lock().contains_key(id) {
            return Ok(Withdrawn::Unknown);
        }
        if self.valid_besides(id) == 0 {
            return Ok(Withdrawn::Last);
        }
        self.store.commit(Batch::new().delete(format!("{ADMIN}{id}"))).await?;
        self.lock().remove(id);
        Ok(Withdrawn::Done)
    }

    /// Forgets tokens that ended a while ago.
    pub async fn upkeep(&self) -> Result<(), StoreError> {
        self.forget_ended().await?;
        let kept = self.lock().len();
        metrics::gauge!(names::CONTROL_KEPT, "kind" => "admin_token").set(kept as f64);
        Ok(())
    }

    async fn forget_ended(&self) -> Result<(), StoreError> {
        let before_ms = clock::now_ms() - KEEP_ENDED_MS;
        let ended: Vec<String> = {
            let tokens = self.lock();
            let is_old =
                |record: &AdminRecord| record.expires_ms.is_some_and(|end| end < before_ms);
            let ended = tokens.iter().filter(|(_, record)| is_old(record));
            ended.map(|(id, _)| id.clone()).collect()
        };
        for id in ended {
            self.store.commit(Batch::new().delete(format!("{ADMIN}{id}"))).await?;
            self.lock().remove(&id);
        }
        Ok(())
    }

    /// How many tokens other than one are valid now.
    fn valid_besides(&self, id: &str) -> usize {
        let now_ms = clock::now_ms();
        let valid = |record: &AdminRecord| record.expires_ms.is_none_or(|end| end >= now_ms);
        let tokens = self.lock();
        tokens.iter().filter(|(other, record)| *other != id && valid(record)).count()
    }

    /// The id of the token, when it is good now.
    pub fn verify(&self, token: &str) -> Option<String> {
        let mut parts = token.split('.');
        let (prefix, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
        let hash = hex_encode(&sha256(secret.as_bytes()));
        let tokens = self.lock();
        let record = tokens.get(id)?;
        let valid = prefix == ADMIN_PREFIX
            && parts.next().is_none()
            && same(&record.sha256, &hash)
            && record.expires_ms.is_none_or(|end| end >= clock::now_ms());
        valid.then(|| id.to_owned())
    }
}
