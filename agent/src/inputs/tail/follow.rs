//! One followed file: what was read of it, and its next lines.
//!
//! Reading never trusts the position alone. A file that became shorter, or begins differently
//! than it did, was truncated and is read again from its start. A line without its end waits until
//! the end comes; only of a file that is gone for good the last line may do without.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::LINE_BYTES_MAX;
use super::mark::{FINGERPRINT_BYTES_MAX, Fingerprint, KEY_BYTES, Place};
use crate::inputs::socket::failed;
use crate::spool::Input;

/// Read at once: with the framing of its lines about one batch.
pub const CHUNK_BYTES: usize = 192 * 1024;

/// Lines of one file and the place behind each.
#[derive(Debug)]
pub struct Chunk {
    /// The file's number.
    pub file: u64,
    /// Lane that gets the lines.
    pub data_id: u32,
    /// Key of the file's mark.
    pub key: [u8; KEY_BYTES],
    /// The mark behind the chunk; empty when the file is finished and forgotten.
    pub end_mark: Vec<u8>,
    start: Place,
    bytes: Vec<u8>,
    /// (start, end, what follows it before the next line) of each line in `bytes`.
    lines: Vec<(u32, u32, u32)>,
    end: Place,
}

impl Chunk {
    /// A chunk that forgets a file that is nowhere any more.
    pub fn forget(data_id: u32, key: [u8; KEY_BYTES]) -> Chunk {
        let place = Place::default();
        Chunk { data_id, key, end_mark: Vec::new(), ..cut(Vec::new(), place, false) }
    }

    /// Whether the file very likely has more: the chunk need not wait for company.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= CHUNK_BYTES
    }

    /// Where it ends.
    pub fn end(&self) -> Place {
        self.end
    }

    /// Each line, and the place behind it.
    pub fn lines(&self) -> impl Iterator<Item = (&[u8], Place)> {
        self.lines.iter().map(|(start, end, behind)| {
            let offset = self.start.offset + u64::from(*behind);
            let cut = self.end.in_cut_line && offset == self.end.offset;
            let place = Place { offset, in_cut_line: cut, ..self.end };
            (&self.bytes[*start as usize..*end as usize], place)
        })
    }
}

/// A file that is followed.
#[derive(Debug)]
pub struct Followed {
    /// Number among all files of this run.
    pub number: u64,
    /// Which pattern it belongs to.
    pub pattern: usize,
    /// Where it was seen last.
    pub path: PathBuf,
    /// Device and inode.
    pub id: (u64, u64),
    /// Its name is gone or belongs to another file.
    pub gone: bool,
    /// Everything before is durable in the spool.
    pub place: Place,
    /// Where the chunk that is on its way ends.
    pub pending: Option<Place>,
    pub file: File,
}

/// What a look at a file brought.
#[derive(Debug)]
pub enum Look {
    /// Lines.
    Lines(Box<Chunk>),
    /// Nothing new.
    Nothing,
}

impl Followed {
    /// The next lines. `last` takes a line without its end too.
    pub fn look(&mut self, data_id: u32, key: [u8; KEY_BYTES], last: bool) -> io::Result<Look> {
        let size = self.file.metadata()?.size();
        let mut place = self.place;
        if size == place.offset && !last {
            return Ok(Look::Nothing);
        }
        let head = self.head()?;
        if size < place.offset || !place.fingerprint.matches(&head) {
            tracing::info!(path = %self.path.display(), "truncated; read from its start");
            failed(Input::Tail, "truncated");
            place = Place::default();
        }
        let bytes = self.read(place.offset, CHUNK_BYTES)?;
        place.fingerprint = Fingerprint::of(&head);
        let mut chunk = cut(bytes, place, last);
        if chunk.lines.is_empty() && chunk.bytes.len() == CHUNK_BYTES && !place.in_cut_line {
            // A line longer than a chunk.
            chunk = cut(self.read(place.offset, LINE_BYTES_MAX + 1)?, place, last);
        }
        if chunk.end == self.place {
            return Ok(Look::Nothing);
        }
        if chunk.end.in_cut_line && !place.in_cut_line {
            failed(Input::Tail, "line_cut");
        }
        (chunk.file, chunk.data_id, chunk.key) = (self.number, data_id, key);
        self.pending = Some(chunk.end);
        Ok(Look::Lines(Box::new(chunk)))
    }

    /// A chunk that only notes the place, or with `forget` that the file is finished.
    pub fn note(&mut self, data_id: u32, key: [u8; KEY_BYTES], forget: bool) -> Chunk {
        self.pending = Some(self.place);
        Chunk {
            file: self.number,
            data_id,
            key,
            end_mark: if forget { Vec::new() } else { self.place.encode().into() },
            start: self.place,
            bytes: Vec::new(),
            lines: Vec::new(),
            end: self.place,
        }
    }

