//! The spool's thread: the only place that touches its files while the agent runs.
//!
//! The worker sends requests and gets answers through queues that it bounds itself (it stops
//! accepting records while too many bytes wait here), so that a disk which stalls for seconds
//! delays no heartbeat. Requests of one lane are done in order. An append never fails: when the
//! disk is full it waits at the head of the queue, is tried again twice a second, and meanwhile
//! removals and reads go on, because they are what makes room.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::histogram;
use skein_observe::names;
use skein_wire::batch::{BatchHeader, HEADER_BYTES};
use tokio::sync::mpsc::UnboundedSender;

use super::index::{Position, SegmentId};
use super::segment::{
    ENTRY_HEADER_BYTES, Entry, Marks, SEGMENT_HEADER_BYTES, SegmentHeader, Step, decode_marks,
    encode_entry, encode_marks, step,
};

/// How long a refused write rests before it is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Segment files kept open for appending; further lanes reopen theirs.
const OPEN_FILES_MAX: usize = 64;
/// How much is read at once.
const READ_CHUNK_BYTES: u64 = 256 * 1024;

/// One entry to write: a batch with its marks, or marks alone when `frame` is empty.
#[derive(Debug)]
pub struct Append {
    pub data_id: u32,
    pub segment: SegmentId,
    pub marks: Vec<u8>,
    pub frame: Bytes,
}

impl Append {
    /// Bytes that the entry takes in its segment.
    pub fn entry_bytes(&self) -> u64 {
        (ENTRY_HEADER_BYTES + 4 + self.marks.len() + self.frame.len()) as u64
    }
}

/// Where to read batches for sending.
#[derive(Debug)]
pub struct Read {
    pub data_id: u32,
    /// Distinguishes this read from those before the reader moved elsewhere.
    pub generation: u64,
    pub segment: SegmentId,
    /// Start of an entry.
    pub offset: u64,
    /// Durable bytes of the segment.
    pub limit: u64,
    /// Batches that end before this sequence are skipped.
    pub from: u64,
    /// About how much to read.
    pub bytes_max: u64,
}

/// What the worker asks for.
#[derive(Debug)]
pub enum Request {
    Append(Append),
    /// Notes an acknowledged position in the lane's open segment; lost if there is none.
    Acked {
        data_id: u32,
        position: Position,
    },
    Remove {
        data_id: u32,
        segment: SegmentId,
    },
    RemoveLane {
        data_id: u32,
    },
    Read(Read),
    /// Flushes everything, notes that the end was in order, and ends the thread.
    Close,
}

/// A batch as it was read back.
#[derive(Clone, Debug)]
pub struct ReadBatch {
    /// Checked.
    pub header: BatchHeader,
    /// Header and body.
    pub frame: Bytes,
}

/// What a read found.
#[derive(Debug, Default)]
pub struct Found {
    pub batches: Vec<ReadBatch>,
    /// Where the next read goes on.
    pub offset: u64,
    pub damaged_bytes: u64,
}

/// What the thread answers.
#[derive(Debug)]
pub enum Done {
    /// The oldest append of the lane that was not answered yet is durable.
    Appended {
        data_id: u32,
        segment: SegmentId,
        segment_bytes: u64,
    },
    Read {
        data_id: u32,
        generation: u64,
        result: io::Result<Found>,
    },
    /// Writes are refused since now (the error) or accepted again.
    Refused(Option<io::Error>),
}

/// The lane's newest segment, as far as the thread goes on with it after recovery.
#[derive(Debug, Default)]
pub struct LaneFiles {
    pub marks: Marks,
    pub newest: Option<OpenSegment>,
}

/// A segment that appends go to.
#[derive(Debug)]
pub struct OpenSegment {
    pub id: SegmentId,
    pub header: SegmentHeader,
    /// Bytes of whole entries; anything beyond is a failed write.
    pub bytes: u64,
    pub file: Option<File>,
}

/// Name of a segment's file.
pub fn file_name(id: SegmentId) -> String {
    format!("{:016x}-{:016x}.seg", id.epoch, id.next)
}

/// The reverse of [`file_name`].
pub fn parse_file_name(name: &str) -> Option<SegmentId> {
    let (epoch, first) = name.strip_suffix(".seg")?.split_once('-')?;
    if epoch.len() != 16 || first.len() != 16 {
        return None;
    }
    Some(Position::new(u64::from_str_radix(epoch, 16).ok()?, u64::from_str_radix(first, 16).ok()?))
}

