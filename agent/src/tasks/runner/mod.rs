//! The runner: a small process of its own session that runs one script and outlives the worker.
//!
//! It writes `started` before the script is executed and `exit` after it ended, enforces the
//! timeout by itself, and keeps the output. The worker only watches, over a socket that carries
//! single bytes: the truth is in the files. One thread, no runtime.
//!
//! ```text
//!   Running ──script ended──────────────────────────────► exit record ──► drain ──► gone
//!      └─ timeout or cancel ─► TERM to all ─grace─► KILL to all ──┘
//! ```
//! A script that ends leaves its background processes alone (people start services that way);
//! timeout and cancel leave none. While background processes hold the output pipe, the runner stays
//! to read it, so that they never get SIGPIPE.

pub mod cgroup;
mod output;
pub mod tree;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::cgroup::Cgroup;
use self::output::Output;
use self::tree::Tree;
use super::records::{self, Exit, Outcome, Spec, Started};
use crate::clock;
use crate::sys::process::{self, BecomeUser, Ended, HeldChild, Program, SCRIPT_FD};
use crate::sys::procfs::ProcessId;
use crate::sys::user::{self, User};

/// The worker's order to end the script.
pub const CANCEL: u8 = b'c';
/// Something in the files changed.
pub const CHANGED: u8 = b'o';
/// Tells a script which task it is.
pub const TASK_VARIABLE: &str = "SKEIN_TASK_ID";
/// Marks all processes of one runner, see [`mark`]. The task alone would not do: several agents of
/// one host may run the same task.
pub const RUNNER_VARIABLE: &str = "SKEIN_RUNNER";
/// Another runner has this task.
pub const EXIT_TAKEN: i32 = 75;

/// A script without a timeout gets this one.
const TIMEOUT_MS_DEFAULT: u64 = 24 * 3600 * 1000;
/// And none gets more than this.
const TIMEOUT_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
/// Between TERM and KILL, when the task does not say.
const GRACE_MS_DEFAULT: u64 = 5_000;
/// More patience than this is none.
const GRACE_MS_MAX: u64 = 600_000;
/// How long KILL is repeated before survivors are reported.
const KILL_TIME: Duration = Duration::from_secs(10);
/// The worker hears of new output at most this often.
const NOTICE_MS: u64 = 100;
/// Reads of the pipe between two looks at the clock: 1 MiB.
const PUMP_ROUNDS: usize = 16;
/// Workers connected at the same time: one, and one that is dying.
const WORKERS_MAX: usize = 4;
/// Seconds for which writing the outcome is tried again.
const EXIT_ATTEMPTS: u32 = 60;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the task whose folder is `dir` and answers with this process's exit code. `worker`, if
/// given, is the socket to the worker that started us.
pub fn run(dir: &Path, worker: Option<UnixStream>) -> io::Result<i32> {
    // The socket's address is limited to 108 bytes, folders are not.
    std::env::set_current_dir(dir)?;
    let dir = Path::new(".");
    let lock = File::options().create(true).append(true).mode(0o600).open("lock")?;
    let taken = !process::try_lock(&lock)?;
    if taken || Path::new("started").exists() || Path::new("exit").exists() {
        return Ok(EXIT_TAKEN);
    }
    process::set_name("skein-runner");
    process::set_umask(0o022);
    process::become_subreaper()?;
    let _ = std::fs::remove_file("ctl.sock");
    let listener = UnixListener::bind("ctl.sock")?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions("ctl.sock", std::fs::Permissions::from_mode(0o600))?;
    let signals =
        process::signal_fd(&[process::SIGCHLD, process::SIGTERM, process::SIGINT, libc::SIGHUP])?;

    let spec = records::read::<Spec>(dir, "spec")?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the task has no spec"))?;
    let mut workers = Workers { listener: Some(listener), streams: Vec::new() };
    workers.streams.extend(worker);
    workers.streams.iter().try_for_each(|stream| stream.set_nonblocking(true))?;
    match Script::start(dir, &spec) {
        Ok(script) => script.supervise(&spec, workers, signals),
        Err(error) => {
            let exit = Exit {
                outcome: Outcome::NotStarted.into(),
                ended_ms: clock::wall_ms(),
                error: error.to_string(),
                ..Exit::default()
            };
            records::write(dir, "exit", &exit)?;
            workers.notify();
            Ok(0)
        }
    }
}

