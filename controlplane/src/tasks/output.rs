//! Output of tasks: one append-only segment file per task, `DIR/control/tasks/<task id>.out`.
//!
//! ```text
//! record = magic u32 │ host u32 │ offset u64 │ length u32 │ crc32c of the 20 bytes before and the
//!          data u32 │ data                                              (big-endian)
//! ```
//! `host` is the place of the agent in the task's list. Per host the offsets are without gaps, so
//! a repeated piece is recognised by its offset and stored once. Agents are acknowledged after the
//! flush; a torn tail is cut off when the file is opened, and the agent sends that piece again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skein_wire::ids::TaskId;
use skein_wire::limits::TASK_OUTPUT_CHUNK_BYTES_MAX;

const MAGIC: u32 = 0x534b_4f31;
const HEADER_BYTES: usize = 24;
/// Segments whose index is in memory. One of a hundred thousand pieces takes about 3 MiB.
const OPEN_MAX: usize = 64;

/// A piece of output to be stored.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Which task.
    pub task: TaskId,
    /// Place of the agent in the task's list.
    pub host: u32,
    /// Byte offset in the host's output.
    pub offset: u64,
    /// The bytes.
    pub data: bytes::Bytes,
    /// Bytes that are kept of this host.
    pub bytes_max: u64,
}

#[derive(Clone, Copy, Debug)]
struct Indexed {
    offset: u64,
    position: u64,
    length: u32,
}

#[derive(Debug, Default)]
struct HostIndex {
    stored: u64,
    pieces: Vec<Indexed>,
}

#[derive(Debug)]
struct Segment {
    file: File,
    end: u64,
    hosts: HashMap<u32, HostIndex>,
}

/// All segments.
#[derive(Debug)]
pub struct OutputStore {
    folder: PathBuf,
    open: Mutex<HashMap<TaskId, Arc<Mutex<Segment>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OutputStore {
    /// In a folder that exists.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, open: Mutex::new(HashMap::new()) }
    }

    fn path(&self, task: &TaskId) -> PathBuf {
        self.folder.join(format!("{task}.out"))
    }

    fn segment(&self, task: &TaskId, make: bool) -> io::Result<Option<Arc<Mutex<Segment>>>> {
        let mut open = lock(&self.open);
        if let Some(segment) = open.get(task) {
            return Ok(Some(segment.clone()));
        }
        let Some(segment) = Segment::open(&self.path(task), make)? else { return Ok(None) };
        if open.len() >= OPEN_MAX {
            // What is in use stays; the rest is read again when it is needed.
            let idle = open.iter().find(|(_, segment)| Arc::strong_count(segment) == 1);
            let idle = idle.map(|(task, _)| *task);
            idle.and_then(|task| open.remove(&task));
        }
        let segment = Arc::new(Mutex::new(segment));
        open.insert(*task, segment.clone());
        Ok(Some(segment))
    }

