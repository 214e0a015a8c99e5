//! CPU seconds per GiB of each part of a transfer, without sockets and TLS: medians of 5.
//!
//! `cargo run -p skein-filemesh --example parts [MiB] [DIRECTORY]` (512 MiB, the temporary
//! directory). CPU is user and system time of this process; the kernel's flusher threads are not
//! in it. Parts take turns, so that what disturbs the machine disturbs all of them.

use skein_filemesh::core::download::Download;
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::leecher::{Action, Leecher, LeecherOptions};
use skein_filemesh::core::link::Have;
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::merkle::{BuiltTree, Hash, TreeBuilder};
use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, Handshake, MESSAGE_BYTES_MAX};
use skein_filemesh::core::piece_tree::PieceTree;
use skein_filemesh::core::seeder::{Pull, Seeder};
use skein_filemesh::engine::{Attributes, Owner, PartialFile, SeedFile, TargetDir, hash_file};
use skein_wire::ids::TransferId;
use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ROUNDS: usize = 5;
const PIECE_BYTES: u32 = 1 << 20;
const STEP: usize = 256 * 1024;

type Failure = Box<dyn std::error::Error>;

/// A part's name and what runs it over the whole of a sample.
type Part = (&'static str, fn(&Sample) -> Result<(), Failure>);

const PARTS: [Part; 8] = [
    ("hash tree of bytes in memory", |sample| sample.hash().map(drop)),
    ("hash_file from the page cache", Sample::hash_file),
    ("pread from the page cache (SeedFile)", Sample::read),
    ("plain write and fsync", Sample::plain_write),
    ("PartialFile with 256 KiB writes, fsync", |sample| sample.write(STEP)),
    ("PartialFile with 16 KiB writes, fsync", |sample| sample.write(16 << 10)),
    ("seeder and leecher in memory, 128 KiB buffers", |sample| sample.transfer(128 << 10)),
    ("seeder and leecher in memory, 1 MiB buffers", |sample| sample.transfer(1 << 20)),
];

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mib: usize = args.next().map_or(Ok(512), |text| text.parse())?;
    let base = args.next().map_or_else(std::env::temp_dir, Into::into).join("skein-parts");
    fs::create_dir_all(&base)?;
    let result = measure(&base, mib);
    fs::remove_dir_all(&base)?;
    result
}

fn measure(base: &Path, mib: usize) -> Result<(), Failure> {
    let sample = Sample::new(base, mib << 20)?;
    let mut rounds = vec![vec![]; PARTS.len()];
    for _ in 0..ROUNDS {
        for ((_, part), seconds) in PARTS.iter().zip(&mut rounds) {
            let before = cpu_seconds();
            part(&sample)?;
            seconds.push((cpu_seconds() - before) * 1024.0 / mib as f64);
        }
    }
    println!("{mib} MiB in {}, CPU s/GiB of this process, median of {ROUNDS}", base.display());
    for ((name, _), mut seconds) in PARTS.iter().zip(rounds) {
        seconds.sort_by(f64::total_cmp);
        let (low, median, high) = (seconds[0], seconds[ROUNDS / 2], seconds[ROUNDS - 1]);
        println!("{name:<46} {median:.3}  ({low:.3} to {high:.3})");
    }
    Ok(())
}

#[allow(unsafe_code)] // the standard library does not tell a process's CPU time
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes of its type.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A file's bytes, in memory and on disk.
struct Sample {
    base: PathBuf,
    data: Vec<u8>,
    leaves: Vec<Hash>,
    tree: Arc<PieceTree>,
}

