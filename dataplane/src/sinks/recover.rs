//! What happens to checkpoints and files before the first batch is taken.
//!
//! ```text
//! checkpoints/LOCK        held while a process lives
//! checkpoints/CURRENT     number of the generation that counts
//! checkpoints/g12/w0.log  one log per router worker
//! ```
//! Each start reads the current generation, cuts every file that was open to the length of its
//! checkpoint, deals the lanes to the workers that own them now (their number may have changed),
//! writes the logs of the next generation whole, and only then names it in CURRENT. A crash at any
//! point leaves one complete generation. The new logs name no files: a worker records a file again
//! before it writes to it, and until then there is nothing to cut.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use skein_wire::ids::AgentId;

use super::checkpoint::{self, FileEntry, Frame, LaneEntry, State};
use super::disk::Resume;
use super::place;
use super::plain::LogFile;

/// Entries of a snapshot are cut into frames of about this size.
const SNAPSHOT_FRAME_BYTES: usize = 1 << 20;

/// How long to wait for the lock: a killed process's locks go away with it, within moments.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Why the data process cannot take up its files.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Two processes would write the same files.
    #[error("{0} is locked: another data process uses this folder; stop it first")]
    Locked(PathBuf),
    /// The folder or a log cannot be read or written.
    #[error("checkpoint {path}: {source}; check the disk and the folder's permissions")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RecoverError + '_ {
    move |source| RecoverError::Io { path: path.to_owned(), source }
}

/// A file that can be gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftFile {
    /// Whose.
    pub stream: u32,
    /// The stream's directory when it was opened.
    pub root: PathBuf,
    /// Its path as rendered, without rotation number.
    pub base: String,
    /// When it was created, wall clock.
    pub opened_ms: u64,
    /// How to open it.
    pub resume: Resume,
}

/// What one worker starts with.
#[derive(Debug)]
pub struct WorkerStart {
    /// Its log, holding its lanes.
    pub log: PathBuf,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Its lanes.
    pub lanes: Vec<LaneEntry>,
    /// Files of all workers; a path names its writer.
    pub files: Vec<LeftFile>,
}

/// What all workers start with. Holds the lock.
#[derive(Debug)]
pub struct Recovered {
    /// By worker.
    pub workers: Vec<WorkerStart>,
    /// Keep it as long as the files are written.
    pub lock: File,
}

/// Recovers what is below `directory` for `workers` workers.
pub fn recover(
    directory: &Path,
    workers: usize,
    worker_of: impl Fn(&AgentId) -> usize,
) -> Result<Recovered, RecoverError> {
    std::fs::create_dir_all(directory).map_err(at(directory))?;
    let lock = lock(&directory.join("LOCK"))?;
    let current_path = directory.join("CURRENT");
    let current = read_current(&current_path)?;
    let mut lanes: HashMap<_, LaneEntry> = HashMap::new();
    let mut files = Vec::new();
    for path in current.map_or(Ok(Vec::new()), |generation| logs(&folder(directory, generation)))? {
        let log = std::fs::read(&path).map_err(at(&path))?;
        let state = State::replay(&log);
        if state.whole_bytes < log.len() {
            let torn = log.len() - state.whole_bytes;
            tracing::info!(path = %path.display(), torn, "checkpoint log ends in a torn frame");
        }
        files.extend(state.files.into_values().filter_map(cut));
        for (key, entry) in state.lanes {
            let newer =
                |known: &LaneEntry| (known.epoch, known.position) < (entry.epoch, entry.position);
            if lanes.get(&key).is_none_or(newer) {
                lanes.insert(key, entry);
            }
        }
    }
    let mut dealt: Vec<Vec<LaneEntry>> = (0..workers).map(|_| Vec::new()).collect();
    for (_, entry) in lanes {
        dealt[worker_of(&entry.agent) % workers].push(entry);
    }
    let next = current.map_or(1, |generation| generation + 1);
    let workers = write_generation(&folder(directory, next), dealt, &files)?;
    write_current(directory, &current_path, next).map_err(at(&current_path))?;
    remove_others(directory, next);
    Ok(Recovered { workers, lock })
}

