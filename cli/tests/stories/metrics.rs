//! The metrics of all three processes pass `promtool check metrics`, a real Prometheus scrapes
//! them, and none that is shown is absent from the catalogue.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use skein_cli::local::{AgentOptions, LocalAgent, wait_for};

use super::world::{WAIT, World};

/// A tool that `make test` installs. Without it the test says so and passes, but for `make test`,
/// which sets SKEIN_REQUIRE_TOOLS.
fn tool(name: &str) -> Option<std::path::PathBuf> {
    let unpacked = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../.tools/prometheus/usr/bin")
        .join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).map(|folder| folder.join(name));
    let found = candidates.find(|file| file.is_file()).or(unpacked.is_file().then_some(unpacked));
    if found.is_none() {
        assert!(std::env::var_os("SKEIN_REQUIRE_TOOLS").is_none(), "{name} is not installed");
        eprintln!("{name} is not installed; run scripts/bootstrap.sh test");
    }
    found
}

/// The reply to a GET, head and body.
pub fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Where an agent shows its metrics.
pub fn agent_metrics(agent: &LocalAgent) -> String {
    let path = agent.home().join("run/ports.json");
    let ports: serde_json::Value = wait_for("the agent's ports", WAIT, || {
        serde_json::from_slice(&std::fs::read(&path).ok()?).ok()
    })
    .unwrap();
    ports["metrics"].as_str().unwrap().to_owned()
}

/// Addresses of control, data and agent after they have done some of everything.
fn busy(world: &World) -> (LocalAgent, [String; 3]) {
    world.server.tagged_stream("logs", &[1001]).unwrap();
    let agent = world.agent("one", AgentOptions::default());
    let mut emit = agent.emit(1001);
    let status = emit.args(["--generate", "1000"]).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
    world.skein_ends(0, &["run", "--on", "all", "--", "echo hello"]);
    let file = world.dir.path().join("file");
    std::fs::write(&file, vec![7; 100_000]).unwrap();
    let to = format!("all:{}", world.dir.path().join("to").display());
    world.skein_ends(0, &["push", file.to_str().unwrap(), "--mkdir", "--to", &to]);
    let control = world.server.client().api().trim_start_matches("http://").to_owned();
    let data = world.server.ports().data_metrics.unwrap();
    let metrics = agent_metrics(&agent);
    (agent, [control, data, metrics])
}

#[test]
fn metrics_of_all_processes_pass_promtool_and_stand_in_the_catalogue() {
    let world = World::new();
    let (_agent, addresses) = busy(&world);
    let promtool = tool("promtool");
    let known: Vec<&str> = skein_observe::names::all().iter().map(|metric| metric.name).collect();
    for (process, address) in ["control", "data", "agent"].iter().zip(&addresses) {
        let reply = get(address, "/metrics").unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{process}: {head}");
        for line in body.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap();
            assert!(known.contains(&name), "{process} shows {name}, which is in no catalogue");
        }
        assert!(body.contains(&format!("skein_{process}_")), "{process}:\n{body}");
        for path in ["/healthz", "/readyz"] {
            let reply = get(address, path).unwrap();
            assert!(reply.starts_with("HTTP/1.1 200"), "{process} {path}: {reply}");
        }
        let Some(promtool) = &promtool else { continue };
        let mut check = Command::new(promtool);
        check.args(["check", "metrics"]).stdin(Stdio::piped());
        let mut check = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        check.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        let output = check.wait_with_output().unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{process}: promtool says\n{out}{err}");
    }
}

#[test]
fn a_real_prometheus_scrapes_all_three_processes() {
    let Some(prometheus) = tool("prometheus") else { return };
    let world = World::new();
    let (_agent, addresses) = busy(&world);
    let config = world.dir.path().join("prometheus.yml");
    let targets = addresses.iter().map(|address| format!("'{address}'")).collect::<Vec<_>>();
    let text = format!(
        "global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\n\
         scrape_configs: [{{job_name: skein, static_configs: [{{targets: [{}]}}]}}]\n",
        targets.join(", ")
    );
    std::fs::write(&config, text).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let log = std::fs::File::create(world.dir.path().join("prometheus.log")).unwrap();
    let mut command = Command::new(prometheus);
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", world.dir.path().join("tsdb").display()));
    command.arg(format!("--web.listen-address={free}"));
    skein_cli::guard::die_with_parent(&mut command);
    let mut prometheus = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let up = wait_for("Prometheus to have scraped all three", WAIT, || {
        let reply = get(&free.to_string(), "/api/v1/query?query=sum(up)").ok()?;
        reply.contains("\"3\"").then_some(())
    });
    let stored =
        get(&free.to_string(), "/api/v1/query?query=sum(skein_data_records_received_total)");
    skein_cli::guard::signal(prometheus.id(), skein_cli::guard::Signal::Terminate);
    let _ = prometheus.wait();
    up.unwrap();
    assert!(stored.unwrap().contains("\"1000\""), "the records are counted in Prometheus");
}