impl Sample {
    fn new(base: &Path, len: usize) -> Result<Self, Failure> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend_from_slice(&state.to_le_bytes());
        }
        data.truncate(len);
        fs::write(base.join("source"), &data)?;
        let geometry = Geometry::new(0, PIECE_BYTES)?;
        let tree = Arc::new(PieceTree::new(geometry, vec![], &[0; 32])?);
        let mut sample = Self { base: base.to_path_buf(), data, leaves: vec![], tree };
        let (built, leaves) = sample.hash()?;
        sample.leaves = leaves;
        sample.tree = Arc::new(PieceTree::new(built.geometry, built.layer, &built.root)?);
        Ok(sample)
    }

    fn manifest(&self) -> Manifest {
        let (geometry, root) = (self.tree.geometry(), self.tree.root());
        Manifest { geometry, root, name: "source".into(), mode: 0o644, mtime_ms: 0 }
    }

    fn hash(&self) -> Result<(BuiltTree, Vec<Hash>), Failure> {
        let mut leaves = vec![];
        let mut builder = TreeBuilder::new(PIECE_BYTES)?;
        self.data.chunks(STEP).for_each(|step| builder.update(step, |leaf| leaves.push(leaf)));
        let built = builder.finish(|leaf| leaves.push(leaf))?;
        Ok((built, leaves))
    }

    fn hash_file(&self) -> Result<(), Failure> {
        let (source, leaves) = (self.base.join("source"), self.base.join("leaves"));
        hash_file(&source, Some(PIECE_BYTES), &leaves, |_| ControlFlow::Continue(()))?;
        Ok(())
    }

    fn read(&self) -> Result<(), Failure> {
        let path = self.base.join("source");
        let stamp = skein_filemesh::engine::FileStamp::of(&fs::metadata(&path)?);
        let seed = SeedFile::open(&path, &stamp)?;
        let mut buf = Vec::with_capacity(STEP);
        for at in (0..self.data.len()).step_by(STEP) {
            buf.clear();
            seed.append_at(at as u64, STEP.min(self.data.len() - at), &mut buf)?;
        }
        Ok(())
    }

    fn plain_write(&self) -> Result<(), Failure> {
        let mut file = File::create(self.base.join("plain"))?;
        for step in self.data.chunks(STEP) {
            file.write_all(step)?;
        }
        file.sync_all()?;
        Ok(fs::remove_file(self.base.join("plain"))?)
    }

    fn write(&self, step_bytes: usize) -> Result<(), Failure> {
        let dir = TargetDir::open(&self.base, false)?;
        let transfer = TransferId([1; 16]);
        let mut part = PartialFile::open(dir, b"final", &transfer, &self.manifest(), &self.base)?;
        for (at, step) in self.data.chunks(step_bytes).enumerate() {
            part.write_at((at * step_bytes) as u64, step)?;
        }
        part.finish(&Attributes { mode: 0o644, owner: Owner::default(), mtime_ms: None })?;
        Ok(fs::remove_file(self.base.join("final"))?)
    }

    /// Seeder to leecher through one buffer of at most `room` bytes; data is copied into it once,
    /// as a read from the page cache would, and hashed where it lies.
    fn transfer(&self, room: usize) -> Result<(), Failure> {
        let shake = |who: u8| Handshake::new([9; 20], [who; 20]);
        let download = Download::new(self.tree.geometry(), self.tree.root(), None);
        let mut leecher = Leecher::connect(download, shake(1), LeecherOptions::default(), 0);
        let have = Have::All;
        let mut seeder = Seeder::accept(self.tree.clone(), have, shake(2), &shake(1), 0)?;
        let (mut up, mut down) = (vec![], Vec::with_capacity(room + MESSAGE_BYTES_MAX));
        let (mut actions, mut written, mut skip) = (vec![], 0, HANDSHAKE_BYTES);
        loop {
            leecher.take_output(&mut up, 0);
            let used = skip + seeder.receive(&up[skip..], 0)?;
            up.drain(..used);
            skip = 0;
            while down.len() < room {
                let before = down.len();
                match seeder.next(room - before, &mut down, 0) {
                    Some(Pull::Data { offset, len }) => {
                        let start = offset as usize;
                        down.extend_from_slice(&self.data[start..start + len as usize]);
                    }
                    Some(Pull::Leaves { first, count }) => {
                        let leaves = &self.leaves[first as usize..(first + count) as usize];
                        seeder.leaves(Some(leaves.as_flattened()), &mut down, 0);
                    }
                    None if down.len() == before => break,
                    None => {}
                }
            }
            let used = leecher.receive(&down, 0, &mut actions);
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Write { data, .. } => {
                        written += data.len();
                        leecher.written(data.len() as u64, 0, &mut actions);
                    }
                    Action::Failed(failure) => return Err(failure.into()),
                    Action::Leaves { .. } | Action::Done => {}
                }
            }
            down.drain(..used);
            if leecher.download().is_done() {
                assert_eq!(written, self.data.len());
                return Ok(());
            }
        }
    }
}
