//! Both engines, the same promises, on every file system that this host lets a test have: the
//! temporary directory's own, tmpfs, ext4, xfs and an overlay. What cannot be had is said on a line
//! that starts with `skipped`.
#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not know as such

mod cases;
mod faults;
mod mounts;

use cases::CASES;
use mounts::Mount;
use skein_filemesh::engine::BlockMemory;
use skein_filemesh::engine::queue::{EngineKind, Settings, WriteQueue};
use std::path::Path;

/// What every test is run with.
pub const ENGINES: [EngineKind; 2] = [EngineKind::Portable, EngineKind::Uring];

/// A queue of `kind` over `memory`, or nothing where the kernel has none.
pub fn queue(kind: EngineKind, depth: usize, memory: &BlockMemory) -> Option<WriteQueue> {
    let settings = Settings { kind, depth, ..Settings::default() };
    let queue = WriteQueue::start(&settings, memory).unwrap();
    if queue.kind() != kind {
        println!("skipped: {}", queue.sentence());
        return None;
    }
    Some(queue)
}

/// Runs every case with both engines in folders below `base`.
fn all_cases(file_system: &str, base: &Path) {
    for kind in ENGINES {
        for (name, case) in CASES {
            let memory = BlockMemory::new(4 << 20);
            let Some(queue) = queue(kind, 3, &memory) else { return };
            println!("{file_system}, {}: {name}", kind.as_str());
            let folder = tempfile::tempdir_in(base).unwrap();
            case(folder.path(), &queue, &memory);
            drop(queue);
            assert_eq!(memory.counters().in_use, 0, "every slab came home");
        }
    }
}

/// Says why a file system cannot be had.
pub fn or_skip<T>(name: &str, made: Result<T, String>) -> Option<T> {
    made.map_err(|why| println!("skipped: no {name} here: {why}")).ok()
}

#[test]
fn on_the_temporary_directory() {
    all_cases("temporary directory", &std::env::temp_dir());
}

#[test]
fn on_tmpfs() {
    let Some(mount) = or_skip("tmpfs", Mount::tmpfs(256 << 20)) else { return };
    all_cases("tmpfs", mount.path());
}

#[test]
fn on_ext4() {
    let made = Mount::image(&["mkfs.ext4", "-q", "-F"], 256 << 20);
    let Some(mount) = or_skip("ext4", made) else { return };
    all_cases("ext4", mount.path());
}

#[test]
fn on_xfs() {
    let made = Mount::image(&["mkfs.xfs", "-q", "-f"], 512 << 20);
    let Some(mount) = or_skip("xfs", made) else { return };
    all_cases("xfs", mount.path());
}

#[test]
fn on_an_overlay() {
    let Some((mount, _upper)) = or_skip("overlay", Mount::overlay(256 << 20)) else { return };
    all_cases("overlay", mount.path());
}
