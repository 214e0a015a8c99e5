//! The threads that run router workers, with either disk driver.
//!
//! A worker's loop is the same for both: take what the driver has finished, take a bounded number
//! of messages, let the core do what is due, begin the disk operations, send the replies, and wait
//! for the next of these. Nothing is timed while nothing is due.

use std::fmt;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::gauge;
use skein_observe::names;
use skein_wire::data::ServerFrame;

use crate::shard::ShardMail;
use crate::sinks::disk::DiskDone;
use crate::sinks::dma::DmaDisk;
use crate::sinks::plain::PlainDisk;
use crate::sinks::recover::{RecoverError, WorkerStart, recover};

use super::core::{Now, RouterCore};
use super::queue::{QueueReceiver, queues, worker_of};
use super::table::Applied;
use super::{DiskChoice, RouterConfig, RouterHandle, RouterReport, SessionRef};

/// Messages that are taken before the disk and the shards get their turn.
const ROUND_MESSAGES: usize = 64;

/// Replies that wait for full mailboxes; beyond it no batch is taken.
const REPLIES_MAX: usize = 65_536;

/// Reports that wait for a full channel. Lanes come once a second; taps are dropped first.
const REPORTS_MAX: usize = 256;

/// Between tries of a full mailbox or report channel.
const RESEND_MS: u64 = 5;

/// How long a worker may take to end when its disk does not answer.
const STOP_MS: u64 = 15_000;

/// Longest wait when nothing is due.
const IDLE: Duration = Duration::from_secs(3_600);

/// Registered memory of one executor; three rings register it, and 8 MiB is a usual limit of
/// locked memory.
const IO_MEMORY_BYTES: usize = 2 << 20;

/// Pause of a glommio worker that has emptied its queue. Waking a parked executor costs some 30 us,
/// a good part of a batch's work, so batches are taken a few at a time. Acks wait for a group flush
/// anyway.
const LINGER: Duration = Duration::from_millis(2);

/// How often a busy worker lets the kernel have new writes.
const PREEMPT: Duration = Duration::from_millis(2);

/// Why the router does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Checkpoints or files.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// glommio was asked for and does not run here.
    #[error("glommio does not run here: {0}")]
    Glommio(String),
    /// No thread, or no log.
    #[error("router worker does not start: {0}")]
    Worker(#[from] io::Error),
}

/// How files are written, and why not better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskDriver {
    /// glommio executors.
    Glommio,
    /// Ordinary calls.
    Plain {
        /// Why not glommio, and what to set.
        reason: String,
    },
}

impl fmt::Display for DiskDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Glommio => f.write_str("glommio"),
            Self::Plain { reason } => write!(f, "plain ({reason})"),
        }
    }
}

/// The running router.
#[derive(Debug)]
pub struct Started {
    /// The way in.
    pub handle: RouterHandle,
    driver: DiskDriver,
    threads: Vec<JoinHandle<()>>,
    ended: flume::Receiver<()>,
}

impl Started {
    /// For the Register message: "glommio", or "plain" with the reason.
    pub fn disk_driver(&self) -> String {
        self.driver.to_string()
    }

    /// Waits for the end of all workers after [`super::ToRouter::Stop`]; false when time is up.
    pub fn join(self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let ended = self.threads.iter().all(|_| self.ended.recv_deadline(deadline).is_ok());
        if ended {
            // A worker's panic was caught and reported.
            self.threads.into_iter().for_each(|thread| drop(thread.join()));
        }
        ended
    }
}

/// Recovers files and lanes and starts the workers.
pub fn start(
    config: RouterConfig,
    shards: Vec<flume::Sender<ShardMail>>,
    reports: flume::Sender<RouterReport>,
) -> Result<Started, StartError> {
    let workers = config.workers.max(1);
    let driver = choose_driver(config.disk)?;
    let recovered = recover(&config.checkpoints, workers, |agent| worker_of(agent, workers))?;
    let lock = std::sync::Arc::new(recovered.lock);
    let (handle, receivers) = queues(workers, config.queue_bytes);
    let applied = Applied::default();
    let (end, ended) = flume::unbounded();
    let mut threads = Vec::with_capacity(workers);
    for (worker, (start, queue)) in recovered.workers.into_iter().zip(receivers).enumerate() {
        let (log, limits, applied) = (start.log.clone(), config.limits.clone(), applied.clone());
        let (driver, shards, reports) = (driver.clone(), shards.clone(), reports.clone());
        let (end, lock) = (end.clone(), lock.clone());
        let thread = std::thread::Builder::new().name(format!("router-{worker}"));
        threads.push(thread.spawn(move || {
            let seat = Seat { worker, workers, limits, start, queue, shards, applied };
            let run = AssertUnwindSafe(|| seat.run(&driver, &log, reports.clone()));
            let error = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic_text(&*panic)),
            };
            if let Some(error) = error {
                tracing::error!(worker, error, "router worker failed");
                let _ = reports.send(RouterReport::Failed { worker, error });
            }
            drop(lock);
            let _ = end.send(());
        })?);
    }
    Ok(Started { handle, driver, threads, ended })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
}

