//! A whole site with the shipped binaries: `skein server` and real agents, started and stopped as
//! an operator would.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::netlab::Host;

/// A running server with its folder.
pub struct Site {
    folder: tempfile::TempDir,
    server: Child,
    ports: serde_json::Value,
    /// Where server and operator are; without one, on this machine's loopback.
    host: Option<Host>,
}

/// A running agent with its folder.
pub struct Agent {
    supervisor: Child,
    /// When its processes were started.
    pub started: Instant,
}

/// Starts a process on a host of a lab, or here.
fn spawn_at(host: Option<&Host>, command: &mut Command) -> std::io::Result<Child> {
    match host {
        Some(host) => host.spawn(command),
        None => command.spawn(),
    }
}

/// A binary built beside this one.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(name);
    ensure!(path.exists(), "{} is missing: build skein and skein-agent first", path.display());
    Ok(path)
}

impl Site {
    /// Starts a server below `parent` on free ports of loopback.
    pub fn start(parent: &Path) -> anyhow::Result<Self> {
        Self::launch(parent, None)
    }

    /// Starts a server on a host of a lab: agents reach it at the host's address, its API stays on
    /// the host's loopback. What its processes say goes into a file, as they may be many.
    pub fn start_on(parent: &Path, host: &Host) -> anyhow::Result<Self> {
        Self::launch(parent, Some(host.clone()))
    }

