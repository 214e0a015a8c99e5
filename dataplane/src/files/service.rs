//! The transfers of this process and who may take part in them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use metrics::gauge;
use skein_observe::names;
use skein_wire::fleet::v1::from_data::Kind;
use skein_wire::fleet::v1::{FetchFile, FetchResult, SeedFile, SeedSent};
use skein_wire::ids::{AgentId, TransferId};

use crate::fleet::FleetSender;
use crate::limits::TRANSFERS_MAX;
use crate::shard::ShardMail;

use super::fetch::FetchOrder;
use super::pool::FilePool;
use super::seed::SeedOffer;

/// What an agent's file channel is for.
#[derive(Clone, Debug)]
pub enum Role {
    /// It fetches this file.
    Seed(Arc<SeedOffer>),
    /// It has this file.
    Fetch(Arc<FetchOrder>),
}

/// Shared by shards, file threads and the fleet link. Cheap to clone.
#[derive(Clone)]
pub struct FileService {
    inner: Arc<Inner>,
}

struct Inner {
    pool: FilePool,
    fleet: FleetSender,
    shards: Vec<flume::Sender<ShardMail>>,
    transfers: Mutex<Transfers>,
}

#[derive(Default)]
struct Transfers {
    seeds: HashMap<[u8; 20], Arc<SeedOffer>>,
    fetches: HashMap<[u8; 20], Arc<FetchOrder>>,
}

impl FileService {
    /// A service without transfers.
    pub fn new(pool: FilePool, fleet: FleetSender, shards: Vec<flume::Sender<ShardMail>>) -> Self {
        let transfers = Mutex::default();
        Self { inner: Arc::new(Inner { pool, fleet, shards, transfers }) }
    }

    /// The threads that may block.
    pub fn pool(&self) -> &FilePool {
        &self.inner.pool
    }

    /// What `agent` may do with the transfer that its handshake names; `None`: nothing (yet).
    pub fn role(&self, info_hash: &[u8; 20], agent: &AgentId, unix_ms: i64) -> Option<Role> {
        let transfers = self.lock();
        if let Some(fetch) = transfers.fetches.get(info_hash)
            && fetch.agent == *agent
            && unix_ms <= fetch.not_after_ms
        {
            return Some(Role::Fetch(fetch.clone()));
        }
        let seed = transfers.seeds.get(info_hash)?;
        seed.admits(agent, unix_ms).then(|| Role::Seed(seed.clone()))
    }

    /// Offers a file; one that is offered already gets the new members.
    pub fn seed(&self, seed: SeedFile) {
        let mut offer = match SeedOffer::new(seed) {
            Ok(offer) => offer,
            Err(error) => return tracing::error!(%error, "control announced a bad seed"),
        };
        let offer = {
            let mut transfers = self.lock();
            if transfers.seeds.len() >= TRANSFERS_MAX {
                return tracing::error!(transfer = %offer.transfer, "too many transfers; not served");
            }
            if let Some(earlier) = transfers.seeds.get(&offer.info_hash) {
                offer.continues(earlier);
            }
            let offer = Arc::new(offer);
            transfers.seeds.insert(offer.info_hash, offer.clone());
            transfers.report();
            offer
        };
        let service = self.clone();
        let submitted = self.pool().submit(move || {
            offer.open();
            service.changed();
        });
        if !submitted {
            tracing::error!("file threads are too busy to open a seed; agents will ask again");
        }
    }

    /// Takes a file from an agent as soon as it connects.
    pub fn fetch(&self, fetch: FetchFile) {
        let transfer_id = fetch.transfer_id.clone();
        let order = match FetchOrder::new(fetch) {
            Ok(order) => Arc::new(order),
            Err(error) => return self.fetched(transfer_id, Err(error)),
        };
        {
            let mut transfers = self.lock();
            if transfers.fetches.len() >= TRANSFERS_MAX {
                drop(transfers);
                return self.fetched(transfer_id, Err("too many transfers".to_owned()));
            }
            transfers.fetches.insert(order.info_hash, order);
            transfers.report();
        }
        self.changed();
    }

    /// Ends everything about a transfer. The caller tells the shards.
    pub fn withdraw(&self, transfer_id: &[u8]) {
        let Ok(transfer) = TransferId::from_slice(transfer_id) else { return };
        let mut transfers = self.lock();
        let mut sent_bytes = 0;
        transfers.seeds.retain(|_, seed| {
            let stays = seed.transfer != transfer;
            sent_bytes = if stays { sent_bytes } else { seed.sent_bytes() };
            stays
        });
        transfers.fetches.retain(|_, fetch| fetch.transfer != transfer);
        transfers.report();
        drop(transfers);
        self.tell_sent(&transfer, sent_bytes, true);
    }

    /// Tells control what was sent since it was last told. What cannot be told now comes with the
    /// next call: the counts only grow.
    pub fn report_sent(&self) {
        let transfers = self.lock();
        for seed in transfers.seeds.values() {
            if let Some(bytes) = seed.untold()
                && self.tell_sent(&seed.transfer, bytes, false)
            {
                seed.told(bytes);
            }
        }
    }

    fn tell_sent(&self, transfer: &TransferId, bytes: u64, is_last: bool) -> bool {
        if self.inner.fleet.link().is_none() {
            return false;
        }
        let sent = SeedSent { transfer_id: transfer.to_bytes(), bytes, is_last };
        self.inner.fleet.push(Kind::SeedSent(sent), 0)
    }

    /// A fetch has ended, good or bad: control is told once.
    pub fn fetch_ended(&self, order: &FetchOrder, result: Result<u64, String>) {
        let known = self.lock().fetches.remove(&order.info_hash).is_some();
        self.lock().report();
        if known {
            self.fetched(order.transfer.to_bytes(), result);
        }
    }

    fn fetched(&self, transfer_id: Bytes, result: Result<u64, String>) {
        let (bytes, error) = match result {
            Ok(bytes) => (bytes, String::new()),
            Err(error) => (0, error),
        };
        self.inner.fleet.push(Kind::Fetch(FetchResult { transfer_id, error, bytes }), 0);
    }

    /// Forgets what has expired.
    pub fn sweep(&self, unix_ms: i64) {
        let expired: Vec<_> = {
            let mut transfers = self.lock();
            transfers.seeds.retain(|_, seed| unix_ms <= seed.not_after_ms);
            let late = |order: &&Arc<FetchOrder>| unix_ms > order.not_after_ms;
            transfers.fetches.values().filter(late).cloned().collect()
        };
        for order in &expired {
            let error = format!("agent {} did not deliver the file in time", order.agent);
            self.fetch_ended(order, Err(error));
        }
    }

    /// Tells every shard to look at its file channels.
    fn changed(&self) {
        for shard in &self.inner.shards {
            let _ = shard.send(ShardMail::TransfersChanged); // fails when the process ends
        }
    }

    fn lock(&self) -> MutexGuard<'_, Transfers> {
        self.inner.transfers.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Transfers {
    fn report(&self) {
        gauge!(names::DATA_FILE_TRANSFERS, "role" => "seed").set(self.seeds.len() as f64);
        gauge!(names::DATA_FILE_TRANSFERS, "role" => "leech").set(self.fetches.len() as f64);
    }
}
