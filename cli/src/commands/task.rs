//! `skein task ls|show|cancel|output`: scripts that run or ran.

use clap::{Args, Subcommand};
use skein_controlplane::api::types::{Task, TaskDetail, TaskList};

use super::{Context, Outcome, run as run_command, segment};
use crate::client::word;
use crate::error::{CliError, EXIT_OK};
use crate::quantity;
use crate::show::{self, Table};

/// Characters of a script that a list shows.
const SCRIPT_HEAD_SHOWN: usize = 40;

/// Flags of `task`.
#[derive(Args, Debug)]
pub struct TaskArgs {
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// List them, newest first
    Ls,
    /// Show one with its hosts
    Show {
        /// Its id
        id: String,
        /// Wait for its end and print what the hosts said, as `run` does
        #[arg(long)]
        follow: bool,
    },
    /// Stop one: TERM, then KILL, to everything that it started
    Cancel {
        /// Its id
        id: String,
    },
    /// Print what one host said
    Output {
        /// The task
        id: String,
        /// The agent
        agent: String,
    },
}

/// Carries out the subcommand.
pub fn run(args: &TaskArgs, context: &Context) -> Outcome {
    match &args.command {
        TaskCommand::Ls => list(context)?,
        TaskCommand::Show { id, follow: true } => {
            let detail = run_command::follow(context, segment(id)?)?;
            return run_command::report(context, &detail);
        }
        TaskCommand::Show { id, follow: false } => {
            show_one(context, &context.client.task(segment(id)?)?)?;
        }
        TaskCommand::Cancel { id } => {
            let path = format!("/tasks/{}/cancel", segment(id)?);
            let task: Task = context.client.post(&path, &serde_json::json!({}))?;
            if context.json {
                show::json(&task)?;
            } else {
                show::line(&format!("{}: {}", task.task_id, states(&task)))?;
            }
        }
        TaskCommand::Output { id, agent } => {
            let detail = context.client.task(segment(id)?)?;
            let Some(host) =
                detail.hosts.iter().find(|host| host.agent_id == *agent || host.hostname == *agent)
            else {
                return Err(CliError::Usage(format!("task {id} has no host {agent}")));
            };
            show::raw(&run_command::output_of(&context.client, id, host)?)?;
        }
    }
    Ok(EXIT_OK)
}

fn states(task: &Task) -> String {
    let states = task.hosts_by_state.iter();
    states.map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

fn list(context: &Context) -> Result<(), CliError> {
    let list: TaskList = context.client.get("/tasks", &[])?;
    if context.json {
        return show::json(&list.tasks);
    }
    let now_ms = quantity::now_ms();
    let mut table = Table::new(&["TASK", "BEGAN", "ON", "HOSTS", "SCRIPT", "NOTE"]);
    for task in list.tasks {
        let states = states(&task);
        let head: String = task.script_head.chars().take(SCRIPT_HEAD_SHOWN).collect();
        table.row([
            task.task_id,
            quantity::ago(now_ms, task.created_ms),
            task.targets,
            states,
            head.replace('\n', " "),
            task.note,
        ]);
    }
    table.print("no tasks yet: `skein run --on SELECTOR -- CMD`")
}

fn show_one(context: &Context, detail: &TaskDetail) -> Result<(), CliError> {
    if context.json {
        return show::json(detail);
    }
    let task = &detail.task;
    let head: String = task.script_head.chars().take(SCRIPT_HEAD_SHOWN).collect();
    show::line(&show::printable(format!(
        "{} on {}, {}: {}",
        head.replace('\n', " "),
        task.targets,
        quantity::ago(quantity::now_ms(), task.created_ms),
        states(task)
    )))?;
    let mut table =
        Table::new(&["AGENT", "HOST", "STATE", "EXIT", "SIGNAL", "TOOK", "OUTPUT", "ERROR"]);
    for host in &detail.hosts {
        let took = u64::try_from(host.ended_ms - host.started_ms).unwrap_or(0);
        // Empty cells show as `-`: what has not ended has no exit code yet.
        let ended = |cell: String| if host.state.is_final() { cell } else { String::new() };
        table.row([
            host.agent_id.clone(),
            host.hostname.clone(),
            word(&host.state),
            ended(host.exit_code.to_string()),
            ended(host.signal.to_string()),
            ended(quantity::duration(took)),
            quantity::bytes(host.output_stored_bytes),
            host.error.clone(),
        ]);
    }
    table.print("no host matched")
}