    /// Stores pieces and flushes each file that changed once. Answers, in the order of the
    /// pieces, up to which offset the host's output is stored now. Blocks.
    pub fn append(&self, pieces: &[Piece]) -> Vec<io::Result<u64>> {
        // Each with its end before, which is durable.
        let mut touched: HashMap<TaskId, (Arc<Mutex<Segment>>, u64)> = HashMap::new();
        let mut results: Vec<io::Result<u64>> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let stored = self.segment(&piece.task, true).and_then(|segment| {
                let segment = segment.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                let mut open = lock(&segment);
                touched.entry(piece.task).or_insert_with(|| (segment.clone(), open.end));
                open.append(piece)
            });
            results.push(stored);
        }
        for (task, (segment, durable_end)) in touched {
            let segment = lock(&segment);
            if let Err(error) = segment.file.sync_data() {
                for (piece, result) in pieces.iter().zip(&mut results) {
                    if piece.task == task {
                        *result = Err(io::Error::new(error.kind(), error.to_string()));
                    }
                }
                // The page cache may show what the disk never got, and a second flush would say
                // nothing of it: cut that off, and let the agents send it again.
                if let Err(error) = segment.file.set_len(durable_end) {
                    tracing::error!(%task, %error, "output cannot be cut back");
                }
                lock(&self.open).remove(&task);
            }
        }
        results
    }

    /// Bytes stored of one host.
    pub fn stored(&self, task: &TaskId, host: u32) -> io::Result<u64> {
        let Some(segment) = self.segment(task, false)? else { return Ok(0) };
        let segment = lock(&segment);
        Ok(segment.hosts.get(&host).map_or(0, |host| host.stored))
    }

    /// Bytes of one host's output from `offset`, at most `limit`. Blocks.
    pub fn read(&self, task: &TaskId, host: u32, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
        let Some(segment) = self.segment(task, false)? else { return Ok(Vec::new()) };
        let segment = lock(&segment);
        let Some(index) = segment.hosts.get(&host) else { return Ok(Vec::new()) };
        let first = index.pieces.partition_point(|p| p.offset + u64::from(p.length) <= offset);
        let mut out = Vec::new();
        for piece in &index.pieces[first..] {
            if out.len() >= limit {
                break;
            }
            let skip = offset.saturating_sub(piece.offset);
            let take = (u64::from(piece.length) - skip).min((limit - out.len()) as u64) as usize;
            let at = out.len();
            out.resize(at + take, 0);
            segment.file.read_exact_at(&mut out[at..], piece.position + skip)?;
        }
        Ok(out)
    }

    /// Bytes that a task's output takes on disk.
    pub fn disk_bytes(&self, task: &TaskId) -> u64 {
        std::fs::metadata(self.path(task)).map_or(0, |file| file.len())
    }

    /// Forgets a task's output.
    pub fn remove(&self, task: &TaskId) {
        lock(&self.open).remove(task);
        match std::fs::remove_file(self.path(task)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%task, %error, "output is not removed");
            }
            _ => {}
        }
    }

    /// Tasks that have output on disk.
    pub fn tasks(&self) -> io::Result<Vec<TaskId>> {
        let mut tasks = Vec::new();
        for file in std::fs::read_dir(&self.folder)? {
            let name = file?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".out"));
            tasks.extend(id.and_then(|id| id.parse::<TaskId>().ok()));
        }
        Ok(tasks)
    }
}

impl Segment {
    fn open(path: &Path, make: bool) -> io::Result<Option<Self>> {
        let opened = OpenOptions::new().read(true).write(true).create(make).mode(0o600).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if !make && error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut segment = Self { file: file.try_clone()?, end: 0, hosts: HashMap::new() };
        let mut reader = BufReader::with_capacity(256 * 1024, file);
        let mut data = Vec::new();
        while let Some((host, offset)) = read_record(&mut reader, &mut data)? {
            segment.note(host, offset, data.len() as u32);
        }
        if segment.file.metadata()?.len() > segment.end {
            segment.file.set_len(segment.end)?;
        }
        Ok(Some(segment))
    }

    fn note(&mut self, host: u32, offset: u64, length: u32) {
        let index = self.hosts.entry(host).or_default();
        let position = self.end + HEADER_BYTES as u64;
        index.pieces.push(Indexed { offset, position, length });
        index.stored = offset + u64::from(length);
        self.end = position + u64::from(length);
    }

    fn append(&mut self, piece: &Piece) -> io::Result<u64> {
        let stored = self.hosts.get(&piece.host).map_or(0, |host| host.stored);
        let wanted = piece.offset.saturating_add(piece.data.len() as u64);
        if piece.offset > stored || wanted <= stored {
            // A gap: the agent goes back to what is stored. Or a repeat.
            return Ok(stored);
        }
        if wanted > piece.bytes_max {
            // Past the bound: not kept, but the agent must come to its end.
            return Ok(wanted);
        }
        let data = &piece.data[(stored - piece.offset) as usize..];
        let data = &data[..data.len().min(TASK_OUTPUT_CHUNK_BYTES_MAX)];
        let mut record = Vec::with_capacity(HEADER_BYTES + data.len());
        record.extend_from_slice(&MAGIC.to_be_bytes());
        record.extend_from_slice(&piece.host.to_be_bytes());
        record.extend_from_slice(&stored.to_be_bytes());
        record.extend_from_slice(&(data.len() as u32).to_be_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&record), data);
        record.extend_from_slice(&crc.to_be_bytes());
        record.extend_from_slice(data);
        self.file.write_all_at(&record, self.end)?;
        self.note(piece.host, stored, data.len() as u32);
        Ok(stored + data.len() as u64)
    }
}

