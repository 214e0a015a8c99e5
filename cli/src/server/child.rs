//! One process of the server: how it is started, and how it is told to end.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::config::ServerConfig;
use crate::connection::Ports;
use crate::guard;

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
pub fn spawn(role: Role, dir: &Path, config: &ServerConfig) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role.name()).arg("--data-dir").arg(dir).args(listen_flags(dir, config));
    command.stdin(Stdio::null());
    // A group of its own: Ctrl-C reaches the supervisor alone, which then ends both in order.
    command.process_group(0);
    guard::die_with_parent(command.as_std_mut());
    command.spawn()
}

/// Asks a running child to end in good order.
pub fn terminate(child: &Child) {
    // `id` is None once the child has been waited for, so the pid cannot have been reused.
    if let Some(pid) = child.id() {
        guard::signal(pid, guard::Signal::Terminate);
    }
}

/// The addresses, and whether the API has TLS, as flags. A free port that was taken at the first start is kept over restarts:
/// agents must find the server where it was.
fn listen_flags(dir: &Path, config: &ServerConfig) -> Vec<OsString> {
    let listen = &config.listen;
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
    if config.control.api_tls {
        flags.push("--api-tls".into());
    }
    flags
}
