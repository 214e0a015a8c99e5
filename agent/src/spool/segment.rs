//! The bytes of a segment file, without I/O.
//!
//! A segment is a 64-byte header and a run of entries. An entry is a 16-byte header with two
//! checksums and a payload: a batch frame exactly as the wire carries it together with the marks
//! (positions of its sources) that become true with it, or bookkeeping of the lane. One entry is
//! one unit of truth: its batch and its marks are kept together or lost together, which is what
//! makes a followed file neither lose nor repeat a line when the agent is killed.
//!
//! ```text
//! header  0 "SKSPOOL1"  8 version u16  10 0 u16  12 data id u32  16 epoch u64  24 first u64
//!         32 boot id [16]  48 salt u64  56 0 u32  60 crc32c(0..60)
//! entry   0 0xB10C u16  2 kind u8  3 0 u8  4 payload bytes u32  8 crc32c(salt, payload)
//!         12 crc32c(salt, 0..12), payload
//! batch   marks bytes u32, marks, 64-byte batch header, body
//! mark    key bytes u16, value bytes u16, key, value
//! ```
//! All integers are big-endian. Checksums are seeded with the segment's random salt, so that the
//! content of a record can never be taken for an entry. A reader skips damaged bytes up to the
//! next whole entry: damage costs the entries that it touches and no others.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 16;
/// Largest payload of an entry: a batch of 900 KiB and its marks.
pub const ENTRY_PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Key of a mark: a digest of the source's name and what distinguishes its files.
pub const MARK_KEY_BYTES_MAX: usize = 64;
/// Value of a mark.
pub const MARK_VALUE_BYTES_MAX: usize = 128;
/// Marks of one lane.
pub const MARKS_MAX: usize = 4_096;

const _: () = assert!(
    MARKS_MAX * (4 + MARK_KEY_BYTES_MAX + MARK_VALUE_BYTES_MAX)
        + skein_wire::limits::DATA_FRAME_BYTES_MAX
        < ENTRY_PAYLOAD_BYTES_MAX
);

const SEGMENT_MAGIC: &[u8; 8] = b"SKSPOOL1";
const SEGMENT_VERSION: u16 = 1;
const ENTRY_MAGIC: [u8; 2] = [0xB1, 0x0C];

/// Positions of sources: what was read of them up to and including the records before here.
pub type Marks = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SegmentHeader {
    /// The lane.
    pub data_id: u32,
    /// The lane's history that the sequences belong to.
    pub epoch: u64,
    /// No record of the segment is before this sequence.
    pub first: u64,
    /// The boot of the host during which the segment was written.
    pub boot_id: [u8; 16],
    /// Seeds the checksums of the entries.
    pub salt: u64,
}

impl SegmentHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[0..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&SEGMENT_VERSION.to_be_bytes());
        out[12..16].copy_from_slice(&self.data_id.to_be_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_be_bytes());
        out[24..32].copy_from_slice(&self.first.to_be_bytes());
        out[32..48].copy_from_slice(&self.boot_id);
        out[48..56].copy_from_slice(&self.salt.to_be_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// The header at the start of `bytes`, unless it is torn, damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let header: &[u8; SEGMENT_HEADER_BYTES] = bytes.first_chunk()?;
        let whole = header.starts_with(SEGMENT_MAGIC)
            && u16_at(header, 8) == SEGMENT_VERSION
            && crc32c::crc32c(&header[..60]) == u32_at(header, 60);
        if !whole {
            return None;
        }
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(&header[32..48]);
        Some(SegmentHeader {
            data_id: u32_at(header, 12),
            epoch: u64_at(header, 16),
            first: u64_at(header, 24),
            boot_id,
            salt: u64_at(header, 48),
        })
    }
}

