//! `DIR/server.toml`: what a person may decide about one server. Every key has a default, so the
//! file may be absent. Unknown keys are refused: a misspelt limit must not pass silently.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skein_controlplane::api::{ApiTls, CertificateFiles, ListenError};

use super::ListenArgs;
use super::planner::PlannerSection;
use crate::error::CliError;

/// A `server.toml` larger than this is refused before it is parsed.
const CONFIG_BYTES_MAX: u64 = 256 << 10;

/// The whole file, with the command line's flags applied.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Name of this node, in file names of sinks and in the fleet's view.
    pub node_id: String,
    /// Logs as JSON lines instead of text.
    pub log_json: bool,
    /// Longest pause before a process that keeps dying is started again.
    pub restart_pause_ms_max: u64,
    /// Addresses.
    pub listen: ListenConfig,
    /// The data process.
    pub data: DataSection,
    /// The control process.
    pub control: ControlSection,
    /// What the planner of transfers goes by.
    pub planner: PlannerSection,
}

/// Where the server listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// Agents' signal and enrol channels.
    pub signal: SocketAddr,
    /// Agents' data channels.
    pub data: SocketAddr,
    /// Agents' file channels.
    pub file: SocketAddr,
    /// The operators' API and control's `/metrics`.
    pub api: SocketAddr,
    /// The data process's `/metrics`, or "off".
    pub data_metrics: MetricsAddress,
}

/// An address or "off".
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MetricsAddress(pub Option<SocketAddr>);

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "off" => Ok(Self(None)),
            address => match address.parse() {
                Ok(address) => Ok(Self(Some(address))),
                Err(_) => Err(format!("\"{address}\" is neither an address nor \"off\"")),
            },
        }
    }
}

impl From<MetricsAddress> for String {
    fn from(address: MetricsAddress) -> Self {
        address.0.map_or_else(|| "off".to_owned(), |address| address.to_string())
    }
}

/// Section `[data]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSection {
    /// Shards; 0: one per core.
    pub shards: usize,
    /// Router workers; 0: one per core.
    pub router_workers: usize,
    /// How sink files are written.
    pub disk: Disk,
    /// Sessions that one process takes.
    pub sessions_max: usize,
}

/// How sink files are written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// Ordinary calls on a thread beside each router worker.
    #[default]
    Plain,
    /// glommio (io_uring) where the kernel permits it, else plain.
    Glommio,
}

/// Section `[control]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlSection {
    /// Uploaded files that the cache may hold together.
    pub cache_bytes_max: u64,
    /// How long an uploaded file stays when nothing uses it.
    pub cache_expiry_seconds: u64,
    /// The API speaks TLS; required off 127.0.0.1.
    pub api_tls: bool,
    /// Names and addresses of the API, besides those that are found out, in the certificate that
    /// the server's authority issues for it.
    pub api_names: Vec<String>,
    /// Certificate of another authority (PEM, with its chain), relative to DIR.
    pub api_certificate: Option<PathBuf>,
    /// Its key (PEM), relative to DIR.
    pub api_key: Option<PathBuf>,
    /// Folders below which streams may write, besides DIR/data/sinks.
    pub sink_roots: Vec<PathBuf>,
    /// Time between two heartbeats of an agent.
    pub heartbeat_seconds: u64,
    /// Heartbeats that may be missed before an agent counts as lost.
    pub heartbeat_misses: u32,
    /// Name or address of this server in the join command [default: found out].
    pub public_host: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            node_id: "node-1".into(),
            log_json: false,
            restart_pause_ms_max: 10_000,
            listen: ListenConfig::default(),
            data: DataSection::default(),
            control: ControlSection::default(),
            planner: PlannerSection::default(),
        }
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::from(([0, 0, 0, 0], port));
        let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            signal: everywhere(28668),
            data: everywhere(28625),
            file: everywhere(28925),
            api: here(28863),
            data_metrics: MetricsAddress(Some(here(29402))),
        }
    }
}

impl Default for DataSection {
    fn default() -> Self {
        Self { shards: 0, router_workers: 0, disk: Disk::default(), sessions_max: 100_000 }
    }
}

impl Default for ControlSection {
    fn default() -> Self {
        Self {
            cache_bytes_max: 20 << 30,
            cache_expiry_seconds: 24 * 3600,
            api_tls: false,
            api_names: Vec::new(),
            api_certificate: None,
            api_key: None,
            sink_roots: Vec::new(),
            heartbeat_seconds: 10,
            heartbeat_misses: 3,
            public_host: None,
        }
    }
}

