//! Which files of the host may be read and written on the server's behalf, and how they are opened
//! so that the answer cannot change between the question and the use.
//!
//! A path is walked from `/` through open directories ([`Dir`]). A symlink on the way is followed
//! only if root or the agent's own user made it, because anybody else's could point where its maker
//! may not go; at most [`LINKS_MAX`] of them. The rules are then asked about the path that was
//! really walked, so `/var/run/x` is judged as `/run/x`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::config::PathsConfig;
use crate::sys::dir::Dir;
use crate::sys::user::effective_uid;

/// Symlinks followed in one walk, as many as Linux follows.
pub const LINKS_MAX: usize = 40;
/// Longest path taken from outside.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest file name on Linux.
pub const NAME_BYTES_MAX: usize = 255;

/// Never read or written, unless a longer rule of the configuration allows it.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Secrets of the host.
const SECRETS: [&str; 3] = ["/etc/shadow", "/etc/gshadow", "/etc/sudoers"];

/// What is wrong with a path.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Relative, too long, or with a NUL.
    #[error("{0:?} is not an absolute path of at most {PATH_BYTES_MAX} bytes")]
    NotAbsolute(String),
    /// `..` in a path from outside.
    #[error("{0:?} contains \"..\"; name the folder itself")]
    Parent(String),
    /// A file name that is a path, or special.
    #[error("{0:?} is not a file name")]
    Name(String),
    /// The rules say no.
    #[error("{} is not allowed by the agent's path rules ({rule}); see [paths] in agent.toml", .path.display())]
    Denied {
        /// The path after symlinks.
        path: PathBuf,
        /// The rule that decided.
        rule: String,
    },
    /// A symlink of somebody who may not redirect us.
    #[error("{} is a symlink made by user {uid}; only root's and the agent's own are followed", .path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Too many symlinks.
    #[error("{} leads through more than {LINKS_MAX} symlinks", .0.display())]
    Loop(PathBuf),
    /// A folder or file is missing or cannot be opened.
    #[error("{}: {source}", .path.display())]
    Open {
        /// Where the walk stood.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
}

