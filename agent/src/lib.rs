//! Skein's agent: tasks, collectors, spool and file peer on each host.
//!
//! `skein-agent run` is a tiny supervisor with one worker child. The worker owns every socket and
//! is a current-thread tokio runtime plus a few plain threads for whatever may wait for a disk:
//! one for commands and tasks, one for files, one for the spool. So a stalled disk never delays a
//! heartbeat. Scripts run under small `runner` processes of their own session, which outlive the
//! worker.
//!
//! ```text
//!   supervisor ── worker ─┬─ link: signal session ── heartbeats, commands, reports
//!                         ├─ lanes: data session  ── spool ◄── inputs (sockets, tails, stdin)
//!                         ├─ transfers: file channel on demand; mesh: streams with other agents
//!                         └─ tasks: journal, one runner process per script
//! ```

pub mod cli;
pub mod clock;
pub mod config;
pub mod enrol;
pub mod facts;
pub mod home;
pub mod identity;
pub mod inputs;
pub mod lanes;
pub mod link;
pub mod mesh;
pub mod paths;
pub mod spool;
pub mod status;
pub mod supervisor;
pub mod sys;
pub mod tasks;
pub mod transfers;
pub mod worker;

/// Version of this agent, as it reports it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
