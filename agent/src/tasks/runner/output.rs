//! The script's output, from its pipe to a file of bounded size.
//!
//! The pipe is always read, so that the script never waits for anybody. What exceeds the bound is
//! counted and dropped; the kept part ends on a character border, so that it is valid UTF-8 if the
//! output was.

use std::fs::File;
use std::io::{self, Read, Write};

/// One read of the pipe: a pipe holds 64 KiB.
const READ_BYTES: usize = 64 * 1024;

/// Where output goes.
#[derive(Debug)]
pub struct Output {
    pipe: Option<File>,
    file: File,
    bytes_max: u64,
    kept: u64,
    dropped: u64,
    failed: Option<io::Error>,
    buffer: Vec<u8>,
}

impl Output {
    /// Reads `pipe`, which must not block, and keeps `bytes_max` bytes in `file`.
    pub fn new(pipe: File, file: File, bytes_max: u64) -> Output {
        let buffer = vec![0; READ_BYTES];
        Output { pipe: Some(pipe), file, bytes_max, kept: 0, dropped: 0, failed: None, buffer }
    }

    /// The pipe, until everybody has closed its other end.
    pub fn pipe(&self) -> Option<&File> {
        self.pipe.as_ref()
    }

    /// Bytes in the file.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Bytes that were produced and not kept.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Why the file is shorter than it should be, if it is.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }

    /// Moves what is in the pipe, at most `rounds` reads of it, and says whether the file grew.
    pub fn pump(&mut self, rounds: usize) -> bool {
        let before = self.kept;
        for _ in 0..rounds {
            let Some(mut pipe) = self.pipe.as_ref() else { break };
            match pipe.read(&mut self.buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => self.keep(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.pipe = None,
            }
        }
        self.kept > before
    }

    /// From now on everything is dropped: the script is over, and what its background processes
    /// still write belongs to nobody.
    pub fn close_file(&mut self) {
        self.bytes_max = self.kept;
    }

    /// Flushes the file, cut to a character border if it is not complete.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.dropped > 0 {
            let tail = incomplete_tail(&read_tail(&self.file, self.kept)?);
            self.kept -= tail;
            self.dropped += tail;
            self.file.set_len(self.kept)?;
        }
        self.file.sync_data()
    }

    fn keep(&mut self, length: usize) {
        let room = usize::try_from(self.bytes_max - self.kept).unwrap_or(usize::MAX).min(length);
        let room = if self.dropped > 0 || self.failed.is_some() { 0 } else { room };
        let written = match self.file.write_all(&self.buffer[..room]) {
            Ok(()) => room as u64,
            Err(error) => {
                // A full disk must not stop the script; the file ends where it was sound.
                let _ = self.file.set_len(self.kept);
                self.failed = Some(error);
                0
            }
        };
        self.kept += written;
        self.dropped += length as u64 - written;
    }
}

fn read_tail(file: &File, length: u64) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let tail_bytes = length.min(4);
    let mut tail = vec![0; tail_bytes as usize];
    file.read_exact_at(&mut tail, length - tail_bytes)?;
    Ok(tail)
}

/// Bytes at the end that begin a UTF-8 character without completing it.
fn incomplete_tail(bytes: &[u8]) -> u64 {
    for back in 1..=bytes.len().min(3) {
        let needs = match bytes[bytes.len() - back] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if needs > back { back as u64 } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{pipe, set_nonblocking};

    fn run(bytes_max: u64, input: &[u8]) -> (Vec<u8>, u64) {
        let (read, write) = pipe().unwrap();
        let read = File::from(read);
        set_nonblocking(&read).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut output = Output::new(read, file.try_clone().unwrap(), bytes_max);
        let mut write = File::from(write);
        for part in input.chunks(1000) {
            write.write_all(part).unwrap();
            output.pump(4);
        }
        drop(write);
        output.pump(4);
        assert!(output.pipe().is_none());
        output.finish().unwrap();
        let kept = read_all(&file, output.kept());
        assert_eq!(file.metadata().unwrap().len(), output.kept());
        (kept, output.dropped())
    }

    fn read_all(file: &File, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn output_within_the_bound_is_kept_as_it_is() {
        assert_eq!(run(100, b"hello\xff"), (b"hello\xff".to_vec(), 0));
        assert_eq!(run(5, b"hello"), (b"hello".to_vec(), 0));
    }

    #[test]
    fn output_beyond_the_bound_is_counted_and_cut_on_a_character_border() {
        assert_eq!(run(5, "abcdü€".as_bytes()), (b"abcd".to_vec(), 5));
        assert_eq!(run(6, "abcdü€".as_bytes()), ("abcdü".into(), 3));
        assert_eq!(run(0, b"abc"), (vec![], 3));
        let flood = vec![b'x'; 1_000_000];
        let (kept, dropped) = run(1234, &flood);
        assert_eq!((kept.len(), dropped), (1234, 998_766));
    }
}
