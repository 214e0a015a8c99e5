//! Torrents of `skein file export-torrent` in the hands of unmodified clients: aria2, Transmission
//! and libtorrent read them alike, and prove the file by them. `scripts/bootstrap.sh test` installs
//! the three; without them these tests say so and pass, but for `make test`, which sets
//! SKEIN_REQUIRE_TOOLS.

#![allow(clippy::unwrap_used)]

#[path = "interop/swarms.rs"]
mod swarms;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Debian's own Python: where its python3-libtorrent is, whatever else is in the path.
const PYTHON: &str = "/usr/bin/python3";

/// Sizes around the edges of pieces of 64 KiB.
const SIZES: [usize; 4] = [1, 65_536, 65_537, 1_000_003];

struct Torrent {
    folder: tempfile::TempDir,
    info_hash: String,
    size: usize,
}

/// A file and its torrent.
fn torrent(size: usize) -> Torrent {
    let folder = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..size).map(|at| (at / 3 * 31 + at / 16_384) as u8).collect();
    fs::write(folder.path().join("f.bin"), data).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_skein"))
        .current_dir(folder.path())
        .args(["file", "export-torrent", "f.bin", "--piece-size", "64K", "--json"])
        .args(["--tracker", "http://127.0.0.1:9/a", "--tracker", "http://127.0.0.1:9/b"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    Torrent { info_hash: made["info_hash_v1"].as_str().unwrap().to_owned(), folder, size }
}

/// Whether all three clients are here.
fn clients_are_here() -> bool {
    let tries = |program: &str, argument: &str| {
        let output = Command::new(program).args([argument, "import libtorrent"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    // Both say their version whatever follows; Python imports.
    let known = [("aria2c", "--version"), ("transmission-show", "--version"), (PYTHON, "-c")];
    let absent: Vec<_> = known.iter().filter(|(program, flag)| !tries(program, flag)).collect();
    if !absent.is_empty() {
        assert!(std::env::var_os("SKEIN_REQUIRE_TOOLS").is_none(), "{absent:?} fail");
        eprintln!("{absent:?} fail; run scripts/bootstrap.sh test");
    }
    absent.is_empty()
}

/// What a program prints, whether it is content or not.
fn run(folder: &Path, program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).current_dir(folder).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn python(folder: &Path, script: &str) -> String {
    let (good, text) = run(folder, PYTHON, &["-c", script]);
    assert!(good, "{text}");
    text.trim().to_owned()
}

#[test]
fn three_clients_read_the_same_torrent() {
    if !clients_are_here() {
        return;
    }
    for size in SIZES {
        let Torrent { folder, info_hash, size } = torrent(size);
        let at = folder.path();
        let pieces = size.div_ceil(65_536);

        let script = "import libtorrent as lt; t = lt.torrent_info('f.bin.torrent'); \
                      print(t.info_hashes().v1, t.info_hashes().has_v2(), t.piece_length(), \
                      t.num_pieces(), t.total_size(), t.name(), \
                      ' '.join(tracker.url for tracker in t.trackers()))";
        let expected = format!(
            "{info_hash} False 65536 {pieces} {size} f.bin http://127.0.0.1:9/a \
             http://127.0.0.1:9/b"
        );
        assert_eq!(python(at, script), expected);

        let (good, text) = run(at, "aria2c", &["--no-conf", "-S", "f.bin.torrent"]);
        assert!(good, "{text}");
        for line in [
            format!("Info Hash: {info_hash}"),
            "Piece Length: 64KiB".to_owned(),
            format!("The Number of Pieces: {pieces}"),
            "Name: f.bin".to_owned(),
            "http://127.0.0.1:9/a".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
        let total = text.lines().find(|line| line.starts_with("Total Length: ")).unwrap();
        let total = total.rsplit('(').next().unwrap().replace([',', ')'], "");
        assert_eq!(total, size.to_string());

        let (good, text) = run(at, "transmission-show", &["f.bin.torrent"]);
        assert!(good, "{text}");
        for line in [
            format!("Hash: {info_hash}"),
            format!("Piece Count: {pieces}"),
            "Piece Size: 64.00 KiB".to_owned(),
            "http://127.0.0.1:9/b".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
}

/// aria2 checks what is there and does not go to the network.
fn aria2_proves(folder: &Path) -> bool {
    let arguments = [
        "--no-conf",
        "--check-integrity=true",
        "--hash-check-only=true",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--bt-enable-lpd=false",
        "--interface=127.0.0.1",
        "--allow-overwrite=true",
        "--dir=.",
        "f.bin.torrent",
    ];
    let (good, text) = run(folder, "aria2c", &arguments);
    let said = if good { "Verification finished successfully" } else { "Checksum error detected" };
    assert!(text.contains(said), "{text}");
    good
}

/// libtorrent checks what is there: how many pieces it has of how many.
fn libtorrent_proves(folder: &Path) -> String {
    let script = "
import libtorrent as lt, time
session = lt.session({'listen_interfaces': '127.0.0.1:0', 'enable_dht': False,
                      'enable_lsd': False, 'enable_upnp': False, 'enable_natpmp': False})
torrent = lt.add_torrent_params()
torrent.ti = lt.torrent_info('f.bin.torrent')
torrent.trackers = []
torrent.save_path = '.'
handle = session.add_torrent(torrent)
end = time.monotonic() + 60
checking = (lt.torrent_status.checking_files, lt.torrent_status.checking_resume_data)
while handle.status().state in checking and time.monotonic() < end:
    time.sleep(0.02)
print(handle.status().num_pieces, torrent.ti.num_pieces())
";
    python(folder, script)
}

#[test]
fn clients_prove_the_file_by_the_torrent_and_find_it_false_when_it_is() {
    if !clients_are_here() {
        return;
    }
    for size in SIZES {
        let Torrent { folder, size, .. } = torrent(size);
        let (at, pieces) = (folder.path(), size.div_ceil(65_536));
        assert!(aria2_proves(at), "{size}");
        assert_eq!(libtorrent_proves(at), format!("{pieces} {pieces}"), "{size}");
        let mut data = fs::read(at.join("f.bin")).unwrap();
        data[size - 1] ^= 1;
        fs::write(at.join("f.bin"), data).unwrap();
        assert!(!aria2_proves(at), "{size}");
        assert_eq!(libtorrent_proves(at), format!("{} {pieces}", pieces - 1), "{size}");
    }
}