/// Tries what glommio needs, on a thread of its own: a refusal must not leave half an executor.
fn choose_driver(choice: DiskChoice) -> Result<DiskDriver, StartError> {
    let driver = match choice {
        DiskChoice::Plain => DiskDriver::Plain { reason: "as configured".to_owned() },
        DiskChoice::Auto | DiskChoice::Glommio => {
            let tried = std::thread::Builder::new()
                .name("router-probe".to_owned())
                .spawn(|| executor().map(|executor| executor.run(async {})))?
                .join();
            let refusal = match tried {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic_text(&*panic)),
            };
            match refusal {
                None => DiskDriver::Glommio,
                Some(error) if choice == DiskChoice::Glommio => {
                    return Err(StartError::Glommio(with_remedy(&error)));
                }
                Some(error) => DiskDriver::Plain { reason: with_remedy(&error) },
            }
        }
    };
    match &driver {
        DiskDriver::Glommio => tracing::info!("sink files are written through glommio"),
        DiskDriver::Plain { reason } => {
            tracing::warn!(reason, "sink files are written with ordinary calls");
        }
    }
    let label = match driver {
        DiskDriver::Glommio => "glommio",
        DiskDriver::Plain { .. } => "plain",
    };
    gauge!(names::DATA_DISK_DRIVER_INFO, "driver" => label).set(1.0);
    Ok(driver)
}

fn with_remedy(error: &str) -> String {
    format!(
        "{error}; for glommio allow io_uring (kernel.io_uring_disabled=0, and io_uring_setup, \
         io_uring_enter and io_uring_register in the container's seccomp profile) and at least \
         512 KiB of locked memory per worker (LimitMEMLOCK=, ulimit -l)"
    )
}

fn executor() -> Result<glommio::LocalExecutor, glommio::GlommioError<()>> {
    glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .name("router")
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT)
        .make()
}

/// What a worker thread is given.
struct Seat {
    worker: usize,
    workers: usize,
    limits: super::Limits,
    start: WorkerStart,
    queue: QueueReceiver,
    shards: Vec<flume::Sender<ShardMail>>,
    applied: Applied,
}

impl Seat {
    fn run(
        self,
        driver: &DiskDriver,
        log: &Path,
        reports: flume::Sender<RouterReport>,
    ) -> io::Result<()> {
        let log: PathBuf = log.to_owned();
        let shell = move |seat: Self| Shell::new(seat, reports);
        match driver {
            DiskDriver::Plain { .. } => run_plain(shell(self), PlainDisk::new(&log)?),
            DiskDriver::Glommio => {
                let executor = executor().map_err(io::Error::from)?;
                executor.run(async move { run_glommio(shell(self), &log).await })
            }
        }
    }
}

/// A worker's core and its ways out.
struct Shell {
    core: RouterCore,
    queue: QueueReceiver,
    shards: Vec<flume::Sender<ShardMail>>,
    mail: Vec<Vec<(SessionRef, ServerFrame)>>,
    unsent: usize,
    reports: flume::Sender<RouterReport>,
    waiting_reports: Vec<RouterReport>,
    applied: Applied,
    workers: usize,
    origin: Instant,
    stop_at_ms: Option<u64>,
}

impl Shell {
    fn new(seat: Seat, reports: flume::Sender<RouterReport>) -> Self {
        let origin = Instant::now();
        let now = now_since(origin);
        Self {
            core: RouterCore::new(seat.worker, seat.workers, seat.limits, seat.start, now),
            queue: seat.queue,
            mail: seat.shards.iter().map(|_| Vec::new()).collect(),
            shards: seat.shards,
            unsent: 0,
            reports,
            waiting_reports: Vec::new(),
            applied: seat.applied,
            workers: seat.workers,
            origin,
            stop_at_ms: None,
        }
    }

