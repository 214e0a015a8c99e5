//! `skein hosts [SELECTOR]`: who is in the fleet.

use clap::Args;
use skein_controlplane::api::types::{Agent, AgentState};

use super::{Context, Outcome, selector};
use crate::client::word;
use crate::error::{EXIT_OK, EXIT_PARTIAL};
use crate::quantity;
use crate::show::{self, Table};

/// Flags of `hosts`.
#[derive(Args, Debug)]
pub struct HostsArgs {
    /// Which hosts [default: all]
    selector: Option<String>,
    /// Show more columns: facts, load, certificate
    #[arg(long, short)]
    wide: bool,
    /// Print only agent ids, one per line
    #[arg(long, short, conflicts_with = "wide")]
    quiet: bool,
    /// Exit with 0 only when at least this many of the hosts are online
    #[arg(long, value_name = "COUNT")]
    expect_online: Option<usize>,
}

/// Lists them.
pub fn run(args: &HostsArgs, context: &Context) -> Outcome {
    let selector = args.selector.as_deref().map(selector).transpose()?;
    let agents = context.client.agents(selector.unwrap_or_default())?;
    let online = agents.iter().filter(|agent| agent.state == AgentState::Online).count();
    if context.json {
        show::json(&agents)?;
    } else if args.quiet {
        let ids: String = agents.iter().map(|agent| format!("{}\n", agent.agent_id)).collect();
        show::text(&ids)?;
    } else {
        table(&agents, args.wide).print(match selector {
            Some(_) => "no host matches",
            None => "no hosts yet: `skein token create` prints what to type on one",
        })?;
        if !agents.is_empty() {
            eprintln!("{} of {} online", online, show::plural(agents.len() as u64, "host"));
        }
    }
    let enough = args.expect_online.is_none_or(|expected| online >= expected);
    Ok(if enough { EXIT_OK } else { EXIT_PARTIAL })
}

fn table(agents: &[Agent], wide: bool) -> Table {
    let mut headings =
        vec!["AGENT", "HOST", "ADDRESS", "STATE", "SINCE", "REGION", "ZONE", "CLOUD", "LABELS"];
    if wide {
        headings.extend(["OS", "KERNEL", "CPUS", "MEMORY", "VERSION", "RSS", "SPOOL", "CERT ENDS"]);
    }
    let now_ms = quantity::now_ms();
    let mut table = Table::new(&headings);
    for agent in agents {
        let labels: Vec<String> =
            agent.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut cells = vec![
            agent.agent_id.clone(),
            agent.hostname.clone(),
            agent.ips.first().cloned().unwrap_or_default(),
            word(&agent.state),
            quantity::ago(now_ms, agent.state_since_ms),
            agent.region.clone(),
            agent.zone.clone(),
            agent.cloud_id.to_string(),
            labels.join(","),
        ];
        if wide {
            let load = agent.load.clone().unwrap_or_default();
            let left = u64::try_from(agent.certificate_not_after_ms - now_ms).unwrap_or(0);
            cells.extend([
                agent.facts.os_version.clone(),
                agent.facts.kernel.clone(),
                agent.facts.cpu_count.to_string(),
                quantity::bytes(agent.facts.memory_bytes),
                agent.facts.agent_version.clone(),
                quantity::bytes(load.rss_bytes),
                quantity::bytes(load.spool_bytes),
                format!("in {}", quantity::duration(left)),
            ]);
        }
        table.row(cells);
    }
    table
}
