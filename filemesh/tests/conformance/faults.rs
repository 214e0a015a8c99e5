//! What both engines promise when a disk, or the process, does not work.

use super::cases::{attributes, content, land, open};
use super::mounts::{Mount, run};
use super::{ENGINES, or_skip, queue};
use skein_filemesh::engine::queue::{EngineKind, Settings, WriteQueue};
use skein_filemesh::engine::{BlockMemory, FileError, Landing, QueueFile};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const BLOCK: usize = 16_384;
const SLAB: usize = 262_144;
const SIZE: usize = 24 << 20;
const DEPTH: usize = 4;
/// All slabs of the pool of the test that may lock 1 MiB.
const SIZE_HELD: usize = 16 << 20;

/// This binary again, running only the child test `name`.
fn child(name: &str, kind: EngineKind, base: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command.env("SKEIN_TEST_BASE", base).env("SKEIN_TEST_ENGINE", kind.as_str());
    command
}

/// Where a child works and how; `None` when it was not started by its parent test.
fn as_child() -> Option<(PathBuf, EngineKind)> {
    let base = std::env::var_os("SKEIN_TEST_BASE").map(PathBuf::from)?;
    Some((base, std::env::var("SKEIN_TEST_ENGINE").unwrap().parse().unwrap()))
}

#[test]
fn child_writes_until_it_is_killed() {
    let Some((base, kind)) = as_child() else { return };
    let memory = BlockMemory::new(4 << 20);
    let Some(queue) = queue(kind, DEPTH, &memory) else { return };
    let mut part = open(&base, 0, SIZE, &queue, &memory).unwrap();
    for (at, block) in content(SIZE, 0).chunks(BLOCK).enumerate() {
        part.write_at((at * BLOCK) as u64, block).unwrap();
        println!("\nwritten {}", at + 1);
        std::io::stdout().flush().unwrap();
    }
    loop {
        std::thread::park();
    }
}

/// What is lost is at most what waited and what was under way: the rest is on the disk, and all
/// that is there is claimed.
fn kill_9_on(file_system: &str, base: &Path) {
    for kind in ENGINES {
        for stop_after in [1, 100, 1_000] {
            let folder = tempfile::tempdir_in(base).unwrap();
            let mut command = child("faults::child_writes_until_it_is_killed", kind, folder.path());
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut confirmed = 0;
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
            if confirmed == 0 {
                println!("skipped: {} on {file_system}", kind.as_str());
                continue;
            }
            let memory = BlockMemory::new(4 << 20);
            let queue = queue(kind, DEPTH, &memory).unwrap();
            let mut part = open(folder.path(), 0, SIZE, &queue, &memory).unwrap();
            let (claimed, data) = (part.claimed().unwrap(), content(SIZE, 0));
            let kept = (confirmed * BLOCK).saturating_sub((DEPTH + 1) * SLAB);
            let mut out = vec![];
            part.append_at(0, kept, &mut out).unwrap();
            assert!(out == data[..kept], "{file_system}, {kind:?}: {confirmed} were confirmed");
            assert!((0..confirmed).all(|block| claimed.get(block as u32)));
            // The rest is written again, over whatever is there.
            for at in (kept..SIZE).step_by(BLOCK) {
                part.write_at(at as u64, &data[at..at + BLOCK]).unwrap();
            }
            for at in (0..kept).step_by(BLOCK) {
                part.write_at(at as u64, &data[at..at + BLOCK]).unwrap();
            }
            part.finish(&attributes()).unwrap();
            assert!(fs::read(folder.path().join("target/final-0")).unwrap() == data);
        }
    }
}

#[test]
fn kill_9_costs_what_was_under_way() {
    kill_9_on("temporary directory", &std::env::temp_dir());
    let xfs = Mount::image(&["mkfs.xfs", "-q", "-f"], 512 << 20);
    if let Some(mount) = or_skip("xfs", xfs) {
        kill_9_on("xfs", mount.path());
    }
}

/// Writes `len` bytes to a new file of no size, without asking for space first.
fn pour(path: &Path, len: usize, queue: &WriteQueue, memory: &BlockMemory) -> std::io::Result<()> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(path)?;
    let file = Arc::new(QueueFile::new(file, true));
    let mut landing = Landing::new(memory);
    for at in (0..len).step_by(SLAB) {
        queue.write(&file, at as u64, land(&mut landing, &content(SLAB, at)));
    }
    queue.settle(&file)
}

#[test]
fn a_disk_that_fills_up_is_an_error_that_says_so() {
    let mounts = [
        ("tmpfs", Mount::tmpfs(4 << 20)),
        ("ext4", Mount::image(&["mkfs.ext4", "-q", "-F", "-m", "0"], 64 << 20)),
        ("xfs", Mount::image(&["mkfs.xfs", "-q", "-f"], 320 << 20)),
    ];
    for (name, made) in mounts {
        let Some(mount) = or_skip(name, made) else { continue };
        // All but some 4 MiB is taken.
        let free = skein_filemesh::engine::TargetDir::open(mount.path(), false).unwrap();
        let free = free.free_bytes().unwrap();
        let filler = (free.saturating_sub(4 << 20)).to_string();
        if free > 8 << 20 {
            let path = mount.path().join("filler");
            run("fallocate", &["-l", &filler, path.to_str().unwrap()]).unwrap();
        }
        for kind in ENGINES {
            let memory = BlockMemory::new(4 << 20);
            let Some(queue) = queue(kind, DEPTH, &memory) else { continue };
            let path = mount.path().join("file");
            let error = pour(&path, 16 << 20, &queue, &memory).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{name}, {kind:?}");
            // The queue works on for whoever fits.
            fs::remove_file(&path).unwrap();
            pour(&path, SLAB, &queue, &memory).unwrap();
            assert!(fs::read(&path).unwrap() == content(SLAB, 0));
            fs::remove_file(&path).unwrap();
            // A partial file does not even begin.
            let refused = open(mount.path(), 1, 64 << 20, &queue, &memory).unwrap_err();
            assert!(refused.is_full(), "{name}, {kind:?}: {refused}");
        }
    }
}