    fn now(&self) -> Now {
        now_since(self.origin)
    }

    fn accepts(&self) -> bool {
        self.core.accepts() && self.unsent < REPLIES_MAX
    }

    /// Takes waiting messages, at most a round of them.
    fn take_messages(&mut self) -> usize {
        let now = self.now();
        for taken in 0..ROUND_MESSAGES {
            if !self.accepts() {
                return taken;
            }
            let Some(message) = self.queue.try_next() else { return taken };
            self.core.handle(now, message);
        }
        ROUND_MESSAGES
    }

    /// Hands over replies and reports, as far as their takers have room.
    fn deliver(&mut self) {
        for (session, frame) in self.core.take_replies() {
            if let Some(mail) = self.mail.get_mut(usize::from(session.shard)) {
                mail.push((session, frame));
            }
        }
        self.unsent = 0;
        for (shard, mail) in self.shards.iter().zip(&mut self.mail) {
            if mail.is_empty() {
                continue;
            }
            // A shard that is gone has no sessions to answer.
            if let Err(flume::TrySendError::Full(ShardMail::Router(back))) =
                shard.try_send(ShardMail::Router(std::mem::take(mail)))
            {
                self.unsent += back.len();
                *mail = back;
            }
        }
        self.deliver_reports();
    }

    fn deliver_reports(&mut self) {
        let complete = |report: &RouterReport| match report {
            RouterReport::TableApplied(revision) => self.applied.count(*revision, self.workers),
            _ => true,
        };
        let new: Vec<_> = self.core.take_reports().into_iter().filter(complete).collect();
        self.waiting_reports.extend(new);
        let mut kept = Vec::new();
        for report in self.waiting_reports.drain(..) {
            match self.reports.try_send(report) {
                Err(flume::TrySendError::Full(RouterReport::Tap(_))) => {}
                Err(flume::TrySendError::Full(report)) if kept.len() < REPORTS_MAX => {
                    kept.push(report);
                }
                _ => {}
            }
        }
        self.waiting_reports = kept;
    }

    /// How long nothing is due.
    fn idle_time(&self) -> Duration {
        let now_ms = self.now().mono_ms;
        let resend = self.unsent > 0 || !self.waiting_reports.is_empty();
        let due = [self.core.deadline_ms(), resend.then_some(now_ms + RESEND_MS), self.stop_at_ms];
        let due = due.into_iter().flatten().min();
        due.map_or(IDLE, |due| Duration::from_millis(due.saturating_sub(now_ms)))
    }

    /// Whether the worker is done, or has waited long enough for its disk.
    fn has_ended(&mut self) -> bool {
        if self.core.is_stopped() {
            return true;
        }
        let now_ms = self.now().mono_ms;
        if self.core.is_stopping() {
            return now_ms >= *self.stop_at_ms.get_or_insert(now_ms + STOP_MS);
        }
        false
    }
}

fn now_since(origin: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono_ms: origin.elapsed().as_millis() as u64, wall_ms: wall.as_millis() as u64 }
}

fn run_plain(mut shell: Shell, mut disk: PlainDisk) -> io::Result<()> {
    loop {
        let taken = shell.take_messages();
        loop {
            let now = shell.now();
            shell.core.tick(now);
            let ops = shell.core.take_ops();
            if ops.is_empty() {
                break;
            }
            for op in ops {
                let done = disk.run(op);
                shell.core.done(shell.now(), done);
            }
        }
        shell.deliver();
        if shell.has_ended() {
            return Ok(());
        }
        if taken > 0 {
            continue;
        }
        let wait = shell.idle_time();
        if !shell.accepts() {
            std::thread::sleep(wait.min(Duration::from_millis(RESEND_MS)));
            continue;
        }
        match shell.queue.next_timeout(wait) {
            Ok(message) => shell.core.handle(shell.now(), message),
            Err(flume::RecvTimeoutError::Timeout) => {}
            // Every handle is gone: nobody can send, ask or stop.
            Err(flume::RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

async fn run_glommio(mut shell: Shell, log: &Path) -> io::Result<()> {
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
