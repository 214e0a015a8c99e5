//! Processes: a child that waits for permission before it runs its program, signals, reaping, and
//! waiting on several descriptors.
//!
//! [`spawn_held`] is what "write down before you run" needs: the child exists and has a pid, but it
//! executes the program only after [`HeldChild::release`]; if its parent dies before, it never does.
#![allow(unsafe_code)] // fork, waitpid, poll and signalfd have no safe form in std.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Signals that matter here, by name.
pub use libc::{SIGCHLD, SIGINT, SIGKILL, SIGTERM};

/// The first descriptor that a child may inherit besides its standard three.
pub const SCRIPT_FD: RawFd = 3;
/// Descriptors closed one by one where `/proc/self/fd` cannot be read.
const FDS_MAX: RawFd = 4096;

/// A program to run and the circumstances of its run.
#[derive(Debug)]
pub struct Program {
    /// Program and arguments; a program without `/` is searched in PATH.
    pub argv: Vec<CString>,
    /// The whole environment, `NAME=value` each.
    pub environment: Vec<CString>,
    /// Whom to become; none: stay who we are.
    pub become_user: Option<BecomeUser>,
    /// First choice of working directory; `/` is the second.
    pub directory: CString,
    /// Where standard output and error go; standard input is `/dev/null`.
    pub output: OwnedFd,
    /// Kept open as descriptor [`SCRIPT_FD`].
    pub script: Option<OwnedFd>,
    /// `cgroup.procs` of the group to join.
    pub cgroup: Option<OwnedFd>,
}

/// Ids to take, in the order in which they must be given up.
#[derive(Debug)]
pub struct BecomeUser {
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Group.
    pub gid: u32,
    /// User.
    pub uid: u32,
}

/// A child that waits to be released.
#[derive(Debug)]
pub struct HeldChild {
    /// Its pid.
    pub pid: u32,
    go: File,
    error: File,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A pipe: read end, write end; both closed on exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors, which are owned at once.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Makes reads and writes of `fd` answer `WouldBlock` instead of waiting.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open; flags are read, then set.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// An exclusive lock on an open file, kept until it is closed; none when somebody else has it.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Leaves the session, terminal and process group of whoever started us.
pub fn new_session() {
    // SAFETY: takes nothing; fails only for group leaders, which is as good.
    unsafe { libc::setsid() };
}

/// Orphans below us become our children, so that no double fork escapes.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: a prctl without pointers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Has the kernel send us `signal` when our parent dies.
pub fn die_with_parent(signal: i32) {
    // SAFETY: a prctl without pointers; an old kernel's refusal only loses the convenience.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) };
}

/// Name shown by `ps` for this process.
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: a NUL-terminated string; the kernel copies at most 16 bytes.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    }
}

/// Files created from now on get these bits cleared.
pub fn set_umask(mask: u32) {
    // SAFETY: cannot fail.
    unsafe { libc::umask(mask as libc::mode_t) };
}

/// Sends `signal` to one process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: no memory involved; pids 0, 1 and negative ones were refused.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Our parent's pid.
pub fn parent() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::getppid() as u32 }
}

/// One child that has ended, if any.
pub fn reap() -> Option<(u32, Ended)> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status))
    } else {
        Ended::Code(libc::WEXITSTATUS(status))
    };
    Some((pid as u32, ended))
}

/// Signals as readable bytes: they are blocked and arrive on the returned descriptor.
pub fn signal_fd(signals: &[i32]) -> io::Result<File> {
    // SAFETY: the set is initialised by sigemptyset; the new descriptor is owned at once.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        check(libc::sigemptyset(set.as_mut_ptr()))?;
        for signal in signals {
            check(libc::sigaddset(set.as_mut_ptr(), *signal))?;
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()))?;
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        Ok(File::from_raw_fd(check(libc::signalfd(-1, set.as_ptr(), flags))?))
    }
}

/// Lets every signal through again: a child inherits what its parent blocked for [`signal_fd`].
pub fn unblock_signals() {
    // SAFETY: the set is initialised by sigemptyset; no handler changes.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// The signals that arrived on a [`signal_fd`].
pub fn read_signals(fd: &mut File) -> Vec<i32> {
    const ENTRY: usize = std::mem::size_of::<libc::signalfd_siginfo>();
    let mut buffer = [0; ENTRY * 8];
    let length = fd.read(&mut buffer).unwrap_or(0);
    // `ssi_signo` is the first field, a u32.
    let number = |entry: &[u8]| entry.first_chunk::<4>().map(|n| u32::from_ne_bytes(*n) as i32);
    buffer[..length].chunks_exact(ENTRY).filter_map(number).collect()
}

/// Waits until one of `fds` has bytes or an end to read, at most `timeout_ms` (none: for ever), and
/// says which.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout_ms: Option<u64>) -> io::Result<Vec<bool>> {
    let event =
        |fd: &BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polled: Vec<libc::pollfd> = fds.iter().map(event).collect();
    let timeout = timeout_ms.map_or(-1, |ms| ms.min(i32::MAX as u64) as libc::c_int);
    // SAFETY: `polled` has as many entries as we say.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    match check(result) {
        Ok(_) => Ok(polled.iter().map(|entry| entry.revents != 0).collect()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(vec![false; fds.len()]),
        Err(error) => Err(error),
    }
}

