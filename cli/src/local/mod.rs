//! A fleet on this machine made of the real binaries, each process with its own folder and ports:
//! what the demo shows, the story tests torture and the measurements load.

mod agent;
mod counters;
mod server;

pub use agent::{AgentOptions, LocalAgent};
pub use counters::Counters;
pub use server::{LocalServer, ServerOptions};

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::error::CliError;
use crate::guard::{self, Signal};

/// Time between two looks at something that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The two programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `skein`.
    pub skein: PathBuf,
    /// `skein-agent`.
    pub agent: PathBuf,
}

impl Binaries {
    /// `skein` at this path and `skein-agent` beside it.
    pub fn beside(skein: &Path) -> Result<Self, CliError> {
        let agent = skein.with_file_name("skein-agent");
        if !agent.is_file() {
            return Err(CliError::Local(format!(
                "{} is missing; build it: cargo build -p skein-agent",
                agent.display()
            )));
        }
        Ok(Self { skein: skein.to_owned(), agent })
    }
}

/// Waits until `probe` answers; the error says what was waited for.
pub fn wait_for<T>(
    what: &str,
    time_max: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T, CliError> {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if started.elapsed() > time_max {
            return Err(CliError::Local(format!(
                "waited {} s in vain for {what}",
                time_max.as_secs()
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Asks a child to end and kills it when it does not within `grace`.
fn stop(child: &mut Child, grace: Duration) {
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    guard::signal(child.id(), Signal::Terminate);
    let ended = wait_for("its end", grace, || child.try_wait().ok().flatten());
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The last lines of a log, to be shown when something went wrong.
fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n  ")
}
