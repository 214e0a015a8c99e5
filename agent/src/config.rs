//! `agent.toml`: what a person may decide about one agent.
//!
//! Every key has a default, so an empty file is a valid configuration of an enrolled agent.
//! Unknown keys are reported and ignored: a configuration written for a newer agent must not stop
//! an older one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use crate::inputs::{InputsConfig, TailConfig};
pub use crate::spool::SpoolConfig;

/// GSE 2's ports, so that firewalls need no new rule.
pub const SIGNAL_PORT: u16 = 28668;
/// See [`SIGNAL_PORT`].
pub const DATA_PORT: u16 = 28625;
/// See [`SIGNAL_PORT`].
pub const FILE_PORT: u16 = 28925;
/// An `agent.toml` larger than this is refused before it is parsed.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// The whole file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Config {
    /// Hosts to connect to, tried in order; the ports are the three below.
    pub servers: Vec<String>,
    /// Servers whose three addresses are given one by one, tried before `servers`.
    pub server: Vec<ServerConfig>,
    /// Port for commands and heartbeats.
    pub signal_port: u16,
    /// Port for records.
    pub data_port: u16,
    /// Port for file transfers.
    pub file_port: u16,
    /// Shown and selectable at the server.
    pub region: String,
    /// Shown and selectable at the server.
    pub zone: String,
    /// BlueKing's cloud area.
    pub cloud_id: i32,
    /// Shown and selectable at the server.
    pub labels: BTreeMap<String, String>,
    /// Address of `/metrics`, or "off". Port 0 takes a free one, written to `run/ports.json`.
    pub metrics: String,
    /// Logs as JSON lines instead of text.
    pub log_json: bool,
    /// Bounds of the on-disk buffer of records.
    pub spool: SpoolConfig,
    /// Where collectors connect.
    pub inputs: InputsConfig,
    /// Files to follow.
    pub tail: Vec<TailConfig>,
    /// See [`TasksConfig`].
    pub tasks: TasksConfig,
    /// See [`TransfersConfig`].
    pub transfers: TransfersConfig,
    /// See [`MeshConfig`].
    pub mesh: MeshConfig,
    /// See [`PathsConfig`].
    pub paths: PathsConfig,
}

/// One server with an address per kind of channel.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ServerConfig {
    /// `host:port` for commands and heartbeats.
    pub signal: String,
    /// `host:port` for records.
    pub data: String,
    /// `host:port` for file transfers.
    pub file: String,
}

/// Limits of script execution.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct TasksConfig {
    /// Scripts that run at the same time.
    pub concurrent_max: u32,
    /// Scripts that wait for their turn; further ones are refused.
    pub queue_max: u32,
    /// Output kept per script, whatever the server asks for.
    pub output_bytes_max: u64,
    /// Put scripts into cgroups of their own where cgroup v2 is writable.
    pub cgroup: bool,
}

/// Limits of file transfers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct TransfersConfig {
    /// Transfers that run at the same time; further ones wait.
    pub concurrent_max: u32,
    /// Transfers that wait; further ones are refused.
    pub queue_max: u32,
    /// Free space that a push must leave on the file system.
    pub keep_free_bytes: u64,
}

/// Connections with other agents, over which transfers travel between hosts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct MeshConfig {
    /// Where to listen for them: `ip:port`, `ip:first-last` (the first free port) or "off".
    pub listen: String,
    /// Streams with other agents at one time.
    pub connections_max: u32,
    /// Of one transfer.
    pub transfer_connections_max: u32,
}