/// What the environment of every process below `runner` contains.
pub fn mark(runner: &ProcessId) -> String {
    format!("{RUNNER_VARIABLE}={}.{}", runner.pid, runner.start_ticks)
}

struct Script {
    pid: u32,
    started_ms: i64,
    tree: Tree,
    output: Output,
    ended: Option<Ended>,
}

/// Why the tree is being killed.
#[derive(Clone, Copy)]
struct Ending {
    outcome: Outcome,
    kill_at_ms: u64,
}

impl Script {
    /// Forks the script, writes `started`, lets it go.
    fn start(dir: &Path, spec: &Spec) -> io::Result<Script> {
        let id = skein_wire::ids::hex_encode(&spec.task_id);
        let named =
            |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        let mut options = File::options();
        options.create(true).truncate(true).read(true).write(true).mode(0o600);
        let file = options.open("output").map_err(|error| named("output", error))?;
        let (read, write) = process::pipe()?;
        let read = File::from(read);
        process::set_nonblocking(&read)?;
        let cgroup = if spec.cgroup {
            Cgroup::create(&format!("skein-task-{id}-{}", std::process::id()))
        } else {
            None
        };
        let procs = cgroup.as_ref().and_then(|group| group.procs_file().ok());
        let runner = me()?;
        let tree = Tree::new(cgroup);
        let program = program(spec, &id, &runner, write, procs).inspect_err(|_| tree.remove())?;
        let held = process::spawn_held(&program).map_err(|error| named("fork", error))?;
        // The write end stays with the child alone.
        drop(program);
        let pid = held.pid;
        let started_ms = clock::wall_ms();
        let released =
            write_started(dir, pid, started_ms, &tree).and_then(|()| release(held, spec));
        if let Err(error) = released {
            tree.kill(KILL_TIME, reap_all);
            tree.remove();
            return Err(error);
        }
        let output = Output::new(read, file, spec.output_bytes_max);
        Ok(Script { pid, started_ms, tree, output, ended: None })
    }

    fn supervise(
        mut self,
        spec: &Spec,
        mut workers: Workers,
        mut signals: File,
    ) -> io::Result<i32> {
        workers.notify();
        let timeout = match spec.timeout_ms {
            0 => TIMEOUT_MS_DEFAULT,
            given => given.min(TIMEOUT_MS_MAX),
        };
        let deadline = clock::now_ms() + timeout;
        let grace = match spec.kill_grace_ms {
            0 => GRACE_MS_DEFAULT,
            given => given.min(GRACE_MS_MAX),
        };
        let mut ending: Option<Ending> = None;
        let mut notice_at = None;
        loop {
            let now = clock::now_ms();
            let wake = [Some(ending.map_or(deadline, |ending| ending.kill_at_ms)), notice_at];
            let wake = wake.iter().flatten().min().copied().unwrap_or(deadline);
            // While it ends, members that are not our children die without a signal to us.
            let pause = if ending.is_some() { wake.min(now + 20) } else { wake };
            let asked = self.wait(&mut workers, &mut signals, pause.saturating_sub(now))?;
            if self.output.pump(PUMP_ROUNDS) && notice_at.is_none() {
                notice_at = Some(clock::now_ms() + NOTICE_MS);
            }
            self.reap();
            let now = clock::now_ms();
            if notice_at.is_some_and(|at| at <= now) {
                workers.notify();
                notice_at = None;
            }
            let (error, outcome) = match ending {
                None if self.ended.is_some() => (String::new(), Outcome::Ended),
                None if asked || now >= deadline => {
                    let outcome = if asked { Outcome::Cancelled } else { Outcome::TimedOut };
                    self.tree.signal(process::SIGTERM);
                    ending = Some(Ending { outcome, kill_at_ms: now + grace });
                    continue;
                }
                None => continue,
                Some(ending) if now >= ending.kill_at_ms || self.tree.members().is_empty() => {
                    (self.kill(), ending.outcome)
                }
                Some(_) => continue,
            };
            return self.finish(outcome, error, workers, signals);
        }
    }

