//! Followed files.
//!
//! A thread of its own reads the files (a stalled file system must not stop the worker), cuts
//! them into lines and hands chunks to a task on the worker, which pushes each line with the
//! position behind it. Line and position become durable in one entry of the spool, so a kill
//! neither loses nor repeats a line. The thread moves on only to where its lines are durable, and
//! the task takes only lines for which the lane has room: a full lane stops its own files and
//! loses nothing.
//!
//! ```text
//!   thread: patterns ─► files ─► chunk of lines ──► task: push(line, position) ──► spool
//!              ▲                       └──────────◄── durable ◄─────────────────────┘
//! ```

mod follow;
mod glob;
mod mark;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::mpsc as blocking;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::follow::Chunk;
use self::mark::Place;
use self::watch::{Reply, Watcher};
use super::OpenFile;
use super::socket::failed;
use crate::spool::{Input, Marks, Refusal, SURE_RECORD_BYTES_MAX, Spool};

/// The longest line; the rest of a longer one is left out and counted.
pub const LINE_BYTES_MAX: usize = SURE_RECORD_BYTES_MAX;
/// Chunks on their way from the thread to the spool: 2 MiB.
const CHUNKS_MAX: usize = 8;

/// One `[[tail]]` of `agent.toml`: files to follow into a lane.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct TailConfig {
    /// Absolute path; `*` and `?` match within one component.
    pub path: String,
    /// Lane that gets the lines.
    pub data_id: u32,
    /// Where files that exist when the path is followed for the first time are read from: "end"
    /// or "start". Files that appear later are read from their start.
    pub from: From,
}

/// See [`TailConfig::from`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// Only what is written from now on.
    #[default]
    End,
    /// Everything.
    Start,
}

impl TailConfig {
    /// What is wrong with the values, for the person who wrote them.
    pub fn validate(&self) -> Result<(), String> {
        if !self.path.starts_with('/') || self.path.len() > 4_095 {
            return Err(format!("tail.path: {:?} must be absolute", self.path));
        }
        if self.path.split('/').any(|part| part == "..") {
            return Err(format!("tail.path: {:?} must not contain \"..\"", self.path));
        }
        Ok(())
    }
}

/// Starts the thread, and the task that takes its chunks. Does nothing when nothing is followed.
/// `marks` is what the spool knew at the start.
pub fn start(
    tails: &[TailConfig],
    spool: &Rc<Spool>,
    mut marks: BTreeMap<u32, Marks>,
    open_file: OpenFile,
) {
    let tails: Vec<TailConfig> = (tails.iter())
        .filter(|tail| match tail.validate() {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "not followed");
                false
            }
        })
        .cloned()
        .collect();
    if tails.is_empty() {
        return;
    }
    marks.retain(|data_id, _| tails.iter().any(|tail| tail.data_id == *data_id));
    let (chunks, taken) = mpsc::channel(CHUNKS_MAX);
    let (reply, replies) = blocking::channel();
    let spawned = std::thread::Builder::new()
        .name("skein-tail".into())
        .stack_size(256 * 1024)
        .spawn(move || Watcher::new(tails, marks, open_file, chunks, replies).run());
    if let Err(error) = spawned {
        tracing::error!(%error, "cannot start the thread that follows files");
        failed(Input::Tail, "thread");
        return;
    }
    let spool = spool.clone();
    tokio::task::spawn_local(async move { take(&spool, taken, reply).await });
}

async fn take(
    spool: &Rc<Spool>,
    mut chunks: mpsc::Receiver<Chunk>,
    reply: blocking::Sender<Reply>,
) {
    let mut refused = BTreeSet::new();
    while let Some(chunk) = chunks.recv().await {
        let (file, data_id) = (chunk.file, chunk.data_id);
        let (taken, refusal) = push(spool, &chunk);
        if refusal == Some(Refusal::Lanes) {
            failed(Input::Tail, "lanes");
            if refused.insert(data_id) {
                tracing::error!(data_id, "cannot follow files: {}", Refusal::Lanes);
            }
        }
        let receipt = spool.receipt(data_id);
        if chunk.is_full() {
            spool.flush(data_id);
        }
        let reply = reply.clone();
        tokio::task::spawn_local(async move {
            let kept = taken.is_some() && receipt.await.is_ok();
            let durable = taken.filter(|_| kept);
            // A thread that is gone needs no answer.
            let _ = reply.send(Reply { file, durable });
        });
        // A chunk is a millisecond of work: others come in between.
        tokio::task::yield_now().await;
    }
}

/// Pushes the lines for which there is room; answers how far it came, and what stopped it. A lane
/// without room stops its own files and no others.
fn push(spool: &Spool, chunk: &Chunk) -> (Option<Place>, Option<Refusal>) {
    let now_ms = crate::clock::wall_ms();
    let mut taken = None;
    for (line, place) in chunk.lines() {
        let mark = place.encode();
        let mark = Some((&chunk.key[..], &mark[..]));
        match spool.push_marked(Input::Tail, chunk.data_id, now_ms, line, mark) {
            Ok(()) => taken = Some(place),
            Err(refusal) => return (taken, Some(refusal)),
        }
    }
    // Where the chunk ends may be behind its last line, or there may be no line at all.
    match spool.mark(chunk.data_id, &chunk.key, &chunk.end_mark) {
        Ok(()) => (Some(chunk.end()), None),
        Err(refusal) => (taken, Some(refusal)),
    }
}