/// Which paths may be read (tails, offered files) and written (pushes). The longest matching
/// prefix decides; the defaults that protect the agent and the kernel's file systems stay.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct PathsConfig {
    /// When not empty, only these may be read.
    pub read_allow: Vec<PathBuf>,
    /// These may not be read.
    pub read_deny: Vec<PathBuf>,
    /// When not empty, only these may be written.
    pub write_allow: Vec<PathBuf>,
    /// These may not be written.
    pub write_deny: Vec<PathBuf>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {0}: {1}; run `skein-agent enrol` first, or name its folder by --home")]
    Read(PathBuf, std::io::Error),
    /// The file is not TOML or a value has the wrong type.
    #[error("{0} is not a valid configuration: {1}")]
    Parse(PathBuf, String),
    /// A value is out of its range.
    #[error("agent.toml: {0}")]
    Value(String),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            servers: Vec::new(),
            server: Vec::new(),
            signal_port: SIGNAL_PORT,
            data_port: DATA_PORT,
            file_port: FILE_PORT,
            region: String::new(),
            zone: String::new(),
            cloud_id: 0,
            labels: BTreeMap::new(),
            metrics: "127.0.0.1:29405".into(),
            log_json: false,
            spool: SpoolConfig::default(),
            inputs: InputsConfig::default(),
            tail: Vec::new(),
            tasks: TasksConfig::default(),
            transfers: TransfersConfig::default(),
            mesh: MeshConfig::default(),
            paths: PathsConfig::default(),
        }
    }
}

impl Default for TasksConfig {
    fn default() -> TasksConfig {
        TasksConfig {
            concurrent_max: 100,
            queue_max: 1000,
            output_bytes_max: 64 * 1024 * 1024,
            cgroup: true,
        }
    }
}

impl Default for TransfersConfig {
    fn default() -> TransfersConfig {
        TransfersConfig { concurrent_max: 10, queue_max: 1000, keep_free_bytes: 64 * 1024 * 1024 }
    }
}

impl Default for MeshConfig {
    fn default() -> MeshConfig {
        MeshConfig {
            listen: "0.0.0.0:60020-60030".into(),
            connections_max: 256,
            transfer_connections_max: 128,
        }
    }
}

impl MeshConfig {
    /// Where to listen, or why that cannot be.
    pub fn place(&self) -> Result<crate::mesh::Listen, ConfigError> {
        self.listen.parse().map_err(ConfigError::Value)
    }
}