    /// Waits for anything; answers whether somebody asked for the end.
    fn wait(
        &mut self,
        workers: &mut Workers,
        signals: &mut File,
        timeout_ms: u64,
    ) -> io::Result<bool> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![signals.as_fd()];
        fds.extend(self.output.pipe().map(AsFd::as_fd));
        fds.extend(workers.fds());
        process::wait_readable(&fds, Some(timeout_ms))?;
        // TERM, INT and HUP to the runner itself mean the same as a cancel.
        let asked = process::read_signals(signals).iter().any(|signal| *signal != process::SIGCHLD);
        Ok(workers.hear() || asked)
    }

    fn reap(&mut self) {
        while let Some((pid, ended)) = process::reap() {
            if pid == self.pid {
                self.ended = Some(ended);
            }
        }
    }

    fn kill(&mut self) -> String {
        let (pid, mut ended) = (self.pid, self.ended);
        let alive = self.tree.kill(KILL_TIME, || {
            while let Some((dead, how)) = process::reap() {
                if dead == pid {
                    ended = Some(how);
                }
            }
        });
        self.ended = ended;
        match alive {
            0 => String::new(),
            count => format!("{count} processes of the script could not be killed"),
        }
    }

    fn finish(
        mut self,
        outcome: Outcome,
        mut error: String,
        mut workers: Workers,
        mut signals: File,
    ) -> io::Result<i32> {
        // Everything that the script itself wrote is in the pipe now.
        let mut rounds = 0;
        while self.output.pump(PUMP_ROUNDS) && rounds < 1024 {
            rounds += 1;
        }
        self.output.close_file();
        if let Err(failure) = self.output.finish() {
            error = format!("{error} output could not be flushed: {failure}").trim().to_owned();
        }
        if let Some(failure) = self.output.failure() {
            error = format!("{error} output is incomplete: {failure}").trim().to_owned();
        }
        let (exit_code, signal) = match self.ended {
            Some(Ended::Code(code)) => (code, 0),
            Some(Ended::Signal(signal)) => (0, signal),
            None => (0, 0),
        };
        let exit = Exit {
            outcome: outcome.into(),
            exit_code,
            signal,
            started_ms: self.started_ms,
            ended_ms: clock::wall_ms(),
            output_bytes: self.output.kept(),
            dropped_bytes: self.output.dropped(),
            error,
        };
        write_exit(&exit)?;
        workers.notify();
        drop(workers);
        let _ = std::fs::remove_file("ctl.sock");
        // The folder may be removed now.
        std::env::set_current_dir("/")?;
        self.drain(&mut signals)
    }

    /// Reads what background processes still write, for as long as they can.
    fn drain(&mut self, signals: &mut File) -> io::Result<i32> {
        self.output.pump(1);
        while let Some(pipe) = self.output.pipe() {
            process::wait_readable(&[signals.as_fd(), pipe.as_fd()], None)?;
            process::read_signals(signals);
            self.output.pump(1);
            self.reap();
        }
        self.tree.remove();
        Ok(0)
    }
}

/// A full disk may be cleaned up: the outcome is worth some patience.
fn write_exit(exit: &Exit) -> io::Result<()> {
    for _ in 0..EXIT_ATTEMPTS {
        match records::write(Path::new("."), "exit", exit) {
            Ok(()) => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_secs(1)),
        }
    }
    records::write(Path::new("."), "exit", exit)
}

fn reap_all() {
    while process::reap().is_some() {}
}

fn me() -> io::Result<ProcessId> {
    ProcessId::of(std::process::id()).ok_or_else(no_proc)
}

fn no_proc() -> io::Error {
    io::Error::other("/proc does not show this process; is /proc mounted?")
}

