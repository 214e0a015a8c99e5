//! A directory of many small files, and the two programs that operators send one with: rsync's
//! daemon on the receiver (`-a`, whole files, no compression), and `tar` into a TCP connection that
//! `tar` reads at the other end. The attributes that all of them carry are compared afterwards.

use std::fs::{File, Permissions};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};

use super::drive::{Crew, Job};
use super::peer::Peer;
use crate::content::{sha256_of, write_noise};
use crate::site::{family, kill};

/// Files of one folder.
const FOLDER_FILES: u64 = 100;
/// Where rsync's daemons listen.
const RSYNC_PORT: u16 = 8730;
/// Where a receiving `tar` gets its connection.
const TAR_PORT: u16 = 8731;
/// For a daemon to listen.
const READY: Duration = Duration::from_secs(20);
/// Of the files: a moment that is not now, and neither full seconds of all programs nor the same
/// for all files.
const OLDEST: Duration = Duration::from_secs(1_600_000_000);

/// Makes a directory of `files` files that together have `bytes`, in folders of 100, with different
/// permissions and times.
pub fn write_tree(folder: &Path, files: u64, bytes: u64, seed: u64) -> anyhow::Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    for number in 0..files {
        let below = folder.join(format!("folder-{:04}", number / FOLDER_FILES));
        if number % FOLDER_FILES == 0 {
            std::fs::create_dir_all(&below)?;
        }
        let path = below.join(format!("file-{number:06}"));
        write_noise(&path, bytes / files, seed.wrapping_mul(1 << 20).wrapping_add(number))?;
        let mode = [0o644, 0o640, 0o755, 0o600][number as usize % 4];
        std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
        let at = SystemTime::UNIX_EPOCH + OLDEST + Duration::from_secs(number);
        File::options().write(true).open(&path)?.set_modified(at)?;
    }
    Ok(())
}

/// Proves that `copy` has every file of `source` with its content, permissions, owner and time.
pub fn compare(source: &Path, copy: &Path) -> anyhow::Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let names = |root: &Path| -> anyhow::Result<Vec<_>> {
            let folder = root.join(&below);
            let entries =
                std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
            let mut names =
                entries.map(|entry| Ok(entry?.file_name())).collect::<anyhow::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        let expected = names(source)?;
        ensure!(names(copy)? == expected, "other names in {}", copy.join(&below).display());
        for name in expected {
            let (from, to) = (source.join(&below).join(&name), copy.join(&below).join(&name));
            let metas = [&from, &to].map(std::fs::symlink_metadata);
            let [from_meta, to_meta] = metas;
            let (from_meta, to_meta) = (from_meta?, to_meta?);
            if from_meta.is_dir() {
                folders.push(below.join(&name));
                continue;
            }
            let seen =
                |meta: &std::fs::Metadata| (meta.mode(), meta.uid(), meta.gid(), meta.mtime());
            ensure!(seen(&to_meta) == seen(&from_meta), "other attributes: {}", to.display());
            ensure!(sha256_of(&to)? == sha256_of(&from)?, "another content: {}", to.display());
        }
    }
    Ok(())
}

/// Where a receiver's copy of the directory is: below its folder, or that folder itself.
pub fn copy_of(job: &Job, host: usize) -> PathBuf {
    let named = job.target(host);
    if named.is_dir() { named } else { job.folder_of(host) }
}

/// rsync or tar at work; its processes end with this value.
pub struct TreeCrew<'a> {
    peer: Peer,
    job: &'a Job<'a>,
    /// What waits at the receivers.
    waiting: Vec<Child>,
    listeners: Vec<TcpListener>,
    /// What ends when a receiver has everything.
    working: Vec<Child>,
    /// The other ends.
    sending: Vec<Child>,
    ended: Vec<Option<SystemTime>>,
    failed: Option<String>,
}

