//! What earlier transfers showed of how fast hosts and the server are.
//!
//! A transfer shows how fast a host was, not how fast it could be: only who was the limit shows its
//! own rate. So a rate is entered as an estimate for whoever was slower than the others, and
//! otherwise only raises one that is known. What is not shown again is forgotten after
//! [`KEEP_MS`], so that a repaired link is tried again.

mod kept;

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use skein_filemesh::core::place::Rates;
use skein_wire::ids::AgentId;

use super::starts::StartBook;
use crate::registry::AGENTS_MAX;

/// A rate that was not shown again is forgotten after this time.
pub const KEEP_MS: i64 = 3_600_000;
/// Less than this says more of the start than of the link.
const BYTES_MIN: u64 = 4 << 20;
const TIME_MIN_MS: i64 = 500;
/// A host that is slower than this share of the median was its own limit: in the whole of its time
/// and at last. Blocks come in bursts, so that a moment alone makes any host look slow.
const SLOW_SHARE: f64 = 0.5;
/// A host that has not ended must have been slow for so long.
const SLOW_MS_MIN: i64 = 2_000;
/// When so many hosts are within this factor of the median, either way, they had the same limit.
/// Not all: one report that came late makes one host look slow or fast for a moment.
const ALIKE_SHARE: f64 = 0.75;
const ALIKE_FACTOR: f64 = 2.0;

/// Shares of the median between which hosts are alike for trees. A measurement is not more exact
/// than that, and a host that seems a little slower than the rate of a tree gets one child less.
const NOISE_SHARES: RangeInclusive<f64> = 0.7..=1.4;

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Known {
    bytes_s: u64,
    at_ms: i64,
}

impl Known {
    fn now(self, now_ms: i64) -> Option<u64> {
        (self.bytes_s > 0 && now_ms - self.at_ms < KEEP_MS).then_some(self.bytes_s)
    }

    /// It was the limit: this is its rate.
    fn set(&mut self, bytes_s: u64, now_ms: i64) {
        *self = Self { bytes_s, at_ms: now_ms };
    }

    /// As [`Known::raise`], and better than nothing where nothing is known.
    fn fill(&mut self, bytes_s: u64, now_ms: i64) {
        match self.now(now_ms) {
            None => self.set(bytes_s, now_ms),
            Some(_) => self.raise(bytes_s, now_ms),
        }
    }

    /// It can do this at least. An estimate that was too low is corrected; where there is none,
    /// none is made.
    fn raise(&mut self, bytes_s: u64, now_ms: i64) {
        if self.now(now_ms).is_some_and(|known| bytes_s >= known) {
            self.set(bytes_s, now_ms);
        }
    }
}

#[derive(Debug, Default)]
struct Book {
    server_up: Known,
    /// Down and up.
    hosts: HashMap<AgentId, [Known; 2]>,
    /// Hosts of which the store has something older.
    changed: BTreeSet<AgentId>,
    server_changed: bool,
}

/// The rates; bounded by the number of agents.
#[derive(Debug, Default)]
pub struct RateBook {
    book: Mutex<Book>,
    /// What the server sends, where an operator says so; 0: not said.
    server_up_bytes_s: u64,
    /// What is not moving bytes.
    pub starts: StartBook,
}

/// What one host received in a transfer.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which host.
    pub agent: AgentId,
    /// From its start to its end, or until now.
    pub whole: Span,
    /// The last reports of one that has not ended. Of one that has, what came after its first: before
    /// that it waits for others.
    pub last: Span,
}

/// Bytes that came over the network in a time.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// How many.
    pub bytes: u64,
    /// How long.
    pub time_ms: i64,
}

impl Span {
    /// Whether it says something of a link.
    pub fn is_enough(&self) -> bool {
        self.bytes >= BYTES_MIN && self.time_ms >= TIME_MIN_MS
    }

    fn rate(&self) -> u64 {
        self.bytes.saturating_mul(1_000) / self.time_ms.max(1) as u64
    }
}

/// The middle one of sorted rates.
fn median(mut rates: Vec<u64>) -> u64 {
    rates.sort_unstable();
    rates.get(rates.len() / 2).copied().unwrap_or(0)
}

