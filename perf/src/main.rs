//! Whole-system measurements. Each subcommand starts what it needs on loopback, bounds its load in
//! count and time, and writes a table with its conditions.

mod agents;
mod authority;
mod channel;
mod content;
mod echo;
mod feed;
mod frames;
mod idle;
mod ingest;
mod kills;
mod lab;
mod ledger;
mod lines;
mod machine;
mod mesh;
mod netlab;
mod parts;
mod peers;
mod pipeline;
mod process;
mod push;
mod push_parts;
mod reconnect;
mod report;
mod returning;
mod sessions;
mod site;
mod soak;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use skein_dataplane::config::DataConfig;

/// Measure Skein as a whole. Build with --release; compare within one run, as machines are noisy.
#[derive(Debug, Parser)]
#[command(name = "skein-perf", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Log lines from many agents into a file: server CPU per record
    Ingest(ingest::Ingest),
    /// Many idle sessions: handshakes, memory, losses, a message to all and back
    Sessions(sessions::Sessions),
    /// A whole fleet drops and comes back: handshakes, times, none lost
    Reconnect(reconnect::Reconnect),
    /// Small and large frames over thousands of connections: server CPU per frame and MiB
    Frames(frames::Frames),
    /// A mixed load over time, with memory, descriptors and queues watched, and a verdict
    Soak(soak::Soak),
    /// kill -9 of a role in full flow, many times, with an account of every record
    Kills(kills::Kills),
    /// The parts of ingest alone, on one thread
    Parts(parts::Parts),
    /// From a file to a file over TLS, beside rsyslog and syslog-ng
    Pipeline(pipeline::Pipeline),
    /// A file to one host: CPU of all processes against the sum of the parts
    Push(push::Push),
    /// A file to many hosts in shaped network namespaces, beside chain, libtorrent, aria2 ...
    Mesh(mesh::Mesh),
    /// Remove network namespaces that an interrupted `mesh` left
    Cleanup(netlab::Cleanup),
    /// An agent that has nothing to do: memory, CPU, size
    Idle(idle::Idle),
    #[command(hide = true)]
    RelayProcess(mesh::Relay),
    #[command(hide = true)]
    LiarProcess(mesh::LiarProcess),
    #[command(hide = true)]
    DataProcess {
        #[arg(long, default_value_t = 1)]
        cores: usize,
        #[arg(long, default_value = "plain")]
        disk: lab::Disk,
        folder: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Ingest(ingest) => ingest.run(),
        What::Sessions(sessions) => sessions.run(),
        What::Reconnect(reconnect) => reconnect.run(),
        What::Frames(frames) => frames.run(),
        What::Soak(soak) => soak.run(),
        What::Kills(kills) => kills.run(),
        What::Parts(parts) => parts.run(),
        What::Pipeline(pipeline) => pipeline.run(),
        What::Push(push) => push.run(),
        What::Mesh(mesh) => mesh.run(),
        What::Cleanup(cleanup) => cleanup.run(),
        What::Idle(idle) => idle.run(),
        What::RelayProcess(relay) => relay.run(),
        What::LiarProcess(liar) => liar.run(),
        What::DataProcess { cores, disk, folder } => {
            let any = |host: [u8; 4]| std::net::SocketAddr::from((host, 0));
            let mut config = DataConfig::new(folder);
            config.signal_listen = any([0, 0, 0, 0]);
            config.data_listen = any([0, 0, 0, 0]);
            config.file_listen = any([0, 0, 0, 0]);
            config.metrics_listen = Some(any([127, 0, 0, 1]));
            config.shards = cores;
            config.router_workers = cores;
            config.disk = disk.into();
            skein_dataplane::process::run_data(config)
        }
    }
}
