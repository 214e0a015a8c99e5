//! `skein-agent emit` against the agent's socket: what is acknowledged is in the spool.

#![allow(clippy::unwrap_used)] // Helpers of tests.

use std::io::{self, BufReader, Read};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use skein_agent::home::Home;
use skein_agent::inputs::emit::{EmitError, EmitReport, Emitter};
use skein_agent::inputs::{self, AgentInfo, InfoCell, InputsConfig};
use skein_agent::spool::{Peek, Place, Position, Spool, SpoolConfig};
use skein_wire::compress::Decompressor;
use skein_wire::ids::AgentId;
use skein_wire::records;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

const LANE: u32 = 1001;

fn local<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("test hangs");
    });
}

async fn wait_until(mut met: impl FnMut() -> bool) {
    while !met() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn start(root: &Path, config: SpoolConfig) -> (Home, Rc<Spool>) {
    let home = Home::create(root).unwrap();
    let place = Place { dir: home.spool(), boot_id: [1; 16] };
    let spool = Spool::open(place, &config, AgentId::parse("agent-1").unwrap()).unwrap();
    let driven = spool.clone();
    tokio::task::spawn_local(async move { driven.run().await });
    let info = InfoCell::new(AgentInfo::default);
    let open = Box::new(|path: &Path| std::fs::File::open(path));
    inputs::start(&InputsConfig::default(), &[], &home, &spool, &info, open);
    (home, spool)
}

async fn emit_from(
    home: &Home,
    input: impl Read + Send + 'static,
) -> (EmitReport, Result<(), EmitError>) {
    let root = home.root().to_owned();
    let socket = home.run().join("emit.sock");
    wait_until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    let emit = move || Emitter::new(&root, LANE).emit(BufReader::new(input));
    tokio::task::spawn_blocking(emit).await.unwrap()
}

async fn texts(spool: &Spool) -> Vec<String> {
    let mut out = Vec::new();
    spool.seek(LANE, Position::default());
    loop {
        match spool.peek(LANE) {
            Peek::Batch(batch) => {
                let mut raw = Vec::new();
                let bytes = batch.header.raw_bytes as usize;
                let body = &batch.frame[64..];
                Decompressor::new().decompress(batch.header.codec, body, bytes, &mut raw).unwrap();
                for record in records::iter(&raw, batch.header.record_count) {
                    out.push(String::from_utf8(record.unwrap().value.to_vec()).unwrap());
                }
                spool.pop(LANE);
            }
            Peek::Loading | Peek::Busy => spool.changed().await,
            Peek::End => return out,
        }
    }
}

fn config() -> SpoolConfig {
    SpoolConfig { linger_ms: 5, ..SpoolConfig::default() }
}

#[test]
fn lines_are_acknowledged_when_they_are_in_the_spool() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let (home, spool) = start(dir.path(), config());
        let lines: Vec<String> = (0..20_000).map(|n| format!("line {n}")).collect();
        let input = lines.join("\n") + "\n\nlast without end";
        let (report, ended) = emit_from(&home, io::Cursor::new(input)).await;
        ended.unwrap();
        assert_eq!((report.records, report.acknowledged, report.cut), (20_002, 20_002, 0));
        let stored = texts(&spool).await;
        assert_eq!(stored[..20_000], lines);
        assert_eq!(stored[20_000..], ["", "last without end"]);
        let (report, ended) = emit_from(&home, io::empty()).await;
        ended.unwrap();
        assert_eq!(report, EmitReport::default());
    });
}

#[test]
fn a_line_over_the_bound_is_cut_and_counted() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let (home, spool) = start(dir.path(), config());
        let most = skein_agent::spool::SURE_RECORD_BYTES_MAX;
        let input = format!("{}\n{}\nnext\n", "x".repeat(most + 5), "y".repeat(most));
        let (report, ended) = emit_from(&home, io::Cursor::new(input)).await;
        ended.unwrap();
        assert_eq!((report.records, report.acknowledged, report.cut), (3, 3, 1));
        let lengths: Vec<usize> = texts(&spool).await.iter().map(String::len).collect();
        assert_eq!(lengths, [most, most, 4]);
    });
}

