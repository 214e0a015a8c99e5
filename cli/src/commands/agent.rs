//! `skein agent label|ping|revoke|forget`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use skein_controlplane::api::types::{
    Empty, LabelsReply, LabelsRequest, PingReply, PingRequest, RevokeReply, RevokeRequest,
};

use super::{Context, Outcome, segment};
use crate::error::{CliError, EXIT_OK, EXIT_PARTIAL};
use crate::quantity::parse_duration_ms;
use crate::show;

/// Flags of `agent`.
#[derive(Args, Debug)]
pub struct AgentArgs {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Set labels (KEY=VALUE) and remove them (KEY-)
    Label {
        /// Which hosts
        selector: String,
        /// KEY=VALUE or KEY-
        #[arg(required = true, value_name = "LABEL")]
        labels: Vec<String>,
    },
    /// Measure the way to agents and back
    Ping {
        /// Which hosts
        selector: String,
        /// Bytes of payload
        #[arg(long, default_value_t = 64)]
        bytes: u32,
        /// How long to wait for answers
        #[arg(long, value_parser = parse_duration_ms, default_value = "5s", value_name = "TIME")]
        timeout: u64,
    },
    /// Withdraw agents' certificates; their sessions end at once
    Revoke {
        /// Agent ids
        #[arg(required = true)]
        agents: Vec<String>,
        /// Why, for the log
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Revoke agents and remove them from the list
    Forget {
        /// Agent ids
        #[arg(required = true)]
        agents: Vec<String>,
    },
}

/// Carries out the subcommand.
pub fn run(args: &AgentArgs, context: &Context) -> Outcome {
    match &args.command {
        AgentCommand::Label { selector, labels } => label(context, selector, labels),
        AgentCommand::Ping { selector, bytes, timeout } => {
            ping(context, selector, *bytes, *timeout)
        }
        AgentCommand::Revoke { agents, reason } => revoke(context, agents, reason),
        AgentCommand::Forget { agents } => {
            for agent in agents {
                let _: Empty = context.client.delete(&format!("/agents/{}", segment(agent)?))?;
            }
            show::removed(agents, context.json)?;
            Ok(EXIT_OK)
        }
    }
}

fn label(context: &Context, selector: &str, labels: &[String]) -> Outcome {
    let mut set = BTreeMap::new();
    let mut remove = Vec::new();
    for label in labels {
        match (label.split_once('='), label.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => {
                set.insert(key.to_owned(), value.to_owned());
            }
            (None, Some(key)) if !key.is_empty() => remove.push(key.to_owned()),
            _ => {
                return Err(CliError::Usage(format!("\"{label}\" should read KEY=VALUE or KEY-")));
            }
        }
    }
    let request = LabelsRequest { selector: selector.to_owned(), set, remove };
    let reply: LabelsReply = context.client.post("/agents/labels", &request)?;
    if context.json {
        show::json(&reply)?;
    } else if reply.matched == 0 {
        eprintln!("no host matches \"{selector}\"");
    } else {
        show::line(&format!(
            "{} of {} changed",
            reply.changed,
            show::plural(reply.matched, "host")
        ))?;
    }
    Ok(if reply.matched == 0 { EXIT_PARTIAL } else { EXIT_OK })
}

fn ping(context: &Context, selector: &str, bytes: u32, timeout_ms: u64) -> Outcome {
    let request = PingRequest {
        selector: selector.to_owned(),
        payload_bytes: Some(bytes),
        timeout_ms: Some(timeout_ms),
    };
    let reply: PingReply = context.client.post("/agents/ping", &request)?;
    if context.json {
        show::json(&reply)?;
    } else if reply.matched == 0 {
        eprintln!("no host matches \"{selector}\"");
    } else {
        show::line(&format!(
            "{} of {} answered; median {} us, p99 {} us, max {} us",
            reply.answered,
            show::plural(reply.matched, "host"),
            reply.median_us,
            reply.p99_us,
            reply.max_us
        ))?;
        if !reply.silent.is_empty() {
            show::line(&format!("silent: {}", show::names(&reply.silent, 20)))?;
        }
    }
    let all = reply.matched > 0 && reply.answered == reply.matched;
    Ok(if all { EXIT_OK } else { EXIT_PARTIAL })
}

fn revoke(context: &Context, agents: &[String], reason: &str) -> Outcome {
    let request = RevokeRequest {
        agent_ids: agents.to_vec(),
        certificate_serials: Vec::new(),
        reason: reason.to_owned(),
    };
    let reply: RevokeReply = context.client.post("/agents/revoke", &request)?;
    if context.json {
        show::json(&reply)?;
    } else {
        show::line(&format!("{} revoked", show::plural(reply.agent_ids.len() as u64, "agent")))?;
    }
    Ok(EXIT_OK)
}
