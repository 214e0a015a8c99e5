//! A few threads that may block on disks, so that shards never do.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crate::limits::FILE_JOBS_MAX;

type Job = Box<dyn FnOnce() + Send>;

/// Threads with one bounded queue. They end when the last handle is dropped.
#[derive(Clone)]
pub struct FilePool {
    jobs: flume::Sender<Job>,
}

impl FilePool {
    /// Starts `threads` threads (at least one).
    pub fn start(threads: usize) -> io::Result<Self> {
        let (jobs, queue) = flume::bounded::<Job>(FILE_JOBS_MAX);
        for number in 0..threads.max(1) {
            let queue = queue.clone();
            thread::Builder::new()
                .name(format!("file-{number}"))
                .spawn(move || queue.iter().for_each(run))?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job; false when the queue is full.
    #[must_use]
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> bool {
        self.jobs.try_send(Box::new(job)).is_ok()
    }
}

/// A job that panics ends its channel (by its idle timer), not the thread.
fn run(job: Job) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a disk job panicked");
    }
}
