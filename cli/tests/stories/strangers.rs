//! Garbage, too much and too slow on every socket of all three processes at once, while records
//! flow: whatever a stranger sends is closed and counted, no process ends, and nobody else notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use skein_cli::local::{LocalAgent, wait_for};

use super::metrics::{agent_metrics, get};
use super::world::{Logger, Random, WAIT, World, assert_all_stored, seed, tailing};

const DATA_ID: u32 = 1001;

/// How long a stranger on a network port may hold its connection, and what a loaded machine adds.
const CLOSED_WITHIN: Duration = Duration::from_secs(5 + 5);

#[derive(Clone, Debug)]
enum Door {
    Tcp(String),
    Unix(PathBuf),
}

/// A connection to any of them.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Door {
    fn open(&self) -> Box<dyn Stream> {
        let patience = Some(Duration::from_millis(100));
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(patience).unwrap();
                stream.set_write_timeout(patience).unwrap();
                Box::new(stream)
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                stream.set_read_timeout(patience).unwrap();
                stream.set_write_timeout(patience).unwrap();
                Box::new(stream)
            }
        }
    }
}

/// Every socket on which the three processes listen.
fn doors(world: &World, agent: &LocalAgent) -> Vec<(&'static str, Door)> {
    let ports = world.server.ports();
    let api = world.server.client().api().trim_start_matches("http://").to_owned();
    let run = agent.home().join("run");
    vec![
        ("signal", Door::Tcp(ports.signal.unwrap())),
        ("data", Door::Tcp(ports.data.unwrap())),
        ("file", Door::Tcp(ports.file.unwrap())),
        ("data metrics", Door::Tcp(ports.data_metrics.unwrap())),
        ("api", Door::Tcp(api)),
        ("agent metrics", Door::Tcp(agent_metrics(agent))),
        ("fleet", Door::Unix(world.server.dir().join("run/fleet.sock"))),
        ("collector", Door::Unix(run.join("ipc.state.report"))),
        ("emit", Door::Unix(run.join("emit.sock"))),
    ]
}

/// Reads until the other side closes; false when it did not within `time`.
fn closed(stream: &mut dyn Stream, time: Duration) -> bool {
    let begun = Instant::now();
    let mut rest = [0; 4096];
    while begun.elapsed() < time {
        match stream.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
    }
    false
}

/// The value of all lines of these metrics together.
fn sum(metrics: &str, names: &[&str]) -> f64 {
    let lines = metrics.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn bytes_from_strangers_end_no_process_and_disturb_nobody() {
    let mut random = Random(seed());
    let world = World::new();
    let folder = world.server.tagged_stream("logs", &[DATA_ID]).unwrap();
    let agent = world.agent("one", tailing(&world, "one", DATA_ID));
    let logger = Logger::start(&agent);
    let pids =
        |world: &World| (world.server.control_pid().unwrap(), world.server.data_pid().unwrap());
    let (before, agent_pids) = (pids(&world), agent.pids());
    let doors = doors(&world, &agent);

    // Too slow: one byte every 300 ms, at every socket at once.
    let dribbling: Vec<_> = doors
        .iter()
        // A collector has 60 s for a frame, and may be idle for ever: it is a program of the host.
        .filter(|(name, _)| *name != "collector")
        .map(|(name, door)| {
            let (name, mut stream) = (*name, door.open());
            std::thread::spawn(move || {
                let begun = Instant::now();
                while begun.elapsed() < CLOSED_WITHIN {
                    // The beginning of a TLS record, of a long frame, and no end of a line.
                    let byte = [[0x16, 3, 1, 0x3f, 0xff][..].to_vec(), vec![0; 64]].concat();
                    let at = begun.elapsed().as_millis() as usize / 300;
                    let slow = if matches!(name, "fleet" | "emit") { 0 } else { byte[at.min(60)] };
                    if stream.write_all(&[slow]).is_err()
                        || closed(stream.as_mut(), Duration::from_millis(300))
                    {
                        return (name, begun.elapsed());
                    }
                }
                panic!("{name}: a dribbler is served for ever");
            })
        })
        .collect();

    // Garbage and too much, in one piece and of every kind.
    for (name, door) in &doors {
        for kind in 0..6 {
            let mut bytes: Vec<u8> = (0..20_000).map(|_| random.below(256) as u8).collect();
            match kind {
                0 => bytes.truncate(1 + random.below(64) as usize),
                1 => bytes = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
                2 => bytes = vec![0xff; 200_000],
                3 => bytes = [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; 200_000]].concat(),
                4 => bytes[..5].copy_from_slice(&[0x16, 3, 1, 0x3f, 0xff]),
                _ => bytes[..4].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]),
            }
            let mut stream = door.open();
            let _ = stream.write_all(&bytes);
            drop(stream); // some leave at once
            let mut stream = door.open();
            let _ = stream.write_all(&bytes);
            if kind >= 2 && *name != "collector" {
                assert!(closed(stream.as_mut(), CLOSED_WITHIN), "{name}: kind {kind} stays open");
            }
        }
    }
    for dribbler in dribbling {
        let (name, took) = dribbler.join().unwrap();
        println!("{name}: closed after {took:?}");
    }

    assert_eq!(pids(&world), before, "no process of the server ended");
    assert_eq!(agent.pids(), agent_pids, "no process of the agent ended");
    let counted = [
        (&doors[3].1, &["skein_data_protocol_errors_total"][..], 10.0),
        (&doors[3].1, &["skein_admin_requests_total"][..], 2.0),
        (&doors[4].1, &["skein_control_connections_refused_total{listener=\"api\""][..], 1.0),
        (&doors[4].1, &["skein_control_connections_refused_total{listener=\"fleet\""][..], 4.0),
        (&doors[5].1, &["skein_agent_input_errors_total{input=\"collector\""][..], 2.0),
        (&doors[5].1, &["skein_agent_input_errors_total{input=\"emit\""][..], 4.0),
    ];
    for (door, names, least) in counted {
        let Door::Tcp(address) = door else { unreachable!() };
        let seen = wait_for("strangers to be counted", WAIT, || {
            let metrics = get(address, "/metrics").ok()?;
            (sum(&metrics, names) >= least).then_some(())
        });
        seen.unwrap_or_else(|error| {
            panic!("{error}: {names:?}\n{}", get(address, "/metrics").unwrap())
        });
    }
    world.skein_ends(0, &["run", "--on", agent.id(), "--", "true"]);
    let lines = logger.finish();
    assert_all_stored(&world, &folder, &[(agent.id(), lines)]);
}
