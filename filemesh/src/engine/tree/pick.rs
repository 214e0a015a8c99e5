//! Which paths are sent together: as a shell passes them, or as patterns that it did not expand.
//!
//! A path stands for itself under its own name; a directory with a slash at its end stands for what
//! is in it, as rsync has it.

use super::filter::{Filter, Pattern};
use super::holes;
use crate::engine::error::{Context, FileError};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Paths that are sent together, or that one pattern stands for.
pub const PATHS_MAX: usize = 100_000;

/// One path of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picked {
    /// Where it is: absolute, and nothing on the way is a link.
    pub path: PathBuf,
    /// Its name in the tree; `None`: it is a directory whose content is taken.
    pub name: Option<Vec<u8>>,
}

impl Picked {
    /// What `given` stands for, which is really at `path`.
    pub fn new(given: &Path, path: PathBuf) -> Self {
        let text = given.as_os_str().as_bytes();
        let content = text == b"." || text.ends_with(b"/") || text.ends_with(b"/.");
        let named = given.file_name().or(path.file_name());
        let name = named.filter(|_| !content).map(|name| name.as_bytes().to_vec());
        Self { path, name }
    }

    /// What `given` stands for on this machine, links on the way followed.
    pub fn find(given: &Path) -> Result<Self, FileError> {
        let path = fs::canonicalize(given).on("find", given)?;
        Ok(Self::new(given, path))
    }
}

/// The paths that `pattern` stands for, in order of their names, as a shell finds them: `*`, `?` and
/// `[...]` within a name, `**` as a whole name for any number of directories; names that begin with
/// a dot only where the pattern does. What exists under this very name stands for itself. A pattern
/// that nothing matches is an error.
pub fn expand(pattern: &Path) -> Result<Vec<PathBuf>, FileError> {
    let text = pattern.as_os_str().as_bytes();
    if !text.iter().any(|byte| b"*?[".contains(byte)) || fs::symlink_metadata(pattern).is_ok() {
        return Ok(vec![pattern.to_path_buf()]);
    }
    let refuse =
        |why: &str| FileError::Pattern { pattern: pattern.display().to_string(), why: why.into() };
    let mut found = vec![PathBuf::new()];
    let mut components = pattern.components().peekable();
    while let Some(component) = components.next() {
        let (name, is_last) = (component.as_os_str(), components.peek().is_none());
        let mut next = vec![];
        for path in found {
            match component {
                Component::Normal(name) if name == "**" && !is_last => below(path, &mut next)?,
                Component::Normal(name) if name.as_bytes().iter().any(|b| b"*?[".contains(b)) => {
                    matching(&path, name, is_last, &mut next)?;
                }
                _ => next.push(path.join(name)),
            }
            if next.len() > PATHS_MAX {
                return Err(refuse("it matches more than 100000 paths"));
            }
        }
        found = next;
    }
    found.retain(|path| fs::symlink_metadata(path).is_ok());
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(refuse("nothing matches it"));
    }
    if text.ends_with(b"/") {
        found.iter_mut().for_each(|path| path.push(""));
    }
    Ok(found)
}

/// The entries of `dir` that `glob` matches; only directories if more follows.
fn matching(
    dir: &Path,
    glob: &OsStr,
    is_last: bool,
    found: &mut Vec<PathBuf>,
) -> Result<(), FileError> {
    let text = glob.to_str().ok_or_else(|| FileError::Pattern {
        pattern: glob.to_string_lossy().into_owned(),
        why: "wildcards stand beside UTF-8 only".into(),
    })?;
    let filter = Filter::new(&[Pattern::Glob(text.into())], &[])?;
    for name in names_in(dir) {
        let is_hidden = name.as_bytes().starts_with(b".") && !text.starts_with('.');
        let path = dir.join(&name);
        if !is_hidden && filter.includes(name.as_bytes()) && (is_last || path.is_dir()) {
            found.push(path);
        }
    }
    Ok(())
}

/// `dir` and every directory below it, not through links.
fn below(dir: PathBuf, found: &mut Vec<PathBuf>) -> Result<(), FileError> {
    let mut rest = vec![dir];
    while let Some(dir) = rest.pop() {
        for name in names_in(&dir) {
            let path = dir.join(&name);
            let is_dir = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            if is_dir && !name.as_bytes().starts_with(b".") {
                rest.push(path);
            }
        }
        found.push(dir);
        if found.len() + rest.len() > PATHS_MAX {
            break; // the caller refuses
        }
    }
    Ok(())
}

/// The names in `dir`; none if it cannot be read, as in a shell.
fn names_in(dir: &Path) -> impl Iterator<Item = std::ffi::OsString> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name())
}

/// Whether `file` is a regular file without holes that are worth leaving out: it can travel as it
/// is. Everything else travels as a tree.
pub fn is_dense_file(file: &File) -> std::io::Result<bool> {
    let metadata = file.metadata()?;
    let may_have_holes = metadata.blocks().saturating_mul(512) < metadata.len();
    Ok(metadata.is_file() && !(may_have_holes && holes::extents(file, metadata.len())?.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_find_what_a_shell_finds() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in ["logs/a.gz", "logs/b.gz", "logs/c.txt", "logs/.d.gz", "x/y/e.gz", "a[1].gz"] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), "x").unwrap();
        }
        let find = |pattern: &str| -> Result<Vec<String>, FileError> {
            let found = expand(&root.join(pattern))?;
            let text = |path: PathBuf| path.strip_prefix(root).unwrap().display().to_string();
            Ok(found.into_iter().map(text).collect())
        };
        assert_eq!(find("logs/*.gz").unwrap(), ["logs/a.gz", "logs/b.gz"]);
        assert_eq!(find("logs/.*.gz").unwrap(), ["logs/.d.gz"]);
        assert_eq!(find("*/[ab].gz").unwrap(), ["logs/a.gz", "logs/b.gz"]);
        let all = ["a[1].gz", "logs/a.gz", "logs/b.gz", "x/y/e.gz"];
        assert_eq!(find("**/*.gz").unwrap(), all);
        assert_eq!(find("*/y/e.gz").unwrap(), ["x/y/e.gz"]);
        assert_eq!(find("a[1].gz").unwrap(), ["a[1].gz"], "what exists stands for itself");
        assert_eq!(find("plain").unwrap(), ["plain"], "whoever opens it says that it is missing");
        assert!(find("*.zip").unwrap_err().to_string().contains("nothing matches"));
        let inside = expand(&root.join("l*/")).unwrap();
        assert_eq!(Picked::find(&inside[0]).unwrap().name, None);
    }

    #[test]
    fn a_slash_at_the_end_means_the_content() {
        let named = |given: &str| {
            let picked = Picked::new(Path::new(given), "/srv/release".into());
            picked.name.map(|name| String::from_utf8(name).unwrap())
        };
        assert_eq!(named("release").as_deref(), Some("release"));
        assert_eq!(named("./link").as_deref(), Some("link"));
        assert_eq!(named("..").as_deref(), Some("release"));
        assert_eq!([named("release/"), named("."), named("release/.")], [None, None, None]);
    }
}
