//! A picture of each cell: which share of the hosts had the file when, one curve for each contender
//! (the run with the median last host), and the bound.

use std::fmt::Write;
use std::path::Path;

use super::tables::Results;

/// Of the drawing, and of the margins around the curves.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 45.0;
/// One per contender; they can be told apart in grey as well by their order in the legend.
const COLOURS: [&str; 9] = ["#0b6", "#333", "#999", "#06c", "#6af", "#e80", "#c33", "#a5c", "#855"];
/// Marks of the time axis.
const TICKS: u32 = 5;

/// Writes the picture of a cell into `folder`, unless nobody finished.
pub fn write(folder: &Path, results: &Results) -> std::io::Result<()> {
    let Some(picture) = picture(results) else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(format!("{}.svg", results.cell.name)), picture)
}

/// Times of the run whose last host is the median of all complete runs.
fn curves(results: &Results) -> Vec<(&str, Vec<f64>)> {
    let curve = |measured: &super::tables::Measured| {
        let mut runs: Vec<Vec<f64>> = results.whole(measured).into_iter().map(|(_, t)| t).collect();
        runs.sort_by(|a, b| a.last().partial_cmp(&b.last()).unwrap_or(std::cmp::Ordering::Equal));
        let middle = runs.len() / 2;
        (!runs.is_empty()).then(|| runs.swap_remove(middle))
    };
    let all = results.measured.iter();
    all.filter_map(|measured| Some((measured.name.as_str(), curve(measured)?))).collect()
}

fn picture(results: &Results) -> Option<String> {
    let curves = curves(results);
    let last = curves.iter().filter_map(|(_, times)| times.last()).copied().fold(0.0, f64::max);
    let end = last.max(results.bound.unwrap_or(0.0)) * 1.03;
    if curves.is_empty() || end <= 0.0 {
        return None;
    }
    let x = |seconds: f64| LEFT + seconds / end * (WIDTH - LEFT - RIGHT);
    let y = |share: f64| HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"18\">{}: share of the hosts that have the file</text>\n",
        results.cell
    );
    let mut line = |[x1, y1, x2, y2]: [f64; 4], style: &str| {
        let _ = writeln!(
            svg,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>"
        );
    };
    let grid = "stroke=\"#ddd\"";
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        line([LEFT, y(share), WIDTH - RIGHT, y(share)], grid);
    }
    for tick in 0..=TICKS {
        let at = x(end * f64::from(tick) / f64::from(TICKS));
        line([at, y(0.0), at, y(1.0)], grid);
    }
    if let Some(bound) = results.bound {
        line([x(bound), y(0.0), x(bound), y(1.0)], "stroke=\"black\" stroke-dasharray=\"5,4\"");
    }
    let mut text = |x: f64, y: f64, anchor: &str, text: &str| {
        let _ =
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
    };
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        text(LEFT - 6.0, y(share) + 4.0, "end", &format!("{:.0} %", share * 100.0));
    }
    for tick in 0..=TICKS {
        let seconds = end * f64::from(tick) / f64::from(TICKS);
        text(x(seconds), HEIGHT - BOTTOM + 18.0, "middle", &super::tables::time(seconds));
    }
    text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0, "middle", "seconds (dashed: bound)");
    for (number, (name, times)) in curves.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let mut points = format!("{:.1},{:.1}", x(0.0), y(0.0));
        for (had, at) in times.iter().enumerate() {
            for had in [had, had + 1] {
                let share = had as f64 / times.len() as f64;
                let _ = write!(points, " {:.1},{:.1}", x(*at), y(share));
            }
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
        let (left, top) = (WIDTH - RIGHT + 12.0, TOP + 18.0 * number as f64);
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
            left + 20.0,
            top + 7.0
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::cells::Cell;
    use crate::mesh::drive::Outcome;
    use crate::mesh::tables::Measured;

    fn results(runs: &[&[f64]]) -> Results {
        let outcome = |times: &&[f64]| Outcome {
            finished: times.iter().map(|time| Some(*time)).collect(),
            ..Outcome::default()
        };
        let outcomes = runs.iter().map(outcome).collect();
        let measured = Measured { outcomes, ..Measured::new("skein:planned") };
        let results = Results::of(Cell::named("2x100x16M").unwrap(), vec![measured]);
        Results { bound: Some(1.0), ..results }
    }

    #[test]
    fn the_median_run_is_drawn_with_a_step_for_each_host() {
        let results = results(&[&[1.0, 9.0], &[1.0, 2.0], &[1.5, 3.0]]);
        assert_eq!(curves(&results), [("skein:planned", vec![1.5, 3.0])]);
        let picture = picture(&results).unwrap();
        let points = picture.split_once("points=\"").unwrap().1.split_once('"').unwrap().0;
        assert_eq!(points.split(' ').count(), 5, "{points}");
        assert!(picture.contains("skein:planned") && picture.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_is_drawn_of_nobody() {
        assert_eq!(picture(&results(&[])), None);
    }
}
