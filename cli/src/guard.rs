//! Signals to processes that we started, and a tie that ends them with us: a killed parent leaves
//! nothing behind that holds its ports.

#![allow(unsafe_code)] // prctl between fork and exec, and kill(2), have no safe form in std.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The signals that are sent here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    /// End in good order.
    Terminate,
    /// End now.
    Kill,
    /// Stand still until [`Signal::Continue`].
    Stop,
    /// Go on.
    Continue,
}

/// The process that `command` starts gets SIGTERM when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl, getppid and raise are called, which are
    // async-signal-safe and allocate nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above took effect.
            if libc::getppid().cast_unsigned() != parent {
                libc::raise(libc::SIGTERM);
            }
            Ok(())
        });
    }
}

/// Sends a signal to a process of ours; false when it is gone.
pub fn signal(pid: u32, signal: Signal) -> bool {
    let number = match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    match i32::try_from(pid) {
        // 0 and 1 are not processes that we started; negative numbers would be groups.
        // SAFETY: kill has no memory effects.
        Ok(pid) if pid > 1 => unsafe { libc::kill(pid, number) == 0 },
        _ => false,
    }
}

/// Whether a process of this id exists and is no zombie.
pub fn lives(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rfind(')').is_some_and(|end| !stat[end + 1..].trim_start().starts_with('Z'))
}
