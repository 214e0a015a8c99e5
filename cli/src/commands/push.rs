//! `skein push FILE --to SELECTOR:DIR`: one file to many hosts, from here or from an agent.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use skein_controlplane::api::types::{
    AgentList, ForecastRequest, Transfer, TransferDetail, TransferForecast, TransferHost,
    TransferPhase, TransferRequest, TransferSource,
};
use skein_filemesh::core::folder;
use skein_filemesh::core::planner::INLINE_BYTES_MAX;
use skein_wire::ids::hex_encode;

use super::{Context, Outcome};
use crate::client::{transfer_done, word};
use crate::error::{CliError, EXIT_OK, EXIT_PARTIAL};
use crate::progress::{Progress, Reading};
use crate::quantity::{self, parse_bytes, parse_duration_ms, parse_mode};
use crate::show::{self, Table};

/// Time between two looks at a running transfer; its end is seen at once.
const LOOK_MS: u64 = 200;

/// How `push` is written.
const USAGE: &str = "skein push [OPTIONS] <FILE> --to <SELECTOR:DIR>
       skein push [OPTIONS] --from <AGENT:PATH> --to <SELECTOR:DIR>";

/// Flags of `push`.
#[derive(Args, Debug)]
#[command(override_usage = USAGE)]
pub struct PushArgs {
    /// A file of this machine
    #[arg(
        required_unless_present = "from",
        conflicts_with = "from",
        value_hint = ValueHint::FilePath
    )]
    file: Option<PathBuf>,
    /// A file of a host instead: AGENT:/path
    #[arg(long, value_name = "AGENT:PATH")]
    from: Option<String>,
    /// Which hosts, and into which folder: SELECTOR:/folder
    ///
    /// In the folder each host puts its own agent id for {agent} and its host name for {hostname}.
    /// A brace of the folder's own name is written twice.
    #[arg(long, value_name = "SELECTOR:DIR")]
    to: String,
    /// Name at the targets [default: the file's own]
    #[arg(long)]
    name: Option<String>,
    /// Permission bits at the targets, octal [default: the file's own, without set-id bits]
    #[arg(long, value_parser = parse_mode)]
    mode: Option<u32>,
    /// Owner at the targets: user or user:group [default: the agent's]
    #[arg(long)]
    owner: Option<String>,
    /// Make the folder where it is missing
    #[arg(long)]
    mkdir: bool,
    /// Bytes per second to each host, as in 20M
    #[arg(long, value_parser = parse_bytes, value_name = "RATE")]
    limit: Option<u64>,
    /// How the file travels; auto lets the server plan by size, hosts and places
    #[arg(
        long,
        value_parser = ["auto", "inline", "direct", "planned", "mesh"],
        default_value = "auto"
    )]
    gear: String,
    /// Say how it would travel and how long it would take, and do nothing
    #[arg(long, conflicts_with_all = ["from", "detach"])]
    dry_run: bool,
    /// Give up on hosts that cannot be reached for this long
    #[arg(long, value_parser = parse_duration_ms, default_value = "30s", value_name = "TIME")]
    deliver_within: u64,
    /// Give up on hosts that have not finished after this time
    #[arg(long, value_parser = parse_duration_ms, default_value = "6h", value_name = "TIME")]
    timeout: u64,
    /// Start it and return; `skein transfer show ID` follows it
    #[arg(long)]
    detach: bool,
}

/// Uploads (or names) the file, starts the transfer and follows it to its end.
pub fn run(args: &PushArgs, context: &Context) -> Outcome {
    let (targets, directory) = split_place(&args.to, "--to SELECTOR:/folder")?;
    folder::check(directory).map_err(|error| CliError::Usage(error.to_string()))?;
    if let (Some(file), true) = (&args.file, args.dry_run) {
        return dry_run(args, file, targets, context);
    }
    let source = match (&args.file, &args.from) {
        (Some(file), _) => match small(file, &args.gear)? {
            Some(source) => source,
            None => {
                somebody(targets, context)?;
                upload(file, context)?
            }
        },
        (None, Some(from)) => {
            let (agent, path) = split_place(from, "--from AGENT:/path")?;
            TransferSource::Agent { agent: agent.to_owned(), path: path.to_owned() }
        }
        (None, None) => return Err(CliError::Usage("give a FILE or --from AGENT:/path".into())),
    };
    let request = TransferRequest {
        source,
        targets: targets.to_owned(),
        directory: directory.to_owned(),
        file_name: args.name.clone(),
        mode: args.mode,
        owner: args.owner.clone(),
        create_directory: args.mkdir,
        rate_limit_bytes_per_s: args.limit,
        gear: Some(args.gear.clone()),
        deliver_within_ms: Some(args.deliver_within),
        timeout_ms: Some(args.timeout),
    };
    let transfer: Transfer = context.client.post("/transfers", &request)?;
    if args.detach {
        if context.json {
            show::json(&transfer)?;
        } else {
            show::line(&transfer.transfer_id)?;
        }
        return Ok(EXIT_OK);
    }
    let detail = follow(context, &transfer.transfer_id)?;
    report(context, &detail)
}

