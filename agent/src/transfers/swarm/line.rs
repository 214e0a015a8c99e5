//! One connection of a swarm: a task that reads and a task that writes.
//!
//! A buffer is either with its task or with the swarm, so that a peer that sends faster than it is
//! taken, or takes slower than it is sent to, holds one buffer in each direction and no more.

use skein_filemesh::core::download::PeerKey;
use skein_filemesh::core::plan::Member;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::mesh::PeerStream;

/// What is read at a time. Neighbouring blocks in it are written by one call.
const IN_BYTES: usize = 128 * 1024;
/// What is handed to a peer at a time.
pub(super) const OUT_BYTES: usize = 128 * 1024;

/// What lines and dials tell the swarm.
pub(super) enum Letter {
    /// Bytes came; they lie behind what the swarm left in the buffer.
    Heard(PeerKey, Vec<u8>),
    /// The last output is with the kernel; its buffer, empty.
    Sent(PeerKey, Vec<u8>),
    /// The connection is over.
    Lost(PeerKey, String),
    /// A dial has an outcome.
    Dialled(Member, Result<Box<PeerStream>, String>),
}

/// A connection; it ends when this is dropped.
pub(super) struct Line {
    to_read: mpsc::Sender<Vec<u8>>,
    to_send: mpsc::Sender<Vec<u8>>,
    idle: Option<Vec<u8>>,
    tasks: [AbortHandle; 2],
}

impl Line {
    /// Begins to read.
    pub fn start(key: PeerKey, stream: PeerStream, post: mpsc::Sender<Letter>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (to_read, inputs) = mpsc::channel(1);
        let (to_send, outputs) = mpsc::channel(1);
        let reading = tokio::task::spawn_local(read(key, reader, inputs, post.clone()));
        let writing = tokio::task::spawn_local(write(key, writer, outputs, post));
        let tasks = [reading.abort_handle(), writing.abort_handle()];
        let mut line = Self { to_read, to_send, idle: Some(Vec::new()), tasks };
        line.read_on(Vec::with_capacity(IN_BYTES));
        line
    }

    /// Gives the buffer back, with what was not used up at its front.
    pub fn read_on(&mut self, buffer: Vec<u8>) {
        // There is one buffer, so there is room; a task that is over has said so.
        let _ = self.to_read.try_send(buffer);
    }

    /// The buffer for output, unless it is being sent.
    pub fn take_idle(&mut self) -> Option<Vec<u8>> {
        self.idle.take()
    }

    /// Sends the buffer from [`Line::take_idle`], unless it is empty.
    pub fn send(&mut self, buffer: Vec<u8>) {
        if buffer.is_empty() {
            self.idle = Some(buffer);
        } else {
            // There is one buffer, so there is room; a task that is over has said so.
            let _ = self.to_send.try_send(buffer);
        }
    }

    /// The buffer is back.
    pub fn sent(&mut self, buffer: Vec<u8>) {
        self.idle = Some(buffer);
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
    mut inputs: mpsc::Receiver<Vec<u8>>,
    post: mpsc::Sender<Letter>,
) {
    while let Some(mut buffer) = inputs.recv().await {
        let letter = match reader.read_buf(&mut buffer).await {
            Ok(0) => Letter::Lost(key, "it closed the connection".to_owned()),
            Ok(_) => Letter::Heard(key, buffer),
            Err(error) => Letter::Lost(key, error.to_string()),
        };
        if post.send(letter).await.is_err() {
            return;
        }
    }
}

async fn write(
    key: PeerKey,
    mut writer: WriteHalf<PeerStream>,
    mut outputs: mpsc::Receiver<Vec<u8>>,
    post: mpsc::Sender<Letter>,
) {
    while let Some(mut buffer) = outputs.recv().await {
        let written = async {
            writer.write_all(&buffer).await?;
            writer.flush().await
        };
        let letter = match written.await {
            Ok(()) => {
                buffer.clear();
                Letter::Sent(key, buffer)
            }
            Err(error) => Letter::Lost(key, error.to_string()),
        };
        if post.send(letter).await.is_err() {
            return;
        }
    }
}