impl<'a> TreeCrew<'a> {
    /// Starts what waits for a directory.
    pub fn prepare(peer: Peer, job: &'a Job<'a>) -> anyhow::Result<Self> {
        let ended = vec![None; job.cell.receivers];
        let (waiting, working, sending) = (Vec::new(), Vec::new(), Vec::new());
        let listeners = Vec::new();
        let mut crew =
            Self { peer, job, waiting, listeners, working, sending, ended, failed: None };
        for host in 0..job.cell.receivers {
            let at = |port| SocketAddr::from((job.receiver(host).address(), port));
            match peer {
                Peer::Rsync => {
                    let daemon = crew.daemon(host)?;
                    crew.waiting.push(daemon);
                    let deadline = Instant::now() + READY;
                    let knock = || TcpStream::connect_timeout(&at(RSYNC_PORT), READY);
                    while job.lab.hosts()[0].within(knock)?.is_err() {
                        ensure!(Instant::now() < deadline, "rsync's daemon was not ready in time");
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                _ => {
                    let listener =
                        job.receiver(host).within(|| TcpListener::bind(at(TAR_PORT)))??;
                    crew.listeners.push(listener);
                }
            }
        }
        Ok(crew)
    }

    fn daemon(&self, host: usize) -> anyhow::Result<Child> {
        let folder = self.job.folder_of(host);
        let config = self.job.scratch().join(format!("rsyncd-{host}.conf"));
        let pid = config.with_extension("pid");
        let text = format!(
            "pid file = {}\nuse chroot = no\nuid = 0\ngid = 0\nreverse lookup = no\n\
             [in]\npath = {}\nread only = no\n",
            pid.display(),
            folder.display()
        );
        std::fs::write(&config, text)?;
        let mut rsync = Command::new("rsync");
        rsync.args(["--daemon", "--no-detach", "--port", &RSYNC_PORT.to_string(), "--config"]);
        rsync.arg(config);
        let name = format!("rsyncd-{host}");
        let child = self.job.receiver(host).spawn(self.job.logged(&mut rsync, &name)?);
        child.context("rsync is missing: run scripts/bootstrap.sh mesh")
    }

    /// Submits the directory: from here on the time counts.
    pub fn submit(&mut self) -> anyhow::Result<()> {
        (0..self.job.cell.receivers).try_for_each(|host| match self.peer {
            Peer::Rsync => self.rsync(host),
            _ => self.tar(host),
        })
    }

    fn rsync(&mut self, host: usize) -> anyhow::Result<()> {
        let address = self.job.receiver(host).address();
        let mut rsync = Command::new("rsync");
        rsync.args(["-a", "--whole-file"]).arg(format!("{}/", self.job.source.display()));
        rsync.arg(format!("rsync://{address}:{RSYNC_PORT}/in/"));
        let rsync = self.job.logged(&mut rsync, &format!("rsync-{host}"))?;
        self.working.push(self.job.lab.hosts()[0].spawn(rsync)?);
        Ok(())
    }

    fn tar(&mut self, host: usize) -> anyhow::Result<()> {
        let source = &self.job.lab.hosts()[0];
        let listener = &self.listeners[host];
        let address = listener.local_addr()?;
        let out = source.within(|| TcpStream::connect(address))??;
        let (into, _) = listener.accept()?;
        let mut send = Command::new("tar");
        send.arg("-C").arg(&self.job.source).args(["-cf", "-", "."]);
        let send = self.job.logged(&mut send, &format!("tar-send-{host}"))?;
        self.sending.push(source.spawn(send.stdout(OwnedFd::from(out)))?);
        // A command keeps its end of the connection open as long as it lives.
        let mut receive = Command::new("tar");
        receive.arg("-C").arg(self.job.folder_of(host)).args(["-Bxpf", "-"]);
        let receive = self.job.logged(&mut receive, &format!("tar-{host}"))?;
        let receive = receive.stdin(Stdio::from(OwnedFd::from(into)));
        self.working.push(self.job.receiver(host).spawn(receive)?);
        Ok(())
    }
}

impl Crew for TreeCrew<'_> {
    fn finished(&mut self, host: usize) -> Option<SystemTime> {
        if self.ended[host].is_none() {
            let status = self.working.get_mut(host)?.try_wait().ok()??;
            if status.success() {
                self.ended[host] = Some(SystemTime::now());
            } else {
                self.failed.get_or_insert(format!("it ended with {status}"));
            }
        }
        self.ended[host]
    }

    fn kill(&mut self, _: usize) {}

    fn restart(&mut self, _: usize) -> anyhow::Result<()> {
        anyhow::bail!("a directory is not sent with faults")
    }

    fn kill_source(&mut self) {}

    fn over(&mut self) -> Option<String> {
        self.failed.clone()
    }

    fn roots(&self) -> Vec<u32> {
        let all = self.waiting.iter().chain(&self.working).chain(&self.sending);
        all.map(Child::id).collect()
    }
}

impl Drop for TreeCrew<'_> {
    fn drop(&mut self) {
        for child in self.waiting.iter_mut().chain(&mut self.working).chain(&mut self.sending) {
            if matches!(child.try_wait(), Ok(None)) {
                kill(&family(child.id()));
            }
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_compared_to_its_last_attribute() {
        let folder = tempfile::tempdir().unwrap();
        let [source, copy] = ["source", "copy"].map(|name| folder.path().join(name));
        write_tree(&source, 250, 250 * 10, 1).unwrap();
        assert_eq!(std::fs::read_dir(&source).unwrap().count(), 3);
        let status = Command::new("cp").arg("-a").args([&source, &copy]).status().unwrap();
        assert!(status.success());
        compare(&source, &copy).unwrap();
        let file = copy.join("folder-0001/file-000123");
        let spoil = |work: &dyn Fn()| {
            let old = (std::fs::metadata(&file).unwrap(), std::fs::read(&file).unwrap());
            work();
            assert!(compare(&source, &copy).is_err());
            std::fs::write(&file, &old.1).unwrap();
            std::fs::set_permissions(&file, old.0.permissions()).unwrap();
            let opened = File::options().write(true).open(&file).unwrap();
            opened.set_modified(old.0.modified().unwrap()).unwrap();
            compare(&source, &copy).unwrap();
        };
        let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
        spoil(&|| {
            std::fs::write(&file, [0; 10]).unwrap();
            File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        });
        spoil(&|| std::fs::set_permissions(&file, Permissions::from_mode(0o777)).unwrap());
        spoil(&|| {
            let opened = File::options().write(true).open(&file).unwrap();
            opened.set_modified(SystemTime::now()).unwrap();
        });
        std::fs::write(copy.join("folder-0000/more"), "").unwrap();
        assert!(compare(&source, &copy).is_err());
    }
}