/// Shows what the server's planner says of a file.
fn dry_run(args: &PushArgs, file: &Path, targets: &str, context: &Context) -> Outcome {
    let metadata = plain_file(file)?.1;
    let request = ForecastRequest {
        targets: targets.to_owned(),
        size_bytes: metadata.len(),
        rate_limit_bytes_per_s: args.limit,
        gear: Some(args.gear.clone()),
    };
    let forecast: TransferForecast = context.client.post("/transfers/forecast", &request)?;
    if context.json {
        show::json(&forecast)?;
        return Ok(EXIT_OK);
    }
    show::line(&forecast.why)?;
    let ms = |ms: f64| quantity::duration(ms.round() as u64);
    let mut table = Table::new(&["GEAR", "PREDICTED", "OF BOUND", "OF IT START", "RATE", "LIMIT"]);
    for gear in &forecast.gears {
        let bound = match forecast.bound_ms > 0.0 {
            true => format!("{:.2} x", gear.predicted_ms / forecast.bound_ms),
            false => String::new(),
        };
        table.row([
            if gear.gear == forecast.gear { format!("{} *", gear.gear) } else { gear.gear.clone() },
            ms(gear.predicted_ms),
            bound,
            ms(gear.start_ms),
            format!("{}/s", quantity::bytes(gear.bytes_per_s)),
            if gear.possible { gear.limit.clone() } else { "no host listens for others".into() },
        ]);
    }
    table.print("no gear")?;
    Ok(EXIT_OK)
}

/// A file that goes inside the request, where it is small enough and nothing else is asked for.
fn small(path: &Path, gear: &str) -> Result<Option<TransferSource>, CliError> {
    let (file, metadata) = plain_file(path)?;
    if metadata.len() > INLINE_BYTES_MAX || !["auto", "inline"].contains(&gear) {
        return Ok(None);
    }
    let cannot = |error| CliError::io(format!("cannot read {}", path.display()))(error);
    let mut content = Vec::new();
    file.take(metadata.len()).read_to_end(&mut content).map_err(cannot)?;
    if content.len() as u64 != metadata.len() {
        return Err(cannot(ErrorKind::UnexpectedEof.into()));
    }
    Ok(Some(TransferSource::Content {
        name: name_of(path)?.to_owned(),
        mode: metadata.permissions().mode() & 0o7777,
        mtime_ms: mtime_ms(&metadata),
        content_hex: hex_encode(&content),
    }))
}

fn plain_file(path: &Path) -> Result<(File, Metadata), CliError> {
    let cannot = |error| CliError::io(format!("cannot read {}", path.display()))(error);
    let file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err(CliError::Usage(format!("{} is not a regular file", path.display())));
    }
    Ok((file, metadata))
}

fn name_of(path: &Path) -> Result<&str, CliError> {
    path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        CliError::Usage(format!("the name of {} is not UTF-8; give --name", path.display()))
    })
}

fn mtime_ms(metadata: &Metadata) -> Option<i64> {
    let modified = metadata.modified().ok()?;
    let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

/// `SELECTOR:/folder` in its two parts; selectors may hold colons, so the last `:/` divides.
fn split_place<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str), CliError> {
    match text.rfind(":/") {
        Some(at) if at > 0 => Ok((&text[..at], &text[at + 1..])),
        _ => Err(CliError::Usage(format!("\"{text}\" should read {form} (the path is absolute)"))),
    }
}

/// A large file is not sent to the server for nobody.
fn somebody(targets: &str, context: &Context) -> Result<(), CliError> {
    let query = [("selector", targets.to_owned()), ("limit", "1".to_owned())];
    let page: AgentList = context.client.get("/agents", &query)?;
    if page.agents.is_empty() {
        return Err(CliError::Refused {
            code: "invalid".into(),
            message: format!("no agent matches \"{targets}\"; `skein hosts` lists them"),
        });
    }
    Ok(())
}

