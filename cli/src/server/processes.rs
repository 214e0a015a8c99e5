//! The two hidden subcommands: configuration in, the process's own crate runs it.

use std::time::Duration;

use skein_controlplane::ControlConfig;
use skein_dataplane::config::DataConfig;
use skein_dataplane::router::DiskChoice;

use super::config::Disk;
use super::{ProcessArgs, ServerConfig, data_dir};
use crate::commands::Outcome;
use crate::connection::ConnectionArgs;
use crate::error::{CliError, EXIT_OK};

/// `skein control`.
pub fn run_control(args: &ProcessArgs, connection: &ConnectionArgs) -> Outcome {
    let dir = data_dir(connection)?;
    let config = ServerConfig::load(&dir, &args.listen)?;
    skein_observe::init_logging("control", config.log_json);
    let api_tls = config.api_tls(&dir);
    let mut control = ControlConfig::new(dir);
    control.api = config.listen.api;
    control.api_tls = api_tls;
    control.sink_roots = config.control.sink_roots;
    control.cache_bytes_max = config.control.cache_bytes_max;
    control.cache_expiry = Duration::from_secs(config.control.cache_expiry_seconds);
    control.heartbeat_interval = Duration::from_secs(config.control.heartbeat_seconds);
    control.heartbeat_misses = config.control.heartbeat_misses;
    control.public_host = config.control.public_host;
    control.planning = config.planner.planning().map_err(CliError::Usage)?;
    match skein_controlplane::run_control(control) {
        Ok(()) => Ok(EXIT_OK),
        Err(error) => Err(CliError::Local(format!("the control process cannot go on: {error:#}"))),
    }
}

/// `skein data`.
pub fn run_data(args: &ProcessArgs, connection: &ConnectionArgs) -> Outcome {
    let dir = data_dir(connection)?;
    let config = ServerConfig::load(&dir, &args.listen)?;
    skein_observe::init_logging("data", config.log_json);
    let mut data = DataConfig::new(dir);
    data.node_id = config.node_id;
    data.signal_listen = config.listen.signal;
    data.data_listen = config.listen.data;
    data.file_listen = config.listen.file;
    data.metrics_listen = config.listen.data_metrics.0;
    data.shards = config.data.shards;
    data.router_workers = config.data.router_workers;
    data.sessions_max = config.data.sessions_max;
    data.disk = match config.data.disk {
        Disk::Glommio => DiskChoice::Glommio,
        Disk::Plain => DiskChoice::Plain,
    };
    match skein_dataplane::process::run_data(data) {
        Ok(()) => Ok(EXIT_OK),
        Err(error) => Err(CliError::Local(format!("the data process cannot go on: {error:#}"))),
    }
}
