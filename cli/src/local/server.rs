//! A real server: `skein server --local` with its two processes.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use skein_controlplane::api::types::{
    JoinTokenCreated, JoinTokenRequest, Route, RouteRequest, Status, Stream, StreamRequest,
};

use super::{Binaries, Counters, stop, tail, wait_for};
use crate::client::Client;
use crate::connection::{self, ConnectionArgs, Ports};
use crate::error::CliError;
use crate::guard;

const START_TIME_MAX: Duration = Duration::from_secs(60);
const STOP_TIME_MAX: Duration = Duration::from_secs(30);

/// How a local server is started.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// It lives on when we end.
    pub detached: bool,
    /// Content of `server.toml`.
    pub config: String,
}

/// A server that runs on this machine.
pub struct LocalServer {
    dir: PathBuf,
    child: Child,
    client: Client,
}

impl LocalServer {
    /// Starts one in `dir` and waits until both processes serve.
    pub fn start(
        binaries: &Binaries,
        dir: &Path,
        options: &ServerOptions,
    ) -> Result<Self, CliError> {
        let cannot = |what: &str| CliError::io(format!("cannot {what} {}", dir.display()));
        std::fs::create_dir_all(dir).map_err(cannot("create"))?;
        if !options.config.is_empty() {
            std::fs::write(dir.join("server.toml"), &options.config).map_err(cannot("write in"))?;
        }
        let log_path = dir.join("server.log");
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(cannot("write in"))?;
        let mut command = Command::new(&binaries.skein);
        command.args(["server", "--local", "--quiet", "--data-dir"]).arg(dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Connection settings of whoever starts us are about another server.
        for variable in connection::VARIABLES {
            command.env_remove(variable);
        }
        if options.detached {
            command.process_group(0);
        } else {
            guard::die_with_parent(&mut command);
        }
        let mut child = command.spawn().map_err(cannot("start a server in"))?;
        let args = ConnectionArgs { data_dir: Some(dir.to_owned()), ..ConnectionArgs::default() };
        let client = wait_for("the server", START_TIME_MAX, || {
            if let Ok(Some(_)) = child.try_wait() {
                return Some(Err(()));
            }
            let client = Client::new(args.resolve().ok()?).ok()?;
            let status: Status = client.get("/status", &[]).ok()?;
            (!status.data_processes.is_empty()).then_some(Ok(client))
        });
        match client {
            Ok(Ok(client)) => Ok(Self { dir: dir.to_owned(), child, client }),
            _ => {
                stop(&mut child, STOP_TIME_MAX);
                let log = tail(&log_path);
                Err(CliError::Local(format!("the server did not start:\n  {log}")))
            }
        }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its API.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The supervisor's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its state now.
    pub fn status(&self) -> Result<Status, CliError> {
        self.client.get("/status", &[])
    }

    /// Ports of the agents' channels.
    pub fn ports(&self) -> Ports {
        Ports::read(&self.dir, "data").unwrap_or_default()
    }

    /// Process id of control.
    pub fn control_pid(&self) -> Result<u32, CliError> {
        Ok(self.status()?.pid)
    }

    /// Process id of data.
    pub fn data_pid(&self) -> Result<u32, CliError> {
        let status = self.status()?;
        let data = status.data_processes.first();
        data.map(|data| data.pid).ok_or_else(|| CliError::Local("no data process".into()))
    }

    /// Waits until another process than `former` does this work again.
    pub fn wait_restarted(
        &self,
        former: u32,
        pid_of: impl Fn(&Status) -> Option<u32>,
    ) -> Result<u32, CliError> {
        wait_for("the restarted process", START_TIME_MAX, || {
            let status = self.status().ok()?;
            // Both must be up: a restarted control knows data only once it has connected again.
            status.data_processes.first()?;
            pid_of(&status).filter(|pid| *pid != former)
        })
    }

    /// Counters of the data process now.
    pub fn counters(&self) -> Result<Counters, CliError> {
        Counters::read(&self.ports().data_metrics.unwrap_or_default())
    }

    /// A join token for this many agents.
    pub fn token(&self, uses: u32) -> Result<String, CliError> {
        let request = JoinTokenRequest { uses_max: Some(uses), ..JoinTokenRequest::default() };
        let created: JoinTokenCreated = self.client.post("/join-tokens", &request)?;
        Ok(created.token)
    }

    /// A `tagged` stream with a route from each data id, and the folder where its files will be.
    pub fn tagged_stream(&self, name: &str, data_ids: &[u32]) -> Result<PathBuf, CliError> {
        let request = StreamRequest {
            name: name.to_owned(),
            format: Some("tagged".to_owned()),
            ..StreamRequest::default()
        };
        let stream: Stream = self.client.post("/streams", &request)?;
        for data_id in data_ids {
            let request =
                RouteRequest { stream: name.to_owned(), data_id: Some(*data_id), name: None };
            let _: Route = self.client.post("/routes", &request)?;
        }
        Ok(PathBuf::from(stream.directory))
    }

    /// Ends it in good order.
    pub fn stop(mut self) {
        stop(&mut self.child, STOP_TIME_MAX);
    }

    /// Leaves it running.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.dir.join("server.log"))
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        stop(&mut self.child, STOP_TIME_MAX);
    }
}
