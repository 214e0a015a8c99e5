//! The list of faults in the document names tests that exist.
#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not know as such

use std::path::Path;

const PAGE: &str = include_str!("../../docs/filemesh.md");

/// What stands between backticks in a table's last column.
fn named(row: &str) -> Vec<&str> {
    let column = row.trim_end_matches('|').rsplit(" | ").next().unwrap_or_default();
    column.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_fault_has_tests_and_every_test_exists() {
    let section = PAGE.split("## 10. What was broken on purpose").nth(1).unwrap();
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 25, "{} rows", rows.len());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for row in rows {
        let tests = named(row);
        assert!(!tests.is_empty(), "no test for: {row}");
        for test in tests {
            let (path, name) = test.split_once("::").unwrap_or_else(|| panic!("{test}"));
            let text = std::fs::read_to_string(root.join(path));
            let text = text.unwrap_or_else(|error| panic!("{path}: {error}"));
            let (before, _) = text
                .split_once(&format!("fn {name}("))
                .unwrap_or_else(|| panic!("{path} has no test {name}"));
            // Of a test, what goes before is its attribute; proptest's macro may indent it.
            let attributes = before.rsplit("\n\n").next().unwrap_or_default();
            let is_test = ["#[test]", "#[tokio::test"].iter().any(|of| attributes.contains(of));
            assert!(is_test, "{path}: {name} is no test");
        }
    }
}
