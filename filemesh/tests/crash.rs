//! What a real process leaves behind when it is killed, or when the disk takes no more.
//!
//! Each test starts this test binary again as a child that does one thing and ends badly. The
//! `child_` tests are those things; without a parent they do nothing.
#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not know as such

use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::engine::{FileError, PartialFile, TargetDir, hash_file};
use skein_wire::ids::TransferId;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TRANSFER: TransferId = TransferId([7; 16]);
const SIZE: usize = 8 << 20;

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 5 * 17 + at / 16_384 * 3) as u8).collect()
}

fn manifest(base: &Path) -> Manifest {
    let source = base.join("source");
    fs::write(&source, content()).unwrap();
    let go_on = |_| ControlFlow::Continue(());
    hash_file(&source, Some(1 << 20), &base.join("leaves"), go_on).unwrap().manifest
}

fn open(base: &Path, manifest: &Manifest) -> Result<PartialFile, FileError> {
    let dir = TargetDir::open(&base.join("target"), true)?;
    PartialFile::open(dir, b"final", &TRANSFER, manifest, base)
}

/// This binary again, running only the child test `name` in `base`.
fn child(name: &str, base: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("SKEIN_TEST_BASE", base);
    command
}

/// Where a child works; `None` when it was not started by its parent test.
fn child_base() -> Option<PathBuf> {
    std::env::var_os("SKEIN_TEST_BASE").map(PathBuf::from)
}

#[test]
fn child_writes_until_it_is_killed() {
    let Some(base) = child_base() else { return };
    let manifest = manifest(&base);
    let mut part = open(&base, &manifest).unwrap();
    let data = content();
    for (at, block) in data.chunks(16_384).enumerate() {
        part.write_at(at as u64 * 16_384, block).unwrap();
        println!("\nwritten {}", at + 1);
        std::io::stdout().flush().unwrap();
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn kill_9_loses_at_most_what_waits_in_memory() {
    for stop_after in [1, 7, 100, 333] {
        let base = tempfile::tempdir().unwrap();
        let mut command = child("child_writes_until_it_is_killed", base.path());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut confirmed = 0u32;
        for line in lines.map_while(Result::ok) {
            if let Some(count) = line.strip_prefix("written ") {
                confirmed = count.parse().unwrap();
            }
            if confirmed >= stop_after {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let manifest = manifest(base.path());
        let part = open(base.path(), &manifest).unwrap();
        let claimed = part.claimed().unwrap();
        let data = content();
        for block in 0..confirmed {
            assert!(claimed.get(block), "block {block} was confirmed");
            // The last 128 KiB, 8 blocks, may have been in memory.
            if block + 8 < confirmed {
                let mut bytes = vec![];
                part.append_at(u64::from(block) * 16_384, 16_384, &mut bytes).unwrap();
                let start = block as usize * 16_384;
                assert!(bytes == data[start..start + 16_384], "block {block} was confirmed");
            }
        }
        // Claims beyond the last write are of its group, and fail their proof.
        let last = claimed.ranges().last().unwrap().end;
        assert!(last.is_multiple_of(16) && last > confirmed - 1, "claimed up to {last}");
    }
}

/// Lets this process write files of at most `bytes`.
#[allow(unsafe_code)] // the standard library cannot set limits or signal actions
fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: a plain limit and a plain signal disposition of the calling process.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
}

#[test]
fn child_runs_into_a_full_disk() {
    let Some(base) = child_base() else { return };
    let manifest = manifest(&base);
    // As large as the partial file may not become, so that allocation fails.
    limit_file_size(1 << 20);
    let error = open(&base, &manifest).unwrap_err();
    assert!(error.is_full(), "{error}");
    println!("\nrefused: {error}");
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    let base = tempfile::tempdir().unwrap();
    let output = child("child_runs_into_a_full_disk", base.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("refused: cannot allocate"), "{text}");
    assert_eq!(fs::read_dir(base.path().join("target")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn child_fills_the_disk_in_mid_file() {
    let Some(base) = child_base() else { return };
    let manifest = manifest(&base);
    let mut part = open(&base, &manifest).unwrap();
    limit_file_size(1 << 20);
    let data = content();
    let mut failed = None;
    for (at, block) in data.chunks(16_384).enumerate() {
        if let Err(error) = part.write_at(at as u64 * 16_384, block) {
            assert!(error.is_full(), "{error}");
            failed = Some(at);
            break;
        }
    }
    println!("\nfailed at {}", failed.unwrap());
}

#[test]
fn a_disk_that_fills_up_fails_the_write_and_keeps_the_rest() {
    let base = tempfile::tempdir().unwrap();
    let output = child("child_fills_the_disk_in_mid_file", base.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("failed at 71"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let manifest = manifest(base.path());
    let part = open(base.path(), &manifest).unwrap();
    let claimed = part.claimed().unwrap();
    assert!(claimed.ranges().eq(std::iter::once(0..80)), "what was written before is kept");
    part.abandon().unwrap();
}
