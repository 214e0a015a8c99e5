//! Which paths of a directory are taken: include and exclude lists of globs and regular expressions.
//!
//! Patterns see a path below the source's root, without a leading slash, as bytes. A path is taken
//! if it or a directory above it is on the include list (or there is none) and neither is on the
//! exclude list, which is stronger.

use crate::engine::FileError;
use regex::bytes::{RegexSet, RegexSetBuilder};

/// Patterns of one list.
pub const PATTERNS_MAX: usize = 1_000;

/// Bytes of one pattern.
pub const PATTERN_BYTES_MAX: usize = 4_096;

/// Memory that the compiled patterns of a list may take.
const COMPILED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// `*` and `?` stand for anything but `/`, `**` for anything, `[a-z]` and `[!a-z]` for one
    /// byte, `\` makes the next character plain. Without a slash it is about names at any depth,
    /// with one about whole paths.
    Glob(String),
    /// A regular expression that is found anywhere in the path; `^` and `$` tie it to its ends.
    Regex(String),
}

impl Pattern {
    fn text(&self) -> &str {
        match self {
            Self::Glob(text) | Self::Regex(text) => text,
        }
    }

    fn to_regex(&self) -> String {
        match self {
            Self::Glob(glob) => glob_to_regex(glob),
            Self::Regex(regex) => regex.clone(),
        }
    }
}

/// An include list and an exclude list.
#[derive(Debug, Clone)]
pub struct Filter {
    include: Option<RegexSet>,
    exclude: RegexSet,
}

impl Default for Filter {
    fn default() -> Self {
        Self { include: None, exclude: RegexSet::empty() }
    }
}

impl Filter {
    /// Takes what `include` says (everything if it is empty) without what `exclude` says.
    pub fn new(include: &[Pattern], exclude: &[Pattern]) -> Result<Self, FileError> {
        let include = if include.is_empty() { None } else { Some(compile(include)?) };
        Ok(Self { include, exclude: compile(exclude)? })
    }

    /// Whether `path` is left out with everything below it.
    pub(super) fn excludes(&self, path: &[u8]) -> bool {
        self.exclude.is_match(path)
    }

    /// Whether `path` is asked for with everything below it.
    pub(super) fn includes(&self, path: &[u8]) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(path))
    }
}

fn compile(patterns: &[Pattern]) -> Result<RegexSet, FileError> {
    let refuse = |pattern: &str, why: String| FileError::Pattern { pattern: pattern.into(), why };
    if patterns.len() > PATTERNS_MAX {
        let why = format!("a list has at most {PATTERNS_MAX} patterns");
        return Err(refuse(patterns[PATTERNS_MAX].text(), why));
    }
    let mut expressions = vec![];
    for pattern in patterns {
        let text = pattern.text();
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            return Err(refuse(text, format!("it must have 1 to {PATTERN_BYTES_MAX} bytes")));
        }
        let expression = pattern.to_regex();
        // One by one, so that the error names the pattern.
        regex::bytes::RegexBuilder::new(&expression)
            .size_limit(COMPILED_BYTES_MAX)
            .build()
            .map_err(|error| refuse(text, error.to_string()))?;
        expressions.push(expression);
    }
    let last = patterns.last().map_or("", Pattern::text);
    RegexSetBuilder::new(expressions)
        .size_limit(COMPILED_BYTES_MAX)
        .build()
        .map_err(|error| refuse(last, error.to_string()))
}

fn glob_to_regex(glob: &str) -> String {
    let anchored = glob.trim_end_matches('/').contains('/');
    let glob = glob.trim_start_matches('/').trim_end_matches('/');
    // Bytes, newlines among them, not characters.
    let mut regex = String::from(if anchored { "(?s-u)^" } else { "(?s-u)(?:^|/)" });
    let mut rest = glob.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '*' if rest.next_if_eq(&'*').is_some() => {
                // `a/**/b` is also `a/b`.
                let whole = rest.next_if_eq(&'/').is_some();
                regex.push_str(if whole { "(?:.*/)?" } else { ".*" });
            }
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("[^/]"),
            '[' => {
                let (class, used) = class(rest.clone());
                regex.push_str(&class);
                rest.by_ref().take(used).for_each(drop);
            }
            '\\' => push_plain(&mut regex, rest.next().unwrap_or('\\')),
            plain => push_plain(&mut regex, plain),
        }
    }
    regex.push('$');
    regex
}

