//! Decisions in words.

use super::{Gear, Limit, PlannerInput, Prediction};
use std::fmt;

impl Prediction {
    /// What most of the time is due to, in words: "the source's 8 Mbit/s is the limit".
    pub fn reason(&self) -> String {
        Reason(self.limit).to_string()
    }
}

/// One sentence: what, to whom, how long, and why not otherwise.
pub(super) fn sentence(
    input: &PlannerInput<'_>,
    best: &Prediction,
    bound_ms: f64,
    gears: &[Prediction],
) -> String {
    let hosts = input.targets.len();
    let plural = if hosts == 1 { "" } else { "s" };
    let size = Size(input.geometry.size_bytes());
    let head = format!(
        "{}: {hosts} host{plural} x {size} at {}; predicted {} of {} bound",
        best.gear,
        Rate(best.rate),
        Time(best.time_ms),
        Time(bound_ms)
    );
    // The gear that people would think of first, or the one that is thought of for many hosts.
    let simple = matches!(best.gear, Gear::Inline | Gear::Direct);
    let other = if simple { Gear::Planned } else { Gear::Direct };
    match gears.iter().find(|one| one.gear == other) {
        Some(other) => {
            let (gear, time) = (other.gear, Time(other.time_ms));
            format!("{head}; {gear} would take {time} because {}", Reason(other.limit))
        }
        None => head,
    }
}

struct Reason(Limit);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Limit::Sources(rate) => write!(f, "the source's {} is the limit", Rate(rate)),
            Limit::HostDown(rate) => write!(f, "the slowest host receives {}", Rate(rate)),
            Limit::TotalUp(rate) => write!(f, "all hosts together send {}", Rate(rate)),
            Limit::Border(region, rate) => {
                write!(f, "the border of region {region} carries {}", Rate(rate))
            }
            Limit::Start(ms) => write!(f, "its start alone costs {}", Time(ms)),
        }
    }
}

/// Three digits at most, without a trailing zero behind the point.
fn short(value: f64) -> String {
    let text = if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

/// Bytes, in powers of 1,024.
pub(super) struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.iter().find(|(shift, _)| self.0 >> shift > 0) {
            Some((shift, unit)) => {
                write!(f, "{} {unit}", short(self.0 as f64 / f64::from(1u32 << shift)))
            }
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Bytes per second, shown as bits.
pub(super) struct Rate(pub f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0 * 8.0;
        let units = [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")];
        match units.iter().find(|(unit, _)| bits >= *unit) {
            Some((unit, name)) => write!(f, "{} {name}", short(bits / unit)),
            None => write!(f, "{bits:.0} bit/s"),
        }
    }
}

/// Milliseconds.
pub(super) struct Time(pub f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 999.5 {
            return write!(f, "{} ms", short(self.0));
        }
        write!(f, "{} s", short(self.0 / 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_three_digits() {
        let sizes = [0, 1_000, 1_536, 16 << 20, 5 << 30].map(|size| Size(size).to_string());
        assert_eq!(sizes, ["0 bytes", "1000 bytes", "1.5 KiB", "16 MiB", "5 GiB"]);
        let rates = [10.0, 1e6, 1.25e8, 1.25e9].map(|rate| Rate(rate).to_string());
        assert_eq!(rates, ["80 bit/s", "8 Mbit/s", "1 Gbit/s", "10 Gbit/s"]);
        let times = [0.004, 12.0, 999.4, 999.6, 18_240.0, 840_000.0].map(|ms| Time(ms).to_string());
        assert_eq!(times, ["0 ms", "12 ms", "999 ms", "1 s", "18.2 s", "840 s"]);
    }
}
