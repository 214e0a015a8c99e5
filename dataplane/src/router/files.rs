//! The files of the streams: opened when a record needs one, recorded in the checkpoint log before
//! the first byte is written, rotated by size, age and path, repaired after a failure.
//!
//! ```text
//!            opened          recorded                     failed
//!  Opening ─────────► Recording ─────► Ready ◄──────────► Repairing ──► Broken (cut again later)
//!     └ failed: Abandoned
//! ```
//! Records go to a file's tape in any of the first three states; writes leave it only when Ready.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use skein_wire::ids::DataId;

use crate::sinks::block::Tape;
use crate::sinks::checkpoint::FileEntry;
use crate::sinks::disk::{DiskOp, FileId, OpenFile, Opened, error_label};
use crate::sinks::recover::LeftFile;
use crate::sinks::template::Names;

use super::core::RouterCore;
use super::flush::Tag;
use super::streams::{Failure, RETRY_MS_MAX, Stream};

/// Files that one worker keeps open. A driver uses up to three descriptors for each.
const FILES_MAX: usize = 512;

/// See the module's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    Opening,
    Recording,
    Ready,
    Repairing,
    Broken,
    Abandoned,
}

/// A file of a stream.
#[derive(Debug)]
pub struct SinkFile {
    pub stream: u32,
    pub state: FileState,
    /// The checkpoint log names it.
    pub recorded: bool,
    /// Nothing more is appended; it is closed when all of it is stored.
    pub closing: bool,
    pub tape: Tape,
    /// Length by the checkpoint log.
    pub stored: u64,
    root: PathBuf,
    base: String,
    path: String,
    number: u32,
    device: u64,
    inode: u64,
    opened_ms: u64,
    valid_until_ms: u64,
    used_ms: u64,
}

impl SinkFile {
    /// Whether the tape has what the checkpoint has not.
    pub fn is_dirty(&self) -> bool {
        self.tape.length() > self.stored
    }

    /// For the checkpoint log.
    pub fn entry(&self, file: FileId) -> FileEntry {
        FileEntry {
            file,
            stream: self.stream,
            device: self.device,
            inode: self.inode,
            length: self.stored,
            opened_ms: self.opened_ms,
            number: self.number,
            root: self.root.to_string_lossy().into_owned(),
            base: self.base.clone(),
            path: self.path.clone(),
        }
    }

    fn is_past(&self, wall_ms: u64, rotate_ms: u64) -> bool {
        wall_ms >= self.valid_until_ms || wall_ms.saturating_sub(self.opened_ms) >= rotate_ms
    }
}

/// The files of a worker.
#[derive(Debug, Default)]
pub struct Files {
    files: HashMap<FileId, SinkFile>,
    last: u64,
}

impl Files {
    pub fn get(&self, file: FileId) -> Option<&SinkFile> {
        self.files.get(&file)
    }

