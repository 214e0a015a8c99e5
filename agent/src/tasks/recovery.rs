//! What a restarted worker does about a task, from the facts that its folder shows.
//!
//! At most once is kept by one rule: a script is started only while there is no `started` record,
//! and the runner that holds the folder's lock writes that record before it lets the script go.

/// What the folder and the kernel say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Evidence {
    /// The `exit` record is there.
    pub exit: bool,
    /// The `started` record is there.
    pub started: bool,
    /// The started runner lives: same pid, start time and boot.
    pub runner_alive: bool,
    /// The latest start has passed.
    pub late: bool,
    /// It was cancelled.
    pub cancelled: bool,
}

/// What follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Recovery {
    /// Report how it ended.
    Report,
    /// Watch the runner again.
    Attach,
    /// It began and nobody can say how it ended.
    Abort,
    /// It never began: run it now.
    Run,
    /// It never began and must not any more.
    Refuse,
    /// It never began and is not wanted.
    Cancel,
}

/// Decides.
pub fn decide(evidence: Evidence) -> Recovery {
    match evidence {
        Evidence { exit: true, .. } => Recovery::Report,
        Evidence { started: true, runner_alive: true, .. } => Recovery::Attach,
        Evidence { started: true, .. } => Recovery::Abort,
        Evidence { cancelled: true, .. } => Recovery::Cancel,
        Evidence { late: true, .. } => Recovery::Refuse,
        _ => Recovery::Run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_has_its_one_answer() {
        for bits in 0..32 {
            let bit = |place: u32| bits >> place & 1 == 1;
            let evidence = Evidence {
                exit: bit(0),
                started: bit(1),
                runner_alive: bit(2),
                late: bit(3),
                cancelled: bit(4),
            };
            let decided = decide(evidence);
            // A script that may have begun is never run again; one that ended is always reported.
            assert!(!(evidence.started || evidence.exit) || decided != Recovery::Run);
            assert_eq!(decided == Recovery::Report, evidence.exit);
            assert_eq!(
                decided == Recovery::Attach,
                evidence.started && evidence.runner_alive && !evidence.exit
            );
            assert_eq!(decided == Recovery::Run, bits & 0b11011 == 0);
        }
    }
}
