//! Whether the gear that nobody asked for is the right one: every cell of a grid by each forced gear
//! and by `auto`, with the time that was predicted beside the time that it took.

use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::place::{Place, Rates};
use skein_filemesh::core::planner::{
    Gear, Host, INLINE_BYTES_MAX, Limits, PlannerInput, PlannerSettings, Starts, plan as decide,
};

use super::cells::Cell;
use super::tables::{Measured, Results};
use crate::report::{Report, Spread};

/// A gear predicted beyond this multiple of the bound, and of the best gear's prediction, is not
/// worth its time.
const WORTH: f64 = 5.0;
/// How far a prediction may be off.
const OFF: f64 = 0.15;
/// Hosts that the server chooses a piece size for before it knows the targets.
const HOSTS_ASSUMED: u32 = 1_000;

/// What the planner predicts for links of `goodput` bytes/s: each gear's time, in seconds. Empty
/// without a limit on the links.
pub fn predictions(cell: &Cell, goodput: Option<f64>) -> Vec<(Gear, f64)> {
    let piece = choose_piece_bytes(cell.bytes, HOSTS_ASSUMED);
    let (Some(goodput), Ok(geometry)) = (goodput, Geometry::new(cell.bytes, piece)) else {
        return Vec::new();
    };
    let rates = Rates::both(goodput as u64);
    let source = Host { place: Place::default(), rates, held_bytes: cell.bytes };
    let target = Host { held_bytes: 0, ..source };
    let targets = vec![target; cell.receivers];
    let input = PlannerInput {
        geometry,
        is_hashed: true,
        can_inline: true,
        fresh_bytes: cell.bytes,
        sources: &[source],
        targets: &targets,
        borders: &[],
        limits: Limits::default(),
        rtt_ms: None,
        starts: Starts::default(),
    };
    let decision = decide(&input, &PlannerSettings::default());
    decision.gears.iter().map(|one| (one.gear, one.time_ms / 1e3)).collect()
}

/// Why a gear cannot be forced in a cell, with this `skein push --help`; none if it can.
pub fn impossible(gear: &str, cell: &Cell, help: &str) -> Option<String> {
    let flag = help.split_once("--gear").map_or("", |(_, flag)| flag);
    let values = flag.split_once("[possible values: ").map_or("", |(_, values)| values);
    let values = values.split_once(']').map_or("", |(values, _)| values);
    if !values.split(", ").any(|value| value == gear) {
        return Some("skipped: skein push knows no such gear".to_owned());
    }
    let too_long = gear == "inline" && cell.bytes > INLINE_BYTES_MAX;
    too_long.then(|| "not possible: too long".to_owned())
}

/// Why a forced gear is not tried in a cell; none if it is.
pub fn not_worth(gear: &str, predictions: &[(Gear, f64)], bound: Option<f64>) -> Option<String> {
    let best = predictions.iter().map(|(_, time)| *time).fold(f64::INFINITY, f64::min);
    let (_, time) = predictions.iter().find(|(known, _)| known.to_string() == gear)?;
    let most = WORTH * best.max(bound?);
    (*time > most).then(|| format!("not tried: predicted {time:.1} s"))
}

/// One cell of the grid.
struct Row<'a> {
    results: &'a Results,
    forced: Vec<(&'a str, &'a Measured)>,
    auto: &'a Measured,
}

impl<'a> Row<'a> {
    fn of(results: &'a Results) -> Option<Self> {
        let auto = results.measured.iter().find(|measured| measured.name == "skein")?;
        let forced = results
            .measured
            .iter()
            .filter_map(|measured| Some((measured.name.strip_prefix("skein:")?, measured)));
        Some(Self { results, forced: forced.collect(), auto })
    }

    /// Last host, median of complete runs, in seconds.
    fn last(&self, measured: &Measured) -> Option<f64> {
        let times = self.results.last_of_each(measured);
        (!times.is_empty()).then(|| Spread::of(times).median)
    }

    fn best_forced(&self) -> Option<f64> {
        let times = self.forced.iter().filter_map(|(_, measured)| self.last(measured));
        times.min_by(f64::total_cmp)
    }

    /// Over rounds: what the transfer took over what `skein push` had predicted.
    fn off(&self) -> Option<Spread> {
        let told = self.auto.outcomes.iter().filter_map(|outcome| outcome.told.as_ref());
        let off: Vec<f64> =
            told.filter_map(|told| Some(told.took_s? / told.predicted_s?)).collect();
        (!off.is_empty()).then(|| Spread::of(off))
    }

    fn cells(&self, gears: &[&str]) -> Vec<String> {
        let time = |seconds: Option<f64>| seconds.map_or("-".into(), super::tables::time);
        let mut row = vec![self.results.cell.name.clone()];
        for gear in gears {
            let found = self.forced.iter().find(|(name, _)| name == gear);
            row.push(match found {
                Some((_, Measured { not_tried: Some(why), .. })) => why.clone(),
                Some((_, measured)) => time(self.last(measured)),
                None => "-".to_owned(),
            });
        }
        let auto = self.last(self.auto);
        let chosen: Vec<&str> = self.auto.gears.iter().map(String::as_str).collect();
        row.push(format!("{} ({})", time(auto), chosen.join(", ")));
        let over = |other: Option<f64>| {
            auto.zip(other).map_or("-".into(), |(auto, other)| format!("{:.2}", auto / other))
        };
        row.push(over(self.best_forced()));
        let direct = self.forced.iter().find(|(name, _)| *name == "direct");
        let direct = direct.filter(|_| self.results.cell.receivers == 1);
        row.push(over(direct.and_then(|(_, measured)| self.last(measured))));
        let told = self.auto.outcomes.iter().filter_map(|outcome| outcome.told.as_ref());
        let told: Vec<(f64, f64)> =
            told.filter_map(|told| Some((told.predicted_s?, told.took_s?))).collect();
        for pick in [|pair: &(f64, f64)| pair.0, |pair: &(f64, f64)| pair.1] {
            let values: Vec<f64> = told.iter().map(pick).collect();
            row.push(time((!values.is_empty()).then(|| Spread::of(values).median)));
        }
        row.push(self.off().map_or("-".into(), |off| format!("{:.2}", off.median)));
        row
    }
}

