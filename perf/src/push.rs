//! A push of one file to one host: CPU of every process that took part, against the sum of its
//! parts measured alone on the same bytes: TLS sends and receives, hashes, one read, one write.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use ring::digest;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use crate::authority::{Authority, SERVER_NAME};
use crate::process::{Cpu, thread_cpu_us};
use crate::report::{Report, Spread};
use crate::site::Site;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Push {
    /// Size of the file
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder on the disk to write to
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

const GIB: f64 = (1u64 << 30) as f64;

impl Push {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let mut report = Report::new("Push of one file to one host", &command);
        std::fs::create_dir_all(&self.folder)?;
        let folder = self.folder.canonicalize()?;
        let file = folder.join("push.bin");
        self.write_source(&file)?;
        let site = Site::start(&folder)?;
        let agent = site.agent("agent", "")?;
        let target = site.path("received");
        std::fs::create_dir_all(&target)?;
        let (mut whole, mut ratio, mut wall, mut parts_in_all) = (vec![], vec![], vec![], vec![]);
        let mut parts_named: Vec<(&str, Vec<f64>)> = Vec::new();
        for round in 0..self.rounds {
            let parts = parts(&file, &folder)?;
            let sum: f64 = parts.iter().map(|(_, cpu)| cpu).sum();
            for (index, (name, cpu)) in parts.into_iter().enumerate() {
                if parts_named.len() <= index {
                    parts_named.push((name, Vec::new()));
                }
                parts_named[index].1.push(cpu);
            }
            let pids: Vec<u32> = site.server_pids().into_iter().chain(agent.pids()).collect();
            let cpu = |pids: &[u32]| -> anyhow::Result<u64> {
                pids.iter().map(|pid| Ok(Cpu::of(*pid)?.total_us())).sum()
            };
            let (before, children) = (cpu(&pids)?, children_us());
            let started = Instant::now();
            let to = format!("all:{}/round-{round}/", target.display());
            site.skein(&["push", &file.to_string_lossy(), "--to", &to, "--mkdir"])?;
            let seconds = started.elapsed().as_secs_f64();
            let used = cpu(&pids)? - before + (children_us() - children);
            let received = target.join(format!("round-{round}/push.bin"));
            ensure!(
                sha256_of(&received)? == sha256_of(&file)?,
                "the received file differs from its source"
            );
            std::fs::remove_file(&received)?;
            let used = used as f64 / 1e6 * GIB / self.bytes as f64;
            eprintln!("round {round}: {used:.3} CPU s/GiB, parts {sum:.3}, {seconds:.2} s");
            whole.push(used);
            parts_in_all.push(sum);
            ratio.push(used / sum);
            wall.push(self.bytes as f64 / 1e6 / seconds);
        }
        std::fs::remove_file(&file)?;
        report.row("bytes", self.bytes);
        report.row("whole push, all processes and the CLI, CPU s/GiB", Spread::of(whole));
        for (name, cpus) in parts_named {
            report.row(&format!("part alone: {name}, CPU s/GiB"), Spread::of(cpus));
        }
        report.row("sum of the parts, CPU s/GiB", Spread::of(parts_in_all));
        report.row("whole / sum of the parts", Spread::of(ratio));
        report.row("MB/s, wall, upload to the server included", Spread::of(wall));
        report.note(
            "The whole includes the upload from the operator's machine (sent, received, hashed and \
             written into the server's cache), the push itself and the final flush. The parts count \
             what cannot be avoided for that way: the file read twice, hashed twice, sent once \
             through TLS, written twice; plus one plain TCP copy for the upload.",
        );
        report.finish(self.out.as_deref())
    }

    /// Bytes that neither compress nor repeat.
    fn write_source(&self, file: &Path) -> anyhow::Result<()> {
        let mut out = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(file)?);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut block = vec![0u8; 1 << 20];
        let mut left = self.bytes as usize;
        while left > 0 {
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            let bytes = left.min(block.len());
            out.write_all(&block[..bytes])?;
            left -= bytes;
        }
        Ok(out.flush()?)
    }
}