/// Forks a child that will become `program` when it is released. The caller must have one thread
/// only: the child allocates before it executes.
pub fn spawn_held(program: &Program) -> io::Result<HeldChild> {
    let (go_read, go_write) = pipe()?;
    let (error_read, error_write) = pipe()?;
    let null = File::options().read(true).open("/dev/null")?;
    let runner = std::process::id();
    // SAFETY: the process has one thread, so the child may do what it likes before it executes.
    match check(unsafe { libc::fork() })? {
        0 => {
            drop((go_write, error_read));
            let failure = run_child(program, go_read, null, runner);
            let number = failure.raw_os_error().unwrap_or(libc::EIO);
            let _ = File::from(error_write).write_all(&number.to_ne_bytes());
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(127) }
        }
        pid => Ok(HeldChild { pid: pid as u32, go: go_write.into(), error: error_read.into() }),
    }
}

impl HeldChild {
    /// Lets the child run its program; an error means that it never ran, and says why.
    pub fn release(mut self) -> io::Result<()> {
        self.go.write_all(b"g")?;
        drop(self.go);
        let mut number = [0; 4];
        match self.error.read_exact(&mut number) {
            // The pipe closes when the program is executed.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number))),
        }
    }
}

/// The child's part: returns only with the reason why the program could not be executed.
fn run_child(program: &Program, go: OwnedFd, null: File, runner: u32) -> io::Error {
    match become_program(program, go, null, runner) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn become_program(
    program: &Program,
    go: OwnedFd,
    null: File,
    runner: u32,
) -> io::Result<std::convert::Infallible> {
    // Held here until the parent has written down that we exist; its death is an end of file.
    File::from(go).read_exact(&mut [0])?;
    if let Some(cgroup) = &program.cgroup {
        // Outside of the group the walk of descendants still finds us.
        let _ = File::from(cgroup.try_clone()?).write_all(b"0");
    }
    new_session();
    set_umask(0o022);
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    // SAFETY: descriptors are open; what they replace in this child is of no use to it.
    unsafe {
        let output = program.output.as_raw_fd();
        // Above the numbers that are about to be replaced, so that no dup2 hits a source.
        let output = check(libc::fcntl(output, libc::F_DUPFD_CLOEXEC, 10))?;
        let null = check(libc::fcntl(null.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10))?;
        let script = match &program.script {
            Some(fd) => Some(check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10))?),
            None => None,
        };
        check(libc::dup2(null, 0))?;
        check(libc::dup2(output, 1))?;
        check(libc::dup2(output, 2))?;
        close_on_exec_from(SCRIPT_FD);
        if let Some(script) = script {
            check(libc::dup2(script, SCRIPT_FD))?;
        }
    }
    reset_signals();
    if let Some(user) = &program.become_user {
        become_user(user)?;
    }
    die_with_parent(SIGKILL);
    if parent() != runner {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let pointers = |list: &[CString]| {
        let ends = std::iter::once(std::ptr::null());
        list.iter().map(|text| text.as_ptr()).chain(ends).collect::<Vec<_>>()
    };
    let (argv, environment) = (pointers(&program.argv), pointers(&program.environment));
    let Some(file) = program.argv.first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: strings are NUL-terminated, lists end with null, all live until the program starts.
    unsafe {
        if libc::chdir(program.directory.as_ptr()) != 0 {
            check(libc::chdir(c"/".as_ptr()))?;
        }
        libc::execvpe(file.as_ptr(), argv.as_ptr(), environment.as_ptr());
    }
    Err(io::Error::last_os_error())
}

/// Marks every descriptor from `first` on to be closed by exec: whatever we inherited from our own
/// starter must not reach a script.
fn close_on_exec_from(first: RawFd) {
    let listed: Vec<RawFd> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        }
        Err(_) => (first..FDS_MAX).collect(),
    };
    for fd in listed.into_iter().filter(|fd| *fd >= first) {
        // SAFETY: setting a flag on a descriptor that may or may not be open.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Default handling and an empty mask: Rust ignores SIGPIPE, and the runner blocks what it reads
/// from its signal descriptor; scripts expect neither.
fn reset_signals() {
    // SAFETY: SIG_DFL is a valid handler; invalid numbers are refused by the kernel.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    unblock_signals();
}

fn become_user(user: &BecomeUser) -> io::Result<()> {
    // SAFETY: the group list has the length we say; the rest takes numbers only. Groups go first:
    // after setuid nothing of this would be allowed.
    unsafe {
        check(libc::setgroups(user.groups.len() as _, user.groups.as_ptr()))?;
        check(libc::setresgid(user.gid, user.gid, user.gid))?;
        check(libc::setresuid(user.uid, user.uid, user.uid))?;
        // Kernels before 4.3 know no ambient capabilities and refuse.
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_pids_are_refused() {
        for pid in [0, 1, u32::MAX] {
            assert!(kill(pid, SIGTERM).is_err());
        }
    }

    #[test]
    fn poll_says_who_is_ready() {
        use std::os::fd::AsFd;
        let (read_a, _write_a) = pipe().unwrap();
        let (read_b, write_b) = pipe().unwrap();
        File::from(write_b).write_all(b"x").unwrap();
        let ready = wait_readable(&[read_a.as_fd(), read_b.as_fd()], Some(1000)).unwrap();
        assert_eq!(ready, [false, true]);
    }

    #[test]
    fn a_lock_is_exclusive() {
        let temp = tempfile::tempdir().unwrap();
        let open = || File::create(temp.path().join("lock")).unwrap();
        let (first, second) = (open(), open());
        assert!(try_lock(&first).unwrap());
        assert!(!try_lock(&second).unwrap());
        drop(first);
        assert!(try_lock(&second).unwrap());
    }
}
