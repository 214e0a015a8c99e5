//! The file to all agents, and the proof: its SHA-256 at every host, read back from disk.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use skein_controlplane::api::types::{
    Transfer, TransferDetail, TransferPhase, TransferRequest, TransferSource, TreeRequest,
};

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
}

/// Pushes the file into each agent's own folder.
pub fn show(fleet: &Fleet, file: &Path) -> Result<PushReport, CliError> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    chapter(3, &format!("{name} to {}", show::plural(fleet.agents.len() as u64, "host")));
    let bytes = std::fs::metadata(file)
        .map_err(CliError::io(format!("cannot read {}", file.display())))?
        .len();
    let started = Instant::now();
    let upload_id = upload(fleet, file, name, bytes)?;
    // Every agent has its own folder here, as every host has its own disk elsewhere, so each is a
    // target of its own; all transfers run at the same time.
    let client = fleet.server.client();
    let mut transfers = Vec::new();
    for agent in &fleet.agents {
        let request = TransferRequest {
            source: TransferSource::Upload { upload_id: upload_id.clone() },
            targets: agent.id().to_owned(),
            directory: agent.host().join("received").display().to_string(),
            file_name: Some(name.to_owned()),
            mode: None,
            owner: None,
            create_directory: true,
            rate_limit_bytes_per_s: None,
            gear: None,
            deliver_within_ms: None,
            timeout_ms: None,
            tree: TreeRequest::default(),
        };
        let transfer: Transfer = client.post("/transfers", &request)?;
        transfers.push(transfer.transfer_id);
    }
    follow(fleet, &transfers, bytes)?;
    let seconds = started.elapsed().as_secs_f64();
    let hosts_ok = verify(fleet, file, name)?;
    Ok(PushReport { bytes, hosts_ok, hosts_total: fleet.agents.len() as u64, seconds })
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

fn follow(fleet: &Fleet, transfers: &[String], bytes: u64) -> Result<(), CliError> {
    let client = fleet.server.client();
    let total = bytes * transfers.len() as u64;
    let mut progress = Progress::new("push", total, true, false);
    loop {
        let (mut verified, mut done, mut running) = (0, 0, 0);
        for id in transfers {
            let detail: TransferDetail = client.get(&format!("/transfers/{id}"), &[])?;
            verified += detail.transfer.verified_bytes;
            done += detail.transfer.hosts_done;
            running += u64::from(detail.transfer.phase != TransferPhase::Ended);
            let failed = detail.hosts.iter().find(|host| !host.error.is_empty());
            if let Some(host) = failed {
                eprintln!("{}: {}", host.agent_id, host.error);
            }
        }
        progress.set(verified, total, &format!("{done} of {} hosts", transfers.len()));
        if running == 0 {
            let seconds = progress.elapsed().as_secs_f64();
            let rate = quantity::bytes((verified as f64 / seconds) as u64);
            progress.finish(&format!("{done} of {} hosts, {rate}/s in all", transfers.len()));
            return Ok(());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn verify(fleet: &Fleet, file: &Path, name: &str) -> Result<u64, CliError> {
    let expected = sha256(file).map_err(CliError::io(format!("cannot read {}", file.display())))?;
    let total = fleet.agents.len() as u64;
    let mut progress = Progress::new("reading back", total, false, false);
    let mut good = 0;
    for (index, agent) in fleet.agents.iter().enumerate() {
        let received = sha256(&agent.host().join("received").join(name)).ok();
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