impl ServerConfig {
    /// Reads `DIR/server.toml` and applies the flags.
    pub fn load(dir: &Path, flags: &ListenArgs) -> Result<Self, CliError> {
        let path = dir.join("server.toml");
        let mut config = match std::fs::metadata(&path) {
            Err(_) => Self::default(),
            Ok(metadata) if metadata.len() > CONFIG_BYTES_MAX => {
                return Err(CliError::Usage(format!("{} is over 256 KiB", path.display())));
            }
            Ok(_) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(CliError::io(format!("cannot read {}", path.display())))?;
                Self::parse(&text)
                    .map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))?
            }
        };
        config.listen.apply(flags);
        config.control.api_tls |= flags.api_tls;
        Ok(config)
    }

    /// How the API speaks TLS, if it does.
    pub fn api_tls(&self, dir: &Path) -> Option<ApiTls> {
        let control = &self.control;
        let files = control.api_certificate.as_ref().zip(control.api_key.as_ref());
        let files = files.map(|(certificate, key)| CertificateFiles {
            certificate: dir.join(certificate),
            key: dir.join(key),
        });
        control.api_tls.then(|| ApiTls { names: control.api_names.clone(), files })
    }

    /// Finds what would keep the API from starting, while somebody looks.
    pub fn check_api(&self, dir: &Path) -> Result<(), CliError> {
        let control = &self.control;
        let given = [&control.api_certificate, &control.api_key];
        let refuse = |why: &str| Err(CliError::Usage(format!("{}: {why}", dir.display())));
        if given.iter().any(|file| file.is_some()) && given.iter().any(|file| file.is_none()) {
            return refuse("control.api_certificate and control.api_key belong together");
        }
        match self.api_tls(dir) {
            None if given[0].is_some() || !control.api_names.is_empty() => {
                refuse("control.api_names and api_certificate need control.api_tls = true")
            }
            None if !self.listen.api.ip().is_loopback() => {
                Err(CliError::Usage(ListenError::Exposed(self.listen.api).to_string()))
            }
            None => Ok(()),
            Some(tls) => tls.check().map_err(|error| CliError::Usage(error.to_string())),
        }
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

impl ListenConfig {
    fn apply(&mut self, flags: &ListenArgs) {
        if flags.local {
            let free = SocketAddr::from(([127, 0, 0, 1], 0));
            (self.signal, self.data, self.file, self.api) = (free, free, free, free);
            self.data_metrics = MetricsAddress(Some(free));
        }
        let set = |place: &mut SocketAddr, flag: Option<SocketAddr>| {
            if let Some(address) = flag {
                *place = address;
            }
        };
        set(&mut self.signal, flags.signal_listen);
        set(&mut self.data, flags.data_listen);
        set(&mut self.file, flags.file_listen);
        set(&mut self.api, flags.api_listen);
        if flags.metrics_listen.is_some() {
            self.data_metrics = MetricsAddress(flags.metrics_listen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default_and_a_misspelt_key_is_refused() {
        let config = ServerConfig::parse("").unwrap();
        assert_eq!(config.listen.signal.port(), 28668);
        assert!(ServerConfig::parse("[listen]\nsignals = '0.0.0.0:1'").is_err());
        assert!(ServerConfig::parse("[listen]\ndata_metrics = 'no'").is_err());
    }

    #[test]
    fn an_api_that_would_not_start_is_found_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: &str| {
            let config = ServerConfig::parse(text).unwrap();
            config.check_api(dir.path()).map_err(|error| error.to_string())
        };
        let open = "[listen]\napi = '0.0.0.0:1'\n[control]\n";
        for (text, why) in [
            (open, "must not listen on 0.0.0.0:1 without TLS"),
            ("[control]\napi_names = ['x']", "need control.api_tls"),
            ("[control]\napi_tls = true\napi_names = ['a b']", "neither a host name"),
            ("[control]\napi_tls = true\napi_key = 'k'", "belong together"),
            ("[control]\napi_tls = true\napi_key = 'k'\napi_certificate = 'c.pem'", "c.pem"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        check(&format!("{open}api_tls = true\napi_names = ['ops.example.com']")).unwrap();
        check("").unwrap();
    }

    #[test]
    fn flags_win_over_the_file() {
        let text = "[listen]\nsignal = '0.0.0.0:1'\ndata_metrics = 'off'\n[data]\ndisk = 'plain'";
        let mut config = ServerConfig::parse(text).unwrap();
        assert_eq!(config.listen.data_metrics, MetricsAddress(None));
        assert_eq!(config.data.disk, Disk::Plain);
        let here = SocketAddr::from(([127, 0, 0, 1], 9));
        let flags = ListenArgs { local: true, signal_listen: Some(here), ..ListenArgs::default() };
        config.listen.apply(&flags);
        assert_eq!(config.listen.signal, here);
        assert_eq!(config.listen.api, SocketAddr::from(([127, 0, 0, 1], 0)));
    }
}
