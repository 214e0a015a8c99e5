//! What a matrix showed, in tables: per cell one row for each who took part. All figures are medians
//! over the rounds in which every host got the file; how many that were stands beside them.

use std::collections::BTreeSet;
use std::fmt;

use super::cells::{Cell, Fault, SHORT_BYTES};
use super::drive::Outcome;
use super::notes;
use super::simulated::Simulated;
use crate::push_parts::Parts;
use crate::report::{Report, Spread};

/// All rounds of one contender in a cell.
#[derive(Debug, Default)]
pub struct Measured {
    /// As on the command line.
    pub name: String,
    /// One per round.
    pub outcomes: Vec<Outcome>,
    /// Rounds that could not be measured, and why.
    pub failed: Vec<String>,
    /// Rounds that the time did not allow.
    pub skipped: usize,
    /// Last host by arithmetic, where it is not worth waiting for, in seconds.
    pub computed: Option<f64>,
    /// Why it was not tried, if so.
    pub not_tried: Option<String>,
    /// Ways that Skein said it took.
    pub gears: BTreeSet<String>,
    /// Piece size of what Skein pushed last.
    pub piece_bytes: Option<u32>,
    /// What the simulator says of the gear that it took.
    pub simulated: Option<Result<Simulated, String>>,
    /// Most memory of an agent since its start, in KiB.
    pub agent_peak_kib: u64,
}

/// All rounds of a cell.
#[derive(Debug)]
pub struct Results {
    /// Its conditions.
    pub cell: Cell,
    /// What TCP got from host to host, bytes/s.
    pub goodput: Option<f64>,
    /// Least time for all but special hosts, in seconds.
    pub bound: Option<f64>,
    /// Where cost counts: what TLS, hashes and writes cost alone.
    pub parts: Option<Parts>,
    /// By contender.
    pub measured: Vec<Measured>,
}

impl Measured {
    /// Nothing yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

impl Outcome {
    /// Receivers that have the file.
    fn complete(&self) -> usize {
        self.finished.iter().flatten().count()
    }

    /// The last of all hosts, if all have the file.
    pub fn last(&self) -> Option<f64> {
        let times = self.finished.iter().copied().collect::<Option<Vec<f64>>>()?;
        times.into_iter().max_by(f64::total_cmp)
    }

    /// What hosts that were killed received beyond the others while they were up, in files: the most
    /// of one. What was on its way when one died it never had, so it does not count.
    pub fn fetched_again(&self, special: &[usize]) -> Option<f64> {
        let of = |is_special: bool| {
            let all = self.received_copies.iter().enumerate();
            all.filter(move |(host, _)| special.contains(host) == is_special)
                .map(|(host, copies)| copies - self.missed(host))
        };
        let usual = Spread::of_some(of(false).collect())?.median;
        of(true).map(|copies| copies / usual - 1.0).max_by(f64::total_cmp)
    }

    /// What arrived at a host while it was down, in files.
    pub fn missed(&self, host: usize) -> f64 {
        self.missed_copies.get(host).copied().unwrap_or(0.0)
    }

    /// Times of those to whom nothing special happened, sorted; none unless all of them have the
    /// file.
    fn others(&self, special: &[usize]) -> Option<Vec<f64>> {
        let others = self.finished.iter().enumerate().filter(|(host, _)| !special.contains(host));
        let mut times = others.map(|(_, at)| *at).collect::<Option<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        (!times.is_empty()).then_some(times)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hosts, complete) = (self.finished.len(), self.complete());
        let last = self.finished.iter().flatten().copied().fold(0.0, f64::max);
        write!(f, "{complete} of {hosts} hosts in {last:.2} s, source sent ")?;
        write!(f, "{:.2} F, {:.1} cores busy, ", self.source_copies, self.cores_busy)?;
        write!(f, "load before {:.1} {}", self.load, self.note)
    }
}

impl Results {
    /// Of these contenders.
    pub fn of(cell: Cell, measured: Vec<Measured>) -> Self {
        Self { cell, goodput: None, bound: None, parts: None, measured }
    }

