//! Runners: started, watched again after a restart, swept up when they died.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use skein_observe::names;
use skein_wire::ids::TaskId;
use skein_wire::signal::v1::{ReportAck, RunTask, TaskState};

use super::{Letter, SETTLED_MS, Service, Settled};
use crate::clock;
use crate::tasks::journal::{Fact, Final};
use crate::tasks::records::{self, Exit, Started};
use crate::tasks::recovery::{Evidence, Recovery, decide};
use crate::tasks::runner::cgroup::Cgroup;
use crate::tasks::runner::{CANCEL, mark, tree};
use crate::tasks::task::{self, Phase, Task};

/// Attempts to start a runner that does not come up.
const ATTEMPTS_MAX: u32 = 20;
/// Between two of them.
const ATTEMPT_MS: u64 = 100;
/// Time for killing what a dead runner left.
const SWEEP: Duration = Duration::from_secs(5);

impl Service {
    pub(super) fn running(&self) -> usize {
        let active = |task: &&Task| !matches!(task.phase, Phase::Waiting(_) | Phase::Final { .. });
        self.tasks.values().filter(active).count()
    }

    pub(super) fn start_waiting(&mut self) {
        let wall = clock::wall_ms();
        let late = |task: &Task| task.start_by_ms < wall;
        let overdue: Vec<TaskId> =
            self.queue.iter().filter(|id| self.tasks.get(id).is_some_and(late)).copied().collect();
        for id in overdue {
            self.queue.retain(|queued| *queued != id);
            self.over(&id, TaskState::Refused, "its latest start passed while it was queued");
        }
        let mut free =
            (self.settings.limits.concurrent_max as usize).saturating_sub(self.running());
        while free > 0
            && let Some(id) = self.queue.pop_front()
        {
            self.launch(&id);
            free -= 1;
        }
    }

    pub(super) fn launch(&mut self, id: &TaskId) {
        let dir = self.dir(id);
        let limits = &self.settings.limits;
        let Some(task) = self.tasks.get_mut(id) else { return };
        let run_task = match &task.phase {
            Phase::Waiting(run_task) | Phase::Unsure { run_task, .. } => run_task.clone(),
            _ => return,
        };
        task.attempts += 1;
        let prepared = task::prepare(&dir, &run_task, limits.output_bytes_max, limits.cgroup);
        let started = prepared.and_then(|()| spawn_runner(&self.settings.runner, &dir));
        match started {
            Ok((stream, child)) => {
                self.children.push(child);
                // The body is kept until `started` shows that it is not needed again.
                task.phase = Phase::Running(stream);
            }
            Err(error) => {
                let text = format!("the task could not be prepared: {error}");
                self.over(id, TaskState::Refused, &text);
            }
        }
    }

    /// Decides about tasks whose runner is gone, or was left by an earlier worker.
    pub(super) fn decide_unsure(&mut self) {
        let now = clock::now_ms();
        let due = |task: &&Task| matches!(task.phase, Phase::Unsure { at_ms, .. } if at_ms <= now);
        let ids: Vec<TaskId> = self.tasks.values().filter(due).map(|task| task.id).collect();
        for id in ids {
            self.decide(&id);
        }
    }

    pub(super) fn decide(&mut self, id: &TaskId) {
        let dir = self.dir(id);
        // In this order: whoever begins or ends between two looks is seen by the later one as it is.
        let has_started = dir.join("started").exists();
        let started = records::read::<Started>(&dir, "started").unwrap_or_default();
        // A runner holds its socket before it writes `started`, so a connection is life itself.
        let stream = connect(&dir);
        let alive = started.as_ref().is_some_and(|started| started.runner().is_alive());
        // Last: a runner that is dead by now has written it before, if it ever did.
        let exit = records::read::<Exit>(&dir, "exit");
        let Some(task) = self.tasks.get_mut(id) else { return };
        let evidence = Evidence {
            exit: matches!(exit, Ok(Some(_))),
            started: started.is_some() || has_started,
            runner_alive: alive && stream.is_ok(),
            late: task.start_by_ms < clock::wall_ms(),
            cancelled: task.cancelled,
        };
        match (decide(evidence), stream) {
            (Recovery::Report, _) => {
                if let Ok(Some(exit)) = exit {
                    self.ended(id, &exit);
                }
            }
            (Recovery::Attach, Ok(mut stream)) => {
                if let Some(started) = &started {
                    task.set_started(started);
                }
                if task.cancelled {
                    let _ = stream.write(&[CANCEL]);
                }
                task.phase = Phase::Running(stream);
                // It may have written its exit between our look and our connection.
                self.refresh(id, false);
            }
            (Recovery::Abort | Recovery::Attach, _) => self.sweep(id, started.as_ref()),
            // Another runner is coming up: it has the socket and will write `started`.
            (_, Ok(mut stream)) => {
                if task.cancelled {
                    let _ = stream.write(&[CANCEL]);
                }
                task.phase = Phase::Running(stream);
            }
            (Recovery::Run, _) => self.run_again(id),
            (Recovery::Refuse, _) => {
                self.over(
                    id,
                    TaskState::Refused,
                    "its latest start passed while the agent was down",
                );
            }
            (Recovery::Cancel, _) => {
                self.over(id, TaskState::Cancelled, "cancelled before it started");
            }
        }
    }

