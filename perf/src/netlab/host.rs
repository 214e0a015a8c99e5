//! One host of a lab: processes in its namespace, and what its link has carried.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;

use anyhow::Context;

/// A host, by its namespaces.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    network: Arc<File>,
    address: Ipv4Addr,
    /// The folder that its processes see as another.
    own: Option<Own>,
}

#[derive(Debug, Clone)]
struct Own {
    folder: PathBuf,
    seen_as: PathBuf,
}

/// Bytes that a host's link has carried, as the kernel counts them: with headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// To the host.
    pub received: u64,
    /// From it.
    pub sent: u64,
}

impl Host {
    pub(super) fn open(
        namespace: &str,
        number: Option<usize>,
        folder: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let path = Path::new("/run/netns").join(namespace);
        let network = File::open(&path).with_context(|| format!("{}", path.display()))?;
        let own = match (folder, number) {
            (Some(folder), Some(number)) => {
                let own = Own {
                    folder: folder.join(format!("hosts/{number:03}")),
                    seen_as: folder.join("here"),
                };
                std::fs::create_dir_all(&own.folder)?;
                std::fs::create_dir_all(&own.seen_as)?;
                Some(own)
            }
            _ => None,
        };
        let namespace = namespace.to_owned();
        Ok(Self { namespace, network: Arc::new(network), address: Self::address_of(number), own })
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its address on the bridge.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Runs `work` on a thread of its own in the host's network: sockets made there stay there,
    /// and so do processes.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.thread(|| {
            enter_network(&self.network)?;
            Ok(work())
        })
    }

    /// Starts a process on the host.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.thread(|| {
            enter_network(&self.network)?;
            if let Some(Own { folder, seen_as }) = &self.own {
                see(folder, seen_as)?;
            }
            command.spawn()
        })
    }

    /// Runs a process on the host to its end.
    pub fn output(&self, command: &mut Command) -> io::Result<Output> {
        use std::process::Stdio;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command)?.wait_with_output()
    }

    /// What its link has carried so far.
    pub fn carried(&self) -> anyhow::Result<Carried> {
        self.carried_by("eth0")?.context("no eth0")
    }

    /// The same of another device, if there is one of this name.
    pub fn carried_by(&self, device: &str) -> anyhow::Result<Option<Carried>> {
        let text = self.within(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        Ok(carried(&text, device))
    }

    fn thread<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(self.namespace.clone());
            let handle = thread.spawn_scoped(scope, work)?;
            handle.join().map_err(|_| io::Error::other("a thread of a lab's host panicked"))?
        })
    }
}

/// Received and sent bytes of a device in the text of /proc/net/dev.
fn carried(text: &str, device: &str) -> Option<Carried> {
    let of_device = |line| str::strip_prefix(line, device)?.strip_prefix(':');
    let line = text.lines().find_map(|line| of_device(line.trim_start()))?;
    let mut fields = line.split_ascii_whitespace().map(str::parse);
    Some(Carried { received: fields.next()?.ok()?, sent: fields.nth(7)?.ok()? })
}

/// Moves the calling thread into a network namespace.
#[allow(unsafe_code)]
fn enter_network(namespace: &File) -> io::Result<()> {
    // SAFETY: a system call on an open descriptor; it touches no memory of ours.
    succeeded(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Gives the calling thread mounts of its own, in which `seen_as` is `folder`.
#[allow(unsafe_code)]
fn see(folder: &Path, seen_as: &Path) -> io::Result<()> {
    let text = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes());
    let (folder, seen_as) = (text(folder)?, text(seen_as)?);
    let mount = |source: Option<&std::ffi::CStr>, target: &std::ffi::CStr, flags| {
        let source = source.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
        let none = std::ptr::null();
        // SAFETY: the strings end with NUL and outlive the call; the other pointers may be null.
        succeeded(unsafe { libc::mount(source, target.as_ptr(), none, flags, none.cast()) })
    };
    // SAFETY: a system call without pointers; it concerns the calling thread, which ends soon.
    succeeded(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(None, c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(Some(&folder), &seen_as, libc::MS_BIND)
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_of_the_link() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame \
                    compressed multicast|bytes packets\n    lo:  9 9 9 9 9 9 9 9 9 9\n  \
                    eth0: 100 2 0 0 0 0 0 0 700 5 0 0 0 0 0 0\n";
        assert_eq!(carried(text, "eth0"), Some(Carried { received: 100, sent: 700 }));
        assert_eq!(carried("    lo: 9 9 9 9 9 9 9 9 9 9\n", "eth0"), None);
        assert_eq!(carried("  eth0: 100 2\n", "eth0"), None);
        assert_eq!(carried("  border1: 1 2 3 4 5 6 7 8 9\n", "border"), None, "another's name");
    }
}
