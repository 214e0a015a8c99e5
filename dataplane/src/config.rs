//! What a data process is started with. Plain fields without defaults from files: the `skein`
//! binary reads the configuration and fills this in.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::router::DiskChoice;

/// Configuration of [`crate::process::run_data`].
#[derive(Clone, Debug)]
pub struct DataConfig {
    /// The server's folder; the data process uses `data/` and `run/` below it.
    pub data_dir: PathBuf,
    /// Name of this node in the fleet and in file names of sinks.
    pub node_id: String,
    /// Where agents' signal and enrol channels arrive.
    pub signal_listen: SocketAddr,
    /// Where agents' data channels arrive.
    pub data_listen: SocketAddr,
    /// Where agents' file channels arrive.
    pub file_listen: SocketAddr,
    /// Where `/metrics` is served; `None` turns it off.
    pub metrics_listen: Option<SocketAddr>,
    /// Shards; 0: one per core.
    pub shards: usize,
    /// Router workers; 0: one per core.
    pub router_workers: usize,
    /// How sink files are written.
    pub disk: DiskChoice,
    /// Bytes of batches that may wait for all router workers together.
    pub router_queue_bytes: usize,
    /// Threads that read and write files of transfers.
    pub file_threads: usize,
    /// Sessions of one process; its limit of open files is raised to hold them.
    pub sessions_max: usize,
}

impl DataConfig {
    /// Sane values for one server, listening on GSE 2's ports.
    pub fn new(data_dir: PathBuf) -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            data_dir,
            node_id: "node-1".to_owned(),
            signal_listen: any(28668),
            data_listen: any(28625),
            file_listen: any(28925),
            metrics_listen: Some(SocketAddr::from(([127, 0, 0, 1], 29402))),
            shards: 0,
            router_workers: 0,
            disk: DiskChoice::default(),
            router_queue_bytes: 64 << 20,
            file_threads: 2,
            sessions_max: 100_000,
        }
    }

    /// Number of shards, with 0 resolved.
    pub fn shard_count(&self) -> usize {
        resolve(self.shards)
    }

    /// Number of router workers, with 0 resolved.
    pub fn worker_count(&self) -> usize {
        resolve(self.router_workers)
    }

    /// The socket on which the control process listens.
    pub fn fleet_socket(&self) -> PathBuf {
        self.data_dir.join("run/fleet.sock")
    }

    /// The folder of the data process.
    pub fn own_dir(&self) -> PathBuf {
        self.data_dir.join("data")
    }
}

fn resolve(count: usize) -> usize {
    match count {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}