impl From<PathError> for io::Error {
    /// Keeps the kind, so that "not found" stays that.
    fn from(error: PathError) -> io::Error {
        let kind = match &error {
            PathError::Open { source, .. } => source.kind(),
            PathError::Denied { .. } | PathError::Link { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

/// What somebody wants to do with a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Tail it or offer it to others.
    Read,
    /// Put a pushed file there.
    Write,
}

/// The rules of this agent.
#[derive(Clone, Debug)]
pub struct PathRules {
    read: Rules,
    write: Rules,
}

#[derive(Clone, Debug, Default)]
struct Rules {
    allow: Vec<PathBuf>,
    deny: Vec<PathBuf>,
}

/// An open folder and the path that it really has.
#[derive(Debug)]
pub struct Folder {
    /// The folder.
    pub dir: Dir,
    /// Its path after symlinks.
    pub path: PathBuf,
}

impl PathRules {
    /// The rules of a configuration, and those that always hold: HOME, the kernel's file systems
    /// and the host's secrets are not for others.
    pub fn new(config: &PathsConfig, home: &Path) -> PathRules {
        let home = home.canonicalize().unwrap_or_else(|_| home.to_owned());
        let always = KERNEL.iter().chain(&SECRETS).map(PathBuf::from).chain([home]);
        let always: Vec<PathBuf> = always.collect();
        let rules = |allow: &[PathBuf], deny: &[PathBuf]| Rules {
            allow: match allow {
                [] => vec![PathBuf::from("/")],
                some => some.to_vec(),
            },
            deny: always.iter().chain(deny).cloned().collect(),
        };
        PathRules {
            read: rules(&config.read_allow, &config.read_deny),
            write: rules(&config.write_allow, &config.write_deny),
        }
    }

    /// Asks the rules about a path without symlinks.
    pub fn check(&self, access: Access, path: &Path) -> Result<(), PathError> {
        let rules = if access == Access::Read { &self.read } else { &self.write };
        let longest = |list: &[PathBuf]| {
            list.iter()
                .filter(|rule| path.starts_with(rule))
                .map(|rule| rule.as_os_str().len())
                .max()
        };
        let denied = |rule: String| PathError::Denied { path: path.to_owned(), rule };
        match (longest(&rules.allow), longest(&rules.deny)) {
            (None, _) => Err(denied("not below an allowed folder".into())),
            (Some(allow), Some(deny)) if deny >= allow => {
                let rule = rules
                    .deny
                    .iter()
                    .find(|rule| rule.as_os_str().len() == deny && path.starts_with(rule));
                Err(denied(format!(
                    "{} is denied",
                    rule.map_or("".into(), |r| r.display().to_string())
                )))
            }
            _ => Ok(()),
        }
    }

    /// Opens the folder `path`; with `create`, folders that are missing are made (0755).
    pub fn open_folder(
        &self,
        access: Access,
        path: &str,
        create: bool,
    ) -> Result<Folder, PathError> {
        let path = outside_path(path)?;
        let (folder, rest) = self.walk(access, path, create, false)?;
        debug_assert!(rest.is_none());
        self.check(access, &folder.path)?;
        Ok(folder)
    }

    /// Opens a regular file for reading, and says the path that it really has.
    pub fn open_file(&self, path: &str) -> Result<(File, PathBuf), PathError> {
        let (folder, name) = self.walk(Access::Read, outside_path(path)?, false, true)?;
        let name = name.ok_or_else(|| PathError::Name(path.to_owned()))?;
        let real = folder.path.join(&name);
        self.check(Access::Read, &real)?;
        let file = folder.dir.open_file(&name);
        let file = file.map_err(|source| PathError::Open { path: real.clone(), source })?;
        Ok((file, real))
    }

    /// Walks to a folder, or with `to_file` to the folder that holds the last component, whose
    /// symlinks are resolved too.
    fn walk(
        &self,
        access: Access,
        path: &Path,
        create: bool,
        to_file: bool,
    ) -> Result<(Folder, Option<OsString>), PathError> {
        let mut walk = Walk::new(path)?;
        while let Some(name) = walk.rest.pop_front() {
            if name == OsStr::new("..") {
                walk.ascend()?;
                continue;
            }
            let last = to_file && walk.rest.is_empty();
            let stat = match walk.dir.stat(&name) {
                Ok(stat) => stat,
                Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                    // Asked before the first folder is made, not after.
                    self.check(access, &walk.path.join(&name))?;
                    walk.make(&name)?;
                    continue;
                }
                Err(source) => return Err(walk.failed(&name, source)),
            };
            if stat.is_link() {
                walk.follow(&name, stat.uid)?;
            } else if last {
                return Ok((Folder { dir: walk.dir, path: walk.path }, Some(name)));
            } else {
                walk.descend(&name)?;
            }
        }
        Ok((Folder { dir: walk.dir, path: walk.path }, None))
    }
}

struct Walk {
    dir: Dir,
    path: PathBuf,
    rest: VecDeque<OsString>,
    links: usize,
}

impl Walk {
    fn new(path: &Path) -> Result<Walk, PathError> {
        let root = PathBuf::from("/");
        let dir = Dir::root().map_err(|source| PathError::Open { path: root.clone(), source })?;
        Ok(Walk { dir, path: root, rest: components(path), links: 0 })
    }

    fn failed(&self, name: &OsStr, source: io::Error) -> PathError {
        PathError::Open { path: self.path.join(name), source }
    }

    fn descend(&mut self, name: &OsStr) -> Result<(), PathError> {
        self.dir = self.dir.open_dir(name).map_err(|source| self.failed(name, source))?;
        self.path.push(name);
        Ok(())
    }

    /// Only a symlink's target has `..`; it means the folder's real parent.
    fn ascend(&mut self) -> Result<(), PathError> {
        let name = OsStr::new("..");
        self.dir = self.dir.open_dir(name).map_err(|source| self.failed(name, source))?;
        self.path.pop();
        Ok(())
    }

    fn make(&mut self, name: &OsStr) -> Result<(), PathError> {
        match self.dir.make_dir(name, 0o755) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(self.failed(name, source)),
        }
        self.descend(name)
    }

    fn follow(&mut self, name: &OsStr, uid: u32) -> Result<(), PathError> {
        let path = self.path.join(name);
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(PathError::Loop(path));
        }
        if uid != 0 && uid != effective_uid() {
            return Err(PathError::Link { path, uid });
        }
        let target = self.dir.read_link(name).map_err(|source| self.failed(name, source))?;
        if target.is_absolute() {
            let root = Dir::root();
            self.dir = root.map_err(|source| PathError::Open { path: "/".into(), source })?;
            self.path = PathBuf::from("/");
        }
        let mut rest = components(&target);
        rest.append(&mut self.rest);
        self.rest = rest;
        Ok(())
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    let named = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    named.collect()
}

/// A path as it may come from outside: absolute, not too long, without NUL and `..`.
fn outside_path(text: &str) -> Result<&Path, PathError> {
    let path = Path::new(text);
    if !path.is_absolute() || text.len() > PATH_BYTES_MAX || text.contains('\0') {
        return Err(PathError::NotAbsolute(shown(text)));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(PathError::Parent(shown(text)));
    }
    Ok(path)
}

/// A file name as it may come from outside: one component that names a file.
pub fn file_name(text: &str) -> Result<&OsStr, PathError> {
    let bad = text.is_empty()
        || text.len() > NAME_BYTES_MAX
        || text == "."
        || text == ".."
        || text.contains(['/', '\0']);
    if bad { Err(PathError::Name(shown(text))) } else { Ok(OsStr::from_bytes(text.as_bytes())) }
}

/// A hostile name, short enough for a message.
fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(config: PathsConfig) -> PathRules {
        PathRules::new(&config, Path::new("/var/lib/skein-agent"))
    }

