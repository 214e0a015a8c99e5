//! Collectors' sockets, clause by clause of agent.md section 1, with real sockets.

#![allow(clippy::unwrap_used)] // Helpers of tests.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use skein_agent::home::Home;
use skein_agent::inputs::collector::Collectors;
use skein_agent::inputs::{self, AgentInfo, InfoCell, InputsConfig};
use skein_agent::spool::{Peek, Place, Position, Spool, SpoolConfig};
use skein_wire::compress::Decompressor;
use skein_wire::ids::AgentId;
use skein_wire::records;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

const LANE: u32 = 1_572_885;

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

struct Agent {
    spool: Rc<Spool>,
    home: Home,
    info: Rc<RefCell<AgentInfo>>,
    _dir: tempfile::TempDir,
}

impl Agent {
    /// An agent that never met a server, with one more socket besides its own.
    fn start() -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::create(dir.path()).unwrap();
        let place = Place { dir: home.spool(), boot_id: [1; 16] };
        let config = SpoolConfig { linger_ms: 5, max_bytes: 256 << 20, ..SpoolConfig::default() };
        let spool = Spool::open(place, &config, AgentId::parse("0:10.0.0.1").unwrap()).unwrap();
        let driven = spool.clone();
        tokio::task::spawn_local(async move { driven.run().await });
        let config = InputsConfig {
            ipc: vec![home.root().join("gse/agent/data/ipc.state.report")],
            biz_id: 2,
            host_id: 77,
            static_data_id: 1_100_006,
            tenant_id: "default".into(),
            ..InputsConfig::default()
        };
        let info = AgentInfo::new("agent-1", "10.0.0.1", 3, &config);
        let info = Rc::new(RefCell::new(info));
        let host = info.clone();
        let cell = InfoCell::new(move || host.borrow().clone());
        let open = Box::new(|path: &Path| std::fs::File::open(path));
        inputs::start(&config, &[], &home, &spool, &cell, open);
        Agent { spool, home, info, _dir: dir }
    }

    fn path(&self) -> std::path::PathBuf {
        self.home.run().join(inputs::IPC_NAME)
    }

    async fn connect(&self) -> UnixStream {
        loop {
            if let Ok(stream) = UnixStream::connect(self.path()).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn records(&self, lane: u32, count: u64) -> Vec<Vec<u8>> {
        wait_until(|| self.spool.depth(lane).is_some_and(|depth| depth.records >= count)).await;
        let mut out = Vec::new();
        self.spool.seek(lane, Position::default());
        let mut opener = Decompressor::new();
        loop {
            match self.spool.peek(lane) {
                Peek::Batch(batch) => {
                    let mut raw = Vec::new();
                    let bytes = batch.header.raw_bytes as usize;
                    opener
                        .decompress(batch.header.codec, &batch.frame[64..], bytes, &mut raw)
                        .unwrap();
                    for record in records::iter(&raw, batch.header.record_count) {
                        out.push(record.unwrap().value.to_vec());
                    }
                    self.spool.pop(lane);
                }
                Peek::Loading | Peek::Busy => self.spool.changed().await,
                Peek::End => return out,
            }
        }
    }
}

fn header(kind: u32, data_id: u32, body: usize) -> Vec<u8> {
    let fields = [kind, data_id, 1_682_477_366, body as u32, 0, 0];
    fields.iter().flat_map(|field| field.to_be_bytes()).collect()
}

fn common(payload: &[u8]) -> Vec<u8> {
    [header(0xC01, LANE, payload.len()), payload.to_vec()].concat()
}

fn dynamic(payload: &[u8]) -> Vec<u8> {
    let mut out = header(9, LANE, 24 + 408 + payload.len());
    out.extend_from_slice(&[0; 12]);
    out.extend([0, 408, 0].iter().flat_map(|field: &u32| field.to_be_bytes()));
    out.resize(out.len() + 408, 0);
    out.extend_from_slice(payload);
    out
}

async fn ask(stream: &mut UnixStream) -> serde_json::Value {
    stream.write_all(&header(0x0A, 0, 0)).await.unwrap();
    // As libgse does it: the header by one read, the body by one read (1.6, quirk 1).
    let mut head = [0; 8];
    assert_eq!(stream.read(&mut head).await.unwrap(), 8);
    assert_eq!(u32::from_be_bytes([head[0], head[1], head[2], head[3]]), 0x0A);
    let bytes = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let mut body = vec![0; bytes];
    assert_eq!(stream.read(&mut body).await.unwrap(), bytes);
    serde_json::from_slice(&body).unwrap()
}

async fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0; 16]).await, Ok(0) | Err(_))
}

