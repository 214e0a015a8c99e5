//! The source side of a transfer whose file comes from agents: they offer, the data process fetches
//! from one of them, and only then the targets are told.

use std::collections::BTreeMap;

use skein_filemesh::core::manifest::Manifest;
use skein_wire::fleet::v1::to_data::Kind as To;
use skein_wire::fleet::v1::{FetchFile, FetchResult};
use skein_wire::ids::{AgentId, TransferId, hex_encode};
use skein_wire::signal::v1::{FileOffer, OfferFile, command_body};

use super::super::pace::Course;
use super::super::{Entry, TransferError, TransferRecord, tree};
use super::{Group, Worker, begin};
use crate::api::types::{TransferPhase, Upload};
use crate::clock;

/// A source that does not answer is asked again after this time.
const ASK_AGAIN_MS: i64 = 10_000;
/// The last source may be away this long before the transfer fails.
const SOURCE_AWAY_MS: i64 = 120_000;
/// One of several is given up after this time.
const OTHER_AWAY_MS: i64 = 10_000;

impl Worker {
    pub(super) fn look_at_source(
        &self,
        id: TransferId,
        entry: &mut Entry,
        now_ms: i64,
        group: &mut Group,
    ) {
        let record = &entry.record;
        // The report of a fetch can be lost with the connection that carried the last block.
        if let (TransferPhase::Fetching, Some(file)) = (record.phase, &record.file)
            && self.transfers.cache.has_arrived(&id, file.size_bytes)
        {
            let (transfer_id, bytes) = (id.to_bytes(), file.size_bytes);
            let result = FetchResult { transfer_id, error: String::new(), bytes };
            return group.fetched.push((id, result));
        }
        let needed: Vec<AgentId> = match record.phase {
            TransferPhase::Fetching => record.fetch_source().into_iter().collect(),
            _ => record.source_ids().filter(|agent| record.has_source(agent)).collect(),
        };
        let is_online = |agent: &&AgentId| self.fleet.link_of(agent).is_some();
        if needed.iter().any(|agent| is_online(&agent)) && now_ms - entry.asked_ms > ASK_AGAIN_MS {
            group.offer.insert(id);
        }
        let is_last = record.live_sources().count() == 1;
        let patience_ms = if is_last { SOURCE_AWAY_MS } else { OTHER_AWAY_MS };
        let begun_ms = record.created_ms.max(record.rollout.begun_ms);
        entry.away_ms.retain(|agent, _| !is_online(&agent));
        for agent in needed.into_iter().filter(|agent| !is_online(&agent)) {
            let since_ms = *entry.away_ms.entry(agent.clone()).or_insert(now_ms);
            if now_ms - since_ms.max(begun_ms) > patience_ms {
                let error = format!("source agent {agent} has been away for too long");
                group.offers.push((id, agent, FileOffer { error, ..FileOffer::default() }));
            }
        }
    }

    /// A source says what its file is, or that it cannot.
    pub(super) async fn offered(
        &mut self,
        id: TransferId,
        agent: &AgentId,
        offer: FileOffer,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let Some(mut record) = self.record(&id) else { return Ok(()) };
        if record.phase == TransferPhase::Running
            || record.cancel_ms.is_some()
            || record.rollout.is_stopped()
            || !record.has_source(agent)
        {
            return Ok(());
        }
        if !offer.error.is_empty() {
            return self.lose_source(id, record, agent, &offer.error, group).await;
        }
        let info = offer.file.unwrap_or_default();
        let manifest = Manifest::from_info(&info)
            .map_err(|error| TransferError::Invalid(error.to_string()))?;
        let now_ms = clock::now_ms();
        let file = Upload {
            upload_id: id.to_string(),
            name: manifest.name.clone(),
            size_bytes: info.size_bytes,
            root: hex_encode(&manifest.root),
            piece_bytes: info.piece_bytes,
            mode: info.mode,
            mtime_ms: info.mtime_ms,
            tree: info.tree,
            created_ms: now_ms,
            expires_ms: now_ms,
        };
        let is_other = |known: &Upload| known.root != file.root;
        if record.phase == TransferPhase::Fetching && record.file.as_ref().is_some_and(is_other) {
            let why = "the source file changed while it was being fetched; push it again";
            return self.lose_source(id, record, agent, why, group).await;
        }
        if record.phase == TransferPhase::Offering {
            if let Some(why) = record.differing_sources(agent, &file) {
                return Err(TransferError::Invalid(why));
            }
            // Room is kept from now on; the space itself is allocated by the data process.
            self.transfers.cache.expect(&id, info.size_bytes)?;
            record.source_ready(agent);
            // The name and the attributes of the first that has it.
            record.file.get_or_insert(file);
        } else if record.fetch_source().as_ref() != Some(agent) {
            return Ok(());
        }
        self.fetch_if_ready(id, record, group).await
    }

