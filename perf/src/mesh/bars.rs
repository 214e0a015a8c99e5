//! What the specification asks of a cell, beside what was measured.

use super::cells::{Cell, Fault, SHORT_BYTES};
use super::drive::Outcome;
use super::tables::{Measured, Results};
use crate::content::p99;
use crate::report::Spread;

/// Last host over the bound, in cells without faults.
const LAST_OVER_BOUND: [(&str, f64); 4] =
    [("16x20x32M", 1.08), ("16x20x128M", 1.04), ("48x8x16M", 1.14), ("8x100x16M", 1.25)];

/// From so many runs on it counts that none failed.
const MANY_RUNS: usize = 10;
/// Files that travel in an order: what they take is a flush and little more.
const TINY_BYTES: u64 = 32 << 10;

/// Sentences about one contender: each with what is asked for and whether it holds.
pub fn judge(results: &Results, measured: &Measured) -> Vec<String> {
    if !measured.name.starts_with("skein") || measured.outcomes.is_empty() {
        return Vec::new();
    }
    let judge = Judge { cell: &results.cell, results, measured };
    let mut said = Vec::new();
    said.extend(judge.complete());
    said.extend(judge.last_over_bound());
    said.extend(judge.skew());
    said.extend(judge.source());
    said.extend(judge.border());
    said.extend(judge.special());
    said.extend(judge.liar());
    said.extend(judge.replanned());
    said.extend(judge.tiny());
    said.extend(judge.against("libtorrent", 1.5, results.cell.rate.is_none()));
    said.extend(judge.against("rsync", 10.0, true));
    said.extend(judge.against("tar", 2.5, true));
    said.extend(judge.memory());
    said
}

struct Judge<'a> {
    cell: &'a Cell,
    results: &'a Results,
    measured: &'a Measured,
}

/// `what` is at most, or at least, `bar`.
fn at_most(what: &str, value: f64, bar: f64) -> String {
    let verdict = if value <= bar { "holds" } else { "missed" };
    format!("{what} {value:.2}, at most {bar:.2}: {verdict}")
}

fn at_least(what: &str, value: f64, bar: f64) -> String {
    let verdict = if value >= bar { "holds" } else { "missed" };
    format!("{what} {value:.2}, at least {bar:.2}: {verdict}")
}

