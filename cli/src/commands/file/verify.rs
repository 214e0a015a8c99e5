//! `skein file verify FILE --manifest M`: is this file what its metainfo says, and if not, where
//! does it begin to differ?

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueHint};
use serde_json::json;
use skein_filemesh::core::metainfo::Metainfo;
use skein_filemesh::engine::{Until, Verification, verify_file};

use super::{failed, read_metainfo};
use crate::commands::Outcome;
use crate::error::{CliError, EXIT_OK, EXIT_PARTIAL};
use crate::progress::Progress;
use crate::quantity::{self, parse_bytes};
use crate::show;

const EXAMPLES: &str = "\
  skein file verify release.tar --manifest release.tar.meta
  skein file verify debian.iso --manifest debian.iso.torrent     an ordinary torrent will do
  skein file verify huge.img --manifest huge.meta --from 40G     go on where Ctrl-C stopped

What differs is named by the block of 16 KiB where the metainfo has leaves (`skein file info --out`
writes them for files up to 1 GiB), else by the piece. Exit codes: 0 the file is true, 1 it is not
or was not read to its end, 6 it cannot be read.";

/// Flags of `file verify`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArgs {
    /// The file to prove
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Its metainfo, from `file info --out`, or any torrent of this one file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    manifest: PathBuf,
    /// Begin here instead of at the start, as in 40G; a check that was stopped says where
    #[arg(long, value_parser = parse_bytes, default_value = "0", hide_default_value = true)]
    #[arg(value_name = "OFFSET")]
    from: u64,
    /// Read to the end and count everything that differs, instead of stopping at the first
    #[arg(long)]
    all: bool,
}

/// What is to be said of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    True,
    False,
    Stopped,
}

/// Proves the file.
pub fn run(args: &VerifyArgs, as_json: bool) -> Outcome {
    let metainfo = read_metainfo(&args.manifest)?;
    let size_bytes = metainfo.geometry().size_bytes();
    if args.from > 0 && args.from >= size_bytes {
        let from = args.from;
        return Err(CliError::Usage(format!("--from {from} is past the end, at {size_bytes}")));
    }
    let until = if args.all { Until::End } else { Until::FirstBad };
    let stop = stop_at_interrupt()?;
    let mut progress = Progress::new("proving", 0, true, as_json);
    progress.begin_at(args.from);
    let found = verify_file(&args.file, &metainfo, args.from, until, |done, total| {
        progress.advance_to(done, total);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    progress.clear();
    let found = found.map_err(failed)?;
    let answer = judge(&found, &metainfo);
    if as_json {
        show::json(&value(&found, &metainfo, answer))?;
    } else {
        show::line(&show::printable(sentence(args, &found, &metainfo, answer)))?;
    }
    Ok(if answer == Answer::True { EXIT_OK } else { EXIT_PARTIAL })
}

/// A flag that Ctrl-C sets, so that a check of hours ends with how far it came.
fn stop_at_interrupt() -> Result<Arc<AtomicBool>, CliError> {
    let cannot = || CliError::io("cannot wait for signals");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(cannot())?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let wait = move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(cannot())?;
    Ok(stop)
}

fn judge(found: &Verification, metainfo: &Metainfo) -> Answer {
    if !found.is_good(metainfo) {
        Answer::False
    } else if found.to < found.size_bytes {
        Answer::Stopped
    } else {
        Answer::True
    }
}

/// Where the file first differs, as far as it was read.
fn first_bad(found: &Verification, metainfo: &Metainfo) -> Option<u64> {
    let size_bytes = metainfo.geometry().size_bytes();
    let end = (found.size_bytes != size_bytes).then(|| found.size_bytes.min(size_bytes));
    found.first_bad.as_ref().map(|range| range.start).or(end)
}

/// The answer as JSON.
fn value(found: &Verification, metainfo: &Metainfo, answer: Answer) -> serde_json::Value {
    json!({
        "result": match answer {
            Answer::True => "true",
            Answer::False => "false",
            Answer::Stopped => "stopped",
        },
        "size_bytes": found.size_bytes,
        "expected_size_bytes": metainfo.geometry().size_bytes(),
        "from": found.from,
        "to": found.to,
        "unit_bytes": found.unit_bytes,
        "bad_units": found.bad_units,
        "first_bad_offset": first_bad(found, metainfo),
    })
}

/// The answer for people.
fn sentence(
    args: &VerifyArgs,
    found: &Verification,
    metainfo: &Metainfo,
    answer: Answer,
) -> String {
    let file = args.file.display();
    let unit = quantity::size(found.unit_bytes.into());
    let read = format!("bytes {} to {}", found.from, found.to);
    match answer {
        Answer::True if found.from == 0 => {
            let size = quantity::bytes(found.size_bytes);
            format!("{file}: true, all {size} proved in units of {unit}")
        }
        Answer::True => format!("{file}: {read} are true, proved in units of {unit}"),
        Answer::Stopped => {
            format!("{file}: stopped; {read} are true. Go on with --from {}", found.to)
        }
        Answer::False => {
            let mut parts = Vec::new();
            if let Some(range) = &found.first_bad {
                let (start, end) = (range.start, range.end);
                parts.push(format!("bytes {start} to {end} are the first that differ"));
            }
            if args.all && found.bad_units > 0 {
                let units = show::plural(found.bad_units, "unit");
                parts.push(format!("{units} of {unit} differ"));
            }
            let expected = metainfo.geometry().size_bytes();
            if found.size_bytes != expected {
                parts.push(format!("it has {} bytes instead of {expected}", found.size_bytes));
            }
            format!("{file}: FALSE; {}", parts.join("; "))
        }
    }
}
