//! Where the agent keeps its things: one folder, HOME, laid out here and nowhere else.
//!
//! What is kept in HOME belongs to the agent alone, so that no other user of the host can read its
//! identity, its spool or the output of scripts. HOME itself and `run/` may be passed through
//! (0711), because collectors of any user connect to the socket there.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where HOME is when nobody says otherwise.
pub const DEFAULT: &str = "/var/lib/skein-agent";

/// The folder of one agent and the places in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The layout under `root`; nothing is created.
    pub fn new(root: impl Into<PathBuf>) -> Home {
        Home { root: root.into() }
    }

    /// Creates HOME and its folders and answers with absolute paths.
    pub fn create(root: &Path) -> io::Result<Home> {
        dir_with_mode(root, 0o711)?;
        let home = Home::new(root.canonicalize()?);
        dir_with_mode(&home.run(), 0o711)?;
        for dir in [home.identity(), home.spool(), home.tasks(), home.transfers()] {
            private_dir(&dir)?;
        }
        Ok(home)
    }

    /// HOME itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Configuration, written by `enrol`, edited by people.
    pub fn config(&self) -> PathBuf {
        self.root.join("agent.toml")
    }
    /// Key, certificate, authorities and command keys.
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }
    /// Records that no server has acknowledged yet.
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }
    /// Journal of commands, and one folder per task.
    pub fn tasks(&self) -> PathBuf {
        self.root.join("tasks")
    }
    /// Orders and partial state of file transfers.
    pub fn transfers(&self) -> PathBuf {
        self.root.join("transfers")
    }
    /// Pid file and sockets.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
    /// Pid of the supervisor.
    pub fn pid_file(&self) -> PathBuf {
        self.run().join("agent.pid")
    }
    /// What `skein-agent status` shows, rewritten by the worker when it changes.
    pub fn status_file(&self) -> PathBuf {
        self.run().join("status.json")
    }
    /// Ports that the worker bound, for whoever configured port 0.
    pub fn ports_file(&self) -> PathBuf {
        self.run().join("ports.json")
    }
}

/// Creates `path` and its missing parents; the last folder is its owner's alone.
pub fn private_dir(path: &Path) -> io::Result<()> {
    dir_with_mode(path, 0o700)
}

fn dir_with_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Replaces `path` in one step: written aside with `mode`, flushed, renamed, folder flushed.
pub fn write_atomic(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let aside = path.with_extension(format!("tmp{}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&aside)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(&aside, path)?;
        match path.parent() {
            Some(parent) => std::fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_private_and_sockets_can_be_reached() {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::create(&temp.path().join("a/home")).unwrap();
        let mode = |dir: &Path| std::fs::metadata(dir).unwrap().permissions().mode() & 0o777;
        for dir in [home.identity(), home.spool(), home.tasks(), home.transfers()] {
            assert_eq!(mode(&dir), 0o700);
        }
        assert_eq!((mode(home.root()), mode(&home.run())), (0o711, 0o711));
    }

    #[test]
    fn an_atomic_write_leaves_no_file_aside() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x.json");
        write_atomic(&path, 0o600, b"one").unwrap();
        write_atomic(&path, 0o600, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    }
}
