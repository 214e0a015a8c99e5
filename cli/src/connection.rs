//! Where the server's API is and with which token: flags, then the environment, then a local
//! server's folder, then defaults. One place decides, so that every command finds the same server.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::error::CliError;

/// Where the API listens unless configured otherwise.
pub const DEFAULT_API: &str = "http://127.0.0.1:28863";
/// The folder of a packaged server.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/skein";

/// Flags that every command takes.
#[derive(Args, Clone, Debug, Default)]
pub struct ConnectionArgs {
    /// Address of the server's API [default: http://127.0.0.1:28863]
    #[arg(long, global = true, env = "SKEIN_API", value_name = "URL", help_heading = "Connection")]
    pub api: Option<String>,
    /// Admin token itself; prefer the environment to the command line
    #[arg(
        long,
        global = true,
        env = "SKEIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Connection"
    )]
    pub token: Option<String>,
    /// File that holds the admin token
    #[arg(
        long,
        global = true,
        env = "SKEIN_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub token_file: Option<PathBuf>,
    /// Folder of a server on this machine: gives both the address and the token
    #[arg(
        long,
        global = true,
        env = "SKEIN_DATA_DIR",
        value_name = "DIR",
        help_heading = "Connection"
    )]
    pub data_dir: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
}

/// What the flags and the environment add up to.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Address of the API, without a trailing slash.
    pub api: String,
    /// The bearer token.
    pub token: String,
}

/// What a server process writes about the ports that it bound.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ports {
    /// Address of the API (control).
    pub api: Option<String>,
    /// Address of the signal listener (data).
    pub signal: Option<String>,
    /// Address of the data listener (data).
    pub data: Option<String>,
    /// Address of the file listener (data).
    pub file: Option<String>,
    /// Address of the data process's `/metrics`.
    pub data_metrics: Option<String>,
}

impl Ports {
    /// Reads `DIR/run/<process>.ports.json`.
    pub fn read(data_dir: &Path, process: &str) -> Option<Self> {
        let path = data_dir.join("run").join(format!("{process}.ports.json"));
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}

/// Where a server keeps the admin token of its first start.
pub fn admin_token_file(data_dir: &Path) -> PathBuf {
    data_dir.join("control").join("admin.token")
}

impl ConnectionArgs {
    /// Decides on the address and the token.
    pub fn resolve(&self) -> Result<Connection, CliError> {
        Ok(Connection { api: self.resolve_api()?, token: self.resolve_token()? })
    }

    fn resolve_api(&self) -> Result<String, CliError> {
        if let Some(api) = &self.api {
            let api = api.trim_end_matches('/');
            return Ok(if api.contains("://") { api.into() } else { format!("http://{api}") });
        }
        let Some(dir) = &self.data_dir else { return Ok(DEFAULT_API.to_owned()) };
        match Ports::read(dir, "control").and_then(|ports| ports.api) {
            Some(address) => Ok(format!("http://{address}")),
            None => Err(CliError::Unreachable {
                api: format!("the server of {}", dir.display()),
                reason: format!("there is no {}/run/control.ports.json", dir.display()),
            }),
        }
    }

    fn resolve_token(&self) -> Result<String, CliError> {
        if let Some(token) = self.token.as_deref().filter(|token| !token.trim().is_empty()) {
            return Ok(token.trim().to_owned());
        }
        if let Some(path) = &self.token_file {
            return read_token(path);
        }
        if let Some(dir) = &self.data_dir {
            return read_token(&admin_token_file(dir));
        }
        read_token(&admin_token_file(Path::new(DEFAULT_DATA_DIR)))
            .map_err(|_| CliError::Unauthorised("no admin token is given".to_owned()))
    }
}

fn read_token(path: &Path) -> Result<String, CliError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => {
            Err(CliError::Unauthorised(format!("cannot read {}: {error}", path.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_folder_gives_address_and_token_and_flags_win() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("run")).unwrap();
        std::fs::create_dir_all(dir.path().join("control")).unwrap();
        let mut args =
            ConnectionArgs { data_dir: Some(dir.path().to_owned()), ..ConnectionArgs::default() };
        assert_eq!(args.resolve().unwrap_err().exit_code(), 3);
        let ports = r#"{"api":"127.0.0.1:7","later":1}"#;
        std::fs::write(dir.path().join("run/control.ports.json"), ports).unwrap();
        assert_eq!(args.resolve().unwrap_err().exit_code(), 4);
        std::fs::write(admin_token_file(dir.path()), "secret\n").unwrap();
        let found = args.resolve().unwrap();
        assert_eq!((found.api.as_str(), found.token.as_str()), ("http://127.0.0.1:7", "secret"));
        args.api = Some("example:9/".into());
        args.token = Some("other".into());
        let found = args.resolve().unwrap();
        assert_eq!((found.api.as_str(), found.token.as_str()), ("http://example:9", "other"));
    }
}
