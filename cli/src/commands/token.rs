//! `skein token create|ls|rm`: join tokens for agents, and with `--admin` tokens for operators.

use clap::{Args, Subcommand};
use skein_controlplane::api::types::{
    AdminTokenCreated, AdminTokenList, AdminTokenRequest, Empty, JoinTokenCreated, JoinTokenList,
    JoinTokenRequest,
};

use super::{Context, Outcome, segment};
use crate::error::{CliError, EXIT_OK};
use crate::quantity::{self, parse_duration_ms};
use crate::show::{self, Table};

/// Flags of `token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it, once
    Create {
        /// How long it is valid [default: 1 h; for --admin: for ever]
        #[arg(long, value_parser = parse_duration_ms, value_name = "TIME")]
        ttl: Option<u64>,
        /// How many agents may join with it; 0: any number
        #[arg(long, default_value_t = 1, conflicts_with = "admin")]
        uses: u32,
        /// A word to recognise it by
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
        /// For an operator instead of an agent
        #[arg(long)]
        admin: bool,
    },
    /// List tokens, without their secrets
    Ls {
        /// Those of operators
        #[arg(long)]
        admin: bool,
    },
    /// Withdraw tokens
    Rm {
        /// Ids, from `token ls`
        #[arg(required = true)]
        ids: Vec<String>,
        /// Those of operators
        #[arg(long)]
        admin: bool,
    },
}

/// Carries out the subcommand.
pub fn run(args: &TokenArgs, context: &Context) -> Outcome {
    match &args.command {
        TokenCommand::Create { ttl, uses, note, admin: false } => {
            let request =
                JoinTokenRequest { ttl_ms: *ttl, uses_max: Some(*uses), note: note.clone() };
            let created: JoinTokenCreated = context.client.post("/join-tokens", &request)?;
            if context.json {
                show::json(&created)?;
            } else {
                show::line(&created.command)?;
                eprintln!("valid for {}", left(created.expires_ms));
            }
        }
        TokenCommand::Create { ttl, note, admin: true, .. } => {
            let request = AdminTokenRequest { ttl_ms: *ttl, note: note.clone() };
            let created: AdminTokenCreated = context.client.post("/admin-tokens", &request)?;
            if context.json {
                show::json(&created)?;
            } else {
                show::line(&created.token)?;
            }
        }
        TokenCommand::Ls { admin: false } => list_join(context)?,
        TokenCommand::Ls { admin: true } => list_admin(context)?,
        TokenCommand::Rm { ids, admin } => {
            let kind = if *admin { "admin-tokens" } else { "join-tokens" };
            for id in ids {
                let _: Empty = context.client.delete(&format!("/{kind}/{}", segment(id)?))?;
            }
            show::removed(ids, context.json)?;
        }
    }
    Ok(EXIT_OK)
}

fn list_join(context: &Context) -> Result<(), CliError> {
    let list: JoinTokenList = context.client.get("/join-tokens", &[])?;
    if context.json {
        return show::json(&list.tokens);
    }
    let mut table = Table::new(&["TOKEN", "USED", "OF", "ENDS IN", "NOTE"]);
    for token in list.tokens {
        let of = if token.uses_max == 0 { "any".into() } else { token.uses_max.to_string() };
        table.row([token.id, token.used.to_string(), of, left(token.expires_ms), token.note]);
    }
    table.print("no join tokens: `skein token create`")
}

fn list_admin(context: &Context) -> Result<(), CliError> {
    let list: AdminTokenList = context.client.get("/admin-tokens", &[])?;
    if context.json {
        return show::json(&list.tokens);
    }
    let mut table = Table::new(&["TOKEN", "ENDS IN", "NOTE"]);
    for token in list.tokens {
        table.row([token.id, token.expires_ms.map_or("never".into(), left), token.note]);
    }
    table.print("no admin tokens")
}

fn left(expires_ms: i64) -> String {
    match u64::try_from(expires_ms - quantity::now_ms()) {
        Ok(left) => quantity::duration(left),
        Err(_) => "expired".to_owned(),
    }
}
