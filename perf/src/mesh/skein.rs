//! Skein in a lab: the shipped server on the first host, a real enrolled agent on each other one,
//! and `skein push` as an operator types it, over TLS.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use skein_agent::identity::Identity;
use skein_filemesh::engine::LeafFile;

use super::cells::{Cell, Fault};
use super::drive::{Crew, Job};
use super::evidence;
use super::liar::{Liar, newest_leaves};
use super::told::{Told, expelled_in, has_panicked, plan_of, told_of};
use crate::netlab::{Host, NetLab};
use crate::site::{self, Agent, Site, binary};

/// Agents that enrol at the same time.
const ENROL_AT_ONCE: usize = 4;
/// For agents to be online; a dev build on a busy machine takes a while.
const ONLINE: Duration = Duration::from_secs(120);
/// For the command to end after the last host has the file.
const COMMAND_ENDS: Duration = Duration::from_secs(10);
/// Between two looks at a transfer that is to be planned anew.
const REPLAN_LOOK: Duration = Duration::from_millis(100);

/// A server and its agents; all end with this value.
pub struct Fleet {
    site: Site,
    hosts: Vec<Host>,
    homes: Vec<PathBuf>,
    agents: Vec<Option<Agent>>,
}

impl Fleet {
    /// Starts a server, enrols an agent on each other host, and waits until all are online.
    /// Where the cell has a border, half of the hosts are put behind it.
    /// Logs of one that cannot start are kept below `scratch`.
    pub fn start(lab: &NetLab, folder: &Path, scratch: &Path, cell: &Cell) -> anyhow::Result<Self> {
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
        fleet.begin(lab, cell).map_err(|error| {
            let kept = evidence::keep_start(scratch, &fleet.logs());
            anyhow::anyhow!("{error:#}; logs in {}", kept.display())
        })?;
        Ok(fleet)
    }

    fn begin(&mut self, lab: &NetLab, cell: &Cell) -> anyhow::Result<()> {
        if let Some(rate) = cell.border() {
            self.divide(lab, rate)?;
        }
        for host in 0..self.hosts.len() {
            self.agents.push(None);
            self.start_agent(host)?;
        }
        self.site.wait_online(self.hosts.len(), ONLINE)
    }

    /// Puts the second half of the agents behind a border. They are counted in the order of their
    /// ids, because the server takes the region of the first for its own.
    fn divide(&mut self, lab: &NetLab, rate: u64) -> anyhow::Result<()> {
        let id = |home: &PathBuf| anyhow::Ok(Identity::load(&home.join("identity"))?.agent_id);
        let ids = self.homes.iter().map(id).collect::<anyhow::Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by(|a, b| ids[*a].as_str().cmp(ids[*b].as_str()));
        let (near, far) = order.split_at(order.len().div_ceil(2));
        for (hosts, region) in [(near, "near"), (far, "far")] {
            for host in hosts {
                let config = self.homes[*host].join("agent.toml");
                let text = std::fs::read_to_string(&config)?;
                let lines = text.lines().filter(|line| !line.starts_with("region ="));
                let lines: Vec<&str> = lines.collect();
                std::fs::write(&config, format!("region = \"{region}\"\n{}\n", lines.join("\n")))?;
            }
        }
        // Host 0 of the lab is the source.
        let far: Vec<usize> = far.iter().map(|host| host + 1).collect();
        lab.divide(&far, rate)
    }

    /// Logs of the agents, in their order, then of the server.
    pub fn logs(&self) -> Vec<PathBuf> {
        let agents = self.homes.iter().map(|home| home.with_extension("log"));
        agents.chain([self.site.path("server.log")]).collect()
    }

    /// Runs `skein ARGS` where the server is.
    pub fn skein(&self, args: &[&str]) -> anyhow::Result<String> {
        self.site.skein(args)
    }

    /// Piece size of the file that was pushed last.
    pub fn piece_bytes(&self) -> Option<u32> {
        let leaves = LeafFile::open(&newest_leaves(&self.site.path("server"))?).ok()?;
        Some(leaves.tree().geometry().piece_bytes())
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

/// What `skein push --help` says: what it can be asked for.
pub fn push_help() -> anyhow::Result<String> {
    let help = Command::new(binary("skein")?).args(["push", "--help"]).output()?;
    Ok(String::from_utf8_lossy(&help.stdout).into_owned())
}

/// One push.
pub struct SkeinCrew<'a> {
    fleet: &'a mut Fleet,
    job: &'a Job<'a>,
    gear: Option<&'a str>,
    push: Option<Child>,
    submitted: SystemTime,
    source_killed: bool,
    liar: Option<Liar<'a>>,
    /// Sizes of the agents' logs before.
    logged: Vec<u64>,
    replan: Option<Replan>,
    /// When a directory was complete, and whether that is known.
    whole_at: Option<SystemTime>,
}

/// The watch for a plan that follows from the source's slowing down.
struct Replan {
    before: serde_json::Value,
    since: Instant,
    since_ms: i64,
    looked: Instant,
    after: Option<Duration>,
}

impl<'a> SkeinCrew<'a> {
    /// The agents wait already; a liar takes one's place.
    pub fn prepare(
        fleet: &'a mut Fleet,
        job: &'a Job<'a>,
        gear: Option<&'a str>,
    ) -> anyhow::Result<Self> {
        let logged = fleet.logs().iter().map(|log| size_of(log)).collect();
        let liar = match job.cell.fault {
            Fault::Liar => {
                let host = *job.cell.special().first().context("a liar needs a host")?;
                Some(Liar::start(job, host, &fleet.homes[host], &fleet.site.path("server"))?)
            }
            _ => None,
        };
        Ok(Self {
            fleet,
            job,
            gear,
            push: None,
            submitted: SystemTime::now(),
            source_killed: false,
            liar,
            logged,
            replan: None,
            whole_at: None,
        })
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
        self.submitted = SystemTime::now();
        self.push = Some(self.fleet.site.spawn_skein(&push, &self.said())?);
        Ok(())
    }

