//! The programs that Skein is measured beside, each as its package has it, with settings that help
//! it on such links; what is switched on stands here and in `session.py`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};

use super::drive::{Crew, Job};
use super::torrent::{Tracker, metainfo};
use crate::site;

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The plain chain.
    Chain,
    /// The chain that proves the file by SHA-256.
    ChainChecked,
    /// The source sends to everybody at once.
    Direct,
    /// libtorrent with four slots on the seed and quick connects.
    Libtorrent,
    /// The same with super-seeding.
    LibtorrentSuper,
    /// libtorrent as it comes.
    LibtorrentDefault,
    /// aria2c.
    Aria2,
    /// transmission-cli.
    Transmission,
    /// Multicast.
    Udpcast,
    /// rsync's daemon, for directories.
    Rsync,
    /// tar into a connection, for directories.
    Tar,
}

/// By the names of the command line.
pub const PEERS: [(&str, Peer); 11] = [
    ("chain", Peer::Chain),
    ("chain-sha256", Peer::ChainChecked),
    ("direct", Peer::Direct),
    ("libtorrent", Peer::Libtorrent),
    ("libtorrent-super", Peer::LibtorrentSuper),
    ("libtorrent-default", Peer::LibtorrentDefault),
    ("aria2", Peer::Aria2),
    ("transmission", Peer::Transmission),
    ("udpcast", Peer::Udpcast),
    ("rsync", Peer::Rsync),
    ("tar", Peer::Tar),
];

const PORT: u16 = 5500;
/// Debian's own interpreter: the package's module is not seen by another.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = include_str!("session.py");
/// Of the rate, so that multicast is not lost in queues.
const UDPCAST_SHARE: f64 = 0.9;
/// For all sessions to be up.
const READY: Duration = Duration::from_secs(60);

