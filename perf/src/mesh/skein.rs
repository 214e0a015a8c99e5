//! Skein in a lab: the shipped server on the first host, a real enrolled agent on each other one,
//! and `skein push` as an operator types it, over TLS.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::drive::{Crew, Job};
use crate::netlab::{Host, NetLab};
use crate::site::{self, Agent, Site, binary};

/// Agents that enrol at the same time.
const ENROL_AT_ONCE: usize = 4;
/// For agents to be online; a dev build on a busy machine takes a while.
const ONLINE: Duration = Duration::from_secs(120);
/// For the command to end after the last host has the file.
const COMMAND_ENDS: Duration = Duration::from_secs(10);

/// A server and its agents; all end with this value.
pub struct Fleet {
    site: Site,
    hosts: Vec<Host>,
    homes: Vec<PathBuf>,
    agents: Vec<Option<Agent>>,
}

impl Fleet {
    /// Starts a server, enrols an agent on each other host, and waits until all are online.
    pub fn start(lab: &NetLab, folder: &Path) -> anyhow::Result<Self> {
        let (source, hosts) = lab.hosts().split_first().context("a lab has hosts")?;
        let site = Site::start_on(folder, source)?;
        let token = site.token(hosts.len())?;
        let numbers: Vec<usize> = (0..hosts.len()).collect();
        let mut homes = Vec::new();
        for some in numbers.chunks(ENROL_AT_ONCE) {
            let enrol = |host: usize| site.enrol_on(&hosts[host], &token, &format!("agent-{host}"));
            let enrolled = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    some.iter().map(|host| scope.spawn(move || enrol(*host))).collect();
                let join = |thread: std::thread::ScopedJoinHandle<_>| {
                    thread.join().map_err(|_| anyhow::anyhow!("an enrolment panicked"))?
                };
                threads.into_iter().map(join).collect::<anyhow::Result<Vec<PathBuf>>>()
            });
            homes.extend(enrolled?);
        }
        let mut fleet = Self { site, hosts: hosts.to_vec(), homes, agents: Vec::new() };
        for host in 0..fleet.hosts.len() {
            fleet.agents.push(None);
            fleet.start_agent(host)?;
        }
        fleet.site.wait_online(fleet.hosts.len(), ONLINE)?;
        Ok(fleet)
    }

    fn start_agent(&mut self, host: usize) -> anyhow::Result<()> {
        self.agents[host] = Some(self.site.start_agent_on(&self.hosts[host], &self.homes[host])?);
        Ok(())
    }

    /// Most memory that an agent's processes had at once so far, in KiB, supervisor and worker
    /// together.
    pub fn agent_peak_kib(&self) -> u64 {
        let peak = |pid: u32| site::peak_rss_kib(pid).unwrap_or(0);
        let agents = self.agents.iter().flatten();
        agents.map(|agent| agent.pids().into_iter().map(peak).sum()).max().unwrap_or(0)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // At once: one after the other they would take their time to say goodbye.
        let agents = self.agents.iter().flatten().flat_map(Agent::pids);
        site::kill(&agents.collect::<Vec<_>>());
    }
}

/// Whether `skein push` can be told how to travel.
pub fn has_gears() -> anyhow::Result<bool> {
    let help = Command::new(binary("skein")?).args(["push", "--help"]).output()?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--gear"))
}

/// One push.
pub struct SkeinCrew<'a> {
    fleet: &'a mut Fleet,
    job: &'a Job<'a>,
    gear: Option<&'a str>,
    push: Option<Child>,
    source_killed: bool,
}

impl<'a> SkeinCrew<'a> {
    /// The agents wait already.
    pub fn prepare(fleet: &'a mut Fleet, job: &'a Job<'a>, gear: Option<&'a str>) -> Self {
        Self { fleet, job, gear, push: None, source_killed: false }
    }

    /// Submits the file: from here on the time counts.
    pub fn submit(&mut self) -> anyhow::Result<()> {
        let file = self.job.source.to_str().context("a folder in UTF-8")?;
        // Every agent sees a folder of its own there.
        let to = format!("all:{}", self.job.seen_by_all().display());
        let timeout = format!("{}s", self.job.limit.as_secs() + 60);
        let mut push = vec!["--json", "push", file, "--to", &to, "--mkdir", "--timeout", &timeout];
        if let Some(gear) = self.gear {
            push.extend(["--gear", gear]);
        }
        let out = self.job.scratch().join("push.json");
        self.push = Some(self.fleet.site.spawn_skein(&push, &out)?);
        Ok(())
    }

    /// Waits for the command; what it says of the way that the file took.
    pub fn end(mut self) -> anyhow::Result<String> {
        let mut push = self.push.take().context("nothing was pushed")?;
        let deadline = Instant::now() + COMMAND_ENDS;
        while push.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                end(&mut push);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = std::fs::read_to_string(self.job.scratch().join("push.json"))?;
        let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let transfer = said.get("transfer").unwrap_or(&said);
        Ok(transfer.get("gear").and_then(|gear| gear.as_str()).unwrap_or("").to_owned())
    }
}

impl Crew for SkeinCrew<'_> {
    /// The rename under the final name is the last thing that happens to a file, and the first
    /// time that anybody sees it there.
    fn finished(&mut self, host: usize) -> Option<SystemTime> {
        std::fs::metadata(self.job.target(host)).ok().as_ref().and_then(changed)
    }

    fn kill(&mut self, host: usize) {
        if let Some(agent) = self.fleet.agents[host].take() {
            site::kill(&agent.pids());
        }
    }

    fn restart(&mut self, host: usize) -> anyhow::Result<()> {
        self.fleet.start_agent(host)
    }

    fn kill_source(&mut self) {
        self.source_killed = true;
        site::kill(&self.fleet.site.server_pids());
    }

    /// A command that ends with an error has seen the end of the transfer, unless it lost its
    /// server: agents may go on without it.
    fn over(&mut self) -> Option<String> {
        let status = self.push.as_mut()?.try_wait().ok()??;
        if status.success() || self.source_killed {
            return None;
        }
        let errors = std::fs::read_to_string(self.job.scratch().join("push.err"));
        let errors = errors.unwrap_or_default();
        Some(format!("skein push ended with {status}: {}", errors.lines().last().unwrap_or("")))
    }
}

impl Drop for SkeinCrew<'_> {
    fn drop(&mut self) {
        self.push.iter_mut().for_each(end);
    }
}

fn end(child: &mut Child) {
    site::kill(&[child.id()]);
    let _ = child.wait();
}

/// When an inode last changed.
fn changed(meta: &Metadata) -> Option<SystemTime> {
    let since = Duration::new(meta.ctime().try_into().ok()?, meta.ctime_nsec().try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}
