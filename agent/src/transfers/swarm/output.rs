//! What goes to one peer at a time: messages as they are made, and data from where it lies.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;

use skein_filemesh::engine::View;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Parts that one write takes; TLS makes its records across their borders.
const PARTS_MAX: usize = 64;

/// Bytes in their order. Those of messages, and what came from the disk, are in one buffer; what is
/// among the newest blocks stays in its slab.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// To append to; what is in it goes out in its place between the views.
    pub bytes: Vec<u8>,
    parts: VecDeque<Part>,
    /// Bytes of `bytes` that are in `parts`.
    placed: usize,
    views_bytes: usize,
}

#[derive(Debug)]
enum Part {
    Bytes(Range<usize>),
    View(View),
}

impl Output {
    /// How much it is.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.views_bytes
    }

    /// Appends bytes that lie in a slab.
    pub fn push(&mut self, view: View) {
        self.place();
        self.views_bytes += view.len();
        self.parts.push_back(Part::View(view));
    }

    /// Gives what was appended to the buffer its place.
    fn place(&mut self) {
        if self.placed < self.bytes.len() {
            self.parts.push_back(Part::Bytes(self.placed..self.bytes.len()));
            self.placed = self.bytes.len();
        }
    }

    /// Writes everything and flushes; it is empty afterwards, and also after an error.
    pub async fn write_to(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        self.place();
        let mut result = Ok(());
        while result.is_ok() && !self.parts.is_empty() {
            result = self.write_some(writer).await;
        }
        self.parts.clear();
        self.bytes.clear();
        (self.placed, self.views_bytes) = (0, 0);
        result?;
        writer.flush().await
    }

    async fn write_some(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let bytes = &self.bytes;
        let slice = |part| match part {
            &Part::Bytes(Range { start, end }) => IoSlice::new(&bytes[start..end]),
            Part::View(view) => IoSlice::new(view),
        };
        let slices: Vec<IoSlice> = self.parts.iter().take(PARTS_MAX).map(slice).collect();
        let written = writer.write_vectored(&slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.advance(written);
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let Some(part) = self.parts.front_mut() else { return };
            let len = match part {
                Part::Bytes(range) => range.len(),
                Part::View(view) => view.len(),
            };
            if written >= len {
                self.parts.pop_front();
                written -= len;
                continue;
            }
            match part {
                Part::Bytes(range) => range.start += written,
                Part::View(view) => *view = view.slice(written..len),
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_filemesh::engine::BlockMemory;
    use tokio::io::AsyncReadExt;

    /// Through a pipe that takes a few bytes at a time.
    #[tokio::test]
    async fn parts_go_out_in_their_order() {
        let memory = BlockMemory::new(1);
        let mut room = memory.take_anyway();
        let (mut output, mut expected) = (Output::default(), Vec::new());
        for number in 0..100u8 {
            output.bytes.extend_from_slice(&[number; 13]);
            expected.extend_from_slice(&[number; 13]);
            let len = 1 + 17 * usize::from(number % 5);
            room[..len].fill(number);
            output.push(room.cut(len));
            expected.resize(expected.len() + len, number);
        }
        output.bytes.push(255);
        expected.push(255);
        assert_eq!(output.len(), expected.len());
        let (mut near, mut far) = tokio::io::duplex(7);
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.map(|_| read)
        });
        output.write_to(&mut near).await.unwrap();
        drop(near);
        assert!(reading.await.unwrap().unwrap() == expected);
        assert_eq!((output.len(), output.bytes.len()), (0, 0));
        drop(room);
        assert_eq!(memory.counters().in_use, 0, "it holds no slab");
    }

    #[tokio::test]
    async fn nothing_is_left_of_what_could_not_be_sent() {
        let (mut near, far) = tokio::io::duplex(7);
        drop(far);
        let mut output = Output { bytes: vec![1; 100], ..Output::default() };
        assert!(output.write_to(&mut near).await.is_err());
        assert_eq!(output.len(), 0);
    }
}
