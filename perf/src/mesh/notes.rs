//! What stands below a cell's table: how the file travelled, what went wrong and where its logs are,
//! what the bytes cost, what the simulator says, and which bars hold.

use super::bars;
use super::cells::{Fault, SHORT_BYTES};
use super::drive::Outcome;
use super::tables::{Measured, Results, time};
use crate::push_parts::GIB;
use crate::report::Spread;

/// Different ways in which a contender failed that are told.
const FAILURES_MAX: usize = 12;

/// The sentences of one cell.
pub fn of(results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    for measured in &results.measured {
        let mut said = Vec::new();
        said.extend(way(measured));
        said.extend(stopped(measured));
        said.extend(cost(results, measured));
        said.extend(synced(measured));
        said.extend(simulated(results, measured));
        said.extend(long_series(results, measured));
        said.extend(bars::judge(results, measured));
        notes.extend(said.into_iter().map(|said| format!("{}: {said}.", measured.name)));
    }
    if results.cell.overloads() {
        notes.push("More bits than this machine's cores can carry: not a matter of links.".into());
    }
    notes
}

fn way(measured: &Measured) -> Vec<String> {
    let mut said = Vec::new();
    if measured.skipped > 0 {
        said.push(format!("no time for {} rounds", measured.skipped));
    }
    said.extend(measured.not_tried.clone());
    let gears: Vec<&str> = measured.gears.iter().map(String::as_str).collect();
    if gears.iter().any(|gear| !gear.is_empty()) {
        let told = measured.outcomes.iter().filter_map(|outcome| outcome.told.as_ref());
        let pick = |pick: fn(&super::told::Told) -> Option<f64>| {
            Spread::of_some(told.clone().filter_map(pick).collect())
        };
        let mut way = format!("travelled as {}", gears.join(", "));
        if let Some(prepared) = pick(|told| told.prepared_s) {
            way += &format!("; {} s until the server had the file", time(prepared.median));
        }
        if let (Some(took), Some(predicted)) = (pick(|t| t.took_s), pick(|t| t.predicted_s)) {
            way += &format!(
                ", then {} s where {} s were predicted",
                time(took.median),
                time(predicted.median)
            );
        }
        said.push(way);
    }
    said
}

fn stopped(measured: &Measured) -> Vec<String> {
    let notes = measured.outcomes.iter().map(|outcome| &outcome.note);
    let mut stopped: Vec<String> = Vec::new();
    for note in notes.chain(&measured.failed).filter(|note| !note.is_empty()) {
        if !stopped.contains(note) {
            stopped.push(note.clone());
        }
    }
    stopped.truncate(FAILURES_MAX);
    stopped
}

/// Without limits on the links: what was delivered, and what a byte cost.
fn cost(results: &Results, measured: &Measured) -> Vec<String> {
    let cell = &results.cell;
    let whole = results.last_of_each(measured);
    if cell.rate.is_some() || whole.is_empty() {
        return Vec::new();
    }
    let delivered = (cell.bytes * cell.receivers as u64) as f64 / 1e9;
    let rate = Spread::of(whole.iter().map(|last| delivered * 1e3 / last));
    let cpu = measured.outcomes.iter().filter(|outcome| !outcome.finished.contains(&None));
    let Some(cpu) = Spread::of_some(cpu.map(|outcome| outcome.cpu_s / delivered).collect()) else {
        return Vec::new();
    };
    let mut said = vec![
        format!("{rate} MB/s delivered in all"),
        format!("{cpu} CPU s/GB delivered, all of its processes"),
    ];
    if let (Some(parts), true) = (&results.parts, measured.name.starts_with("skein")) {
        let per_gb = |per_gib: f64| per_gib * 1e9 / GIB;
        let tls = per_gb(parts.tls_send + parts.tls_receive);
        let hash = per_gb(parts.hash);
        let shared = per_gb(parts.upload() + parts.hash + parts.read + parts.write);
        let shared = shared / cell.receivers as f64;
        let disk = cpu.median - tls - hash - shared;
        let verdict = if disk <= 0.15 { "holds" } else { "missed" };
        said.push(format!(
            "of that, measured alone in this run: TLS and TCP at both ends {tls:.3}, SHA-256 \
             {hash:.3}, the way to the server's cache {shared:.3} (once for all hosts); rest, with \
             the hosts' disks, {disk:.3} CPU s/GB, at most 0.15: {verdict}"
        ));
    }
    said
}

fn synced(measured: &Measured) -> Option<String> {
    let synced: Vec<f64> = measured.outcomes.iter().filter_map(|outcome| outcome.synced).collect();
    let synced = Spread::of_some(synced)?;
    Some(format!("with a final sync {} s", synced))
}

