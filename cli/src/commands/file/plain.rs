//! `skein file seed-torrent` and `get-torrent`: BitTorrent version 1 with ordinary clients, only
//! while the command runs. One thread per connection: this is for a handful of peers.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueHint};
use ring::rand::{SecureRandom, SystemRandom};
use skein_filemesh::core::link::Have;
use skein_filemesh::core::metainfo::Metainfo;
use skein_filemesh::core::peer_wire::{HANDSHAKE_BYTES, Handshake, MESSAGE_BYTES_MAX};
use skein_filemesh::core::piece_tree::PieceTree;
use skein_filemesh::core::seeder::{Pull, Seeder};
use skein_filemesh::core::v1::{V1Action, V1Leecher};
use skein_filemesh::engine::Hashes;

use super::{check_free, describe, read_metainfo};
use crate::commands::Outcome;
use crate::error::{CliError, EXIT_OK};
use crate::progress::Progress;
use crate::quantity;
use crate::show;

/// Peers that are served at a time.
const PEERS_MAX: usize = 64;

/// How long a read waits before timers are looked at.
const TURN: Duration = Duration::from_millis(200);

/// How long a peer may take to connect, to shake hands, or to take what it asked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two tries of a client that is not there.
const AGAIN: Duration = Duration::from_secs(2);

/// A peer that says nothing, not even a keep-alive (every 120 s), is gone.
const SILENCE_MS: u64 = 180_000;

/// Bytes that are made ready to be sent at a time.
const ROOM: usize = 256 * 1024;

const SEED_EXAMPLES: &str = "\
Whoever reaches the port and knows the info hash reads the file: there is no TLS and no list of
members. Skein's own transfers (`skein push`) never speak this way.

  skein file export-torrent release.tar --tracker http://tracker:6969/announce
  skein file seed-torrent release.tar.torrent release.tar --listen 0.0.0.0:6881

It announces itself to no tracker; give its address to clients, or to the tracker.";

const GET_EXAMPLES: &str = "\
Each piece is proved by its SHA-1 before it is written; the file appears under its name when it is
whole. There is no TLS. Skein's own transfers (`skein push`) never speak this way.

  skein file get-torrent release.tar.torrent --peer 10.0.0.1:6881 --out /srv";

/// Flags of `file seed-torrent`.
#[derive(Args, Debug)]
#[command(after_help = SEED_EXAMPLES)]
pub struct SeedArgs {
    /// The torrent, of version 1
    #[arg(value_hint = ValueHint::FilePath)]
    torrent: PathBuf,
    /// The file that it describes; it is proved first
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Address and port to listen on; port 0: any
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Connect to this client, too, and again when it goes; may be given several times
    #[arg(long, value_name = "ADDR")]
    peer: Vec<SocketAddr>,
}