/// The thread's state.
pub struct Disk {
    pub dir: PathBuf,
    pub boot_id: [u8; 16],
    /// With durability "power": the longest time to a flush.
    pub flush: Option<Duration>,
    pub lanes: HashMap<u32, LaneFiles>,
    pub requests: Receiver<Request>,
    /// Held while the thread lives.
    pub lock: File,
    pub done: UnboundedSender<Done>,
}

impl Disk {
    /// Runs until [`Request::Close`], or until the spool is gone, which is like a kill.
    pub fn run(self) {
        let mut running = Running {
            dir: self.dir,
            boot_id: self.boot_id,
            flush: self.flush,
            lanes: self.lanes,
            _lock: self.lock,
            done: self.done,
            parked: VecDeque::new(),
            refused: false,
            retry_at: None,
            unflushed: Vec::new(),
            flush_at: None,
            scratch: Vec::new(),
            salt: std::collections::hash_map::RandomState::new(),
        };
        loop {
            let next = match running.deadline() {
                None => self.requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => {
                    self.requests.recv_timeout(at.saturating_duration_since(Instant::now()))
                }
            };
            match next {
                Ok(Request::Close) => return running.close(),
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(request) => running.handle(request),
                Err(RecvTimeoutError::Timeout) => {}
            }
            running.tick(Instant::now());
        }
    }
}

struct Running {
    dir: PathBuf,
    boot_id: [u8; 16],
    flush: Option<Duration>,
    lanes: HashMap<u32, LaneFiles>,
    /// Before `done`: whoever sees the answers end may open the spool again.
    _lock: File,
    done: UnboundedSender<Done>,
    /// Appends that wait because the disk refuses writes. Bounded by the worker.
    parked: VecDeque<Append>,
    refused: bool,
    retry_at: Option<Instant>,
    /// Written and not flushed: answers that wait for the flush.
    unflushed: Vec<Done>,
    flush_at: Option<Instant>,
    scratch: Vec<u8>,
    salt: std::collections::hash_map::RandomState,
}

impl Running {
    fn deadline(&self) -> Option<Instant> {
        [self.retry_at, self.flush_at].into_iter().flatten().min()
    }

