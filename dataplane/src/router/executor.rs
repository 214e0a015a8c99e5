//! A worker on a glommio executor: disk operations overlap with ingest through io_uring.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::sinks::disk::DiskDone;
use crate::sinks::dma::DmaDisk;

use super::shell::{ROUND_MESSAGES, Shell};

/// Registered memory of one executor; three rings register it, and 8 MiB is a usual limit of
/// locked memory.
const IO_MEMORY_BYTES: usize = 2 << 20;

/// Pause of a glommio worker that has emptied its queue. Waking a parked executor costs some 30 us,
/// a good part of a batch's work, so batches are taken a few at a time. Acks wait for a group flush
/// anyway.
const LINGER: Duration = Duration::from_millis(2);

/// How often a busy worker lets the kernel have new writes.
const PREEMPT: Duration = Duration::from_millis(2);

/// Longest sleep of a glommio executor; see [`keep_awake`].
const NAP: Duration = Duration::from_millis(20);

/// An executor for one worker.
pub fn executor() -> Result<glommio::LocalExecutor, glommio::GlommioError<()>> {
    glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .name("router")
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT)
        .make()
}

/// Bounds the executor's sleep. When glommio 0.9 is preempted before it has run the first task of
/// a round (its thread lost the core for that long), it takes the round for an idle one and parks
/// with runnable tasks; only a timer or I/O wakes it again. This timer always does.
fn keep_awake() {
    glommio::spawn_local(async {
        loop {
            glommio::timer::sleep(NAP).await;
        }
    })
    .detach();
}

/// Runs a worker to its end.
pub async fn run(mut shell: Shell, log: &Path) -> io::Result<()> {
    keep_awake();
    let finished = std::rc::Rc::new(Event::default());
    let waker = finished.clone();
    let disk = DmaDisk::new(log, Box::new(move || waker.set()))?;
    let mut done: Vec<DiskDone> = Vec::new();
    loop {
        finished.clear();
        disk.take_done(&mut done);
        let now = shell.now();
        done.drain(..).for_each(|done| shell.core.done(now, done));
        let taken = shell.take_messages();
        let now = shell.now();
        shell.core.tick(now);
        let ops = shell.core.take_ops();
        let begun = !ops.is_empty();
        ops.into_iter().for_each(|op| disk.begin(op));
        shell.deliver();
        if shell.has_ended() {
            return Ok(());
        }
        if taken == ROUND_MESSAGES || (begun && taken == 0) {
            // Lets the operations that were begun reach the ring.
            yield_once().await;
            continue;
        }
        if taken > 0 {
            glommio::timer::sleep(LINGER).await;
            continue;
        }
        match next_event(&shell, &finished).await {
            Woken::Message(message) => {
                let now = shell.now();
                shell.core.handle(now, message);
            }
            Woken::Due => {}
            Woken::Orphaned => return Ok(()),
        }
    }
}

enum Woken {
    Message(super::ToRouter),
    /// The disk or the time.
    Due,
    /// Every handle is gone.
    Orphaned,
}

async fn next_event(shell: &Shell, finished: &Event) -> Woken {
    use std::future::Future;
    use std::task::Poll;
    let accepts = shell.accepts();
    let mut message = std::pin::pin!(shell.queue.next());
    let mut timer = std::pin::pin!(glommio::timer::Timer::new(shell.idle_time()));
    std::future::poll_fn(|context| {
        if finished.poll(context) || timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Woken::Due);
        }
        if !accepts {
            return Poll::Pending;
        }
        message.as_mut().poll(context).map(|message| match message {
            Some(message) => Woken::Message(message),
            None => Woken::Orphaned,
        })
    })
    .await
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// Set by the driver's tasks, awaited by the worker's loop; both on one thread.
#[derive(Default)]
struct Event {
    set: std::cell::Cell<bool>,
    waker: std::cell::RefCell<Option<std::task::Waker>>,
}

impl Event {
    fn set(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn clear(&self) {
        self.set.set(false);
    }

    fn poll(&self, context: &std::task::Context<'_>) -> bool {
        if !self.set.get() {
            *self.waker.borrow_mut() = Some(context.waker().clone());
        }
        self.set.get()
    }
}
