//! The file to all agents in one transfer, and the proofs: its SHA-256 at every host, read back from
//! disk, and who sent how much of it, from the counters of the processes that did.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use skein_controlplane::api::types::{
    Transfer, TransferDetail, TransferPhase, TransferRequest, TransferSource,
};
use skein_observe::names;

use super::chapter;
use super::fleet::Fleet;
use crate::error::CliError;
use crate::progress::{Progress, Reading};
use crate::{quantity, show};

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What the push came to.
#[derive(Clone, Debug, Serialize)]
pub struct PushReport {
    /// Size of the file.
    pub bytes: u64,
    /// Hosts whose file has the source's SHA-256.
    pub hosts_ok: u64,
    /// Hosts that it was sent to.
    pub hosts_total: u64,
    /// From the start of the upload until the last host was done.
    pub seconds: f64,
    /// Of those, the transfer's own: from the order until the last host was done.
    pub transfer_seconds: f64,
    /// How it travelled: `direct`, `planned` or `mesh`.
    pub gear: String,
    /// File content that the server sent.
    pub server_sent_bytes: u64,
    /// File content that agents sent to each other.
    pub hosts_sent_bytes: u64,
}

impl PushReport {
    /// What the server sent, in sizes of the file.
    pub fn copies_sent(&self) -> f64 {
        self.server_sent_bytes as f64 / self.bytes.max(1) as f64
    }

    /// How much of what was sent came from other hosts, in percent.
    pub fn peers_percent(&self) -> u64 {
        let sent = self.server_sent_bytes + self.hosts_sent_bytes;
        (self.hosts_sent_bytes * 100).checked_div(sent).unwrap_or(0)
    }
}

/// Pushes the file to all agents, each into a folder of its own.
pub fn show(fleet: &Fleet, dir: &Path, file: &Path) -> Result<PushReport, CliError> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let hosts_total = fleet.agents.len() as u64;
    chapter(3, &format!("{name} to {}", show::plural(hosts_total, "host")));
    let bytes = std::fs::metadata(file)
        .map_err(CliError::io(format!("cannot read {}", file.display())))?
        .len();
    let before = sent(fleet)?;
    let started = Instant::now();
    let upload_id = upload(fleet, file, name, bytes)?;
    // All hosts are this machine, so each puts its own name into the path.
    let directory = format!("{}/received/{{agent}}", braced(&dir.display().to_string()));
    let request = TransferRequest {
        file_name: Some(name.to_owned()),
        create_directory: true,
        ..TransferRequest::new(TransferSource::Upload { upload_id }, "all", &directory)
    };
    let ordered = Instant::now();
    let transfer: Transfer = fleet.server.client().post("/transfers", &request)?;
    eprintln!("{}", transfer.why);
    let gear = follow(fleet, &transfer.transfer_id)?.gear;
    let (seconds, transfer_seconds) =
        (started.elapsed().as_secs_f64(), ordered.elapsed().as_secs_f64());
    let (server, hosts) = sent(fleet)?;
    let report = PushReport {
        bytes,
        hosts_ok: verify(fleet, dir, file, name)?,
        hosts_total,
        seconds,
        transfer_seconds,
        gear,
        server_sent_bytes: server.saturating_sub(before.0),
        hosts_sent_bytes: hosts.saturating_sub(before.1),
    };
    eprintln!(
        "the server sent {:.2} times the file, the hosts gave each other {} ({} % of all)",
        report.copies_sent(),
        quantity::bytes(report.hosts_sent_bytes),
        report.peers_percent()
    );
    Ok(report)
}

/// File content that was sent so far: by the server, and by the agents.
fn sent(fleet: &Fleet) -> Result<(u64, u64), CliError> {
    let server = fleet.server.counters()?.sum(names::DATA_FILE_SENT_BYTES);
    let mut hosts = 0;
    for agent in &fleet.agents {
        hosts += agent.counters()?.sum(names::AGENT_FILE_SENT_BYTES);
    }
    Ok((server, hosts))
}

/// Braces of a path that means itself.
fn braced(path: &str) -> String {
    path.replace('{', "{{").replace('}', "}}")
}

fn upload(fleet: &Fleet, file: &Path, name: &str, bytes: u64) -> Result<String, CliError> {
    let mut progress = Progress::new("upload", bytes, true, false);
    let source =
        File::open(file).map_err(CliError::io(format!("cannot read {}", file.display())))?;
    let query = [("name", name.to_owned()), ("mode", 0o644.to_string())];
    let mut content = Reading::new(source.take(bytes), &mut progress);
    let upload = fleet.server.client().upload(&query, bytes, &mut content)?;
    progress.finish(&format!("{}, root {}...", quantity::bytes(bytes), &upload.root[..16]));
    Ok(upload.upload_id)
}

/// Shows a transfer until it has ended.
fn follow(fleet: &Fleet, id: &str) -> Result<Transfer, CliError> {
    let client = fleet.server.client();
    let mut progress = Progress::new("push", 0, true, false);
    loop {
        let TransferDetail { transfer, hosts, .. } =
            client.get(&format!("/transfers/{id}"), &[])?;
        let total = transfer.size_bytes * transfer.hosts_total;
        let states = states(&transfer.hosts_by_state);
        progress.set(transfer.verified_bytes, total, &states);
        if transfer.phase == TransferPhase::Ended {
            for host in hosts.iter().filter(|host| !host.error.is_empty()) {
                eprintln!("{}: {}", host.agent_id, host.error);
            }
            let rate = quantity::bytes(transfer.bytes_per_s);
            progress.finish(&format!("gear {}, {states}, {rate}/s in all", transfer.gear));
            return Ok(transfer);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// `2 running, 4 done`.
fn states(by_state: &BTreeMap<String, u64>) -> String {
    by_state.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

fn verify(fleet: &Fleet, dir: &Path, file: &Path, name: &str) -> Result<u64, CliError> {
    let expected = sha256(file).map_err(CliError::io(format!("cannot read {}", file.display())))?;
    let total = fleet.agents.len() as u64;
    let mut progress = Progress::new("reading back", total, false, false);
    let mut good = 0;
    for (index, agent) in fleet.agents.iter().enumerate() {
        let received = sha256(&dir.join("received").join(agent.id()).join(name)).ok();
        good += u64::from(received.is_some_and(|received| received == expected));
        progress.set(index as u64 + 1, total, "SHA-256");
    }
    progress.finish(&format!("SHA-256 equals the source's on {good} of {total} hosts"));
    Ok(good)
}

fn sha256(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            count => context.update(&buffer[..count]),
        }
    }
}
