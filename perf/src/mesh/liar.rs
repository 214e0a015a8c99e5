//! A peer that sends false bytes. It has a real agent's certificate, so the list that control signed
//! names it, and it speaks the wire with the shipped core: handshakes, a bitfield that promises
//! everything, true hashes. Only the blocks are false, each in one byte.
//!
//! ```text
//!   others ── connections to the agent's ports ─► [nft] ─► liar: the agent's identity, false blocks
//!             signal, lists, plans, reports ◄────────────► agent, unmodified; it cannot dial others
//! ```
//! The real agent keeps its session, so that the liar is planned as any member is.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use skein_agent::identity::Identity;
use skein_agent::mesh::ALPN;
use skein_filemesh::core::geometry::BLOCK_BYTES;
use skein_filemesh::core::link::Have;
use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, Handshake, peer_id};
use skein_filemesh::core::seeder::{Pull, ROOM_MIN, Seeder};
use skein_filemesh::engine::{LeafFile, append_at};
use skein_wire::hello::{HELLO_BYTES, HelloAck, HelloStatus, VERSION};

use super::drive::Job;
use crate::netlab::NetLab;
use crate::site::{family, kill};

/// Where an agent listens for others unless it is told otherwise.
const AGENT_PORTS: &str = "60020-60030";
/// Where the liar listens.
const PORT: u16 = 7000;
/// Handed to a connection at a time.
const OUT_BYTES: usize = 128 << 10;
/// Between two looks at a connection that sends nothing.
const LOOK: Duration = Duration::from_millis(2);
/// For the liar to listen.
const READY: Duration = Duration::from_secs(20);

/// The process.
#[derive(Debug, Clone, clap::Args)]
pub struct LiarProcess {
    /// Home of the agent whose identity it has
    #[arg(long)]
    home: PathBuf,
    /// The file that is pushed
    #[arg(long)]
    file: PathBuf,
    /// A folder below which the server keeps its hashes
    #[arg(long)]
    server: PathBuf,
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Made when it listens
    #[arg(long)]
    ready: PathBuf,
}

impl LiarProcess {
    /// Lies until it is killed; says on its output how each connection went.
    pub fn run(self) -> anyhow::Result<()> {
        let identity = Identity::load(&self.home.join("identity"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(identity.chain.clone(), identity.private_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        let config = Arc::new(config);
        let listener = TcpListener::bind(self.listen)?;
        std::fs::write(&self.ready, "")?;
        std::thread::scope(|scope| {
            for stream in listener.incoming() {
                let (stream, config) = (stream?, config.clone());
                let (liar, name) = (&self, identity.agent_id.as_str());
                scope.spawn(move || {
                    let mut blocks = 0;
                    let end = liar.lie(stream, config, name, &mut blocks);
                    let end = end.err().map_or(String::new(), |error| format!("{error:#}"));
                    println!("{blocks} false blocks sent, then {end}");
                });
            }
            Ok(())
        })
    }

    fn lie(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
        name: &str,
        blocks: &mut u64,
    ) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let mut io = StreamOwned::new(ServerConnection::new(config)?, stream);
        let mut hello = [0; HELLO_BYTES];
        io.read_exact(&mut hello)?;
        let mut theirs = [0; HANDSHAKE_BYTES];
        io.read_exact(&mut theirs)?;
        let theirs = Handshake::decode(&theirs)?.context("no handshake")?;
        let ack = HelloAck {
            version: VERSION,
            status: HelloStatus::Ok,
            retry_after_ms: 0,
            session_id: 0,
            server_time_ms: 0,
        };
        io.write_all(&ack.encode())?;
        let leaves = LeafFile::open(&newest_leaves(&self.server).context("no hashes yet")?)?;
        let file = std::fs::File::open(&self.file)?;
        let ours = Handshake::new(theirs.info_hash, peer_id(name));
        let started = Instant::now();
        let now = || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut seeder = Seeder::accept(leaves.tree().clone(), Have::All, ours, &theirs, now())?;
        io.sock.set_read_timeout(Some(LOOK))?;
        let (mut input, mut part) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let mut out = Vec::new();
            while out.len() + ROOM_MIN <= OUT_BYTES {
                match seeder.next(OUT_BYTES - out.len(), &mut out, now()) {
                    None => break,
                    Some(Pull::Data { offset, len }) => {
                        let at = out.len();
                        append_at(&file, offset, len as usize, &mut out)?;
                        *blocks += spoil(&mut out[at..], offset);
                    }
                    Some(Pull::Leaves { first, count }) => {
                        let mut hashes = Vec::new();
                        leaves.append_leaves(first, count, &mut hashes)?;
                        seeder.leaves(Some(&hashes), &mut out, now());
                    }
                }
            }
            io.write_all(&out)?;
            io.flush()?;
            match io.read(&mut part) {
                Ok(0) => bail!("the peer closed"),
                Ok(bytes) => input.extend_from_slice(&part[..bytes]),
                Err(error)
                    if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
            let used = seeder.receive(&input, now())?;
            input.drain(..used);
        }
    }
}

/// Makes every block of these bytes of a file false, from `offset` on; how many blocks begin there.
fn spoil(bytes: &mut [u8], offset: u64) -> u64 {
    let block = u64::from(BLOCK_BYTES);
    let first = (block - offset % block) % block;
    let begins = (first..bytes.len() as u64).step_by(block as usize);
    let mut count = 0;
    for at in begins {
        bytes[at as usize] ^= 0x55;
        count += 1;
    }
    count
}

/// The newest file of hashes below `folder`.
pub fn newest_leaves(folder: &Path) -> Option<PathBuf> {
    let mut newest = None;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
            if meta.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "leaves") {
                newest = newest.max(meta.modified().ok().map(|at| (at, path)));
            }
        }
    }
    newest.map(|(_, path)| path)
}

