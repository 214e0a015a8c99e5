//! Habits that a compiler does not check: the arrow of dependencies, a head on every module, a use
//! for every metric, links of documents that lead somewhere.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 9] =
    ["wire", "filemesh", "observe", "dataplane", "controlplane", "agent", "cli", "sim", "perf"];

/// Who may use which crates of ours (dependencies proper, not those of tests).
const ARROWS: [(&str, &[&str]); 7] = [
    ("wire", &[]),
    ("observe", &[]),
    ("filemesh", &["skein-wire"]),
    ("dataplane", &["skein-wire", "skein-filemesh", "skein-observe"]),
    ("controlplane", &["skein-wire", "skein-filemesh", "skein-observe"]),
    ("agent", &["skein-wire", "skein-filemesh", "skein-observe"]),
    ("sim", &["skein-wire", "skein-filemesh"]),
];

/// What code without I/O may use from outside.
const CORE_MAY_USE: [(&str, &[&str]); 2] = [
    ("wire", &["bytes", "crc32c", "lz4_flex", "prost", "ring", "thiserror", "zstd"]),
    // The file engine needs aligned memory for direct writes, libc and patterns for what a tree takes;
    // bendy and sha1 read and write other clients' metainfo.
    (
        "filemesh",
        &[
            "aligned-vec",
            "bendy",
            "bytes",
            "crc32c",
            "libc",
            "regex",
            "ring",
            "sha1",
            "skein-wire",
            "thiserror",
        ],
    ),
];

/// The agent stays small: it never links these.
const NOT_IN_AGENT: [&str; 7] =
    ["rdkafka", "pulsar", "glommio", "axum", "redb", "skein-dataplane", "skein-controlplane"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".tools") {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for name in CRATES.iter().chain(["fuzz", "benches"].iter()) {
        files(&root().join(name), "rs", &mut found);
    }
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Names in the `[dependencies]` section of a crate's manifest.
fn dependencies(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    table.into_iter().flat_map(|table| table.keys().cloned()).collect()
}

#[test]
fn crates_use_only_those_below_them() {
    for (name, allowed) in ARROWS {
        for used in dependencies(name).iter().filter(|used| used.starts_with("skein-")) {
            assert!(allowed.contains(&used.as_str()), "{name} must not use {used}");
        }
    }
    for (name, allowed) in CORE_MAY_USE {
        for used in dependencies(name) {
            assert!(
                allowed.contains(&used.as_str()),
                "{name} is code without I/O: {used} is not in its list; argue for it there"
            );
        }
    }
    for used in dependencies("agent") {
        assert!(!NOT_IN_AGENT.contains(&used.as_str()), "the agent must not link {used}");
    }
}

#[test]
fn every_module_begins_by_saying_what_it_is() {
    for (path, text) in sources() {
        let name = path.to_string_lossy().into_owned();
        if name.contains("/fuzz_targets/") {
            continue;
        }
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        assert!(first.starts_with("//!"), "{name} has no head");
    }
}

#[test]
fn no_source_names_a_place_of_its_authors() {
    // Split, so that this file does not find itself.
    let places = [concat!("/wo", "rk/"), concat!("/tmp/", "skein-"), concat!("/ho", "me/")];
    for (path, text) in sources() {
        for place in places {
            assert!(!text.contains(place), "{} names {place}", path.display());
        }
    }
}

#[test]
fn every_metric_of_the_catalogue_is_used() {
    let catalogue = fs::read_to_string(root().join("observe/src/names.rs")).unwrap();
    let sources: Vec<(PathBuf, String)> =
        sources().into_iter().filter(|(path, _)| !path.ends_with("observe/src/names.rs")).collect();
    let constants = catalogue.lines().filter_map(|line| line.trim().split_once(" = ")).filter(
        |(name, kind)| {
            let kinds = ["Counter \"", "Gauge \"", "Histogram \""];
            kinds.iter().any(|start| kind.starts_with(start)) && !name.contains(' ')
        },
    );
    let mut count = 0;
    let mut unused = Vec::new();
    for (constant, _) in constants {
        count += 1;
        let used = |text: &str| {
            text.match_indices(constant).any(|(at, _)| {
                let next = text[at + constant.len()..].chars().next().unwrap_or(' ');
                !next.is_ascii_alphanumeric() && next != '_'
            })
        };
        if !sources.iter().any(|(_, text)| used(text)) {
            unused.push(constant.to_owned());
        }
    }
    assert!(count > 50, "the catalogue's layout changed: {count} constants found");
    assert!(unused.is_empty(), "in the catalogue and never emitted: {unused:?}");
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut documents = vec![root().join("README.md")];
    files(&root().join("docs"), "md", &mut documents);
    files(&root().join("deploy"), "md", &mut documents);
    let mut broken = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.contains(' ') {
                continue;
            }
            if !document.parent().unwrap().join(target).exists() {
                broken.push(format!("{} -> {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The specification names the tests that hold its promises as `path::name`.
#[test]
fn tests_that_the_specification_names_exist() {
    let text = fs::read_to_string(root().join("docs/specification.md")).unwrap();
    let (mut named, mut absent) = (0, Vec::new());
    for (path, name) in text.split('`').filter_map(|word| word.split_once(".rs::")) {
        named += 1;
        let source = fs::read_to_string(root().join(format!("{path}.rs"))).unwrap_or_default();
        let before = source.split_once(&format!("fn {name}(")).map(|(before, _)| before);
        // Its attributes lie between it and the end of the item before it.
        let attributes = before.and_then(|before| before.rsplit(['}', ';']).next());
        let is_test = |text: &str| text.contains("#[test]") || text.contains("#[tokio::test");
        if !attributes.is_some_and(is_test) {
            absent.push(format!("{path}.rs::{name}"));
        }
    }
    assert!(named > 50, "the specification's layout changed: {named} tests found in it");
    assert!(absent.is_empty(), "in docs/specification.md, and no test: {absent:#?}");
    let faults = text.split("\n## Faults").nth(1).and_then(|rest| rest.split("\n## ").next());
    for row in faults.unwrap().lines().filter(|line| line.starts_with("| ")).skip(1) {
        assert!(row.contains(".rs::"), "no test holds this promise: {row}");
    }
}

#[test]
fn scripts_can_be_run_and_begin_alike() {
    use std::os::unix::fs::PermissionsExt;
    let mut scripts = vec![root().join(".ci/run")];
    files(&root().join("scripts"), "sh", &mut scripts);
    for script in scripts {
        let sourced = script.ends_with("lib.sh");
        let text = fs::read_to_string(&script).unwrap();
        let mode = script.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o100 != 0, !sourced, "{}", script.display());
        assert_eq!(text.starts_with("#!/usr/bin/env bash\n"), !sourced, "{}", script.display());
    }
}
