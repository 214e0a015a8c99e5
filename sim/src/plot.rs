//! Plots as SVG: how many hosts have the file when, and how busy links were.

use crate::outcome::Outcome;
use crate::queue::{Nanos, SECOND};
use crate::report::{kind_name, link_name};
use crate::world::World;
use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Lines that are drawn in one plot at most.
const LINES_MAX: usize = 8;

const COLOURS: [&str; LINES_MAX] =
    ["#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#7f7f7f"];

/// A line of a plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A plot with time on the x axis and shares of 1 on the y axis.
struct Plot {
    title: String,
    y_name: &'static str,
    seconds_max: f64,
    lines: Vec<Line>,
    /// An upright line with its name.
    mark: (f64, String),
}

/// Share of the hosts that have the file, over time, with the bound.
pub fn completion<T>(world: &World<T>, outcome: &Outcome, bound: Nanos) -> String {
    let targets: Vec<_> = world.topology.targets().collect();
    let mut times: Vec<f64> =
        targets.iter().filter_map(|host| outcome.finished_at(*host)).map(seconds).collect();
    times.sort_unstable_by(f64::total_cmp);
    let last = times.last().copied().unwrap_or(0.0);
    let mut points = vec![(0.0, 0.0)];
    for (count, time) in times.iter().enumerate() {
        points.push((*time, count as f64 / targets.len() as f64));
        points.push((*time, (count + 1) as f64 / targets.len() as f64));
    }
    Plot {
        title: format!("{} of {} hosts have the file", times.len(), targets.len()),
        y_name: "share of hosts",
        seconds_max: last.max(seconds(bound)) * 1.05,
        lines: vec![Line { name: "have the file".into(), points }],
        mark: (seconds(bound), "bound".into()),
    }
    .svg()
}

/// How busy the source's link and the busiest shared links were, over time.
pub fn utilisation<T>(world: &World<T>, bound: Nanos) -> String {
    let total = |at: usize| world.samples.last().map_or(0, |sample| sample.carried[at]);
    let capacity = |at: usize| world.network.capacity(world.watched[at]).max(1.0);
    let mut order: Vec<usize> = (0..world.watched.len()).filter(|at| total(*at) > 0).collect();
    order.sort_by(|a, b| {
        let share = |at: usize| total(at) as f64 / capacity(at);
        share(*b).total_cmp(&share(*a)).then(a.cmp(b))
    });
    let lines = order.into_iter().take(LINES_MAX).map(|at| {
        let (kind, name) = link_name(world, world.watched[at]);
        let points = world.samples.windows(2).map(|pair| {
            let (from, to) = (seconds(pair[0].at), seconds(pair[1].at));
            let bytes = (pair[1].carried[at] - pair[0].carried[at]) as f64;
            ((from + to) / 2.0, (bytes / (to - from) / capacity(at)).min(1.1))
        });
        Line { name: format!("{name} {}", kind_name(kind)), points: points.collect() }
    });
    let end = world.samples.last().map_or(0, |sample| sample.at).max(bound);
    Plot {
        title: "share of each link in use".into(),
        y_name: "utilisation",
        seconds_max: seconds(end) * 1.05,
        lines: lines.collect(),
        mark: (seconds(bound), "bound".into()),
    }
    .svg()
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}

/// A round distance of about a fifth of `range`: 1, 2 or 5 times a power of ten.
fn tick(range: f64) -> f64 {
    let mut step = 1e-9;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if step * factor * 6.0 >= range {
                return step * factor;
            }
        }
        step *= 10.0;
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Plot {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.seconds_max.max(1e-9) * (WIDTH - LEFT - RIGHT)
    }

    fn y(share: f64) -> f64 {
        HEIGHT - BOTTOM - share / 1.1 * (HEIGHT - TOP - BOTTOM)
    }

    fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        // Writing to a string cannot fail.
        let _ = self.axes(&mut svg);
        for (number, line) in self.lines.iter().enumerate() {
            let _ = self.line(&mut svg, number, line);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self, svg: &mut String) -> std::fmt::Result {
        let (left, right) = (LEFT, WIDTH - RIGHT);
        writeln!(
            svg,
            "<text x=\"{left}\" y=\"22\" font-size=\"15\">{}</text>",
            escape(&self.title)
        )?;
        for fifth in 0..=5 {
            let share = f64::from(fifth) / 5.0;
            let y = Self::y(share);
            writeln!(svg, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>")?;
            let (x, y) = (left - 6.0, y + 4.0);
            writeln!(svg, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{share:.1}</text>")?;
        }
        let step = tick(self.seconds_max);
        let digits = if step >= 1.0 {
            0
        } else if step >= 0.1 {
            1
        } else {
            3
        };
        let bottom = HEIGHT - BOTTOM;
        for number in 0..=6 {
            let at = step * f64::from(number);
            if at > self.seconds_max {
                break;
            }
            let (x, y) = (self.x(at), bottom + 18.0);
            writeln!(svg, "<path d=\"M{x:.1} {bottom}v5\" stroke=\"black\"/>")?;
            let anchor = "text-anchor=\"middle\"";
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" {anchor}>{at:.digits$}</text>")?;
        }
        writeln!(
            svg,
            "<path d=\"M{left} {TOP}V{bottom}H{right}\" stroke=\"black\" fill=\"none\"/>"
        )?;
        let (x, y) = ((left + right) / 2.0, HEIGHT - 12.0);
        writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">seconds</text>")?;
        let y = (TOP + bottom) / 2.0;
        writeln!(
            svg,
            "<text transform=\"translate(18 {y}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            self.y_name
        )?;
        let (x, y) = (self.x(self.mark.0), TOP - 4.0);
        writeln!(
            svg,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#555\" stroke-dasharray=\"4 3\"/>\n\
             <text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
            escape(&self.mark.1)
        )
    }

    fn line(&self, svg: &mut String, number: usize, line: &Line) -> std::fmt::Result {
        let colour = COLOURS[number % COLOURS.len()];
        write!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"")?;
        for (seconds, share) in &line.points {
            write!(svg, "{:.1},{:.1} ", self.x(*seconds), Self::y(*share))?;
        }
        writeln!(svg, "\"/>")?;
        let (x, y) = (WIDTH - RIGHT + 14.0, TOP + 18.0 * number as f64 + 10.0);
        let (text_x, text_y) = (x + 24.0, y + 4.0);
        writeln!(
            svg,
            "<path d=\"M{x} {y}h18\" stroke=\"{colour}\" stroke-width=\"3\"/>\n\
             <text x=\"{text_x}\" y=\"{text_y}\">{}</text>",
            escape(&line.name)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (range, step) in [(0.03, 0.005), (1.0, 0.2), (14.7, 5.0), (100.0, 20.0)] {
            let ours = tick(range);
            assert!((ours / step - 1.0).abs() < 1e-9, "{range}: {ours}");
        }
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        let line = Line { name: "<script>".into(), points: vec![(0.0, 0.0), (1.0, 1.0)] };
        let plot = Plot {
            title: "a & b".into(),
            y_name: "y",
            seconds_max: 1.0,
            lines: vec![line],
            mark: (0.5, "bound".into()),
        };
        let svg = plot.svg();
        assert!(svg.contains("&lt;script&gt;") && svg.contains("a &amp; b"));
        // The last point is at the right end of the axis, at 1.0 of 1.1 of its height.
        let (x, y) = (WIDTH - RIGHT, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) / 1.1);
        assert!(svg.contains(&format!("{x:.1},{y:.1} ")), "{svg}");
    }
}