/// One entry, borrowed from the bytes of a segment.
#[derive(Debug, Eq, PartialEq)]
pub enum Entry<'a> {
    /// A batch as on the wire, and the marks that become true with it.
    Batch {
        /// Encoded marks; see [`decode_marks`].
        marks: &'a [u8],
        /// Batch header and body.
        frame: &'a [u8],
    },
    /// All marks that hold at this point; stands at the start of a segment.
    Marks(&'a [u8]),
    /// Everything before this position is stored by a server.
    Acked {
        /// Epoch of the position.
        epoch: u64,
        /// Exclusive end.
        next: u64,
    },
    /// The agent ended in order: everything before was flushed.
    Clean,
}

const KIND_BATCH: u8 = 1;
const KIND_MARKS: u8 = 2;
const KIND_ACKED: u8 = 3;
const KIND_CLEAN: u8 = 4;

/// Appends `entry` to `out`.
pub fn encode_entry(salt: u64, entry: &Entry<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    let kind = match entry {
        Entry::Batch { .. } => KIND_BATCH,
        Entry::Marks(_) => KIND_MARKS,
        Entry::Acked { .. } => KIND_ACKED,
        Entry::Clean => KIND_CLEAN,
    };
    out.extend_from_slice(&ENTRY_MAGIC);
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&[0; 12]);
    match entry {
        Entry::Batch { marks, frame } => {
            out.extend_from_slice(&(marks.len() as u32).to_be_bytes());
            out.extend_from_slice(marks);
            out.extend_from_slice(frame);
        }
        Entry::Marks(marks) => out.extend_from_slice(marks),
        Entry::Acked { epoch, next } => {
            out.extend_from_slice(&epoch.to_be_bytes());
            out.extend_from_slice(&next.to_be_bytes());
        }
        Entry::Clean => {}
    }
    let payload = start + ENTRY_HEADER_BYTES;
    let bytes = out.len() - payload;
    debug_assert!(bytes <= ENTRY_PAYLOAD_BYTES_MAX, "the caller bounds batches and marks");
    out[start + 4..start + 8].copy_from_slice(&(bytes as u32).to_be_bytes());
    let crc = crc32c::crc32c_append(seed(salt), &out[payload..]);
    out[start + 8..start + 12].copy_from_slice(&crc.to_be_bytes());
    let crc = crc32c::crc32c_append(seed(salt), &out[start..start + 12]);
    out[start + 12..start + 16].copy_from_slice(&crc.to_be_bytes());
}

/// What lies at an offset of a segment.
#[derive(Debug, Eq, PartialEq)]
pub enum Step<'a> {
    /// A whole entry and the offset after it.
    Entry(Entry<'a>, usize),
    /// Damaged bytes up to this offset, where a whole entry begins.
    Damage(usize),
    /// The bytes end within what may be an entry; `need` bytes from the offset would tell more.
    Partial {
        /// Bytes from the offset that are needed to decide.
        need: usize,
    },
    /// No whole entry follows in these bytes.
    End,
}

/// Looks at `bytes[offset..]`. `last` says that nothing can follow `bytes`, so that a partial
/// entry is damage too.
pub fn step(salt: u64, bytes: &[u8], offset: usize, last: bool) -> Step<'_> {
    match entry_at(salt, bytes, offset) {
        At::Whole(entry, end) => return Step::Entry(entry, end),
        At::Partial { need } if !last => return Step::Partial { need },
        At::Partial { .. } | At::Bad => {}
    }
    let mut from = offset + 1;
    while let Some(found) = find(bytes, from) {
        match entry_at(salt, bytes, found) {
            At::Whole(..) => return Step::Damage(found),
            At::Partial { .. } if !last => return Step::Damage(found),
            At::Partial { .. } | At::Bad => from = found + 1,
        }
    }
    Step::End
}

/// The place of the next entry magic at or after `from`; a magic cut by the end counts.
fn find(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.iter()
        .enumerate()
        .position(|(at, byte)| {
            *byte == ENTRY_MAGIC[0] && rest.get(at + 1).is_none_or(|next| *next == ENTRY_MAGIC[1])
        })
        .map(|at| from + at)
}

