//! The `skein` binary; everything is in the library beside it.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match skein_cli::commands::dispatch(skein_cli::args::Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("skein: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
