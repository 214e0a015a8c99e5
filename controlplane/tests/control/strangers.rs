//! Bytes from whoever can reach a socket of the control process: garbage, too much, too slow. They
//! are closed in time and counted, and nobody else notices.

use std::time::{Duration, Instant};

use skein_controlplane::api::types::*;
use skein_wire::limits::{PRE_AUTH_BYTES_MAX, PRE_AUTH_TIME_MS};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::harness::{TestServer, fleet_of, until};

const TIME: Duration = Duration::from_millis(PRE_AUTH_TIME_MS);
/// What a loaded machine may add.
const GRACE: Duration = Duration::from_secs(4);

fn refused(listener: &str, reason: &str) -> f64 {
    let start = format!(
        "skein_control_connections_refused_total{{listener=\"{listener}\",reason=\"{reason}\"}} "
    );
    let text = skein_observe::install().render();
    let line = text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
    line.unwrap_or(0.0)
}

/// Reads until the other side closes; how long that took.
async fn closed(stream: &mut (impl AsyncRead + Unpin), since: Instant) -> Duration {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(TIME + GRACE, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "not closed after {:?}", since.elapsed());
    since.elapsed()
}

/// One byte every 100 ms until the other side closes.
async fn dribble(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) {
    let begun = Instant::now();
    let mut bytes = bytes.iter().cycle();
    let mut answer = [0; 64];
    loop {
        assert!(begun.elapsed() < TIME + GRACE, "a dribbler is served for ever");
        let written = stream.write_all(&[*bytes.next().expect("endless")]).await;
        let read = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut answer)).await;
        if written.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
            break;
        }
    }
    let took = begun.elapsed();
    assert!(took + Duration::from_millis(200) >= TIME, "{took:?}: closed for another reason");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_at_the_api_have_five_seconds_and_16_kib() {
    let server = TestServer::start().await;
    let address = server.control.api();
    let before = (refused("api", "time"), refused("api", "bytes"));

    // A head that never ends, in one piece.
    let mut flood = TcpStream::connect(address).await.unwrap();
    let head =
        format!("GET /api/skein/v1/status HTTP/1.1\r\nx: {}", "a".repeat(2 * PRE_AUTH_BYTES_MAX));
    let begun = Instant::now();
    let _ = flood.write_all(head.as_bytes()).await;
    assert!(closed(&mut flood, begun).await < TIME / 2);
    until("the flood is counted", || (refused("api", "bytes") > before.1).then_some(())).await;

    // No HTTP at all.
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(&[0x16, 3, 1, 0x40, 0, 0xff, b'\r', b'\n', b'\r', b'\n']).await.unwrap();
    let begun = Instant::now();
    assert!(closed(&mut garbage, begun).await < TIME / 2);

    // A body without a token is not waited for.
    let mut upload = TcpStream::connect(address).await.unwrap();
    let head =
        "PUT /api/skein/v1/uploads?name=x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    upload.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    upload.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
    assert!(closed(&mut upload, Instant::now()).await < TIME + GRACE);

    // A head byte by byte, and silent ones that take every place: operators wait 5 s at most.
    let dribbler = TcpStream::connect(address).await.unwrap();
    let dribbling = tokio::spawn(dribble(dribbler, b"GET /api/skein/v1/status HTTP/1.1 "));
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let begun = Instant::now();
    server.api.get::<Status>("/status").await.unwrap();
    assert!(begun.elapsed() < TIME + GRACE, "{:?}", begun.elapsed());
    dribbling.await.unwrap();
    for stream in &mut silent[..10] {
        closed(stream, begun).await;
    }
    let counted = || (refused("api", "time") >= before.0 + 200.0).then_some(());
    until("the silent ones are counted", counted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_with_a_token_outlives_the_bound() {
    let server = TestServer::start().await;
    let token = std::fs::read_to_string(server.dir.join("control/admin.token")).unwrap();
    let mut stream = TcpStream::connect(server.control.api()).await.unwrap();
    let head = format!(
        "PUT /api/skein/v1/uploads?name=slow HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-length: 600000\r\nconnection: close\r\n\r\n",
        token.trim()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let mut sent = 0;
    while sent < 600_000 {
        stream.write_all(&[7; 60_000]).await.unwrap();
        sent += 60_000;
        tokio::time::sleep((TIME + TIME / 5) / 10).await;
    }
    assert!(begun.elapsed() > TIME);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_data_process_is_closed_and_disturbs_no_link() {
    let (server, _data, _agents) = fleet_of(&["one"]).await;
    let path = server.dir.join("run/fleet.sock");
    let before = (refused("fleet", "malformed"), refused("fleet", "time"));
    let oversize = u32::try_from(PRE_AUTH_BYTES_MAX + 1).unwrap().to_be_bytes();
    let attempts: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", &oversize, &[0, 0, 0, 3, 0xff, 0xff, 0xff], &[0xff; 100_000]];
    for attempt in attempts {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let begun = Instant::now();
        let _ = stream.write_all(attempt).await;
        assert!(closed(&mut stream, begun).await < TIME / 2, "{:?}", &attempt[..4]);
    }
    assert!(refused("fleet", "malformed") >= before.0 + 4.0);
    // A registration that never ends, and silence that takes every place.
    let mut silent = Vec::new();
    for _ in 0..63 {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }
    let dribbler = UnixStream::connect(&path).await.unwrap();
    let begun = Instant::now();
    let another = tokio::spawn({
        let dir = server.dir.clone();
        async move { crate::harness::FakeData::connect(&dir).await }
    });
    closed(&mut silent[0], begun).await;
    tokio::time::timeout(TIME + GRACE, another).await.expect("a place is free").unwrap();
    // It waited in the backlog and has its own time now.
    dribble(dribbler, &[0, 0, 0x20, 0]).await;
    assert!(refused("fleet", "time") >= before.1 + 60.0);
    server.api.get::<Status>("/status").await.unwrap();
}
