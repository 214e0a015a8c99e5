//! What of a task is stored, and how a request becomes a task. It lies on [`SHELF`].

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use skein_wire::ids::{AgentId, TaskId, hex_encode};
use skein_wire::limits::TASK_SCRIPT_BYTES_MAX;
use skein_wire::merkle::sha256;
use skein_wire::signal::v1::RunTask;

use super::Entry;
use super::automaton::{Final, HostRun};
use crate::api::types::TaskRequest;
use crate::jobs::shelf::{Shelf, Stored};
use crate::random;
use crate::registry::SelectorError;
use crate::store::ext::encode;
use crate::store::{Store, StoreError};

/// Where tasks lie in the store.
pub(super) const SHELF: Shelf = Shelf::new("tasks");

const TIMEOUT_MS: u32 = 600_000;
const TIMEOUT_MS_MAX: u32 = 24 * 3_600_000;
const KILL_GRACE_MS: u32 = 5_000;
const KILL_GRACE_MS_MAX: u32 = 600_000;
const OUTPUT_BYTES: u64 = 5 * 1024 * 1024;
const OUTPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;
const DELIVER_WITHIN_MS: u64 = 30_000;
const DELIVER_WITHIN_MS_MAX: u64 = 7 * 24 * 3_600_000;
const ARGS_MAX: usize = 256;
const ARGS_BYTES_MAX: usize = 32 * 1024;
const USER_BYTES_MAX: usize = 128;
const NOTE_BYTES_MAX: usize = 1_024;
/// After the last moment at which a script can have ended, agents have this long to report.
const REPORT_WITHIN_MS: i64 = 600_000;

/// Why a task is not accepted or not found.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The selector.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// Nobody is meant.
    #[error("no agent matches {0:?}; `skein hosts` lists them")]
    NoTargets(String),
    /// A field of the request.
    #[error("{0}")]
    Invalid(String),
    /// The same id with other content.
    #[error("task id {0} was used for another task; choose a new one")]
    IdReused(TaskId),
    /// No such task.
    #[error("there is no task {0}; it may have left the history")]
    Unknown(TaskId),
    /// Not part of the task.
    #[error("agent {0} is not a target of this task")]
    NotATarget(AgentId),
    /// Too many at one time.
    #[error("too many tasks run at this time; wait for some to end or cancel them")]
    Busy,
    /// On the way down.
    #[error("the control process is stopping; try again")]
    Stopping,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk.
    #[error("output: {0}")]
    Disk(#[from] std::io::Error),
}

/// A task, stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskRecord {
    /// 32 hex digits.
    pub task_id: String,
    /// The selector, as it was asked.
    pub targets: String,
    /// The script.
    pub script: String,
    /// Its interpreter.
    pub interpreter: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// User on the host.
    pub user: String,
    /// From the start of the script.
    pub timeout_ms: u32,
    /// Between TERM and KILL.
    pub kill_grace_ms: u32,
    /// Kept per host.
    pub output_bytes_max: u64,
    /// A host that is not reached until then ends as undeliverable.
    pub deliver_by_ms: i64,
    /// A word for people.
    pub note: String,
    /// When it was created.
    pub created_ms: i64,
    /// Of the request, to know a repeat.
    pub request_sha256: String,
    /// When a cancel was asked.
    #[serde(default)]
    pub cancel_ms: Option<i64>,
    /// When the last host ended.
    #[serde(default)]
    pub ended_ms: Option<i64>,
}

