//! The parts of a push measured alone on the same bytes: reads, hashes, writes, TLS, plain TCP. Each
//! on threads of its own with nothing else in the way, CPU of those threads.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use ring::digest;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use crate::authority::{Authority, SERVER_NAME};
use crate::process::thread_cpu_us;

/// Bytes of a GiB.
pub const GIB: f64 = (1u64 << 30) as f64;

/// Bytes that are read, hashed, written and sent at a time.
const BLOCK_BYTES: usize = 256 * 1024;

/// A leaf of the manifest's tree.
const LEAF_BYTES: usize = 16 * 1024;

/// CPU seconds per GiB of doing each once.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// From the page cache.
    pub read: f64,
    /// SHA-256 in leaves of 16 KiB.
    pub hash: f64,
    /// A plain write and fdatasync.
    pub write: f64,
    /// Into TLS 1.3 over loopback.
    pub tls_send: f64,
    /// Out of it.
    pub tls_receive: f64,
    /// Into a plain socket over loopback.
    pub tcp_send: f64,
    /// Out of it.
    pub tcp_receive: f64,
}

impl Parts {
    /// Measures all on the bytes of `file`; `folder` is where to write.
    pub fn measure(file: &Path, folder: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::metadata(file)?.len();
        let per_gib = |us: u64| us as f64 / 1e6 * GIB / bytes as f64;
        let mut block = vec![0; BLOCK_BYTES];
        let (mut read, mut hash, mut write) = (0, 0, 0);
        let written = folder.join("parts.bin");
        let mut source = std::fs::File::open(file)?;
        let mut sink = std::fs::File::create(&written)?;
        loop {
            let started = thread_cpu_us();
            let length = source.read(&mut block)?;
            read += thread_cpu_us() - started;
            if length == 0 {
                break;
            }
            let started = thread_cpu_us();
            for leaf in block[..length].chunks(LEAF_BYTES) {
                std::hint::black_box(digest::digest(&digest::SHA256, leaf));
            }
            hash += thread_cpu_us() - started;
            let started = thread_cpu_us();
            sink.write_all(&block[..length])?;
            write += thread_cpu_us() - started;
        }
        let started = thread_cpu_us();
        sink.sync_data()?;
        write += thread_cpu_us() - started;
        std::fs::remove_file(&written)?;
        let (tls_send, tls_receive) = tls(bytes)?;
        let (tcp_send, tcp_receive) = tcp(bytes)?;
        Ok(Self {
            read: per_gib(read),
            hash: per_gib(hash),
            write: per_gib(write),
            tls_send: per_gib(tls_send),
            tls_receive: per_gib(tls_receive),
            tcp_send: per_gib(tcp_send),
            tcp_receive: per_gib(tcp_receive),
        })
    }

    /// What no push of a file from one host to another can do without: it is read, hashed for its
    /// manifest, sent and received through TLS, hashed again to be proved, and written.
    pub fn least(&self) -> f64 {
        self.read + 2.0 * self.hash + self.tls_send + self.tls_receive + self.write
    }

    /// The hop from the operator's machine to the server: through the API on loopback.
    pub fn upload(&self) -> f64 {
        self.tcp_send + self.tcp_receive
    }

    /// What the way over the server does in addition to [`Parts::least`]: the upload, the write
    /// into the server's cache and the read from there.
    pub fn detour(&self) -> f64 {
        self.upload() + self.write + self.read
    }
}

/// CPU of sending and receiving `bytes` through rustls over loopback, in microseconds.
pub fn tls(bytes: u64) -> anyhow::Result<(u64, u64)> {
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
        let mut left = bytes as usize;
        while left > 0 {
            let length = left.min(block.len());
            stream.write_all(&block[..length])?;
            left -= length;
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
        let mut left = bytes as usize;
        while left > 0 {
            let length = left.min(block.len());
            socket.write_all(&block[..length])?;
            left -= length;
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
