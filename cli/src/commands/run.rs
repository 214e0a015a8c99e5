//! `skein run --on SELECTOR -- CMD`: a command or script on many hosts, output grouped by hosts
//! that said the same.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueHint};
use skein_controlplane::api::types::{Task, TaskDetail, TaskHost, TaskHostState, TaskRequest};

use super::{Context, Outcome};
use crate::client::{Client, host_names, word};
use crate::error::{CliError, EXIT_NO_OUTCOME, EXIT_OK, EXIT_PARTIAL, EXIT_TIMED_OUT};
use crate::progress::Progress;
use crate::quantity::{self, parse_bytes, parse_duration_ms};
use crate::show;

/// Time between two looks at a running task.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A host whose state is final may still owe output; longer than this is not waited for it.
const OUTPUT_WAIT_MAX: Duration = Duration::from_secs(15);
/// Largest script, as the API takes it.
const SCRIPT_BYTES_MAX: u64 = 128 << 10;
/// Host names shown per group.
const NAMES_MAX: usize = 8;

/// How `run` is written.
const USAGE: &str = "skein run [OPTIONS] --on <SELECTOR> -- <CMD>...
       skein run [OPTIONS] --on <SELECTOR> --script <FILE> [-- <ARG>...]";

/// Flags of `run`.
#[derive(Args, Debug)]
#[command(override_usage = USAGE)]
pub struct RunArgs {
    /// Which hosts
    #[arg(long, value_name = "SELECTOR")]
    on: String,
    /// Run this file's content instead of a command; `-` reads standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    script: Option<PathBuf>,
    /// Program that runs the script, with its arguments, as in "/usr/bin/python3 -u"
    #[arg(long, default_value = "/bin/bash", value_name = "PROGRAM")]
    interpreter: String,
    /// User on the hosts [default: the agent's]
    #[arg(long)]
    user: Option<String>,
    /// Kill the script after this time
    #[arg(long, value_parser = parse_duration_ms, default_value = "10m", value_name = "TIME")]
    timeout: u64,
    /// Time between TERM and KILL
    #[arg(long, value_parser = parse_duration_ms, default_value = "5s", value_name = "TIME")]
    kill_grace: u64,
    /// Output kept per host
    #[arg(long, value_parser = parse_bytes, default_value = "5M", value_name = "SIZE")]
    output_max: u64,
    /// Give up on hosts that cannot be reached for this long
    #[arg(long, value_parser = parse_duration_ms, default_value = "30s", value_name = "TIME")]
    deliver_within: u64,
    /// A word to find the task again
    #[arg(long, default_value = "", hide_default_value = true)]
    note: String,
    /// Start it and return; `skein task show ID` follows it
    #[arg(long)]
    detach: bool,
    /// The command, after `--`; one word is given to the shell as it is, several are quoted. With
    /// --script these are the script's arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Starts the task and follows it to its end.
pub fn run(args: &RunArgs, context: &Context) -> Outcome {
    let request = request(args)?;
    let task: Task = context.client.post("/tasks", &request)?;
    if args.detach {
        if context.json {
            show::json(&task)?;
        } else {
            show::line(&task.task_id)?;
        }
        return Ok(EXIT_OK);
    }
    let detail = follow(context, &task.task_id)?;
    report(context, &detail)
}

fn request(args: &RunArgs) -> Result<TaskRequest, CliError> {
    let (script, arguments) = match &args.script {
        Some(path) => (read_script(path)?, args.command.clone()),
        None if args.command.is_empty() => {
            return Err(CliError::Usage("give a command after `--`, or --script FILE".into()));
        }
        None => (command_line(&args.command), Vec::new()),
    };
    let limit = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(TaskRequest {
        targets: args.on.clone(),
        script,
        interpreter: args.interpreter.split_whitespace().map(str::to_owned).collect(),
        args: arguments,
        user: args.user.clone(),
        timeout_ms: Some(limit(args.timeout)),
        kill_grace_ms: Some(limit(args.kill_grace)),
        output_bytes_max: Some(args.output_max),
        deliver_within_ms: Some(args.deliver_within),
        task_id: None,
        note: args.note.clone(),
    })
}

fn read_script(path: &PathBuf) -> Result<String, CliError> {
    let mut script = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(SCRIPT_BYTES_MAX + 1).read_to_string(&mut script)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(SCRIPT_BYTES_MAX + 1).read_to_string(&mut script))
    };
    read.map_err(CliError::io(format!("cannot read {}", path.display())))?;
    if script.len() as u64 > SCRIPT_BYTES_MAX {
        return Err(CliError::Usage(format!(
            "{} is over 128 KiB; push it as a file and run that",
            path.display()
        )));
    }
    Ok(script)
}