/// CPU of children that were waited for: the CLI.
#[allow(unsafe_code)]
fn children_us() -> u64 {
    // SAFETY: rusage is plain numbers, for which zero is a value; the kernel overwrites it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a valid, exclusive reference to an rusage.
    let status = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    assert_eq!(status, 0, "RUSAGE_CHILDREN is always known");
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

fn sha256_of(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut file = std::fs::File::open(file).with_context(|| file.display().to_string())?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            bytes => context.update(&block[..bytes]),
        }
    }
}

/// CPU seconds per GiB of each part, on one thread each, nothing else in the way.
fn parts(file: &Path, folder: &Path) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let bytes = std::fs::metadata(file)?.len();
    let per_gib = |us: u64| us as f64 / 1e6 * GIB / bytes as f64;
    let mut block = vec![0; 256 * 1024];

    let started = thread_cpu_us();
    let mut source = std::fs::File::open(file)?;
    while source.read(&mut block)? > 0 {}
    let read = per_gib(thread_cpu_us() - started);

    let started = thread_cpu_us();
    for _ in 0..bytes / block.len() as u64 {
        for leaf in block.chunks(16 * 1024) {
            std::hint::black_box(digest::digest(&digest::SHA256, leaf));
        }
    }
    let hash = per_gib(thread_cpu_us() - started);

    let written = folder.join("parts.bin");
    let started = thread_cpu_us();
    let mut sink = std::fs::File::create(&written)?;
    for _ in 0..bytes / block.len() as u64 {
        sink.write_all(&block)?;
    }
    sink.sync_data()?;
    let write = per_gib(thread_cpu_us() - started);
    std::fs::remove_file(&written)?;

    let (send, receive) = tls(bytes)?;
    let (plain_send, plain_receive) = tcp(bytes)?;
    Ok(vec![
        ("read from the page cache, twice", 2.0 * read),
        ("SHA-256 in 16 KiB leaves, twice", 2.0 * hash),
        ("plain write and fdatasync, twice", 2.0 * write),
        ("TLS send", per_gib(send)),
        ("TLS receive", per_gib(receive)),
        ("TCP send and receive of the upload", per_gib(plain_send + plain_receive)),
    ])
}

/// CPU of sending and receiving `bytes` through rustls over loopback, in microseconds.
fn tls(bytes: u64) -> anyhow::Result<(u64, u64)> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let agent = skein_wire::ids::AgentId::parse("parts")?;
    let server = authority.server_config(folder.path())?;
    let client = authority.client(&agent)?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> anyhow::Result<u64> {
        let (mut socket, _) = listener.accept()?;
        let mut tls = ServerConnection::new(Arc::new(server))?;
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        stream.flush()?;
        let block = vec![7; 256 * 1024];
        let started = thread_cpu_us();
        for _ in 0..bytes / block.len() as u64 {
            stream.write_all(&block)?;
        }
        stream.conn.send_close_notify();
        stream.flush()?;
        Ok(thread_cpu_us() - started)
    });
    let mut socket = std::net::TcpStream::connect(address)?;
    let mut tls = ClientConnection::new(client, ServerName::try_from(SERVER_NAME)?)?;
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    stream.flush()?;
    let started = thread_cpu_us();
    let mut block = vec![0; 256 * 1024];
    while stream.read(&mut block)? > 0 {}
    let receive = thread_cpu_us() - started;
    let send = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok((send, receive))
}

/// CPU of sending and receiving `bytes` over plain loopback TCP, in microseconds.
fn tcp(bytes: u64) -> anyhow::Result<(u64, u64)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> anyhow::Result<u64> {
        let (mut socket, _) = listener.accept()?;
        let block = vec![7; 256 * 1024];
        let started = thread_cpu_us();
        for _ in 0..bytes / block.len() as u64 {
            socket.write_all(&block)?;
        }
        Ok(thread_cpu_us() - started)
    });
    let mut socket = std::net::TcpStream::connect(address)?;
    let started = thread_cpu_us();
    let mut block = vec![0; 256 * 1024];
    while socket.read(&mut block)? > 0 {}
    let receive = thread_cpu_us() - started;
    let send = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok((send, receive))
}
