//! `skein lanes`: what is stored, waiting, held and dropped, per agent and data id.

use clap::Args;
use skein_controlplane::api::types::{Lane, LaneList};

use super::{Context, Outcome, selector};
use crate::error::EXIT_OK;
use crate::quantity::{self, parse_data_id};
use crate::show::{self, Table};

/// Flags of `lanes`.
#[derive(Args, Debug)]
pub struct LanesArgs {
    /// Which hosts [default: all]
    #[arg(long, value_name = "SELECTOR")]
    on: Option<String>,
    /// Only this data id
    #[arg(long, value_parser = parse_data_id)]
    data_id: Option<u32>,
    /// Only lanes that do not flow
    #[arg(long)]
    held: bool,
}

/// Lists them.
pub fn run(args: &LanesArgs, context: &Context) -> Outcome {
    let mut query = Vec::new();
    let hosts = args.on.as_deref().map(selector).transpose()?;
    query.extend(hosts.map(|hosts| ("selector", hosts.to_owned())));
    query.extend(args.data_id.map(|id| ("data_id", id.to_string())));
    query.extend(args.held.then(|| ("held", "true".to_owned())));
    let list: LaneList = context.client.get("/lanes", &query)?;
    if context.json {
        show::json(&list)?;
        return Ok(EXIT_OK);
    }
    let mut table = Table::new(&[
        "DATA ID", "AGENT", "HOST", "STORED", "WAITING", "SPOOL", "DROPPED", "REPEATS", "STATE",
    ]);
    for lane in &list.lanes {
        table.row([
            lane.data_id.to_string(),
            lane.agent_id.clone(),
            lane.hostname.clone(),
            quantity::count(lane.next_sequence),
            quantity::count(lane.spool_records),
            quantity::bytes(lane.spool_bytes),
            quantity::count(lane.dropped_records),
            quantity::count(lane.duplicate_records),
            if lane.held.is_empty() { "flows".into() } else { format!("held: {}", lane.held) },
        ]);
    }
    table.print(match query.is_empty() {
        true => "no lanes yet: agents open one when they have records of a data id",
        false => "no lane matches",
    })?;
    let homeless = |lane: &&Lane| lane.held == "unknown_data_id";
    if let Some(lane) = list.lanes.iter().find(homeless) {
        eprintln!("no route for {0}: `skein route add STREAM --data-id {0}`", lane.data_id);
    }
    let shown = list.lanes.len() as u64;
    if shown < list.total {
        eprintln!("{} of {} shown", quantity::count(shown), show::plural(list.total, "lane"));
    }
    Ok(EXIT_OK)
}
