//! What sessions share: the process's tables and the links to its other parts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::directory::Directory;
use crate::files::FileService;
use crate::fleet::FleetSender;
use crate::metrics::ShardMetrics;
use crate::router::{RouterHandle, SessionRef};
use crate::shard::{Budget, ConnKey, ShardMail};

/// Shared by all shards of a process.
pub struct Shared {
    /// Agent to session, and who is revoked.
    pub directory: Arc<Directory>,
    /// To the control process.
    pub fleet: FleetSender,
    /// To the router workers.
    pub router: RouterHandle,
    /// Transfers and the threads that read and write their files.
    pub files: FileService,
    /// To every shard, by its number.
    pub shards: Vec<flume::Sender<ShardMail>>,
    /// When a silent session is lost.
    pub liveness: Liveness,
    /// Set when the process goes away.
    pub draining: AtomicBool,
    /// The next session's number.
    pub session_ids: AtomicU64,
}

impl Shared {
    /// A number for a new session: rises, and is above those of earlier processes because it
    /// starts with the time of the start.
    pub fn next_session_id(&self) -> u64 {
        self.session_ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a mail to the shard of a session. A full mailbox belongs to a stalled shard; what is
    /// sent here (close, challenge) may be lost then, because its timers do the same later.
    pub fn mail(&self, to: SessionRef, mail: impl FnOnce(ConnKey) -> ShardMail) {
        if let Some(shard) = self.shards.get(usize::from(to.shard)) {
            let _ = shard.try_send(mail(ConnKey(to.conn)));
        }
    }
}

/// Heartbeats that control wants; it may change them while sessions live.
#[derive(Debug)]
pub struct Liveness {
    interval_ms: AtomicU32,
    misses: AtomicU32,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { interval_ms: AtomicU32::new(10_000), misses: AtomicU32::new(4) }
    }
}

impl Liveness {
    /// Sets both; zeros leave what is there.
    pub fn set(&self, interval_ms: u32, misses: u32) {
        if interval_ms > 0 {
            self.interval_ms.store(interval_ms, Ordering::Relaxed);
        }
        if misses > 0 {
            self.misses.store(misses, Ordering::Relaxed);
        }
    }

    /// Milliseconds between two heartbeats.
    pub fn interval_ms(&self) -> u32 {
        self.interval_ms.load(Ordering::Relaxed)
    }

    /// Silence after which a session is lost: that many intervals, and half of one for the way.
    pub fn lost_after_ms(&self) -> u64 {
        let interval = u64::from(self.interval_ms());
        interval * u64::from(self.misses.load(Ordering::Relaxed)) + interval / 2
    }
}

/// What a session may touch in one turn of its shard.
pub struct Ctx<'a> {
    /// This session.
    pub me: SessionRef,
    /// The shard's observed time, milliseconds: deadlines are in it.
    pub now_ms: u64,
    /// Milliseconds since 1970.
    pub unix_ms: i64,
    /// Shared by all.
    pub shared: &'a Shared,
    /// Memory for messages that arrive in parts.
    pub assembly: &'a mut Budget,
    /// Counters of this shard.
    pub metrics: &'a ShardMetrics,
    /// Output of the shard's sessions adds up: file channels hold less.
    pub crowded: bool,
    /// Buffers that are free.
    pub spare: &'a mut Vec<Vec<u8>>,
}

impl Ctx<'_> {
    /// Keeps a buffer for the next session that has something to say.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        const SPARE_BUFFERS: usize = 16;
        const SPARE_BYTES_MAX: usize = 1 << 20;
        if self.spare.len() < SPARE_BUFFERS && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// This session's key in its shard.
    pub fn key(&self) -> ConnKey {
        ConnKey(self.me.conn)
    }
}