    fn tick(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry();
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_all();
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Append(append) => {
                self.parked.push_back(append);
                if self.retry_at.is_none() {
                    self.retry();
                }
            }
            Request::Acked { data_id, position } => self.note_acked(data_id, position),
            Request::Remove { data_id, segment } => self.remove(data_id, segment),
            Request::RemoveLane { data_id } => {
                self.lanes.remove(&data_id);
                if let Err(error) = std::fs::remove_dir_all(self.dir.join(data_id.to_string())) {
                    tracing::warn!(data_id, %error, "cannot remove an idle lane's folder");
                }
            }
            Request::Read(read) => {
                let result = read_batches(&self.path(read.data_id, read.segment), &read);
                let (data_id, generation) = (read.data_id, read.generation);
                let _ = self.done.send(Done::Read { data_id, generation, result });
            }
            Request::Close => {}
        }
    }

    /// Writes what waits, until the disk refuses.
    fn retry(&mut self) {
        self.retry_at = None;
        while let Some(append) = self.parked.pop_front() {
            match self.append(&append) {
                Ok(segment_bytes) => {
                    let Append { data_id, segment, .. } = append;
                    self.answer(Done::Appended { data_id, segment, segment_bytes });
                }
                Err(error) => {
                    self.parked.push_front(append);
                    self.retry_at = Some(Instant::now() + RETRY);
                    if !self.refused {
                        self.refused = true;
                        let _ = self.done.send(Done::Refused(Some(error)));
                    }
                    return;
                }
            }
        }
        if std::mem::take(&mut self.refused) {
            let _ = self.done.send(Done::Refused(None));
        }
    }

    fn answer(&mut self, done: Done) {
        match self.flush {
            None => {
                let _ = self.done.send(done);
            }
            Some(interval) => {
                self.unflushed.push(done);
                self.flush_at.get_or_insert_with(|| Instant::now() + interval);
            }
        }
    }

    fn append(&mut self, append: &Append) -> io::Result<u64> {
        self.prepare(append.data_id, append.segment)?;
        let lane = self.lanes.entry(append.data_id).or_default();
        let Some(open) = &mut lane.newest else {
            return Err(io::Error::other("a prepared lane has an open segment"));
        };
        self.scratch.clear();
        if open.bytes == 0 {
            self.scratch.extend_from_slice(&open.header.encode());
            if !lane.marks.is_empty() {
                let mut marks = Vec::new();
                encode_marks(lane.marks.iter().map(|(k, v)| (&k[..], &v[..])), &mut marks);
                encode_entry(open.header.salt, &Entry::Marks(&marks), &mut self.scratch);
            }
        }
        let entry = if append.frame.is_empty() {
            Entry::Marks(&append.marks)
        } else {
            Entry::Batch { marks: &append.marks, frame: &append.frame }
        };
        encode_entry(open.header.salt, &entry, &mut self.scratch);
        write(open, &self.scratch)?;
        decode_marks(&append.marks, &mut lane.marks);
        Ok(open.bytes)
    }

    /// Makes `segment` the one that the lane's appends go to, with its file open.
    fn prepare(&mut self, data_id: u32, segment: SegmentId) -> io::Result<()> {
        let (path, dir) = (self.path(data_id, segment), self.dir.join(data_id.to_string()));
        let open_files = self
            .lanes
            .values()
            .filter(|lane| matches!(&lane.newest, Some(open) if open.file.is_some()));
        if open_files.count() > OPEN_FILES_MAX {
            self.flush_all();
            self.lanes.values_mut().filter_map(|lane| lane.newest.as_mut()).for_each(|open| {
                open.file = None;
            });
        }
        let salt = self.salt_for(segment);
        let lane = self.lanes.entry(data_id).or_default();
        let same = lane.newest.as_ref().is_some_and(|open| open.id == segment);
        if !same {
            if let (Some(Some(old)), true) =
                (lane.newest.as_ref().map(|open| &open.file), self.flush.is_some())
            {
                old.sync_data()?;
            }
            lane.newest = Some(OpenSegment {
                id: segment,
                header: SegmentHeader {
                    data_id,
                    epoch: segment.epoch,
                    first: segment.next,
                    boot_id: self.boot_id,
                    salt,
                },
                bytes: 0,
                file: None,
            });
        }
        let Some(open) = &mut lane.newest else { return Ok(()) };
        if open.file.is_none() {
            if open.bytes == 0 {
                std::fs::create_dir_all(&dir)?;
            }
            let mut options = OpenOptions::new();
            options.write(true).mode(0o600);
            // A file of this name without a whole entry is what a refused write left.
            options.create(open.bytes == 0).truncate(open.bytes == 0);
            open.file = Some(options.open(&path)?);
            if open.bytes == 0 && self.flush.is_some() {
                File::open(&dir)?.sync_all()?;
                File::open(&self.dir)?.sync_all()?;
            }
        }
        Ok(())
    }

    fn salt_for(&self, segment: SegmentId) -> u64 {
        use std::hash::{BuildHasher, Hash, Hasher};
        let mut hasher = self.salt.build_hasher();
        segment.hash(&mut hasher);
        Instant::now().hash(&mut hasher);
        hasher.finish()
    }

    fn note_acked(&mut self, data_id: u32, position: Position) {
        let open = self.lanes.get_mut(&data_id).and_then(|lane| lane.newest.as_mut());
        let Some(open) = open.filter(|open| open.bytes > 0 && open.file.is_some()) else { return };
        self.scratch.clear();
        let entry = Entry::Acked { epoch: position.epoch, next: position.next };
        encode_entry(open.header.salt, &entry, &mut self.scratch);
        // What is not noted is asked of the server again.
        let _ = write(open, &self.scratch);
    }

    fn remove(&mut self, data_id: u32, segment: SegmentId) {
        if let Some(lane) = self.lanes.get_mut(&data_id)
            && lane.newest.as_ref().is_some_and(|open| open.id == segment)
        {
            lane.newest = None;
        }
        let path = self.path(data_id, segment);
        match std::fs::remove_file(&path) {
            Ok(()) => {
                // Room on a full disk: what waits is tried at once.
                if self.retry_at.is_some() {
                    self.retry_at = Some(Instant::now());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a spool segment");
            }
        }
    }

    fn flush_all(&mut self) {
        self.flush_at = None;
        if self.unflushed.is_empty() {
            return;
        }
        let started = Instant::now();
        let mut flushed: Vec<u32> = Vec::new();
        for done in &self.unflushed {
            let Done::Appended { data_id, .. } = done else { continue };
            if flushed.contains(data_id) {
                continue;
            }
            flushed.push(*data_id);
            let file = self.lanes.get(data_id).and_then(|lane| lane.newest.as_ref());
            if let Some(Err(error)) = file.and_then(|open| open.file.as_ref()).map(File::sync_data)
            {
                // Not durable, so not answered: tried again with the next flush.
                tracing::error!(data_id, %error, "cannot flush the spool; records wait");
                self.flush_at = Some(Instant::now() + RETRY);
                return;
            }
        }
        histogram!(names::AGENT_SPOOL_FLUSH_SECONDS).record(started.elapsed().as_secs_f64());
        for done in self.unflushed.drain(..) {
            let _ = self.done.send(done);
        }
    }

    fn close(mut self) {
        self.retry();
        for lane in self.lanes.values_mut() {
            let Some(open) = lane.newest.as_mut().filter(|open| open.bytes > 0) else { continue };
            self.scratch.clear();
            encode_entry(open.header.salt, &Entry::Clean, &mut self.scratch);
            // Flushed before and after: the note must not be on disk before what it vouches for.
            let Some(file) = &open.file else { continue };
            let _ = file.sync_data().and_then(|()| write(open, &self.scratch));
            if let Some(file) = &open.file {
                let _ = file.sync_data();
            }
        }
        self.flush_all();
    }

    fn path(&self, data_id: u32, segment: SegmentId) -> PathBuf {
        self.dir.join(data_id.to_string()).join(file_name(segment))
    }
}

