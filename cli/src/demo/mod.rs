//! `skein demo` (`make demo`): a server and six agents on this machine, each a real process with
//! its own folder, certificate and spool; a large real file to all of them; real log lines and a
//! fast generated stream from all of them; a script on all of them.
//!
//! Invariant: the closing table is recounted from the outcome. The file counts where its SHA-256
//! at the host equals the source's; a record counts by its identity in the sink's files; a script
//! counts by what it printed. Nothing that a sender says about itself is believed.

mod fleet;
mod material;
mod push;
mod records;
mod report;
mod script;

use std::path::PathBuf;

use clap::Args;

use crate::commands::Outcome;
use crate::error::{CliError, EXIT_OK, EXIT_PARTIAL};
use crate::local::Binaries;

/// Flags of `demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Agents
    #[arg(long, default_value_t = 6)]
    agents: u32,
    /// File to push [default: a compiler's library found on this machine]
    #[arg(long)]
    file: Option<PathBuf>,
    /// Generated records from each agent
    #[arg(long, default_value_t = 500_000)]
    records: u64,
    /// Real log lines from each agent
    #[arg(long, default_value_t = 20_000)]
    lines: usize,
    /// Folder for everything [default: a new one in the system's temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write the numbers here as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Leave everything running and say how to look around
    #[arg(long)]
    keep: bool,
}

/// Runs the demo; exit code 0 only if every number agrees.
pub fn run(args: &DemoArgs) -> Outcome {
    let skein = std::env::current_exe().map_err(CliError::io("cannot find this program"))?;
    let binaries = Binaries::beside(&skein)?;
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir).map_err(CliError::io("cannot resolve --dir"))?,
        None => std::env::temp_dir().join(format!("skein-demo-{}", std::process::id())),
    };
    let outcome = show(args, &binaries, &dir);
    if outcome.is_err() {
        eprintln!("the demo's logs are in {}", dir.display());
    } else if !args.keep && args.dir.is_none() {
        // Only a folder that we made for this run is removed.
        let _ = std::fs::remove_dir_all(&dir);
    }
    outcome
}

fn show(args: &DemoArgs, binaries: &Binaries, dir: &std::path::Path) -> Outcome {
    let file = material::large_file(args.file.as_deref())?;
    let lines = material::log_lines(args.lines)?;
    let mut fleet = fleet::start(binaries, dir, args.agents, args.keep)?;
    let push = push::show(&fleet, dir, &file)?;
    let records = records::show(&mut fleet, &lines, args.records)?;
    let scripts = script::show(&fleet)?;
    let report = report::Report { agents: args.agents, push, records, scripts };
    report.print(&fleet)?;
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    let code = if report.agrees() { EXIT_OK } else { EXIT_PARTIAL };
    if args.keep {
        fleet.leave(dir)?;
    } else {
        fleet.stop();
    }
    Ok(code)
}

/// A heading of the demo's story.
fn chapter(number: u32, title: &str) {
    eprintln!("\n[{number}/5] {title}");
}
