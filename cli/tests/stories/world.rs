//! What every story starts from: a server in a folder of its own, agents, and the command line.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use skein_cli::local::{AgentOptions, Binaries, LocalAgent, LocalServer, ServerOptions, wait_for};
use skein_cli::recount::Recount;
use skein_controlplane::api::types::{Agent, AgentState};

/// Longest wait for anything in these stories.
pub const WAIT: Duration = Duration::from_secs(60);

/// A server and a folder for everything.
///
/// Fields are dropped in order: the folder goes when nothing writes into it any more.
pub struct World {
    _calm: Calm,
    pub server: LocalServer,
    pub binaries: Binaries,
    pub dir: tempfile::TempDir,
}

/// At the end of a story no process may have panicked: supervisors start it again, and the story
/// might not notice.
struct Calm(PathBuf);

impl Drop for Calm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let hosts = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let logs =
            hosts.flat_map(|host| ["agent.log", "server.log"].map(|log| host.path().join(log)));
        for log in logs {
            let said = std::fs::read(&log).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            if let Some(at) = said.find("panicked at ") {
                let end = said.floor_char_boundary(said.len().min(at + 2_000));
                panic!("a process panicked: {}\n{}", log.display(), &said[at..end]);
            }
        }
    }
}

impl World {
    pub fn new() -> Self {
        Self::with_config("restart_pause_ms_max = 300\n")
    }

    pub fn with_config(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let binaries = Binaries::beside(Path::new(env!("CARGO_BIN_EXE_skein")))
            .unwrap_or_else(|error| panic!("{error}"));
        let options = ServerOptions { config: config.to_owned(), ..ServerOptions::default() };
        let server = LocalServer::start(&binaries, &dir.path().join("server"), &options)
            .unwrap_or_else(|error| panic!("{error}"));
        Self { _calm: Calm(dir.path().to_owned()), server, binaries, dir }
    }

    /// An agent that is online.
    pub fn agent(&self, name: &str, options: AgentOptions) -> LocalAgent {
        let agent = self.enrolled(name, options);
        self.start(agent)
    }

    /// An agent that is enrolled and does not run.
    pub fn enrolled(&self, name: &str, options: AgentOptions) -> LocalAgent {
        let token = self.server.token(1).unwrap_or_else(|error| panic!("{error}"));
        let host = self.host(name);
        LocalAgent::enrol(&self.binaries, &host, &self.server, &token, &options)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As many agents, all online, by one token.
    pub fn agents<const N: usize>(&self, options: &AgentOptions) -> [LocalAgent; N] {
        let token = self.server.token(N as u32).unwrap_or_else(|error| panic!("{error}"));
        let agents: [LocalAgent; N] = std::array::from_fn(|number| {
            let host = self.host(&format!("host-{number}"));
            let agent = LocalAgent::enrol(&self.binaries, &host, &self.server, &token, options);
            let mut agent = agent.unwrap_or_else(|error| panic!("{error}"));
            agent.run().unwrap();
            agent
        });
        agents.iter().for_each(|agent| self.wait_state(agent, AgentState::Online));
        agents
    }

    pub fn start(&self, mut agent: LocalAgent) -> LocalAgent {
        agent.run().unwrap();
        self.wait_state(&agent, AgentState::Online);
        agent
    }

    pub fn host(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the server says about an agent.
    pub fn view(&self, id: &str) -> Option<Agent> {
        let client = self.server.client();
        let find = |selector: &str| {
            client.agents(selector).ok()?.into_iter().find(|agent| agent.agent_id == id)
        };
        // Revoked agents show themselves only to whom asks for them.
        find("all").or_else(|| find("state=revoked"))
    }

    pub fn wait_state(&self, agent: &LocalAgent, state: AgentState) {
        let what = format!("agent {} to be {state:?}", agent.id());
        let reached = || self.view(agent.id()).filter(|view| view.state == state);
        wait_for(&what, WAIT, reached).unwrap_or_else(|error| {
            panic!("{error}\nagent:\n  {}\nserver:\n  {}", agent.log_tail(), self.server.log_tail())
        });
    }

    /// Runs `skein` against this server.
    pub fn skein(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.binaries.skein);
        command.arg("--data-dir").arg(self.server.dir()).args(arguments);
        for variable in skein_cli::connection::VARIABLES {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs `skein`, which must end with this code, and answers with its standard output.
    pub fn skein_ends(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.skein(arguments);
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "skein {arguments:?}\n{out}\n{err}");
        out.into_owned()
    }

    /// Runs `skein --json`, which must succeed.
    pub fn skein_json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend_from_slice(arguments);
        serde_json::from_str(&self.skein_ends(0, &all)).unwrap()
    }
}

/// A seed that is printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = number("SKEIN_SEED", 1);
    println!("SKEIN_SEED={seed}");
    seed
}

pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Configuration of an agent that tails the logs of its host into a data id.
pub fn tailing(world: &World, name: &str, data_id: u32) -> AgentOptions {
    let logs = world.host(name).join("logs");
    AgentOptions {
        config: format!(
            "[[tail]]\npath = \"{}/*.log\"\ndata_id = {data_id}\nfrom = \"start\"\n",
            logs.display()
        ),
        ..AgentOptions::default()
    }
}

/// A program that logs numbered lines, some thousands per second, until told to end.
pub struct Logger {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Logger {
    /// Appends to a log of the agent's host.
    pub fn start(agent: &LocalAgent) -> Self {
        let path = agent.logs().join("app.log");
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop_it, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            while !stop_it.load(Ordering::SeqCst) {
                let first = count.load(Ordering::SeqCst);
                let lines = (first..first + 50)
                    .map(|number| format!("{number} a line of a program that logs\n"))
                    .collect::<String>();
                file.write_all(lines.as_bytes()).unwrap();
                count.store(first + 50, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stop, written, thread: Some(thread) }
    }

    /// Ends it and answers with the number of lines.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.written.load(Ordering::SeqCst)
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Waits until a stream's files hold `expected` different records and checks each by identity: no
/// gap, no repeat, no damage, and the lines of each agent are exactly 0, 1, 2 ...
pub fn assert_all_stored(world: &World, folder: &Path, lines_per_agent: &[(&str, u64)]) {
    let expected: u64 = lines_per_agent.iter().map(|(_, lines)| lines).sum();
    let waited = wait_for("all records in the sink", WAIT, || {
        Recount::of(folder).ok().filter(|recount| recount.unique() >= expected)
    });
    let mut numbers: std::collections::BTreeMap<String, Vec<u64>> = Default::default();
    let recount = Recount::read(folder, |key, _, text| {
        let text = String::from_utf8_lossy(text);
        let number = text.split(' ').next().unwrap_or_default().parse().unwrap_or(u64::MAX);
        numbers.entry(key.agent.clone()).or_default().push(number);
    })
    .unwrap();
    let summary = format!(
        "expected {expected}, unique {}, duplicates {}, missing {}, malformed {}, lanes {:?}",
        recount.unique(),
        recount.duplicates(),
        recount.missing(),
        recount.malformed,
        recount.lanes.keys().collect::<Vec<_>>()
    );
    println!("{summary}");
    let log = world.server.log_tail();
    assert!(waited.is_ok(), "{summary}\nserver:\n  {log}");
    assert_eq!(
        (recount.unique(), recount.duplicates(), recount.missing(), recount.malformed),
        (expected, 0, 0, 0),
        "{summary}\nserver:\n  {log}"
    );
    for (agent, lines) in lines_per_agent {
        let mut found = numbers.remove(*agent).unwrap_or_default();
        found.sort_unstable();
        let whole = found.iter().copied().eq(0..*lines);
        let odd = found.iter().zip(0..).find(|(found, expected)| *found != expected);
        assert!(whole, "agent {agent}: {} lines of {lines}, first odd one {odd:?}", found.len());
    }
}

/// Whether these tests may do what only root may.
pub fn is_root() -> bool {
    let own = std::fs::metadata("/proc/self");
    own.is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Something that only root may do was refused: where everything is required, root must succeed.
pub fn assert_may_skip() {
    let required = is_root() && std::env::var_os("SKEIN_REQUIRE_TOOLS").is_some();
    assert!(!required, "this must not be skipped here");
}
