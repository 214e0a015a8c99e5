//! A whole site with the shipped binaries: `skein server` and real agents, started and stopped as
//! an operator would.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// A running server with its folder.
pub struct Site {
    folder: tempfile::TempDir,
    server: Child,
    ports: serde_json::Value,
}

/// A running agent with its folder.
pub struct Agent {
    supervisor: Child,
    /// When its processes were started.
    pub started: Instant,
}

/// A binary built beside this one.
fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(name);
    ensure!(path.exists(), "{} is missing: build skein and skein-agent first", path.display());
    Ok(path)
}

impl Site {
    /// Starts a server below `parent` on free ports of loopback.
    pub fn start(parent: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(parent)?;
        let parent = parent.canonicalize()?;
        let folder = tempfile::Builder::new().prefix("skein-site-").tempdir_in(parent)?;
        let server = Command::new(binary("skein")?)
            .args(["server", "--local", "--quiet", "--data-dir"])
            .arg(folder.path().join("server"))
            .stdin(Stdio::null())
            .spawn()?;
        let mut site = Self { folder, server, ports: serde_json::Value::Null };
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
        let output = Command::new(binary("skein")?)
            .args(args)
            .arg("--data-dir")
            .arg(self.path("server"))
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "skein {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
        let home = self.path(name);
        let token: serde_json::Value =
            serde_json::from_str(&self.skein(&["token", "create", "--json"])?)?;
        let token = token["token"].as_str().context("no token")?;
        let [signal, data, file] = ["signal", "data", "file"].map(|kind| self.address(kind));
        let status = Command::new(binary("skein-agent")?)
            .args(["enrol", "--server", &signal?.to_string(), "--token", token])
            .args(["--data-port", &data?.port().to_string()])
            .args(["--file-port", &file?.port().to_string()])
            .arg("--home")
            .arg(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "enrolment failed");
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

    fn online(&self) -> anyhow::Result<usize> {
        let hosts: serde_json::Value =
            serde_json::from_str(&self.skein(&["hosts", "state=online", "--json"])?)?;
        let hosts = hosts.get("agents").unwrap_or(&hosts);
        Ok(hosts.as_array().map_or(0, Vec::len))
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
    /// Supervisor, worker and runners.
    pub fn pids(&self) -> Vec<u32> {
        family(self.supervisor.id())
    }

    /// The same with their names.
    pub fn processes(&self) -> Vec<(String, u32)> {
        named("skein-agent", self.pids())
    }
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
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<(u32, u32)> = all
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let of = found[at];
        found.extend(all.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}
