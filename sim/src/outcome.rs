//! What became of each host.

use crate::queue::Nanos;
use crate::topology::HostId;

/// How a host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostEnd {
    /// It has the file since then.
    Finished(Nanos),
    /// It was killed before it had the file and stayed so.
    Killed,
    /// It did not get the file.
    Unfinished,
}

/// How all hosts ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// By host; the source's is of no interest.
    pub ends: Vec<HostEnd>,
    /// When the last thing happened.
    pub ended_at: Nanos,
    /// Blocks that were refused because they were false.
    pub refused_blocks: u64,
    /// Bytes of file data that arrived where they were already there.
    pub wasted_bytes: u64,
}

impl Outcome {
    /// Nobody has anything yet.
    pub fn new(hosts: usize) -> Self {
        let ends = vec![HostEnd::Unfinished; hosts];
        Self { ends, ended_at: 0, refused_blocks: 0, wasted_bytes: 0 }
    }

    /// When `host` had the file.
    pub fn finished_at(&self, host: HostId) -> Option<Nanos> {
        match self.ends[host as usize] {
            HostEnd::Finished(at) => Some(at),
            HostEnd::Killed | HostEnd::Unfinished => None,
        }
    }
}