enum At<'a> {
    Whole(Entry<'a>, usize),
    Partial { need: usize },
    Bad,
}

fn entry_at(salt: u64, bytes: &[u8], offset: usize) -> At<'_> {
    let rest = bytes.get(offset..).unwrap_or_default();
    if rest.len() < ENTRY_HEADER_BYTES {
        let magic = &ENTRY_MAGIC[..rest.len().min(2)];
        let may_be = rest.starts_with(magic);
        return if may_be { At::Partial { need: ENTRY_HEADER_BYTES } } else { At::Bad };
    }
    let crc = crc32c::crc32c_append(seed(salt), &rest[..12]);
    let payload_bytes = u32_at(rest, 4) as usize;
    if !rest.starts_with(&ENTRY_MAGIC)
        || crc != u32_at(rest, 12)
        || payload_bytes > ENTRY_PAYLOAD_BYTES_MAX
    {
        return At::Bad;
    }
    let end = ENTRY_HEADER_BYTES + payload_bytes;
    let Some(payload) = rest.get(ENTRY_HEADER_BYTES..end) else {
        return At::Partial { need: end };
    };
    if crc32c::crc32c_append(seed(salt), payload) != u32_at(rest, 8) {
        return At::Bad;
    }
    match parse(rest[2], payload) {
        Some(entry) => At::Whole(entry, offset + end),
        None => At::Bad,
    }
}

fn parse(kind: u8, payload: &[u8]) -> Option<Entry<'_>> {
    match kind {
        KIND_BATCH => {
            let (marks_bytes, rest) = payload.split_first_chunk::<4>()?;
            let (marks, frame) = rest.split_at_checked(u32::from_be_bytes(*marks_bytes) as usize)?;
            Some(Entry::Batch { marks, frame })
        }
        KIND_MARKS => Some(Entry::Marks(payload)),
        KIND_ACKED if payload.len() == 16 => {
            Some(Entry::Acked { epoch: u64_at(payload, 0), next: u64_at(payload, 8) })
        }
        KIND_CLEAN => Some(Entry::Clean),
        _ => None,
    }
}

/// Appends marks in their stored form; an empty value forgets the mark.
pub fn encode_marks<'a>(marks: impl Iterator<Item = (&'a [u8], &'a [u8])>, out: &mut Vec<u8>) {
    for (key, value) in marks {
        debug_assert!(key.len() <= MARK_KEY_BYTES_MAX && value.len() <= MARK_VALUE_BYTES_MAX);
        out.extend_from_slice(&(key.len() as u16).to_be_bytes());
        out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(value);
    }
}

/// Applies stored marks to `marks`; bytes that are no mark end the run.
pub fn decode_marks(mut bytes: &[u8], marks: &mut Marks) {
    while let Some((sizes, rest)) = bytes.split_first_chunk::<4>() {
        let Some((key, rest)) = rest.split_at_checked(u16_at(sizes, 0).into()) else { return };
        let Some((value, rest)) = rest.split_at_checked(u16_at(sizes, 2).into()) else { return };
        if value.is_empty() {
            marks.remove(key);
        } else {
            marks.insert(key.to_vec(), value.to_vec());
        }
        bytes = rest;
    }
}

/// What recovery learns from the newest segment of a lane.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Scan {
    /// End of the last whole entry: the file is cut here.
    pub good_bytes: usize,
    /// Damaged bytes before that.
    pub damaged_bytes: usize,
    /// Sequence after the last record, if there is a batch.
    pub end: Option<u64>,
    /// Records in whole batches.
    pub records: u64,
    /// The last acknowledged position that was noted (epoch, next).
    pub acked: Option<(u64, u64)>,
    /// The marks that hold at the end.
    pub marks: Marks,
    /// Whether the last entry says that the agent ended in order.
    pub clean: bool,
}

