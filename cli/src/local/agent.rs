//! A real agent: its own folder, its own enrolment, its own processes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::{Binaries, Counters, LocalServer, stop, tail};
use crate::error::CliError;
use crate::guard::{self, Signal};

const STOP_TIME_MAX: Duration = Duration::from_secs(20);

/// How an agent is set up.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// It lives on when we end.
    pub detached: bool,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Cloud area.
    pub cloud_id: i32,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// More of `agent.toml`: tables only, since it is appended.
    pub config: String,
}

/// An agent on this machine.
pub struct LocalAgent {
    host: PathBuf,
    home: PathBuf,
    binary: PathBuf,
    id: String,
    detached: bool,
    child: Option<Child>,
}

impl LocalAgent {
    /// Enrols a new agent; it does not run yet. `host` is the folder that plays its host: the
    /// agent's own folder lies in it, beside what the host has of its own.
    pub fn enrol(
        binaries: &Binaries,
        host: &Path,
        server: &LocalServer,
        token: &str,
        options: &AgentOptions,
    ) -> Result<Self, CliError> {
        let home = host.join("agent");
        for folder in [&home, &host.join("logs")] {
            std::fs::create_dir_all(folder)
                .map_err(CliError::io(format!("cannot create {}", folder.display())))?;
        }
        let output = Self::try_enrol(binaries, &home, server, token)?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(CliError::Local(format!("an agent could not enrol: {reason}")));
        }
        let config = home.join("agent.toml");
        let cannot = || CliError::io(format!("cannot write {}", config.display()));
        std::fs::write(&config, agent_toml(server, options)?).map_err(cannot())?;
        let id = std::fs::read_to_string(home.join("identity/agent_id"))
            .map_err(CliError::io("the enrolled agent has no id"))?;
        Ok(Self {
            host: host.to_owned(),
            home,
            binary: binaries.agent.clone(),
            id: id.trim().to_owned(),
            detached: options.detached,
            child: None,
        })
    }

    /// Runs `skein-agent enrol` and answers with how it ended.
    pub fn try_enrol(
        binaries: &Binaries,
        home: &Path,
        server: &LocalServer,
        token: &str,
    ) -> Result<Output, CliError> {
        let ports = server.ports();
        let port = |address: Option<String>| {
            let address = address.unwrap_or_default();
            address.rsplit(':').next().unwrap_or_default().to_owned()
        };
        let mut command = Command::new(&binaries.agent);
        let server = format!("127.0.0.1:{}", port(ports.signal));
        command.args(["enrol", "--server", &server, "--token", token, "--home"]).arg(home);
        command.args(["--data-port", &port(ports.data), "--file-port", &port(ports.file)]);
        command.stdin(Stdio::null()).output().map_err(CliError::io("cannot start skein-agent"))
    }

    /// Starts it.
    pub fn run(&mut self) -> Result<(), CliError> {
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.map_err(CliError::io("cannot write an agent's log"))?;
        let mut command = Command::new(&self.binary);
        command.args(["run", "--home"]).arg(&self.home);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if self.detached {
            command.process_group(0);
        } else {
            guard::die_with_parent(&mut command);
        }
        self.child = Some(command.spawn().map_err(CliError::io("cannot start skein-agent"))?);
        Ok(())
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What plays its host.
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// Where programs of its host log, in the stories that tail.
    pub fn logs(&self) -> PathBuf {
        self.host.join("logs")
    }

    /// Its own folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.host.join("agent.log")
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log())
    }

    /// Process ids of the supervisor and its worker, while they live.
    pub fn pids(&self) -> Vec<u32> {
        let Some(child) = &self.child else { return Vec::new() };
        let mut pids = vec![child.id()];
        pids.extend(children_of(child.id()));
        pids.retain(|pid| guard::lives(*pid));
        pids
    }

    /// Its counters now.
    pub fn counters(&self) -> Result<Counters, CliError> {
        let path = self.home.join("run/ports.json");
        let cannot = || CliError::io(format!("cannot read {}", path.display()));
        let ports = std::fs::read(&path).map_err(cannot())?;
        let ports: serde_json::Value =
            serde_json::from_slice(&ports).map_err(|error| cannot()(error.into()))?;
        Counters::read(ports["metrics"].as_str().unwrap_or_default())
    }

    /// A command that hands records to this agent.
    pub fn emit(&self, data_id: u32) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("emit").arg("--home").arg(&self.home);
        command.args(["--data-id", &data_id.to_string()]);
        guard::die_with_parent(&mut command);
        command
    }

    /// Ends it in good order.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            stop(&mut child, STOP_TIME_MAX);
        }
    }

    /// kill -9 of supervisor and worker at once, as when the kernel takes them.
    pub fn kill(&mut self) {
        for pid in self.pids() {
            guard::signal(pid, Signal::Kill);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Leaves it running.
    pub fn leave(mut self) -> Option<u32> {
        let child = self.child.take()?;
        Some(child.id())
    }
}

impl Drop for LocalAgent {
    fn drop(&mut self) {
        self.stop();
    }
}

fn agent_toml(server: &LocalServer, options: &AgentOptions) -> Result<String, CliError> {
    let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let ports = server.ports();
    let address = |address: Option<String>| {
        address.map(|address| quote(&address)).ok_or_else(|| {
            CliError::Local("the server has not said where its agents' channels are".into())
        })
    };
    let mut text = format!(
        // Any port: the usual ones are too few for all agents that run on one machine.
        "metrics = \"127.0.0.1:0\"\nregion = {}\nzone = {}\ncloud_id = {}\n\n[[server]]\n\
         signal = {}\ndata = {}\nfile = {}\n\n[mesh]\nlisten = \"127.0.0.1:0\"\n\n[labels]\n",
        quote(&options.region),
        quote(&options.zone),
        options.cloud_id,
        address(ports.signal)?,
        address(ports.data)?,
        address(ports.file)?,
    );
    for (key, value) in &options.labels {
        text.push_str(&format!("{} = {}\n", quote(key), quote(value)));
    }
    text.push('\n');
    text.push_str(&options.config);
    Ok(text)
}

/// Direct children of a process.
fn children_of(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