/// Appends to the segment; after a failure the file has its former length.
fn write(open: &mut OpenSegment, bytes: &[u8]) -> io::Result<()> {
    let Some(file) = &open.file else {
        return Err(io::Error::other("the segment's file is not open"));
    };
    match file.write_all_at(bytes, open.bytes) {
        Ok(()) => {
            open.bytes += bytes.len() as u64;
            Ok(())
        }
        Err(error) => {
            let _ = file.set_len(open.bytes);
            Err(error)
        }
    }
}

/// Reads batches from a segment until about `bytes_max` are found or its durable bytes end.
fn read_batches(path: &Path, read: &Read) -> io::Result<Found> {
    let file = File::open(path)?;
    let mut head = [0; SEGMENT_HEADER_BYTES];
    file.read_exact_at(&mut head, 0)?;
    let header = SegmentHeader::decode(&head)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "segment header is damaged"))?;
    let mut found =
        Found { offset: read.offset.max(SEGMENT_HEADER_BYTES as u64), ..Found::default() };
    let mut got = 0;
    let mut want = READ_CHUNK_BYTES;
    while got < read.bytes_max && found.offset < read.limit {
        let bytes = (read.limit - found.offset).min(want);
        let last = found.offset + bytes == read.limit;
        let mut chunk = vec![0; bytes as usize];
        file.read_exact_at(&mut chunk, found.offset)?;
        let chunk = Bytes::from(chunk);
        let mut at = 0;
        want = READ_CHUNK_BYTES;
        loop {
            match step(header.salt, &chunk, at, last) {
                Step::Entry(Entry::Batch { frame, .. }, end) => {
                    at = end;
                    let header = frame.first_chunk::<HEADER_BYTES>();
                    let header = header.and_then(|header| BatchHeader::decode(header).ok());
                    if let Some(header) = header.filter(|header| header.end().0 > read.from) {
                        got += frame.len() as u64;
                        found.batches.push(ReadBatch { header, frame: chunk.slice_ref(frame) });
                    }
                    if got >= read.bytes_max {
                        break;
                    }
                }
                Step::Entry(_, end) => at = end,
                Step::Damage(next) => {
                    found.damaged_bytes += (next - at) as u64;
                    at = next;
                }
                Step::Partial { need } => {
                    want = want.max(need as u64);
                    break;
                }
                Step::End => {
                    found.damaged_bytes += (chunk.len() - at) as u64;
                    at = chunk.len();
                    break;
                }
            }
        }
        found.offset += at as u64;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_read_back() {
        let id = Position::new(0xABC, 17);
        assert_eq!(parse_file_name(&file_name(id)), Some(id));
        for other in ["", "x.seg", "0-1.seg", "lock"] {
            assert_eq!(parse_file_name(other), None);
        }
    }
}
