//! `uname -a` on every agent, and the proof: what each printed is what this machine prints.

use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use skein_controlplane::api::types::{Task, TaskHostState, TaskRequest};

use super::chapter;
use super::fleet::Fleet;
use crate::commands::run::output_of;
use crate::error::CliError;
use crate::local::wait_for;

const RUN_TIME_MAX: Duration = Duration::from_secs(60);

/// What the scripts came to.
#[derive(Clone, Debug, Serialize)]
pub struct ScriptsReport {
    /// Agents that exited with 0 and printed what was expected.
    pub ok: u64,
    /// Agents that it ran on.
    pub total: u64,
}

/// Runs it and compares the output.
pub fn show(fleet: &Fleet) -> Result<ScriptsReport, CliError> {
    chapter(5, "uname -a on every agent, signed once and verified by each");
    let client = fleet.server.client();
    let request = TaskRequest {
        targets: "all".to_owned(),
        script: "uname -a\n".to_owned(),
        note: "demo".to_owned(),
        ..TaskRequest::default()
    };
    let task: Task = client.post("/tasks", &request)?;
    let detail = wait_for("the scripts", RUN_TIME_MAX, || {
        client.task(&task.task_id).ok().filter(|detail| detail.task.ended_ms.is_some())
    })?;
    let expected = Command::new("uname").arg("-a").output();
    let expected = expected.map_err(CliError::io("cannot run uname"))?.stdout;
    let mut ok = 0;
    for host in &detail.hosts {
        let output = output_of(client, &task.task_id, host)?;
        let good = host.state == TaskHostState::Succeeded && output == expected;
        ok += u64::from(good);
        if !good {
            eprintln!("{}: {:?} {}", host.agent_id, host.state, host.error);
        }
    }
    eprintln!("{}", String::from_utf8_lossy(&expected).trim_end());
    Ok(ScriptsReport { ok, total: fleet.agents.len() as u64 })
}
