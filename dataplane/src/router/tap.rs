//! Taps: a look at records as they pass.
//!
//! A tap costs what it is allowed to and no more: beyond its rate of records, or beyond a second's
//! worth of searching for its substring, records are counted as skipped without being looked at.

use memchr::memmem::Finder;
use skein_wire::batch::BatchHeader;
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::{AgentId, DataId};
use skein_wire::records;

use super::RouterReport;
use super::meter::Meter;

/// Taps of one worker at a time; each may cost up to [`SCANNED_BYTES_MAX`] a second.
const TAPS_MAX: usize = 16;

/// Bytes of records that one tap searches in a second: about 2 ms of CPU.
const SCANNED_BYTES_MAX: usize = 8 << 20;

/// Bytes of a record that are shown.
const VALUE_BYTES_MAX: usize = 4 << 10;

/// Records that a tap may have each second, whatever it asks for.
const RATE_MAX: u32 = 10_000;

/// Records in one message: at most 1 MiB.
const RECORDS_MAX: usize = 256;

/// Longest time that a record waits for others.
const COLLECT_MS: u64 = 200;

/// A substring longer than this is cut.
const CONTAINS_BYTES_MAX: usize = 1 << 10;

struct Tap {
    id: u64,
    data_id: DataId,
    contains: Option<Finder<'static>>,
    rate: u32,
    second_began_ms: u64,
    taken: u32,
    scanned_bytes: usize,
    records: Vec<fleet::TapRecord>,
    skipped: u64,
    sent_ms: u64,
}

/// The taps of a worker.
pub struct Taps {
    taps: Vec<Tap>,
    workers: usize,
}

impl Taps {
    /// Rates are shared among `workers`.
    pub fn new(workers: usize) -> Self {
        Self { taps: Vec::new(), workers: workers.max(1) }
    }

    /// Begins a tap, or changes the one of that number.
    pub fn start(&mut self, start: &fleet::TapStart, now_ms: u64) {
        self.stop(start.tap_id);
        if self.taps.len() >= TAPS_MAX {
            tracing::warn!(
                tap_id = start.tap_id,
                TAPS_MAX,
                "too many taps; this one shows nothing"
            );
            return;
        }
        let contains = start.contains.as_bytes();
        let contains = &contains[..contains.len().min(CONTAINS_BYTES_MAX)];
        let rate = start.records_per_second_max.clamp(1, RATE_MAX);
        self.taps.push(Tap {
            id: start.tap_id,
            data_id: DataId(start.data_id),
            contains: (!contains.is_empty()).then(|| Finder::new(contains).into_owned()),
            rate: rate.div_ceil(self.workers as u32),
            second_began_ms: now_ms,
            taken: 0,
            scanned_bytes: 0,
            records: Vec::new(),
            skipped: 0,
            sent_ms: now_ms,
        });
    }

    /// Ends a tap.
    pub fn stop(&mut self, id: u64) {
        self.taps.retain(|tap| tap.id != id);
    }

    /// A batch passes.
    pub fn observe(&mut self, agent: &AgentId, header: &BatchHeader, raw: &[u8], now_ms: u64) {
        for tap in self.taps.iter_mut().filter(|tap| tap.data_id == header.data_id) {
            tap.observe(agent, header, raw, now_ms);
        }
    }

    /// When [`Taps::collect`] has something to send.
    pub fn due_ms(&self) -> Option<u64> {
        let waiting = self.taps.iter().filter(|tap| tap.has_news());
        waiting.map(|tap| tap.sent_ms + COLLECT_MS).min()
    }

    /// Moves what was gathered into reports.
    pub fn collect(&mut self, now_ms: u64, reports: &mut Vec<RouterReport>, meter: &Meter) {
        for tap in &mut self.taps {
            if !tap.has_news() || now_ms < tap.sent_ms + COLLECT_MS {
                continue;
            }
            tap.sent_ms = now_ms;
            let records = std::mem::take(&mut tap.records);
            let skipped = std::mem::take(&mut tap.skipped);
            meter.tap_records.increment(records.len() as u64);
            meter.tap_skipped.increment(skipped);
            reports.push(RouterReport::Tap(fleet::TapRecords { tap_id: tap.id, records, skipped }));
        }
    }
}

