//! The journal of commands: what was ordered is on disk before anything of it happens.
//!
//! ```text
//!   "SKNJ0001"  { length u32 BE | CRC-32C of entry u32 BE | entry (protobuf) } ...
//! ```
//! Append-only; a torn tail is cut at start; rewritten without what is settled when it has grown.
//! [`Journal::append`] only buffers, [`Journal::flush`] writes and flushes: many commands share one
//! flush.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use prost::Message;

const MAGIC: &[u8; 8] = b"SKNJ0001";
/// A signal message and our own fields around it.
const ENTRY_BYTES_MAX: usize = skein_wire::limits::SIGNAL_MESSAGE_BYTES_MAX + 4096;
/// A journal below this is never rewritten.
const COMPACT_BYTES_MIN: u64 = 1024 * 1024;
/// Rewritten when it has this many times the bytes of what is live.
const COMPACT_FACTOR: u64 = 4;

/// One fact.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// Which.
    #[prost(oneof = "Fact", tags = "1, 2, 3, 4, 5")]
    pub fact: Option<Fact>,
}

/// What can be known.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Fact {
    /// A command was taken; a second one with its id is a replay.
    #[prost(message, tag = "1")]
    Command(CommandTaken),
    /// A script will be run.
    #[prost(message, tag = "2")]
    Intent(Intent),
    /// A task has its final state.
    #[prost(message, tag = "3")]
    Final(Final),
    /// The server has stored the final state; only the id is remembered.
    #[prost(message, tag = "4")]
    Done(Done),
    /// Cancelled before it arrived.
    #[prost(message, tag = "5")]
    Tombstone(Done),
}

/// See [`Fact::Command`].
#[derive(Clone, PartialEq, Message)]
pub struct CommandTaken {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub command_id: Vec<u8>,
    /// Server time.
    #[prost(int64, tag = "2")]
    pub not_after_ms: i64,
}

/// See [`Fact::Intent`].
#[derive(Clone, PartialEq, Message)]
pub struct Intent {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub task_id: Vec<u8>,
    /// SHA-256 of the encoded `RunTask`.
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
    /// Latest start, by the host's clock as it was to the server's when the command came.
    #[prost(int64, tag = "3")]
    pub start_by_ms: i64,
    /// `RunTask`; empty once the task was started.
    #[prost(bytes = "bytes", tag = "4")]
    pub run_task: bytes::Bytes,
}

/// See [`Fact::Final`].
#[derive(Clone, PartialEq, Message)]
pub struct Final {
    /// `TaskUpdate`.
    #[prost(message, optional, tag = "1")]
    pub update: Option<skein_wire::signal::v1::TaskUpdate>,
}

/// See [`Fact::Done`] and [`Fact::Tombstone`].
#[derive(Clone, PartialEq, Message)]
pub struct Done {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub task_id: Vec<u8>,
    /// Remembered until then, by the host's clock.
    #[prost(int64, tag = "2")]
    pub until_ms: i64,
    /// As the intent's.
    #[prost(bytes = "vec", tag = "3")]
    pub digest: Vec<u8>,
}

impl From<Fact> for Entry {
    fn from(fact: Fact) -> Entry {
        Entry { fact: Some(fact) }
    }
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    live_bytes: u64,
    pending: Vec<u8>,
}

impl Journal {
    /// Opens or creates the journal and reads it; answers also how many bytes of a torn or damaged
    /// tail were cut off.
    pub fn open(path: &Path) -> io::Result<(Journal, Vec<Fact>, u64)> {
        let mut options = File::options();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (facts, sound) = parse(&bytes);
        let torn = (bytes.len() - sound) as u64;
        let mut journal = Journal {
            path: path.to_owned(),
            file,
            bytes: sound as u64,
            live_bytes: 0,
            pending: Vec::new(),
        };
        if torn > 0 {
            journal.file.set_len(sound as u64)?;
        }
        if sound == 0 {
            journal.file.write_all(MAGIC)?;
            journal.bytes = MAGIC.len() as u64;
        }
        journal.file.sync_data()?;
        Ok((journal, facts, torn))
    }

    /// Buffers a fact.
    pub fn append(&mut self, fact: Fact) {
        encode(fact, &mut self.pending);
    }

