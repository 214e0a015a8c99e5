//! Patterns of paths: `*` and `?` within one component.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Entries looked at in one folder, and paths found for one pattern.
const ENTRIES_MAX: usize = 65_536;

/// Whether the component has wildcards.
pub fn is_pattern(component: &OsStr) -> bool {
    component.as_bytes().iter().any(|byte| matches!(byte, b'*' | b'?'))
}

/// Whether `name` matches `pattern`; a leading dot must be written out.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    // Greedy with one place to come back to: linear in practice, never exponential.
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The existing paths that a pattern names, sorted. A path without wildcards names itself.
pub fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for component in pattern.components().skip(1) {
        let component = component.as_os_str();
        if !is_pattern(component) {
            found.iter_mut().for_each(|path| path.push(component));
            continue;
        }
        let mut next = Vec::new();
        for folder in &found {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
            next.extend(
                names
                    .take(ENTRIES_MAX)
                    .filter(|name| matches(component.as_bytes(), name.as_bytes()))
                    .map(|name| folder.join(name)),
            );
        }
        next.sort();
        next.truncate(ENTRIES_MAX);
        found = next;
    }
    found.retain(|path| path.exists());
    found
}

/// The folders in which files of the pattern lie.
pub fn folders(pattern: &Path) -> Vec<PathBuf> {
    pattern.parent().map(expand).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_within_a_name() {
        for (pattern, name, expected) in [
            ("*.log", "a.log", true),
            ("*.log", ".log", false),
            ("*.log", ".a.log", false),
            (".*.log", ".a.log", true),
            ("a?c*", "abcdef", true),
            ("a?c*", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("**", "any", true),
            ("", "", true),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("*aaaaaaaaaaaaaaaaaaab", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_name_existing_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/x.log", "b/x.log", "b/y.log", "b/y.txt"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = |pattern: &str| {
            let paths = expand(&dir.path().join(pattern));
            let names = paths.iter().map(|path| path.strip_prefix(dir.path()).unwrap());
            names.map(|name| name.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found("b/y.log"), ["b/y.log"]);
        assert_eq!(found("*/x.log"), ["a/x.log", "b/x.log"]);
        assert_eq!(found("b/*.log"), ["b/x.log", "b/y.log"]);
        assert!(found("c/*").is_empty() && found("b/z.log").is_empty());
        assert_eq!(folders(&dir.path().join("b/*.log")), [dir.path().join("b")]);
    }
}
