//! `skein status`: the server at a glance.

use clap::Args;
use skein_controlplane::api::types::Status;

use super::{Context, Outcome};
use crate::error::{EXIT_OK, EXIT_PARTIAL};
use crate::{quantity, show};

/// Flags of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {}

/// Prints it; exit code 1 when no data process serves agents.
pub fn run(_: &StatusArgs, context: &Context) -> Outcome {
    let status: Status = context.client.get("/status", &[])?;
    let code = if status.data_processes.is_empty() { EXIT_PARTIAL } else { EXIT_OK };
    if context.json {
        show::json(&status)?;
        return Ok(code);
    }
    let up = quantity::ago(status.now_ms, status.started_ms);
    show::line(&format!(
        "control  version {}, pid {}, started {up}, API {}",
        status.version,
        status.pid,
        context.client.api()
    ))?;
    for data in &status.data_processes {
        show::line(&format!(
            "data     {}: version {}, pid {}, {}, {}, disk driver {}",
            data.node_id,
            data.version,
            data.pid,
            show::plural(u64::from(data.shards), "shard"),
            show::plural(data.sessions, "session"),
            data.disk_driver
        ))?;
        show::line(&format!(
            "         signal {}  data {}  file {}  metrics {}",
            data.signal_addr, data.data_addr, data.file_addr, data.metrics_addr
        ))?;
    }
    if status.data_processes.is_empty() {
        show::line("data     none is connected: agents are not served now")?;
    }
    let agents = &status.agents;
    show::line(&format!(
        "agents   {} online, {} offline, {} lost, {} revoked",
        agents.online, agents.offline, agents.lost, agents.revoked
    ))?;
    show::line(&format!(
        "work     {}, {}",
        show::plural(status.tasks_running, "running task"),
        show::plural(status.transfers_running, "running transfer")
    ))?;
    if let Some(join) = &status.first_join {
        show::line(&format!("join     {}", join.command))?;
    }
    Ok(code)
}
