//! What the kernel says about this process (`process_*`), read from /proc when somebody asks for
//! the metrics and at no other time. Written as text here because CPU seconds are a counter with
//! fractions, which the recorder's whole-numbered counters cannot hold.

use std::fmt::Write;
use std::fs;

use crate::names;

/// Ticks per second in /proc/self/stat: fixed at 100 for user space on every Linux architecture
/// that Skein runs on.
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

/// Appends the `process_*` metrics; what cannot be read is left out.
pub(crate) fn render(out: &mut String) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(parse_stat) {
        show(out, names::PROCESS_CPU_SECONDS, stat.cpu_seconds);
        show(out, names::PROCESS_THREADS, stat.threads);
        if let Some(boot) = boot_time_seconds() {
            show(out, names::PROCESS_START_TIME_SECONDS, boot + stat.start_seconds);
        }
    }
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        for (field, name) in [
            ("VmRSS:", names::PROCESS_RESIDENT_MEMORY_BYTES),
            ("VmSize:", names::PROCESS_VIRTUAL_MEMORY_BYTES),
        ] {
            if let Some(bytes) = status_bytes(&status, field) {
                show(out, name, bytes);
            }
        }
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        show(out, names::PROCESS_OPEN_FDS, entries.count() as f64);
    }
    if let Some(limit) = fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(fd_limit)
    {
        show(out, names::PROCESS_MAX_FDS, limit);
    }
}

fn show(out: &mut String, name: &str, value: f64) {
    let Some(metric) = names::all().iter().find(|metric| metric.name == name) else { return };
    let (help, kind) = (metric.help, metric.kind);
    // Writing to a String cannot fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
}

struct Stat {
    cpu_seconds: f64,
    threads: f64,
    start_seconds: f64,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses and may hold anything.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Stat {
        cpu_seconds: (ticks(11)? + ticks(12)?) / CLOCK_TICKS_PER_SECOND,
        threads: ticks(17)?,
        start_seconds: ticks(19)? / CLOCK_TICKS_PER_SECOND,
    })
}

fn boot_time_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn status_bytes(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

fn fd_limit(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 0 10 0 0 0 250 150 0 0 20 0 3 0 900 1 2";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.cpu_seconds, stat.threads, stat.start_seconds), (4.0, 3.0, 9.0));
    }

    #[test]
    fn kernel_tables_are_read() {
        assert_eq!(status_bytes("VmSize:\t  10 kB\nVmRSS:\t   4 kB\n", "VmRSS:"), Some(4096.0));
        assert_eq!(
            fd_limit("Max open files            1024                 4096      files\n"),
            Some(1024.0)
        );
        assert!(boot_time_seconds().unwrap() > 1e9);
    }
}
