//! Durations, sizes and times as people write and read them: `90s`, `5m`, `64M`, `1.5 GB`.

/// Parses `500ms`, `90s`, `5m`, `2h`, `7d`; a bare number is seconds.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor = match unit {
        "ms" => 1.0,
        "" | "s" => 1e3,
        "m" => 60e3,
        "h" => 3_600e3,
        "d" => 86_400e3,
        _ => return Err(format!("\"{text}\" is no duration; write 500ms, 90s, 5m, 2h or 7d")),
    };
    scale(number, factor).ok_or_else(|| format!("\"{text}\" is no duration; write 90s or 5m"))
}

/// Parses `512`, `64K`, `10M`, `2G`, `1T` (powers of 1024).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor = match unit.trim_end_matches(['B', 'b']).trim_end_matches('i') {
        "" => 1.0,
        "k" | "K" => 1024.0,
        "m" | "M" => 1024.0 * 1024.0,
        "g" | "G" => 1024.0 * 1024.0 * 1024.0,
        "t" | "T" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("\"{text}\" is no size; write 64K, 10M or 2G")),
    };
    scale(number, factor).ok_or_else(|| format!("\"{text}\" is no size; write 64K, 10M or 2G"))
}

/// Parses permission bits in octal: `644`, `0755`, `0o600`.
pub fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("\"{text}\" is no mode; write it in octal, as in 0644")),
    }
}

/// Parses the number of a data id.
pub fn parse_data_id(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        format!("\"{text}\" is no data id: a number from 0 to {}, as in 1001", u32::MAX)
    })
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

fn scale(number: &str, factor: f64) -> Option<u64> {
    let value = number.parse::<f64>().ok()? * factor;
    (value.is_finite() && value <= 2f64.powi(53)).then_some(value.round() as u64)
}

/// `1.5 GB`, `12 MB`, `900 B` (powers of 1000, as disks and links are sold).
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A size as somebody chose it, in powers of 1024 where it is a whole number of them: `1 GiB`.
pub fn size(count: u64) -> String {
    let whole = |shift: u32| count > 0 && count.is_multiple_of(1 << shift);
    match [(30, "GiB"), (20, "MiB"), (10, "KiB")].into_iter().find(|(shift, _)| whole(*shift)) {
        Some((shift, unit)) => format!("{} {unit}", count >> shift),
        None => bytes(count),
    }
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `850 ms`, `3.2 s`, `12 min`, `5 h`, `3 d`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{:.1} s", ms as f64 / 1e3),
        100_000..6_000_000 => format!("{} min", (ms + 30_000) / 60_000),
        6_000_000..172_800_000 => format!("{} h", (ms + 1_800_000) / 3_600_000),
        _ => format!("{} d", ms.saturating_add(43_200_000) / 86_400_000),
    }
}

/// How long ago an instant of the server was: `3.2 s ago`; `-` for none.
pub fn ago(now_ms: i64, then_ms: i64) -> String {
    match then_ms {
        0 => "-".to_owned(),
        _ => format!("{} ago", duration(u64::try_from(now_ms - then_ms).unwrap_or(0))),
    }
}

/// Milliseconds since 1970 by this machine's clock.
pub fn now_ms() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_as_people_write_them() {
        for (text, ms) in [("90", 90_000), ("500ms", 500), ("1.5m", 90_000), ("2h", 7_200_000)] {
            assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
        }
        for (text, size) in [("512", 512), ("64K", 65_536), ("1.5MiB", 1_572_864), ("2gb", 2 << 30)]
        {
            assert_eq!(parse_bytes(text), Ok(size), "{text}");
        }
        for text in ["", "x", "5 apples", "-1", "1e400", "99999999999999999T"] {
            assert!(parse_duration_ms(text).is_err() && parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!((parse_mode("0755"), parse_mode("0o600")), (Ok(0o755), Ok(0o600)));
        assert!(parse_mode("9").is_err() && parse_mode("77777").is_err());
    }

    #[test]
    fn numbers_are_shown_short() {
        assert_eq!([bytes(999), bytes(1_000), bytes(1_540_000)], ["999 B", "1.0 kB", "1.5 MB"]);
        assert_eq!([bytes(12_340_000_000), bytes(999_999)], ["12 GB", "1.0 MB"]);
        assert_eq!([count(0), count(999), count(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!([duration(3_210), duration(720_000)], ["3.2 s", "12 min"]);
        assert_eq!(
            [duration(3_599_900), duration(364 * 86_400_000 + 86_399_000)],
            ["60 min", "365 d"]
        );
        assert_eq!([size(1 << 30), size(1536 << 10), size(1000)], ["1 GiB", "1536 KiB", "1.0 kB"]);
        assert_eq!(ago(5_000, 2_000), "3.0 s ago");
    }
}
