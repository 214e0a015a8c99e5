//! The two hidden subcommands: configuration in, the process's own crate runs it.

use super::{ProcessArgs, ServerConfig, data_dir};
use crate::commands::Outcome;
use crate::connection::ConnectionArgs;
use crate::error::CliError;

/// `skein control`.
pub fn run_control(args: &ProcessArgs, connection: &ConnectionArgs) -> Outcome {
    let dir = data_dir(connection)?;
    let config = ServerConfig::load(&dir, &args.listen)?;
    let _ = config;
    Err(CliError::Local("not yet".into()))
}

/// `skein data`.
pub fn run_data(args: &ProcessArgs, connection: &ConnectionArgs) -> Outcome {
    run_control(args, connection)
}