/// A program that writes now and then (`journalctl -f`): each line goes at once.
#[test]
fn a_slow_input_is_not_kept_waiting() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let (home, spool) = start(dir.path(), config());
        let (mut give, take) = std::os::unix::net::UnixStream::pair().unwrap();
        let emitting = tokio::task::spawn_local({
            let home = home.clone();
            async move { emit_from(&home, take).await }
        });
        for number in 1..=3 {
            io::Write::write_all(&mut give, b"now and then\n").unwrap();
            wait_until(|| spool.totals().records == number).await;
        }
        drop(give);
        let (report, ended) = emitting.await.unwrap();
        ended.unwrap();
        assert_eq!(report.acknowledged, 3);
    });
}

/// A full spool: the emitter waits and loses nothing.
#[test]
fn a_full_spool_makes_the_emitter_wait() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let small = SpoolConfig { max_bytes: 4 << 20, lane_max_bytes: 1 << 20, ..config() };
        let (home, spool) = start(dir.path(), small);
        let mut state = 1u64;
        let mut line = move || -> String {
            (0..1000)
                .map(|_| {
                    state =
                        state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    char::from(b'!' + (state >> 33) as u8 % 90)
                })
                .collect()
        };
        let lines: Vec<String> = (0..4_000).map(|_| line()).collect();
        let emitting = tokio::task::spawn_local({
            let (home, input) = (home.clone(), lines.join("\n"));
            async move { emit_from(&home, io::Cursor::new(input)).await }
        });
        let mut stored = Vec::new();
        wait_until(|| !spool.has_room(LANE)).await;
        assert!(!emitting.is_finished());
        // A server takes it bit by bit.
        while stored.len() < 4_000 {
            let Some(epoch) = spool.epoch_to_send(LANE) else {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let got = texts(&spool).await;
            let (first, _) = spool.range_of(LANE, epoch).unwrap();
            stored.extend(got[stored.len() - first as usize..].iter().cloned());
            spool.ack(LANE, Position::new(epoch, stored.len() as u64));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (report, ended) = emitting.await.unwrap();
        ended.unwrap();
        assert_eq!((report.acknowledged, spool.totals().dropped), (4_000, 0));
        assert!(stored == lines);
    });
}

#[test]
fn without_an_agent_the_message_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (report, ended) = Emitter::new(dir.path(), LANE).emit(io::Cursor::new("x"));
    assert_eq!(report.acknowledged, 0);
    assert!(ended.unwrap_err().to_string().contains("is it running"));
}

/// The next message of an emitter: its type and what follows.
fn read_message(stream: &mut std::os::unix::net::UnixStream) -> (u8, Vec<u8>) {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut payload = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut payload).unwrap();
    (payload[0], payload[1..].to_vec())
}

fn ready(next: u64) -> Vec<u8> {
    [&[0, 0, 0, 13, 16, 0, 16, 0, 0][..], &next.to_be_bytes()].concat()
}

fn kept(next: u64) -> Vec<u8> {
    [&[0, 0, 0, 9, 17][..], &next.to_be_bytes()].concat()
}

#[test]
fn an_agent_that_stays_away_leaves_the_rest_unacknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::create(dir.path()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(home.run().join("emit.sock")).unwrap();
    let agent = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        let (kind, open) = read_message(&mut stream);
        assert_eq!((kind, &open[..5], open.len()), (1, &[2, 0, 0, 3, 233][..], 21));
        stream.write_all(&ready(0)).unwrap();
        // READY, then it reads a little and dies.
        stream.read_exact(&mut [0; 20]).unwrap();
    });
    let emitter = Emitter {
        patience: Duration::from_millis(300),
        tell: |_| {},
        ..Emitter::new(dir.path(), LANE)
    };
    let (report, ended) = emitter.emit(io::Cursor::new("line\n".repeat(1000)));
    agent.join().unwrap();
    assert_eq!((report.records > 0, report.acknowledged), (true, 0));
    assert!(matches!(ended, Err(EmitError::Away { .. })));
}

