//! `skein push PATH... --to SELECTOR:DIR`: files and directories to many hosts, from here or from an
//! agent.

mod paths;

use std::path::PathBuf;

use clap::{Args, ValueHint};
use skein_controlplane::api::types::{
    AgentList, AgentPath, ForecastRequest, Priority, RolloutRequest, Transfer, TransferDetail,
    TransferForecast, TransferHost, TransferPhase, TransferRequest, TransferSource, TreeRequest,
};
use skein_filemesh::core::folder;

use self::paths::{Sent, TreeArgs};
use super::{Context, Outcome};
use crate::args::SELECTOR_HELP;
use crate::client::{transfer_done, word};
use crate::error::{CliError, EXIT_OK, EXIT_PARTIAL};
use crate::progress::Progress;
use crate::quantity::{self, parse_bytes, parse_duration_ms, parse_mode};
use crate::show::{self, Table};
use crate::watch;

/// Time between two looks at a running transfer; its end is seen at once.
const LOOK_MS: u64 = 200;

/// How `push` is written.
const USAGE: &str = "skein push [OPTIONS] <PATH>... --to <SELECTOR:DIR>
       skein push [OPTIONS] --from <SELECTOR:PATH>... --to <SELECTOR:DIR>";

/// How it is used.
const EXAMPLES: &str = "\
Examples:
  skein push app.tar --to role=web:/opt/app --mkdir     a file
  skein push ./release --to all:/srv                    a directory, as /srv/release
  skein push ./release/ --to all:/srv/app               what is in it, into /srv/app
  skein push a.conf b.conf conf.d --to all:/etc/app     several paths
  skein push './logs/*.gz' --to role=archive:/logs      a pattern that your shell did not expand
  skein push ./build/ --match '\\.so$' --exclude 'test*' --to all:/usr/local/lib
  skein push --from web-1:/var/log/app/ --match '\\.gz$' --to role=archive:/logs
  skein push --from role=seed:/srv/app.tar --to role=web:/opt/app     any of the seeds; all must agree
  skein push ./site/ --to all:/srv/site --preserve mode,times,owner --existing refuse
  skein push app.tar --to role=web:/opt/app --batch 1,10%,100%
      one host, then a tenth, then all; halts when a host fails
  skein push app.tar --to role=web:/opt/app --batch 5%,100% --max-errors 2%
  skein push nightly.tar --to all:/var/cache --priority low --limit 5M

Files arrive whole and by rename, all of a push after its last byte was proved. A directory that
is not there yet appears in one step; into one that is there, files are renamed one by one, and
what the push does not have stays. Holes of files travel and land as holes.

A transfer that halts or is paused goes on with `skein transfer resume ID` and ends with
`skein transfer cancel ID`.";

/// What stands below the flags.
pub fn help() -> String {
    format!("{EXAMPLES}\n\n{SELECTOR_HELP}")
}

/// Flags of `push`.
#[derive(Args, Debug)]
#[command(override_usage = USAGE)]
pub struct PushArgs {
    /// Files, directories (with `/` at the end: what is in them) and patterns of this machine
    #[arg(
        required_unless_present = "from",
        conflicts_with = "from",
        value_name = "PATH",
        value_hint = ValueHint::AnyPath
    )]
    paths: Vec<PathBuf>,
    /// A path of a host instead, which may be a pattern: AGENT:/path; of several hosts that have
    /// the same: given several times, or with a selector
    #[arg(long, value_name = "SELECTOR:PATH")]
    from: Vec<String>,
    /// Which hosts, and into which folder: SELECTOR:/folder
    ///
    /// In the folder each host puts its own agent id for {agent} and its host name for {hostname}.
    /// A brace of the folder's own name is written twice.
    #[arg(long, value_name = "SELECTOR:DIR")]
    to: String,
    /// Name at the targets, of one file or directory [default: its own]
    #[arg(long)]
    name: Option<String>,
    /// Permission bits of files at the targets, octal [default: their own, without set-id bits]
    #[arg(long, value_parser = parse_mode)]
    mode: Option<u32>,
    /// Owner at the targets: user or user:group [default: the agent's]
    #[arg(long)]
    owner: Option<String>,
    /// Make the folder where it is missing
    #[arg(long)]
    mkdir: bool,
    #[command(flatten)]
    tree: TreeArgs,
    /// Bytes per second to each host, as in 20M
    #[arg(long, value_parser = parse_bytes, value_name = "RATE")]
    limit: Option<u64>,
    /// Bytes per second that the server sends to all hosts together, at least 64K
    #[arg(long, value_parser = parse_bytes, value_name = "RATE")]
    limit_total: Option<u64>,
    /// Hosts started with each batch, in all: 1,10%,100%; a batch follows when the one before ended
    #[arg(long, value_name = "N|P%,...")]
    batch: Option<String>,
    /// Hosts that may fail before no further batch starts: a number, or a share of those started
    /// [default: 0]
    #[arg(long, value_name = "N|P%", requires = "batch")]
    max_errors: Option<String>,
    /// Whose turn it is where transfers wait: low, normal or high
    #[arg(long, value_parser = parse_priority, default_value = "normal")]
    priority: Priority,
    /// How the file travels; auto lets the server plan by size, hosts and places
    #[arg(
        long,
        value_parser = ["auto", "inline", "direct", "planned", "mesh"],
        default_value = "auto"
    )]
    gear: String,
    /// Say how it would travel and how long it would take, and do nothing
    #[arg(long, conflicts_with = "detach")]
    dry_run: bool,
    /// Give up on hosts that cannot be reached for this long
    #[arg(long, value_parser = parse_duration_ms, default_value = "30s", value_name = "TIME")]
    deliver_within: u64,
    /// Give up on hosts that have not finished after this time
    #[arg(long, value_parser = parse_duration_ms, default_value = "6h", value_name = "TIME")]
    timeout: u64,
    /// Start it and return; `skein transfer show --watch ID` follows it
    #[arg(long)]
    detach: bool,
}