/// The class behind a `[`, and how many characters it has; a `[` that is never closed is plain.
fn class(rest: impl Iterator<Item = char>) -> (String, usize) {
    let (mut set, mut used) = (String::from("["), 0);
    for next in rest {
        used += 1;
        match next {
            ']' if used > 1 && set != "[^" => {
                // Not even a negative class is a slash.
                return (format!("[{set}]&&[^/]]"), used);
            }
            '!' | '^' if used == 1 => set.push('^'),
            '-' => set.push('-'),
            plain if plain.is_ascii_alphanumeric() => set.push(plain),
            plain if plain.is_ascii() => {
                set.push('\\');
                set.push(plain);
            }
            // More than one byte cannot be one of a class of bytes.
            _ => break,
        }
    }
    (String::from("\\["), 0)
}

fn push_plain(regex: &mut String, plain: char) {
    let mut buf = [0; 4];
    for byte in plain.encode_utf8(&mut buf).bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() => regex.push(char::from(b)),
            b => regex.push_str(&format!("\\x{b:02x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_read_as_shells_read_them() {
        type Paths = &'static [&'static [u8]];
        let cases: [(&str, Paths, Paths); 11] = [
            ("*.log", &[b"a.log", b"x/y/a.log", b"x\ny.log", b"\xff.log"], &[b"a.log2", b"log"]),
            ("a/*.c", &[b"a/x.c"], &[b"b/a/x.c", b"a/b/x.c", b"x.c"]),
            ("/top", &[b"top"], &[b"a/top"]),
            ("a/**/z", &[b"a/z", b"a/b/c/z"], &[b"a/bz"]),
            ("**/cache", &[b"cache", b"a/b/cache"], &[b"acache"]),
            ("node_modules/", &[b"node_modules", b"x/node_modules"], &[b"node_modules2"]),
            ("?x", &[b"ax", b"\xffx", b"d/bx"], &[b"x", b"abx"]),
            ("[a-c]1", &[b"a1", b"c1"], &[b"d1", b"-1"]),
            ("a[!b]c", &[b"axc", b"a]c"], &[b"abc", b"a/c"]),
            ("a+(b)$", &[b"a+(b)$"], &[b"aab"]),
            ("[x", &[b"[x"], &[b"x"]),
        ];
        for (glob, matching, others) in cases {
            let filter = Filter::new(&[], &[Pattern::Glob(glob.into())]).unwrap();
            for path in matching {
                assert!(filter.excludes(path), "{glob} is {}", path.escape_ascii());
            }
            for path in others {
                assert!(!filter.excludes(path), "{glob} is not {}", path.escape_ascii());
            }
        }
        let escaped = Filter::new(&[Pattern::Glob("\\*ü".into())], &[]).unwrap();
        assert!(escaped.includes("*ü".as_bytes()) && !escaped.includes("aü".as_bytes()));
    }

    #[test]
    fn regular_expressions_are_found_anywhere() {
        let filter = Filter::new(&[Pattern::Regex("v[0-9]+".into())], &[]).unwrap();
        assert!(filter.includes(b"lib/v12/x") && !filter.includes(b"lib/v"));
        assert!(Filter::default().includes(b"x") && !Filter::default().excludes(b"x"));
    }

    #[test]
    fn bad_patterns_are_named() {
        for text in ["(", "a{1000000}", ""] {
            let error = Filter::new(&[Pattern::Regex(text.into())], &[]).unwrap_err();
            assert!(matches!(&error, FileError::Pattern { pattern, .. } if pattern == text));
        }
        let many = vec![Pattern::Glob("x".into()); PATTERNS_MAX + 1];
        assert!(Filter::new(&[], &many).is_err());
        let long = Pattern::Glob("x".repeat(PATTERN_BYTES_MAX + 1));
        assert!(Filter::new(&[long], &[]).is_err());
    }
}
