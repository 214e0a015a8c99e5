//! docs/configuration.md names every key of agent.toml and server.toml with its default.

#![allow(clippy::unwrap_used)]

use std::path::Path;

/// Keys with their defaults as they are written in TOML; lists of tables are described in words.
fn leaves(prefix: &str, table: &toml::Table, found: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(table) => leaves(&name, table, found),
            value => found.push((name, value.to_string())),
        }
    }
}

/// Keys without a default do not occur in `defaults` and are not checked.
fn assert_documented(defaults: toml::Table) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut keys = Vec::new();
    leaves("", &defaults, &mut keys);
    let mut wrong = Vec::new();
    for (key, default) in keys {
        let cell = format!("| `{key}` |");
        let row = text.lines().find(|line| line.starts_with(&cell));
        let tables = ["server", "tail"].contains(&key.as_str());
        if !tables && !row.is_some_and(|row| row.contains(&format!("| `{default}` |"))) {
            wrong.push(format!("{cell} `{default}` |"));
        }
    }
    assert!(wrong.is_empty(), "missing or wrong in docs/configuration.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_key_of_the_agent_is_documented_with_its_default() {
    assert_documented(toml::Table::try_from(skein_agent::config::Config::default()).unwrap());
}

#[test]
fn every_key_of_the_server_is_documented_with_its_default() {
    assert_documented(toml::Table::try_from(skein_cli::server::ServerConfig::default()).unwrap());
}

#[test]
fn every_variable_of_the_operator_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    for variable in skein_cli::connection::VARIABLES {
        assert!(text.contains(&format!("| `{variable}` |")), "{variable} is not documented");
    }
}
