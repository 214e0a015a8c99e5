//! The routing table: which streams exist and which data ids go to them.
//!
//! A new table is applied when nothing is unflushed, which a forced flush brings about within
//! milliseconds. Then every lane's positions are exact for every stream, and streams and routes
//! can change without losing or repeating a record.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::DataId;

use super::RouterReport;
use super::core::RouterCore;
use super::streams::Stream;

/// Streams and routes that one table may have; control refuses more before.
const STREAMS_MAX: usize = 4_096;
const ROUTES_MAX: usize = 65_536;

/// Counts workers until all have applied a table, so that control hears of it once.
#[derive(Debug, Default, Clone)]
pub struct Applied(Arc<Mutex<HashMap<u64, usize>>>);

impl Applied {
    /// One of `workers` has applied `revision`; true when it was the last.
    pub fn count(&self, revision: u64, workers: usize) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(revision).or_default();
        *count += 1;
        let complete = *count >= workers;
        if complete {
            // Revisions that a worker skipped are never complete, and no longer matter.
            counts.retain(|known, _| *known > revision);
        }
        complete
    }
}

impl RouterCore {
    pub(super) fn apply_table_if_quiet(&mut self) {
        if self.pending_table.is_none() || !self.is_quiet() {
            return;
        }
        let Some(table) = self.pending_table.take() else { return };
        self.replace_streams(&table.streams);
        self.routes = routes(&table.routes, &self.streams);
        for index in self.lanes.indices() {
            let Some(lane) = self.lanes.get_mut(index) else { continue };
            lane.route(self.routes.get(&lane.data_id).map_or(&[], Vec::as_slice));
            self.settle_lane(index);
        }
        let (revision, streams) = (table.revision, self.streams.len());
        tracing::info!(revision, streams, data_ids = self.routes.len(), "routing table applied");
        self.report(RouterReport::TableApplied(revision));
    }

    /// Closes the files of streams that are gone or changed, and begins the new ones.
    fn replace_streams(&mut self, wanted: &[fleet::Stream]) {
        if wanted.len() > STREAMS_MAX {
            let streams = wanted.len();
            tracing::error!(streams, STREAMS_MAX, "routing table has too many streams");
        }
        let wanted: HashMap<u32, &fleet::Stream> =
            wanted.iter().take(STREAMS_MAX).map(|stream| (stream.stream_id, stream)).collect();
        let unchanged: HashSet<u32> = self
            .streams
            .values()
            .filter(|stream| wanted.get(&stream.id).is_some_and(|new| **new == stream.source))
            .map(|stream| stream.id)
            .collect();
        let ended: Vec<u32> =
            self.streams.keys().copied().filter(|id| !unchanged.contains(id)).collect();
        for id in ended {
            let Some(files) = self.streams.get(&id).map(|stream| stream.files.clone()) else {
                continue;
            };
            files.into_iter().for_each(|file| self.close_file(file));
            self.streams.remove(&id);
        }
        for (id, source) in wanted {
            self.streams.entry(id).or_insert_with(|| Stream::new(source.clone()));
        }
        // What was left by streams that are gone stays as it is.
        self.left.retain(|left| self.streams.contains_key(&left.stream));
    }
}

/// Streams by data id. A route to a stream that does not exist holds its data id, as a wrong
/// stream does: its records must not be dropped for a mistake.
fn routes(routes: &[fleet::Route], streams: &HashMap<u32, Stream>) -> HashMap<DataId, Vec<u32>> {
    let mut by_data_id: HashMap<DataId, Vec<u32>> = HashMap::new();
    for route in routes.iter().take(ROUTES_MAX) {
        if !streams.contains_key(&route.stream_id) {
            tracing::error!(route = route.name, stream_id = route.stream_id, "route has no stream");
        }
        let ids = by_data_id.entry(DataId(route.data_id)).or_default();
        if !ids.contains(&route.stream_id) {
            ids.push(route.stream_id);
        }
    }
    by_data_id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_hears_of_a_table_once() {
        let applied = Applied::default();
        assert!(!applied.count(1, 2));
        assert!(!applied.count(2, 2));
        assert!(applied.count(2, 2));
        assert!(applied.0.lock().unwrap().is_empty());
    }
}
