//! The process that people and init systems see: it keeps one worker running and does nothing
//! else, so that there is nothing in it to fail. No runtime, no sockets, one thread.
//!
//! Scripts' runners are not its children and survive it. `skein-agent run` checks what a person
//! can get wrong and then executes the program anew as supervisor ([`become_supervisor`]), so that
//! no page of configuration, logging or command line stays in the memory of a process that waits.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use skein_wire::backoff::Backoff;

use crate::clock;
use crate::home::Home;
use crate::sys::memory;
use crate::sys::process::{self, SIGCHLD, SIGINT, SIGTERM};

/// Between a worker's end and the next worker.
const BACKOFF_MS: (u64, u64) = (200, 30_000);
/// A worker that lived this long was sound.
const SOUND_MS: u64 = 60_000;
/// A worker that was asked to end may take this long.
const END_TIME_MS: u64 = 15_000;
/// A worker that ends with this code needs a person: starting it again would not help.
pub const EXIT_CONFIG: i32 = 78;

/// Holds HOME for a process that is to be the supervisor.
pub const SUPERVISE_VARIABLE: &str = "SKEIN_AGENT_SUPERVISE";

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Another agent has this HOME.
    #[error("another agent runs with {0} (pid {1}); stop it first, or use another --home")]
    Running(PathBuf, String),
    /// The system.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// The worker found that it cannot work.
    #[error("the worker cannot start; its message is above")]
    Worker,
}

/// Executes this program anew, with the same arguments and pid; returns only if that fails.
pub fn become_supervisor(home: &Home) -> io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "skein-agent".into());
    Command::new(program).arg0(name).args(arguments).env(SUPERVISE_VARIABLE, home.root()).exec()
}

/// Runs workers until somebody asks for the end.
pub fn run(home: &Home) -> Result<(), SupervisorError> {
    let _pid_file = claim(&home.pid_file())?;
    let signals = [SIGCHLD, SIGTERM, SIGINT, libc::SIGHUP];
    let mut signals =
        process::signal_fd(&signals).map_err(|error| SupervisorError::Io("signals", error))?;
    let mut backoff = Backoff::new(BACKOFF_MS.0, BACKOFF_MS.1);
    loop {
        let began = clock::now_ms();
        let mut worker = start(home).map_err(|error| SupervisorError::Io("worker", error))?;
        memory::forget_start();
        let end = watch(&mut worker, &mut signals)
            .map_err(|error| SupervisorError::Io("waiting for the worker", error))?;
        match end {
            WorkerEnd::Asked => break,
            WorkerEnd::Exited(Some(EXIT_CONFIG)) => {
                let _ = std::fs::remove_file(home.pid_file());
                return Err(SupervisorError::Worker);
            }
            WorkerEnd::Exited(code) => {
                if clock::now_ms() - began >= SOUND_MS {
                    backoff.reset();
                }
                let pause = backoff.next_delay(clock::jitter());
                let how = code.map_or("by a signal".to_owned(), |code| format!("with code {code}"));
                // Plain text: logging would be most of this process.
                eprintln!("supervisor: the worker ended {how}; another starts in {pause} ms");
                if asked_within(&mut signals, pause) {
                    break;
                }
            }
        }
    }
    let _ = std::fs::remove_file(home.pid_file());
    Ok(())
}

enum WorkerEnd {
    /// We were asked to end, and so it did.
    Asked,
    /// By itself; none: by a signal.
    Exited(Option<i32>),
}

/// The pid file, locked for as long as we live, so that a HOME has one agent.
fn claim(path: &Path) -> Result<File, SupervisorError> {
    let open = || {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o644).open(path)
    };
    let mut file = open().map_err(|error| SupervisorError::Io("pid file", error))?;
    let locked = process::try_lock(&file).map_err(|e| SupervisorError::Io("pid file", e))?;
    if !locked {
        let pid = std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let home = path.parent().and_then(Path::parent).unwrap_or(path);
        return Err(SupervisorError::Running(home.to_owned(), pid));
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|error| SupervisorError::Io("pid file", error))?;
    Ok(file)
}

/// Starts a worker from the binary as it lies on the disk now, which an upgrade may have replaced.
fn start(home: &Home) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .env_remove(SUPERVISE_VARIABLE)
        .arg("worker")
        .arg("--home")
        .arg(home.root())
        .spawn()
}

/// Waits until the worker has ended.
fn watch(worker: &mut Child, signals: &mut File) -> io::Result<WorkerEnd> {
    let mut kill_at: Option<u64> = None;
    loop {
        if let Some(status) = worker.try_wait()? {
            return Ok(match kill_at {
                Some(_) => WorkerEnd::Asked,
                None => WorkerEnd::Exited(status.code()),
            });
        }
        let now = clock::now_ms();
        if kill_at.is_some_and(|at| at <= now) {
            worker.kill()?;
            kill_at = Some(u64::MAX);
        }
        let timeout = kill_at.filter(|at| *at != u64::MAX).map(|at| at - now);
        process::wait_readable(&[signals.as_fd()], timeout)?;
        let asked = process::read_signals(signals).iter().any(|signal| *signal != SIGCHLD);
        if asked && kill_at.is_none() {
            // Already gone is as good.
            let _ = process::kill(worker.id(), SIGTERM);
            kill_at = Some(now + END_TIME_MS);
        }
    }
}

/// Waits; answers whether somebody asked for the end meanwhile.
fn asked_within(signals: &mut File, pause_ms: u64) -> bool {
    let until = clock::now_ms() + pause_ms;
    loop {
        let rest = until.saturating_sub(clock::now_ms());
        if rest == 0 {
            return false;
        }
        if process::wait_readable(&[signals.as_fd()], Some(rest)).is_err() {
            std::thread::sleep(Duration::from_millis(rest));
        }
        if process::read_signals(signals).iter().any(|signal| *signal != SIGCHLD) {
            return true;
        }
    }
}

/// Whether a supervisor holds the pid file.
pub fn is_running(pid_file: &Path) -> bool {
    let open = File::options().read(true).open(pid_file);
    open.is_ok_and(|file| matches!(process::try_lock(&file), Ok(false)))
}