/// A liar at work on one host of a lab; its connections are its agent's again when it ends.
pub struct Liar<'a> {
    lab: &'a NetLab,
    host: usize,
    process: Child,
}

impl<'a> Liar<'a> {
    /// Puts one in the place of a receiver.
    pub fn start(
        job: &Job<'a>,
        receiver: usize,
        home: &Path,
        server: &Path,
    ) -> anyhow::Result<Self> {
        let (lab, host) = (job.lab, receiver + 1);
        let ready = job.scratch().join("liar.ready");
        let listen = SocketAddr::from((job.receiver(receiver).address(), PORT));
        let log = std::fs::File::create(job.scratch().join("liar.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("liar-process").arg("--home").arg(home).arg("--file").arg(&job.source);
        command.arg("--server").arg(server).arg(format!("--listen={listen}"));
        command.arg("--ready").arg(&ready);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = lab.hosts()[host].spawn(&mut command)?;
        let liar = Self { lab, host, process };
        let deadline = Instant::now() + READY;
        while !ready.exists() {
            ensure!(Instant::now() < deadline, "the liar was not ready in time");
            std::thread::sleep(Duration::from_millis(10));
        }
        lab.capture(host, AGENT_PORTS, PORT)?;
        Ok(liar)
    }
}

impl Drop for Liar<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.lab.release(self.host) {
            eprintln!("the liar's connections: {error:#}");
        }
        kill(&family(self.process.id()));
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_false_in_one_byte() {
        let block = BLOCK_BYTES as usize;
        let mut bytes = vec![0; 3 * block];
        assert_eq!(spoil(&mut bytes, 0), 3);
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 3);
        assert_eq!([bytes[0], bytes[block], bytes[2 * block]], [0x55; 3]);
        // In parts that divide blocks, each block is still spoilt once.
        let mut bytes = vec![0; 3 * block];
        let (head, tail) = bytes.split_at_mut(block + 100);
        assert_eq!(spoil(head, 0) + spoil(tail, block as u64 + 100), 3);
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 3);
    }

    #[test]
    fn the_newest_hashes_are_found_wherever_they_lie() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_leaves(folder.path()), None);
        let (old, new) = (folder.path().join("a.leaves"), folder.path().join("below/b.leaves"));
        std::fs::create_dir(folder.path().join("below")).unwrap();
        for (path, age) in [(&old, 60), (&new, 0)] {
            let file = std::fs::File::create(path).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        assert_eq!(newest_leaves(folder.path()), Some(new));
    }
}
