//! A worker whose disk is worked on by a thread beside it, with ordinary calls.
//!
//! The thread executes the operations one by one in the order in which they were given. A slow disk
//! delays what waits for it, and batches only when the blocks are all lent.

use std::io;
use std::time::Duration;

use crate::sinks::disk::{DiskDone, DiskOp};
use crate::sinks::plain::PlainDisk;

use super::ToRouter;
use super::shell::Shell;

/// The thread and the ways to it. What is on its way is bounded by the core: each write holds a
/// block of the pool, and of other operations each file has few under way.
struct DiskThread {
    ops: flume::Sender<DiskOp>,
    done: flume::Receiver<DiskDone>,
}

impl DiskThread {
    fn start(worker: usize, mut disk: PlainDisk) -> io::Result<Self> {
        let (ops, incoming) = flume::unbounded();
        let (finished, done) = flume::unbounded();
        std::thread::Builder::new().name(format!("disk-{worker}")).spawn(move || {
            for op in incoming {
                if finished.send(disk.run(op)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { ops, done })
    }

    fn gone() -> io::Error {
        io::Error::other("the thread that writes the sink files has ended")
    }
}

/// What ended a wait.
enum Woken {
    Message(ToRouter),
    Disk(DiskDone),
    Due,
    /// Every handle is gone: nobody can send, ask or stop.
    Orphaned,
}

/// Runs a worker to its end.
pub fn run(worker: usize, mut shell: Shell, disk: PlainDisk) -> io::Result<()> {
    let disk = DiskThread::start(worker, disk)?;
    loop {
        let now = shell.now();
        disk.done.try_iter().for_each(|done| shell.core.done(now, done));
        let taken = shell.take_messages();
        shell.core.tick(shell.now());
        for op in shell.core.take_ops() {
            disk.ops.send(op).map_err(|_| DiskThread::gone())?;
        }
        shell.deliver();
        if shell.has_ended() {
            return Ok(());
        }
        if taken > 0 {
            continue;
        }
        match wait(&shell, &disk)? {
            Woken::Message(message) => shell.core.handle(shell.now(), message),
            Woken::Disk(done) => shell.core.done(shell.now(), done),
            Woken::Due => {}
            Woken::Orphaned => return Ok(()),
        }
    }
}

fn wait(shell: &Shell, disk: &DiskThread) -> io::Result<Woken> {
    // What is due and cannot be done yet must not turn the wait into a spin.
    let idle = shell.idle_time().max(Duration::from_millis(1));
    if !shell.accepts() {
        return match disk.done.recv_timeout(idle) {
            Ok(done) => Ok(Woken::Disk(done)),
            Err(flume::RecvTimeoutError::Timeout) => Ok(Woken::Due),
            Err(flume::RecvTimeoutError::Disconnected) => Err(DiskThread::gone()),
        };
    }
    let finished = |done: Result<DiskDone, flume::RecvError>| {
        done.map(Woken::Disk).map_err(|_| DiskThread::gone())
    };
    let message = |message: Option<ToRouter>| Ok(message.map_or(Woken::Orphaned, Woken::Message));
    shell
        .queue
        .select(flume::Selector::new().recv(&disk.done, finished), message)
        .wait_timeout(idle)
        .unwrap_or(Ok(Woken::Due))
}
