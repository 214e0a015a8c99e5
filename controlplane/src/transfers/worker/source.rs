//! The source side of a transfer whose file comes from an agent: it offers, the data process
//! fetches, and only then the targets are told.

use skein_filemesh::core::manifest::Manifest;
use skein_wire::fleet::v1::to_data::Kind as To;
use skein_wire::fleet::v1::{FetchFile, FetchResult};
use skein_wire::ids::{TransferId, hex_encode};
use skein_wire::signal::v1::{FileOffer, OfferFile, command_body};

use super::super::pace::Course;
use super::super::{Entry, TransferError, tree};
use super::{Group, Worker, begin};
use crate::api::types::{TransferPhase, TransferSource, Upload};
use crate::clock;

/// A source that does not answer is asked again after this time.
const ASK_AGAIN_MS: i64 = 10_000;
/// A source agent may be away this long before the transfer fails.
const SOURCE_AWAY_MS: i64 = 120_000;

impl Worker {
    pub(super) fn look_at_source(
        &self,
        id: TransferId,
        entry: &Entry,
        now_ms: i64,
        group: &mut Group,
    ) {
        let Some(source) = entry.record.source_id() else { return };
        // The report of a fetch can be lost with the connection that carried the last block.
        if let (TransferPhase::Fetching, Some(file)) = (entry.record.phase, &entry.record.file)
            && self.transfers.cache.has_arrived(&id, file.size_bytes)
        {
            let (transfer_id, bytes) = (id.to_bytes(), file.size_bytes);
            let result = FetchResult { transfer_id, error: String::new(), bytes };
            return group.fetched.push((id, result));
        }
        let online = self.fleet.link_of(&source).is_some();
        if online && now_ms - entry.asked_ms > ASK_AGAIN_MS {
            group.offer.insert(id);
        }
        let last_ms = entry.asked_ms.max(entry.record.created_ms);
        if !online && now_ms - last_ms > SOURCE_AWAY_MS {
            let error = format!("source agent {source} has been away for too long");
            group.offers.push((id, FileOffer { error, ..FileOffer::default() }));
        }
    }

    /// The source says what its file is, or that it cannot.
    pub(super) async fn offered(
        &mut self,
        id: TransferId,
        offer: FileOffer,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let Some(mut record) = self.record(&id) else { return Ok(()) };
        if record.phase == TransferPhase::Running || record.cancel_ms.is_some() {
            return Ok(());
        }
        if !offer.error.is_empty() {
            return Err(TransferError::Invalid(offer.error));
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
        let same = record.file.as_ref().is_some_and(|known| known.root == file.root);
        if record.phase == TransferPhase::Fetching && !same {
            let why = "the source file changed while it was being fetched; push it again";
            return Err(TransferError::Invalid(why.into()));
        }
        if record.phase == TransferPhase::Offering {
            // Room is kept from now on; the space itself is allocated by the data process.
            self.transfers.cache.expect(&id, info.size_bytes)?;
            record.phase = TransferPhase::Fetching;
            record.file = Some(file);
            self.store_record(&id, &record).await?;
        }
        group.fetch.insert(id);
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
        if !result.error.is_empty() {
            return Err(TransferError::Invalid(format!(
                "fetching from the source: {}",
                result.error
            )));
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
        if let Some(entry) = self.transfers.lock().get_mut(&id) {
            entry.course = decision.map(|one| Course::new(one, 0, clock::now_ms()));
            begin(&id, entry, group);
        }
        Ok(())
    }

    pub(super) async fn ask_source(&mut self, id: TransferId) {
        let Some(record) = self.record(&id) else { return };
        let (Some(source), TransferSource::Agent { path, .. }) =
            (record.source_id(), record.source.clone())
        else {
            return;
        };
        if record.phase == TransferPhase::Running || record.cancel_ms.is_some() {
            return;
        }
        if let Some(entry) = self.transfers.lock().get_mut(&id) {
            entry.asked_ms = clock::now_ms();
        }
        let tree = Some(tree::rules(&record.tree, &record.file_name));
        let order = OfferFile { transfer_id: id.to_bytes(), path, piece_bytes: 0, tree };
        self.send(id, command_body::Kind::OfferFile(order), record.expire_ms, &[source]).await;
    }

    pub(super) async fn order_fetch(&mut self, id: TransferId) {
        let Some(record) = self.record(&id) else { return };
        let Some(source) = record.source_id() else { return };
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