/// Flags of `file get-torrent`.
#[derive(Args, Debug)]
#[command(after_help = GET_EXAMPLES)]
pub struct GetArgs {
    /// The torrent, of version 1
    #[arg(value_hint = ValueHint::FilePath)]
    torrent: PathBuf,
    /// Who has the file
    #[arg(long, value_name = "ADDR")]
    peer: SocketAddr,
    /// Folder for the file
    #[arg(long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    out: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// What every thread that serves a peer has.
struct Served {
    file: File,
    tree: Arc<PieceTree>,
    ours: Handshake,
    peers: AtomicUsize,
    started: Instant,
}

/// A handshake for this torrent, under a name that nobody else has.
fn handshake(torrent: &Path, metainfo: &Metainfo) -> Result<Handshake, CliError> {
    let torrent = torrent.display();
    let info_hash = metainfo
        .info_hash_v1()
        .ok_or_else(|| CliError::Local(format!("{torrent} has no version 1")))?;
    let mut peer_id = *b"-SK0100-............";
    SystemRandom::new()
        .fill(&mut peer_id[8..])
        .map_err(|_| CliError::Local("the system gives no random numbers".into()))?;
    Ok(Handshake::plain(info_hash, peer_id))
}

fn elapsed_ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Serves the file until it is stopped.
pub fn seed(args: &SeedArgs, as_json: bool) -> Outcome {
    let metainfo = read_metainfo(&args.torrent)?;
    let ours = handshake(&args.torrent, &metainfo)?;
    let geometry = metainfo.geometry();
    let found = describe(&args.file, |_| geometry.piece_bytes(), Hashes::TreeAndPieces, as_json)?;
    let file = args.file.display();
    if found.manifest.geometry != geometry || found.pieces.as_deref() != metainfo.pieces() {
        let torrent = args.torrent.display();
        return Err(CliError::Local(format!(
            "{file} is not what {torrent} describes; `skein file verify` names where"
        )));
    }
    let tree = PieceTree::new(geometry, found.layer, &found.manifest.root)
        .map_err(|error| CliError::Local(format!("{file}: {error}")))?;
    let cannot = || CliError::io(format!("cannot serve {file} on {}", args.listen));
    let listener = TcpListener::bind(args.listen).map_err(cannot())?;
    let address = listener.local_addr().map_err(cannot())?;
    let served = Arc::new(Served {
        file: File::open(&args.file).map_err(cannot())?,
        tree: Arc::new(tree),
        ours,
        peers: AtomicUsize::new(0),
        started: Instant::now(),
    });
    if as_json {
        show::json(&serde_json::json!({ "listening": address.to_string() }))?;
    } else {
        show::line(&format!("serving {file} to anybody on {address}, until Ctrl-C"))?;
    }
    for peer in &args.peer {
        let (served, peer) = (served.clone(), *peer);
        std::thread::spawn(move || seek_out(peer, &served));
    }
    loop {
        let (stream, peer) = listener.accept().map_err(cannot())?;
        if served.peers.fetch_add(1, Ordering::Relaxed) >= PEERS_MAX {
            served.peers.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let served = served.clone();
        std::thread::spawn(move || {
            let seeder = accept(&stream, &served);
            let outcome =
                seeder.and_then(|seeder| serve(&stream, &served, seeder, Vec::new(), Vec::new()));
            if let Err(error) = outcome {
                eprintln!("{peer}: {error}");
            }
            served.peers.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Serves `peer` for as long as the command runs, trying again when it is not there.
fn seek_out(peer: SocketAddr, served: &Served) {
    let mut told = None;
    loop {
        let outcome =
            TcpStream::connect_timeout(&peer, PATIENCE).map_err(said).and_then(|stream| {
                let (tree, now_ms) = (served.tree.clone(), elapsed_ms(served.started));
                let mut seeder = Seeder::connect(tree, Have::All, served.ours, now_ms);
                let (mut incoming, mut out) = (Vec::new(), Vec::new());
                seeder.next(ROOM, &mut out, now_ms);
                shake(&stream, &mut out, &mut incoming).map_err(said)?;
                serve(&stream, served, seeder, incoming, out)
            });
        let error = outcome.err();
        // A client that stays away is worth one line, not one per second.
        if let Some(error) = error.filter(|error| told.as_ref() != Some(error)) {
            eprintln!("{peer}: {error}");
            told = Some(error);
        }
        std::thread::sleep(AGAIN);
    }
}

/// Sends the handshake that `out` begins with and waits for the peer's before anything else goes:
/// aria2 drops peers that send more at once.
fn shake(mut stream: &TcpStream, out: &mut Vec<u8>, incoming: &mut Vec<u8>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&out[..HANDSHAKE_BYTES])?;
    out.drain(..HANDSHAKE_BYTES);
    while incoming.len() < HANDSHAKE_BYTES {
        match read_some(stream, incoming)? {
            None => return Err(ErrorKind::TimedOut.into()),
            Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Some(_) => {}
        }
    }
    stream.set_read_timeout(Some(TURN))
}

/// A seeder for a connection that a peer opened; who asks for another torrent gets no byte.
fn accept(mut stream: &TcpStream, served: &Served) -> Result<Seeder, String> {
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    let mut first = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut first).map_err(said)?;
    let theirs = Handshake::decode(&first).map_err(said)?.ok_or("no handshake")?;
    let now_ms = elapsed_ms(served.started);
    Seeder::accept(served.tree.clone(), Have::All, served.ours, &theirs, now_ms).map_err(said)
}

/// Serves one peer until it goes. `incoming` came from it, and `out` is still to be sent.
fn serve(
    mut stream: &TcpStream,
    served: &Served,
    mut seeder: Seeder,
    mut incoming: Vec<u8>,
    mut out: Vec<u8>,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(said)?;
    stream.set_read_timeout(Some(TURN)).map_err(said)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(said)?;
    let used = seeder.receive(&incoming, elapsed_ms(served.started)).map_err(said)?;
    incoming.drain(..used);
    loop {
        let now_ms = elapsed_ms(served.started);
        loop {
            while let Some(pull) = seeder.next(ROOM - out.len().min(ROOM), &mut out, now_ms) {
                match pull {
                    Pull::Data { offset, len } => {
                        let start = out.len();
                        out.resize(start + len as usize, 0);
                        served.file.read_exact_at(&mut out[start..], offset).map_err(said)?;
                    }
                    // Ordinary clients do not ask for leaves.
                    Pull::Leaves { .. } => seeder.leaves(None, &mut out, now_ms),
                }
            }
            if out.is_empty() {
                break;
            }
            stream.write_all(&out).map_err(said)?;
            out.clear();
        }
        if read_some(stream, &mut incoming).map_err(said)? == Some(0) {
            return Ok(());
        }
        let now_ms = elapsed_ms(served.started);
        let used = seeder.receive(&incoming, now_ms).map_err(said)?;
        incoming.drain(..used);
        seeder.tick(now_ms);
        if now_ms.saturating_sub(seeder.heard_ms()) > SILENCE_MS {
            return Ok(());
        }
    }
}

/// Reads what is there into `buf`; `None` if nothing came in time, 0 at the end.
fn read_some(mut stream: &TcpStream, buf: &mut Vec<u8>) -> std::io::Result<Option<usize>> {
    let start = buf.len();
    buf.resize(start + MESSAGE_BYTES_MAX, 0);
    let got = stream.read(&mut buf[start..]);
    buf.truncate(start + got.as_ref().copied().unwrap_or(0));
    match got {
        Ok(got) => Ok(Some(got)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        },
    }
}

/// Fetches the file from one peer.
pub fn get(args: &GetArgs, as_json: bool) -> Outcome {
    let metainfo = read_metainfo(&args.torrent)?;
    let target = args.out.join(metainfo.name());
    check_free(&target, args.force)?;
    let part = args.out.join(format!(".skein-{}.part", std::process::id()));
    let cannot = || CliError::io(format!("cannot write {}", target.display()));
    let file = File::create_new(&part).map_err(cannot())?;
    let fetched = fetch(args, &metainfo, &file, as_json)
        .and_then(|()| file.sync_all().map_err(cannot()))
        .and_then(|()| std::fs::rename(&part, &target).map_err(cannot()));
    if let Err(error) = fetched {
        let _ = std::fs::remove_file(&part); // the error says what matters
        return Err(error);
    }
    let size_bytes = metainfo.geometry().size_bytes();
    if as_json {
        let file = target.to_string_lossy();
        show::json(&serde_json::json!({ "file": file, "size_bytes": size_bytes }))?;
    } else {
        let target = show::printable(target.display().to_string());
        show::line(&format!("{target}: {}, every piece proved", quantity::bytes(size_bytes)))?;
    }
    Ok(EXIT_OK)
}

fn fetch(args: &GetArgs, metainfo: &Metainfo, file: &File, as_json: bool) -> Result<(), CliError> {
    let cannot = || CliError::io(format!("cannot fetch from {}", args.peer));
    let ours = handshake(&args.torrent, metainfo)?;
    let (geometry, hashes) = (metainfo.geometry(), metainfo.pieces().unwrap_or_default());
    let mut stream = TcpStream::connect_timeout(&args.peer, PATIENCE).map_err(cannot())?;
    let started = Instant::now();
    let mut leecher = V1Leecher::connect(geometry, hashes.into(), ours, 0);
    let mut progress = Progress::new("fetching", geometry.size_bytes(), true, as_json);
    let (mut incoming, mut out, mut actions) = (Vec::new(), Vec::new(), Vec::new());
    let mut done_bytes = 0;
    leecher.take_output(&mut out, elapsed_ms(started));
    shake(&stream, &mut out, &mut incoming).map_err(cannot())?;
    let used = leecher.receive(&incoming, elapsed_ms(started), &mut actions);
    incoming.drain(..used);
    loop {
        leecher.tick(elapsed_ms(started), &mut actions);
        for action in actions.drain(..) {
            match action {
                V1Action::Write { offset, data } => {
                    file.write_all_at(&data, offset)
                        .map_err(CliError::io("cannot write the file"))?;
                    done_bytes += data.len() as u64;
                    progress.advance_to(done_bytes, geometry.size_bytes());
                }
                V1Action::Done => {
                    progress.clear();
                    return Ok(());
                }
                V1Action::Failed(failure) => {
                    progress.clear();
                    return Err(CliError::Local(format!("{}: {failure}", args.peer)));
                }
            }
        }
        leecher.take_output(&mut out, elapsed_ms(started));
        stream.write_all(&out).map_err(cannot())?;
        out.clear();
        if read_some(&stream, &mut incoming).map_err(cannot())? == Some(0) {
            let left = geometry.piece_count() - leecher.proved().count();
            return Err(CliError::Local(format!(
                "{} closed the connection with {left} pieces missing",
                args.peer
            )));
        }
        let used = leecher.receive(&incoming, elapsed_ms(started), &mut actions);
        incoming.drain(..used);
    }
}
