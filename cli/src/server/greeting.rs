//! What `skein server` prints once it is up: where things are, the one command that makes a host
//! join, and how to stop. Read from the API, so what is printed is what works.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use skein_controlplane::api::types::Status;

use crate::client::Client;
use crate::connection::{ConnectionArgs, Ports, admin_token_file, authority_file};
use crate::quantity;

/// After this long without a server something is wrong, and the log above says what.
const START_TIME_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Prints the welcome from a thread of its own when both processes are up.
pub fn start(dir: PathBuf) -> JoinHandle<()> {
    std::thread::spawn(move || match wait(&dir) {
        Some(status) => print!("{}", text(&dir, &status)),
        None => eprintln!(
            "the server is not ready after 60 s; the log above says why (more with SKEIN_LOG=debug)"
        ),
    })
}

/// The server's status once a data process is connected.
fn wait(dir: &Path) -> Option<Status> {
    let started = Instant::now();
    let args = ConnectionArgs { data_dir: Some(dir.to_owned()), ..ConnectionArgs::default() };
    while started.elapsed() < START_TIME_MAX {
        if let Ok(connection) = args.resolve()
            && let Ok(client) = Client::new(connection)
            && let Ok(status) = client.get::<Status>("/status", &[])
            && !status.data_processes.is_empty()
        {
            return Some(status);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    None
}

fn text(dir: &Path, status: &Status) -> String {
    let ports = Ports::read(dir, "control").unwrap_or_default();
    let api = ports.api_url.unwrap_or_default();
    let bound = ports.api.and_then(|bound| bound.parse::<SocketAddr>().ok());
    let elsewhere = match bound {
        Some(bound) if !bound.ip().is_loopback() => format!(
            "From elsewhere: skein --api https://NAME-OR-ADDRESS:{} --ca COPY-OF-{} hosts\n",
            bound.port(),
            authority_file(dir).display()
        ),
        _ => String::new(),
    };
    let shown = dir.display();
    let data = &status.data_processes[0];
    let join = match &status.first_join {
        Some(join) => format!(
            "Let a host join (type this there; the token is valid for {}):\n  {}\n",
            quantity::duration(u64::try_from(join.expires_ms - status.now_ms).unwrap_or(0)),
            join.command
        ),
        None => format!(
            "Let a host join: this prints the command to type there:\n  \
             skein --data-dir {shown} token create\n"
        ),
    };
    format!(
        "\nSkein {} is running in {shown}.\n\n  \
         API      {api}\n  \
         agents   signal {}, data {}, file {}\n  \
         disk     {}\n  \
         metrics  {api}/metrics and http://{}/metrics\n\n{join}\n\
         Look around:  skein --data-dir {shown} hosts\n{elsewhere}\
         Admin token:  {}\n\
         Stop:         Ctrl-C here, or kill {}\n\n",
        status.version,
        data.signal_addr,
        data.data_addr,
        data.file_addr,
        data.disk_driver,
        data.metrics_addr,
        admin_token_file(dir).display(),
        std::process::id(),
    )
}