/// Reads a whole segment file. `range_of` tells the records of a batch frame, or `None` when its
/// header is not valid.
pub fn scan(
    header: &SegmentHeader,
    bytes: &[u8],
    range_of: impl Fn(&[u8]) -> Option<Range<u64>>,
) -> Scan {
    let mut out = Scan { good_bytes: SEGMENT_HEADER_BYTES, ..Scan::default() };
    let mut offset = SEGMENT_HEADER_BYTES;
    loop {
        match step(header.salt, bytes, offset, true) {
            Step::Entry(entry, end) => {
                out.clean = entry == Entry::Clean;
                match entry {
                    Entry::Batch { marks, frame } => {
                        if let Some(range) = range_of(frame) {
                            out.records += range.end - range.start;
                            out.end = Some(range.end);
                        }
                        decode_marks(marks, &mut out.marks);
                    }
                    Entry::Marks(marks) => decode_marks(marks, &mut out.marks),
                    Entry::Acked { epoch, next } => out.acked = Some((epoch, next)),
                    Entry::Clean => {}
                }
                out.good_bytes = end;
                offset = end;
            }
            Step::Damage(next) => {
                out.damaged_bytes += next - offset;
                offset = next;
            }
            Step::Partial { .. } | Step::End => return out,
        }
    }
}

