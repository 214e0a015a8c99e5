//! Where the server's API is, with which token, and whose certificate it must show: flags, then the
//! environment, then a local server's folder, then defaults. One place decides, so that every
//! command finds the same server. No token leaves this machine in the clear: plain http is refused
//! to any other address.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use serde::Deserialize;
use ureq::http::Uri;

use crate::error::CliError;
use crate::trust::Trust;

/// Where the API listens unless configured otherwise.
pub const DEFAULT_API: &str = "http://127.0.0.1:28863";
/// The folder of a packaged server.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/skein";

/// Variables of the environment that say which server is meant.
pub const VARIABLES: [&str; 5] =
    ["SKEIN_API", "SKEIN_CA", "SKEIN_TOKEN", "SKEIN_TOKEN_FILE", "SKEIN_DATA_DIR"];

/// Flags that every command takes.
#[derive(Args, Clone, Debug, Default)]
pub struct ConnectionArgs {
    /// Address of the server's API [default: http://127.0.0.1:28863]
    #[arg(
        long,
        global = true,
        env = "SKEIN_API",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub api: Option<String>,
    /// Certificate of the authority behind an https API [default: the system's, and that of
    /// --data-dir]
    #[arg(
        long,
        global = true,
        env = "SKEIN_CA",
        hide_short_help = true,
        hide_env_values = true,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        help_heading = "Connection"
    )]
    pub ca: Option<PathBuf>,
    /// Admin token itself; prefer the environment to the command line
    #[arg(
        long,
        global = true,
        env = "SKEIN_TOKEN",
        hide_short_help = true,
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
        hide_short_help = true,
        hide_env_values = true,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        help_heading = "Connection"
    )]
    pub token_file: Option<PathBuf>,
    /// Folder of a server on this machine: gives address, authority and token
    #[arg(
        long,
        global = true,
        env = "SKEIN_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR",
        value_hint = ValueHint::DirPath,
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
    /// Address of the API with its scheme and without a trailing slash. Plain http is always to
    /// this machine: the token must not be read on the way.
    pub api: String,
    /// The bearer token.
    pub token: String,
    /// Whose certificate the server must show where the scheme is https.
    pub trust: Trust,
}

impl Connection {
    /// Whether the API speaks TLS.
    pub fn is_https(&self) -> bool {
        self.api.starts_with("https:")
    }
}

/// What a server process writes about the ports that it bound.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ports {
    /// Address at which the API is bound (control).
    pub api: Option<String>,
    /// How this machine reaches the API (control).
    pub api_url: Option<String>,
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

/// The certificate of a server's own authority.
pub fn authority_file(data_dir: &Path) -> PathBuf {
    data_dir.join("control").join("ca.crt")
}

impl ConnectionArgs {
    /// Decides on the address, the token and the trust.
    pub fn resolve(&self) -> Result<Connection, CliError> {
        let api = self.resolve_api()?;
        Ok(Connection { trust: self.resolve_trust(), token: self.resolve_token()?, api })
    }

    fn resolve_api(&self) -> Result<String, CliError> {
        if let Some(api) = &self.api {
            return canonical_url(api, self.ca.is_some());
        }
        let dir = self.data_dir.as_deref().unwrap_or(Path::new(DEFAULT_DATA_DIR));
        match (Ports::read(dir, "control").and_then(|ports| ports.api_url), &self.data_dir) {
            (Some(url), _) => Ok(url),
            (None, None) => Ok(DEFAULT_API.to_owned()),
            (None, Some(dir)) => Err(no_server_in(dir)),
        }
    }

    /// The server's own authority counts beside the system's when the address is somebody else's
    /// choice: behind it may be a certificate of either.
    fn resolve_trust(&self) -> Trust {
        if let Some(ca) = &self.ca {
            return Trust::of_file(ca);
        }
        let dir = self.data_dir.as_deref().unwrap_or(Path::new(DEFAULT_DATA_DIR));
        let own = Some(authority_file(dir)).filter(|path| path.is_file());
        Trust { system: self.api.is_some() || own.is_none(), file: own }
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

fn no_server_in(dir: &Path) -> CliError {
    let path = dir.join("run/control.ports.json");
    let reason = match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            format!("{} may not be read by this user", path.display())
        }
        Err(_) if !dir.exists() => "there is no such folder".to_owned(),
        Err(_) => format!("there is no {}: it has not run yet", path.display()),
        Ok(_) => format!("{} is of another version", path.display()),
    };
    CliError::Unreachable { api: format!("the server of {}", dir.display()), reason }
}

