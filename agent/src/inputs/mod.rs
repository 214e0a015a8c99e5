//! Where records come from: collectors' sockets ([`collector`]), followed files ([`tail`]) and
//! `skein-agent emit` ([`emit`]).
//!
//! Collectors cannot wait, so their records are taken at once and the oldest of the lane give way;
//! the other two are told to wait when the spool is full and lose nothing.

pub mod collector;
pub mod emit;
pub mod gse;
pub mod info;
pub mod socket;
pub mod tail;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

pub use self::info::{AgentInfo, InfoCell};
pub use self::tail::{From, TailConfig};

use crate::home::Home;
use crate::spool::Spool;

/// Name of the collectors' socket that every agent has in `HOME/run`.
pub const IPC_NAME: &str = "ipc.state.report";

/// `[inputs]` of `agent.toml`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct InputsConfig {
    /// Unix sockets that speak GSE's data IPC, besides `HOME/run/ipc.state.report`.
    pub ipc: Vec<PathBuf>,
    /// Octal mode of those sockets ("0666": every user of the host may report).
    pub ipc_mode: String,
    /// Told to collectors that ask: the host's business.
    pub biz_id: i32,
    /// Told to collectors that ask: the host's id in CMDB.
    pub host_id: i32,
    /// Told to collectors that ask: the data id that some use by default.
    pub static_data_id: i32,
    /// Told to collectors that ask: the tenant.
    pub tenant_id: String,
}

impl Default for InputsConfig {
    fn default() -> InputsConfig {
        InputsConfig {
            ipc: Vec::new(),
            ipc_mode: "0666".into(),
            biz_id: 0,
            host_id: 0,
            static_data_id: 0,
            tenant_id: String::new(),
        }
    }
}

impl InputsConfig {
    /// What is wrong with the values, for the person who wrote them.
    pub fn validate(&self) -> Result<(), String> {
        if let Some(path) = self.ipc.iter().find(|path| !path.is_absolute()) {
            return Err(format!("inputs.ipc: {} must be absolute", path.display()));
        }
        self.mode().map(|_| ())
    }

    fn mode(&self) -> Result<u32, String> {
        u32::from_str_radix(&self.ipc_mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| format!("inputs.ipc_mode: {:?} is no octal mode", self.ipc_mode))
    }
}

/// Opens a file for reading when the path rules allow it.
pub type OpenFile = Box<dyn Fn(&Path) -> std::io::Result<std::fs::File> + Send>;

/// Starts all inputs as tasks of this thread's `LocalSet`; they run until the process ends.
///
/// Collectors are answered from `info`, also before any server was reached. `open_file` is
/// [`crate::paths::PathRules::open_file`] or what stands for it.
pub fn start(
    config: &InputsConfig,
    tails: &[TailConfig],
    home: &Home,
    spool: &Rc<Spool>,
    info: &InfoCell,
    open_file: OpenFile,
) {
    let mode = config.mode().unwrap_or(0o666);
    let collectors = collector::Collectors::new(spool.clone(), info.clone());
    let own = home.run().join(IPC_NAME);
    for path in config.ipc.iter().chain([&own]) {
        let (path, collectors) = (path.clone(), collectors.clone());
        tokio::task::spawn_local(async move { collectors.listen(&path, mode).await });
    }
    let marks = spool.recovered_marks();
    let emit = emit::server::Emitters::new(spool.clone(), &marks);
    let (path, earlier) = (home.run().join(emit::SOCKET_NAME), emit.clone());
    tokio::task::spawn_local(async move { emit.listen(&path).await });
    tokio::task::spawn_local(async move { earlier.forget_earlier().await });
    tail::start(tails, spool, marks, open_file);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        assert_eq!(InputsConfig::default().validate(), Ok(()));
        let relative = InputsConfig { ipc: vec!["x".into()], ..InputsConfig::default() };
        assert!(relative.validate().unwrap_err().contains("inputs.ipc"));
        for mode in ["", "rw", "1777", "-1"] {
            let wrong = InputsConfig { ipc_mode: mode.into(), ..InputsConfig::default() };
            assert!(wrong.validate().unwrap_err().contains("ipc_mode"));
        }
    }
}
