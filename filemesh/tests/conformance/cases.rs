//! What both engines promise on a disk that works.

use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::engine::queue::WriteQueue;
use skein_filemesh::engine::{
    Attributes, BlockMemory, FileError, Landing, Owner, PartialFile, QueueFile, TargetDir, View,
};
use skein_wire::ids::TransferId;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

const BLOCK: usize = 16_384;

/// A folder of its own, a queue, and the pool whose slabs it knows.
type Case = fn(&Path, &WriteQueue, &BlockMemory);

pub const CASES: [(&str, Case); 7] = [
    ("files of all sizes are whole", files_of_all_sizes_are_whole),
    ("the order of writes does not matter", the_order_of_writes_does_not_matter),
    ("holes stay holes until they are filled", holes_stay_holes_until_they_are_filled),
    ("files take turns in one queue", files_take_turns_in_one_queue),
    ("a file that is dropped in mid-write can be resumed", a_dropped_file_can_be_resumed),
    ("the later of two writes wins", the_later_of_two_writes_wins),
    ("a file that is not open for writing says so", a_refused_write_says_so),
];

pub fn content(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 5 * 17 + at / BLOCK * 3 + seed) as u8).collect()
}

/// The roots of these files are never asked for: proving is not the engine's part.
pub fn manifest(len: usize) -> Manifest {
    let geometry = Geometry::new(len as u64, 1 << 20).unwrap();
    Manifest { geometry, root: [1; 32], name: "final".into(), mode: 0o644, mtime_ms: 0 }
}

pub fn open(
    base: &Path,
    number: u8,
    len: usize,
    queue: &WriteQueue,
    memory: &BlockMemory,
) -> Result<PartialFile, FileError> {
    let dir = TargetDir::open(&base.join("target"), true)?;
    let name = format!("final-{number}");
    let transfer = TransferId([number; 16]);
    let mut part = PartialFile::open(dir, name.as_bytes(), &transfer, &manifest(len), base)?;
    part.around_cache();
    part.use_memory(memory, 1 << 20);
    part.use_queue(queue.clone())?;
    Ok(part)
}

/// The bytes in a slab, as if they had been received.
pub fn land(landing: &mut Landing, data: &[u8]) -> View {
    let space = landing.space(data.len());
    space.copy_from_slice(data);
    landing.arrived(data.len());
    landing.cut(data.len()).unwrap()
}

pub fn attributes() -> Attributes {
    Attributes { mode: 0o644, owner: Owner::default(), mtime_ms: None }
}

fn is_whole(base: &Path, number: u8, data: &[u8]) -> bool {
    fs::read(base.join(format!("target/final-{number}"))).unwrap() == data
}

/// Numbers below `len` in an order that looks random and is always the same.
fn shuffled(len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut state = 0x2545_f491u32;
    for at in (1..len).rev() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        order.swap(at, state as usize % (at + 1));
    }
    order
}

fn files_of_all_sizes_are_whole(base: &Path, queue: &WriteQueue, memory: &BlockMemory) {
    let sizes = [
        0, 1, 511, 4_095, 4_096, 4_097, 16_384, 16_385, 65_535, 65_536, 65_537, 262_144, 262_145,
        1_048_575, 1_048_576, 3_000_001,
    ];
    for (number, len) in sizes.into_iter().enumerate() {
        let (data, number) = (content(len, number), number as u8);
        let mut part = open(base, number, len, queue, memory).unwrap();
        let mut landing = Landing::new(memory);
        for (at, block) in data.chunks(BLOCK).enumerate() {
            // Blocks that landed in a slab, and blocks that came otherwise.
            if number % 2 == 0 {
                part.write_view((at * BLOCK) as u64, land(&mut landing, block)).unwrap();
            } else {
                part.write_at((at * BLOCK) as u64, block).unwrap();
            }
        }
        part.finish(&attributes()).unwrap();
        assert!(is_whole(base, number, &data), "{len} bytes");
    }
}

fn the_order_of_writes_does_not_matter(base: &Path, queue: &WriteQueue, memory: &BlockMemory) {
    let data = content(5_000_003, 1);
    let blocks: Vec<&[u8]> = data.chunks(BLOCK).collect();
    let mut landings = [Landing::new(memory), Landing::new(memory)];
    // Runs of 1 and of 20 blocks: some become direct writes, some do not.
    for (number, run) in [(0, 1), (1, 20)] {
        let mut part = open(base, number, data.len(), queue, memory).unwrap();
        for start in shuffled(blocks.len().div_ceil(run)) {
            for (block, data) in (start * run..(start + 1) * run).zip(&blocks[start * run..]) {
                let view = land(&mut landings[start % 2], data);
                part.write_view((block * BLOCK) as u64, view).unwrap();
            }
        }
        for (offset, len) in [(0, 5_000_003), (4_999_000, 1_003), (16_000, 3_000_000)] {
            let mut out = vec![];
            part.append_at(offset as u64, len, &mut out).unwrap();
            assert!(out == data[offset..offset + len], "what is under way is read as well");
        }
        part.finish(&attributes()).unwrap();
        assert!(is_whole(base, number, &data), "runs of {run}");
    }
}