/// One word is a line of shell; several are a program and its arguments, kept apart by quotes.
fn command_line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./=:,+@%^".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Waits for the end of a task, with progress.
pub fn follow(context: &Context, id: &str) -> Result<TaskDetail, CliError> {
    let path = format!("/tasks/{id}");
    let mut progress: Option<Progress> = None;
    let started = Instant::now();
    loop {
        let page: TaskDetail = context.client.get_patiently(&path, &[("limit", "1".into())])?;
        let task = page.task;
        if task.ended_ms.is_some() || task.hosts_total == 0 {
            if let Some(progress) = progress {
                progress.clear();
            }
            return context.client.task(id);
        }
        // Most commands end before anybody wonders.
        if progress.is_none() && started.elapsed() > Duration::from_secs(1) {
            progress = Some(Progress::new("run", task.hosts_total, false, context.json));
            if !context.json {
                eprintln!("it goes on when you leave; `skein task cancel {id}` stops it");
            }
        }
        if let Some(progress) = &mut progress {
            let states: Vec<String> = task
                .hosts_by_state
                .iter()
                .map(|(state, count)| format!("{count} {state}"))
                .collect();
            progress.set(task.hosts_ended, task.hosts_total, &states.join(", "));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Hosts that ended alike and said the same.
struct Group {
    hosts: Vec<TaskHost>,
    output: Vec<u8>,
}

/// Prints what the hosts said, grouped, and returns the worst exit code.
pub fn report(context: &Context, detail: &TaskDetail) -> Outcome {
    let code = worst(detail);
    let groups = group(&context.client, detail)?;
    if context.json {
        show::json(&as_json(detail, &groups))?;
        return Ok(code);
    }
    if detail.hosts.is_empty() {
        eprintln!("no host matches \"{}\"", detail.task.targets);
        return Ok(code);
    }
    // One host that did well is printed bare, so that pipes get what it said and nothing else.
    if let [only] = groups.as_slice()
        && only.hosts.len() == 1
        && code == EXIT_OK
    {
        show::raw(&only.output)?;
        return Ok(code);
    }
    let name = host_names(detail);
    for group in &groups {
        let names: Vec<String> = group.hosts.iter().map(&name).collect();
        let host = &group.hosts[0];
        show::line(&format!(
            "== {}: {} ({})",
            show::plural(group.hosts.len() as u64, "host"),
            show::names(&names, NAMES_MAX),
            ending(host)
        ))?;
        show::raw(&group.output)?;
        if !group.output.is_empty() && !group.output.ends_with(b"\n") {
            show::line("")?;
        }
    }
    let task = &detail.task;
    eprintln!(
        "{} of {} succeeded in {}  task {}",
        task.hosts_succeeded,
        show::plural(task.hosts_total, "host"),
        quantity::duration(
            u64::try_from(task.ended_ms.unwrap_or(task.created_ms) - task.created_ms).unwrap_or(0)
        ),
        task.task_id
    );
    Ok(code)
}

fn ending(host: &TaskHost) -> String {
    let mut text = match (host.state, host.signal) {
        (TaskHostState::Succeeded, _) => "exit 0".to_owned(),
        (TaskHostState::Failed, 0) => format!("exit {}", host.exit_code),
        (TaskHostState::Failed, signal) => format!("killed by signal {signal}"),
        (state, _) => word(&state).replace('_', " "),
    };
    if host.output_truncated {
        text.push_str(", output truncated");
    }
    if !host.error.is_empty() {
        text.push_str(": ");
        text.push_str(&show::printable(host.error.clone()));
    }
    text
}

/// The exit code of the whole: the worst of the hosts, and 1 when there was none.
fn worst(detail: &TaskDetail) -> u8 {
    let of_host = |host: &TaskHost| match host.state {
        TaskHostState::Succeeded => EXIT_OK,
        TaskHostState::Failed if host.signal != 0 => 128u8.saturating_add(host.signal as u8),
        TaskHostState::Failed => u8::try_from(host.exit_code).unwrap_or(EXIT_PARTIAL).max(1),
        TaskHostState::TimedOut => EXIT_TIMED_OUT,
        _ => EXIT_NO_OUTCOME,
    };
    detail.hosts.iter().map(of_host).max().unwrap_or(EXIT_PARTIAL)
}

fn group(client: &Client, detail: &TaskDetail) -> Result<Vec<Group>, CliError> {
    let mut groups: BTreeMap<(String, Vec<u8>), Group> = BTreeMap::new();
    for host in &detail.hosts {
        let output = output_of(client, &detail.task.task_id, host)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &output).as_ref().to_vec();
        groups
            .entry((ending(host), digest))
            .or_insert_with(|| Group { hosts: Vec::new(), output })
            .hosts
            .push(host.clone());
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.hosts.len()));
    Ok(groups)
}

/// All output of one host, waiting a while for what a host in a final state still owes.
pub fn output_of(client: &Client, task_id: &str, host: &TaskHost) -> Result<Vec<u8>, CliError> {
    let mut output = Vec::new();
    if host.output_bytes == 0 && host.output_stored_bytes == 0 {
        return Ok(output);
    }
    let mut waiting = Instant::now();
    loop {
        let (data, last) = client.task_output(task_id, &host.agent_id, output.len() as u64)?;
        if last {
            output.extend(data);
            return Ok(output);
        }
        if data.is_empty() {
            if waiting.elapsed() > OUTPUT_WAIT_MAX || !host.state.is_final() {
                return Ok(output);
            }
            std::thread::sleep(POLL_INTERVAL);
        } else {
            output.extend(data);
            waiting = Instant::now();
        }
    }
}

fn as_json(detail: &TaskDetail, groups: &[Group]) -> serde_json::Value {
    let group = |group: &Group| {
        serde_json::json!({
            "hosts": group.hosts,
            "output": String::from_utf8_lossy(&group.output),
        })
    };
    serde_json::json!({
        "task": detail.task,
        "groups": groups.iter().map(group).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_shell_and_several_are_quoted() {
        let line = |words: &[&str]| {
            command_line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(line(&["ps aux | head"]), "ps aux | head");
        assert_eq!(line(&["uname", "-a"]), "uname -a");
        assert_eq!(line(&["echo", "it's", "a b", ""]), r"echo 'it'\''s' 'a b' ''");
        assert_eq!(line(&["echo", "$HOME"]), "echo '$HOME'");
    }
}
