//! Writes the reference of metrics, `docs/metrics.md`, from the catalogue. A test compares it with
//! the file in the tree, so neither can change alone.

use std::fmt::Write;

use crate::names::{self, Process};

/// The whole text of `docs/metrics.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from `observe/src/names.rs`; `make docs` rewrites it.\n\n\
         Each process shows its metrics at `/metrics` in Prometheus's text format: control on its\n\
         API address (127.0.0.1:28863), data on 127.0.0.1:29402, the agent on 127.0.0.1:29405.\n\
         `/healthz` answers while the process runs, `/readyz` says whether it can do its work and,\n\
         if not, why. A histogram `x` is shown as `x_bucket`, `x_sum` and `x_count`.\n",
    );
    let sections = [
        (Process::Any, "Every process"),
        (Process::Data, "Data process"),
        (Process::Control, "Control process"),
        (Process::Agent, "Agent"),
    ];
    for (process, title) in sections {
        let _ = write!(
            text,
            "\n## {title}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n"
        );
        for metric in names::all().iter().filter(|metric| metric.process == process) {
            let labels: Vec<String> =
                metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, kind, help) = (metric.name, metric.kind, metric.help);
            let _ = writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
        }
    }
    text
}