    fn launch(parent: &Path, host: Option<Host>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(parent)?;
        let parent = parent.canonicalize()?;
        let folder = tempfile::Builder::new().prefix("skein-site-").tempdir_in(parent)?;
        let mut server = Command::new(binary("skein")?);
        server.args(["server", "--local", "--quiet", "--data-dir"]);
        server.arg(folder.path().join("server")).stdin(Stdio::null());
        if let Some(host) = &host {
            for channel in ["signal", "data", "file"] {
                server.arg(format!("--{channel}-listen={}:0", host.address()));
            }
            server.stderr(log(&folder.path().join("server.log"))?);
        }
        let server = spawn_at(host.as_ref(), &mut server)?;
        let mut site = Self { folder, server, ports: serde_json::Value::Null, host };
        let run = site.path("server/run");
        let read = |name: &str| -> Option<serde_json::Value> {
            serde_json::from_slice(&std::fs::read(run.join(name)).ok()?).ok()
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let (Some(_), Some(ports)) = (read("control.ports.json"), read("data.ports.json"))
                && site.skein(&["status"]).is_ok()
            {
                site.ports = ports;
                return Ok(site);
            }
            ensure!(Instant::now() < deadline, "the server was not ready within 20 s");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A path below the site's folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Runs `skein ARGS` against this server; answers its output.
    pub fn skein(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(args)?;
        let output = match &self.host {
            Some(host) => host.output(&mut command)?,
            None => command.output()?,
        };
        ensure!(
            output.status.success(),
            "skein {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts `skein ARGS` against this server; its output goes into `out`.
    pub fn spawn_skein(&self, args: &[&str], out: &Path) -> anyhow::Result<Child> {
        let mut command = self.command(args)?;
        command.stdout(log(out)?).stderr(log(&out.with_extension("err"))?);
        Ok(spawn_at(self.host.as_ref(), &mut command)?)
    }

    fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(binary("skein")?);
        command.args(args).arg("--data-dir").arg(self.path("server")).stdin(Stdio::null());
        Ok(command)
    }

    /// The address of a listener, as the data process wrote it.
    fn address(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let text = self.ports[name].as_str().with_context(|| format!("no port of {name}"))?;
        Ok(text.parse()?)
    }

    /// Enrols an agent with `more` appended to its agent.toml, starts it, and waits until it is
    /// online.
    pub fn agent(&self, name: &str, more: &str) -> anyhow::Result<Agent> {
        self.start_agent(&self.enrol(name, more)?)
    }

    /// Enrols an agent with `more` appended to its agent.toml; its folder.
    pub fn enrol(&self, name: &str, more: &str) -> anyhow::Result<PathBuf> {
        self.enrol_with(&self.token(1)?, name, more, None)
    }

    /// A join token for so many agents.
    pub fn token(&self, uses: usize) -> anyhow::Result<String> {
        let token = self.skein(&["token", "create", "--json", "--uses", &uses.to_string()])?;
        let token: serde_json::Value = serde_json::from_str(&token)?;
        Ok(token["token"].as_str().context("no token")?.to_owned())
    }

    /// Enrols an agent from a host of a lab.
    pub fn enrol_on(&self, host: &Host, token: &str, name: &str) -> anyhow::Result<PathBuf> {
        self.enrol_with(token, name, "", Some(host))
    }

    fn enrol_with(
        &self,
        token: &str,
        name: &str,
        more: &str,
        host: Option<&Host>,
    ) -> anyhow::Result<PathBuf> {
        let home = self.path(name);
        let [signal, data, file] = ["signal", "data", "file"].map(|kind| self.address(kind));
        let mut enrol = Command::new(binary("skein-agent")?);
        enrol
            .args(["enrol", "--server", &signal?.to_string(), "--token", token])
            .args(["--data-port", &data?.port().to_string()])
            .args(["--file-port", &file?.port().to_string()])
            .arg("--home")
            .arg(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        ensure!(spawn_at(host, &mut enrol)?.wait()?.success(), "enrolment failed");
        let config = home.join("agent.toml");
        let text = std::fs::read_to_string(&config)?;
        let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("metrics =")).collect();
        let text = text.join("\n");
        std::fs::write(&config, format!("metrics = \"off\"\n{text}\n{more}\n"))?;
        Ok(home)
    }

    /// Starts an enrolled agent and waits until it is online.
    pub fn start_agent(&self, home: &Path) -> anyhow::Result<Agent> {
        let online = self.online()?;
        let started = Instant::now();
        let supervisor = Command::new(binary("skein-agent")?)
            .arg("run")
            .arg("--home")
            .arg(home)
            .stdin(Stdio::null())
            .spawn()?;
        let agent = Agent { supervisor, started };
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.online()? == online {
            ensure!(Instant::now() < deadline, "the agent was not online within 20 s");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(agent)
    }

    /// Starts an enrolled agent on a host of a lab, and does not wait for it.
    pub fn start_agent_on(&self, host: &Host, home: &Path) -> anyhow::Result<Agent> {
        let mut agent = Command::new(binary("skein-agent")?);
        agent.arg("run").arg("--home").arg(home).stdin(Stdio::null());
        agent.stderr(log(&home.with_extension("log"))?);
        let started = Instant::now();
        Ok(Agent { supervisor: host.spawn(&mut agent)?, started })
    }

    /// Waits until `count` agents are online.
    pub fn wait_online(&self, count: usize, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let online = self.online()?;
            if online >= count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{online} of {count} agents came online in time");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn online(&self) -> anyhow::Result<usize> {
        let hosts: serde_json::Value =
            serde_json::from_str(&self.skein(&["hosts", "state=online", "--json"])?)?;
        let hosts = hosts.get("agents").unwrap_or(&hosts);
        Ok(hosts.as_array().map_or(0, Vec::len))
    }

    /// The process that all others of the server come from.
    pub fn server_root(&self) -> u32 {
        self.server.id()
    }

    /// Supervisor, control and data process.
    pub fn server_pids(&self) -> Vec<u32> {
        family(self.server.id())
    }

    /// The same with their names.
    pub fn processes(&self) -> Vec<(String, u32)> {
        named("skein", self.server_pids())
    }
}

impl Agent {
    /// The process that all others of the agent come from.
    pub fn root(&self) -> u32 {
        self.supervisor.id()
    }

    /// Supervisor, worker and runners.
    pub fn pids(&self) -> Vec<u32> {
        family(self.supervisor.id())
    }

    /// The same with their names.
    pub fn processes(&self) -> Vec<(String, u32)> {
        named("skein-agent", self.pids())
    }
}

/// A file that processes append to.
fn log(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::options().create(true).append(true).open(path)
}

/// kill -9 of processes that this one started, with their descendants; the parents first, so that
/// none starts a child again.
pub fn kill(pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    let _ = Command::new("kill").arg("-9").args(pids).stderr(Stdio::null()).status();
}

/// Most resident memory that process `pid` had so far, in KiB.
pub fn peak_rss_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_ascii_whitespace().nth(1).context("no value")?.parse()?)
}

/// Processes by program and subcommand.
fn named(program: &str, pids: Vec<u32>) -> Vec<(String, u32)> {
    let name = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let word = line.split(|byte| *byte == 0).nth(1).unwrap_or_default();
        format!("{program} {}", String::from_utf8_lossy(word))
    };
    pids.into_iter().map(|pid| (name(&pid), pid)).collect()
}

impl Drop for Site {
    fn drop(&mut self) {
        stop(&mut self.server);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        stop(&mut self.supervisor);
    }
}

/// Asks a process that this one started to end, and insists after 10 s.
fn stop(child: &mut Child) {
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// `root` and its descendants.
pub fn family(root: u32) -> Vec<u32> {
    families(&[root])
}

/// These processes and their descendants.
pub fn families(roots: &[u32]) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<(u32, u32)> = all
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = roots.to_vec();
    let mut at = 0;
    while at < found.len() {
        let of = found[at];
        found.extend(all.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}