impl Judge<'_> {
    /// Over complete runs.
    fn median(&self, pick: impl Fn(&Outcome) -> Option<f64>) -> Option<f64> {
        let whole = self.results.whole(self.measured);
        Some(Spread::of_some(whole.iter().filter_map(|(run, _)| pick(run)).collect())?.median)
    }

    fn is_fast_enough_to_count(&self) -> bool {
        self.cell.bytes > SHORT_BYTES && self.cell.files.is_none()
    }

    fn complete(&self) -> Option<String> {
        let runs = self.measured.outcomes.len() + self.measured.failed.len();
        let complete = self.results.last_of_each(self.measured).len();
        (runs >= MANY_RUNS || self.cell.fault == Fault::SourceDies).then(|| {
            let verdict = if complete == runs { "holds" } else { "missed" };
            let died = self.measured.outcomes.iter().filter(|outcome| outcome.source_died).count();
            let died = match self.cell.fault {
                Fault::SourceDies => format!(
                    "; the source was killed in {died} of them, in the others all hosts were complete \
                     before it had sent that much"
                ),
                _ => String::new(),
            };
            format!("{complete} of {runs} runs complete: {verdict}{died}")
        })
    }

    fn last_over_bound(&self) -> Option<String> {
        let named = LAST_OVER_BOUND.iter().find(|(name, _)| *name == self.cell.name);
        let bar = match self.cell.fault {
            Fault::None => named?.1,
            Fault::SlowHost | Fault::KillTenth => 1.12,
            Fault::Loss => 1.25,
            _ => return None,
        };
        let last = Spread::of_some(self.results.last_of_each(self.measured))?.median;
        Some(at_most("last ÷ bound", last / self.results.bound?, bar))
    }

    fn skew(&self) -> Option<String> {
        let counts = self.cell.fault == Fault::None && self.is_fast_enough_to_count();
        let counts = counts && !self.measured.gears.contains("direct");
        let skew = self.results.skew(self.measured).filter(|_| counts)?;
        (self.cell.receivers >= 4 && self.cell.rate.is_some())
            .then(|| at_most("last ÷ median", skew, 1.05))
    }

    fn source(&self) -> Option<String> {
        let counts = matches!(self.cell.fault, Fault::None | Fault::Border);
        let planned = !self.measured.gears.contains("direct");
        let counts = counts && planned && self.is_fast_enough_to_count();
        let sent = self.median(|outcome| Some(outcome.source_copies)).filter(|_| counts)?;
        (self.cell.receivers >= 4).then(|| at_most("source sent, F,", sent, 1.10))
    }

    fn border(&self) -> Option<String> {
        let into = self.median(|outcome| Some(outcome.border_copies?[0]))?;
        let out = self.median(|outcome| Some(outcome.border_copies?[1]))?;
        Some(at_most("into the far region, F,", into, 1.05) + &format!("; out of it {out:.2} F"))
    }

    /// The slow host's own time, or what those that were killed fetched again.
    fn special(&self) -> Option<String> {
        let special = self.cell.special();
        match self.cell.fault {
            Fault::SlowHost => {
                let own = self.results.goodput.and_then(|goodput| self.cell.bound_of_slow(goodput));
                let last = self.median(|outcome| outcome.finished[special[0]])?;
                Some(at_most("slow host ÷ its own bound", last / own?, 1.08))
            }
            Fault::KillTenth => {
                let again =
                    self.median(|outcome| Some(outcome.fetched_again(&special)? * 100.0))?;
                let kept = self.median(|outcome| {
                    let kept = outcome.told.as_ref()?.resumed_bytes as f64;
                    Some(kept / (self.cell.bytes * special.len() as u64) as f64 * 100.0)
                });
                let kept = kept.unwrap_or(0.0);
                let again = at_most("fetched again after kill -9, % of the file,", again, 1.0);
                let missed = self.median(|outcome| {
                    let missed = special.iter().map(|host| outcome.missed(*host) * 100.0);
                    missed.max_by(f64::total_cmp)
                });
                let missed = missed.unwrap_or(0.0);
                Some(format!(
                    "{again}; {missed:.2} % more were on their way to one when it died; {kept:.0} % of \
                     it was kept over the restart"
                ))
            }
            _ => None,
        }
    }

    fn liar(&self) -> Option<String> {
        let told = self.measured.outcomes.iter().filter_map(|outcome| outcome.told.as_ref());
        let told: Vec<_> = told.filter(|_| self.cell.fault == Fault::Liar).collect();
        let most = told.iter().map(|told| told.refused[0]).max()?;
        let all = told.iter().map(|told| told.refused[1]).sum::<u64>();
        let times = told.iter().flat_map(|told| told.expelled.values()).sum::<u64>();
        let members = told.iter().map(|told| told.expelled.len()).max().unwrap_or(0);
        let holds = (1..=1).contains(&most) && members == 1;
        Some(format!(
            "{all} false blocks refused in all, at most {most} by one host (1); expelled {times} times, \
             {members} members (1: what is false is relayed by nobody): {}",
            if holds { "holds" } else { "missed" }
        ))
    }

    fn replanned(&self) -> Option<String> {
        if self.cell.fault != Fault::SourceSlows {
            return None;
        }
        let after = self.median(|outcome| outcome.told.as_ref()?.replanned_s);
        Some(after.map_or("the transfer never said that it was planned anew: missed".into(), |s| {
            at_most("planned anew after, s,", s, 2.0)
        }))
    }

    /// Short files: a few milliseconds, and what the disk takes.
    fn tiny(&self) -> Option<String> {
        if self.cell.bytes > TINY_BYTES {
            return None;
        }
        let flushes = self.measured.outcomes.iter().flat_map(|outcome| outcome.flushes.clone());
        let flush = p99(flushes.collect())?;
        let last = Spread::of_some(self.results.last_of_each(self.measured))?;
        let bar = 0.015 + 3.0 * flush;
        let cores = self.median(|outcome| Some(outcome.cores_busy))?;
        let verdict = if last.median <= bar { "holds" } else { "missed" };
        Some(format!(
            "last host {:.1} ms, at most 15 ms + 3 × {:.1} ms (99th percentile of bare writes and \
             flushes between the rounds) = {:.1} ms: {verdict}; {cores:.2} cores busy",
            last.median * 1e3,
            flush * 1e3,
            bar * 1e3,
        ))
    }

    /// How many times as fast as another, with and without the final flush of both.
    fn against(&self, other: &str, bar: f64, counts: bool) -> Option<String> {
        let other = self.results.measured.iter().find(|measured| measured.name == other)?;
        let median = |times: Vec<f64>| Some(Spread::of_some(times)?.median);
        let last = |measured| median(self.results.last_of_each(measured));
        let ratio = last(other)? / last(self.measured).filter(|_| counts)?;
        let mut said = at_least(&format!("{}'s time ÷ ours", other.name), ratio, bar);
        let synced = |measured: &Measured| {
            median(measured.outcomes.iter().filter_map(|outcome| outcome.synced).collect())
        };
        if let (Some(theirs), Some(ours)) = (synced(other), synced(self.measured)) {
            said += &format!("; with a final sync of both {:.2}", theirs / ours);
        }
        Some(said)
    }

    fn memory(&self) -> Option<String> {
        let mib = self.measured.agent_peak_kib as f64 / 1024.0;
        (mib > 0.0).then(|| at_most("largest agent, MiB, supervisor and worker,", mib, 64.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::told::Told;

    fn judged(cell: &str, name: &str, outcome: Outcome) -> Vec<String> {
        let measured = Measured { outcomes: vec![outcome], ..Measured::new(name) };
        let cell = Cell::named(cell).unwrap();
        let mut results = Results::of(cell, vec![measured]);
        (results.goodput, results.bound) = (Some(2e6), Some(10.0));
        judge(&results, &results.measured[0])
    }

    fn ended(times: &[f64]) -> Outcome {
        let finished = times.iter().map(|time| Some(*time)).collect();
        Outcome { finished, source_copies: 1.05, ..Outcome::default() }
    }

    #[test]
    fn a_bar_holds_or_is_missed() {
        let holds = judged("16x20x32M", "skein", ended(&[10.5; 16]));
        let expected = [
            "last ÷ bound 1.05, at most 1.08: holds",
            "last ÷ median 1.00, at most 1.05: holds",
            "source sent, F, 1.05, at most 1.10: holds",
        ];
        assert_eq!(holds, expected);
        let missed = judged("16x20x32M", "skein", ended(&[12.0; 16]));
        assert_eq!(missed[0], "last ÷ bound 1.20, at most 1.08: missed");
        assert!(judged("16x20x32M", "aria2", ended(&[12.0; 16])).is_empty());
    }

    #[test]
    fn what_was_killed_may_fetch_little_again() {
        let mut outcome = ended(&[10.0; 16]);
        outcome.received_copies = vec![1.02; 16];
        outcome.received_copies[4] = 1.10;
        let again = |outcome: &Outcome| {
            let said = judged("kill-tenth", "skein:planned", outcome.clone());
            said.into_iter().find(|said| said.starts_with("fetched again")).unwrap()
        };
        let said = again(&outcome);
        assert!(said.contains(" 7.84, at most 1.00: missed; 0.00 % more"), "{said}");
        // It never had what came while it was down.
        outcome.missed_copies = vec![0.0; 16];
        outcome.missed_copies[4] = 0.075;
        let said = again(&outcome);
        assert!(said.contains(" 0.49, at most 1.00: holds; 7.50 % more"), "{said}");
    }

    #[test]
    fn a_liar_is_one_member_and_refused_once_by_each() {
        let told = |refused: [u64; 2], members: &[&str]| Outcome {
            told: Some(Told {
                refused,
                expelled: members.iter().map(|member| ((*member).to_owned(), 1)).collect(),
                ..Told::default()
            }),
            ..ended(&[10.0; 16])
        };
        let holds = |outcome| judged("liar", "skein", outcome).iter().any(|s| s.ends_with("holds"));
        assert!(holds(told([1, 5], &["4"])));
        assert!(!holds(told([2, 5], &["4"])));
        assert!(!holds(told([1, 5], &["4", "7"])));
        assert!(!holds(told([0, 0], &[])), "nobody met the liar");
    }

    #[test]
    fn a_tiny_file_is_judged_by_the_disk() {
        let outcome = Outcome { flushes: vec![0.002; 100], ..ended(&[0.020; 48]) };
        let said = judged("48x1000x10K", "skein", outcome);
        assert!(said[0].contains("= 21.0 ms: holds"), "{said:?}");
    }
}
