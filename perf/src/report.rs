//! Results with their conditions. A figure without the machine, the build and the load it was
//! measured under is worth nothing, so the two are written together.

use std::fmt::Write;
use std::path::Path;

/// Minimum, median and maximum of several rounds.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// Least.
    pub min: f64,
    /// Middle.
    pub median: f64,
    /// Greatest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        assert!(!values.is_empty(), "a spread needs a round");
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { min: values[0], median, max: values[values.len() - 1] }
    }
}

impl Spread {
    /// Of these values, if there are any.
    pub fn of_some(values: Vec<f64>) -> Option<Self> {
        (!values.is_empty()).then(|| Self::of(values))
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = match self.median {
            100.0.. => 0,
            1.0.. => 2,
            _ => 3,
        };
        let Self { min, median, max } = self;
        write!(f, "{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

/// A table of results that explains itself.
#[derive(Debug)]
pub struct Report {
    title: String,
    text: String,
    /// Tables and prose that follow the rows.
    below: String,
}

impl Report {
    /// Starts with the conditions of this machine at this moment.
    pub fn new(title: &str) -> Self {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let mut text = format!("# {title}\n\nCommand: `{command}`\n\n");
        let _ = writeln!(text, "Conditions: {}\n", conditions());
        text.push_str("| what | value |\n|---|---|\n");
        Self { title: title.to_owned(), text, below: String::new() }
    }

    /// Adds a row and shows it.
    pub fn row(&mut self, what: &str, value: impl std::fmt::Display) {
        eprintln!("{what}: {value}");
        let _ = writeln!(self.text, "| {what} | {value} |");
    }

    /// Adds prose below the table.
    pub fn note(&mut self, note: &str) {
        let _ = write!(self.below, "\n{note}\n");
    }

    /// Adds a table of its own below the rows; each row has as many cells as the head.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
        let _ = write!(self.below, "\n{}|{}\n", line(&head), "---|".repeat(head.len()));
        for row in rows {
            self.below.push_str(&line(row));
        }
    }

    /// Writes what there is so far to `file`: a measurement of hours may be broken off.
    pub fn save(&self, file: &Path) -> std::io::Result<()> {
        std::fs::write(file, format!("{}{}", self.text, self.below))
    }

    /// Writes the report to `file`, or to standard output.
    pub fn finish(mut self, file: Option<&Path>) -> anyhow::Result<()> {
        self.text.push_str(&self.below);
        match file {
            Some(file) => {
                std::fs::write(file, &self.text)?;
                eprintln!("{}: written to {}", self.title, file.display());
            }
            None => println!("{}", self.text),
        }
        Ok(())
    }
}

fn conditions() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(" unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_ascii_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
    };
    let commit = run("git", &["rev-parse", "--short", "HEAD"]);
    let date = run("date", &["-u", "+%Y-%m-%d %H:%M UTC"]);
    format!(
        "{date}, commit {commit}, profile {profile}, {cores} cores ({}), Linux {}, load before \
         {load}; everything on this machine",
        model.trim_start_matches([' ', ':', '\t']),
        kernel.trim(),
    )
}