/// The next whole record; `None` at the end or where it is torn.
fn read_record(reader: &mut impl Read, data: &mut Vec<u8>) -> io::Result<Option<(u32, u64)>> {
    let mut header = [0; HEADER_BYTES];
    if !read_whole(reader, &mut header)? {
        return Ok(None);
    }
    let u32_at =
        |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let offset = header[8..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let (magic, host, length, crc) = (u32_at(0), u32_at(4), u32_at(16), u32_at(20));
    if magic != MAGIC || length as usize > TASK_OUTPUT_CHUNK_BYTES_MAX {
        return Ok(None);
    }
    data.resize(length as usize, 0);
    let whole = read_whole(reader, data)?;
    let good = crc32c::crc32c_append(crc32c::crc32c(&header[..20]), data) == crc;
    Ok((whole && good).then_some((host, offset)))
}

fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(task: TaskId, host: u32, offset: u64, data: &'static str) -> Piece {
        Piece { task, host, offset, data: data.into(), bytes_max: 1_000 }
    }

    fn append(store: &OutputStore, piece: Piece) -> u64 {
        store.append(&[piece]).pop().unwrap().unwrap()
    }

    #[test]
    fn pieces_are_stored_once_and_read_back_by_offset() {
        let folder = tempfile::tempdir().unwrap();
        let store = OutputStore::new(folder.path().into());
        let task = TaskId([1; 16]);
        assert_eq!(append(&store, piece(task, 0, 0, "hello ")), 6);
        assert_eq!(append(&store, piece(task, 7, 0, "other")), 5);
        assert_eq!(append(&store, piece(task, 0, 0, "hello ")), 6, "a repeat");
        assert_eq!(append(&store, piece(task, 0, 9, "gap")), 6, "a gap is not stored");
        assert_eq!(append(&store, piece(task, 0, 3, "lo world")), 11, "an overlap");
        assert_eq!(store.read(&task, 0, 0, 100).unwrap(), b"hello world");
        assert_eq!(store.read(&task, 0, 4, 4).unwrap(), b"o wo");
        assert_eq!(store.read(&task, 0, 11, 4).unwrap(), b"");
        let again = OutputStore::new(folder.path().into());
        assert_eq!(again.read(&task, 7, 0, 100).unwrap(), b"other");
        assert_eq!(again.stored(&task, 0).unwrap(), 11);
        assert_eq!(again.tasks().unwrap(), [task]);
        let past = Piece { bytes_max: 12, ..piece(task, 0, 11, "more") };
        assert_eq!(append(&again, past), 15, "past the bound: acknowledged, not kept");
        assert_eq!(again.stored(&task, 0).unwrap(), 11);
    }

    #[test]
    fn a_torn_tail_is_cut_wherever_it_tears() {
        let task = TaskId([2; 16]);
        let folder = tempfile::tempdir().unwrap();
        let store = OutputStore::new(folder.path().into());
        append(&store, piece(task, 0, 0, "first"));
        append(&store, piece(task, 0, 5, "second"));
        let whole = std::fs::read(store.path(&task)).unwrap();
        let first = HEADER_BYTES + 5;
        for cut in first..whole.len() {
            let folder = tempfile::tempdir().unwrap();
            let store = OutputStore::new(folder.path().into());
            let mut torn = whole[..cut].to_vec();
            torn.resize(whole.len(), 0);
            std::fs::write(store.path(&task), torn).unwrap();
            assert_eq!(store.read(&task, 0, 0, 100).unwrap(), b"first", "torn at {cut}");
            assert_eq!(append(&store, piece(task, 0, 5, "again")), 10);
            let store = OutputStore::new(folder.path().into());
            assert_eq!(store.read(&task, 0, 0, 100).unwrap(), b"firstagain");
        }
    }
}
