//! All processes of one script, and their end.
//!
//! The runner is a subreaper, so every descendant stays below it however often it forks or changes
//! its session; a cgroup, where there is one, says the same without a walk. Both are asked. A pid
//! is signalled only while its start time is still the one that was seen, so that a reused pid is
//! never hit.

use std::time::{Duration, Instant};

use super::cgroup::Cgroup;
use crate::sys::process::{self, SIGKILL};
use crate::sys::procfs::{self, ProcStat};

/// Pause between two rounds of killing.
const ROUND: Duration = Duration::from_millis(5);

/// The processes below this runner.
#[derive(Debug)]
pub struct Tree {
    cgroup: Option<Cgroup>,
}

impl Tree {
    /// Everything below the calling process and in `cgroup`.
    pub fn new(cgroup: Option<Cgroup>) -> Tree {
        Tree { cgroup }
    }

    /// The group that the script joins.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Who lives.
    pub fn members(&self) -> Vec<ProcStat> {
        let me = std::process::id();
        let mut members = procfs::descendants(me);
        for pid in self.cgroup.iter().flat_map(Cgroup::members) {
            if pid != me && !members.iter().any(|member| member.pid == pid) {
                members.extend(procfs::stat(pid).filter(|stat| stat.state != 'Z'));
            }
        }
        members
    }

    /// Sends `signal` to all of them.
    pub fn signal(&self, signal: i32) {
        signal_all(&self.members(), signal);
    }

    /// Kills until none is left, which a fork bomb can delay; answers how many lived on when `time`
    /// was over. `reap` collects our dead children between the rounds.
    pub fn kill(&self, time: Duration, mut reap: impl FnMut()) -> usize {
        let until = Instant::now() + time;
        loop {
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            let members = self.members();
            if members.is_empty() {
                reap();
                return 0;
            }
            // Stopped ones cannot fork while the list is worked through.
            signal_all(&members, libc::SIGSTOP);
            signal_all(&members, SIGKILL);
            reap();
            if Instant::now() > until {
                return self.members().len();
            }
            std::thread::sleep(ROUND);
        }
    }

    /// Removes the cgroup, if it is empty.
    pub fn remove(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
    }
}

/// Kills what a dead runner left: its cgroup, and every process that carries the task's id in its
/// environment.
pub fn kill_leftovers(cgroup: Option<Cgroup>, environment: &str, time: Duration) -> usize {
    let until = Instant::now() + time;
    loop {
        if let Some(cgroup) = &cgroup {
            cgroup.kill();
        }
        let in_group = cgroup.iter().flat_map(Cgroup::members).filter_map(procfs::stat);
        let mut members: Vec<ProcStat> = in_group.filter(|process| process.state != 'Z').collect();
        members.extend(procfs::with_environment(environment));
        if members.is_empty() {
            if let Some(cgroup) = &cgroup {
                cgroup.remove();
            }
            return 0;
        }
        signal_all(&members, SIGKILL);
        if Instant::now() > until {
            return members.len();
        }
        std::thread::sleep(ROUND);
    }
}

fn signal_all(members: &[ProcStat], signal: i32) {
    for member in members {
        let same = |now: ProcStat| now.start_ticks == member.start_ticks;
        if procfs::stat(member.pid).is_some_and(same) {
            // It may have ended since: then there is nothing to do.
            let _ = process::kill(member.pid, signal);
        }
    }
}