    /// Runs in which every host got the file (a liar need not), with the others' times.
    pub fn whole<'a>(&self, measured: &'a Measured) -> Vec<(&'a Outcome, Vec<f64>)> {
        let special = self.cell.special();
        let is_whole = |outcome: &&Outcome| {
            self.cell.fault == Fault::Liar || outcome.complete() == outcome.finished.len()
        };
        let whole = measured.outcomes.iter().filter(is_whole);
        whole.filter_map(|outcome| Some((outcome, outcome.others(&special)?))).collect()
    }

    /// Last host of each complete run, special ones aside, seconds.
    pub fn last_of_each(&self, measured: &Measured) -> Vec<f64> {
        self.whole(measured).iter().map(|(_, times)| last_of(times)).collect()
    }

    /// Last over median host, median of complete runs.
    pub fn skew(&self, measured: &Measured) -> Option<f64> {
        let whole = self.whole(measured);
        let skew = whole.iter().map(|(_, times)| last_of(times) / middle_of(times));
        Some(Spread::of_some(skew.collect())?.median)
    }

    /// A line per contender for the one who waits.
    pub fn summary(&self) -> String {
        let rows = self.rows().into_iter().map(|row| format!("  {}\n", row.join(" | ")));
        let bound = self.bound.map_or(String::new(), |bound| format!(", bound {bound:.2} s"));
        format!("{}{bound}\n{}", self.cell.name, rows.collect::<String>())
    }

    fn head() -> [&'static str; 9] {
        [
            "who",
            "first / median / last host, s",
            "last, least to most",
            "last ÷ bound",
            "last ÷ median host",
            "source sent, F",
            "special hosts",
            "runs complete",
            "cores busy; load before",
        ]
    }

    /// A time over the bound; short files are all latency, which the bound knows nothing of.
    fn share(&self, seconds: f64) -> String {
        match self.bound {
            Some(bound) if self.cell.bytes > SHORT_BYTES => format!("{:.2}", seconds / bound),
            _ => "-".to_owned(),
        }
    }

    fn rows(&self) -> Vec<Vec<String>> {
        self.measured.iter().map(|measured| self.row(measured)).collect()
    }

    fn row(&self, measured: &Measured) -> Vec<String> {
        let runs = measured.outcomes.len() + measured.failed.len();
        let whole = self.whole(measured);
        let mut runs = format!("{} of {runs}", whole.len());
        let most = measured.outcomes.iter().map(Outcome::complete).max();
        if whole.is_empty()
            && let Some(most) = most
        {
            runs += &format!(", at most {most} of {} hosts", self.cell.receivers);
        }
        let load = |outcomes: &[&Outcome]| {
            let cores = Spread::of(outcomes.iter().map(|outcome| outcome.cores_busy)).median;
            let load = Spread::of(outcomes.iter().map(|outcome| outcome.load));
            format!("{cores:.1}; {:.1} to {:.1}", load.min, load.max)
        };
        let mut row = vec![measured.name.clone()];
        if whole.is_empty() {
            match measured.computed {
                Some(last) => {
                    row.extend([format!("- / - / {last:.0}, computed"), "-".to_owned()]);
                    row.push(self.share(last));
                    row.push("1.00".to_owned());
                    row.push(format!("{}.00", self.cell.receivers));
                    row.extend(["".into(), "computed".into(), "-".into()]);
                }
                None => {
                    row.extend(["-", "-", "-", "-", "-", ""].map(str::to_owned));
                    row.push(measured.not_tried.clone().unwrap_or(runs));
                    let all: Vec<&Outcome> = measured.outcomes.iter().collect();
                    row.push(if all.is_empty() { "-".into() } else { load(&all) });
                }
            }
            return row;
        }
        let spread = |pick: &dyn Fn(&[f64]) -> f64| Spread::of(whole.iter().map(|(_, t)| pick(t)));
        let (first, middle) = (spread(&|times| times[0]), spread(&middle_of));
        let last = spread(&last_of);
        row.push(format!(
            "{} / {} / {}",
            time(first.median),
            time(middle.median),
            time(last.median)
        ));
        row.push(format!("{} to {}", time(last.min), time(last.max)));
        row.push(self.share(last.median));
        let skew = spread(&|times| last_of(times) / middle_of(times));
        row.push(format!("{:.2}", skew.median));
        let sent = Spread::of(whole.iter().map(|(outcome, _)| outcome.source_copies));
        row.push(format!("{:.2}", sent.median));
        row.push(self.special_cell(&whole));
        row.push(runs);
        row.push(load(&whole.iter().map(|(outcome, _)| *outcome).collect::<Vec<_>>()));
        row
    }

    /// What became of those to whom something special happened.
    fn special_cell(&self, whole: &[(&Outcome, Vec<f64>)]) -> String {
        let special = self.cell.special();
        if special.is_empty() {
            return String::new();
        }
        let last = |outcome: &Outcome| {
            special.iter().filter_map(|host| outcome.finished[*host]).fold(0.0, f64::max)
        };
        let last = Spread::of(whole.iter().map(|(outcome, _)| last(outcome))).median;
        let received = |outcome: &Outcome| {
            let copies = special.iter().filter_map(|host| outcome.received_copies.get(*host));
            copies.copied().fold(0.0, f64::max)
        };
        let received = Spread::of(whole.iter().map(|(outcome, _)| received(outcome)));
        let slow = self.goodput.and_then(|goodput| self.cell.bound_of_slow(goodput));
        match slow {
            Some(bound) => format!("{} s, {:.2} of its bound", time(last), last / bound),
            None if last > 0.0 => format!("{} s, received {:.2} F", time(last), received.max),
            None => format!("-, received {:.2} F", received.max),
        }
    }
}

