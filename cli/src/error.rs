//! What can go wrong on the operator's side, said so that the reader knows what to do next, and
//! the exit codes that scripts may rely on.

use std::io;

/// Everything was done, everywhere.
pub const EXIT_OK: u8 = 0;
/// It ended, but not well everywhere; the output says where.
pub const EXIT_PARTIAL: u8 = 1;
/// `run`: a script was killed at its timeout (as timeout(1) says it).
pub const EXIT_TIMED_OUT: u8 = 124;
/// `run`: a host gave no outcome (unreachable, refused, aborted, cancelled or expired).
pub const EXIT_NO_OUTCOME: u8 = 125;

/// The table of exit codes, shown by `skein --help`.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0    done, everywhere
  1    ended, but not well everywhere (the output says where)
  2    the command line is wrong
  3    the server cannot be reached, or its certificate is not trusted
  4    the server does not accept the token
  5    the server refused the request; its message says why
  6    something on this machine failed (a file, a port)
  run  the worst exit code of the scripts; 124 a timeout, 125 a host without an outcome";

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No connection, or it broke.
    #[error(
        "no answer from {api}: {reason}\n  Is the server running (`skein server --data-dir DIR`)? \
         Another address is set by --api, SKEIN_API or --data-dir."
    )]
    Unreachable {
        /// Where the API was looked for.
        api: String,
        /// What the connection said.
        reason: String,
    },
    /// Somebody answers, but not by a secure connection to the server that is meant.
    #[error("no secure connection to {api}: {reason}")]
    Insecure {
        /// Where the API was looked for.
        api: String,
        /// What is wrong, and the remedy.
        reason: String,
    },
    /// No token, or a wrong one.
    #[error(
        "{0}\n  Give one by --data-dir DIR (the folder of a server on this machine), --token-file or \
         SKEIN_TOKEN; the server's first is in DIR/control/admin.token."
    )]
    Unauthorised(String),
    /// The server understood and said no.
    #[error("{message}")]
    Refused {
        /// Word for programs.
        code: String,
        /// Words for people.
        message: String,
    },
    /// The answer is not what this version expects.
    #[error("the answer of {path} is not understood: {reason}; is the server of another version?")]
    Protocol {
        /// What was asked.
        path: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A value on the command line that clap could not judge.
    #[error("{0}")]
    Usage(String),
    /// A file or socket of this machine.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else on this machine.
    #[error("{0}")]
    Local(String),
}

impl CliError {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. } | Self::Insecure { .. } => 3,
            Self::Unauthorised(_) => 4,
            Self::Refused { .. } | Self::Protocol { .. } => 5,
            Self::Io { .. } | Self::Local(_) => 6,
        }
    }

    /// Names what failed: `.map_err(CliError::io("cannot read x"))`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }
}