fn simulated(results: &Results, measured: &Measured) -> Option<String> {
    let simulated = match measured.simulated.as_ref()? {
        Ok(simulated) => simulated,
        Err(error) => return Some(format!("the simulator failed: {error}")),
    };
    // To the simulator a slow host is one of the inventory.
    let last = match results.cell.fault {
        Fault::SlowHost => measured.outcomes.iter().filter_map(Outcome::last).collect(),
        _ => results.last_of_each(measured),
    };
    let last = Spread::of_some(last)?.median;
    let told = measured.outcomes.iter().filter_map(|outcome| outcome.told.as_ref());
    let prepared = Spread::of_some(told.filter_map(|told| told.prepared_s).collect());
    let prepared = prepared.map_or(0.0, |prepared| prepared.median);
    let sent = Spread::of(measured.outcomes.iter().map(|outcome| outcome.source_copies)).median;
    Some(format!(
        "the simulator says {} s as {}; measured ÷ simulated {:.3}, without the {} s before the \
         transfer began {:.3} (asked for: within 5 %); the source sent {sent:.2} F, simulated {:.2} F",
        time(simulated.last_s),
        simulated.gear,
        last / simulated.last_s,
        time(prepared),
        (last - prepared) / simulated.last_s,
        simulated.source_copies
    ))
}

/// Of many rounds: how far the worst are from the usual.
fn long_series(results: &Results, measured: &Measured) -> Option<String> {
    let mut last = results.last_of_each(measured);
    if last.len() < 20 {
        return None;
    }
    last.sort_by(f64::total_cmp);
    let at = |share: f64| last[((last.len() as f64 * share) as usize).min(last.len() - 1)];
    let counts = results.bound.filter(|_| results.cell.bytes > SHORT_BYTES);
    let over = counts.map_or(String::new(), |bound| {
        format!(" ({:.2} and {:.2} of the bound)", at(0.5) / bound, at(1.0) / bound)
    });
    Some(format!(
        "last host over {} runs: half within {} s, 9 of 10 within {} s, all within {} s{over}",
        last.len(),
        time(at(0.5)),
        time(at(0.9)),
        time(at(1.0))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::cells::Cell;
    use crate::mesh::simulated::Simulated;
    use crate::mesh::told::Told;

    fn outcome(last: f64) -> Outcome {
        let told = Told {
            gear: "planned".into(),
            predicted_s: Some(1.5),
            took_s: Some(1.6),
            prepared_s: Some(0.5),
            ..Told::default()
        };
        Outcome { finished: vec![Some(last)], told: Some(told), ..Outcome::default() }
    }

    fn results(cell: &str, measured: Measured) -> Results {
        let gears = ["planned".to_owned()].into();
        Results::of(Cell::named(cell).unwrap(), vec![Measured { gears, ..measured }])
    }

    #[test]
    fn the_simulator_is_compared_without_the_way_to_the_server() {
        let simulated = Simulated { gear: "planned".into(), last_s: 1.5, source_copies: 1.0 };
        let measured = Measured {
            outcomes: vec![outcome(2.0)],
            simulated: Some(Ok(simulated)),
            ..Measured::new("skein")
        };
        let notes = of(&results("1x100x16M", measured)).join("\n");
        assert!(notes.contains("measured ÷ simulated 1.333, without the 0.500 s"), "{notes}");
        assert!(notes.contains("began 1.000"), "{notes}");
        assert!(notes.contains("then 1.60 s where 1.50 s were predicted"), "{notes}");
    }

    #[test]
    fn each_way_to_fail_is_told_once() {
        let failed = ["a", "b", "a"].map(str::to_owned).into();
        let notes = of(&results("1x100x16M", Measured { failed, ..Measured::new("aria2") }));
        assert_eq!(notes.iter().filter(|note| *note == "aria2: a.").count(), 1);
        assert!(notes.contains(&"aria2: b.".to_owned()));
    }

    #[test]
    fn a_long_series_shows_its_worst() {
        let outcomes = (1..=20).map(|last| outcome(f64::from(last))).collect();
        let mut results = results("1x100x16M", Measured { outcomes, ..Measured::new("skein") });
        results.bound = Some(1.0);
        let notes = of(&results).join("\n");
        assert!(notes.contains("half within 11.00 s, 9 of 10 within 19.00 s, all within 20.00 s"));
        assert!(notes.contains("20 of 20 runs complete: holds"), "{notes}");
    }

    #[test]
    fn unshaped_cells_say_what_a_byte_costs() {
        let mut run = outcome(2.0);
        run.cpu_s = 1.0;
        run.finished = vec![Some(2.0); 4];
        let measured = Measured { outcomes: vec![run], ..Measured::new("libtorrent") };
        let notes = of(&results("4x-x1024M", measured)).join("\n");
        assert!(notes.contains("2147 (2147 to 2147) MB/s"), "{notes}");
        assert!(notes.contains("0.233 (0.233 to 0.233) CPU s/GB"), "{notes}");
    }
}
