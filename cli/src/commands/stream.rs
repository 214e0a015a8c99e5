//! `skein stream add|ls|rm`: where records are written.

use clap::{Args, Subcommand};
use skein_controlplane::api::types::{Empty, Stream, StreamList, StreamRequest};

use super::{Context, Outcome, segment};
use crate::error::{CliError, EXIT_OK};
use crate::quantity::{self, parse_bytes, parse_data_id, parse_duration_ms};
use crate::show::{self, Table};

/// Flags of `stream`.
#[derive(Args, Debug)]
pub struct StreamArgs {
    #[command(subcommand)]
    command: StreamCommand,
}

#[derive(Debug, Subcommand)]
enum StreamCommand {
    /// Make a stream that writes files on the server
    Add(AddArgs),
    /// List streams
    Ls,
    /// Remove streams; their files stay
    Rm {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Args, Debug)]
struct AddArgs {
    /// Name, unique: letters, digits and . _ -
    name: String,
    /// Folder on the server [default: DIR/data/sinks/NAME]
    #[arg(long)]
    dir: Option<String>,
    /// File below the folder, from {data_id} {date} {hour} {writer} {stream}
    /// [default: {data_id}/{date}.{writer}.log]
    #[arg(long)]
    path: Option<String>,
    /// lines: the records alone; tagged: with agent, lane and number; json
    #[arg(long, default_value = "lines", value_parser = ["lines", "tagged", "json"])]
    format: String,
    /// Begin a new file at this size
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    rotate_size: Option<u64>,
    /// Begin a new file after this time
    #[arg(long, value_parser = parse_duration_ms, value_name = "TIME")]
    rotate_time: Option<u64>,
    /// Longest wait between flushes; records are acknowledged after them
    #[arg(long, value_parser = parse_duration_ms, value_name = "TIME")]
    flush: Option<u64>,
    /// What an acknowledged record survives: power loss or the process's death
    #[arg(long, default_value = "power", value_parser = ["power", "process"])]
    durability: String,
    /// Also route this data id to it
    #[arg(long, value_name = "DATA_ID", value_parser = parse_data_id)]
    data_id: Option<u32>,
    /// Change the stream of this name
    #[arg(long)]
    replace: bool,
}

/// Carries out the subcommand.
pub fn run(args: &StreamArgs, context: &Context) -> Outcome {
    match &args.command {
        StreamCommand::Add(args) => add(args, context)?,
        StreamCommand::Ls => list(context)?,
        StreamCommand::Rm { names } => {
            for name in names {
                let _: Empty = context.client.delete(&format!("/streams/{}", segment(name)?))?;
            }
            show::removed(names, context.json)?;
        }
    }
    Ok(EXIT_OK)
}

fn add(args: &AddArgs, context: &Context) -> Result<(), CliError> {
    let limit = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let request = StreamRequest {
        name: args.name.clone(),
        directory: args.dir.clone(),
        path_template: args.path.clone(),
        format: Some(args.format.clone()),
        rotate_bytes: args.rotate_size,
        rotate_seconds: args.rotate_time.map(|ms| limit(ms.div_ceil(1000))),
        flush_interval_ms: args.flush.map(limit),
        durability: Some(args.durability.clone()),
    };
    let stream: Stream = if args.replace {
        context.client.put(&format!("/streams/{}", segment(&args.name)?), &request)?
    } else {
        context.client.post("/streams", &request).map_err(|error| match error {
            CliError::Refused { code, message } if code == "conflict" => {
                CliError::Refused { code, message: format!("{message}; --replace changes it") }
            }
            error => error,
        })?
    };
    let route = match args.data_id {
        Some(data_id) => Some(super::route::create(context, &stream.name, Some(data_id), None)?),
        None => None,
    };
    if context.json {
        return show::json(&serde_json::json!({ "stream": stream, "route": route }));
    }
    show::line(&format!(
        "stream {} writes {}/{}",
        stream.name, stream.directory, stream.path_template
    ))?;
    match route {
        Some(route) => show::line(&format!("data id {} goes there", route.data_id)),
        // A stream that was changed may have routes from before.
        None if args.replace && super::route::leads_to(context, &stream.name)? => Ok(()),
        None => show::line(&format!("nothing goes there yet: `skein route add {}`", stream.name)),
    }
}

fn list(context: &Context) -> Result<(), CliError> {
    let list: StreamList = context.client.get("/streams", &[])?;
    if context.json {
        return show::json(&list.streams);
    }
    let mut table = Table::new(&["STREAM", "WRITES", "FORMAT", "ROTATES", "FLUSH", "DURABILITY"]);
    for stream in list.streams {
        let mut rotates = Vec::new();
        if stream.rotate_bytes > 0 {
            rotates.push(quantity::size(stream.rotate_bytes));
        }
        if stream.rotate_seconds > 0 {
            rotates.push(quantity::duration(u64::from(stream.rotate_seconds) * 1000));
        }
        table.row([
            stream.name,
            format!("{}/{}", stream.directory, stream.path_template),
            stream.format,
            rotates.join(" or "),
            quantity::duration(u64::from(stream.flush_interval_ms)),
            stream.durability,
        ]);
    }
    table.print("no streams yet: `skein stream add NAME --data-id N`")
}
