//! Where a stream's records go below its directory.
//!
//! A template is a relative path with the placeholders `{data_id}`, `{date}`, `{hour}`,
//! `{writer}` and `{stream}`. It is parsed once per routing table and rendered when a file is
//! opened. Invariants: no rendering leaves the stream's directory (no `..`, no absolute path, no
//! separator from a name), and two writers never render the same path: a template that does not
//! name `{writer}` gets it before its extension.

use skein_wire::ids::DataId;

/// Characters of a template; leaves room for rendering within [`PATH_BYTES_MAX`].
pub const TEMPLATE_BYTES_MAX: usize = 512;

/// Bytes of a rendered path below the directory. Linux takes 4,096 for a whole path.
pub const PATH_BYTES_MAX: usize = 2_048;

/// Bytes of one component: Linux takes 255, and a rotation number is added to the last.
const COMPONENT_BYTES_MAX: usize = 200;

/// Folders that a template may nest.
const DEPTH_MAX: usize = 16;

/// Why a template is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing, or more than [`TEMPLATE_BYTES_MAX`].
    #[error("path template has {0} bytes; give 1 to {TEMPLATE_BYTES_MAX}")]
    Length(usize),
    /// A character that paths should not have.
    #[error("path template has the character {0:?}; use letters, digits and . _ - + = @ , /")]
    Character(char),
    /// Not one of ours.
    #[error(
        "path template has the unknown part {{{0}}}; known are data_id, date, hour, writer, stream"
    )]
    Unknown(String),
    /// `{` without `}`.
    #[error("path template has an open {{")]
    Open,
    /// An empty component, or one of dots alone.
    #[error("path template has the component {0:?}; it must stay below the stream's directory")]
    Component(String),
    /// Too many folders.
    #[error("path template has {0} levels; the bound is {DEPTH_MAX}")]
    Depth(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    DataId,
    Date,
    Hour,
    Writer,
    Stream,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// What the placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// Of the records.
    pub data_id: DataId,
    /// Of the stream.
    pub stream: &'a str,
    /// Number of the router worker that writes.
    pub writer: usize,
    /// Wall clock, ms since 1970; dates are UTC.
    pub wall_ms: u64,
}

impl Template {
    /// Parses and checks `text`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() || text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::Length(text.len()));
        }
        check_components(text)?;
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (plain, tail) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            if let Some(bad) = plain.chars().find(|char| !is_path_char(*char)) {
                return Err(TemplateError::Character(bad));
            }
            if !plain.is_empty() {
                parts.push(Part::Text(plain.to_owned()));
            }
            rest = tail;
            if let Some(open) = tail.strip_prefix('{') {
                let (name, after) = open.split_once('}').ok_or(TemplateError::Open)?;
                parts.push(Part::named(name)?);
                rest = after;
            }
        }
        if !parts.contains(&Part::Writer) {
            insert_writer(&mut parts);
        }
        Ok(Self { parts })
    }

    /// Whether each data id has files of its own.
    pub fn by_data_id(&self) -> bool {
        self.parts.contains(&Part::DataId)
    }

    /// Until when a path rendered at `wall_ms` stays the same, ms since 1970.
    pub fn valid_until_ms(&self, wall_ms: u64) -> u64 {
        let period_ms = if self.parts.contains(&Part::Hour) {
            3_600_000
        } else if self.parts.contains(&Part::Date) {
            86_400_000
        } else {
            return u64::MAX;
        };
        (wall_ms / period_ms + 1) * period_ms
    }

    /// The path below the stream's directory.
    pub fn render(&self, names: &Names<'_>) -> String {
        let mut path = String::with_capacity(64);
        for part in &self.parts {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::DataId => path.push_str(&names.data_id.0.to_string()),
                Part::Writer => path.push_str(&names.writer.to_string()),
                Part::Stream => push_name(&mut path, names.stream),
                Part::Date => path.push_str(&date(names.wall_ms)),
                Part::Hour => path.push_str(&format!("{:02}", names.wall_ms / 3_600_000 % 24)),
            }
        }
        path
    }
}

impl Part {
    fn named(name: &str) -> Result<Self, TemplateError> {
        Ok(match name {
            "data_id" => Self::DataId,
            "date" => Self::Date,
            "hour" => Self::Hour,
            "writer" => Self::Writer,
            "stream" => Self::Stream,
            other => return Err(TemplateError::Unknown(other.chars().take(32).collect())),
        })
    }
}

/// `path` with a rotation number before its extension; number 0 is the path itself.
pub fn numbered(path: &str, number: u32) -> String {
    if number == 0 {
        return path.to_owned();
    }
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[name..].rfind('.').filter(|dot| *dot > 0) {
        Some(dot) => format!("{}.{number}{}", &path[..name + dot], &path[name + dot..]),
        None => format!("{path}.{number}"),
    }
}

/// The rotation number of `name` if [`numbered`] made it of `base`; both are names without folders.
pub fn number_of(base: &str, name: &str) -> Option<u32> {
    if name == base {
        return Some(0);
    }
    let dot = base.rfind('.').filter(|dot| *dot > 0).unwrap_or(base.len());
    let (stem, extension) = base.split_at(dot);
    let digits = name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(extension)?;
    let number = digits.parse().ok()?;
    (numbered(base, number) == name).then_some(number)
}