/// Uploads (or names) what is to be sent, starts the transfer and follows it to its end.
pub fn run(args: &PushArgs, context: &Context) -> Outcome {
    let (targets, directory) = split_place(&args.to, "--to SELECTOR:/folder")?;
    folder::check(directory).map_err(|error| CliError::Usage(error.to_string()))?;
    if args.dry_run {
        return dry_run(args, targets, context);
    }
    let sent = match &args.from[..] {
        [] => {
            let small = paths::small(&args.paths, args.name.as_deref(), &args.tree, &args.gear)?;
            match small {
                Some(sent) => sent,
                None => {
                    somebody(targets, context)?;
                    paths::upload(&args.paths, args.name.as_deref(), &args.tree, context)?
                }
            }
        }
        from => {
            let source = from_agents(from)?;
            Sent { source, file_name: args.name.clone(), tree: args.tree.request() }
        }
    };
    let request = TransferRequest {
        source: sent.source,
        targets: targets.to_owned(),
        directory: directory.to_owned(),
        file_name: sent.file_name,
        mode: args.mode,
        owner: args.owner.clone(),
        create_directory: args.mkdir,
        rate_limit_bytes_per_s: args.limit,
        rate_limit_total_bytes_per_s: args.limit_total,
        gear: Some(args.gear.clone()),
        deliver_within_ms: Some(args.deliver_within),
        timeout_ms: Some(args.timeout),
        rollout: RolloutRequest {
            batches: args.batch.clone(),
            max_errors: args.max_errors.clone(),
            priority: args.priority,
        },
        tree: sent.tree,
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

/// The first and further places of `--from`, of which there is at least one.
fn from_agents(from: &[String]) -> Result<TransferSource, CliError> {
    let mut places = Vec::new();
    for text in from {
        let (agent, path) = split_place(text, "--from SELECTOR:/path")?;
        places.push(AgentPath { agent: agent.to_owned(), path: path.to_owned() });
    }
    let mut places = places.into_iter();
    let first = places.next().ok_or_else(|| CliError::Usage("--from is missing".into()))?;
    Ok(TransferSource::Agent { agent: first.agent, path: first.path, also: places.collect() })
}

fn parse_priority(text: &str) -> Result<Priority, String> {
    match text {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        _ => Err("give low, normal or high".into()),
    }
}

/// Shows what the server's planner says of what would be sent.
fn dry_run(args: &PushArgs, targets: &str, context: &Context) -> Outcome {
    let (source, size_bytes) = match args.from.is_empty() {
        true => (None, paths::stream_bytes(&args.paths, &args.tree)?),
        false => (Some(from_agents(&args.from)?), 0),
    };
    let request = ForecastRequest {
        targets: targets.to_owned(),
        size_bytes,
        tree: if source.is_some() { args.tree.request() } else { TreeRequest::default() },
        source,
        rate_limit_bytes_per_s: args.limit,
        rate_limit_total_bytes_per_s: args.limit_total,
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

/// `SELECTOR:/folder` in its two parts; selectors may hold colons, so the last `:/` divides.
fn split_place<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str), CliError> {
    match text.rfind(":/") {
        Some(at) if at > 0 => Ok((&text[..at], &text[at + 1..])),
        _ => Err(CliError::Usage(format!("\"{text}\" should read {form} (the path is absolute)"))),
    }
}

/// Much is not sent to the server for nobody.
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

/// Waits for the end of a transfer, or until it halts, with progress.
pub fn follow(context: &Context, id: &str) -> Result<TransferDetail, CliError> {
    let path = format!("/transfers/{id}");
    let mut progress = Progress::new("push", 0, true, context.json);
    loop {
        // A page of one host: the numbers of the whole are what is shown.
        let query = [("limit", "1".into()), ("wait_ms", LOOK_MS.to_string())];
        let page: TransferDetail = context.client.get_patiently(&path, &query)?;
        let transfer = page.transfer;
        let note = watch::line(&transfer);
        progress.set(transfer.verified_bytes, transfer.size_bytes * transfer.hosts_total, &note);
        // Nothing more happens to a halted one before an operator decides.
        let moves =
            |host: &&String| matches!(host.as_str(), "pending" | "sent" | "waiting" | "running");
        let is_idle = !transfer.hosts_by_state.keys().any(|state| moves(&state));
        let halted = transfer.phase == TransferPhase::Halted && is_idle;
        if transfer.phase == TransferPhase::Ended || halted {
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
    if transfer.phase == TransferPhase::Halted {
        eprintln!("{}", show::printable(transfer.rollout.reason.clone()));
        eprintln!(
            "go on in spite of it: skein transfer resume {0}; end it: skein transfer cancel {0}",
            transfer.transfer_id
        );
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
