//! The checkpoint log: how long each open file is, and where each lane stands in each stream.
//!
//! One log per router worker. After every group flush one frame is appended with the new lengths
//! and positions; only when it is stored are batches acknowledged. Because a frame holds both, a
//! restart that cuts the files to their lengths and resumes the lanes at their positions neither
//! loses nor repeats a record.
//!
//! ```text
//! log    "SKCKPT1\n" frame*
//! frame  u32 length · u32 CRC-32C of the content · content: entries        (little-endian)
//! entry  1 file    u64 file, u32 stream, u64 device, u64 inode, u64 length, u64 opened_ms,
//!                  u32 number, text root, text base, text path
//!        2 length  u64 file, u64 length
//!        3 closed  u64 file
//!        4 lane    text agent, u32 data_id, u64 epoch, u64 position, u16 count,
//!                  count × (u32 stream, u64 position)
//! text   u16 length · UTF-8
//! ```
//! Reading ends at the first frame that is torn: what follows was never acknowledged.

use std::collections::{BTreeMap, HashMap};

use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};

use super::disk::FileId;

/// First bytes of a log.
pub const MAGIC: &[u8; 8] = b"SKCKPT1\n";

/// Content of one frame. A flush of 262,144 lanes with two streams each has 36 MiB.
pub const FRAME_BYTES_MAX: usize = 128 << 20;

const FRAME_HEADER_BYTES: usize = 8;

/// An open file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Name within this log.
    pub file: FileId,
    /// Whose.
    pub stream: u32,
    /// Identity.
    pub device: u64,
    /// Identity.
    pub inode: u64,
    /// Everything before is whole.
    pub length: u64,
    /// When it was created, wall clock.
    pub opened_ms: u64,
    /// Rotation number.
    pub number: u32,
    /// The stream's directory.
    pub root: String,
    /// Path as rendered.
    pub base: String,
    /// Path with its rotation number.
    pub path: String,
}

/// Where a lane stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneEntry {
    /// With the data id it names the lane.
    pub agent: AgentId,
    /// See `agent`.
    pub data_id: DataId,
    /// The lane's life.
    pub epoch: Epoch,
    /// Everything before is stored in every stream of its routes.
    pub position: Sequence,
    /// Streams that stored more.
    pub streams: Vec<(u32, Sequence)>,
}

/// Collects entries into one frame.
#[derive(Debug)]
pub struct Frame {
    bytes: Vec<u8>,
}

impl Default for Frame {
    fn default() -> Self {
        Self { bytes: vec![0; FRAME_HEADER_BYTES] }
    }
}

impl Frame {
    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEADER_BYTES
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds an open file.
    pub fn file(&mut self, entry: &FileEntry) {
        self.bytes.push(1);
        self.long(entry.file.0);
        self.number(entry.stream);
        for value in [entry.device, entry.inode, entry.length, entry.opened_ms] {
            self.long(value);
        }
        self.number(entry.number);
        for text in [&entry.root, &entry.base, &entry.path] {
            self.text(text);
        }
    }

    /// Adds a file's new length.
    pub fn length(&mut self, file: FileId, length: u64) {
        self.bytes.push(2);
        self.long(file.0);
        self.long(length);
    }

    /// Adds that a file is complete.
    pub fn closed(&mut self, file: FileId) {
        self.bytes.push(3);
        self.long(file.0);
    }