    /// A source does not go on; another does, or the transfer has failed.
    pub(super) async fn lose_source(
        &mut self,
        id: TransferId,
        mut record: TransferRecord,
        agent: &AgentId,
        why: &str,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        record.source_lost(agent, why)?;
        tracing::warn!(transfer = %id, %agent, why, "a source is lost");
        group.cancel.entry(id).or_default().push(agent.clone());
        // The next may have begun anew since it offered.
        group.offer.insert(id);
        self.fetch_if_ready(id, record, group).await
    }

    /// Stores what is known of the sources, and takes the file when each has said what it has.
    async fn fetch_if_ready(
        &mut self,
        id: TransferId,
        mut record: TransferRecord,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let known = self.record(&id);
        if record.phase == TransferPhase::Offering && record.sources_are_ready() {
            record.phase = TransferPhase::Fetching;
        }
        if record.phase == TransferPhase::Fetching {
            group.fetch.insert(id);
        }
        let is_news = known
            .is_none_or(|known| known.phase != record.phase || known.sources != record.sources);
        if is_news {
            self.store_record(&id, &record).await?;
        }
        Ok(())
    }

    /// The file is in the cache, or could not be taken.
    pub(super) async fn fetched(
        &mut self,
        id: TransferId,
        result: FetchResult,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let Some(mut record) = self.record(&id) else { return Ok(()) };
        if record.phase != TransferPhase::Fetching || record.cancel_ms.is_some() {
            return Ok(());
        }
        if !result.error.is_empty() && record.rollout.is_stopped() {
            // The pause ended it.
            return Ok(());
        }
        if !result.error.is_empty() {
            let why = format!("fetching from the source: {}", result.error);
            let Some(source) = record.fetch_source() else {
                return Err(TransferError::Invalid(why));
            };
            return self.lose_source(id, record, &source, &why, group).await;
        }
        let info = record.file_info().unwrap_or_default();
        let manifest = Manifest::from_info(&info)
            .map_err(|error| TransferError::Invalid(error.to_string()))?;
        let cache = &self.transfers.cache;
        let upload = cache.keep(id, &manifest, info.tree).await?;
        cache.pin(&id);
        record.run(upload, clock::now_ms());
        let mut decision = None;
        if let Some(entry) = self.transfers.lock().get(&id) {
            let agents: Vec<_> = entry.hosts.iter().map(|host| (&host.agent, 0)).collect();
            decision = self.transfers.choose(&mut record, &agents);
        }
        self.store_record(&id, &record).await?;
        // Nobody asks them any more. Those that are targets too, and those that were lost just now,
        // hear of that before they are told.
        group.cancel.remove(&id);
        let taken_from = record.fetch_source();
        let others = record.source_ids().filter(|agent| Some(agent) != taken_from.as_ref());
        let others: Vec<AgentId> = others.collect();
        if !others.is_empty() {
            self.send_cancel(id, others, false).await;
        }
        if let Some(entry) = self.transfers.lock().get_mut(&id) {
            entry.course = decision.map(|one| Course::new(one, 0, clock::now_ms()));
            begin(&id, entry, group);
        }
        Ok(())
    }

    pub(super) async fn ask_source(&mut self, id: TransferId) {
        let Some(record) = self.record(&id) else { return };
        if record.phase == TransferPhase::Running
            || record.cancel_ms.is_some()
            || record.rollout.is_stopped()
        {
            return;
        }
        if let Some(entry) = self.transfers.lock().get_mut(&id) {
            entry.asked_ms = clock::now_ms();
        }
        let current = record.fetch_source().filter(|_| record.phase == TransferPhase::Fetching);
        let mut by_path: BTreeMap<&str, Vec<AgentId>> = BTreeMap::new();
        for source in record.live_sources() {
            let Ok(agent) = AgentId::parse(&source.agent_id) else { continue };
            let is_asked = match &current {
                Some(current) => *current == agent,
                None => !source.ready,
            };
            if is_asked {
                by_path.entry(&source.path).or_default().push(agent);
            }
        }
        for (path, agents) in by_path {
            let tree = Some(tree::rules(&record.tree, &record.file_name));
            let (transfer_id, path) = (id.to_bytes(), path.to_owned());
            let order = OfferFile { transfer_id, path, piece_bytes: 0, tree, look: false };
            let kind = command_body::Kind::OfferFile(order);
            self.send(id, kind, record.expire_ms, &agents).await;
        }
    }

    pub(super) async fn order_fetch(&mut self, id: TransferId) {
        let Some(record) = self.record(&id) else { return };
        if record.rollout.is_stopped() {
            return;
        }
        let Some(source) = record.fetch_source() else { return };
        let Some(link) = self.fleet.link_of(&source) else { return };
        if let Some(entry) = self.transfers.lock().get_mut(&id) {
            entry.asked_ms = clock::now_ms();
        }
        let fetch = FetchFile {
            transfer_id: id.to_bytes(),
            agent_id: source.to_string(),
            path: self.transfers.cache.path(&id).to_string_lossy().into_owned(),
            file: record.file_info(),
            not_after_ms: record.expire_ms,
        };
        self.fleet.tell_link(link, To::Fetch(fetch)).await;
    }
}