impl TaskRecord {
    /// Checks a request and fills its defaults.
    pub fn from_request(mut request: TaskRequest, now_ms: i64) -> Result<Self, TaskError> {
        let invalid = |why: String| Err(TaskError::Invalid(why));
        let id = match request.task_id.take() {
            Some(text) => match text.parse::<TaskId>() {
                Ok(id) => id,
                Err(error) => return invalid(error.to_string()),
            },
            None => TaskId(random::bytes()?),
        };
        let digest = sha256(&encode(&request)?);
        if request.script.trim().is_empty() {
            return invalid("the script is empty; give a command or a script".into());
        }
        if request.script.len() > TASK_SCRIPT_BYTES_MAX {
            return invalid(format!(
                "the script has {} bytes; at most {TASK_SCRIPT_BYTES_MAX} are sent with a task: \
                 push it as a file and run that",
                request.script.len()
            ));
        }
        if request.interpreter.is_empty() {
            request.interpreter = vec!["/bin/bash".into()];
        }
        let words = request.interpreter.iter().chain(&request.args);
        let bytes: usize = words.clone().map(String::len).sum();
        if words.clone().count() > ARGS_MAX || bytes > ARGS_BYTES_MAX {
            return invalid(format!(
                "more than {ARGS_MAX} arguments or {ARGS_BYTES_MAX} bytes of them; use a file"
            ));
        }
        if words.clone().any(|word| word.contains('\0')) || request.script.contains('\0') {
            return invalid("script and arguments cannot hold a NUL byte".into());
        }
        if !request.interpreter[0].starts_with('/') {
            return invalid(format!(
                "interpreter {:?} is not an absolute path",
                request.interpreter[0]
            ));
        }
        if request.note.len() > NOTE_BYTES_MAX {
            return invalid(format!("the note is longer than {NOTE_BYTES_MAX} bytes"));
        }
        let user = request.user.unwrap_or_default();
        if user.len() > USER_BYTES_MAX || user.contains(|c: char| c.is_control() || c == '/') {
            return invalid(format!("user {:?} is not a user's name", cut(&user)));
        }
        let timeout_ms = request.timeout_ms.unwrap_or(TIMEOUT_MS);
        if !(1..=TIMEOUT_MS_MAX).contains(&timeout_ms) {
            return invalid(format!("timeout_ms must be 1 to {TIMEOUT_MS_MAX}"));
        }
        let kill_grace_ms = request.kill_grace_ms.unwrap_or(KILL_GRACE_MS);
        if kill_grace_ms > KILL_GRACE_MS_MAX {
            return invalid(format!("kill_grace_ms must be at most {KILL_GRACE_MS_MAX}"));
        }
        let output_bytes_max = request.output_bytes_max.unwrap_or(OUTPUT_BYTES);
        if output_bytes_max > OUTPUT_BYTES_MAX {
            return invalid(format!("output_bytes_max must be at most {OUTPUT_BYTES_MAX}"));
        }
        let deliver_within_ms = request.deliver_within_ms.unwrap_or(DELIVER_WITHIN_MS);
        if deliver_within_ms > DELIVER_WITHIN_MS_MAX {
            return invalid(format!("deliver_within_ms must be at most {DELIVER_WITHIN_MS_MAX}"));
        }
        Ok(Self {
            task_id: id.to_string(),
            targets: request.targets,
            script: request.script,
            interpreter: request.interpreter,
            args: request.args,
            user,
            timeout_ms,
            kill_grace_ms,
            output_bytes_max,
            deliver_by_ms: now_ms + deliver_within_ms as i64,
            note: request.note,
            created_ms: now_ms,
            request_sha256: hex_encode(&digest),
            cancel_ms: None,
            ended_ms: None,
        })
    }

    /// The id.
    pub fn id(&self) -> Result<TaskId, TaskError> {
        self.task_id.parse().map_err(|error| TaskError::Invalid(format!("{error}")))
    }

    /// The order to the agents. Always the same bytes, by which agents know a repeat.
    pub fn order(&self, id: &TaskId) -> RunTask {
        RunTask {
            task_id: id.to_bytes(),
            script: self.script.clone().into(),
            interpreter: self.interpreter.clone(),
            args: self.args.clone(),
            user: self.user.clone(),
            timeout_ms: self.timeout_ms,
            kill_grace_ms: self.kill_grace_ms,
            output_bytes_max: self.output_bytes_max,
        }
    }

    /// When a host that took the order at `since_ms` must have reported its end.
    pub fn report_by_ms(&self, since_ms: i64) -> i64 {
        since_ms + i64::from(self.timeout_ms) + i64::from(self.kill_grace_ms) + REPORT_WITHIN_MS
    }
}

/// The beginning of a text from outside, for an error.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(USER_BYTES_MAX)]
}

/// Reads all tasks.
pub(super) async fn load(store: &dyn Store) -> Result<HashMap<TaskId, Entry>, StoreError> {
    let mut entries = HashMap::new();
    for Stored { record, hosts, mut ends } in SHELF.load::<TaskRecord, Final>(store).await? {
        let Ok(id) = record.id() else { continue };
        let host = |(agent, name)| {
            let end = ends.remove(&agent);
            let mut host = HostRun::new(agent, name);
            end.into_iter().for_each(|end| host.end(end));
            host
        };
        let hosts = hosts.into_iter().map(host).collect();
        entries.insert(id, Entry::new(record, hosts));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked_with_the_remedy() {
        let good = TaskRequest { targets: "all".into(), script: "id".into(), ..Default::default() };
        let record = TaskRecord::from_request(good.clone(), 1_000).unwrap();
        assert_eq!(record.interpreter, ["/bin/bash"]);
        assert_eq!(record.deliver_by_ms, 31_000);
        type Change = fn(&mut TaskRequest);
        let wrong: [(Change, &str); 10] = [
            (|r| r.script = " ".into(), "empty"),
            (|r| r.script = "x".repeat(200_000), "push it"),
            (|r| r.script = "a\0b".into(), "NUL"),
            (|r| r.interpreter = vec!["bash".into()], "absolute"),
            (|r| r.timeout_ms = Some(0), "timeout_ms"),
            (|r| r.output_bytes_max = Some(u64::MAX), "output_bytes_max"),
            (|r| r.task_id = Some("x".into()), "32 hexadecimal"),
            (|r| r.user = Some("u".repeat(1_000_000)), "user's name"),
            (|r| r.user = Some("../root".into()), "user's name"),
            (|r| r.args = vec!["x".into(); 300], "arguments"),
        ];
        for (change, hint) in wrong {
            let mut request = good.clone();
            change(&mut request);
            let error = TaskRecord::from_request(request, 0).unwrap_err().to_string();
            assert!(error.contains(hint), "{hint}: {error}");
        }
    }
}