    pub fn get_mut(&mut self, file: FileId) -> Option<&mut SinkFile> {
        self.files.get_mut(&file)
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (FileId, &SinkFile)> {
        self.files.iter().map(|(id, file)| (*id, file))
    }

    fn add(&mut self, file: SinkFile) -> FileId {
        self.last += 1;
        let id = FileId(self.last);
        self.files.insert(id, file);
        id
    }
}

impl RouterCore {
    /// The file that takes a stream's next records of a data id.
    pub(super) fn file_for(&mut self, stream_id: u32, data_id: DataId) -> io::Result<FileId> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "stream has no configuration");
        let wall_ms = self.now.wall_ms;
        let stream = self.streams.get_mut(&stream_id).ok_or_else(gone)?;
        let config = stream.config.as_ref().ok_or_else(gone)?;
        let key = config.template.by_data_id().then_some(data_id);
        let mut number = 0;
        if let Some(id) = stream.current.get(&key).copied()
            && let Some(file) = self.files.get_mut(id)
        {
            let full = file.tape.length() >= config.rotate_bytes;
            if !full && !file.is_past(wall_ms, config.rotate_ms) {
                file.used_ms = self.now.mono_ms;
                return Ok(id);
            }
            if wall_ms < file.valid_until_ms {
                number = file.number + 1;
            }
            file.closing = true;
            stream.current.remove(&key);
            stream.meter.rotations.increment(1);
            self.close_if_complete(id);
        }
        self.open_file(stream_id, key, data_id, number)
    }

    fn open_file(
        &mut self,
        stream_id: u32,
        key: Option<DataId>,
        data_id: DataId,
        number: u32,
    ) -> io::Result<FileId> {
        if self.files.files.len() >= FILES_MAX {
            self.close_least_used();
        }
        if self.files.files.len() >= FILES_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let wall_ms = self.now.wall_ms;
        let gone = || io::Error::new(io::ErrorKind::NotFound, "stream has no configuration");
        let stream = self.streams.get_mut(&stream_id).ok_or_else(gone)?;
        let config = stream.config.as_ref().ok_or_else(gone)?;
        let names = Names { data_id, stream: &config.name, writer: self.worker, wall_ms };
        let base = config.template.render(&names);
        let left = take_left(&mut self.left, stream_id, &config.root, &base).filter(|left| {
            left.resume.length < config.rotate_bytes
                && wall_ms.saturating_sub(left.opened_ms) < config.rotate_ms
        });
        let opened_ms = left.as_ref().map_or(wall_ms, |left| left.opened_ms);
        let resume = left.map(|left| left.resume);
        let length = resume.as_ref().map_or(0, |resume| resume.length);
        let tail = resume.as_ref().map_or_else(Vec::new, |resume| resume.tail.clone());
        let durable = config.durable;
        let open = OpenFile { root: config.root.clone(), base: base.clone(), number, resume };
        let file = SinkFile {
            stream: stream_id,
            state: FileState::Opening,
            recorded: false,
            closing: false,
            tape: Tape::new(length, tail),
            stored: length,
            root: config.root.clone(),
            path: base.clone(),
            base,
            number,
            device: 0,
            inode: 0,
            opened_ms,
            valid_until_ms: config.template.valid_until_ms(wall_ms),
            used_ms: self.now.mono_ms,
        };
        let id = self.files.add(file);
        stream.current.insert(key, id);
        stream.files.push(id);
        self.meter.files_open.increment(1.0);
        self.op(DiskOp::Open { file: id, open, durable });
        Ok(id)
    }

    pub(super) fn on_opened(&mut self, id: FileId, result: io::Result<Opened>) {
        let Some(file) = self.files.get_mut(id) else { return };
        let (stream_id, abandoned) = (file.stream, file.state == FileState::Abandoned);
        match result {
            Ok(opened) if !abandoned && opened.length == file.stored => {
                (file.path, file.number) = (opened.path, opened.number);
                (file.device, file.inode) = (opened.device, opened.inode);
                file.state = FileState::Recording;
                let entry = file.entry(id);
                let durable = self.is_durable(stream_id);
                self.log.frame.file(&entry);
                self.log.push(Tag::Opened(id), durable);
            }
            Ok(opened) => {
                // Given up meanwhile, or the file to go on with has changed since it was cut.
                self.op(DiskOp::Close { file: id, length: opened.length });
                self.forget_file(id);
                if !abandoned {
                    self.fail_stream(stream_id, &io::Error::other("file changed while opening"));
                }
            }
            Err(error) => {
                self.forget_file(id);
                if !abandoned {
                    self.fail_stream(stream_id, &error);
                }
            }
        }
    }

    /// The log names the file: from now on it may have content.
    pub(super) fn on_recorded(&mut self, id: FileId) {
        if let Some(file) = self.files.get_mut(id) {
            file.recorded = true;
            if file.state == FileState::Recording {
                file.state = FileState::Ready;
            }
            self.write_full_blocks(id);
        }
    }

    /// Lets full blocks go to the disk.
    pub(super) fn write_full_blocks(&mut self, id: FileId) {
        while let Some(file) = self.files.get_mut(id)
            && file.state == FileState::Ready
            && let Some(write) = file.tape.take_full()
        {
            self.op(DiskOp::Write { file: id, write });
        }
    }

    fn is_durable(&self, stream_id: u32) -> bool {
        let config = self.streams.get(&stream_id).and_then(|stream| stream.config.as_ref());
        config.is_some_and(|config| config.durable)
    }

    /// Closes a file whose last record is stored and that takes no more.
    pub(super) fn close_if_complete(&mut self, id: FileId) {
        let complete =
            |file: &SinkFile| file.closing && file.state == FileState::Ready && !file.is_dirty();
        if self.files.get(id).is_some_and(complete) {
            self.close_file(id);
        }
    }

    /// Closes a file for good. Everything on its tape is stored or given up.
    pub(super) fn close_file(&mut self, id: FileId) {
        let Some(file) = self.files.get_mut(id) else { return };
        let length = file.stored;
        match file.state {
            FileState::Opening => {
                file.state = FileState::Abandoned;
                return self.detach_file(id);
            }
            // It may have more than is stored, and whatever its stream becomes, that must go.
            FileState::Repairing | FileState::Broken => {
                file.closing = true;
                return self.detach_file(id);
            }
            FileState::Recording | FileState::Ready | FileState::Abandoned => {}
        }
        if file.recorded {
            self.log.frame.closed(id);
        }
        self.op(DiskOp::Close { file: id, length });
        self.forget_file(id);
    }

    fn forget_file(&mut self, id: FileId) {
        self.detach_file(id);
        let Some(mut file) = self.files.files.remove(&id) else { return };
        file.tape.discard(&mut self.pool);
        self.meter.files_open.decrement(1.0);
    }

    /// The file's stream does not know it any more.
    fn detach_file(&mut self, id: FileId) {
        let stream = self.files.get(id).and_then(|file| self.streams.get_mut(&file.stream));
        if let Some(stream) = stream {
            stream.files.retain(|known| *known != id);
            stream.current.retain(|_, known| *known != id);
        }
    }

    /// Whether a file can be closed at any time. Those of a failed stream are needed to find out
    /// whether it is well again.
    fn is_idle(&self, file: &SinkFile) -> bool {
        let stream = self.streams.get(&file.stream);
        file.state == FileState::Ready
            && !file.is_dirty()
            && stream.is_none_or(|stream| stream.failure.is_none())
    }

    /// Makes room for another open file.
    fn close_least_used(&mut self) {
        let files = self.files.iter().filter(|(_, file)| self.is_idle(file));
        if let Some((id, _)) = files.min_by_key(|(_, file)| file.used_ms) {
            self.close_file(id);
        }
    }

    /// Closes files that no record came to close.
    pub(super) fn close_files_past_their_time(&mut self) {
        let wall_ms = self.now.wall_ms;
        let rotate_ms = |stream: u32| {
            let config = self.streams.get(&stream).and_then(|stream| stream.config.as_ref());
            config.map_or(u64::MAX, |config| config.rotate_ms)
        };
        let past: Vec<FileId> = self
            .files
            .iter()
            .filter(|(_, file)| self.is_idle(file))
            .filter(|(_, file)| file.is_past(wall_ms, rotate_ms(file.stream)))
            .map(|(id, _)| id)
            .collect();
        for id in past {
            self.close_file(id);
        }
        let broken = |file: &SinkFile| file.closing && file.state == FileState::Broken;
        let orphans = self.files.iter().filter(|(_, file)| broken(file)).map(|(id, _)| id);
        for id in orphans.collect::<Vec<_>>() {
            self.repair_file(id);
        }
    }

    /// Closes without saying so in the log: the next start goes on with these files.
    pub(super) fn close_files_for_stop(&mut self) {
        for (id, length) in
            self.files.iter().map(|(id, file)| (id, file.stored)).collect::<Vec<_>>()
        {
            self.op(DiskOp::Close { file: id, length });
        }
    }

    pub(super) fn on_file_error(&mut self, id: FileId, error: &io::Error) {
        if let Some(stream) = self.files.get(id).map(|file| file.stream) {
            self.fail_stream(stream, error);
        }
    }

    /// A stream's sink does not take records. What is not in a checkpoint is cut from its files,
    /// its lanes go back to what is stored and are held; agents send the rest again.
    pub(super) fn fail_stream(&mut self, stream_id: u32, error: &io::Error) {
        let Some(stream) = self.streams.get_mut(&stream_id) else { return };
        stream.meter.error(error_label(error));
        if stream.failure.is_some() {
            return;
        }
        tracing::error!(
            stream = stream.source.name, %error, retry_ms = stream.retry_ms,
            "sink does not take records; its lanes are held and nothing is lost"
        );
        fail(stream, self.now.mono_ms);
        stream.generation += 1;
        stream.forget_dirty();
        for id in stream.files.clone() {
            let Some(file) = self.files.get_mut(id) else { continue };
            file.tape.discard(&mut self.pool);
            match file.state {
                FileState::Opening => {
                    file.state = FileState::Abandoned;
                    self.detach_file(id);
                }
                FileState::Recording | FileState::Ready => self.repair_file(id),
                FileState::Repairing | FileState::Broken | FileState::Abandoned => {}
            }
        }
        for index in self.lanes.indices() {
            let Some(lane) = self.lanes.get_mut(index) else { continue };
            let mut active = lane.streams.iter_mut().filter(|stream| stream.active);
            let Some(failed) = active.find(|stream| stream.stream == stream_id) else { continue };
            failed.written = failed.stored;
            lane.stale_end = lane.stale_end.max(Some(lane.rx.position_received()));
            lane.rx.rewind(lane.stored_everywhere());
            self.settle_lane(index);
        }
    }

    fn repair_file(&mut self, id: FileId) {
        let Some(file) = self.files.get_mut(id) else { return };
        file.state = FileState::Repairing;
        let (stream_id, length) = (file.stream, file.stored);
        self.op(DiskOp::Truncate { file: id, length });
        if let Some(failure) = self.failure_mut(stream_id) {
            failure.repairing += 1;
        }
    }

    fn failure_mut(&mut self, stream_id: u32) -> Option<&mut Failure> {
        self.streams.get_mut(&stream_id)?.failure.as_mut()
    }

    pub(super) fn on_truncated(&mut self, id: FileId, result: io::Result<Vec<u8>>) {
        let Some(file) = self.files.get_mut(id) else { return };
        let stream_id = file.stream;
        match result {
            Ok(tail) => {
                file.tape = Tape::new(file.stored, tail);
                file.state = if file.recorded { FileState::Ready } else { FileState::Recording };
            }
            Err(error) => {
                file.state = FileState::Broken;
                tracing::error!(path = file.path, %error, "sink file cannot be cut; trying again");
            }
        }
        if let Some(failure) = self.failure_mut(stream_id) {
            failure.repairing = failure.repairing.saturating_sub(1);
        }
        self.close_if_complete(id);
    }

    /// Looks after failed streams whose time has come.
    pub(super) fn retry_failed(&mut self) {
        let now_ms = self.now.mono_ms;
        let due = |stream: &&Stream| {
            let failure = stream.failure.as_ref();
            failure.is_some_and(|it| it.repairing == 0 && now_ms >= it.retry_at_ms)
        };
        let due: Vec<u32> = self.streams.values().filter(due).map(|stream| stream.id).collect();
        for stream_id in due {
            let Some(stream) = self.streams.get_mut(&stream_id) else { continue };
            let state_of = |id: &FileId| self.files.get(*id).map(|file| file.state);
            let in_state = |state| {
                let files = stream.files.iter().filter(|id| state_of(id) == Some(state));
                files.copied().collect::<Vec<_>>()
            };
            let broken = in_state(FileState::Broken);
            let ready = in_state(FileState::Ready);
            if let Some(failure) = &mut stream.failure {
                failure.retry_at_ms = now_ms + stream.retry_ms;
            }
            if !broken.is_empty() {
                broken.into_iter().for_each(|id| self.repair_file(id));
            } else if let Some(id) = ready.first().copied() {
                let length = self.files.get(id).map_or(0, |file| file.stored);
                if let Some(failure) = self.failure_mut(stream_id) {
                    failure.repairing += 1;
                }
                self.op(DiskOp::Probe { file: id, length });
            } else {
                // Nothing to ask: the next record opens a file, or fails again.
                self.recover_stream(stream_id);
            }
        }
    }

    pub(super) fn on_probed(&mut self, id: FileId, result: io::Result<()>) {
        let Some(stream_id) = self.files.get(id).map(|file| file.stream) else { return };
        let now_ms = self.now.mono_ms;
        let Some(stream) = self.streams.get_mut(&stream_id) else { return };
        match result {
            Ok(()) => self.recover_stream(stream_id),
            Err(error) => {
                stream.meter.error(error_label(&error));
                fail(stream, now_ms);
            }
        }
    }

    fn recover_stream(&mut self, stream_id: u32) {
        let Some(stream) = self.streams.get_mut(&stream_id) else { return };
        stream.failure = None;
        tracing::info!(stream = stream.source.name, "sink is tried again; its lanes resume");
        for index in self.lanes.indices() {
            self.settle_lane(index);
        }
    }

    /// When a failed stream or an altered batch is looked after.
    pub(super) fn retry_due_ms(&self) -> Option<u64> {
        let failures = self.streams.values().filter_map(|stream| stream.failure.as_ref());
        let streams = failures.filter(|it| it.repairing == 0).map(|it| it.retry_at_ms).min();
        // Altered batches are so rare that looking each second is simplest.
        let altered = (!self.altered.is_empty()).then_some(self.now.mono_ms + 1_000);
        [streams, altered].into_iter().flatten().min()
    }
}

/// The last file that a path had, out of what was left. Earlier ones were about to be complete and
/// are, now that they were cut.
fn take_left(left: &mut Vec<LeftFile>, stream: u32, root: &Path, base: &str) -> Option<LeftFile> {
    let matching = |file: &mut LeftFile| {
        (file.stream, file.root.as_path(), file.base.as_str()) == (stream, root, base)
    };
    left.extract_if(.., matching).max_by_key(|file| file.resume.number)
}

/// Marks a stream as failed and lengthens its next pause.
fn fail(stream: &mut Stream, now_ms: u64) {
    stream.failure = Some(Failure { retry_at_ms: now_ms + stream.retry_ms, repairing: 0 });
    stream.retry_ms = (stream.retry_ms * 2).min(RETRY_MS_MAX);
}