/// 1.1: a list of paths, stream sockets, open to collectors of any user.
#[test]
fn every_path_listens_and_is_open_to_all() {
    local(async {
        let agent = Agent::start();
        agent.connect().await;
        for path in [agent.path(), agent.home.root().join("gse/agent/data/ipc.state.report")] {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o666);
            let mut stream = UnixStream::connect(&path).await.unwrap();
            assert_eq!(ask(&mut stream).await["bk_agent_id"], "agent-1");
        }
    });
}

/// 1.3, 1.4: 0xC01, 0xC0C, 9 and 2 carry records; utctime is a hint only (1.2).
#[test]
fn records_of_every_type_reach_the_spool() {
    local(async {
        let agent = Agent::start();
        let mut stream = agent.connect().await;
        stream.write_all(&common(b"{\"common\":1}")).await.unwrap();
        stream.write_all(&dynamic(b"{\"dynamic\":1}")).await.unwrap();
        stream.write_all(&[header(0xC0C, LANE, 3), b"ops".to_vec()].concat()).await.unwrap();
        stream.write_all(&[header(2, LANE, 6), b"\0\0tlog".to_vec()].concat()).await.unwrap();
        let expected: [&[u8]; 4] = [b"{\"common\":1}", b"{\"dynamic\":1}", b"ops", b"\0\0tlog"];
        assert_eq!(agent.records(LANE, 4).await, expected);
    });
}

/// 1.5: answered at once from what is known, also without a server: the union of the keys that
/// clients read, integers as plain numbers.
#[test]
fn agent_info_is_answered_offline() {
    local(async {
        let agent = Agent::start();
        let mut stream = agent.connect().await;
        let started = Instant::now();
        let expected = serde_json::json!({
            "bizid": 2, "bk_biz_id": 2, "cloudid": 3, "cloud_id": 3, "ip": "10.0.0.1",
            "bk_agent_id": "agent-1", "bk_tenant_id": "default", "static_dataid": 1_100_006,
            "hostid": 77,
        });
        assert_eq!(ask(&mut stream).await, expected);
        assert!(started.elapsed() < Duration::from_secs(1));
        // Asked again and again on one connection, between records.
        stream.write_all(&common(b"x")).await.unwrap();
        assert_eq!(ask(&mut stream).await, expected);
    });
}

/// 1.5: each answer replaces what the collector knew, so a host that got another address, or an
/// agent that got another identity, is told as it is now; a host that lost its address for a
/// moment keeps the last one, because an empty answer makes collectors refuse every event.
#[test]
fn agent_info_follows_the_host() {
    local(async {
        let agent = Agent::start();
        let mut stream = agent.connect().await;
        assert_eq!(ask(&mut stream).await["ip"], "10.0.0.1");
        agent.info.borrow_mut().ip = "10.0.0.2".into();
        while ask(&mut stream).await["ip"] != "10.0.0.2" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        *agent.info.borrow_mut() =
            AgentInfo { ip: String::new(), agent_id: "agent-2".into(), ..AgentInfo::default() };
        let told = loop {
            let told = ask(&mut stream).await;
            if told["bk_agent_id"] == "agent-2" {
                break told;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(told["ip"], "10.0.0.2");
    });
}

/// 1.6, quirk 3: a header that cannot be right closes the connection; what came before is kept.
#[test]
fn a_bad_header_closes_the_connection() {
    local(async {
        let agent = Agent::start();
        let bad: [Vec<u8>; 5] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            header(0xC01, LANE, 10 * 1024 * 1024 + 433),
            header(9, LANE, 20),
            header(0x0A, 0, 5),
            header(0xC02, LANE, 5),
        ];
        for (number, bytes) in bad.iter().enumerate() {
            let mut stream = agent.connect().await;
            stream.write_all(&common(format!("good {number}").as_bytes())).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            assert!(is_closed(&mut stream).await, "{number}");
        }
        // A frame that was begun again in its middle (a write that timed out at the client).
        let mut stream = agent.connect().await;
        let frame = common(&[b'x'; 100]);
        let torn = [&frame[..60], &frame, &frame].concat();
        stream.write_all(&torn).await.unwrap();
        assert!(is_closed(&mut stream).await);
        let good: Vec<Vec<u8>> = (0..5).map(|n| format!("good {n}").into_bytes()).collect();
        assert_eq!(agent.records(LANE, 6).await[..5], good);
    });
}

/// 1.6, quirk 4: many connections of one message each, closed at once: nothing before FIN is lost.
#[test]
fn many_short_connections_lose_nothing() {
    local(async {
        let agent = Agent::start();
        agent.connect().await;
        for number in 0..500 {
            let mut stream = agent.connect().await;
            let record = format!("short {number}");
            stream.write_all(&common(record.as_bytes())).await.unwrap();
            // Dropped here, mostly before the agent accepted it.
        }
        let mut records = agent.records(LANE, 500).await;
        records.sort();
        let mut expected: Vec<_> = (0..500).map(|n| format!("short {n}").into_bytes()).collect();
        expected.sort();
        assert_eq!(records, expected);
    });
}

/// 1.6, item 7: frames up to 10 MiB and what DYNAMIC adds.
#[test]
fn the_largest_frame_is_taken() {
    local(async {
        let agent = Agent::start();
        let mut stream = agent.connect().await;
        let payload = vec![b'a'; 10 * 1024 * 1024];
        stream.write_all(&dynamic(&payload)).await.unwrap();
        let records = agent.records(LANE, 1).await;
        assert!(records == [payload]);
    });
}

/// 1.6: no reader is stalled for 5 s whatever the spool does. Here its disk refuses every write.
#[test]
fn a_dead_disk_stalls_no_collector() {
    local(async {
        let agent = Agent::start();
        std::fs::write(agent.home.spool().join(LANE.to_string()), "in the way").unwrap();
        let mut stream = agent.connect().await;
        let mut state = 1u64;
        let noise: Vec<u8> = (0..100_000)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        for _ in 0..300 {
            let frame = common(&noise);
            let written = stream.write_all(&frame);
            let written = tokio::time::timeout(Duration::from_secs(2), written).await;
            written.expect("the reader is stalled").unwrap();
        }
        wait_until(|| agent.spool.totals().dropped > 100).await;
        assert_eq!(ask(&mut stream).await["bizid"], 2);
    });
}

/// A dribbler costs memory for what it sent, not for what it announced, and others nothing.
#[test]
fn dribblers_disturb_nobody() {
    local(async {
        let agent = Agent::start();
        let mut dribblers = Vec::new();
        for _ in 0..200 {
            let mut stream = agent.connect().await;
            stream.write_all(&header(0xC01, LANE, 10 * 1024 * 1024)).await.unwrap();
            stream.write_all(b"drop").await.unwrap();
            dribblers.push(stream);
        }
        let mut stream = agent.connect().await;
        stream.write_all(&common(b"through")).await.unwrap();
        assert_eq!(agent.records(LANE, 1).await, [b"through"]);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let rss = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        let kib: u64 = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kib < 300 * 1024, "{rss}");
    });
}