impl Config {
    /// Reads a file and says which of its keys mean nothing to this version.
    pub fn load(path: &Path) -> Result<(Config, Vec<String>), ConfigError> {
        let read = |error| ConfigError::Read(path.to_owned(), error);
        if std::fs::metadata(path).map_err(read)?.len() > CONFIG_BYTES_MAX {
            let why = format!("it is larger than {CONFIG_BYTES_MAX} bytes");
            return Err(ConfigError::Parse(path.to_owned(), why));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Config::parse(&text).map_err(|error| match error {
            ConfigError::Parse(_, why) => ConfigError::Parse(path.to_owned(), why),
            other => other,
        })
    }

    /// Parses the text of a configuration.
    pub fn parse(text: &str) -> Result<(Config, Vec<String>), ConfigError> {
        let parse = |error: toml::de::Error| {
            ConfigError::Parse(PathBuf::from("agent.toml"), error.to_string())
        };
        let given: toml::Table = toml::from_str(text).map_err(parse)?;
        let config: Config = toml::from_str(text).map_err(parse)?;
        config.validate()?;
        // What serialises back is what this version knows: every field has a value.
        let known = toml::Table::try_from(&config)
            .map_err(|error| ConfigError::Value(format!("cannot compare keys: {error}")))?;
        let mut unknown = Vec::new();
        unknown_keys("", &given, &known, &mut unknown);
        Ok((config, unknown))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |what: &str| Err(ConfigError::Value(what.to_owned()));
        if self.tasks.concurrent_max == 0 || self.transfers.concurrent_max == 0 {
            return refuse("concurrent_max of tasks and transfers must be at least 1");
        }
        if self.mesh.connections_max == 0 || self.mesh.transfer_connections_max == 0 {
            return refuse("connections_max of the mesh must be at least 1");
        }
        self.mesh.place()?;
        self.spool.validate().map_err(ConfigError::Value)?;
        self.inputs.validate().map_err(ConfigError::Value)?;
        let relative = |path: &&PathBuf| !path.is_absolute();
        let PathsConfig { read_allow, read_deny, write_allow, write_deny } = &self.paths;
        let rules = [read_allow, read_deny, write_allow, write_deny];
        if let Some(path) = rules.into_iter().flatten().find(relative) {
            return refuse(&format!("paths: {} must be absolute", path.display()));
        }
        Ok(())
    }
}

fn unknown_keys(prefix: &str, given: &toml::Table, known: &toml::Table, out: &mut Vec<String>) {
    for (key, value) in given {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (value, known.get(key)) {
            (_, None) => out.push(name),
            (toml::Value::Table(_), Some(_)) if name == "labels" => {}
            (toml::Value::Table(given), Some(toml::Value::Table(known))) => {
                unknown_keys(&name, given, known, out);
            }
            (toml::Value::Array(given), Some(toml::Value::Array(known))) => {
                for (given, known) in given.iter().zip(known) {
                    if let (toml::Value::Table(given), toml::Value::Table(known)) = (given, known) {
                        unknown_keys(&name, given, known, out);
                    }
                }
            }
            _ => {}
        }
    }
}

/// What `enrol` writes: the decisions of its command line, and the rest as comments to find.
pub fn template(config: &Config) -> String {
    let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let servers: Vec<String> = config.servers.iter().map(|server| text(server)).collect();
    let mut labels = String::new();
    for (key, value) in &config.labels {
        labels.push_str(&format!("{} = {}\n", text(key), text(value)));
    }
    format!(
        "# Configuration of this Skein agent; docs/configuration.md explains every key.\n\
         # Keys that are absent have their defaults; unknown keys are reported and ignored.\n\n\
         # Servers, tried in order.\nservers = [{}]\nsignal_port = {}\ndata_port = {}\n\
         file_port = {}\n\n\
         # Where this host stands; selectable as --on region=..., zone=..., cloud=...\n\
         region = {}\nzone = {}\ncloud_id = {}\n\n\
         # Prometheus scrapes this; \"off\" closes it.\nmetrics = {}\n\n\
         # Selectable as --on label:KEY=VALUE.\n[labels]\n{labels}\n\
         [spool]\n# Disk that unacknowledged records may take.\n# max_bytes = 536870912\n\
         # \"power\" flushes before a record counts as kept; \"process\" survives kill -9.\n\
         # durability = \"process\"\n\n\
         [inputs]\n# More sockets for BlueKing collectors, besides HOME/run/ipc.state.report.\n\
         # ipc = [\"/var/run/ipc.state.report\"]\n\n\
         # Follow files; repeat the section for more.\n# [[tail]]\n\
         # path = \"/var/log/*.log\"\n# data_id = 1001\n# from = \"end\"\n\n\
         [tasks]\n# concurrent_max = 100\n\n[transfers]\n# concurrent_max = 10\n\n\
         [mesh]\n# Where other agents exchange pieces of files; \"off\" closes it.\n\
         # listen = \"0.0.0.0:60020-60030\"\n\n\
         [paths]\n# What pushes may not overwrite and offers and tails may not read.\n\
         # write_deny = [\"/boot\"]\n# read_deny = [\"/root\"]\n",
        servers.join(", "),
        config.signal_port,
        config.data_port,
        config.file_port,
        text(&config.region),
        text(&config.zone),
        config.cloud_id,
        text(&config.metrics),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_named_and_ignored() {
        let text = "servers = ['a']\ncolour = 1\n[labels]\nany = 'x'\n[spool]\nmax_bytes = 5000000\n\
                    depth = 3\n[[tail]]\npath = '/x'\nspeed = 1\n";
        let (config, mut unknown) = Config::parse(text).unwrap();
        unknown.sort();
        assert_eq!(unknown, ["colour", "spool.depth", "tail.speed"]);
        assert_eq!(config.spool.max_bytes, 5_000_000);
        assert_eq!(config.labels["any"], "x");
        assert_eq!(config.tasks, TasksConfig::default());
    }

    #[test]
    fn the_template_says_what_it_was_given() {
        let mut config = Config { servers: vec!["h\"1".into()], ..Config::default() };
        config.labels.insert("role".into(), "web \\ x".into());
        config.data_port = 7;
        let (read, unknown) = Config::parse(&template(&config)).unwrap();
        assert_eq!((read, unknown), (config, vec![]));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "[tasks]\nconcurrent_max = 0",
            "[paths]\nread_deny = ['etc']",
            "metrics = 4",
            "[mesh]\nlisten = 'everywhere'",
            "[mesh]\nconnections_max = 0",
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }
}
