//! CPU seconds per GiB of each way in which a received file reaches the disk: medians of 5.
//!
//! `cargo run -p skein-filemesh --example engine [MiB] [DIRECTORY] [ROUNDS]` (1024 MiB, the
//! temporary directory, 5). Every way gets the same bytes, copied once into slabs as a read from a
//! connection would, and ends with flush and rename. CPU is user and system time of this process,
//! threads and io_uring's workers included; the kernel's flusher threads are not in it. Ways take
//! turns, in the opposite order every other round, so that what disturbs the machine disturbs all.

use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::engine::queue::{EngineKind, Settings, WriteQueue};
use skein_filemesh::engine::{Attributes, BlockMemory, Landing, Owner, PartialFile, TargetDir};
use skein_wire::ids::TransferId;
use std::fs;
use std::path::Path;
use std::time::Instant;

const BLOCK: usize = 16 * 1024;

type Failure = Box<dyn std::error::Error>;

/// How a file is written.
#[derive(Clone, Copy)]
enum Way {
    /// Not at all: what the copy into slabs costs.
    CopyOnly,
    /// By the receiving thread, through the page cache.
    Cached,
    /// By the receiving thread, around it, 1 MiB at a time.
    Direct,
    /// By a queue, around it.
    Queue { kind: EngineKind, depth: usize, register: bool },
}

const fn ring(depth: usize, register: bool) -> Way {
    Way::Queue { kind: EngineKind::Uring, depth, register }
}

const WAYS: [(&str, Way); 12] = [
    ("copy into slabs alone", Way::CopyOnly),
    ("portable, buffered, own thread", Way::Cached),
    ("portable, direct, own thread", Way::Direct),
    ("portable, direct, queue of 1", portable(1)),
    ("portable, direct, queue of 8", portable(8)),
    ("portable, direct, queue of 16", portable(16)),
    ("uring, direct, depth 1", ring(1, false)),
    ("uring, direct, depth 8", ring(8, false)),
    ("uring, direct, depth 16", ring(16, false)),
    ("uring, direct, depth 1, registered", ring(1, true)),
    ("uring, direct, depth 8, registered", ring(8, true)),
    ("uring, direct, depth 16, registered", ring(16, true)),
];

const fn portable(depth: usize) -> Way {
    Way::Queue { kind: EngineKind::Portable, depth, register: false }
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mib: usize = args.next().map_or(Ok(1024), |text| text.parse())?;
    let base = args.next().map_or_else(std::env::temp_dir, Into::into).join("skein-engine");
    let rounds: usize = args.next().map_or(Ok(5), |text| text.parse())?;
    fs::create_dir_all(&base)?;
    let result = measure(&base, mib << 20, rounds.max(1));
    fs::remove_dir_all(&base)?;
    result
}

fn measure(base: &Path, len: usize, rounds: usize) -> Result<(), Failure> {
    // What is copied from stays in the processor's cache, as a TLS record does.
    let source: Vec<u8> = (0..BLOCK).map(|at| (at * 31 + at / 251) as u8).collect();
    let gib = len as f64 / (1u64 << 30) as f64;
    let mut figures = vec![vec![]; WAYS.len()];
    let mut sentences = vec![String::new(); WAYS.len()];
    for round in 0..rounds {
        for turn in 0..WAYS.len() {
            let number = if round % 2 == 0 { turn } else { WAYS.len() - 1 - turn };
            let memory = BlockMemory::default();
            let (cpu, start) = (cpu_seconds(), Instant::now());
            sentences[number] = receive(base, len, WAYS[number].1, &source, &memory)?;
            let seconds = start.elapsed().as_secs_f64();
            figures[number].push(((cpu_seconds() - cpu) / gib, seconds / gib));
        }
    }
    println!(
        "{} MiB, {rounds} rounds: CPU s/GiB median (least to most), wall s/GiB median",
        len >> 20
    );
    for (((name, _), mut figures), sentence) in WAYS.iter().zip(figures).zip(sentences) {
        figures.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (low, high) = (figures[0].0, figures[rounds - 1].0);
        let cpu = figures[rounds / 2].0;
        figures.sort_by(|a, b| a.1.total_cmp(&b.1));
        let wall = figures[rounds / 2].1;
        println!("{name:<38} {cpu:.3}  ({low:.3} to {high:.3})  {wall:.3}  {sentence}");
    }
    Ok(())
}

/// Receives a file; the answer is what a queue says of itself at the end.
fn receive(
    base: &Path,
    len: usize,
    way: Way,
    source: &[u8],
    memory: &BlockMemory,
) -> Result<String, Failure> {
    let mut sentence = String::new();
    let mut landing = Landing::new(memory);
    let mut land = |bytes: &[u8]| {
        let space = landing.space(bytes.len());
        space.copy_from_slice(bytes);
        landing.arrived(bytes.len());
        landing.cut(bytes.len())
    };
    if matches!(way, Way::CopyOnly) {
        (0..len).step_by(BLOCK).for_each(|_| drop(land(source)));
        return Ok(sentence);
    }
    let geometry = Geometry::new(len as u64, 1 << 20)?;
    let manifest =
        Manifest { geometry, root: [1; 32], name: "final".into(), mode: 0o644, mtime_ms: 0 };
    let dir = TargetDir::open(base, false)?;
    let mut part = PartialFile::open(dir, b"final", &TransferId([1; 16]), &manifest, base)?;
    part.use_memory(memory, 0);
    let mut queue = None;
    match way {
        Way::Cached => part.keep_cached(),
        Way::Direct | Way::CopyOnly => part.around_cache(),
        Way::Queue { kind, depth, register } => {
            let writes = WriteQueue::start(&Settings { kind, depth, register }, memory)?;
            part.around_cache();
            part.use_queue(writes.clone())?;
            queue = Some(writes);
        }
    }
    for at in (0..len).step_by(BLOCK) {
        let view = land(&source[..BLOCK.min(len - at)]).ok_or("a block did not land")?;
        part.write_view(at as u64, view)?;
    }
    part.finish(&Attributes { mode: 0o644, owner: Owner::default(), mtime_ms: None })?;
    fs::remove_file(base.join("final"))?;
    if let Some(queue) = queue {
        sentence = queue.sentence();
    }
    Ok(sentence)
}

#[allow(unsafe_code)] // the standard library does not tell a process's CPU time
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes of its type.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