    /// Adds a lane's position.
    pub fn lane(
        &mut self,
        agent: &AgentId,
        data_id: DataId,
        epoch: Epoch,
        position: Sequence,
        streams: impl Iterator<Item = (u32, Sequence)>,
    ) {
        self.bytes.push(4);
        self.text(agent.as_str());
        self.number(data_id.0);
        self.long(epoch.0);
        self.long(position.0);
        let count_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        let mut count = 0u16;
        for (stream, position) in streams.take(usize::from(u16::MAX)) {
            self.number(stream);
            self.long(position.0);
            count += 1;
        }
        self.bytes[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
    }

    /// The frame's bytes; empties it.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(self).bytes;
        let content = bytes.len() - FRAME_HEADER_BYTES;
        let crc = crc32c::crc32c(&bytes[FRAME_HEADER_BYTES..]);
        bytes[..4].copy_from_slice(&(content as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn number(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        let length = text.len().min(usize::from(u16::MAX));
        self.bytes.extend_from_slice(&(length as u16).to_le_bytes());
        self.bytes.extend_from_slice(&text.as_bytes()[..length]);
    }
}

/// What a log says.
#[derive(Debug, Default)]
pub struct State {
    /// Files that were open.
    pub files: BTreeMap<FileId, FileEntry>,
    /// All lanes.
    pub lanes: HashMap<(AgentId, DataId), LaneEntry>,
    /// Bytes of the log that are whole.
    pub whole_bytes: usize,
}

impl State {
    /// Reads a log up to its first torn frame.
    pub fn replay(log: &[u8]) -> Self {
        let mut state = Self::default();
        let Some(mut rest) = log.strip_prefix(MAGIC.as_slice()) else { return state };
        while let Some((content, after)) = split_frame(rest) {
            let mut entries = Reader { bytes: content };
            while !entries.bytes.is_empty() {
                if entries.entry(&mut state).is_none() {
                    // A frame that is whole but not understood: of a newer version, or a fault.
                    break;
                }
            }
            rest = after;
        }
        state.whole_bytes = log.len() - rest.len();
        state
    }
}

fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(FRAME_HEADER_BYTES)?;
    let mut header = Reader { bytes: header };
    let (length, crc) = (header.number()? as usize, header.number()?);
    if length > FRAME_BYTES_MAX {
        return None;
    }
    let (content, after) = rest.split_at_checked(length)?;
    (crc32c::crc32c(content) == crc).then_some((content, after))
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn entry(&mut self, state: &mut State) -> Option<()> {
        match self.take(1)?[0] {
            1 => {
                let entry = FileEntry {
                    file: FileId(self.long()?),
                    stream: self.number()?,
                    device: self.long()?,
                    inode: self.long()?,
                    length: self.long()?,
                    opened_ms: self.long()?,
                    number: self.number()?,
                    root: self.text()?.to_owned(),
                    base: self.text()?.to_owned(),
                    path: self.text()?.to_owned(),
                };
                state.files.insert(entry.file, entry);
            }
            2 => {
                let (file, length) = (FileId(self.long()?), self.long()?);
                if let Some(entry) = state.files.get_mut(&file) {
                    entry.length = length;
                }
            }
            3 => {
                state.files.remove(&FileId(self.long()?));
            }
            4 => {
                let agent = AgentId::parse(self.text()?).ok()?;
                let data_id = DataId(self.number()?);
                let (epoch, position) = (Epoch(self.long()?), Sequence(self.long()?));
                let count = u16::from_le_bytes(*self.take(2)?.first_chunk()?);
                let streams = (0..count)
                    .map(|_| Some((self.number()?, Sequence(self.long()?))))
                    .collect::<Option<Vec<_>>>()?;
                let key = (agent.clone(), data_id);
                let entry = LaneEntry { agent, data_id, epoch, position, streams };
                state.lanes.insert(key, entry);
            }
            _ => return None,
        }
        Some(())
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(head)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    fn long(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = u16::from_le_bytes(*self.take(2)?.first_chunk()?);
        std::str::from_utf8(self.take(length.into())?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agent() -> AgentId {
        AgentId::parse("a-1").unwrap()
    }

    fn file(id: u64, length: u64) -> FileEntry {
        FileEntry {
            file: FileId(id),
            stream: 3,
            device: 4,
            inode: 5,
            length,
            opened_ms: 6,
            number: 7,
            root: "/r".to_owned(),
            base: "b".to_owned(),
            path: "p".to_owned(),
        }
    }

    fn sample() -> Vec<u8> {
        let mut log = MAGIC.to_vec();
        let mut frame = Frame::default();
        frame.file(&file(1, 0));
        frame.file(&file(2, 0));
        log.extend(frame.finish());
        frame.length(FileId(1), 100);
        frame.closed(FileId(2));
        let streams = [(3, Sequence(12))];
        frame.lane(&agent(), DataId(9), Epoch(1), Sequence(10), streams.into_iter());
        log.extend(frame.finish());
        log
    }

    #[test]
    fn a_log_says_what_was_written() {
        let log = sample();
        let state = State::replay(&log);
        assert_eq!(state.whole_bytes, log.len());
        assert_eq!(state.files.values().collect::<Vec<_>>(), [&file(1, 100)]);
        let lane = &state.lanes[&(agent(), DataId(9))];
        assert_eq!((lane.epoch, lane.position), (Epoch(1), Sequence(10)));
        assert_eq!(lane.streams, [(3, Sequence(12))]);
    }

    #[test]
    fn a_torn_tail_is_the_state_before_it() {
        let log = sample();
        let first = State::replay(&log[..log.len() - 1]);
        assert_eq!(first.files.len(), 2);
        assert!(first.lanes.is_empty());
        for cut in 0..log.len() {
            assert!(State::replay(&log[..cut]).whole_bytes <= cut);
        }
        assert_eq!(State::replay(b"something else").whole_bytes, 0);
    }

    proptest! {
        #[test]
        fn damage_never_passes(at in 0usize..200, flip in 1u8..=255) {
            let mut log = sample();
            let at = at % log.len();
            log[at] ^= flip;
            let state = State::replay(&log);
            prop_assert!(state.whole_bytes < log.len());
        }

        #[test]
        fn garbage_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut log = MAGIC.to_vec();
            let mut frame = Frame::default();
            frame.bytes.extend_from_slice(&bytes);
            log.extend(frame.finish());
            log.extend_from_slice(&bytes);
            State::replay(&log);
        }
    }
}