#[test]
fn a_disk_that_breaks_fails_the_file_and_not_the_process() {
    for kind in ENGINES {
        let made = Mount::image(&["mkfs.ext4", "-q", "-F"], 96 << 20);
        let Some(mount) = or_skip("ext4 on a loop device", made) else { return };
        let memory = BlockMemory::new(4 << 20);
        let Some(queue) = queue(kind, DEPTH, &memory) else { continue };
        let mut part = open(mount.path(), 0, 64 << 20, &queue, &memory).unwrap();
        run("sync", &["-f", mount.path().to_str().unwrap()]).unwrap();
        mount.break_after(8 << 20).unwrap();
        let data = content(SLAB, 0);
        let mut failed = None;
        for at in (0..64usize << 20).step_by(SLAB) {
            if let Err(error) = part.write_at(at as u64, &data) {
                failed = Some(error);
                break;
            }
        }
        let error = failed.unwrap_or_else(|| part.finish(&attributes()).unwrap_err());
        let FileError::Io { source, .. } = &error else { panic!("{error}") };
        let broken = [Some(libc::EIO), Some(libc::EROFS)];
        assert!(broken.contains(&source.raw_os_error()), "{kind:?}: {error}");
        assert!(!mount.path().join("target/final-0").exists(), "no name without content");
    }
}

#[test]
fn a_read_only_disk_is_an_error_that_says_so() {
    for (name, made) in [
        ("tmpfs", Mount::tmpfs(4 << 20)),
        ("xfs", Mount::image(&["mkfs.xfs", "-q", "-f"], 320 << 20)),
    ] {
        let Some(mount) = or_skip(name, made) else { continue };
        fs::create_dir(mount.path().join("target")).unwrap();
        mount.read_only().unwrap();
        for kind in ENGINES {
            let memory = BlockMemory::new(4 << 20);
            let Some(queue) = queue(kind, DEPTH, &memory) else { continue };
            let error = open(mount.path(), 0, 1, &queue, &memory).unwrap_err();
            let FileError::Io { source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.raw_os_error(), Some(libc::EROFS), "{error}");
        }
    }
}

/// The system calls of io_uring answer ENOSYS from now on, as on an old kernel.
#[allow(unsafe_code)] // the standard library has no seccomp
fn hide_io_uring() {
    let code = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let setup = libc::SYS_io_uring_setup as u32;
    let filter = [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, setup),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, 0x0005_0000 | libc::ENOSYS as u32),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, 0x7fff_0000),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program and its filter are valid for the call, which only restricts this process.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program), 0);
    }
}

#[test]
fn child_has_no_io_uring() {
    let Some((base, kind)) = as_child() else { return };
    hide_io_uring();
    let memory = BlockMemory::new(4 << 20);
    let queue = WriteQueue::start(&Settings { kind, ..Settings::default() }, &memory).unwrap();
    assert_eq!(queue.kind(), EngineKind::Portable);
    println!("\n{}", queue.sentence());
    pour(&base.join("file"), 4 << 20, &queue, &memory).unwrap();
}

#[test]
fn without_io_uring_the_portable_engine_writes_and_says_why() {
    let base = tempfile::tempdir().unwrap();
    let mut command = child("faults::child_has_no_io_uring", EngineKind::Uring, base.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("written by the portable engine"), "{text}");
    assert!(text.contains("io_uring was wanted, but the kernel does not set up a ring"), "{text}");
    assert_eq!(fs::metadata(base.path().join("file")).unwrap().len(), 4 << 20);
}

#[test]
fn child_may_lock_little_memory() {
    let Some((base, kind)) = as_child() else { return };
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    #[allow(unsafe_code)] // the standard library cannot set limits or give up being root
    // SAFETY: a plain limit and plain ids of the calling process.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        assert_eq!(libc::setuid(65_534), 0);
    }
    let memory = BlockMemory::new(16 << 20);
    let Some(queue) = queue(kind, 16, &memory) else { return };
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(base.join("file")).unwrap();
    let file = Arc::new(QueueFile::new(file, true));
    // Every view is held, so that each write comes out of another slab.
    let (mut landing, mut held) = (Landing::new(&memory), vec![]);
    for at in (0..SIZE_HELD).step_by(SLAB) {
        held.push(land(&mut landing, &content(SLAB, at)));
        queue.write(&file, at as u64, held[held.len() - 1].clone());
    }
    queue.settle(&file).unwrap();
    println!("\n{}", queue.sentence());
}

#[test]
fn slabs_that_may_not_be_locked_are_written_all_the_same() {
    let base = tempfile::tempdir().unwrap();
    if run("chown", &["65534", base.path().to_str().unwrap()]).is_err() {
        println!("skipped: only root can become somebody without privileges");
        return;
    }
    let mut command = child("faults::child_may_lock_little_memory", EngineKind::Uring, base.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    if text.contains("skipped") {
        return println!("{text}");
    }
    assert!(text.contains("no more: "), "{text}");
    let data = fs::read(base.path().join("file")).unwrap();
    assert!((0..SIZE_HELD).step_by(SLAB).all(|at| data[at..at + SLAB] == content(SLAB, at)[..]));
}