impl Tap {
    fn has_news(&self) -> bool {
        !self.records.is_empty() || self.skipped > 0
    }

    fn observe(&mut self, agent: &AgentId, header: &BatchHeader, raw: &[u8], now_ms: u64) {
        if now_ms >= self.second_began_ms + 1_000 {
            (self.second_began_ms, self.taken, self.scanned_bytes) = (now_ms, 0, 0);
        }
        let mut seen = 0;
        for record in records::iter(raw, header.record_count) {
            let full = self.taken >= self.rate
                || self.scanned_bytes >= SCANNED_BYTES_MAX
                || self.records.len() >= RECORDS_MAX;
            let (false, Ok(record)) = (full, record) else { break };
            seen += 1;
            self.scanned_bytes += record.value.len();
            if self.contains.as_ref().is_some_and(|finder| finder.find(record.value).is_none()) {
                continue;
            }
            self.taken += 1;
            let value = &record.value[..record.value.len().min(VALUE_BYTES_MAX)];
            self.records.push(fleet::TapRecord {
                agent_id: agent.to_string(),
                data_id: header.data_id.0,
                epoch: header.epoch.0,
                sequence: header.first.plus(record.offset_delta.into()).0,
                timestamp_ms: header.base_timestamp_ms.saturating_add(record.timestamp_delta),
                value: value.to_vec().into(),
            });
        }
        self.skipped += u64::from(header.record_count - seen);
    }
}

#[cfg(test)]
mod tests {
    use skein_wire::batch::BatchBuilder;
    use skein_wire::compress::{Codec, Compressor};
    use skein_wire::ids::{Epoch, Sequence};

    use super::*;

    fn batch(count: usize) -> (AgentId, BatchHeader, Vec<u8>) {
        let agent = AgentId::parse("a").unwrap();
        let mut builder = BatchBuilder::new(DataId(7), 1 << 19);
        for index in 0..count {
            assert!(builder.push(5, format!("line {index}").as_bytes()));
        }
        let mut none = Compressor::new(Codec::None, 0).unwrap();
        let (header, raw) = builder.seal((&agent, Epoch(1), Sequence(100)), &mut none, 0).unwrap();
        (agent, header, raw)
    }

    fn tap(contains: &str, rate: u32) -> fleet::TapStart {
        let contains = contains.to_owned();
        fleet::TapStart { tap_id: 1, data_id: 7, records_per_second_max: rate, contains }
    }

    fn collect(taps: &mut Taps, now_ms: u64) -> Option<fleet::TapRecords> {
        let mut reports = Vec::new();
        taps.collect(now_ms, &mut reports, &Meter::new());
        reports.pop().map(|report| match report {
            RouterReport::Tap(records) => records,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_tap_keeps_its_rate_and_counts_the_rest() {
        let (agent, header, raw) = batch(50);
        let mut taps = Taps::new(1);
        taps.start(&tap("", 10), 0);
        taps.observe(&agent, &header, &raw, 1);
        taps.observe(&agent, &header, &raw, 2);
        assert_eq!(taps.due_ms(), Some(COLLECT_MS));
        assert!(collect(&mut taps, 100).is_none());
        let shown = collect(&mut taps, COLLECT_MS).unwrap();
        assert_eq!((shown.records.len(), shown.skipped), (10, 90));
        assert_eq!((shown.records[3].sequence, &shown.records[3].value[..]), (103, &b"line 3"[..]));
        taps.observe(&agent, &header, &raw, 1_001);
        assert_eq!(collect(&mut taps, 1_500).unwrap().records.len(), 10);
        taps.stop(1);
        taps.observe(&agent, &header, &raw, 9_000);
        assert_eq!(taps.due_ms(), None);
    }

    #[test]
    fn a_filter_shows_what_contains_it() {
        let (agent, header, raw) = batch(50);
        let mut taps = Taps::new(1);
        taps.start(&tap("ne 4", 100), 0);
        taps.observe(&agent, &header, &raw, 1);
        let shown = collect(&mut taps, 1_000).unwrap();
        assert_eq!((shown.records.len(), shown.skipped), (11, 0));
    }
}
