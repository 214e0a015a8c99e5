//! `skein file` as a user meets it: the real binary, no server anywhere.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// A file of several pieces with a short last block, in a folder of its own.
fn folder() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..200_000u32).map(|at| (at * 7 + at / 16_384) as u8).collect();
    fs::write(folder.path().join("f.bin"), &data).unwrap();
    (folder, data)
}

fn skein(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    command.current_dir(folder).arg("file").args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(folder: &Path, arguments: &[&str], code: i32) -> Value {
    let output = skein(folder, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stderr.is_empty(), "JSON output is quiet: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_file_is_proved_against_its_own_metainfo_and_the_first_false_block_is_named() {
    let (folder, mut data) = folder();
    let at = folder.path();
    let info = json(at, &["info", "f.bin", "--out", "f.meta", "--piece-size", "64K"], 0);
    assert_eq!((&info["size_bytes"], &info["pieces"]), (&200_000.into(), &4.into()));
    let shown = json(at, &["info", "f.meta"], 0);
    assert_eq!((&shown["kind"], &shown["root"]), (&"metainfo".into(), &info["root"]));
    let verify = ["verify", "f.bin", "--manifest", "f.meta"];
    assert_eq!(json(at, &verify, 0)["result"], "true");

    data[70_000] ^= 1;
    data[199_999] ^= 1;
    fs::write(at.join("f.bin"), &data).unwrap();
    let first = json(at, &verify, 1);
    assert_eq!(
        (&first["first_bad_offset"], &first["unit_bytes"]),
        (&65_536.into(), &16_384.into())
    );
    let all = json(at, &[&verify[..], &["--all"]].concat(), 1);
    assert_eq!((&all["bad_units"], &all["to"]), (&2.into(), &200_000.into()));
    let rest = json(at, &[&verify[..], &["--from", "100K"]].concat(), 1);
    assert_eq!((&rest["from"], &rest["first_bad_offset"]), (&98_304.into(), &196_608.into()));

    fs::write(at.join("f.bin"), &data[..50_000]).unwrap();
    let short = json(at, &verify, 1);
    assert_eq!((&short["first_bad_offset"], &short["bad_units"]), (&50_000.into(), &0.into()));
    let output = skein(at, &verify);
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(said.contains("it has 50000 bytes instead of 200000"), "{said}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.starts_with("proving ...\n") && !told.contains(['\r', '\x1b']), "no bar: {told}");
}

#[test]
fn an_exported_torrent_is_the_same_every_time_and_proves_the_file_by_pieces() {
    let (folder, mut data) = folder();
    let at = folder.path();
    let export = ["export-torrent", "f.bin", "--piece-size", "64K", "--tracker", "http://t/a"];
    let made = json(at, &export, 0);
    let again = json(at, &[&export[..], &["--out", "g.torrent", "--manifest", "g"]].concat(), 0);
    assert_eq!(made["info_hash_v1"], again["info_hash_v1"]);
    let bytes = fs::read(at.join("f.bin.torrent")).unwrap();
    assert_eq!(bytes, fs::read(at.join("g.torrent")).unwrap());
    assert_eq!(json(at, &["info", "g"], 0)["root"], made["root"], "both from one reading");
    assert_eq!(json(at, &["info", "g.torrent"], 0)["trackers"][0], "http://t/a");
    // Nothing is overwritten unasked.
    assert_eq!(skein(at, &export).status.code(), Some(2));
    assert_eq!(skein(at, &[&export[..], &["--force"]].concat()).status.code(), Some(0));

    let verify = ["verify", "f.bin", "--manifest", "g.torrent"];
    assert_eq!(json(at, &verify, 0)["unit_bytes"], 65_536);
    data[70_000] ^= 1;
    fs::write(at.join("f.bin"), &data).unwrap();
    assert_eq!(json(at, &verify, 1)["first_bad_offset"], 65_536);
}

#[test]
fn what_cannot_be_done_is_said() {
    let (folder, _) = folder();
    let at = folder.path();
    fs::write(at.join("empty"), b"").unwrap();
    fs::write(at.join("no.torrent"), b"d4:infodee").unwrap();
    for (arguments, code, said) in [
        (&["info", "absent"][..], 6, "absent"),
        (&["info", "no.torrent"], 6, "\"name\" is missing"),
        (&["verify", "f.bin", "--manifest", "f.bin"], 6, "this is no metainfo"),
        (&["export-torrent", "empty"], 6, "an empty file has no pieces"),
        (&["export-torrent", "f.bin", "--piece-size", "100K"], 2, "a power of two"),
        (&["export-torrent", "."], 6, "not a regular file"),
    ] {
        let output = skein(at, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
    assert_eq!(fs::read_dir(at).unwrap().count(), 3, "nothing is left behind");
    // An empty file has metainfo of our own, and is proved by it.
    json(at, &["info", "empty", "--out", "empty.meta"], 0);
    json(at, &["verify", "empty", "--manifest", "empty.meta"], 0);
}