fn holes_stay_holes_until_they_are_filled(base: &Path, queue: &WriteQueue, memory: &BlockMemory) {
    let data = content(4 << 20, 9);
    let mut part = open(base, 0, data.len(), queue, memory).unwrap();
    let is_early = |block: usize| block.is_multiple_of(32) || (100..140).contains(&block);
    let write = |part: &mut PartialFile, early: bool| {
        for (block, bytes) in data.chunks(BLOCK).enumerate() {
            if is_early(block) == early {
                part.write_at((block * BLOCK) as u64, bytes).unwrap();
            }
        }
    };
    write(&mut part, true);
    let mut out = vec![];
    part.append_at(BLOCK as u64, BLOCK, &mut out).unwrap();
    assert!(out == [0; BLOCK], "nothing was written here");
    write(&mut part, false);
    part.finish(&attributes()).unwrap();
    assert!(is_whole(base, 0, &data));
}

fn files_take_turns_in_one_queue(base: &Path, queue: &WriteQueue, memory: &BlockMemory) {
    let files: Vec<Vec<u8>> = (0..4).map(|n| content(2_000_000 + n * 4_096 + n, n)).collect();
    let open_one = |n: usize| open(base, n as u8, files[n].len(), queue, memory).unwrap();
    let mut parts: Vec<PartialFile> = (0..4).map(open_one).collect();
    for at in (0..2_100_000).step_by(BLOCK) {
        for (part, data) in parts.iter_mut().zip(&files) {
            if at < data.len() {
                part.write_at(at as u64, &data[at..data.len().min(at + BLOCK)]).unwrap();
            }
        }
    }
    // The first is given up with writes under way, which the others do not notice.
    parts.remove(0).abandon().unwrap();
    for (n, part) in (1..).zip(parts) {
        part.finish(&attributes()).unwrap();
        assert!(is_whole(base, n, &files[n as usize]));
    }
    assert!(!base.join("target/final-0").exists());
}

fn a_dropped_file_can_be_resumed(base: &Path, queue: &WriteQueue, memory: &BlockMemory) {
    let data = content(6 << 20, 3);
    let mut part = open(base, 0, data.len(), queue, memory).unwrap();
    let half = data.len() / 2;
    for at in (0..half).step_by(BLOCK) {
        part.write_at(at as u64, &data[at..at + BLOCK]).unwrap();
    }
    drop(part);
    let mut part = open(base, 0, data.len(), queue, memory).unwrap();
    let claimed = part.claimed().unwrap();
    let mut out = vec![];
    part.append_at(0, half, &mut out).unwrap();
    assert!(out == data[..half], "what was written is there");
    assert!((0..half / BLOCK).all(|block| claimed.get(block as u32)));
    for at in (half..data.len()).step_by(BLOCK) {
        part.write_at(at as u64, &data[at..at + BLOCK]).unwrap();
    }
    part.finish(&attributes()).unwrap();
    assert!(is_whole(base, 0, &data));
}

fn the_later_of_two_writes_wins(base: &Path, queue: &WriteQueue, memory: &BlockMemory) {
    const SLAB: usize = 262_144;
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(base.join("file")).unwrap();
    let file = Arc::new(QueueFile::new(file, true));
    let (mut slabs, mut blocks) = (Landing::new(memory), Landing::new(memory));
    for seed in 0..40 {
        // Whole pages that go around the page cache, over some of them others that do not.
        queue.write(&file, 0, land(&mut slabs, &content(SLAB, seed)));
        queue.write(&file, 8_192, land(&mut blocks, &content(BLOCK, seed + 1)));
    }
    queue.settle(&file).unwrap();
    let mut expected = content(SLAB, 39);
    expected[8_192..8_192 + BLOCK].copy_from_slice(&content(BLOCK, 40));
    assert!(fs::read(base.join("file")).unwrap() == expected);
}

fn a_refused_write_says_so(base: &Path, queue: &WriteQueue, memory: &BlockMemory) {
    let path = base.join("file");
    fs::write(&path, "old").unwrap();
    let file = Arc::new(QueueFile::new(File::open(&path).unwrap(), false));
    let mut landing = Landing::new(memory);
    queue.write(&file, 0, land(&mut landing, &content(BLOCK, 1)));
    assert_eq!(queue.settle(&file).unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert!(file.result().is_err(), "the error stays");
    assert_eq!(fs::read(&path).unwrap(), b"old");
}
