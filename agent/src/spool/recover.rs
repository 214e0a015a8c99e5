//! What a start finds on disk.
//!
//! Only the newest segment of a lane is read: it was being written when the agent ended, and it
//! carries the lane's marks and acknowledged position. Older segments are known by their names
//! and are checked entry by entry when they are sent.

use std::io;
use std::ops::Range;
use std::path::Path;

use skein_wire::batch::{BatchHeader, HEADER_BYTES};

use super::config::{Durability, Place};
use super::disk::{LaneFiles, OpenSegment, parse_file_name};
use super::index::{Index, Position, Segment, SegmentId};
use super::segment::{Scan, SegmentHeader, scan};

/// A lane with its history.
#[derive(Debug)]
pub struct Recovered {
    pub data_id: u32,
    /// Epoch of the newest segment.
    pub epoch: u64,
    /// Sequence after its last record.
    pub next: u64,
    /// Records appended before a loss of power may be gone although a server has them: their
    /// numbers must not be given again, so the lane goes on in a new epoch.
    pub uncertain: bool,
    pub index: Index,
    pub files: LaneFiles,
    /// Torn or damaged bytes that were cut off or skipped.
    pub damaged_bytes: u64,
}

/// Reads the lanes below `place.dir`, cutting torn tails.
pub fn recover(place: &Place, durability: Durability) -> io::Result<Vec<Recovered>> {
    let mut lanes = Vec::new();
    for entry in std::fs::read_dir(&place.dir)? {
        let entry = entry?;
        let data_id = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(data_id) = data_id.filter(|_| entry.path().is_dir()) else { continue };
        match recover_lane(&entry.path(), data_id, place.boot_id, durability) {
            Ok(lane) => lanes.extend(lane),
            Err(error) => set_aside(&entry.path(), &error),
        }
    }
    lanes.sort_by_key(|lane| lane.data_id);
    Ok(lanes)
}

/// One lane that cannot be read must not stop the agent: people may look at it later.
fn set_aside(dir: &Path, error: &io::Error) {
    let aside = dir.with_extension(format!("unreadable-{}", crate::clock::wall_ms()));
    let renamed = std::fs::rename(dir, &aside);
    tracing::error!(
        %error,
        lane = %dir.display(),
        aside = %aside.display(),
        done = renamed.is_ok(),
        "cannot read a lane of the spool; it is set aside"
    );
}

fn recover_lane(
    dir: &Path,
    data_id: u32,
    boot_id: [u8; 16],
    durability: Durability,
) -> io::Result<Option<Recovered>> {
    let mut files: Vec<(SegmentId, u64)> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(id) = entry.file_name().to_str().and_then(parse_file_name) {
            files.push((id, entry.metadata()?.len()));
        }
    }
    files.sort_unstable();
    let mut damaged_bytes = 0;
    let (newest, header, bytes) = loop {
        let Some((id, length)) = files.pop() else { return Ok(None) };
        let path = dir.join(super::disk::file_name(id));
        let bytes = std::fs::read(&path)?;
        match SegmentHeader::decode(&bytes).filter(|header| header.data_id == data_id) {
            Some(header) => break (id, header, bytes),
            None => {
                damaged_bytes += length;
                std::fs::remove_file(&path)?;
            }
        }
    };
    let scan = scan(&header, &bytes, range_of);
    damaged_bytes += (bytes.len() - scan.good_bytes + scan.damaged_bytes) as u64;
    let file =
        std::fs::OpenOptions::new().write(true).open(dir.join(super::disk::file_name(newest)))?;
    file.set_len(scan.good_bytes as u64)?;

    let mut segments = older_segments(dir, &files, newest)?;
    segments.push(segment(newest, &scan));
    let oldest = segments[0].id;
    let acked = scan.acked.map(|(epoch, next)| Position::new(epoch, next));
    let same_boot = header.boot_id == boot_id;
    Ok(Some(Recovered {
        data_id,
        epoch: newest.epoch,
        next: scan.end.unwrap_or(newest.next),
        uncertain: !same_boot && !scan.clean && durability == Durability::Process,
        index: Index::recovered(segments, acked.unwrap_or(oldest).max(oldest)),
        files: LaneFiles {
            newest: same_boot.then(|| OpenSegment {
                id: newest,
                header,
                bytes: scan.good_bytes as u64,
                file: Some(file),
            }),
            marks: scan.marks,
        },
        damaged_bytes,
    }))
}

/// A segment before the newest ends where the next one begins; the last one of an epoch is read.
fn older_segments(
    dir: &Path,
    files: &[(SegmentId, u64)],
    newest: SegmentId,
) -> io::Result<Vec<Segment>> {
    let followers = files.iter().skip(1).map(|(id, _)| *id).chain([newest]);
    let mut segments = Vec::with_capacity(files.len() + 1);
    for ((id, bytes), follower) in files.iter().zip(followers) {
        if id.epoch == follower.epoch {
            let records = follower.next - id.next;
            let (id, end, bytes) = (*id, follower.next, *bytes);
            segments.push(Segment { id, end, records, bytes, writing: 0 });
            continue;
        }
        let content = std::fs::read(dir.join(super::disk::file_name(*id)))?;
        if let Some(header) = SegmentHeader::decode(&content) {
            segments.push(segment(*id, &scan(&header, &content, range_of)));
        }
    }
    Ok(segments)
}

fn segment(id: SegmentId, scan: &Scan) -> Segment {
    Segment {
        id,
        end: scan.end.unwrap_or(id.next),
        records: scan.records,
        bytes: scan.good_bytes as u64,
        writing: 0,
    }
}

fn range_of(frame: &[u8]) -> Option<Range<u64>> {
    let header = BatchHeader::decode(frame.first_chunk::<HEADER_BYTES>()?).ok()?;
    Some(header.first.0..header.end().0)
}