fn lock(path: &Path) -> Result<File, RecoverError> {
    let file =
        File::options().write(true).create(true).truncate(false).open(path).map_err(at(path))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(std::fs::TryLockError::Error(error)) => return Err(at(path)(error)),
        }
    }
    Err(RecoverError::Locked(path.to_owned()))
}

fn folder(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("g{generation}"))
}

fn read_current(path: &Path) -> Result<Option<u64>, RecoverError> {
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| {
            at(path)(io::Error::other("does not hold a number; restore it or remove the folder"))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn logs(folder: &Path) -> Result<Vec<PathBuf>, RecoverError> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
    logs.sort();
    Ok(logs)
}

/// Cuts a file to its checkpoint; `None` when it cannot be gone on with.
fn cut(entry: FileEntry) -> Option<LeftFile> {
    let root = PathBuf::from(&entry.root);
    let cut = || -> io::Result<Vec<u8>> {
        let file = place::open_left(&root, &entry.path, entry.device, entry.inode)?;
        let actual = file.metadata()?.len();
        if actual < entry.length {
            let message = format!("has {actual} bytes where {} were stored", entry.length);
            return Err(io::Error::other(message));
        }
        // Also without an excess: space that was allocated ahead is given back.
        file.set_len(entry.length)?;
        if actual > entry.length {
            file.sync_all()?;
            tracing::info!(
                path = entry.path,
                excess = actual - entry.length,
                "cut what was written after the last checkpoint"
            );
        }
        place::tail(&file, entry.length)
    };
    let tail = match cut() {
        Ok(tail) => tail,
        Err(error) => {
            tracing::warn!(
                root = entry.root, path = entry.path, %error,
                "a sink file is not as it was left; it is not touched"
            );
            return None;
        }
    };
    Some(LeftFile {
        stream: entry.stream,
        root,
        base: entry.base,
        opened_ms: entry.opened_ms,
        resume: Resume {
            path: entry.path,
            number: entry.number,
            length: entry.length,
            device: entry.device,
            inode: entry.inode,
            tail,
        },
    })
}

fn write_generation(
    folder: &Path,
    dealt: Vec<Vec<LaneEntry>>,
    files: &[LeftFile],
) -> Result<Vec<WorkerStart>, RecoverError> {
    // Left over from a crash in this very place; CURRENT does not name it.
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let mut workers = Vec::new();
    for (index, lanes) in dealt.into_iter().enumerate() {
        let log = folder.join(format!("w{index}.log"));
        let mut frames = Vec::new();
        let mut frame = Frame::default();
        for lane in &lanes {
            let streams = lane.streams.iter().copied();
            frame.lane(&lane.agent, lane.data_id, lane.epoch, lane.position, streams);
            if frame.len() > SNAPSHOT_FRAME_BYTES {
                frames.extend(frame.finish());
            }
        }
        frames.extend(frame.finish());
        let mut file = LogFile::open(&log).map_err(at(&log))?;
        file.append(&frames, true).map_err(at(&log))?;
        let log_bytes = (checkpoint::MAGIC.len() + frames.len()) as u64;
        workers.push(WorkerStart { log, log_bytes, lanes, files: files.to_vec() });
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
    Ok(workers)
}

fn write_current(directory: &Path, current: &Path, generation: u64) -> io::Result<()> {
    let aside = directory.join("CURRENT.new");
    std::fs::write(&aside, generation.to_string())?;
    File::open(&aside)?.sync_all()?;
    std::fs::rename(&aside, current)?;
    File::open(directory)?.sync_all()
}

fn remove_others(directory: &Path, generation: u64) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let other = name.to_str().and_then(|name| name.strip_prefix('g')?.parse::<u64>().ok());
        if other.is_some_and(|other| other != generation) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use skein_wire::ids::{DataId, Epoch, Sequence};

    use super::super::disk::FileId;
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId::parse(name).unwrap()
    }

    fn only(recovered: Recovered) -> WorkerStart {
        recovered.workers.into_iter().next().unwrap()
    }

    fn checkpoint_of(path: &Path, root: &Path, length: u64) -> Vec<u8> {
        let metadata = std::fs::metadata(path).unwrap();
        let mut frame = Frame::default();
        frame.file(&FileEntry {
            file: FileId(1),
            stream: 5,
            device: metadata.dev(),
            inode: metadata.ino(),
            length,
            opened_ms: 1,
            number: 0,
            root: root.to_str().unwrap().to_owned(),
            base: "x.log".to_owned(),
            path: "x.log".to_owned(),
        });
        frame.lane(&agent("a"), DataId(1), Epoch(2), Sequence(3), [].into_iter());
        frame.finish()
    }

    #[test]
    fn files_are_cut_and_lanes_dealt_again() {
        let (state, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sink = root.path().join("x.log");
        std::fs::write(&sink, b"stored\nnot stored\n").unwrap();
        let first = only(recover(state.path(), 1, |_| 0).unwrap());
        assert!(first.lanes.is_empty());
        let mut log = LogFile::open(&first.log).unwrap();
        log.append(&checkpoint_of(&sink, root.path(), 7), true).unwrap();
        log.append(b"torn", true).unwrap();
        drop(log);

        let again = recover(state.path(), 2, |_| 1).unwrap();
        assert_eq!(std::fs::read(&sink).unwrap(), b"stored\n");
        assert!(again.workers[0].lanes.is_empty());
        assert_eq!(again.workers[1].lanes[0].position, Sequence(3));
        assert_eq!(again.workers[1].files[0].resume.length, 7);
        assert!(!first.log.exists(), "the old generation is gone");
    }

    #[test]
    fn a_file_that_is_not_ours_any_more_is_not_cut() {
        let (state, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sink = root.path().join("x.log");
        std::fs::write(&sink, b"ours").unwrap();
        let first = only(recover(state.path(), 1, |_| 0).unwrap());
        let frame = checkpoint_of(&sink, root.path(), 2);
        LogFile::open(&first.log).unwrap().append(&frame, true).unwrap();
        std::fs::rename(&sink, root.path().join("moved")).unwrap();
        std::fs::write(&sink, b"somebody else's").unwrap();
        let again = only(recover(state.path(), 1, |_| 0).unwrap());
        assert!(again.files.is_empty());
        assert_eq!(std::fs::read(&sink).unwrap(), b"somebody else's");
        assert_eq!(std::fs::read(root.path().join("moved")).unwrap(), b"ours");
        assert_eq!(again.lanes.len(), 1);
    }

    #[test]
    fn a_half_made_generation_does_not_count() {
        let state = tempfile::tempdir().unwrap();
        let first = only(recover(state.path(), 1, |_| 0).unwrap());
        let mut frame = Frame::default();
        frame.lane(&agent("a"), DataId(1), Epoch(2), Sequence(3), [].into_iter());
        LogFile::open(&first.log).unwrap().append(&frame.finish(), true).unwrap();
        let half = state.path().join("g2");
        std::fs::create_dir(&half).unwrap();
        LogFile::open(&half.join("w0.log")).unwrap();
        assert_eq!(only(recover(state.path(), 1, |_| 0).unwrap()).lanes.len(), 1);
    }

    #[test]
    fn a_log_is_replaced_whole() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("w0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"old frames", false).unwrap();
        log.replace(b"new").unwrap();
        log.append(b"er", true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"SKCKPT1\nnewer");
        let (_, mut end) = (log, [0; 2]);
        File::open(&path).unwrap().read_exact_at(&mut end, 11).unwrap();
        assert_eq!(&end, b"er");
    }
}
