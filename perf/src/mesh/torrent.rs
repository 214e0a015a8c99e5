//! What the BitTorrent peers need around them: a metainfo file and a tracker. Both are ours, so that
//! all peers have the same: pieces of one size, and each other's addresses within a second.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use ring::digest;

use crate::netlab::Host;

/// Seconds between a client's announcements.
const INTERVAL_SECONDS: u32 = 5;
/// Peers in one answer.
const ANSWER_PEERS_MAX: usize = 50;
/// A request is one packet.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// The metainfo of one file (BEP 3, SHA-1): what the source hashes within the measured time.
pub fn metainfo(file: &Path, piece_bytes: u64, announce: &str) -> anyhow::Result<Vec<u8>> {
    let name = file.file_name().and_then(|name| name.to_str()).context("a name in UTF-8")?;
    let length = std::fs::metadata(file)?.len();
    let (mut source, mut pieces) = (File::open(file)?, Vec::new());
    let mut piece = vec![0; usize::try_from(piece_bytes)?];
    loop {
        let bytes = fill(&mut source, &mut piece)?;
        if bytes == 0 {
            break;
        }
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &piece[..bytes]);
        pieces.extend_from_slice(hash.as_ref());
    }
    let mut text = format!(
        "d8:announce{}:{announce}4:infod6:lengthi{length}e4:name{}:{name}\
         12:piece lengthi{piece_bytes}e6:pieces{}:",
        announce.len(),
        name.len(),
        pieces.len()
    )
    .into_bytes();
    text.extend(pieces);
    text.extend(b"ee");
    Ok(text)
}

/// As many bytes as there are, up to the buffer's length.
fn fill(source: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..])? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    Ok(filled)
}

/// A tracker on a lab's bridge; it ends with this value.
pub struct Tracker {
    /// What clients are given.
    pub announce: String,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Tracker {
    /// For one swarm.
    pub fn start(hub: &Host) -> anyhow::Result<Self> {
        let listener = hub.within(|| TcpListener::bind((hub.address(), 0)))??;
        listener.set_nonblocking(true)?;
        let announce = format!("http://{}/announce", listener.local_addr()?);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut peers = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that says nothing sensible gets nothing.
                    Ok((stream, from)) => drop(answer(stream, from, &mut peers)),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Ok(Self { announce, stop, thread: Some(thread) })
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(
    mut stream: TcpStream,
    from: SocketAddr,
    peers: &mut Vec<SocketAddrV4>,
) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    let mut request = Vec::new();
    let mut part = [0; 2048];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        match stream.read(&mut part)? {
            0 => break,
            bytes => request.extend_from_slice(&part[..bytes]),
        }
    }
    let SocketAddr::V4(from) = from else { return Ok(()) };
    let body =
        announced(&String::from_utf8_lossy(&request), *from.ip(), peers).context("no peer")?;
    let length = body.len();
    stream.write_all(
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
            .as_bytes(),
    )?;
    Ok(stream.write_all(&body)?)
}

/// Notes who announces, and answers with others, beginning at another one for each.
fn announced(request: &str, from: Ipv4Addr, peers: &mut Vec<SocketAddrV4>) -> Option<Vec<u8>> {
    let query = request.strip_prefix("GET /announce?")?.split(' ').next()?;
    let value = |name: &str| {
        query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
    };
    let peer = SocketAddrV4::new(from, value("port")?.1.parse().ok()?);
    let known = peers.iter().position(|known| *known == peer);
    match (known, value("event").map(|(_, event)| event)) {
        (Some(at), Some("stopped")) => drop(peers.remove(at)),
        (None, Some("stopped")) | (Some(_), _) => {}
        (None, _) => peers.push(peer),
    }
    let start = known.unwrap_or(peers.len().saturating_sub(1));
    let others = (1..peers.len()).map(|step| peers[(start + step) % peers.len()]);
    let others: Vec<SocketAddrV4> = others.filter(|other| *other != peer).collect();
    let others = &others[..others.len().min(ANSWER_PEERS_MAX)];
    let mut body = format!(
        "d8:intervali{INTERVAL_SECONDS}e12:min intervali{INTERVAL_SECONDS}e5:peers{}:",
        others.len() * 6
    )
    .into_bytes();
    for other in others {
        body.extend(other.ip().octets());
        body.extend(other.port().to_be_bytes());
    }
    body.push(b'e');
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metainfo_is_bencode_with_a_hash_per_piece() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        std::fs::write(&file, [7; 40]).unwrap();
        let made = metainfo(&file, 32, "http://t/a").unwrap();
        let head =
            b"d8:announce10:http://t/a4:infod6:lengthi40e4:name1:x12:piece lengthi32e6:pieces40:";
        assert_eq!(&made[..head.len()], head);
        assert_eq!(made.len(), head.len() + 40 + 2);
        let second = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[7; 8]);
        assert_eq!(&made[head.len() + 20..head.len() + 40], second.as_ref());
    }

    #[test]
    fn a_tracker_tells_each_of_the_others_and_forgets_who_stopped() {
        let mut peers = Vec::new();
        let from = |last| Ipv4Addr::new(10, 0, 0, last);
        let announce = "GET /announce?info_hash=a&port=6881&compact=1 HTTP/1.1\r\n\r\n";
        let empty = b"d8:intervali5e12:min intervali5e5:peers0:e";
        assert_eq!(announced(announce, from(1), &mut peers).unwrap(), empty);
        let two = announced(announce, from(2), &mut peers).unwrap();
        assert!(two.ends_with(b"5:peers6:\x0a\x00\x00\x01\x1a\xe1e"), "{two:?}");
        assert_eq!(announced(announce, from(1), &mut peers).unwrap().len(), two.len());
        let stop = announce.replace("compact=1", "event=stopped");
        announced(&stop, from(2), &mut peers).unwrap();
        assert_eq!(announced(announce, from(1), &mut peers).unwrap(), empty);
        assert_eq!(announced("GET / HTTP/1.1", from(1), &mut peers), None);
    }
}