    /// No runner came up, or this worker is new: at most once is kept by the runner's lock.
    pub(super) fn run_again(&mut self, id: &TaskId) {
        let body = self.body(id);
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.attempts >= ATTEMPTS_MAX {
            return self.over(id, TaskState::Refused, "its runner did not come up");
        }
        let Some(body) = body else {
            return self.over(id, TaskState::Aborted, "its order was lost with the agent");
        };
        if task.attempts > 0 {
            std::thread::sleep(Duration::from_millis(ATTEMPT_MS));
        }
        task.phase = Phase::Unsure { at_ms: clock::now_ms(), run_task: body };
        self.launch(id);
    }

    /// The order of a task, from memory or rebuilt from its folder.
    pub(super) fn body(&self, id: &TaskId) -> Option<Bytes> {
        match &self.tasks.get(id)?.phase {
            Phase::Waiting(body) | Phase::Unsure { run_task: body, .. } if !body.is_empty() => {
                Some(body.clone())
            }
            _ => rebuild(&self.dir(id)),
        }
    }

    /// Kills what a dead runner left, off this thread: looking through every process takes time.
    pub(super) fn sweep(&mut self, id: &TaskId, started: Option<&Started>) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.phase = Phase::Sweeping;
        let same_boot = |started: &&Started| started.boot_id == crate::sys::procfs::boot_id();
        let Some(started) = started.filter(same_boot) else { return self.swept(id, 0) };
        let cgroup = Cgroup::existing(&started.cgroup);
        let (mailbox, id, mark) = (self.mailbox.clone(), *id, mark(&started.runner()));
        let sweep = move || {
            let alive = tree::kill_leftovers(cgroup, &mark, SWEEP);
            let _ = mailbox.send(Letter::Swept(id, alive));
        };
        if std::thread::Builder::new().name("sweep".into()).spawn(sweep).is_err() {
            self.swept(&id, 0);
        }
    }

    pub(super) fn swept(&mut self, id: &TaskId, alive: usize) {
        let text = match alive {
            0 => "its runner was killed, or the host was restarted, in mid-script".to_owned(),
            count => format!("its runner was killed; {count} of its processes could not be"),
        };
        self.over(id, TaskState::Aborted, &text);
    }

    // ------------------------------------------------------------------ the end

    pub(super) fn ended(&mut self, id: &TaskId, exit: &Exit) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.set_exit(exit);
            let seconds = (exit.ended_ms - exit.started_ms).max(0) as f64 / 1000.0;
            metrics::histogram!(names::AGENT_TASK_SECONDS).record(seconds);
            self.finalize(id);
        }
    }

    pub(super) fn over(&mut self, id: &TaskId, state: TaskState, error: &str) {
        let dir = self.dir(id);
        if let Some(task) = self.tasks.get_mut(id) {
            task.set_over(state, error, &dir, clock::wall_ms());
            self.finalize(id);
        }
    }

    pub(super) fn finalize(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let state = task.update.state().as_str_name().trim_start_matches("TASK_STATE_");
        metrics::counter!(names::AGENT_TASKS, "state" => state.to_ascii_lowercase()).increment(1);
        task.phase = Phase::Final { since_ms: clock::now_ms() };
        self.journal.append(Fact::Final(Final { update: Some(task.update.clone()) }));
    }

    pub(super) fn acknowledged(&mut self, ack: &ReportAck) {
        let Ok(id) = TaskId::from_slice(&ack.task_id) else { return };
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if !ack.final_state {
            task.acked = ack.output_offset;
            task.in_flight = None;
            return;
        }
        if !task.is_final() {
            return;
        }
        let until_ms = task.start_by_ms.saturating_add(SETTLED_MS);
        let digest = task.digest.to_vec();
        self.tasks.remove(&id);
        self.settle(id, Settled { until_ms, digest, tombstone: false });
        let _ = std::fs::remove_dir_all(self.dir(&id));
    }
}

/// Starts a runner whose standard input is a socket to us.
fn spawn_runner(binary: &Path, dir: &Path) -> io::Result<(UnixStream, Child)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(binary)
        .arg0("skein-agent")
        .arg("runner")
        .arg("--dir")
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((ours, child))
}

/// Connects to the runner of a folder. Its socket is reached through the open folder, because a
/// socket's address is limited to 108 bytes.
fn connect(dir: &Path) -> io::Result<UnixStream> {
    let folder = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/ctl.sock", folder.as_raw_fd());
    let stream = UnixStream::connect(path)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The order as its folder has it.
fn rebuild(dir: &Path) -> Option<Bytes> {
    let spec = records::read::<records::Spec>(dir, "spec").ok()??;
    let run = RunTask {
        task_id: spec.task_id.into(),
        script: std::fs::read(dir.join("script")).ok()?.into(),
        interpreter: spec.interpreter,
        args: spec.args,
        user: spec.user,
        timeout_ms: u32::try_from(spec.timeout_ms).unwrap_or(u32::MAX),
        kill_grace_ms: u32::try_from(spec.kill_grace_ms).unwrap_or(u32::MAX),
        output_bytes_max: spec.output_bytes_max,
    };
    Some(run.encode_to_vec().into())
}
