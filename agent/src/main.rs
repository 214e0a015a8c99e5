//! The agent binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    skein_agent::cli::main()
}
