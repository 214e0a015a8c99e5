//! One task as the worker knows it: where it stands, what was reported, how far its output is.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use skein_wire::ids::TaskId;
use skein_wire::limits::{TASK_OUTPUT_CHUNK_BYTES_MAX, TASK_SCRIPT_BYTES_MAX};
use skein_wire::signal::v1::{RunTask, TaskOutput, TaskState, TaskUpdate};

use super::records::{self, Exit, Outcome, Spec, Started};
use crate::home::private_dir;

/// Words of an interpreter and of arguments.
const WORDS_MAX: usize = 256;
/// Output kept when the task does not say: 5 MiB, what bk-job shows.
const OUTPUT_BYTES_DEFAULT: u64 = 5 * 1024 * 1024;
/// An output chunk or a final state that is not acknowledged is sent again after this.
pub(super) const RESEND_MS: u64 = 30_000;
/// A final state waits this long for its output to be acknowledged before it.
pub(super) const FINAL_WAIT_MS: u64 = 10_000;

/// Where a task stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// Waits for its turn; the encoded `RunTask`.
    Waiting(Bytes),
    /// A runner has it; the stream ends when the runner does.
    Running(UnixStream),
    /// Its runner is gone or was never reached: decided again at this time.
    Unsure { at_ms: u64, run_task: Bytes },
    /// Its runner died; what it left is being killed.
    Sweeping,
    /// `update` is final.
    Final { since_ms: u64 },
}

/// One task.
#[derive(Debug)]
pub(super) struct Task {
    pub id: TaskId,
    pub digest: [u8; 32],
    pub start_by_ms: i64,
    pub phase: Phase,
    pub update: TaskUpdate,
    pub cancelled: bool,
    /// Attempts to start a runner.
    pub attempts: u32,
    /// When the present state was sent in this session.
    pub sent: Option<(i32, u64)>,
    /// Output that the server has.
    pub acked: u64,
    /// When the chunk that is on its way was sent.
    pub in_flight: Option<u64>,
}

impl Task {
    pub fn new(id: TaskId, digest: [u8; 32], start_by_ms: i64, run_task: Bytes) -> Task {
        let update = TaskUpdate {
            task_id: id.to_bytes(),
            state: TaskState::Accepted.into(),
            ..TaskUpdate::default()
        };
        Task {
            id,
            digest,
            start_by_ms,
            phase: Phase::Waiting(run_task),
            update,
            cancelled: false,
            attempts: 0,
            sent: None,
            acked: 0,
            in_flight: None,
        }
    }

    pub fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Final { .. })
    }

    /// What a new session must hear again.
    pub fn forget_sent(&mut self) {
        self.sent = None;
        self.in_flight = None;
    }

    /// The state that must be sent now, if any. A final state follows its output, unless the server
    /// does not take that.
    pub fn due_update(&self, now_ms: u64) -> bool {
        let patient = match self.phase {
            Phase::Final { since_ms } => {
                self.acked < self.update.output_bytes && now_ms < since_ms + FINAL_WAIT_MS
            }
            _ => false,
        };
        match self.sent {
            None => !patient,
            Some((state, _)) if state != self.update.state => !patient,
            Some((_, at)) => self.is_final() && now_ms >= at + RESEND_MS,
        }
    }

    /// The next chunk of output, if the server shall get one now.
    pub fn due_output(&self, dir: &Path, now_ms: u64) -> io::Result<Option<TaskOutput>> {
        let waiting = self.in_flight.is_some_and(|at| now_ms < at + RESEND_MS);
        if waiting || matches!(self.phase, Phase::Waiting(_)) {
            return Ok(None);
        }
        if self.is_final() && self.acked >= self.update.output_bytes {
            return Ok(None);
        }
        let file = match File::open(dir.join("output")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let end = match self.phase {
            Phase::Final { .. } => self.update.output_bytes,
            _ => file.metadata()?.len(),
        };
        let length = end.saturating_sub(self.acked).min(TASK_OUTPUT_CHUNK_BYTES_MAX as u64);
        let mut data = vec![0; length as usize];
        let read = file.read_at(&mut data, self.acked)?;
        data.truncate(read);
        let chunk =
            TaskOutput { task_id: self.id.to_bytes(), offset: self.acked, data: data.into() };
        Ok((read > 0).then_some(chunk))
    }

    /// Takes over what the runner wrote before the script began.
    pub fn set_started(&mut self, started: &Started) {
        self.update.state = TaskState::Running.into();
        self.update.pid = started.pid;
        self.update.started_ms = started.started_ms;
    }

    /// Takes over how the runner says it ended.
    pub fn set_exit(&mut self, exit: &Exit) {
        let update = &mut self.update;
        let state = match Outcome::try_from(exit.outcome) {
            Ok(Outcome::Ended) if exit.exit_code == 0 && exit.signal == 0 => TaskState::Succeeded,
            Ok(Outcome::Ended) => TaskState::Failed,
            Ok(Outcome::TimedOut) => TaskState::TimedOut,
            Ok(Outcome::Cancelled) => TaskState::Cancelled,
            Ok(Outcome::NotStarted) => TaskState::Refused,
            Err(_) => TaskState::Aborted,
        };
        update.state = state.into();
        update.exit_code = exit.exit_code;
        update.signal = exit.signal;
        update.started_ms = exit.started_ms;
        update.ended_ms = exit.ended_ms;
        update.output_bytes = exit.output_bytes;
        update.output_truncated = exit.dropped_bytes > 0;
        update.error.clone_from(&exit.error);
    }

    /// Ends it with a state that no runner wrote; what output there is stays reported.
    pub fn set_over(&mut self, state: TaskState, error: &str, dir: &Path, wall_ms: i64) {
        let output = std::fs::metadata(dir.join("output")).map_or(0, |meta| meta.len());
        self.update.state = state.into();
        self.update.error = error.to_owned();
        self.update.ended_ms = wall_ms;
        self.update.output_bytes = output;
    }
}

/// Refuses orders that no runner could carry out.
pub(super) fn check(run: &RunTask) -> Result<TaskId, String> {
    let id = TaskId::from_slice(&run.task_id).map_err(|error| error.to_string())?;
    let words = || run.interpreter.iter().chain(&run.args).chain([&run.user]);
    if run.interpreter.is_empty() || run.interpreter[0].is_empty() {
        return Err("task names no interpreter".into());
    }
    if run.script.len() > TASK_SCRIPT_BYTES_MAX || words().count() > WORDS_MAX {
        return Err("script or arguments are too long".into());
    }
    if words().any(|word| word.contains('\0')) {
        return Err("arguments contain a NUL".into());
    }
    Ok(id)
}

/// Writes the task's folder: what the runner reads.
pub(super) fn prepare(
    dir: &Path,
    run_task: &[u8],
    output_bytes_max: u64,
    cgroup: bool,
) -> io::Result<()> {
    use std::io::Write;
    let run = RunTask::decode(run_task).map_err(io::Error::other)?;
    private_dir(dir)?;
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o700);
    options.open(dir.join("script"))?.write_all(&run.script)?;
    let wanted =
        if run.output_bytes_max == 0 { OUTPUT_BYTES_DEFAULT } else { run.output_bytes_max };
    let spec = Spec {
        task_id: run.task_id.to_vec(),
        interpreter: run.interpreter,
        args: run.args,
        user: run.user,
        timeout_ms: run.timeout_ms.into(),
        kill_grace_ms: run.kill_grace_ms.into(),
        output_bytes_max: wanted.min(output_bytes_max),
        cgroup,
    };
    records::write(dir, "spec", &spec)
}