impl Peer {
    /// The program behind it and its package, if it is not our own.
    fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Chain | Self::ChainChecked | Self::Direct => None,
            Self::Libtorrent | Self::LibtorrentSuper | Self::LibtorrentDefault => {
                Some((PYTHON, "python3-libtorrent"))
            }
            Self::Aria2 => Some(("aria2c", "aria2")),
            Self::Transmission => Some(("transmission-cli", "transmission-cli")),
            Self::Udpcast => Some(("udp-sender", "udpcast")),
            Self::Rsync => Some(("rsync", "rsync")),
            Self::Tar => Some(("tar", "tar")),
        }
    }

    /// Its version as the package manager knows it; an error when it is not installed.
    pub fn version(self) -> anyhow::Result<String> {
        let Some((_, package)) = self.program() else { return Ok("built in".to_owned()) };
        let output =
            Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output()?;
        ensure!(output.status.success(), "{package} is missing: run scripts/bootstrap.sh mesh");
        Ok(format!("{package} {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// Whether it is for directories, and not for single files.
    pub fn is_for_trees(self) -> bool {
        matches!(self, Self::Rsync | Self::Tar)
    }

    fn swarm(self) -> bool {
        self.mode().is_some() || matches!(self, Self::Aria2 | Self::Transmission)
    }

    /// Whether its receivers run before the file is there, as a service would.
    fn waits(self) -> bool {
        !matches!(self, Self::Aria2 | Self::Transmission)
    }

    fn mode(self) -> Option<&'static str> {
        match self {
            Self::Libtorrent => Some("fast"),
            Self::LibtorrentSuper => Some("super"),
            Self::LibtorrentDefault => Some("default"),
            _ => None,
        }
    }

    /// What a receiver runs.
    fn receiver(self, job: &Job, host: usize) -> anyhow::Result<Command> {
        let (folder, done) = (job.folder_of(host), job.done(host));
        match self {
            Self::Chain | Self::ChainChecked | Self::Direct => {
                let mut relay = relay(self)?;
                relay.arg(format!("--listen={}", listens(job, host)));
                relay.arg("--out").arg(job.target(host)).arg("--done").arg(done);
                if self != Self::Direct && host + 1 < job.cell.receivers {
                    relay.arg(format!("--to={}", listens(job, host + 1)));
                }
                Ok(relay)
            }
            Self::Libtorrent | Self::LibtorrentSuper | Self::LibtorrentDefault => {
                self.session(job, "leech", Some(host))
            }
            Self::Aria2 => {
                let mut aria2 = aria2(job, &folder);
                aria2.arg("--continue=true");
                aria2.arg(format!("--on-bt-download-complete={}", finisher(&folder, &done)?));
                aria2.arg(job.torrent());
                Ok(aria2)
            }
            Self::Transmission => {
                let mut transmission = transmission(&folder, &folder)?;
                transmission.args(["-f", &finisher(&folder, &done)?]).arg(job.torrent());
                Ok(transmission)
            }
            Self::Udpcast => {
                let mut receiver = Command::new("udp-receiver");
                receiver.args(["--interface", "eth0", "--mcast-rdv-address", "224.0.0.1"]);
                receiver.args(["--nokbd", "--no-progress", "--start-timeout", "60", "--file"]);
                receiver.arg(job.target(host));
                Ok(receiver)
            }
            Self::Rsync | Self::Tar => bail!("{self:?} is for directories"),
        }
    }

    /// What the source runs.
    fn source(self, job: &Job) -> anyhow::Result<Command> {
        let folder = job.source.parent().context("the source is in a folder")?;
        match self {
            Self::Chain | Self::ChainChecked | Self::Direct => {
                let mut relay = relay(self)?;
                relay.arg("--send").arg(&job.source);
                let first = if self == Self::Direct { job.cell.receivers } else { 1 };
                relay.args((0..first).map(|host| format!("--to={}", listens(job, host))));
                Ok(relay)
            }
            Self::Libtorrent | Self::LibtorrentSuper | Self::LibtorrentDefault => {
                self.session(job, "seed", None)
            }
            Self::Aria2 => {
                let mut aria2 = aria2(job, folder);
                // It was hashed a moment ago.
                aria2.arg("--bt-seed-unverified=true").arg(job.torrent());
                Ok(aria2)
            }
            Self::Transmission => {
                let mut transmission = transmission(&job.scratch(), folder)?;
                transmission.arg(job.torrent());
                Ok(transmission)
            }
            Self::Udpcast => {
                let mut sender = Command::new("udp-sender");
                sender.args(["--interface", "eth0", "--mcast-rdv-address", "224.0.0.1"]);
                sender.args(["--nokbd", "--no-progress", "--min-receivers"]);
                sender.arg(job.cell.receivers.to_string());
                if let Some(rate) = job.cell.rate {
                    let rate = (rate as f64 * UDPCAST_SHARE) as u64;
                    sender.args(["--max-bitrate", &rate.to_string()]);
                }
                sender.arg("--file").arg(&job.source);
                Ok(sender)
            }
            Self::Rsync | Self::Tar => bail!("{self:?} is for directories"),
        }
    }

    /// libtorrent for a receiver, or for the source.
    fn session(self, job: &Job, role: &str, host: Option<usize>) -> anyhow::Result<Command> {
        let script = job.scratch().join("session.py");
        if !script.exists() {
            std::fs::write(&script, SCRIPT)?;
        }
        let source = job.source.parent().context("the source is in a folder")?;
        let (folder, at, done) = match host {
            Some(host) => (job.folder_of(host), job.receiver(host).address(), job.done(host)),
            None => (source.to_owned(), job.lab.hosts()[0].address(), job.scratch().join("none")),
        };
        let mut session = Command::new(PYTHON);
        session.arg(script).args([self.mode().context("a mode of libtorrent")?, role]);
        session.arg(at.to_string()).arg(folder).arg(job.torrent());
        session.arg(ready(job, host)).arg(done);
        Ok(session)
    }
}

fn ready(job: &Job, host: Option<usize>) -> std::path::PathBuf {
    job.scratch().join(host.map_or("ready-source".to_owned(), |host| format!("ready-{host}")))
}

fn relay(peer: Peer) -> anyhow::Result<Command> {
    let mut relay = Command::new(std::env::current_exe()?);
    relay.arg("relay-process");
    if peer == Peer::ChainChecked {
        relay.arg("--check");
    }
    Ok(relay)
}

fn listens(job: &Job, host: usize) -> SocketAddr {
    SocketAddr::from((job.receiver(host).address(), PORT))
}

fn aria2(job: &Job, folder: &Path) -> Command {
    let mut aria2 = Command::new("aria2c");
    aria2.args(["--no-conf=true", "--enable-dht=false", "--enable-dht6=false"]);
    aria2.args(["--bt-enable-lpd=false", "--disable-ipv6=true", "--seed-ratio=0.0"]);
    aria2.args(["--bt-max-peers=0", "--bt-tracker-interval=5", "--listen-port=6881"]);
    aria2.args(["--file-allocation=falloc", "--summary-interval=0", "--allow-overwrite=true"]);
    aria2.arg("--dir").arg(folder).current_dir(job.scratch());
    aria2
}

fn transmission(config: &Path, folder: &Path) -> anyhow::Result<Command> {
    let config = config.join("transmission");
    std::fs::create_dir_all(&config)?;
    let settings = r#"{ "dht-enabled": false, "lpd-enabled": false, "utp-enabled": false,
        "port-forwarding-enabled": false, "peer-port": 51413, "encryption": 0 }"#;
    std::fs::write(config.join("settings.json"), settings)?;
    let mut transmission = Command::new("transmission-cli");
    transmission.arg("-g").arg(&config).arg("-w").arg(folder).args(["-M", "-p", "51413"]);
    transmission.env("HOME", config);
    Ok(transmission)
}

