//! The demo's server and agents.

use std::path::Path;
use std::time::Duration;

use skein_controlplane::api::types::{Agent, AgentState};

use super::chapter;
use crate::error::CliError;
use crate::local::{AgentOptions, Binaries, LocalAgent, LocalServer, ServerOptions, wait_for};
use crate::progress::Progress;

/// Data id of the tailed lines.
pub const LOG_DATA_ID: u32 = 1001;
/// Data id of the generated stream.
pub const FAST_DATA_ID: u32 = 1002;

const JOIN_TIME_MAX: Duration = Duration::from_secs(60);
const REGIONS: [(&str, &str); 3] = [("eu", "eu-1"), ("eu", "eu-2"), ("us", "us-1")];

/// The demo's fleet.
pub struct Fleet {
    /// The server.
    pub server: LocalServer,
    /// The agents.
    pub agents: Vec<LocalAgent>,
    /// Where the stream of the tailed lines writes.
    pub logs_sink: std::path::PathBuf,
    /// Where the stream of generated lines writes.
    pub fast_sink: std::path::PathBuf,
}

/// Starts the server, enrols the agents, runs them and waits until all are online.
pub fn start(binaries: &Binaries, dir: &Path, count: u32, keep: bool) -> Result<Fleet, CliError> {
    chapter(1, "a server: control and data process");
    let options = ServerOptions { detached: keep, ..ServerOptions::default() };
    let server = LocalServer::start(binaries, &dir.join("server"), &options)?;
    let status = server.status()?;
    eprintln!(
        "control has pid {}, data has pid {}; disk driver {}",
        status.pid, status.data_processes[0].pid, status.data_processes[0].disk_driver
    );
    let logs_sink = server.tagged_stream("demo-logs", &[LOG_DATA_ID])?;
    let fast_sink = server.tagged_stream("demo-fast", &[FAST_DATA_ID])?;

    chapter(2, &format!("{count} agents enrol and connect"));
    let token = server.token(count)?;
    let mut progress = Progress::new("agents online", u64::from(count), false, false);
    let mut agents = Vec::new();
    for number in 1..=count {
        let host = dir.join(format!("host-{number}"));
        let (region, zone) = REGIONS[number as usize % REGIONS.len()];
        let role = if number % 2 == 0 { "db" } else { "web" };
        let options = AgentOptions {
            detached: keep,
            region: region.to_owned(),
            zone: zone.to_owned(),
            labels: [("role".to_owned(), role.to_owned())].into(),
            config: format!(
                "[[tail]]\npath = \"{}/logs/*.log\"\ndata_id = {LOG_DATA_ID}\nfrom = \"start\"\n",
                host.display()
            ),
            ..AgentOptions::default()
        };
        let mut agent = LocalAgent::enrol(binaries, &host, &server, &token, &options)?;
        agent.run()?;
        agents.push(agent);
    }
    wait_for("all agents to be online", JOIN_TIME_MAX, || {
        let online = server.client().agents("").ok()?.iter().filter(is_online).count();
        progress.set(online as u64, u64::from(count), "online");
        (online == agents.len()).then_some(())
    })?;
    progress.finish(&format!("{count} of {count}"));
    Ok(Fleet { server, agents, logs_sink, fast_sink })
}

fn is_online(agent: &&Agent) -> bool {
    agent.state == AgentState::Online
}

impl Fleet {
    /// Ends everything in good order.
    pub fn stop(mut self) {
        self.agents.iter_mut().for_each(LocalAgent::stop);
        self.server.stop();
    }

    /// Leaves everything running and says how to look around and how to stop it.
    pub fn leave(self, dir: &Path) -> Result<(), CliError> {
        let skein = std::env::current_exe().map_err(CliError::io("cannot find this program"))?;
        let skein = format!("{} --data-dir {}", skein.display(), self.server.dir().display());
        let server = self.server.pid();
        let mut pids: Vec<String> = self
            .agents
            .into_iter()
            .filter_map(LocalAgent::leave)
            .map(|pid| pid.to_string())
            .collect();
        pids.push(server.to_string());
        self.server.leave();
        eprintln!(
            "\nEverything keeps running in {}. Look around:\n  {skein} hosts --wide\n  \
             {skein} run --on role=web -- uptime\n  {skein} tap {FAST_DATA_ID}\n  \
             {skein} lanes\n  {skein} transfer ls\nStop it:\n  kill {}\n",
            dir.display(),
            pids.join(" ")
        );
        Ok(())
    }
}