/// The grid in one table, and what it comes to.
pub fn write(report: &mut Report, all: &[Results]) {
    let rows: Vec<Row> = all.iter().filter_map(Row::of).collect();
    let mut gears: Vec<&str> = Vec::new();
    for (gear, _) in rows.iter().flat_map(|row| &row.forced) {
        if !gears.contains(gear) {
            gears.push(gear);
        }
    }
    let mut head = vec!["cell".to_owned()];
    head.extend(gears.iter().map(|gear| format!("{gear}, s")));
    head.extend(
        [
            "auto, s (as)",
            "auto ÷ best forced",
            "auto ÷ direct",
            "predicted, s",
            "transfer took, s",
            "took ÷ predicted",
        ]
        .map(str::to_owned),
    );
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    report.note(
        "### Gears\n\nLast host, medians. Prediction and \"transfer took\" count from when the \
                 file is at the server.",
    );
    report.table(&head, &rows.iter().map(|row| row.cells(&gears)).collect::<Vec<_>>());
    report.note(&verdict(&rows));
}

fn verdict(rows: &[Row]) -> String {
    let over_best = rows.iter().filter_map(|row| Some(row.last(row.auto)? / row.best_forced()?));
    let over_best: Vec<f64> = over_best.collect();
    let right = over_best.iter().filter(|over| **over <= 1.10).count();
    let off: Vec<f64> = rows.iter().filter_map(|row| Some(row.off()?.median)).collect();
    let near = off.iter().filter(|off| (*off - 1.0).abs() <= OFF).count();
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    format!(
        "- Automatic at most 1.10 × the best forced gear in {right} of {} cells (worst {:.2}).\n\
         - Predicted within 15 % in {near} of {} cells, {:.0} % (asked for: 90 %).\n",
        over_best.len(),
        over_best.iter().copied().fold(0.0, f64::max),
        off.len(),
        percent(near, off.len())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::drive::Outcome;
    use crate::mesh::told::Told;

    #[test]
    fn a_gear_far_beyond_the_best_is_not_tried() {
        let cell = Cell::named("48x100x16M").unwrap();
        let goodput = 12e6;
        let predictions = predictions(&cell, Some(goodput));
        let worth = |gear| not_worth(gear, &predictions, Some(cell.bound(goodput)));
        assert!(worth("direct").is_some_and(|why| why.starts_with("not tried: predicted 6")));
        assert_eq!(worth("planned"), None);
        assert_eq!(worth("unheard-of"), None);
        // The bound of a short file is far below any gear: then the best gear counts.
        let cell = Cell::named("1x1000x1K").unwrap();
        let predictions = super::predictions(&cell, Some(goodput));
        assert_eq!(not_worth("direct", &predictions, Some(cell.bound(goodput))), None);
    }

    #[test]
    fn only_gears_that_the_command_knows_are_forced() {
        let help = "--limit X\n --gear <GEAR>\n  How [default: auto] [possible values: auto, inline, \
                    direct]\n --detach";
        let [short, long] = ["1x1000x1K", "1x1000x1M"].map(|name| Cell::named(name).unwrap());
        assert_eq!(impossible("direct", &long, help), None);
        assert_eq!(impossible("inline", &short, help), None);
        assert!(impossible("inline", &long, help).is_some());
        assert!(impossible("mesh", &long, help).is_some());
        assert!(impossible("direct", &long, "").is_some());
    }

    #[test]
    fn the_verdict_counts_cells() {
        let run =
            |last: f64, told| Outcome { finished: vec![Some(last)], told, ..Outcome::default() };
        let told = |predicted, took| {
            Some(Told { predicted_s: Some(predicted), took_s: Some(took), ..Told::default() })
        };
        let results = |auto: Outcome, direct: f64| {
            let measured = [("skein", auto), ("skein:direct", run(direct, None))];
            let measured = measured
                .map(|(name, outcome)| Measured { outcomes: vec![outcome], ..Measured::new(name) });
            Results::of(Cell::named("1x100x16M").unwrap(), measured.into())
        };
        let all = [results(run(1.05, told(1.0, 1.1)), 1.0), results(run(2.0, told(1.0, 1.5)), 1.0)];
        let rows: Vec<Row> = all.iter().filter_map(Row::of).collect();
        let verdict = verdict(&rows);
        assert!(verdict.contains("in 1 of 2 cells (worst 2.00)"), "{verdict}");
        assert!(verdict.contains("in 1 of 2 cells, 50 %"), "{verdict}");
        let cells = rows[0].cells(&["direct"]);
        assert_eq!(cells[1..], ["1.00", "1.05 ()", "1.05", "1.05", "1.00", "1.10", "1.10"]);
    }
}