/// Unfinished frames of all connections together have a bound in memory: who goes beyond is
/// closed, and what the others sent is untouched.
#[test]
fn unfinished_frames_are_bounded_in_memory() {
    local(async {
        let agent = Agent::start();
        let part = [header(0xC01, LANE, 10 * 1024 * 1024), vec![b'x'; 9 << 20]].concat();
        let mut open = Vec::new();
        let mut closed = 0;
        for _ in 0..9 {
            let mut stream = agent.connect().await;
            // Over the bound it is closed while we write, or soon after.
            let sent = stream.write_all(&part).await.is_ok();
            let closing = is_closed(&mut stream);
            let kept = tokio::time::timeout(Duration::from_millis(200), closing).await.is_err();
            match sent && kept {
                true => open.push(stream),
                false => closed += 1,
            }
        }
        // 64 MiB are seven of these.
        assert_eq!((open.len(), closed), (7, 2));
        let mut stream = agent.connect().await;
        stream.write_all(&common(b"through")).await.unwrap();
        assert_eq!(agent.records(LANE, 1).await, [b"through"]);
        // One of those that were there first may go on; what another one had is given back.
        open[0].write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        drop(open.pop());
        assert_eq!(agent.records(LANE, 2).await[1].len(), 10 << 20);
    });
}

/// A frame has its time from its first byte, however busily its bytes drip. A connection that says
/// nothing may stay.
#[test]
fn a_frame_that_drips_is_closed_in_time() {
    local(async {
        let agent = Agent::start();
        let path = agent.home.run().join("hasty");
        let info = InfoCell::new(AgentInfo::default);
        let time = Duration::from_millis(500);
        let hasty = Collectors::with_frame_time(agent.spool.clone(), info, time);
        let listening = path.clone();
        tokio::task::spawn_local(async move { hasty.listen(&listening, 0o600).await });
        wait_until(|| path.exists()).await;
        let mut idle = UnixStream::connect(&path).await.unwrap();
        let mut dribbler = UnixStream::connect(&path).await.unwrap();
        let began = Instant::now();
        dribbler.write_all(&header(0xC01, LANE, 1_000_000)).await.unwrap();
        while dribbler.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(began.elapsed() >= time, "{:?}", began.elapsed());
        assert!(began.elapsed() < 10 * time, "{:?}", began.elapsed());
        idle.write_all(&common(b"after a long time")).await.unwrap();
        assert_eq!(agent.records(LANE, 1).await, [b"after a long time"]);
    });
}