/// A checksum of 32 bits takes a salt of 32 bits; the halves are mixed so that both count.
fn seed(salt: u64) -> u32 {
    (salt >> 32) as u32 ^ salt as u32
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    (u64::from(u32_at(bytes, at)) << 32) | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader { data_id: 7, epoch: 9, first: 100, boot_id: [3; 16], salt: 0x1234_5678_9ABC }
    }

    /// A test frame carries its first sequence and count in clear.
    fn frame(first: u64, count: u64, body: &[u8]) -> Vec<u8> {
        let mut out = first.to_be_bytes().to_vec();
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    fn range_of(frame: &[u8]) -> Option<Range<u64>> {
        (frame.len() >= 16).then(|| u64_at(frame, 0)..u64_at(frame, 0) + u64_at(frame, 8))
    }

    /// A segment of three batches with marks; returns its bytes and the ends of its entries.
    fn sample() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header().encode().to_vec();
        let mut ends = Vec::new();
        let mut add = |entry: Entry<'_>, bytes: &mut Vec<u8>| {
            encode_entry(header().salt, &entry, bytes);
            ends.push(bytes.len());
        };
        let mut marks = Vec::new();
        encode_marks([(&b"old"[..], &b"5"[..])].into_iter(), &mut marks);
        add(Entry::Marks(&marks), &mut bytes);
        for (number, body) in [&b"first body"[..], &[0xB1; 9], b"\xB1\x0Cthird"].iter().enumerate()
        {
            let number = number as u64;
            let mut marks = Vec::new();
            encode_marks([(&b"file"[..], &[number as u8 + 1][..])].into_iter(), &mut marks);
            let frame = frame(100 + number * 10, 10, body);
            add(Entry::Batch { marks: &marks, frame: &frame }, &mut bytes);
        }
        add(Entry::Acked { epoch: 9, next: 110 }, &mut bytes);
        (bytes, ends)
    }

    #[test]
    fn a_whole_segment_is_read_back() {
        let (bytes, ends) = sample();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header()));
        let scan = scan(&header(), &bytes, range_of);
        assert_eq!(scan.good_bytes, bytes.len());
        assert_eq!(Some(&scan.good_bytes), ends.last());
        assert_eq!((scan.end, scan.records, scan.damaged_bytes), (Some(130), 30, 0));
        assert_eq!(scan.acked, Some((9, 110)));
        assert_eq!(scan.marks.get(&b"file"[..]), Some(&vec![3]));
        assert_eq!(scan.marks.get(&b"old"[..]), Some(&b"5".to_vec()));
        assert!(!scan.clean);
    }

    /// The torn tail: whatever the byte at which a kill cut the file, recovery keeps exactly the
    /// entries that were whole.
    #[test]
    fn a_cut_at_any_byte_keeps_what_was_whole() {
        let (bytes, ends) = sample();
        for cut in SEGMENT_HEADER_BYTES..bytes.len() {
            let scan = scan(&header(), &bytes[..cut], range_of);
            let whole = ends.iter().rev().find(|end| **end <= cut);
            assert_eq!(scan.good_bytes, whole.copied().unwrap_or(SEGMENT_HEADER_BYTES), "at {cut}");
            assert_eq!(scan.damaged_bytes, 0, "at {cut}");
        }
        for cut in 0..SEGMENT_HEADER_BYTES {
            assert_eq!(SegmentHeader::decode(&bytes[..cut]), None, "at {cut}");
        }
    }

    /// Damage at any byte costs the entry that it touches and no other.
    #[test]
    fn damage_at_any_byte_costs_one_entry() {
        let (good, ends) = sample();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x41;
            if at < SEGMENT_HEADER_BYTES {
                assert_eq!(SegmentHeader::decode(&bytes), None, "at {at}");
                continue;
            }
            let hit = ends.iter().position(|end| at < *end).unwrap();
            let scan = scan(&header(), &bytes, range_of);
            let lost_batch = (1..=3).contains(&hit);
            assert_eq!(scan.records, if lost_batch { 20 } else { 30 }, "at {at}");
            let kept = if hit == ends.len() - 1 { ends[hit - 1] } else { bytes.len() };
            assert_eq!(scan.good_bytes, kept, "at {at}");
        }
    }

    #[test]
    fn a_reader_with_part_of_the_file_asks_for_more() {
        let (bytes, ends) = sample();
        let start = ends[0];
        let Step::Partial { need } = step(header().salt, &bytes[..start + 3], start, false) else {
            panic!("three bytes of an entry are partial");
        };
        assert_eq!(need, ENTRY_HEADER_BYTES);
        let Step::Partial { need } = step(header().salt, &bytes[..start + 20], start, false) else {
            panic!("the header tells the size");
        };
        assert_eq!(start + need, ends[1]);
    }

    #[test]
    fn content_of_a_record_is_never_taken_for_an_entry() {
        let mut forged = Vec::new();
        encode_entry(1, &Entry::Acked { epoch: 1, next: u64::MAX }, &mut forged);
        let mut bytes = header().encode().to_vec();
        let inner = frame(100, 1, &forged);
        encode_entry(header().salt, &Entry::Batch { marks: &[], frame: &inner }, &mut bytes);
        bytes[SEGMENT_HEADER_BYTES] ^= 1;
        let scan = scan(&header(), &bytes, range_of);
        assert_eq!((scan.acked, scan.records), (None, 0));
    }

    proptest! {
        #[test]
        fn reading_garbage_never_panics_and_moves_on(
            bytes in proptest::collection::vec(prop_oneof![Just(0xB1u8), Just(0x0C), any::<u8>()], 0..400),
        ) {
            let _ = scan(&header(), &bytes, range_of);
            let mut marks = Marks::new();
            decode_marks(&bytes, &mut marks);
        }

        /// Any run of damaged bytes leaves all entries outside it readable.
        #[test]
        fn entries_outside_the_damage_survive(at in 64usize..300, run in prop::collection::vec(any::<u8>(), 1..40)) {
            let (good, ends) = sample();
            let mut bytes = good.clone();
            for (offset, byte) in run.iter().enumerate() {
                if let Some(place) = bytes.get_mut(at + offset) { *place = *byte; }
            }
            let mut starts = vec![SEGMENT_HEADER_BYTES];
            starts.extend(&ends);
            let expected: u64 = (1..=3).filter(|entry| good[starts[*entry]..ends[*entry]] == bytes[starts[*entry]..ends[*entry]])
                .map(|_| 10).sum();
            prop_assert_eq!(scan(&header(), &bytes, range_of).records, expected);
        }
    }
}
