//! `skein transfer ls|show|cancel`: pushes that run or ran.

use clap::{Args, Subcommand};
use skein_controlplane::api::types::{Transfer, TransferDetail, TransferList};

use super::{Context, Outcome, push, segment};
use crate::client::word;
use crate::error::{CliError, EXIT_OK};
use crate::quantity;
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
    Ls,
    /// Show one with its hosts
    Show {
        /// Its id
        id: String,
        /// Watch it until its end: a bar on a terminal, else a line every 2 s
        #[arg(long, visible_alias = "follow")]
        watch: bool,
    },
    /// Stop one; hosts that are done keep the file
    Cancel {
        /// Its id
        id: String,
    },
}

/// Carries out the subcommand.
pub fn run(args: &TransferArgs, context: &Context) -> Outcome {
    match &args.command {
        TransferCommand::Ls => list(context)?,
        TransferCommand::Show { id, watch: true } => {
            let detail = push::follow(context, segment(id)?)?;
            return push::report(context, &detail);
        }
        TransferCommand::Show { id, watch: false } => {
            show_one(context, &context.client.transfer(segment(id)?)?)?;
        }
        TransferCommand::Cancel { id } => {
            let path = format!("/transfers/{}/cancel", segment(id)?);
            let transfer: Transfer = context.client.post(&path, &serde_json::json!({}))?;
            if context.json {
                show::json(&transfer)?;
            } else {
                show::line(&format!("{}: {}", transfer.transfer_id, states(&transfer)))?;
            }
        }
    }
    Ok(EXIT_OK)
}

fn list(context: &Context) -> Result<(), CliError> {
    let list: TransferList = context.client.get("/transfers", &[])?;
    if context.json {
        return show::json(&list.transfers);
    }
    let now_ms = quantity::now_ms();
    let mut table =
        Table::new(&["TRANSFER", "BEGAN", "FILE", "SIZE", "TO", "FOLDER", "GEAR", "HOSTS"]);
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