    /// Places the reader at the end: only what is written from now on is wanted.
    pub fn skip_to_end(&mut self) -> io::Result<()> {
        let size = self.file.metadata()?.size();
        // The end of the last whole line, so that a line being written is not cut in two.
        let from = size.saturating_sub(CHUNK_BYTES as u64);
        let tail = self.read(from, (size - from) as usize)?;
        let line_end = tail.iter().rposition(|byte| *byte == b'\n').map(|at| from + at as u64 + 1);
        self.place = Place {
            offset: line_end.unwrap_or(if from == 0 { 0 } else { size }),
            fingerprint: Fingerprint::of(&self.head()?),
            in_cut_line: line_end.is_none() && from > 0,
        };
        Ok(())
    }

    /// The file's first bytes.
    pub fn head(&self) -> io::Result<Vec<u8>> {
        self.read(0, FINGERPRINT_BYTES_MAX)
    }

    fn read(&self, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; bytes_max];
        let mut got = 0;
        while got < bytes_max {
            match self.file.read_at(&mut bytes[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(got);
        Ok(bytes)
    }
}

/// Cuts what was read from `place` on into lines.
fn cut(bytes: Vec<u8>, place: Place, last: bool) -> Chunk {
    let mut lines = Vec::new();
    let mut end = place;
    let mut start = 0;
    let newlines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    for (at, _) in newlines {
        if end.in_cut_line {
            end.in_cut_line = false;
        } else if at - start > LINE_BYTES_MAX {
            break;
        } else {
            lines.push((start as u32, at as u32, at as u32 + 1));
        }
        start = at + 1;
    }
    let rest = bytes.len() - start;
    if end.in_cut_line {
        // The rest of a cut line, and its end has not come.
        start = bytes.len();
    } else if rest > LINE_BYTES_MAX {
        let to = start + LINE_BYTES_MAX;
        lines.push((start as u32, to as u32, to as u32));
        start = to;
        end.in_cut_line = true;
    } else if last && rest > 0 && bytes.len() < CHUNK_BYTES {
        lines.push((start as u32, bytes.len() as u32, bytes.len() as u32));
        start = bytes.len();
    }
    end.offset = place.offset + start as u64;
    Chunk {
        file: 0,
        data_id: 0,
        key: [0; KEY_BYTES],
        end_mark: end.encode().into(),
        start: place,
        bytes,
        lines,
        end,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(chunk: &Chunk) -> Vec<&[u8]> {
        chunk.lines().map(|(line, _)| line).collect()
    }

    #[test]
    fn a_partial_last_line_waits() {
        let chunk = cut(b"one\ntwo\nthr".to_vec(), Place::default(), false);
        assert_eq!(texts(&chunk), [&b"one"[..], b"two"]);
        assert_eq!(chunk.end.offset, 8);
        let chunk = cut(b"thr".to_vec(), chunk.end, true);
        assert_eq!((texts(&chunk), chunk.end.offset), (vec![&b"thr"[..]], 11));
    }

    #[test]
    fn a_line_over_the_bound_is_cut_once() {
        let mut bytes = vec![b'x'; LINE_BYTES_MAX + 1];
        let chunk = cut(bytes.clone(), Place::default(), false);
        assert_eq!(texts(&chunk), [&bytes[..LINE_BYTES_MAX]]);
        assert!(chunk.end.in_cut_line);
        let (_, place) = chunk.lines().last().unwrap();
        assert_eq!(place, chunk.end());
        bytes = b"rest of it\nnext\n".to_vec();
        let chunk = cut(bytes, chunk.end, false);
        assert_eq!((texts(&chunk), chunk.end.in_cut_line), (vec![&b"next"[..]], false));
        // As long as the bound is not too long.
        let whole = [vec![b'y'; LINE_BYTES_MAX], b"\n".to_vec()].concat();
        let chunk = cut(whole, Place::default(), false);
        assert_eq!((chunk.lines.len(), chunk.end.in_cut_line), (1, false));
    }

    proptest! {
        /// Wherever reading stops and goes on: the same lines, each place behind its line.
        #[test]
        fn lines_do_not_depend_on_where_reads_end(
            text in prop::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'\n')], 0..200),
            stops in prop::collection::vec(1usize..50, 1..50),
        ) {
            let mut place = Place::default();
            let mut got: Vec<Vec<u8>> = Vec::new();
            let mut seen = 0;
            for stop in stops.iter().cycle().take(400) {
                seen = (seen + stop).min(text.len());
                let from = place.offset as usize;
                let chunk = cut(text[from..seen.max(from)].to_vec(), place, seen == text.len());
                for (line, place) in chunk.lines() {
                    got.push(line.to_vec());
                    let behind = place.offset as usize;
                    prop_assert!(text[..behind].ends_with(line) || text[..behind - 1].ends_with(line));
                }
                place = chunk.end;
                if seen == text.len() { break; }
            }
            let mut expected: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) { expected.pop(); }
            prop_assert_eq!(got, expected);
        }
    }
}