fn is_path_char(char: char) -> bool {
    char.is_ascii_alphanumeric() || "._-+=@,/".contains(char)
}

fn check_components(text: &str) -> Result<(), TemplateError> {
    let depth = text.split('/').count();
    if depth > DEPTH_MAX {
        return Err(TemplateError::Depth(depth));
    }
    match text
        .split('/')
        .find(|part| part.bytes().all(|byte| byte == b'.') || part.len() > COMPONENT_BYTES_MAX)
    {
        Some(bad) => Err(TemplateError::Component(bad.chars().take(32).collect())),
        None => Ok(()),
    }
}

/// Puts `-{writer}` before the extension of the last component.
fn insert_writer(parts: &mut Vec<Part>) {
    let added = [Part::Text("-".to_owned()), Part::Writer];
    let follows = parts.len() > 1;
    if let Some(Part::Text(last)) = parts.last_mut() {
        let name = last.rfind('/').map_or(0, |slash| slash + 1);
        // A dot that begins the whole name hides a file and is no extension.
        let first = if name == 0 && follows { 0 } else { name + 1 };
        if let Some(dot) = last.get(first..).and_then(|text| text.rfind('.')) {
            let extension = last.split_off(first + dot);
            if last.is_empty() {
                parts.pop();
            }
            parts.extend(added);
            parts.push(Part::Text(extension));
            return;
        }
    }
    parts.extend(added);
}

/// A name as part of a file name: what a path may not have becomes `_`.
fn push_name(path: &mut String, name: &str) {
    let start = path.len();
    path.extend(
        name.chars()
            .take(64)
            .map(|char| if is_path_char(char) && char != '/' { char } else { '_' }),
    );
    if path[start..].bytes().all(|byte| byte == b'.') {
        path.truncate(start);
        path.push('_');
    }
}

/// UTC date as `2026-11-21`, by Howard Hinnant's civil-from-days.
fn date(wall_ms: u64) -> String {
    let days = wall_ms / 86_400_000 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names<'static> {
        // 2026-11-21 10:56:57 UTC
        Names { data_id: DataId(1001), stream: "app", writer: 1, wall_ms: 1_795_258_617_000 }
    }

    #[test]
    fn templates_render_below_the_directory_and_name_their_writer() {
        for (template, path) in [
            ("{stream}/{date}/{hour}/{data_id}-{writer}.log", "app/2026-11-21/10/1001-1.log"),
            ("all.log", "all-1.log"),
            ("a.b/all", "a.b/all-1"),
            ("{data_id}", "1001-1"),
            ("{data_id}.log", "1001-1.log"),
            (".hidden", ".hidden-1"),
            ("x/{stream}.tar.gz", "x/app.tar-1.gz"),
            ("w{writer}/{stream}", "w1/app"),
        ] {
            assert_eq!(Template::parse(template).unwrap().render(&names()), path, "{template}");
        }
    }

    #[test]
    fn hostile_templates_are_refused() {
        for template in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a/.",
            "...",
            "{data_id",
            "{home}/x",
            "a\0b",
            "a b",
            "a\\b",
            "a}b",
            "~/{data_id}",
            "a\nb",
        ] {
            assert!(Template::parse(template).is_err(), "{template:?} was taken");
        }
        assert!(Template::parse(&"a/".repeat(17)).is_err());
        assert!(Template::parse(&"a".repeat(201)).is_err());
    }

    #[test]
    fn hostile_stream_names_stay_one_component() {
        let template = Template::parse("{stream}/{writer}").unwrap();
        for (stream, path) in
            [("../../etc", ".._.._etc/1"), ("..", "_/1"), ("a/b", "a_b/1"), ("", "_/1")]
        {
            assert_eq!(template.render(&Names { stream, ..names() }), path);
        }
    }

    #[test]
    fn a_path_stays_valid_until_its_date_or_hour_ends() {
        let until =
            |text: &str| Template::parse(text).unwrap().valid_until_ms(names().wall_ms) as i64;
        assert_eq!(until("{hour}.log"), 1_795_258_800_000);
        assert_eq!(until("{date}.log"), 1_795_305_600_000);
        assert_eq!(Template::parse("x").unwrap().valid_until_ms(5), u64::MAX);
    }

    #[test]
    fn dates_are_right_at_their_edges() {
        for (days, expected) in
            [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_454, "2026-01-01")]
        {
            assert_eq!(date(days * 86_400_000), expected);
        }
    }

    #[test]
    fn rotation_numbers_go_before_the_extension() {
        for (path, expected) in [("a.b/x.log", "a.b/x.2.log"), ("a.b/x", "a.b/x.2"), (".x", ".x.2")]
        {
            assert_eq!(numbered(path, 2), expected);
            let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
            assert_eq!(number_of(&name(path), &name(expected)), Some(2));
            assert_eq!(number_of(&name(path), &name(path)), Some(0));
            assert_eq!(numbered(path, 0), path);
        }
    }
}