/// A program that a client starts when it has the file.
fn finisher(folder: &Path, done: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("finished.sh");
    std::fs::write(&path, format!("#!/bin/sh\n: > '{}'\n", done.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path.to_str().context("a folder in UTF-8")?.to_owned())
}

/// A peer at work; its processes end with this value.
pub struct PeerCrew<'a> {
    peer: Peer,
    job: &'a Job<'a>,
    receivers: Vec<Option<Child>>,
    source: Option<Child>,
    tracker: Option<Tracker>,
    ended_at: Vec<Option<SystemTime>>,
}

impl<'a> PeerCrew<'a> {
    /// Starts what waits for a file.
    pub fn prepare(peer: Peer, job: &'a Job<'a>) -> anyhow::Result<Self> {
        let count = job.cell.receivers;
        let receivers = (0..count).map(|_| None).collect();
        let ended_at = vec![None; count];
        let mut crew = Self { peer, job, receivers, source: None, tracker: None, ended_at };
        if peer.swarm() {
            crew.tracker = Some(Tracker::start(job.lab.hub())?);
        }
        if peer.waits() {
            crew.start_receivers()?;
        }
        if peer.mode().is_some() {
            crew.start_source()?;
            let all = (0..count).map(Some).chain([None]);
            let deadline = Instant::now() + READY;
            for host in all {
                while !ready(job, host).exists() {
                    ensure!(Instant::now() < deadline, "libtorrent was not ready in time");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        } else {
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(crew)
    }

    /// Submits the file: from here on the time counts.
    pub fn submit(&mut self) -> anyhow::Result<()> {
        if let Some(tracker) = &self.tracker {
            let torrent =
                metainfo(&self.job.source, self.job.cell.piece_bytes(), &tracker.announce)?;
            let part = self.job.torrent().with_extension("part");
            std::fs::write(&part, torrent)?;
            std::fs::rename(part, self.job.torrent())?;
        }
        if self.source.is_none() {
            self.start_source()?;
        }
        if !self.peer.waits() {
            self.start_receivers()?;
        }
        Ok(())
    }

    fn start_receivers(&mut self) -> anyhow::Result<()> {
        (0..self.job.cell.receivers).try_for_each(|host| self.restart(host))
    }

    fn start_source(&mut self) -> anyhow::Result<()> {
        let mut command = self.peer.source(self.job)?;
        let host = &self.job.lab.hosts()[0];
        self.source = Some(host.spawn(self.job.logged(&mut command, "source")?)?);
        Ok(())
    }
}

impl Crew for PeerCrew<'_> {
    fn finished(&mut self, host: usize) -> Option<SystemTime> {
        if self.peer != Peer::Udpcast {
            return std::fs::metadata(self.job.done(host)).ok()?.modified().ok();
        }
        // It makes nothing but the file, and lingers after its last byte.
        if self.ended_at[host].is_none() {
            let status = self.receivers[host].as_mut()?.try_wait().ok()??;
            let whole = std::fs::metadata(self.job.target(host)).ok()?;
            let whole = (whole.len() == self.job.cell.bytes && status.success()).then_some(whole);
            self.ended_at[host] = whole.and_then(|whole| whole.modified().ok());
        }
        self.ended_at[host]
    }

    fn kill(&mut self, host: usize) {
        if let Some(mut child) = self.receivers[host].take() {
            end(&mut child);
        }
    }

    fn restart(&mut self, host: usize) -> anyhow::Result<()> {
        let mut command = self.peer.receiver(self.job, host)?;
        let name = format!("receiver-{host}");
        let child = self.job.receiver(host).spawn(self.job.logged(&mut command, &name)?);
        let program = command.get_program().to_string_lossy().into_owned();
        self.receivers[host] = Some(child.context(program)?);
        Ok(())
    }

    fn kill_source(&mut self) {
        if let Some(mut child) = self.source.take() {
            end(&mut child);
        }
    }

    fn over(&mut self) -> Option<String> {
        for host in 0..self.receivers.len() {
            // One that was killed will be back.
            let Some(child) = &mut self.receivers[host] else { return None };
            let ended = child.try_wait().ok()?.is_some();
            if !ended && self.finished(host).is_none() {
                return None;
            }
        }
        Some("every receiver has ended".to_owned())
    }

    fn roots(&self) -> Vec<u32> {
        self.receivers.iter().flatten().chain(&self.source).map(Child::id).collect()
    }
}

impl Drop for PeerCrew<'_> {
    fn drop(&mut self) {
        let children = self.receivers.iter_mut().flatten().chain(&mut self.source);
        children.for_each(end);
    }
}

/// kill -9 of a process and what it started.
fn end(child: &mut Child) {
    site::kill(&site::family(child.id()));
    let _ = child.wait();
}

impl Job<'_> {
    /// Has a command write what it says to a file of this run.
    pub fn logged<'c>(
        &self,
        command: &'c mut Command,
        name: &str,
    ) -> anyhow::Result<&'c mut Command> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.scratch().join(format!("{name}.log")))?;
        Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
    }
}
