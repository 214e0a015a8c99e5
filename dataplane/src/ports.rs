//! Where the process listens, for those who start it with port 0: `run/data.ports.json`.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::fleet::persist;

/// Bound addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ports {
    /// Signal and enrol channels.
    pub signal: SocketAddr,
    /// Data channels.
    pub data: SocketAddr,
    /// File channels.
    pub file: SocketAddr,
    /// `/metrics`; `None` when off.
    pub metrics: Option<SocketAddr>,
}

impl Ports {
    /// Writes the file, whole or not at all.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        persist::replace(run_dir, "data.ports.json", self.json().as_bytes())
    }

    /// Addresses need no escaping in JSON.
    fn json(&self) -> String {
        let Self { signal, data, file, metrics } = self;
        let metrics = metrics.map_or("null".to_owned(), |address| format!("\"{address}\""));
        format!(
            "{{\"signal\":\"{signal}\",\"data\":\"{data}\",\"file\":\"{file}\",\"data_metrics\":{metrics}}}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_json() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let ports = Ports { signal: at(1), data: at(2), file: at(3), metrics: None };
        let expected = "{\"signal\":\"127.0.0.1:1\",\"data\":\"127.0.0.1:2\",\
                        \"file\":\"127.0.0.1:3\",\"data_metrics\":null}\n";
        assert_eq!(ports.json(), expected);
    }
}
