//! Seconds that many small files take, beside `tar` on the same disk: medians of interleaved rounds.
//!
//! `cargo run -p skein-filemesh --example trees [FILES] [DIRECTORY] [ROUNDS] [PARTS]` (20,000 files
//! of 4 KiB in 200 directories, the temporary directory, 5, all 6 parts; 4 leave out the flushes,
//! which wait for everybody's writes). One process, no network: blocks go from a
//! tree in memory into a staged tree, in steps of 256 KiB. «flush» is one syncfs before the rename,
//! for tar `sync -f` behind it. CPU is that of this process and its children, without the kernel's
//! own threads.

use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::engine::TargetDir;
use skein_filemesh::engine::tree::{
    Flush, ScanRules, TreeOptions, TreeReader, TreeSource, TreeStage, hash_tree, scan,
};
use skein_wire::ids::TransferId;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const FILE_BYTES: usize = 4096;
const PER_DIRECTORY: usize = 100;
const STEP: u64 = 256 * 1024;

type Failure = Box<dyn std::error::Error>;

/// A part's name and what runs it.
type Part = (&'static str, fn(&Sample) -> Result<(), Failure>);

const PARTS: [Part; 6] = [
    ("scan", Sample::scan),
    ("scan and hash", |sample| sample.hash().map(drop)),
    ("receive", |sample| sample.receive(Flush::Later)),
    ("tar x", |sample| sample.tar(false)),
    ("receive, flush", |sample| sample.receive(Flush::First)),
    ("tar x, sync -f", |sample| sample.tar(true)),
];

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let files: usize = args.next().map_or(Ok(20_000), |text| text.parse())?;
    let base = args.next().map_or_else(std::env::temp_dir, Into::into).join("skein-trees");
    let rounds: usize = args.next().map_or(Ok(5), |text| text.parse())?;
    let parts: usize = args.next().map_or(Ok(PARTS.len()), |text| text.parse())?;
    fs::create_dir_all(&base)?;
    let parts = &PARTS[..parts.min(PARTS.len())];
    let result = measure(&base, files, rounds.max(1), parts);
    fs::remove_dir_all(&base)?;
    result
}

fn measure(base: &Path, files: usize, rounds: usize, parts: &[Part]) -> Result<(), Failure> {
    let sample = Sample::new(base, files)?;
    let mut all = vec![vec![]; parts.len()];
    for _ in 0..rounds {
        for ((_, part), seconds) in parts.iter().zip(&mut all) {
            let (start, cpu) = (Instant::now(), cpu_seconds());
            part(&sample)?;
            seconds.push((start.elapsed().as_secs_f64(), cpu_seconds() - cpu));
            // What a part left is not in the next one's time.
            let _ = fs::remove_dir_all(base.join("target"));
            fs::create_dir(base.join("target"))?;
            if parts.len() == PARTS.len() {
                Command::new("sync").arg("-f").arg(base).status()?;
            }
        }
    }
    let load = fs::read_to_string("/proc/loadavg")?;
    println!("{files} files of {FILE_BYTES} B in {}, medians of {rounds}", base.display());
    println!("load {}", load.trim());
    for ((name, _), mut seconds) in parts.iter().zip(all) {
        seconds.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (low, high) = (seconds[0].0, seconds[rounds - 1].0);
        let (wall, cpu) = seconds[rounds / 2];
        println!("{name:<18} {wall:.3} s  ({low:.3} to {high:.3}), {cpu:.3} CPU s");
    }
    Ok(())
}

#[allow(unsafe_code)] // the standard library does not tell CPU time
fn cpu_seconds() -> f64 {
    let of = |who| {
        // SAFETY: all zeros is a value of the type, and `usage` is valid for writes of it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &raw mut usage);
            usage
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        seconds(usage.ru_utime) + seconds(usage.ru_stime)
    };
    of(libc::RUSAGE_SELF) + of(libc::RUSAGE_CHILDREN)
}

/// A tree on disk, its stream in memory, and the same as a tar file.
struct Sample {
    base: PathBuf,
    source: PathBuf,
    manifest: Manifest,
    stream: Vec<u8>,
}

impl Sample {
    fn new(base: &Path, files: usize) -> Result<Self, Failure> {
        let source = base.join("source");
        for number in 0..files {
            let dir = source.join(format!("directory-{:04}", number / PER_DIRECTORY));
            fs::create_dir_all(&dir)?;
            let content: Vec<u8> = (0..FILE_BYTES).map(|at| (at * 7 + number * 13) as u8).collect();
            fs::write(dir.join(format!("file-{number:06}")), content)?;
        }
        fs::create_dir_all(base.join("target"))?;
        fs::create_dir_all(base.join("state"))?;
        let packed = Command::new("tar")
            .arg("-cf")
            .arg(base.join("tree.tar"))
            .arg("-C")
            .arg(&source)
            .arg(".")
            .status()?;
        assert!(packed.success(), "tar packs the same tree");
        let tree = Arc::new(scan(&source, &ScanRules::default())?);
        let mut stream = vec![];
        let len = tree.layout().stream_bytes() as usize;
        TreeReader::new(tree.clone()).append_at(0, len, &mut stream)?;
        let manifest = hash(base, &tree)?;
        Ok(Self { base: base.to_path_buf(), source, manifest, stream })
    }

    fn scan(&self) -> Result<(), Failure> {
        scan(&self.source, &ScanRules::default())?;
        Ok(())
    }

    fn hash(&self) -> Result<Manifest, Failure> {
        hash(&self.base, &Arc::new(scan(&self.source, &ScanRules::default())?))
    }

    fn receive(&self, flush: Flush) -> Result<(), Failure> {
        let dir = TargetDir::open(&self.base.join("target"), false)?;
        let options = TreeOptions { flush, ..TreeOptions::default() };
        let (transfer, state) = (TransferId([1; 16]), self.base.join("state"));
        let mut stage = TreeStage::open(dir, b"tree", &transfer, &self.manifest, &state, options)?;
        for (at, step) in self.stream.chunks(STEP as usize).enumerate() {
            stage.write_at(at as u64 * STEP, step)?;
        }
        Ok(stage.finish()?)
    }

    fn tar(&self, sync: bool) -> Result<(), Failure> {
        let target = self.base.join("target");
        let unpacked = Command::new("tar")
            .arg("-xpf")
            .arg(self.base.join("tree.tar"))
            .arg("-C")
            .arg(&target)
            .status()?;
        assert!(unpacked.success(), "tar unpacks what it packed");
        if sync {
            Command::new("sync").arg("-f").arg(&target).status()?;
        }
        Ok(())
    }
}

fn hash(base: &Path, tree: &Arc<TreeSource>) -> Result<Manifest, Failure> {
    let go_on = |_| ControlFlow::Continue(());
    Ok(hash_tree(tree, Some(1 << 20), &base.join("leaves"), go_on)?.manifest)
}