/// Of sorted times of at least one host.
fn last_of(times: &[f64]) -> f64 {
    times[times.len() - 1]
}

fn middle_of(times: &[f64]) -> f64 {
    Spread::of(times.iter().copied()).median
}

/// Seconds with as many digits as the clocks are good for.
pub fn time(seconds: f64) -> String {
    if seconds < 1.0 { format!("{seconds:.3}") } else { format!("{seconds:.2}") }
}

/// What holds for all cells.
pub fn preface(report: &mut Report) {
    report.note(
        "Each host is a network namespace on one bridge; HTB limits both directions (burst 64 KiB, \
         queue of 300 packets, MTU 1500, no added delay). The bound is that of Kumar and Ross with \
         the goodput of one TCP connection over such a link, measured in the same run. Time is from \
         the submission to the last host's complete file, hashing of the source inside; all files \
         were compared with their source by SHA-256. Skein: TLS 1.3, every block proved, durable \
         before its rename; the others: no TLS and no flush, BitTorrent with SHA-1, udpcast at 0.9 \
         of the rate, `chain` without any check. What the source sent is from its interface, so it \
         includes headers (once for each train of packets) and what was sent again. Special hosts \
         stand apart from first, median and last. Rounds are interleaved: in each, all take their \
         turn. Figures are medians of complete runs.",
    );
}

/// Cells, one below the other.
pub fn write(report: &mut Report, all: &[Results]) {
    for results in all {
        let bound = results.bound.map_or(String::new(), |bound| {
            let goodput = results.goodput.unwrap_or(0.0) * 8.0 / 1e6;
            format!(" Goodput {goodput:.2} Mbit/s, bound {bound:.2} s.")
        });
        let fault = match results.cell.fault {
            Fault::SourceSlows => " The bound counts the slower source.",
            Fault::Loss => " The bound is that of links without loss.",
            _ => "",
        };
        report.note(&format!("### {}\n\n{}.{bound}{fault}", results.cell.name, results.cell));
        report.table(&Results::head(), &results.rows());
        let notes = notes::of(results);
        if !notes.is_empty() {
            report.note(&notes.iter().map(|note| format!("- {note}\n")).collect::<String>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn outcome(finished: &[Option<f64>]) -> Outcome {
        Outcome { finished: finished.to_vec(), source_copies: 1.05, ..Outcome::default() }
    }

    fn results(outcomes: Vec<Outcome>) -> Results {
        let measured = Measured { outcomes, ..Measured::new("chain") };
        let results = Results::of(Cell::named("4x100x4M").unwrap(), vec![measured]);
        Results { goodput: Some(4e6), bound: Some(2.0), ..results }
    }

    #[test]
    fn a_row_has_medians_of_complete_runs() {
        let fast = outcome(&[Some(2.0), Some(2.2), Some(2.4), Some(2.3)]);
        let slow = outcome(&[Some(3.0), Some(3.0), Some(3.0), Some(5.0)]);
        let broken = outcome(&[Some(1.0), None, None, None]);
        let row = &results(vec![fast, slow, broken]).rows()[0];
        assert_eq!(row.len(), Results::head().len());
        assert_eq!(row[1], "2.50 / 2.62 / 3.70");
        assert_eq!(row[2], "2.40 to 5.00");
        assert_eq!(row[3], "1.85");
        assert_eq!(row[7], "2 of 3");
    }

    #[test]
    fn a_liar_need_not_have_the_file() {
        let mut results = results(vec![outcome(&[Some(2.0), None, Some(3.0), Some(2.5)])]);
        assert!(results.last_of_each(&results.measured[0]).is_empty());
        results.cell = Cell::named("4x100x4M+liar").unwrap();
        assert_eq!(results.cell.special(), [1]);
        assert_eq!(results.last_of_each(&results.measured[0]), [3.0]);
        assert_eq!(results.skew(&results.measured[0]), Some(1.2));
    }

    #[test]
    fn a_row_without_a_complete_run_says_how_far_it_came() {
        let row = &results(vec![outcome(&[Some(1.0), None, Some(1.0), None])]).rows()[0];
        assert_eq!(row.len(), Results::head().len());
        assert_eq!(row[1], "-");
        assert_eq!(row[7], "0 of 1, at most 2 of 4 hosts");
        assert_eq!(results(Vec::new()).rows()[0].len(), Results::head().len());
    }

    #[test]
    fn special_hosts_do_not_count_among_the_others() {
        let times = outcome(&[Some(1.0), Some(9.0), None]);
        assert_eq!(times.others(&[1]), None, "one of the others is missing");
        let times = outcome(&[Some(2.0), Some(9.0), Some(1.0)]);
        assert_eq!(times.others(&[1]), Some(vec![1.0, 2.0]));
    }
}
