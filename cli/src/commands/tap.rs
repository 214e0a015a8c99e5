//! `skein tap DATA_ID`: a sample of the records of a data id, as they pass.

use std::io::{BufRead, IsTerminal};

use clap::Args;
use skein_controlplane::api::types::TapLine;

use super::{Context, Outcome};
use crate::error::{CliError, EXIT_OK};
use crate::quantity::parse_data_id;
use crate::show;

/// Flags of `tap`.
#[derive(Args, Debug)]
pub struct TapArgs {
    /// Which records
    #[arg(value_parser = parse_data_id)]
    data_id: u32,
    /// Only records that contain this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Records shown per second at most; what is left out is counted
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Stop after this many records
    #[arg(long, short = 'n')]
    count: Option<u64>,
    /// Print the records alone, without host and number
    #[arg(long)]
    bare: bool,
}

/// Prints records until the operator leaves or has enough.
pub fn run(args: &TapArgs, context: &Context) -> Outcome {
    let mut query =
        vec![("data_id", args.data_id.to_string()), ("records_per_second", args.rate.to_string())];
    query.extend(args.filter.clone().map(|text| ("contains", text)));
    let mut reader = context.client.follow("/tap", &query)?;
    if !context.json && std::io::stderr().is_terminal() {
        eprintln!("records of data id {} as they pass; Ctrl-C ends", args.data_id);
    }
    let mut seen = 0;
    let mut text = String::new();
    while args.count.is_none_or(|count| seen < count) {
        text.clear();
        let read = reader.read_line(&mut text).map_err(|error| context.client.broken(&error))?;
        if read == 0 {
            return Err(CliError::Local("the server ended the tap".into()));
        }
        let line: TapLine = serde_json::from_str(&text).map_err(|error| CliError::Protocol {
            path: "/tap".into(),
            reason: error.to_string(),
        })?;
        if context.json {
            show::raw(text.as_bytes())?;
        } else {
            print(&line, args.bare)?;
        }
        seen += u64::from(!line.agent_id.is_empty());
    }
    Ok(EXIT_OK)
}

fn print(line: &TapLine, bare: bool) -> Result<(), CliError> {
    if line.skipped > 0 {
        eprintln!("... {} not shown", show::plural(line.skipped, "record"));
    }
    if line.agent_id.is_empty() {
        return Ok(());
    }
    let value = show::printable(line.value.trim_end_matches('\n').to_owned());
    if bare {
        return show::line(&value);
    }
    let host = if line.hostname.is_empty() { &line.agent_id } else { &line.hostname };
    show::line(&format!("{host} #{}  {value}", line.sequence))
}