impl RateBook {
    /// Nothing is known yet but what the operator says of the server (0: nothing).
    pub fn new(server_up_bytes_s: u64) -> Self {
        Self { server_up_bytes_s, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a host.
    pub fn of(&self, agent: &AgentId, now_ms: i64) -> Rates {
        let known = self.lock().hosts.get(agent).copied().unwrap_or_default();
        let [down, up] = known.map(|known| known.now(now_ms));
        // Links are mostly symmetric; where they are not, the next transfer shows it.
        Rates { up_bytes_s: up.or(down), down_bytes_s: down }
    }

    /// What is known of the server, as a source.
    pub fn of_server(&self, now_ms: i64) -> Rates {
        let said = (self.server_up_bytes_s > 0).then_some(self.server_up_bytes_s);
        let shown = self.lock().server_up.now(now_ms);
        let up_bytes_s = match (said, shown) {
            (Some(said), Some(shown)) => Some(said.min(shown)),
            (said, shown) => said.or(shown),
        };
        Rates { up_bytes_s, down_bytes_s: None }
    }

    /// Takes what the hosts of a transfer that has ended received. `from_server`: all of it came from
    /// the server, so that it was the limit where the hosts were alike. `is_limited`: a rate limit
    /// was, and nothing is learned.
    pub fn learn(&self, samples: &[Sample], from_server: bool, is_limited: bool, now_ms: i64) {
        let samples = long_enough(samples);
        self.take(&samples, from_server, is_limited, false, now_ms);
    }

    /// Takes what the hosts of a transfer received that ended after it was planned again: it showed
    /// its rates while it ran, and some were thought too low.
    pub fn correct(&self, samples: &[Sample], is_limited: bool, now_ms: i64) {
        if is_limited {
            return;
        }
        let mut book = self.lock();
        for sample in long_enough(samples) {
            if let Some([down, _]) = book.hosts.get_mut(&sample.agent) {
                down.raise(sample.whole.rate(), now_ms);
                book.changed.insert(sample.agent);
            }
        }
    }

    /// The same for a transfer that goes otherwise than predicted at this moment: where hosts are
    /// alike, it is the server's rate that was thought wrong, for it is in every piece's way.
    pub fn learn_now(&self, samples: &[Sample], from_server: bool, is_limited: bool, now_ms: i64) {
        self.take(samples, from_server, is_limited, true, now_ms);
    }

    fn take(
        &self,
        samples: &[Sample],
        from_server: bool,
        is_limited: bool,
        is_now: bool,
        now_ms: i64,
    ) {
        let rates: Vec<u64> = samples.iter().map(|sample| sample.last.rate()).collect();
        if rates.is_empty() || is_limited {
            return;
        }
        let whole = median(samples.iter().map(|sample| sample.whole.rate()).collect());
        let median = median(rates.clone());
        let near = |rate: &&u64| {
            let rate = **rate as f64 / median.max(1) as f64;
            (1.0 / ALIKE_FACTOR..=ALIKE_FACTOR).contains(&rate)
        };
        let near = rates.iter().filter(near).count();
        let alike = rates.len() > 1 && near as f64 >= ALIKE_SHARE * rates.len() as f64;
        let mut book = self.lock();
        let sum = rates.iter().sum();
        book.server_changed = true;
        match (from_server, alike) {
            (true, true) => book.server_up.set(sum, now_ms),
            (true, false) => book.server_up.raise(sum, now_ms),
            (false, true) if is_now => book.server_up.set(median, now_ms),
            // Where hosts relay, each sends about what it receives, and the source too.
            (false, _) => book.server_up.fill(median, now_ms),
        }
        let alone = rates.len() == 1 && from_server;
        for (sample, rate) in samples.iter().map(|sample| (sample, sample.last.rate())) {
            if book.hosts.len() >= AGENTS_MAX && !book.hosts.contains_key(&sample.agent) {
                book.forget(now_ms);
                if book.hosts.len() >= AGENTS_MAX {
                    return;
                }
            }
            book.changed.insert(sample.agent.clone());
            let [down, up] = book.hosts.entry(sample.agent.clone()).or_default();
            let is_under = |rate: u64, median: u64| (rate as f64) < SLOW_SHARE * median as f64;
            let lags = is_under(rate, median);
            let is_slow = lags
                && is_under(sample.whole.rate(), whole)
                && (!is_now || sample.whole.time_ms >= SLOW_MS_MIN);
            match (alone || is_slow, from_server) {
                (true, _) => down.set(rate, now_ms),
                (false, true) => down.raise(rate, now_ms),
                (false, false) if is_now && lags => down.raise(rate, now_ms),
                (false, false) => {
                    down.fill(rate, now_ms);
                    up.fill(rate, now_ms);
                }
            }
        }
    }
}

fn long_enough(samples: &[Sample]) -> Vec<Sample> {
    samples.iter().filter(|one| one.whole.is_enough()).cloned().collect()
}

/// Makes rates that were measured fit for shaping trees: hosts whose rates differ only as
/// measurements do are alike, and those of which nothing is known are like the others where at
/// least half are known. Otherwise they count as fast as the source, which is as fast as they need
/// to be: believed to be faster, they would be given more children than they can feed.
pub fn for_trees(source: &mut Rates, hosts: &mut [Rates]) {
    let ups = hosts.iter_mut().map(|host| &mut host.up_bytes_s).collect();
    let up = steady(ups, source.up_bytes_s);
    let downs = hosts.iter_mut().map(|host| &mut host.down_bytes_s).collect();
    let down = steady(downs, source.up_bytes_s);
    if source.up_bytes_s.is_some() {
        source.up_bytes_s = like(source.up_bytes_s, up);
    }
    // It receives nothing, and must not stand out by that.
    source.down_bytes_s = down.or(source.up_bytes_s);
}

/// Evens out one direction's rates; the answer is their median, where it says something.
fn steady(rates: Vec<&mut Option<u64>>, source: Option<u64>) -> Option<u64> {
    let mut known: Vec<u64> = rates.iter().filter_map(|rate| **rate).collect();
    known.sort_unstable();
    let median = known.get(known.len() / 2).copied().filter(|_| 2 * known.len() >= rates.len());
    for rate in rates {
        *rate = like(*rate, median).or(source);
    }
    median
}

fn like(rate: Option<u64>, median: Option<u64>) -> Option<u64> {
    match (rate, median) {
        (Some(rate), Some(median)) => {
            let is_alike = NOISE_SHARES.contains(&(rate as f64 / median.max(1) as f64));
            Some(if is_alike { median } else { rate })
        }
        (rate, median) => rate.or(median),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId::parse(name).unwrap()
    }

    fn sample(name: &str, mbytes_s: u64) -> Sample {
        of(name, mbytes_s << 23, 8_000)
    }

    fn of(name: &str, bytes: u64, time_ms: i64) -> Sample {
        let whole = Span { bytes, time_ms };
        Sample { agent: agent(name), whole, last: whole }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn hosts_that_are_alike_show_what_the_server_sends() {
        let book = RateBook::default();
        book.learn(&[sample("a", 3), sample("b", 3), sample("c", 4)], true, false, 0);
        assert_eq!(book.of_server(0).up_bytes_s, Some(10 * MIB));
        assert_eq!(book.of(&agent("a"), 0), Rates::default(), "it may be able to do more");
        assert_eq!(book.of_server(KEEP_MS).up_bytes_s, None, "forgotten");
    }

    #[test]
    fn one_host_of_many_does_not_hide_that_the_others_are_alike() {
        let book = RateBook::default();
        let others = [sample("a", 4), sample("b", 4), sample("c", 5)];
        let with = |mbytes_s| [&others[..], &[sample("d", mbytes_s)]].concat();
        book.learn_now(&with(1), true, false, 0);
        assert_eq!(book.of_server(0).up_bytes_s, Some(14 * MIB));
        assert_eq!(book.of(&agent("d"), 0).down_bytes_s, Some(MIB), "it is slower by itself");
        book.learn_now(&with(20), true, false, 1);
        assert_eq!(book.of_server(1).up_bytes_s, Some(33 * MIB), "it is what it sends");
        let half = [sample("a", 4), sample("b", 4), sample("c", 1), sample("d", 1)];
        book.learn_now(&half, true, false, 2);
        assert_eq!(book.of_server(2).up_bytes_s, Some(33 * MIB), "of two kinds: nothing is shown");
    }

    #[test]
    fn who_is_slower_than_the_others_shows_its_own_rate() {
        let book = RateBook::default();
        book.learn(&[sample("a", 20), sample("b", 20), sample("c", 2)], true, false, 0);
        assert_eq!(book.of_server(0).up_bytes_s, None, "it had another limit");
        assert_eq!(book.of(&agent("c"), 0).down_bytes_s, Some(2 * MIB));
        book.learn(&[sample("a", 20), sample("b", 20), sample("c", 18)], false, false, 9);
        assert_eq!(book.of(&agent("c"), 9).down_bytes_s, Some(18 * MIB), "it is faster by now");
        assert_eq!(book.of(&agent("b"), 9), Rates::both(20 * MIB), "among hosts: at least this");
        assert_eq!(book.of_server(9).up_bytes_s, Some(20 * MIB));
    }

    #[test]
    fn a_slow_moment_is_nobodys_rate() {
        let book = RateBook::default();
        let moment = |name, mbytes_s: u64| {
            let last = Span { bytes: mbytes_s << 20, time_ms: 1_000 };
            Sample { last, ..sample(name, 4) }
        };
        let burst = [moment("a", 20), moment("b", 20), moment("c", 1)];
        book.learn_now(&burst, false, false, 0);
        assert_eq!(book.of(&agent("c"), 0), Rates::default());
        let young = [sample("a", 20), sample("b", 20), of("c", MIB, 1_000)];
        book.learn_now(&young, false, false, 1);
        assert_eq!(book.of(&agent("c"), 1), Rates::default(), "it has just begun");
        book.learn_now(&[sample("a", 20), sample("b", 20), sample("c", 1)], false, false, 2);
        assert_eq!(book.of(&agent("c"), 2).down_bytes_s, Some(MIB), "all the time");
        book.correct(&[sample("a", 4), sample("c", 4)], false, 3);
        assert_eq!(book.of(&agent("c"), 3).down_bytes_s, Some(4 * MIB), "as it turned out");
        assert_eq!(book.of(&agent("a"), 3).down_bytes_s, Some(20 * MIB), "only upwards");
    }

    #[test]
    fn limits_short_files_and_what_the_operator_says() {
        let book = RateBook::new(5 * MIB);
        book.learn(&[sample("a", 1), sample("b", 1)], true, true, 0);
        assert_eq!(book.of_server(0).up_bytes_s, Some(5 * MIB));
        book.learn(&[of("a", 1_000, 1_000)], true, false, 0);
        assert_eq!(book.of(&agent("a"), 0), Rates::default());
        book.learn(&[sample("a", 1), sample("b", 1)], true, false, 0);
        assert_eq!(book.of_server(0).up_bytes_s, Some(2 * MIB), "what it does counts");
        let moment = [of("a", MIB, 1_000), of("b", MIB, 1_000)];
        book.learn_now(&moment, false, false, 0);
        assert_eq!(book.of_server(0).up_bytes_s, Some(MIB), "alike, slower, and relaying");
        book.learn(&[sample("a", 9)], true, false, 1);
        let both = book.of(&agent("a"), 1);
        assert_eq!((both.down_bytes_s, both.up_bytes_s), (Some(9 * MIB), Some(MIB)));
    }

    #[test]
    fn trees_are_not_shaped_by_noise_nor_by_what_is_not_known() {
        fn rate_of(rate: &u64) -> Rates {
            if *rate == 0 { Rates::default() } else { Rates::both(*rate) }
        }
        let both = |all: &[u64]| -> Vec<Rates> { all.iter().map(rate_of).collect() };
        let up = |rate: u64| Rates { up_bytes_s: Some(rate), down_bytes_s: None };
        let cases: [(Rates, &[u64], u64, &[u64]); 6] = [
            (up(96), &[100, 95, 104], 100, &[100, 100, 100]),
            (up(400), &[100, 40, 104, 0], 400, &[100, 40, 100, 100]),
            (Rates::default(), &[100, 90, 0], 0, &[100, 100, 100]),
            // Nobody but the source, or one slow host, is known.
            (up(10), &[0, 0, 0], 10, &[10, 10, 10]),
            (Rates::default(), &[0, 0, 3], 0, &[0, 0, 3]),
            (up(50), &[0, 0, 3], 50, &[50, 50, 3]),
        ];
        for (mut source, hosts, source_up, expected) in cases {
            let mut rates = both(hosts);
            for_trees(&mut source, &mut rates);
            assert_eq!(rates, both(expected), "{hosts:?}");
            assert_eq!(source.up_bytes_s.unwrap_or(0), source_up, "{hosts:?}");
        }
    }
}