/// Checks an address and gives it a scheme: http on this machine, https elsewhere or where an
/// authority is given.
fn canonical_url(api: &str, has_authority: bool) -> Result<String, CliError> {
    let api = api.trim();
    let bad = |why: &str| {
        CliError::Usage(format!(
            "--api \"{api}\" {why}; it looks like https://skein.example.com:28863"
        ))
    };
    let whole = if api.contains("://") { api.to_owned() } else { format!("none://{api}") };
    let uri: Uri = whole.parse().map_err(|_| bad("is no address"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(bad("is no address"));
    };
    if authority.as_str().contains('@') {
        return Err(bad("holds a user name; the token is given by --token-file or SKEIN_TOKEN"));
    }
    if uri.query().is_some() {
        return Err(bad("has a query"));
    }
    let host = authority.host();
    let scheme = match scheme {
        "none" if has_authority || !is_this_machine(host) => "https",
        "none" => "http",
        "http" if !is_this_machine(host) => {
            return Err(CliError::Usage(format!(
                "{api} would show the admin token to everybody on the way to {host}: use \
                 https://{authority} (the server needs control.api_tls), or a tunnel such as \
                 `ssh -L 28863:127.0.0.1:28863 {host}` with --api http://127.0.0.1:28863"
            )));
        }
        scheme @ ("http" | "https") => scheme,
        _ => return Err(bad("is neither http nor https")),
    };
    Ok(format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/')))
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
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
        let ports = r#"{"api":"0.0.0.0:7","api_url":"https://127.0.0.1:7","later":1}"#;
        std::fs::write(dir.path().join("run/control.ports.json"), ports).unwrap();
        assert_eq!(args.resolve().unwrap_err().exit_code(), 4);
        std::fs::write(admin_token_file(dir.path()), "secret\n").unwrap();
        std::fs::write(authority_file(dir.path()), "pem").unwrap();
        let found = args.resolve().unwrap();
        assert_eq!((found.api.as_str(), found.token.as_str()), ("https://127.0.0.1:7", "secret"));
        assert_eq!(found.trust, Trust::of_file(authority_file(dir.path())));
        args.api = Some("example:9/".into());
        args.token = Some("other".into());
        let found = args.resolve().unwrap();
        assert_eq!((found.api.as_str(), found.token.as_str()), ("https://example:9", "other"));
        assert!(found.trust.system && found.trust.file.is_some());
        args.ca = Some("mine.pem".into());
        assert_eq!(args.resolve().unwrap().trust, Trust::of_file("mine.pem"));
    }

    #[test]
    fn addresses_get_a_scheme_and_the_token_never_travels_in_the_clear() {
        let url = |api: &str| canonical_url(api, false);
        for (given, meant) in [
            ("127.0.0.1:7", "http://127.0.0.1:7"),
            ("localhost:7/", "http://localhost:7"),
            ("[::1]:7", "http://[::1]:7"),
            ("http://127.9.9.9", "http://127.9.9.9"),
            ("10.0.0.1:7", "https://10.0.0.1:7"),
            ("HTTPS://ops.example.com/skein/", "https://ops.example.com/skein"),
        ] {
            assert_eq!(url(given).unwrap(), meant);
        }
        assert_eq!(canonical_url("localhost:7", true).unwrap(), "https://localhost:7");
        for exposed in ["http://10.0.0.1:7", "http://[::ffff:10.0.0.1]:7", "http://x.localhost.com"]
        {
            let error = url(exposed).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("admin token"), "{error}");
        }
        for bad in ["", "ftp://x", "https://", "https://me:pw@x", "https://x?q=1", "a b"] {
            assert_eq!(url(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
