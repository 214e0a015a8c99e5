//! What a run that went wrong leaves: the logs of its agents and its server, what the command said,
//! and what the server says of the transfer, in a folder that outlives the lab.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::drive::Job;
use super::skein::Fleet;

/// The end of each log that is kept, bytes.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// Gathers it below `scratch`; where it is. What cannot be read is left out, and said.
pub fn keep(scratch: &Path, who: &str, job: &Job, fleet: Option<&Fleet>) -> PathBuf {
    let clean = |name: &str| name.replace(|char: char| !char.is_ascii_alphanumeric(), "-");
    let folder = format!(
        "failed/{}-{}-{}-{}",
        clean(&job.cell.name),
        clean(who),
        std::process::id(),
        job.number
    );
    let folder = scratch.join(folder);
    if let Err(error) = gather(&folder, job, fleet) {
        eprintln!("{}: {error:#}", folder.display());
    }
    folder
}

fn gather(folder: &Path, job: &Job, fleet: Option<&Fleet>) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let of_run = std::fs::read_dir(job.scratch()).into_iter().flatten().flatten();
    let of_run = of_run.map(|entry| entry.path()).filter(|path| {
        path.extension().is_some_and(|end| ["log", "json", "err"].iter().any(|own| end == *own))
    });
    let of_fleet = fleet.map(Fleet::logs).unwrap_or_default();
    for log in of_run.chain(of_fleet) {
        let Some(name) = log.file_name() else { continue };
        if let Err(error) = copy_end(&log, &folder.join(name)) {
            eprintln!("{}: {error}", log.display());
        }
    }
    std::fs::write(folder.join("received.txt"), received(job))?;
    if let Some(fleet) = fleet {
        for (name, args) in [
            ("transfers.json", ["transfer", "ls", "--json"].as_slice()),
            ("hosts.json", &["hosts", "--json"]),
        ] {
            // A server that was killed says nothing.
            if let Ok(said) = fleet.skein(args) {
                std::fs::write(folder.join(name), said)?;
            }
        }
    }
    Ok(())
}

/// What lies at each receiver, finished or not.
fn received(job: &Job) -> String {
    let of_host = |host: usize| {
        let entries = std::fs::read_dir(job.folder_of(host)).into_iter().flatten().flatten();
        let shown = entries.filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            let (name, kib) = (entry.file_name(), meta.blocks() / 2);
            Some(format!(" {} {} bytes, {kib} KiB allocated;", name.display(), meta.len()))
        });
        format!("receiver {host}:{}\n", shown.collect::<String>())
    };
    (0..job.cell.receivers).map(of_host).collect()
}

/// Keeps logs of agents and a server that could not be started; where they are.
pub fn keep_start(scratch: &Path, logs: &[PathBuf]) -> PathBuf {
    let folder = scratch.join(format!("failed/start-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir_all(&folder) {
        eprintln!("{}: {error}", folder.display());
    }
    for log in logs {
        let Some(name) = log.file_name() else { continue };
        if let Err(error) = copy_end(log, &folder.join(name)) {
            eprintln!("{}: {error}", log.display());
        }
    }
    folder
}

fn copy_end(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut log = File::open(from)?;
    let bytes = log.metadata()?.len();
    log.seek(SeekFrom::Start(bytes.saturating_sub(LOG_BYTES_MAX)))?;
    let mut end = Vec::new();
    log.take(LOG_BYTES_MAX).read_to_end(&mut end)?;
    File::create(to)?.write_all(&end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_end_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut log = vec![b'a'; LOG_BYTES_MAX as usize];
        log.extend(b"the end");
        std::fs::write(path("log"), &log).unwrap();
        copy_end(&path("log"), &path("kept")).unwrap();
        let kept = std::fs::read(path("kept")).unwrap();
        assert_eq!(kept.len() as u64, LOG_BYTES_MAX);
        assert!(kept.ends_with(b"the end"));
        std::fs::write(path("log"), "short").unwrap();
        copy_end(&path("log"), &path("kept")).unwrap();
        assert_eq!(std::fs::read(path("kept")).unwrap(), b"short");
    }
}
