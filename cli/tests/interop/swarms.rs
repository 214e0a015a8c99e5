//! Unmodified clients fetch an exported torrent from `skein file seed-torrent` and seed it to
//! `skein file get-torrent`, over loopback, without TLS. Each client is used as it is: who must be
//! told of a peer by a tracker gets a tracker, who refuses loopback addresses is connected to.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{PYTHON, Torrent, clients_are_here, run, torrent};

/// Clients unchoke in rounds of up to 10 s; machines that test are busy.
const WAIT: Duration = Duration::from_secs(120);

/// Several pieces, and a last one that is short.
const SIZE: usize = 3_000_003;

/// libtorrent without anything that leaves this machine.
const SESSION: &str = "
import libtorrent as lt, sys, time
session = lt.session({'listen_interfaces': '127.0.0.1:0', 'enable_dht': False,
                      'enable_lsd': False, 'enable_upnp': False, 'enable_natpmp': False})
torrent = lt.add_torrent_params()
torrent.ti = lt.torrent_info('f.bin.torrent')
torrent.trackers = []
torrent.save_path = sys.argv[1]
handle = session.add_torrent(torrent)
def wait(condition):
    end = time.monotonic() + 120
    while not condition(handle.status()):
        assert time.monotonic() < end, handle.status().state
        time.sleep(0.02)
";

/// Transmission without anything that leaves this machine.
const TRANSMISSION: &str = r#"{"bind-address-ipv4": "127.0.0.1", "dht-enabled": false,
"lpd-enabled": false, "pex-enabled": false, "utp-enabled": false, "port-forwarding-enabled": false}"#;

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended by itself
        let _ = self.0.wait();
    }
}

/// Starts a client whose screen nobody reads.
fn start(folder: &Path, program: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments).stdin(Stdio::piped());
    Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Starts a process that says where it listens.
fn start_telling(folder: &Path, program: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments).stdin(Stdio::piped());
    Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
}

/// The last word of the first line with `mark` that a process prints, as an address or port.
fn said(running: &mut Running, mark: &str) -> String {
    let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.contains(mark)).unwrap();
    line.rsplit(' ').next().unwrap().trim_matches('"').to_owned()
}

fn skein_seed(folder: &Path, more: &[&str]) -> (Running, SocketAddr) {
    let arguments = ["file", "seed-torrent", "f.bin.torrent", "f.bin", "--json"];
    let program = env!("CARGO_BIN_EXE_skein");
    let mut seed = start_telling(folder, program, &[&arguments[..], more].concat());
    let address = said(&mut seed, "listening").parse().unwrap();
    (seed, address)
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < end, "{what} within {WAIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_whole(at: &Path, folder: &str) -> bool {
    let copy = fs::read(at.join(folder).join("f.bin"));
    copy.is_ok_and(|copy| copy == fs::read(at.join("f.bin")).unwrap())
}

/// Fetches the file with Skein from the client that listens on `port`, once it does.
fn skein_gets(at: &Path, port: &str) {
    fs::create_dir(at.join("got")).unwrap();
    let (peer, program) = (format!("127.0.0.1:{port}"), env!("CARGO_BIN_EXE_skein"));
    let get = ["file", "get-torrent", "f.bin.torrent", "--peer", &peer, "--out", "got", "--json"];
    // A client that still checks its file refuses connections.
    wait_until("a client seeds", || run(at, program, &get).0);
    assert!(is_whole(at, "got"));
    assert_eq!(fs::read_dir(at.join("got")).unwrap().count(), 1, "nothing else is left");
}

/// A tracker that names one peer, whoever asks, on the port that it answers.
fn tracker(peer: SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request); // whatever it asks, the answer is the same
            let mut body = b"d8:intervali5e5:peers6:\x7f\0\0\x01".to_vec();
            body.extend_from_slice(&peer.port().to_be_bytes());
            body.push(b'e');
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat()); // it asks again
        }
    });
    format!("http://{address}/announce")
}

fn aria2<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let quiet = [
        "--no-conf",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--bt-enable-lpd=false",
        "--enable-peer-exchange=false",
        "--interface=127.0.0.1",
        "--bt-exclude-tracker=*",
        "f.bin.torrent",
    ];
    [&quiet[..], more].concat()
}

fn transmission(at: &Path, port: &str, folder: &str, more: &[&str]) -> Running {
    fs::create_dir_all(at.join("config")).unwrap();
    fs::write(at.join("config/settings.json"), TRANSMISSION).unwrap();
    let arguments = ["-g", "config", "-M", "-p", port, "-w", folder, "f.bin.torrent"];
    start(at, "transmission-cli", &[&arguments[..], more].concat())
}

#[test]
fn libtorrent_fetches_from_skein_and_seeds_to_it() {
    if !clients_are_here() {
        return;
    }
    let Torrent { folder, .. } = torrent(SIZE);
    let at = folder.path();
    let (_seed, address) = skein_seed(at, &[]);
    let fetch = format!(
        "{SESSION}\nwait(lambda status: status.state == lt.torrent_status.downloading)\n\
         handle.connect_peer(('127.0.0.1', {}))\nwait(lambda status: status.is_seeding)",
        address.port()
    );
    fs::create_dir(at.join("copy")).unwrap();
    let (good, text) = run(at, PYTHON, &["-c", &fetch, "copy"]);
    assert!(good, "{text}");
    wait_until("libtorrent writes", || is_whole(at, "copy"));

    let seeds = "wait(lambda status: status.is_seeding)\n\
                 print('port', session.listen_port(), flush=True)\nsys.stdin.read()";
    let mut client = start_telling(at, PYTHON, &["-c", &format!("{SESSION}\n{seeds}"), "."]);
    let port = said(&mut client, "port");
    skein_gets(at, &port);
}

#[test]
fn aria2_fetches_from_skein_and_seeds_to_it() {
    if !clients_are_here() {
        return;
    }
    let Torrent { folder, .. } = torrent(SIZE);
    let at = folder.path();
    let (_seed, address) = skein_seed(at, &[]);
    let tracker = format!("--bt-tracker={}", tracker(address));
    let fetch = aria2(&[&tracker, "--dir=copy", "--seed-time=0"]);
    let (good, text) = run(at, "aria2c", &fetch);
    assert!(good, "{text}");
    assert!(is_whole(at, "copy"), "{text}");

    let port = free_port();
    let listen = format!("--listen-port={port}");
    let seed = ["--dir=.", "--check-integrity=true", "--seed-ratio=0.0", &listen];
    let _client = start(at, "aria2c", &aria2(&seed));
    skein_gets(at, &port);
}

#[test]
fn transmission_fetches_from_skein_and_seeds_to_it() {
    if !clients_are_here() {
        return;
    }
    let Torrent { folder, .. } = torrent(SIZE);
    let at = folder.path();
    fs::create_dir(at.join("copy")).unwrap();
    let port = free_port();
    let client = transmission(at, &port, "copy", &[]);
    // It takes no loopback address from a tracker, so the seed connects to it.
    let _seed = skein_seed(at, &["--peer", &format!("127.0.0.1:{port}")]);
    wait_until("Transmission fetches", || is_whole(at, "copy"));
    drop(client);

    let port = free_port();
    let _client = transmission(at, &port, ".", &["-v"]);
    skein_gets(at, &port);
}
