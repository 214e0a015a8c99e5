//! A plain chain, as operators write it: each host stores what it reads and passes it on, in hops of
//! 256 KiB. With `--check` the source sends its SHA-256 ahead and every host proves the whole file
//! before it counts. The same program makes direct copies when the source names several hosts.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ring::digest;

use crate::content::sha256_of;

/// A hop.
const HOP_BYTES: usize = 256 << 10;
/// How long a host waits for the next one to listen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Before the content: its size, and its SHA-256 or zeros.
const HEAD_BYTES: usize = 8 + 32;

/// One host of a chain, or its source.
#[derive(Debug, Clone, clap::Args)]
pub struct Relay {
    /// File to send; without it, this host receives
    #[arg(long, requires = "to")]
    send: Option<PathBuf>,
    /// Hosts to connect to
    #[arg(long)]
    to: Vec<SocketAddr>,
    /// Where a receiver listens
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// What a receiver writes
    #[arg(long)]
    out: Option<PathBuf>,
    /// What a receiver makes when it has the file
    #[arg(long)]
    done: Option<PathBuf>,
    /// Prove the file by SHA-256
    #[arg(long)]
    check: bool,
}

impl Relay {
    /// Sends, or receives and passes on.
    pub fn run(self) -> anyhow::Result<()> {
        match (&self.send, &self.listen, &self.out) {
            (Some(file), _, _) => self.source(file),
            (None, Some(listen), Some(out)) => self.receive(*listen, out),
            _ => anyhow::bail!("give --send FILE, or --listen and --out"),
        }
    }

    /// A thread per host: one for a chain, all for direct copies.
    fn source(&self, file: &Path) -> anyhow::Result<()> {
        let mut head = std::fs::metadata(file)?.len().to_be_bytes().to_vec();
        head.extend(if self.check { sha256_of(file)? } else { vec![0; 32] });
        std::thread::scope(|scope| {
            let send = |to: &SocketAddr| -> anyhow::Result<()> {
                let mut stream = connect(*to)?;
                stream.write_all(&head)?;
                let mut source = BufReader::with_capacity(HOP_BYTES, File::open(file)?);
                std::io::copy(&mut source, &mut stream)?;
                Ok(())
            };
            let sends: Vec<_> = self.to.iter().map(|to| scope.spawn(move || send(to))).collect();
            sends.into_iter().try_for_each(|send| send.join().expect("a sender does not panic"))
        })
    }

    fn receive(&self, listen: SocketAddr, out: &Path) -> anyhow::Result<()> {
        let (mut from, _) = TcpListener::bind(listen)?.accept()?;
        let mut next = self.to.first().map(|to| connect(*to)).transpose()?;
        let mut head = [0; HEAD_BYTES];
        from.read_exact(&mut head)?;
        if let Some(next) = &mut next {
            next.write_all(&head)?;
        }
        let (size, expected) = head.split_at(8);
        let mut left = u64::from_be_bytes(size.try_into()?);
        let mut file = File::create(out)?;
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut hop = vec![0; HOP_BYTES];
        while left > 0 {
            let most = hop.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let bytes = from.read(&mut hop[..most])?;
            ensure!(bytes > 0, "the chain broke with {left} bytes to go");
            if let Some(next) = &mut next {
                next.write_all(&hop[..bytes])?;
            }
            file.write_all(&hop[..bytes])?;
            if self.check {
                hash.update(&hop[..bytes]);
            }
            left -= bytes as u64;
        }
        ensure!(!self.check || hash.finish().as_ref() == expected, "the file is not the source's");
        Ok(std::fs::write(self.done.as_ref().context("no --done")?, "")?)
    }
}

/// Hosts of a chain start in any order.
fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(to) {
            Ok(stream) => return Ok(stream),
            Err(error) => ensure!(Instant::now() < deadline, "{to}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// A source and two hosts in a row.
    fn chain(check: bool, spoil: bool) -> (Vec<u8>, Vec<Option<Vec<u8>>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let sent: Vec<u8> = (0..600_000u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(path("source"), &sent).unwrap();
        let [first, second] = [free(), free()];
        let host = |listen, to: &[SocketAddr], name: &str| Relay {
            send: None,
            to: to.to_vec(),
            listen: Some(listen),
            out: Some(path(name)),
            done: Some(path(&format!("{name}.done"))),
            check,
        };
        std::thread::scope(|scope| {
            let hosts = [host(first, &[second], "a"), host(second, &[], "b")];
            let hosts = hosts.map(|host| scope.spawn(move || host.run()));
            if spoil {
                let mut stream = connect(first).unwrap();
                stream.write_all(&600_000u64.to_be_bytes()).unwrap();
                stream.write_all(&[7; 32]).unwrap();
                stream.write_all(&sent).unwrap();
            } else {
                let source = Relay { send: Some(path("source")), ..host(first, &[first], "") };
                source.run().unwrap();
            }
            for host in hosts {
                assert_eq!(host.join().unwrap().is_ok(), !(check && spoil));
            }
        });
        let got = ["a", "b"].map(|name| {
            path(&format!("{name}.done")).exists().then(|| std::fs::read(path(name)).unwrap())
        });
        (sent, got.to_vec())
    }

    #[test]
    fn every_host_of_a_chain_gets_the_file() {
        for check in [false, true] {
            let (sent, got) = chain(check, false);
            assert_eq!(got, [Some(sent.clone()), Some(sent)]);
        }
    }

    #[test]
    fn a_file_that_is_not_the_sources_does_not_count() {
        let (_, got) = chain(true, true);
        assert_eq!(got, [None, None]);
        // Without the check nobody notices: a wrong digest passes.
        let (sent, got) = chain(false, true);
        assert_eq!(got, [Some(sent.clone()), Some(sent)]);
    }
}
