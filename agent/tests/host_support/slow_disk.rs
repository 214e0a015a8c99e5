//! A disk whose flushes of chosen files take as long as a test wants: system calls `fsync` and
//! `fdatasync` of an agent are handed to this process by a seccomp filter, which lets them go on
//! when the gate is opened. Everything else of the agent runs at full speed.

#![allow(unsafe_code)] // seccomp has no safe form in std.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Agent;

/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`.
const RECEIVE: libc::c_ulong = 0xC050_2100;
const SEND: libc::c_ulong = 0xC018_2101;

#[derive(Clone, Default)]
pub struct Gate {
    open: Arc<AtomicBool>,
    waiting: Arc<AtomicU32>,
}

impl Gate {
    /// Flushes go on.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Flushes that stand at the gate.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::SeqCst)
    }
}

/// Starts an agent whose flushes of files with `part` in their path wait for the gate. None where
/// the kernel does not allow such a filter.
pub fn start(home: &Path, part: &str) -> Option<(Agent, Gate)> {
    let (home, part, gate) = (home.to_owned(), part.to_owned(), Gate::default());
    let gate_of_thread = gate.clone();
    // The filter stays with the thread that installs it and with the processes that it starts.
    let started = std::thread::spawn(move || {
        let listener = install().map_err(|error| eprintln!("no slow disk here: {error}")).ok()?;
        Some((Agent::start(&home), listener))
    });
    let (agent, listener) = started.join().unwrap()?;
    std::thread::spawn(move || watch(&listener, &part, &gate_of_thread));
    Some((agent, gate))
}

fn install() -> io::Result<OwnedFd> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let if_call = |number: libc::c_long, jt: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf: 0,
        k: number as u32,
    };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        if_call(libc::SYS_fsync, 2),
        if_call(libc::SYS_fdatasync, 1),
        statement(libc::BPF_RET | libc::BPF_K, 0x7fff_0000),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
    ];
    let header = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads `header` and the statements it points to during the call only; the
    // descriptor that it answers is nobody else's.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let (mode, flag) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
        let listener = libc::syscall(libc::SYS_seccomp, mode, flag, &raw const header);
        match listener {
            ..0 => Err(io::Error::last_os_error()),
            listener => Ok(OwnedFd::from_raw_fd(listener as i32)),
        }
    }
}

/// Answers every flush until the agent is gone.
fn watch(listener: &OwnedFd, part: &str, gate: &Gate) {
    let mut standing: Vec<u64> = Vec::new();
    loop {
        if gate.open.load(Ordering::SeqCst) {
            standing.drain(..).for_each(|call| go_on(listener, call));
        }
        gate.waiting.store(standing.len() as u32, Ordering::SeqCst);
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 5) };
        if ready > 0 && poll.revents & libc::POLLHUP != 0 {
            return;
        }
        if ready <= 0 || poll.revents & libc::POLLIN == 0 {
            continue;
        }
        // SAFETY: the kernel wants it zeroed and fills it.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: `call` is what the request fills.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut call) } != 0 {
            continue;
        }
        let file = format!("/proc/{}/fd/{}", call.pid, call.data.args[0]);
        let path = std::fs::read_link(file).unwrap_or_default();
        if path.to_string_lossy().contains(part) {
            standing.push(call.id);
        } else {
            go_on(listener, call.id);
        }
    }
}

fn go_on(listener: &OwnedFd, id: u64) {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    // SAFETY: `answer` is what the request reads. A caller that was killed meanwhile is no error.
    unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut answer) };
}
