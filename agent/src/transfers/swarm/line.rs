//! One connection of a swarm: a task that reads and a task that writes.
//!
//! What is received and what is sent is either with its task or with the swarm, so that a peer that
//! sends faster than it is taken, or takes slower than it is sent to, holds a slab and an output and
//! no more. A task hands over as much as comes without waiting: one wake-up for many blocks where
//! they come fast, one for each where they come slowly.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use skein_filemesh::core::download::PeerKey;
use skein_filemesh::core::geometry::BLOCK_BYTES;
use skein_filemesh::core::plan::Member;
use skein_filemesh::engine::{BlockMemory, Inbound};
use tokio::io::{AsyncRead, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::output::Output;
use crate::mesh::PeerStream;

/// What is handed to a peer at a time.
pub(super) const OUT_BYTES: usize = 128 * 1024;

/// What lines and dials tell the swarm.
pub(super) enum Letter {
    /// Bytes came.
    Heard(PeerKey, Inbound),
    /// The last output is with the kernel; here it is, empty.
    Sent(PeerKey, Output),
    /// The connection is over.
    Lost(PeerKey, String),
    /// A dial has an outcome.
    Dialled(Member, Result<Box<PeerStream>, String>),
}

/// What is to be read next: into what, and how many bytes of data come first.
type Wanted = (Inbound, u32);

/// A connection; it ends when this is dropped.
pub(super) struct Line {
    to_read: mpsc::Sender<Wanted>,
    to_send: mpsc::Sender<Output>,
    idle: Option<Output>,
    tasks: [AbortHandle; 2],
}

impl Line {
    /// Begins to read, data into `memory`.
    pub fn start(
        key: PeerKey,
        stream: PeerStream,
        memory: &BlockMemory,
        post: mpsc::Sender<Letter>,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (to_read, inputs) = mpsc::channel(1);
        let (to_send, outputs) = mpsc::channel(1);
        let reading = tokio::task::spawn_local(read(key, reader, inputs, post.clone()));
        let writing = tokio::task::spawn_local(write(key, writer, outputs, post));
        let tasks = [reading.abort_handle(), writing.abort_handle()];
        let mut line = Self { to_read, to_send, idle: Some(Output::default()), tasks };
        line.read_on(Inbound::new(memory), 0);
        line
    }

    /// Reads on, behind what was not used up; the next `arriving` bytes of the stream are data.
    pub fn read_on(&mut self, input: Inbound, arriving: u32) {
        // There is one of them, so there is room; a task that is over has said so.
        let _ = self.to_read.try_send((input, arriving));
    }

    /// The empty output, unless it is being sent.
    pub fn take_idle(&mut self) -> Option<Output> {
        self.idle.take()
    }

    /// Sends the output from [`Line::take_idle`], unless it is empty.
    pub fn send(&mut self, output: Output) {
        if output.len() == 0 {
            self.idle = Some(output);
        } else {
            // There is one of them, so there is room; a task that is over has said so.
            let _ = self.to_send.try_send(output);
        }
    }

    /// The output is back.
    pub fn sent(&mut self, output: Output) {
        self.idle = Some(output);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn read(
    key: PeerKey,
    mut reader: ReadHalf<PeerStream>,
    mut inputs: mpsc::Receiver<Wanted>,
    post: mpsc::Sender<Letter>,
) {
    while let Some((mut input, arriving)) = inputs.recv().await {
        let letter = match poll_fn(|cx| fill(&mut reader, &mut input, arriving, cx)).await {
            Ok(true) => Letter::Heard(key, input),
            Ok(false) => Letter::Lost(key, "it closed the connection".to_owned()),
            Err(error) => Letter::Lost(key, error.to_string()),
        };
        if post.send(letter).await.is_err() {
            return;
        }
    }
}

/// Reads messages, or data until all of it is here or there is no room, or until one must wait and
/// has a whole block. False at the stream's end.
fn fill(
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut Inbound,
    arriving: u32,
    cx: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    loop {
        let space = input.space(arriving);
        if space.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let mut space = ReadBuf::new(space);
        let read = Pin::new(&mut *reader).poll_read(cx, &mut space);
        let count = space.filled().len();
        let has_block = arriving > 0 && input.bytes().len() >= arriving.min(BLOCK_BYTES) as usize;
        match read {
            Poll::Pending if has_block => return Poll::Ready(Ok(true)),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) if count == 0 => return Poll::Ready(Ok(has_block)),
            Poll::Ready(Ok(())) => input.arrived(count),
        }
        if arriving == 0 {
            return Poll::Ready(Ok(true));
        }
    }
}

async fn write(
    key: PeerKey,
    mut writer: WriteHalf<PeerStream>,
    mut outputs: mpsc::Receiver<Output>,
    post: mpsc::Sender<Letter>,
) {
    while let Some(mut output) = outputs.recv().await {
        let letter = match output.write_to(&mut writer).await {
            Ok(()) => Letter::Sent(key, output),
            Err(error) => Letter::Lost(key, error.to_string()),
        };
        if post.send(letter).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, duplex};

    const BLOCK: usize = BLOCK_BYTES as usize;

    fn filled(
        reader: &mut (impl AsyncRead + Unpin),
        input: &mut Inbound,
        arriving: u32,
    ) -> Poll<Result<bool, io::ErrorKind>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        fill(reader, input, arriving, &mut cx).map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn a_wake_up_brings_whole_blocks_and_all_that_is_there() {
        let memory = BlockMemory::new(1 << 20);
        let (mut far, mut near) = duplex(1 << 20);
        let mut input = Inbound::new(&memory);
        assert!(filled(&mut near, &mut input, 0).is_pending());
        far.write_all(&[1; 5]).await.unwrap();
        assert_eq!(filled(&mut near, &mut input, 0), Poll::Ready(Ok(true)));
        assert_eq!(input.bytes(), [1; 5], "a message is handed over at once");
        input.take(5);
        let arriving = 4 * BLOCK_BYTES;
        far.write_all(&vec![2; BLOCK - 1]).await.unwrap();
        assert!(filled(&mut near, &mut input, arriving).is_pending(), "no block is whole");
        far.write_all(&vec![2; BLOCK + 1]).await.unwrap();
        assert_eq!(filled(&mut near, &mut input, arriving), Poll::Ready(Ok(true)));
        assert_eq!(input.bytes().len(), 2 * BLOCK, "both together");
        input.take(2 * BLOCK);
        far.write_all(&vec![3; 3 * BLOCK]).await.unwrap();
        assert_eq!(filled(&mut near, &mut input, 2 * BLOCK_BYTES), Poll::Ready(Ok(true)));
        assert_eq!(input.bytes().len(), 2 * BLOCK, "what comes behind the data is no data");
        input.take(2 * BLOCK);
        drop(far);
        assert_eq!(filled(&mut near, &mut input, BLOCK_BYTES + 100), Poll::Ready(Ok(true)));
        input.take(BLOCK);
        assert_eq!(filled(&mut near, &mut input, 100), Poll::Ready(Ok(false)), "it has ended");
    }
}
