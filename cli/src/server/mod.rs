//! `skein server`: two processes of this binary, `control` and `data`, kept alive.
//!
//! ```text
//!   skein server ─┬─ skein control   store, keys, API          (killed and restarted alone)
//!                 └─ skein data      sessions, routing, files  (killed and restarted alone)
//! ```
//!
//! The supervisor holds no keys and no data, so it has nothing to lose; its folder is locked, so
//! that two servers never share one. Configuration is read once here, to fail early and in plain
//! words, and once by each process from the same file and flags.

mod child;
mod config;
mod greeting;
mod planner;
mod processes;
mod supervisor;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

pub use config::ServerConfig;
pub use processes::{run_control, run_data};

use crate::commands::Outcome;
use crate::connection::ConnectionArgs;
use crate::error::{CliError, EXIT_OK};

const EXAMPLES: &str = "\
A server needs a folder and nothing else:
  skein server --data-dir ./skein                  default ports
  skein server --data-dir ./skein --local          free ports on 127.0.0.1, for a trial
  skein server --data-dir ./skein --api-listen 0.0.0.0:28863 --api-tls
                                                   operators from elsewhere, over https

DIR/server.toml holds what is to stay; docs/configuration.md lists its keys. The other flags under
\"Connection\" mean nothing here.";

/// Flags of `server`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = EXAMPLES,
    override_usage = "skein server [OPTIONS] --data-dir <DIR>"
)]
pub struct ServerArgs {
    /// Where it listens.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Do not print the welcome
    #[arg(long)]
    pub quiet: bool,
}

/// Flags of the two processes.
#[derive(Args, Clone, Debug)]
pub struct ProcessArgs {
    /// Where it listens.
    #[command(flatten)]
    pub listen: ListenArgs,
}

/// Addresses that override DIR/server.toml; port 0 takes a free port.
#[derive(Args, Clone, Debug, Default)]
pub struct ListenArgs {
    /// Agents' signal channels [default: 0.0.0.0:28668]
    #[arg(long, value_name = "ADDR")]
    pub signal_listen: Option<SocketAddr>,
    /// Agents' data channels [default: 0.0.0.0:28625]
    #[arg(long, value_name = "ADDR")]
    pub data_listen: Option<SocketAddr>,
    /// Agents' file channels [default: 0.0.0.0:28925]
    #[arg(long, value_name = "ADDR")]
    pub file_listen: Option<SocketAddr>,
    /// The operators' API [default: 127.0.0.1:28863]
    #[arg(long, value_name = "ADDR")]
    pub api_listen: Option<SocketAddr>,
    /// The API speaks TLS; needed where it listens beyond 127.0.0.1
    #[arg(long)]
    pub api_tls: bool,
    /// The data process's /metrics [default: 127.0.0.1:29402]
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,
    /// All of the above on 127.0.0.1 and free ports, for trials and tests
    #[arg(long)]
    pub local: bool,
}

/// Runs a server until a signal ends it.
pub fn run_server(args: &ServerArgs, connection: &ConnectionArgs) -> Outcome {
    let dir = data_dir(connection)?;
    std::fs::create_dir_all(dir.join("run"))
        .map_err(CliError::io(format!("cannot create {}", dir.display())))?;
    let config = ServerConfig::load(&dir, &args.listen)?;
    config.check_api(&dir)?;
    config.planner.planning().map_err(CliError::Usage)?;
    skein_observe::init_logging("server", config.log_json);
    let lock = lock(&dir)?;
    let greeter = (!args.quiet).then(|| greeting::start(dir.clone()));
    supervisor::run(&dir, &config)?;
    drop((greeter, lock));
    Ok(EXIT_OK)
}

/// The folder of the server, absolute.
fn data_dir(connection: &ConnectionArgs) -> Result<PathBuf, CliError> {
    let dir = connection.data_dir.as_deref().ok_or_else(|| {
        CliError::Usage("where should the server keep its data? Give --data-dir DIR".into())
    })?;
    std::path::absolute(dir).map_err(CliError::io(format!("cannot resolve {}", dir.display())))
}

fn lock(dir: &Path) -> Result<File, CliError> {
    let path = dir.join("run/server.lock");
    let file =
        File::create(&path).map_err(CliError::io(format!("cannot create {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CliError::Local(format!(
            "another server runs in {}; stop it first or use another --data-dir",
            dir.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(CliError::io(format!("cannot lock {}", path.display()))(error))
        }
    }
}
