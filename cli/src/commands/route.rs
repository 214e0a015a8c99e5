//! `skein route add|ls|rm`: which records go to which stream.

use clap::{Args, Subcommand};
use skein_controlplane::api::types::{Empty, Route, RouteList, RouteRequest};

use super::{Context, Outcome, segment};
use crate::error::{CliError, EXIT_OK};
use crate::quantity::parse_data_id;
use crate::show::{self, Table};

/// Flags of `route`.
#[derive(Args, Debug)]
pub struct RouteArgs {
    #[command(subcommand)]
    command: RouteCommand,
}

#[derive(Debug, Subcommand)]
enum RouteCommand {
    /// Send the records of a data id to a stream
    Add {
        /// The stream
        stream: String,
        /// The data id [default: the server chooses a free one]
        #[arg(long, value_parser = parse_data_id)]
        data_id: Option<u32>,
        /// Name of the route [default: DATA_ID-STREAM]
        #[arg(long)]
        name: Option<String>,
    },
    /// List routes
    Ls,
    /// Remove routes; lanes of their data ids are held until another route exists
    Rm {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Carries out the subcommand.
pub fn run(args: &RouteArgs, context: &Context) -> Outcome {
    match &args.command {
        RouteCommand::Add { stream, data_id, name } => {
            let route = create(context, stream, *data_id, name.clone())?;
            if context.json {
                show::json(&route)?;
            } else {
                show::line(&format!("data id {} goes to stream {}", route.data_id, route.stream))?;
            }
        }
        RouteCommand::Ls => list(context)?,
        RouteCommand::Rm { names } => {
            for name in names {
                let _: Empty = context.client.delete(&format!("/routes/{}", segment(name)?))?;
            }
            show::removed(names, context.json)?;
        }
    }
    Ok(EXIT_OK)
}

/// Makes a route.
pub fn create(
    context: &Context,
    stream: &str,
    data_id: Option<u32>,
    name: Option<String>,
) -> Result<Route, CliError> {
    context.client.post("/routes", &RouteRequest { stream: stream.to_owned(), data_id, name })
}

/// Whether any route leads to this stream.
pub fn leads_to(context: &Context, stream: &str) -> Result<bool, CliError> {
    let list: RouteList = context.client.get("/routes", &[])?;
    Ok(list.routes.iter().any(|route| route.stream == stream))
}

fn list(context: &Context) -> Result<(), CliError> {
    let list: RouteList = context.client.get("/routes", &[])?;
    if context.json {
        return show::json(&list.routes);
    }
    let mut table = Table::new(&["ROUTE", "DATA ID", "STREAM"]);
    for route in list.routes {
        table.row([route.name, route.data_id.to_string(), route.stream]);
    }
    table.print("no routes yet: `skein route add STREAM --data-id N`")
}
