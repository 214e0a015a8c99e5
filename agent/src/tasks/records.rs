//! What worker and runner write down about one task, each file in the task's folder.
//!
//! ```text
//!   tasks/<task id>/spec      what to run                     worker, before the runner starts
//!                   script    the script itself               worker
//!                   lock      held by the one runner          runner
//!                   ctl.sock  cancel, and signs of life       runner
//!                   started   who runs, since when, in which boot: before exec, flushed
//!                   output    what the script wrote           runner
//!                   exit      how it ended: atomic, flushed   runner
//! ```
//! `started` and `exit` are the two facts that every restart is decided by: see
//! [`super::recovery`].

use std::io;
use std::path::Path;

use prost::Message;

use crate::home::write_atomic;
use crate::sys::procfs::ProcessId;

/// A record larger than this is damage.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// What to run.
#[derive(Clone, PartialEq, Message)]
pub struct Spec {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub task_id: Vec<u8>,
    /// Program that runs the script file, with its arguments.
    #[prost(string, repeated, tag = "2")]
    pub interpreter: Vec<String>,
    /// Arguments of the script.
    #[prost(string, repeated, tag = "3")]
    pub args: Vec<String>,
    /// Empty: the agent's own.
    #[prost(string, tag = "4")]
    pub user: String,
    /// From the start of the script.
    #[prost(uint64, tag = "5")]
    pub timeout_ms: u64,
    /// Between TERM and KILL.
    #[prost(uint64, tag = "6")]
    pub kill_grace_ms: u64,
    /// Output kept.
    #[prost(uint64, tag = "7")]
    pub output_bytes_max: u64,
    /// Use a cgroup where that is possible.
    #[prost(bool, tag = "8")]
    pub cgroup: bool,
}

/// A runner is about to run the script.
#[derive(Clone, PartialEq, Message)]
pub struct Started {
    /// The runner.
    #[prost(uint32, tag = "1")]
    pub runner_pid: u32,
    /// Its start, in clock ticks since boot.
    #[prost(uint64, tag = "2")]
    pub runner_start_ticks: u64,
    /// The script's first process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    #[prost(uint64, tag = "4")]
    pub start_ticks: u64,
    /// The boot that all this happens in.
    #[prost(string, tag = "5")]
    pub boot_id: String,
    /// Host's clock.
    #[prost(int64, tag = "6")]
    pub started_ms: i64,
    /// Folder of its cgroup, empty without.
    #[prost(string, tag = "7")]
    pub cgroup: String,
}

/// How the script ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, prost::Enumeration)]
#[repr(i32)]
pub enum Outcome {
    /// Never ran; `error` says why.
    NotStarted = 0,
    /// By itself, or by a signal that was not ours.
    Ended = 1,
    /// Killed at its run timeout.
    TimedOut = 2,
    /// Killed because it was cancelled.
    Cancelled = 3,
}

/// The script is over.
#[derive(Clone, PartialEq, Message)]
pub struct Exit {
    /// How.
    #[prost(enumeration = "Outcome", tag = "1")]
    pub outcome: i32,
    /// Of the script's first process.
    #[prost(int32, tag = "2")]
    pub exit_code: i32,
    /// That ended it; 0: none.
    #[prost(int32, tag = "3")]
    pub signal: i32,
    /// Host's clock; 0 when it never ran.
    #[prost(int64, tag = "4")]
    pub started_ms: i64,
    /// Host's clock.
    #[prost(int64, tag = "5")]
    pub ended_ms: i64,
    /// Output kept.
    #[prost(uint64, tag = "6")]
    pub output_bytes: u64,
    /// Output produced beyond what is kept.
    #[prost(uint64, tag = "7")]
    pub dropped_bytes: u64,
    /// Why it did not run, or what could not be killed.
    #[prost(string, tag = "8")]
    pub error: String,
}

impl Started {
    /// The runner, for all time.
    pub fn runner(&self) -> ProcessId {
        ProcessId {
            pid: self.runner_pid,
            start_ticks: self.runner_start_ticks,
            boot_id: self.boot_id.clone(),
        }
    }
}

/// Writes a record in one step.
pub fn write<M: Message>(dir: &Path, name: &str, record: &M) -> io::Result<()> {
    let mut bytes = record.encode_to_vec();
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    write_atomic(&dir.join(name), 0o600, &bytes)
}

/// Reads a record; none when it was never written. A damaged one is an error, as it was written
/// atomically.
pub fn read<M: Message + Default>(dir: &Path, name: &str) -> io::Result<Option<M>> {
    let path = dir.join(name);
    let bytes = match std::fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(meta) if meta.len() > RECORD_BYTES_MAX => None,
        Ok(_) => Some(std::fs::read(&path)?),
    };
    let whole = bytes.as_deref().and_then(|bytes| bytes.split_last_chunk::<4>());
    let sound = whole.filter(|(body, sum)| crc32c::crc32c(body) == u32::from_be_bytes(**sum));
    let record = sound.and_then(|(body, _)| M::decode(body).ok());
    record.map(Some).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_whole_absent_or_damaged() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        assert_eq!(read::<Exit>(dir, "exit").unwrap(), None);
        let exit = Exit { exit_code: 7, error: "x".into(), ..Exit::default() };
        write(dir, "exit", &exit).unwrap();
        assert_eq!(read(dir, "exit").unwrap(), Some(exit));
        let mut bytes = std::fs::read(dir.join("exit")).unwrap();
        bytes[0] ^= 1;
        std::fs::write(dir.join("exit"), bytes).unwrap();
        assert!(read::<Exit>(dir, "exit").is_err());
    }
}
