//! Plain tables and JSON on standard output. A table's columns are as wide as their widest cell;
//! nothing is coloured, so that what is seen can be copied, searched and diffed.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::CliError;

/// Rows under headings.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row, one cell per heading.
    pub fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        let cells = cells.into_iter().map(|cell| if cell.is_empty() { "-".into() } else { cell });
        self.rows.push(cells.map(printable).collect());
    }

    /// The text, one line per row.
    pub fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Prints the table, or only says that it is empty.
    pub fn print(&self, nothing: &str) -> Result<(), CliError> {
        if self.rows.len() == 1 { line(nothing) } else { text(&self.render()) }
    }
}

/// Names of hosts and labels come from outside: control characters must not reach a terminal.
pub fn printable(text: String) -> String {
    if text.chars().any(char::is_control) {
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
    } else {
        text
    }
}

/// Prints text as it is.
pub fn text(text: &str) -> Result<(), CliError> {
    raw(text.as_bytes())
}

/// Prints a line.
pub fn line(line: &str) -> Result<(), CliError> {
    raw(format!("{line}\n").as_bytes())
}

/// Prints bytes as they are. A closed pipe (`skein hosts | head`) ends the program quietly.
pub fn raw(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(CliError::io("cannot write to standard output")),
    }
}

/// Prints a value as JSON.
pub fn json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::Local(format!("cannot show the answer as JSON: {error}")))?;
    line(&text)
}

/// Says what is gone.
pub fn removed(names: &[String], as_json: bool) -> Result<(), CliError> {
    if as_json {
        return json(&serde_json::json!({ "removed": names }));
    }
    line(&format!("removed {}", names.join(", ")))
}

/// At most `limit` names in one cell, then how many more.
pub fn names(names: &[String], limit: usize) -> String {
    let shown = names.iter().take(limit).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(limit) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `1 host`, `5 hosts`.
pub fn plural(count: u64, word: &str) -> String {
    format!("{} {word}{}", crate::quantity::count(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_control_character_gets_through() {
        let mut table = Table::new(&["AGENT", "STATE"]);
        table.row(["a-longer-name".into(), "online".into()]);
        table.row(["b".into(), "\x1b[31mred".into()]);
        table.row(["c".into(), String::new()]);
        let expected = "AGENT          STATE\na-longer-name  online\nb              \u{fffd}[31mred\n\
                        c              -\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn long_lists_of_names_are_cut() {
        let list: Vec<String> = ["a", "b", "c"].map(String::from).into();
        assert_eq!(names(&list, 3), "a, b, c");
        assert_eq!(names(&list, 1), "a and 2 more");
        assert_eq!([plural(1, "host"), plural(2, "host")], ["1 host", "2 hosts"]);
    }
}
