//! `skein transfer ls|show|pause|resume|cancel`: pushes that run or ran.

use clap::{Args, Subcommand};
use skein_controlplane::api::types::{Transfer, TransferDetail, TransferList};

use super::{Context, Outcome, push, segment};
use crate::client::word;
use crate::error::{CliError, EXIT_OK};
use crate::quantity::{self, parse_duration_ms};
use crate::show::{self, Table};
use crate::watch::{self, states};

/// Flags of `transfer`.
#[derive(Args, Debug)]
pub struct TransferArgs {
    #[command(subcommand)]
    command: TransferCommand,
}

#[derive(Debug, Subcommand)]
enum TransferCommand {
    /// List them, newest first
    Ls {
        /// Only those in this phase: open (all but ended), queued, offering, fetching, running,
        /// paused, halted, ended
        #[arg(long)]
        state: Option<String>,
        /// Only those that began at most this long ago, as in 2h
        #[arg(long, value_parser = parse_duration_ms, value_name = "TIME")]
        since: Option<u64>,
        /// At most this many
        #[arg(long)]
        limit: Option<usize>,
    },
    /// Show one with its hosts
    Show {
        /// Its id
        id: String,
        /// Watch it until its end: a bar on a terminal, else a line every 2 s
        #[arg(long, visible_alias = "follow")]
        watch: bool,
    },
    /// Stop one for now; what is verified stays
    Pause {
        /// Its id
        id: String,
    },
    /// Go on with one that is paused, or that halted because hosts failed
    Resume {
        /// Its id
        id: String,
    },
    /// Stop one for good; hosts that are done keep the file
    Cancel {
        /// Its id
        id: String,
    },
}

/// Carries out the subcommand.
pub fn run(args: &TransferArgs, context: &Context) -> Outcome {
    match &args.command {
        TransferCommand::Ls { state, since, limit } => {
            let mut query = Vec::new();
            query.extend(state.clone().map(|state| ("state", state)));
            query.extend(since.map(|age_ms| ("newer_than_ms", age_ms.to_string())));
            query.extend(limit.map(|limit| ("limit", limit.to_string())));
            list(context, &query)?;
        }
        TransferCommand::Show { id, watch: true } => {
            let detail = push::follow(context, segment(id)?)?;
            return push::report(context, &detail);
        }
        TransferCommand::Show { id, watch: false } => {
            show_one(context, &context.client.transfer(segment(id)?)?)?;
        }
        TransferCommand::Pause { id } => wish(context, id, "pause")?,
        TransferCommand::Resume { id } => wish(context, id, "resume")?,
        TransferCommand::Cancel { id } => wish(context, id, "cancel")?,
    }
    Ok(EXIT_OK)
}

fn wish(context: &Context, id: &str, wish: &str) -> Result<(), CliError> {
    let path = format!("/transfers/{}/{wish}", segment(id)?);
    let transfer: Transfer = context.client.post(&path, &serde_json::json!({}))?;
    if context.json {
        return show::json(&transfer);
    }
    let (id, phase) = (&transfer.transfer_id, word(&transfer.phase));
    show::line(&format!("{id}: {phase}: {}", states(&transfer)))
}

fn list(context: &Context, query: &[(&str, String)]) -> Result<(), CliError> {
    let list: TransferList = context.client.get("/transfers", query)?;
    if context.json {
        return show::json(&list.transfers);
    }
    let now_ms = quantity::now_ms();
    let mut table = Table::new(&[
        "TRANSFER", "BEGAN", "FILE", "SIZE", "TO", "FOLDER", "GEAR", "PHASE", "HOSTS",
    ]);
    for transfer in list.transfers {
        let hosts = states(&transfer);
        table.row([
            transfer.transfer_id,
            quantity::ago(now_ms, transfer.created_ms),
            transfer.file_name,
            quantity::bytes(transfer.size_bytes),
            transfer.targets,
            transfer.directory,
            transfer.gear,
            word(&transfer.phase),
            hosts,
        ]);
    }
    table.print("no transfers yet: `skein push FILE --to SELECTOR:/folder`")
}

fn show_one(context: &Context, detail: &TransferDetail) -> Result<(), CliError> {
    if context.json {
        return show::json(detail);
    }
    let transfer = &detail.transfer;
    show::line(&format!(
        "{} to {}:{}, {}, phase {}, root {}",
        show::printable(transfer.file_name.clone()),
        transfer.targets,
        show::printable(transfer.directory.clone()),
        quantity::bytes(transfer.size_bytes),
        word(&transfer.phase),
        transfer.root
    ))?;
    let rollout = &transfer.rollout;
    // The summary says what else stands in the way.
    if !rollout.reason.is_empty() && rollout.reason != transfer.progress.note {
        show::line(&show::printable(rollout.reason.clone()))?;
    }
    if !rollout.batches.is_empty() {
        let batches: Vec<_> = rollout.batches.iter().map(u64::to_string).collect();
        show::line(&format!(
            "batch {} of {}: {} hosts in all, at most {} may fail",
            rollout.batches_started,
            batches.len(),
            batches.join(", "),
            rollout.max_errors
        ))?;
    }
    if !transfer.judgement.is_empty() {
        show::line(&transfer.judgement)?;
    }
    if !transfer.error.is_empty() {
        show::line(&show::printable(transfer.error.clone()))?;
    }
    for line in watch::summary(transfer) {
        show::line(&line)?;
    }
    let mut table = Table::new(&[
        "AGENT", "HOST", "STATE", "VERIFIED", "RESUMED", "PEERS", "RATE", "REFUSED", "ERROR",
    ]);
    for host in &detail.hosts {
        table.row([
            host.agent_id.clone(),
            host.hostname.clone(),
            word(&host.state),
            quantity::bytes(host.verified_bytes),
            quantity::bytes(host.resumed_bytes),
            quantity::bytes(host.from_peers_bytes),
            format!("{}/s", quantity::bytes(host.bytes_per_s)),
            host.refused_blocks.to_string(),
            host.error.clone(),
        ]);
    }
    table.print("no host matched")
}
