//! Sizes, rates and times as people write them: `1GiB`, `10Gbit`, `50us`, `25%`.

use crate::queue::Nanos;
use serde::Deserialize;

/// Why a quantity could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}; write it like {example}")]
pub struct BadQuantity {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Bytes(pub u64);

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate(pub f64);

/// A length of time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Nanos);

/// A share of a whole, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Share(pub f64);

/// Reads a number and its unit, which must be in `units`, and multiplies.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some(number * factor)
}

macro_rules! readable {
    ($type:ident, $what:literal, $example:literal, $units:expr, $make:expr) => {
        impl std::str::FromStr for $type {
            type Err = BadQuantity;

            fn from_str(text: &str) -> Result<Self, BadQuantity> {
                let bad = BadQuantity { text: text.to_owned(), what: $what, example: $example };
                quantity(text, &$units).and_then($make).ok_or(bad)
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadQuantity;

            fn try_from(text: String) -> Result<Self, BadQuantity> {
                text.parse()
            }
        }
    };
}

readable!(
    Bytes,
    "a size",
    "64KiB, 1GiB or 500MB",
    [
        ("", 1.0),
        ("B", 1.0),
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("TiB", 1_099_511_627_776.0),
        ("kB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
    ],
    |bytes| (bytes <= 1e18).then_some(Bytes(bytes as u64))
);

readable!(
    Rate,
    "a rate",
    "10Gbit, 20Mbit or 100MB/s",
    [
        ("bit", 0.125),
        ("kbit", 125.0),
        ("Mbit", 125e3),
        ("Gbit", 125e6),
        ("Tbit", 125e9),
        ("kB/s", 1e3),
        ("MB/s", 1e6),
        ("GB/s", 1e9),
        ("KiB/s", 1024.0),
        ("MiB/s", 1_048_576.0),
        ("GiB/s", 1_073_741_824.0),
    ],
    |rate| (rate > 0.0 && rate <= 1e15).then_some(Rate(rate))
);

readable!(
    Span,
    "a time",
    "50us, 10ms, 2s or 1min",
    [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("min", 6e10), ("h", 3.6e12)],
    |nanos| (nanos <= 1e18).then_some(Span(nanos as Nanos))
);

readable!(Share, "a share", "25% or 0.25", [("", 1.0), ("%", 0.01)], |share| {
    (share <= 1.0).then_some(Share(share))
});

/// `bytes` with a binary unit and three digits.
pub fn show_bytes(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// `bytes_per_s` in bits per second.
pub fn show_rate(bytes_per_s: f64) -> String {
    scaled(bytes_per_s * 8.0, 1000.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

/// `nanos` in seconds or milliseconds.
pub fn show_time(nanos: Nanos) -> String {
    match nanos {
        0..1_000_000_000 => format!("{:.1} ms", nanos as f64 / 1e6),
        _ => format!("{:.2} s", nanos as f64 / 1e9),
    }
}

fn scaled(mut number: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while number >= step && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    let digits = if number >= 100.0 || number.fract() == 0.0 { 0 } else { 1 };
    format!("{number:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_units() {
        assert_eq!("1.5GiB".parse(), Ok(Bytes(1_610_612_736)));
        assert_eq!("20 Mbit".parse(), Ok(Rate(2.5e6)));
        assert_eq!("50us".parse(), Ok(Span(50_000)));
        assert_eq!("25%".parse(), Ok(Share(0.25)));
        for bad in ["", "GiB", "1 gib", "-1MB", "1e3MB", "9999999TiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert!("0Mbit".parse::<Rate>().is_err() && "20".parse::<Rate>().is_err());
        let message = "20".parse::<Rate>().unwrap_err().to_string();
        assert_eq!(message, "`20` is not a rate; write it like 10Gbit, 20Mbit or 100MB/s");
    }

    #[test]
    fn quantities_are_shown_short() {
        assert_eq!(show_bytes(1_610_612_736.0), "1.5 GiB");
        assert_eq!(show_rate(1.25e9), "10 Gbit/s");
        assert_eq!(
            (show_time(14_250_000_000), show_time(35_000_000)),
            ("14.25 s".into(), "35.0 ms".into())
        );
    }
}