fn write_started(dir: &Path, pid: u32, started_ms: i64, tree: &Tree) -> io::Result<()> {
    let runner = me()?;
    let child = ProcessId::of(pid).ok_or_else(no_proc)?;
    let started = Started {
        runner_pid: runner.pid,
        runner_start_ticks: runner.start_ticks,
        pid,
        start_ticks: child.start_ticks,
        boot_id: runner.boot_id,
        started_ms,
        cgroup: tree.cgroup().map_or(String::new(), |group| group.dir().display().to_string()),
    };
    records::write(dir, "started", &started)
}

fn release(held: HeldChild, spec: &Spec) -> io::Result<()> {
    held.release().map_err(|error| {
        let program = spec.interpreter.first().map_or("", String::as_str);
        io::Error::new(error.kind(), format!("cannot run {program:?}: {error}"))
    })
}

fn program(
    spec: &Spec,
    id: &str,
    runner: &ProcessId,
    output: OwnedFd,
    cgroup: Option<OwnedFd>,
) -> io::Result<Program> {
    let own = user::effective_uid();
    let user = if spec.user.is_empty() { user::by_uid(own)? } else { user::by_name(&spec.user)? };
    let user = match user {
        Some(user) => user,
        None if spec.user.is_empty() => anonymous(own),
        None => {
            let text = format!("no user {:?} on this host", spec.user);
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
    };
    let switch = user.uid != own;
    if switch && own != 0 {
        let text = format!("cannot run as {}: the agent is not root", user.name);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let (script_path, script) = script(switch, &user)?;
    let mut argv = Vec::new();
    for word in spec.interpreter.iter().chain([&script_path]).chain(&spec.args) {
        argv.push(CString::new(word.as_str())?);
    }
    let become_user = if switch {
        Some(BecomeUser { groups: user::groups_of(&user)?, gid: user.gid, uid: user.uid })
    } else {
        None
    };
    let environment = [
        ("PATH", PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("LANG", "C.UTF-8"),
        (TASK_VARIABLE, id),
    ];
    let environment = environment.map(|(name, value)| format!("{name}={value}"));
    let environment = environment.into_iter().chain([mark(runner)]).map(CString::new);
    let directory = CString::new(user.home)?;
    let environment = environment.collect::<Result<_, _>>()?;
    Ok(Program { argv, environment, become_user, directory, output, script, cgroup })
}

/// A container may run us with a number that has no entry.
fn anonymous(uid: u32) -> User {
    let (name, home) = (uid.to_string(), "/".to_owned());
    User { name, uid, gid: uid, home, shell: "/bin/sh".into() }
}

/// How the script is named to its interpreter. Another user cannot reach it through HOME, which is
/// ours alone, so it is given open, and owned by that user as opening `/dev/fd/3` asks for that.
fn script(switch: bool, user: &User) -> io::Result<(String, Option<OwnedFd>)> {
    let path = std::env::current_dir()?.join("script");
    if !switch {
        return Ok((text(path)?, None));
    }
    let file = File::open(&path)?;
    std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))?;
    Ok((format!("/dev/fd/{SCRIPT_FD}"), Some(file.into())))
}

fn text(path: PathBuf) -> io::Result<String> {
    path.into_os_string().into_string().map_err(|path| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is not UTF-8"))
    })
}

/// The worker's end of the control socket; workers come and go.
struct Workers {
    listener: Option<UnixListener>,
    streams: Vec<UnixStream>,
}

impl Workers {
    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listener.iter().map(AsFd::as_fd).chain(self.streams.iter().map(AsFd::as_fd))
    }

    /// Takes new connections and what came on the old ones; answers whether a cancel was among it.
    fn hear(&mut self) -> bool {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            if self.streams.len() < WORKERS_MAX && stream.set_nonblocking(true).is_ok() {
                self.streams.push(stream);
            }
        }
        let mut cancel = false;
        let mut buffer = [0; 64];
        self.streams.retain_mut(|stream| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                cancel |= buffer[..length].contains(&CANCEL);
                true
            }
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
            }
        });
        cancel
    }

    /// Tells every worker to look at the files. One that does not read has bytes waiting already.
    fn notify(&mut self) {
        for stream in &mut self.streams {
            let _ = stream.write(&[CHANGED]);
        }
    }
}
