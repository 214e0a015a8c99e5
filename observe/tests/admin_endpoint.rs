//! The admin endpoint answers what it should and nothing that is slow, long or foreign holds it.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skein_observe::{ADMIN_REQUEST_BYTES_MAX, install, names, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn ask(address: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The endpoint may answer and close before it has read an oversized request to its end.
    let _ = stream.write_all(request).await;
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply).await;
    String::from_utf8(reply).unwrap()
}

fn status(reply: &str) -> &str {
    reply.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test]
async fn answers_metrics_health_and_readiness() {
    let handle = install();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let probe = Arc::clone(&ready);
    tokio::spawn(serve(listener, handle, move || {
        if probe.load(Ordering::SeqCst) { Ok(()) } else { Err("no link to control".into()) }
    }));

    metrics::counter!(names::DATA_RECORDS_RECEIVED, "data_id" => "7").increment(3);
    metrics::histogram!(names::DATA_HANDSHAKE_SECONDS).record(0.003);
    let reply = ask(address, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status(&reply), "200");
    for expected in [
        "# HELP skein_data_records_received_total Records received",
        "# TYPE skein_data_records_received_total counter",
        "skein_data_records_received_total{data_id=\"7\"} 3",
        "skein_data_handshake_seconds_bucket{le=\"0.005\"} 1",
        "skein_build_info{version=",
        "# TYPE process_cpu_seconds_total counter",
        "process_resident_memory_bytes ",
        "process_start_time_seconds ",
    ] {
        assert!(reply.contains(expected), "{expected} is missing in\n{reply}");
    }

    assert_eq!(status(&ask(address, b"GET /healthz HTTP/1.0\n\n").await), "200");
    let reply = ask(address, b"GET /readyz HTTP/1.1\r\n\r\n").await;
    assert!(status(&reply) == "503" && reply.contains("no link to control"), "{reply}");
    ready.store(true, Ordering::SeqCst);
    assert_eq!(status(&ask(address, b"GET /readyz HTTP/1.1\r\n\r\n").await), "200");

    let reply = ask(address, b"HEAD /healthz HTTP/1.1\r\n\r\n").await;
    assert!(status(&reply) == "200" && reply.ends_with("\r\n\r\n"), "{reply}");
    assert_eq!(status(&ask(address, b"GET /etc/passwd HTTP/1.1\r\n\r\n").await), "404");
    assert_eq!(status(&ask(address, b"POST /metrics HTTP/1.1\r\n\r\n").await), "405");
    assert_eq!(status(&ask(address, b"\x16\x03\x01\x02\n\n").await), "400");
    assert_eq!(status(&ask(address, &vec![b'a'; ADMIN_REQUEST_BYTES_MAX]).await), "431");
}