    fn temp() -> (tempfile::TempDir, String) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().canonicalize().unwrap();
        (temp, path.to_str().unwrap().to_owned())
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(256);
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", &long] {
            assert!(file_name(name).is_err(), "{name:?}");
        }
        for name in ["a", "...", "a b", "-rf", "ü", "a\\b"] {
            assert!(file_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn hostile_folders_are_refused() {
        let rules = rules(PathsConfig::default());
        let long = format!("/{}", "x".repeat(PATH_BYTES_MAX));
        for path in ["", "etc", "/tmp/../etc", "/tmp/a\0", "../..", &long] {
            let refused = rules.open_folder(Access::Write, path, true).unwrap_err();
            assert!(
                matches!(refused, PathError::NotAbsolute(_) | PathError::Parent(_)),
                "{path:?}"
            );
        }
    }

    #[test]
    fn the_kernel_the_agent_and_secrets_are_protected() {
        let rules = rules(PathsConfig::default());
        for path in ["/proc/1", "/sys", "/dev/sda", "/var/lib/skein-agent/identity", "/etc/shadow"]
        {
            for access in [Access::Read, Access::Write] {
                assert!(rules.check(access, Path::new(path)).is_err(), "{path}");
            }
        }
        for path in ["/etc/shadow.d", "/process", "/var/lib/skein-agent2", "/tmp"] {
            assert!(rules.check(Access::Write, Path::new(path)).is_ok(), "{path}");
        }
    }

    #[test]
    fn the_longest_rule_decides() {
        let rules = rules(PathsConfig {
            write_allow: vec!["/data".into(), "/data/secret/open".into()],
            write_deny: vec!["/data/secret".into()],
            ..PathsConfig::default()
        });
        let may = |path: &str| rules.check(Access::Write, Path::new(path)).is_ok();
        assert!(may("/data/x") && may("/data/secret/open/x"));
        assert!(!may("/data/secret/x") && !may("/etc") && !may("/database"));
        assert!(rules.check(Access::Read, Path::new("/etc/hosts")).is_ok());
    }

    #[test]
    fn own_symlinks_are_followed_and_judged_by_their_target() {
        let (_guard, root) = temp();
        let denied = format!("{root}/denied");
        for folder in ["real", "denied"] {
            std::fs::create_dir(format!("{root}/{folder}")).unwrap();
        }
        std::os::unix::fs::symlink("real", format!("{root}/relative")).unwrap();
        std::os::unix::fs::symlink("../denied", format!("{root}/real/up")).unwrap();
        std::os::unix::fs::symlink("loop", format!("{root}/loop")).unwrap();
        let config = PathsConfig { write_deny: vec![denied.into()], ..PathsConfig::default() };
        let rules = rules(config);
        let open = |path: &str| rules.open_folder(Access::Write, &format!("{root}/{path}"), false);
        assert_eq!(open("relative").unwrap().path, Path::new(&root).join("real"));
        assert!(matches!(open("relative/up"), Err(PathError::Denied { .. })));
        assert!(matches!(open("loop"), Err(PathError::Loop(_))));
        assert!(matches!(open("absent"), Err(PathError::Open { .. })));
    }

    #[test]
    fn folders_are_made_only_where_allowed() {
        let (_guard, root) = temp();
        let config =
            PathsConfig { write_deny: vec![format!("{root}/no").into()], ..PathsConfig::default() };
        let rules = rules(config);
        let made = rules.open_folder(Access::Write, &format!("{root}/a/b/c"), true).unwrap();
        assert_eq!(made.path, Path::new(&root).join("a/b/c"));
        assert!(rules.open_folder(Access::Write, &format!("{root}/no/b"), true).is_err());
        assert!(!Path::new(&root).join("no").exists());
    }

    #[test]
    fn a_strangers_symlink_is_not_followed() {
        if effective_uid() != 0 {
            return;
        }
        let (_guard, root) = temp();
        let link = format!("{root}/link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65534), Some(65534)).unwrap();
        let rules = rules(PathsConfig::default());
        let opened = rules.open_folder(Access::Write, &link, false);
        assert!(matches!(opened, Err(PathError::Link { uid: 65534, .. })));
        assert!(matches!(
            rules.open_file(&format!("{link}/hostname")),
            Err(PathError::Link { .. })
        ));
    }

    #[test]
    fn files_are_opened_for_reading_through_their_links() {
        let (_guard, root) = temp();
        std::fs::write(format!("{root}/file"), "x").unwrap();
        std::os::unix::fs::symlink("file", format!("{root}/link")).unwrap();
        let rules = rules(PathsConfig::default());
        let (_, real) = rules.open_file(&format!("{root}/link")).unwrap();
        assert_eq!(real, Path::new(&root).join("file"));
        assert!(rules.open_file(&root).is_err());
        assert!(rules.open_file("/etc/shadow").is_err());
        assert!(rules.open_file("/dev/zero").is_err());
    }
}