    fn said(&self) -> PathBuf {
        self.job.scratch().join("push.json")
    }

    /// What the server says of the newest transfer.
    fn transfer(&self) -> anyhow::Result<serde_json::Value> {
        let list: serde_json::Value =
            serde_json::from_str(&self.fleet.site.skein(&["transfer", "ls", "--json"])?)?;
        let list = list.get("transfers").unwrap_or(&list);
        list.get(0).cloned().context("no transfer")
    }

    /// Waits for the command; what it and the agents said.
    pub fn end(&mut self) -> anyhow::Result<Told> {
        let mut push = self.push.take().context("nothing was pushed")?;
        if self.liar.is_some() && push.try_wait()?.is_none() {
            // Its own agent may never get the file.
            let transfer = self.transfer()?;
            let id = transfer["transfer_id"].as_str().context("a transfer without an id")?;
            self.fleet.site.skein(&["transfer", "cancel", id])?;
        }
        let deadline = Instant::now() + COMMAND_ENDS;
        while push.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                end(&mut push);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = std::fs::read_to_string(self.said())?;
        let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let mut told = told_of(&said, self.submitted);
        ensure!(
            !self.new_in_logs().any(|text| has_panicked(&text)),
            "a process panicked, as its log says; what was measured with it is void"
        );
        told.expelled = self.expelled();
        told.replanned_s =
            self.replan.as_ref().and_then(|replan| Some(replan.after?.as_secs_f64()));
        Ok(told)
    }

    /// Whom agents expelled in this run, by their logs.
    fn expelled(&self) -> BTreeMap<String, u64> {
        let mut expelled = BTreeMap::new();
        for member in self.new_in_logs().flat_map(|text| expelled_in(&text)) {
            *expelled.entry(member).or_default() += 1;
        }
        expelled
    }

    /// What the server and the agents wrote into their logs in this run.
    fn new_in_logs(&self) -> impl Iterator<Item = String> {
        let logs = self.fleet.logs().into_iter().zip(&self.logged);
        logs.map(|(log, from)| {
            let text = std::fs::read(log).unwrap_or_default();
            let new = text.get(usize::try_from(*from).unwrap_or(0)..).unwrap_or_default();
            String::from_utf8_lossy(new).into_owned()
        })
    }
}

fn size_of(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |meta| meta.len())
}

impl Crew for SkeinCrew<'_> {
    /// The rename under the final name is the last thing that happens to a file, and the first
    /// time that anybody sees it there.
    fn finished(&mut self, host: usize) -> Option<SystemTime> {
        if self.job.cell.files.is_none() {
            return std::fs::metadata(self.job.target(host)).ok().as_ref().and_then(changed);
        }
        // Of a directory it is the last of many: the agents' reports say when.
        if self.whole_at.is_none() && self.push.as_mut()?.try_wait().ok()??.success() {
            let said = std::fs::read(self.said()).ok()?;
            let said: serde_json::Value = serde_json::from_slice(&said).ok()?;
            let ended =
                said["hosts"].as_array()?.iter().filter_map(|host| host["ended_ms"].as_u64());
            let ended = Duration::from_millis(ended.max()?);
            self.whole_at = SystemTime::UNIX_EPOCH.checked_add(ended);
        }
        self.whole_at
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

    fn roots(&self) -> Vec<u32> {
        let agents = self.fleet.agents.iter().flatten().map(Agent::root);
        let push = self.push.iter().map(Child::id);
        agents.chain([self.fleet.site.server_root()]).chain(push).collect()
    }

    fn source_slows(&mut self) -> anyhow::Result<()> {
        let before = plan_of(&self.transfer()?);
        let now = Instant::now();
        let since_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let since_ms = i64::try_from(since_ms.as_millis())?;
        self.replan = Some(Replan { before, since: now, since_ms, looked: now, after: None });
        Ok(())
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let is_due =
            |replan: &&Replan| replan.after.is_none() && replan.looked.elapsed() >= REPLAN_LOOK;
        if self.replan.as_ref().filter(is_due).is_none() {
            return Ok(());
        }
        let transfer = self.transfer()?;
        if let Some(replan) = &mut self.replan {
            replan.looked = Instant::now();
            // The server says when, if it can; otherwise it counts when it is seen.
            let said = transfer.get("replanned_ms").and_then(serde_json::Value::as_i64);
            let said = said.and_then(|at| u64::try_from(at - replan.since_ms).ok());
            let is_new = plan_of(&transfer) != replan.before;
            let seen = || replan.since.elapsed();
            replan.after = is_new.then(|| said.map_or_else(seen, Duration::from_millis));
        }
        Ok(())
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
