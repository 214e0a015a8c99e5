//! One process of the server: how it is started, and how it is told to end.
//!
//! A child gets SIGTERM when its supervisor dies, so that a killed supervisor leaves no process
//! behind that holds the ports.

#![allow(unsafe_code)] // prctl between fork and exec, and kill(2), have no safe form in std.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::config::ListenConfig;
use crate::connection::Ports;

/// Which process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Store, keys, API.
    Control,
    /// Sessions, routing, files.
    Data,
}

impl Role {
    /// Name of the process and of its subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Data => "data",
        }
    }
}

/// Starts the process of this role.
pub fn spawn(role: Role, dir: &Path, listen: &ListenConfig) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role.name()).arg("--data-dir").arg(dir).args(listen_flags(dir, listen));
    command.stdin(Stdio::null());
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl, getppid and raise are called, which are
    // async-signal-safe and allocate nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The supervisor may have died before the line above took effect.
            if libc::getppid().cast_unsigned() != parent {
                libc::raise(libc::SIGTERM);
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Asks a running child to end in good order.
pub fn terminate(child: &Child) {
    let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
    // SAFETY: kill has no memory effects; the pid is our child's, which has not been waited for
    // (`id` is None after that), so it cannot have been reused.
    unsafe {
        libc::kill(pid, libc::SIGTERM);
    }
}

/// The addresses as flags. A free port that was taken at the first start is kept over restarts:
/// agents must find the server where it was.
fn listen_flags(dir: &Path, listen: &ListenConfig) -> Vec<OsString> {
    let control = Ports::read(dir, "control").unwrap_or_default();
    let data = Ports::read(dir, "data").unwrap_or_default();
    let mut flags = Vec::new();
    let mut add = |flag: &str, wanted: std::net::SocketAddr, bound: Option<String>| {
        let mut address = wanted;
        if wanted.port() == 0
            && let Some(bound) = bound.and_then(|text| text.parse::<std::net::SocketAddr>().ok())
        {
            address.set_port(bound.port());
        }
        flags.push(OsString::from(format!("--{flag}={address}")));
    };
    add("signal-listen", listen.signal, data.signal);
    add("data-listen", listen.data, data.data);
    add("file-listen", listen.file, data.file);
    add("api-listen", listen.api, control.api);
    if let Some(metrics) = listen.data_metrics.0 {
        add("metrics-listen", metrics, data.data_metrics);
    }
    flags
}
