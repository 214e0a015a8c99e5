//! Networks that fail without saying so: connections that are open at both ends and carry nothing,
//! and a server that cannot be reached. Agents and server find out by themselves, the spool keeps
//! what comes meanwhile, and every record is stored once.
//!
//! `SKEIN_OUTAGE_SECONDS` is how long the server cannot be reached (6; the promise is made for 60).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use skein_cli::local::{AgentOptions, LocalAgent, wait_for};
use skein_cli::recount::Recount;
use skein_controlplane::api::types::AgentState;

use super::metrics;
use super::world::{Logger, WAIT, World, assert_all_stored, number, tailing};

const DATA_ID: u32 = 1001;

/// Agents that are silent for 3.5 s count as lost, so that stories end in seconds.
const QUICK: &str = "restart_pause_ms_max = 300\n[control]\nheartbeat_seconds = 1\n";

/// Longest nap of a pipe between two looks at what became of it.
const NAP: Duration = Duration::from_millis(50);

/// What lies between an agent and the server's three ports.
struct Network {
    state: Arc<State>,
    /// Address of the server, and ours that leads to it.
    doors: Vec<(String, SocketAddr)>,
}

#[derive(Default)]
struct State {
    /// Connections below this number carry nothing any more and stay open.
    frozen_below: AtomicU64,
    /// Connections below this number are cut.
    cut_below: AtomicU64,
    next: AtomicU64,
    /// Nothing new gets through.
    closed: AtomicBool,
    over: AtomicBool,
}

impl Network {
    fn before(world: &World) -> Self {
        let ports = world.server.ports();
        let state = Arc::new(State::default());
        let doors = [ports.signal, ports.data, ports.file].into_iter().map(|server| {
            let server = server.unwrap();
            let door = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = door.local_addr().unwrap();
            door.set_nonblocking(true).unwrap();
            let (state, to) = (Arc::clone(&state), server.clone());
            std::thread::spawn(move || state.serve(&door, &to));
            (server, address)
        });
        let doors = doors.collect();
        Self { state, doors }
    }

    /// An agent that knows the server by our addresses only.
    fn agent(&self, world: &World, name: &str, options: AgentOptions) -> LocalAgent {
        let agent = world.enrolled(name, options);
        let config = agent.home().join("agent.toml");
        let mut text = std::fs::read_to_string(&config).unwrap();
        for (server, door) in &self.doors {
            assert!(text.contains(server), "{text}");
            text = text.replace(server, &door.to_string());
        }
        std::fs::write(&config, text).unwrap();
        world.start(agent)
    }

    /// The connections of this moment carry nothing any more, and nobody is told.
    fn freeze(&self) -> u64 {
        let now = self.state.next.load(Ordering::SeqCst);
        self.state.frozen_below.store(now, Ordering::SeqCst);
        now
    }

    /// The server cannot be reached.
    fn cut(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        self.state.cut_below.store(self.state.next.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    fn mend(&self) {
        self.state.closed.store(false, Ordering::SeqCst);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
    }
}

impl State {
    fn serve(self: &Arc<Self>, door: &TcpListener, server: &str) {
        while !self.over.load(Ordering::SeqCst) {
            let Ok((agent, _)) = door.accept() else {
                std::thread::sleep(NAP / 5);
                continue;
            };
            if self.closed.load(Ordering::SeqCst) {
                continue;
            }
            let Ok(server) = TcpStream::connect(server) else { continue };
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            let pairs =
                [(agent.try_clone().unwrap(), server.try_clone().unwrap()), (server, agent)];
            for (from, to) in pairs {
                let state = Arc::clone(self);
                std::thread::spawn(move || state.carry(number, from, to));
            }
        }
    }

    fn carry(&self, number: u64, mut from: TcpStream, mut to: TcpStream) {
        from.set_nonblocking(false).unwrap();
        from.set_read_timeout(Some(NAP)).unwrap();
        let mut bytes = vec![0; 64 * 1024];
        while !self.over.load(Ordering::SeqCst) {
            if number < self.cut_below.load(Ordering::SeqCst) {
                break;
            }
            if number < self.frozen_below.load(Ordering::SeqCst) {
                std::thread::sleep(NAP);
                continue;
            }
            match from.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) if to.write_all(&bytes[..count]).is_ok() => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                _ => break,
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

fn unique(folder: &std::path::Path) -> u64 {
    Recount::of(folder).map_or(0, |recount| recount.unique())
}

#[test]
fn half_open_connections_are_found_and_replaced_and_nothing_is_lost() {
    let world = World::with_config(QUICK);
    let folder = world.server.tagged_stream("logs", &[DATA_ID]).unwrap();
    let network = Network::before(&world);
    let agent = network.agent(&world, "one", tailing(&world, "one", DATA_ID));
    let logger = Logger::start(&agent);
    wait_for("records", WAIT, || (unique(&folder) > 1_000).then_some(())).unwrap();
    let frozen = network.freeze();
    let stored = unique(&folder);
    wait_for("new connections", WAIT, || {
        (network.state.next.load(Ordering::SeqCst) >= frozen + 2).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log_tail()));
    wait_for("records to flow again", WAIT, || (unique(&folder) > stored + 5_000).then_some(()))
        .unwrap_or_else(|error| panic!("{error}\n{}", agent.log_tail()));
    world.wait_state(&agent, AgentState::Online);
    // The server ended its half: declared lost, or replaced by the same agent's new session.
    let metrics = metrics::get(&world.server.ports().data_metrics.unwrap(), "/metrics").unwrap();
    let ended = |kind: &str| {
        ["lost", "replaced"].iter().any(|reason| {
            let name = "skein_data_sessions_closed_total";
            metrics.contains(&format!("{name}{{kind=\"{kind}\",reason=\"{reason}\"}}"))
        })
    };
    assert!(ended("signal") && ended("data"), "{metrics}");
    let lines = logger.finish();
    assert_all_stored(&world, &folder, &[(agent.id(), lines)]);
    world.skein_ends(0, &["run", "--on", agent.id(), "--", "true"]);
}

#[test]
fn an_unreachable_server_costs_nothing_but_time() {
    let world = World::with_config(QUICK);
    let folder = world.server.tagged_stream("logs", &[DATA_ID]).unwrap();
    let network = Network::before(&world);
    let agent = network.agent(&world, "one", tailing(&world, "one", DATA_ID));
    let logger = Logger::start(&agent);
    wait_for("records", WAIT, || (unique(&folder) > 1_000).then_some(())).unwrap();
    network.cut();
    wait_for("the server to notice", WAIT, || {
        (world.view(agent.id())?.state != AgentState::Online).then_some(())
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(number("SKEIN_OUTAGE_SECONDS", 6)));
    let stored = unique(&folder);
    let output = world.skein(&["run", "--deliver-within", "1s", "--on", agent.id(), "--", "true"]);
    assert_ne!(output.status.code(), Some(0), "a script ran on a host that cannot be reached");
    assert_eq!(unique(&folder), stored, "nothing got through");
    network.mend();
    world.wait_state(&agent, AgentState::Online);
    let lines = logger.finish();
    assert!(lines > stored, "the spool kept what came meanwhile");
    assert_all_stored(&world, &folder, &[(agent.id(), lines)]);
    world.skein_ends(0, &["run", "--on", agent.id(), "--", "true"]);
}
