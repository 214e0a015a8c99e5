//! Starts the threads of the router's workers and chooses their disk driver.

use std::fmt;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::gauge;
use skein_observe::names;

use crate::shard::ShardMail;
use crate::sinks::plain::PlainDisk;
use crate::sinks::recover::{RecoverError, recover};

use super::queue::{queues, worker_of};
use super::shell::{Seat, Shell};
use super::table::Applied;
use super::{DiskChoice, RouterConfig, RouterHandle, RouterReport, calls, executor};

/// Why the router does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Checkpoints or files.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// No thread, or no log.
    #[error("router worker does not start: {0}")]
    Worker(#[from] io::Error),
}

/// How files are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskDriver {
    /// glommio executors.
    Glommio,
    /// Ordinary calls.
    Plain {
        /// Why not glommio although it was asked for, and what to set.
        refusal: Option<String>,
    },
}

impl fmt::Display for DiskDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Glommio => f.write_str("glommio"),
            Self::Plain { refusal: None } => f.write_str("plain"),
            Self::Plain { refusal: Some(refusal) } => write!(f, "plain ({refusal})"),
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
    /// For the Register message: "glommio" or "plain", with the reason if glommio was asked for.
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
            let run = AssertUnwindSafe(|| run(seat, &driver, &log, reports.clone()));
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
        DiskChoice::Plain => DiskDriver::Plain { refusal: None },
        DiskChoice::Glommio => {
            let tried = std::thread::Builder::new()
                .name("router-probe".to_owned())
                .spawn(|| executor::executor().map(|executor| executor.run(async {})))?
                .join();
            match tried {
                Ok(Ok(())) => DiskDriver::Glommio,
                Ok(Err(error)) => {
                    DiskDriver::Plain { refusal: Some(with_remedy(&error.to_string())) }
                }
                Err(panic) => {
                    DiskDriver::Plain { refusal: Some(with_remedy(&panic_text(&*panic))) }
                }
            }
        }
    };
    match &driver {
        DiskDriver::Glommio => tracing::info!("sink files are written through glommio"),
        DiskDriver::Plain { refusal: None } => {
            tracing::info!("sink files are written with ordinary calls");
        }
        DiskDriver::Plain { refusal: Some(refusal) } => {
            tracing::warn!(refusal, "sink files are written with ordinary calls, not glommio");
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

fn run(
    seat: Seat,
    driver: &DiskDriver,
    log: &Path,
    reports: flume::Sender<RouterReport>,
) -> io::Result<()> {
    let worker = seat.worker;
    match driver {
        DiskDriver::Plain { .. } => {
            calls::run(worker, Shell::new(seat, reports), PlainDisk::new(log)?)
        }
        DiskDriver::Glommio => {
            let executor = executor::executor().map_err(io::Error::from)?;
            executor.run(async move { executor::run(Shell::new(seat, reports), log).await })
        }
    }
}
