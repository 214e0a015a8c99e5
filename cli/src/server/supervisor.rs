//! Keeps the two processes alive: each is restarted alone, with growing pauses when it keeps
//! dying, and both end in order (data first, so that control still hears its last reports).

use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use skein_wire::backoff::Backoff;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::child::{self, Role};
use super::config::ServerConfig;
use crate::connection::Ports;
use crate::error::CliError;

/// The first pause before a restart; they grow from here to the configured longest.
const RESTART_PAUSE_MS_MIN: u64 = 200;
/// A process that lived this long starts with the shortest pause again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// How long a process may take to end in good order before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);
/// How long data waits for control's first start, which makes the certificates that data needs.
const CONTROL_START_MAX: Duration = Duration::from_secs(30);

/// Runs both processes until SIGTERM or SIGINT.
pub fn run(dir: &Path, config: &ServerConfig) -> Result<(), CliError> {
    for role in [Role::Control, Role::Data] {
        // What a former server bound says nothing about this one.
        let _ = std::fs::remove_file(dir.join(format!("run/{}.ports.json", role.name())));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::io("cannot start the supervisor"))?;
    runtime.block_on(supervise(dir, config))
}

async fn supervise(dir: &Path, config: &ServerConfig) -> Result<(), CliError> {
    let listen_signals = CliError::io("cannot listen for signals");
    let (mut interrupt, mut end) = signal(SignalKind::interrupt())
        .and_then(|interrupt| Ok((interrupt, signal(SignalKind::terminate())?)))
        .map_err(listen_signals)?;
    let (stop_data, data_stopped) = watch::channel(false);
    let (stop_control, control_stopped) = watch::channel(false);
    let control = keep(Role::Control, dir, config, control_stopped);
    let data = async {
        wait_for_control(dir, data_stopped.clone()).await;
        keep(Role::Data, dir, config, data_stopped).await;
        // Only now: the last reports of data have been heard.
        stop_control.send_replace(true);
    };
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = end.recv() => {}
        }
        tracing::info!("stopping");
        stop_data.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = async { tokio::join!(control, data) } => {}
        () = stop => {}
    }
    tracing::info!("stopped");
    Ok(())
}

/// Runs one role, again and again, until told to stop.
async fn keep(role: Role, dir: &Path, config: &ServerConfig, mut stop: watch::Receiver<bool>) {
    let mut backoff = Backoff::new(RESTART_PAUSE_MS_MIN, config.restart_pause_ms_max);
    while !*stop.borrow() {
        let started = Instant::now();
        match child::spawn(role, dir, config) {
            Ok(mut child) => {
                let pid = child.id().unwrap_or_default();
                tracing::info!(process = role.name(), pid, "started");
                tokio::select! {
                    status = child.wait() => report(role, pid, status),
                    _ = stop.wait_for(|stop| *stop) => {
                        end(role, &mut child).await;
                        return;
                    }
                }
            }
            Err(error) => tracing::error!(process = role.name(), %error, "cannot start"),
        }
        if started.elapsed() >= HEALTHY_AFTER {
            backoff.reset();
        }
        let pause = Duration::from_millis(backoff.next_delay(jitter()));
        tracing::info!(process = role.name(), pause_ms = pause.as_millis() as u64, "restarts");
        tokio::select! {
            () = sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn end(role: Role, child: &mut Child) {
    child::terminate(child);
    if timeout(STOP_TIME_MAX, child.wait()).await.is_err() {
        tracing::warn!(process = role.name(), "did not end within 20 s and is killed");
        let _ = child.kill().await;
    }
}

fn report(role: Role, pid: u32, status: std::io::Result<ExitStatus>) {
    match status {
        Ok(status) => tracing::warn!(process = role.name(), pid, %status, "ended"),
        Err(error) => tracing::warn!(process = role.name(), pid, %error, "lost sight of it"),
    }
}

async fn wait_for_control(dir: &Path, mut stop: watch::Receiver<bool>) {
    let ready = async {
        while Ports::read(dir, "control").and_then(|ports| ports.api).is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = timeout(CONTROL_START_MAX, ready) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Spread for the pauses; the low bits of the clock are random enough for that.
fn jitter() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |now| u64::from(now.subsec_nanos()));
    nanos.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