    /// Writes what is buffered and flushes it to the disk.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.write()? { self.file.sync_data() } else { Ok(()) }
    }

    /// Writes what is buffered, for facts that can be found out again.
    pub fn write(&mut self) -> io::Result<bool> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        let written = self.file.write_all(&self.pending);
        if written.is_err() {
            // A part of an entry in the middle would hide all that comes later.
            self.file.set_len(self.bytes)?;
            self.pending.clear();
        }
        written?;
        self.bytes += self.pending.len() as u64;
        self.pending.clear();
        Ok(true)
    }

    /// Whether a rewrite pays.
    pub fn wants_compaction(&self) -> bool {
        self.bytes > COMPACT_BYTES_MIN && self.bytes > self.live_bytes * COMPACT_FACTOR
    }

    /// Replaces the journal by one that has only `live`.
    pub fn compact(&mut self, live: impl Iterator<Item = Fact>) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        live.for_each(|fact| encode(fact, &mut bytes));
        crate::home::write_atomic(&self.path, 0o600, &bytes)?;
        self.file = File::options().read(true).append(true).open(&self.path)?;
        self.bytes = bytes.len() as u64;
        self.live_bytes = self.bytes;
        self.pending.clear();
        Ok(())
    }
}

fn encode(fact: Fact, out: &mut Vec<u8>) {
    let entry = Entry::from(fact).encode_to_vec();
    out.extend_from_slice(&(entry.len() as u32).to_be_bytes());
    out.extend_from_slice(&crc32c::crc32c(&entry).to_be_bytes());
    out.extend_from_slice(&entry);
}

/// The facts up to the first damage, and how many bytes they take.
fn parse(bytes: &[u8]) -> (Vec<Fact>, usize) {
    let Some(rest) = bytes.strip_prefix(MAGIC) else { return (Vec::new(), 0) };
    let mut facts = Vec::new();
    let mut rest = rest;
    while let Some((fact, length)) = parse_entry(rest) {
        facts.extend(fact);
        rest = &rest[length..];
    }
    (facts, bytes.len() - rest.len())
}

/// One entry and its length; the fact is none when a newer agent wrote it.
fn parse_entry(bytes: &[u8]) -> Option<(Option<Fact>, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    if length > ENTRY_BYTES_MAX {
        return None;
    }
    let body = rest.get(..length)?;
    let sound = crc32c::crc32c(body) == u32::from_be_bytes(*sum);
    let entry = sound.then(|| Entry::decode(body).ok())??;
    Some((entry.fact, 8 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(byte: u8) -> Fact {
        Fact::Done(Done { task_id: vec![byte; 16], until_ms: 5, digest: vec![] })
    }

    #[test]
    fn a_torn_tail_is_cut_wherever_it_tears() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let (mut journal, facts, torn) = Journal::open(&path).unwrap();
        assert_eq!((facts.len(), torn), (0, 0));
        (1..=3).for_each(|byte| journal.append(done(byte)));
        journal.flush().unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let entry = (whole.len() - MAGIC.len()) / 3;
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, facts, _) = Journal::open(&path).unwrap();
            let expected = cut.saturating_sub(MAGIC.len()) / entry;
            assert_eq!(facts.len(), expected, "cut at {cut}");
            journal.append(done(9));
            journal.flush().unwrap();
            let (_, facts, torn) = Journal::open(&path).unwrap();
            assert_eq!((facts.len(), torn), (expected + 1, 0), "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_hides_nothing_before_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let (mut journal, ..) = Journal::open(&path).unwrap();
        (1..=3).for_each(|byte| journal.append(done(byte)));
        journal.flush().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (_, facts, torn) = Journal::open(&path).unwrap();
        assert_eq!(facts, [done(1), done(2)]);
        assert!(torn > 0);
    }

    #[test]
    fn compaction_keeps_what_lives() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let (mut journal, ..) = Journal::open(&path).unwrap();
        let large = Fact::Intent(Intent { run_task: vec![7; 100_000].into(), ..Intent::default() });
        for _ in 0..11 {
            journal.append(large.clone());
            journal.flush().unwrap();
        }
        assert!(journal.wants_compaction());
        journal.compact([done(1)].into_iter()).unwrap();
        assert!(!journal.wants_compaction());
        journal.append(done(2));
        journal.flush().unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, [done(1), done(2)]);
    }
}
