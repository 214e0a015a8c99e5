//! Skein: the server and the operator's command line in one binary.
//!
//! This crate only composes: it parses arguments, reads the server's configuration, supervises the
//! server's two processes and talks to the operators' API. What the server does lives in
//! `skein-controlplane` and `skein-dataplane`.

mod args;
mod client;
mod commands;
mod connection;
mod demo;
mod error;
mod progress;
mod quantity;
mod server;
mod show;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match commands::dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("skein: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