fn upload(path: &Path, context: &Context) -> Result<TransferSource, CliError> {
    let (file, metadata) = plain_file(path)?;
    let name = name_of(path)?;
    let mut query = vec![
        ("name", name.to_owned()),
        ("mode", (metadata.permissions().mode() & 0o7777).to_string()),
    ];
    query.extend(mtime_ms(&metadata).map(|time_ms| ("mtime_ms", time_ms.to_string())));
    let length = metadata.len();
    let mut progress = Progress::new(
        &format!("upload {}", show::printable(name.to_owned())),
        length,
        true,
        context.json,
    );
    // A file that grows while it is sent is cut at the length that was promised.
    let mut content = Reading::new((&file).take(length), &mut progress);
    let upload = context.client.upload(&query, length, &mut content);
    let cannot = CliError::io(format!("cannot read {}", path.display()));
    let after = file.metadata().map_err(cannot)?;
    match upload {
        // The server has a mixture, which it drops when nobody asks for it.
        Ok(_) if stamp(&after) != stamp(&metadata) => {
            progress.clear();
            let path = path.display();
            Err(CliError::Local(format!("{path} changed while it was read; push it again")))
        }
        Ok(upload) => {
            progress.finish(&format!("{} to the server", quantity::bytes(length)));
            Ok(TransferSource::Upload { upload_id: upload.upload_id })
        }
        Err(error) => {
            progress.clear();
            Err(error)
        }
    }
}

/// What changes when somebody writes into a file.
fn stamp(metadata: &Metadata) -> (u64, (i64, i64), (i64, i64)) {
    (
        metadata.len(),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    )
}

/// Waits for the end of a transfer, with progress.
pub fn follow(context: &Context, id: &str) -> Result<TransferDetail, CliError> {
    let path = format!("/transfers/{id}");
    let mut progress = Progress::new("push", 0, true, context.json);
    loop {
        // A page of one host: the numbers of the whole are what is shown.
        let query = [("limit", "1".into()), ("wait_ms", LOOK_MS.to_string())];
        let page: TransferDetail = context.client.get_patiently(&path, &query)?;
        let transfer = page.transfer;
        let note = match transfer.phase {
            TransferPhase::Offering => "the source hashes the file".to_owned(),
            TransferPhase::Fetching => "the server takes the file from its source".to_owned(),
            _ => {
                let hosts = show::plural(transfer.hosts_total, "host");
                let rate = match transfer.bytes_per_s {
                    // Nothing was reported yet.
                    0 => String::new(),
                    rate => format!(", {}/s", quantity::bytes(rate)),
                };
                format!("{} of {hosts} verified{rate}", transfer.hosts_done)
            }
        };
        progress.set(transfer.verified_bytes, transfer.size_bytes * transfer.hosts_total, &note);
        if transfer.phase == TransferPhase::Ended {
            progress.clear();
            return context.client.transfer(id);
        }
    }
}

/// Prints how a transfer ended; exit code 1 unless every host has the file.
pub fn report(context: &Context, detail: &TransferDetail) -> Outcome {
    let transfer = &detail.transfer;
    let done = transfer.hosts_done == transfer.hosts_total && transfer.hosts_total > 0;
    let code = if done { EXIT_OK } else { EXIT_PARTIAL };
    if context.json {
        show::json(detail)?;
        return Ok(code);
    }
    let mut table = Table::new(&["AGENT", "HOST", "STATE", "VERIFIED", "RESUMED", "ERROR"]);
    for host in detail.hosts.iter().filter(|host| !transfer_done(host)) {
        table.row([
            host.agent_id.clone(),
            host.hostname.clone(),
            word(&host.state),
            quantity::bytes(host.verified_bytes),
            quantity::bytes(host.resumed_bytes),
            host.error.clone(),
        ]);
    }
    if !done && !detail.hosts.is_empty() {
        table.print("")?;
    }
    let absent = |host: &TransferHost| host.error.contains("No such file or directory");
    if !done && detail.hosts.iter().any(absent) {
        eprintln!("a folder that is missing is made with --mkdir");
    }
    if !transfer.error.is_empty() {
        eprintln!("{}", show::printable(transfer.error.clone()));
    }
    if transfer.hosts_total == 0 && transfer.error.is_empty() {
        eprintln!("no host matches \"{}\"", transfer.targets);
    }
    let ended_ms = transfer.ended_ms.unwrap_or(transfer.created_ms);
    let elapsed = u64::try_from(ended_ms - transfer.created_ms).unwrap_or(0);
    show::line(&format!(
        "{} verified on {} of {} in {} ({}/s in all)  transfer {}",
        show::printable(transfer.file_name.clone()),
        transfer.hosts_done,
        show::plural(transfer.hosts_total, "host"),
        quantity::duration(elapsed),
        quantity::bytes(transfer.bytes_per_s),
        transfer.transfer_id
    ))?;
    if !transfer.judgement.is_empty() {
        show::line(&transfer.judgement)?;
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_divided_before_its_path() {
        let split = |text| split_place(text, "form").ok();
        assert_eq!(split("all:/tmp"), Some(("all", "/tmp")));
        assert_eq!(split("label.role=web:/opt/x"), Some(("label.role=web", "/opt/x")));
        assert_eq!(split("0:10.0.0.1:/opt"), Some(("0:10.0.0.1", "/opt")));
        assert_eq!([split("all:tmp"), split(":/tmp"), split("/tmp")], [None, None, None]);
    }
}
