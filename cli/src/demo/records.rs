//! Records from all agents at once: real log lines appended to a file that the agent tails, and a
//! generated stream as fast as it goes. The proof is the sinks' files, record by record.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::chapter;
use super::fleet::{FAST_DATA_ID, Fleet, LOG_DATA_ID};
use crate::error::CliError;
use crate::progress::Progress;
use crate::quantity;
use crate::recount::Recount;

/// Longest wait without any record arriving.
const STALL_TIME_MAX: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Lines that are appended to each tailed file at a time.
const APPEND_LINES: usize = 2_000;

/// What the streams came to.
#[derive(Clone, Debug, Serialize)]
pub struct RecordsReport {
    /// Lines appended and lines generated, over all agents.
    pub sent: u64,
    /// Different records in the sinks' files.
    pub stored: u64,
    /// Lines there that repeat a record.
    pub duplicates: u64,
    /// From the first record until the last was stored.
    pub seconds: f64,
}

/// Sends, waits for the sinks and recounts them.
pub fn show(
    fleet: &mut Fleet,
    lines: &[String],
    generated: u64,
) -> Result<RecordsReport, CliError> {
    let agents = fleet.agents.len() as u64;
    chapter(
        4,
        &format!(
            "{} real log lines and {} generated ones from each agent",
            quantity::count(lines.len() as u64),
            quantity::count(generated)
        ),
    );
    let started = Instant::now();
    let mut emitters = start_emitters(fleet, generated)?;
    append_lines(fleet, lines)?;
    let sent = agents * (lines.len() as u64 + generated);
    let seconds = wait_until_stored(fleet, sent, started)?;
    for emitter in &mut emitters {
        let status = emitter.wait().map_err(CliError::io("cannot wait for emit"))?;
        if !status.success() {
            return Err(CliError::Local(format!("skein-agent emit ended with {status}")));
        }
    }
    let recount = recount(fleet, lines)?;
    let (stored, duplicates) = (recount.0, recount.1);
    eprintln!(
        "recounted from the files: {} of {} records, {} duplicates",
        quantity::count(stored),
        quantity::count(sent),
        quantity::count(duplicates)
    );
    Ok(RecordsReport { sent, stored, duplicates, seconds })
}

fn start_emitters(fleet: &Fleet, generated: u64) -> Result<Vec<Child>, CliError> {
    let start = |agent: &crate::local::LocalAgent| {
        let mut command = agent.emit(FAST_DATA_ID);
        command.args(["--generate", &generated.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().map_err(CliError::io("cannot start skein-agent emit"))
    };
    fleet.agents.iter().map(start).collect()
}

/// Appends as a program that logs does: piece by piece, to all agents' files in turn.
fn append_lines(fleet: &Fleet, lines: &[String]) -> Result<(), CliError> {
    for piece in lines.chunks(APPEND_LINES) {
        let mut text = piece.join("\n");
        text.push('\n');
        for agent in &fleet.agents {
            let path = agent.logs().join("app.log");
            File::options()
                .create(true)
                .append(true)
                .open(&path)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .map_err(CliError::io(format!("cannot append to {}", path.display())))?;
        }
    }
    Ok(())
}

/// Waits until the lanes say that all is stored, and answers with the seconds that it took.
fn wait_until_stored(fleet: &Fleet, sent: u64, started: Instant) -> Result<f64, CliError> {
    use skein_controlplane::api::types::LaneList;
    let mut progress = Progress::new("stored", sent, false, false);
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let list: LaneList = fleet.server.client().get("/lanes", &[])?;
        let stored: u64 = list
            .lanes
            .iter()
            .filter(|lane| [LOG_DATA_ID, FAST_DATA_ID].contains(&lane.data_id))
            .map(|lane| lane.next_sequence)
            .sum();
        let seconds = started.elapsed().as_secs_f64();
        let rate = format!("{}/s", quantity::count((stored as f64 / seconds) as u64));
        progress.set(stored, sent, &rate);
        if stored > last {
            (last, moved) = (stored, Instant::now());
        }
        if stored >= sent || moved.elapsed() > STALL_TIME_MAX {
            progress.finish(&format!("{} in {seconds:.1} s, {rate}", quantity::count(stored)));
            return Ok(seconds);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Different and repeated records in the files. A log line counts only with the very text that
/// was appended.
fn recount(fleet: &Fleet, lines: &[String]) -> Result<(u64, u64), CliError> {
    let fast = Recount::of(&fleet.fast_sink)?;
    let mut altered = 0;
    let logs = Recount::read(&fleet.logs_sink, |_, sequence, text| {
        let expected = usize::try_from(sequence).ok().and_then(|number| lines.get(number));
        altered += u64::from(expected.is_none_or(|line| unescape(text) != line.as_bytes()));
    })?;
    let broken = fast.malformed + logs.malformed + altered;
    if broken > 0 {
        eprintln!("{} lines of the sinks are not what was sent", quantity::count(broken));
    }
    let stored = (fast.unique() + logs.unique()).saturating_sub(broken);
    Ok((stored, fast.duplicates() + logs.duplicates()))
}

/// Undoes the escapes of `tagged`: `\\`, `\n`, `\t`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(other) => *other,
                None => b'\\',
            },
            other => *other,
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_tagged_lines_are_undone() {
        assert_eq!(unescape(br"a\\b\nc\td"), b"a\\b\nc\td");
        assert_eq!(unescape(b"plain"), b"plain");
    }
}