/// The last line of an input.
const LAST: &[u8] = b"the last of all";

/// The agent ends with requests unanswered. Those that it had taken the next one knows; the rest
/// is sent again, from the same numbers on and under the same name.
#[test]
fn what_was_not_answered_is_sent_to_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::create(dir.path()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(home.run().join("emit.sock")).unwrap();
    let agent = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        let (_, open) = read_message(&mut stream);
        stream.write_all(&ready(0)).unwrap();
        let first = read_message(&mut stream);
        assert_eq!((first.0, &first.1[..8]), (2, &[0; 8][..]));
        let second = read_message(&mut stream);
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(read_message(&mut stream).1, open);
        // The first request had become durable, the second had not.
        let next = u64::from_be_bytes(second.1[..8].try_into().unwrap());
        stream.write_all(&ready(next)).unwrap();
        let mut request = read_message(&mut stream);
        assert_eq!(request, second);
        while !request.1.ends_with(LAST) {
            request = read_message(&mut stream);
        }
        stream.write_all(&kept(30_001)).unwrap();
        // The emitter closes.
        while stream.read(&mut [0; 4096]).unwrap() > 0 {}
    });
    let emitter = Emitter { tell: |_| {}, ..Emitter::new(dir.path(), LANE) };
    let mut input = "0123456789\n".repeat(30_000).into_bytes();
    input.extend_from_slice(LAST);
    let (report, ended) = emitter.emit(io::Cursor::new(input));
    ended.unwrap();
    agent.join().unwrap();
    assert_eq!((report.acknowledged, report.reconnects), (30_001, 1));
}

/// What answers must have been sent: an agent that claims more would make the emitter forget.
#[test]
fn an_agent_that_has_what_was_never_sent_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::create(dir.path()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(home.run().join("emit.sock")).unwrap();
    let agent = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        read_message(&mut stream);
        stream.write_all(&[ready(0), kept(1 << 40)].concat()).unwrap();
        // Until the emitter closes.
        while stream.read(&mut [0; 4096]).unwrap_or(0) > 0 {}
    });
    let emitter = Emitter { tell: |_| {}, ..Emitter::new(dir.path(), LANE) };
    let (report, ended) = emitter.emit(io::Cursor::new("line\n".repeat(1000)));
    agent.join().unwrap();
    assert_eq!(report.acknowledged, 0);
    assert!(ended.unwrap_err().to_string().contains("that were sent"));
}

/// OPEN of a client named by ones.
const OPEN: [u8; 26] =
    [0, 0, 0, 22, 1, 2, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];

/// Garbage, oversize and unknown versions are answered with a refusal and closed.
#[test]
fn hostile_clients_are_refused() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let (home, spool) = start(dir.path(), config());
        let socket = home.run().join("emit.sock");
        wait_until(|| socket.exists()).await;
        let attempts: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n\r\n",
            &[0, 0, 0, 0],
            &[0, 0, 0, 6, 1, 99, 0, 0, 0, 1],
            // A record longer than its message, a message too long, a number left out.
            &[&OPEN[..], &[0, 0, 0, 13, 2, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0]].concat(),
            &[&OPEN[..], &[0, 32, 0, 0]].concat(),
            &[&OPEN[..], &[0, 0, 0, 14, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'x']].concat(),
        ];
        for attempt in attempts {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            stream.write_all(attempt).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.contains(&18), "{attempt:?}: {answer:?}");
        }
        assert_eq!(spool.totals().records, 0);
    });
}
